//go:build linux

package main

import (
	"runtime"
	"slices"
	"testing"
)

func TestConnectionsAreDealtToTheThreadsOfAShape(t *testing.T) {
	if got, want := deal([]int{7, 8, 9}, 2), [][]int{{7, 9}, {8}}; !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("three connections for two threads are %v, want %v", got, want)
	}
	if got := deal([]int{7}, 2); len(got) != 1 {
		t.Errorf("one connection is dealt to %d threads, want 1", len(got))
	}
	for _, tt := range []struct {
		shape            shape
		threads, accept  int
		echoing, sending int // workers that get one of a hundred connections or more
	}{
		{usual, 3, 1, 1, 1},
		{lean, 1, 1, 1, 1},
		{wide, runtime.NumCPU(), runtime.NumCPU(), runtime.NumCPU(), runtime.NumCPU()},
	} {
		workers, accepting, err := hire(tt.shape)
		if err != nil {
			t.Fatal(err)
		}
		if len(workers) != tt.threads || accepting != tt.accept {
			t.Errorf("%s has %d threads of which %d accept, want %d and %d", tt.shape, len(workers), accepting, tt.threads, tt.accept)
		}
		for role, want := range map[byte]int{roleEcho: tt.echoing, roleSource: tt.sending} {
			got := map[*poller]int{}
			for i := range 100 * len(workers) {
				got[workers[i%accepting].serves(role)]++
			}
			for _, n := range got {
				if n != 100*len(workers)/want {
					t.Errorf("in shape %s a thread gets %d of %d connections of role %c, want as many as each of %d", tt.shape, n, 100*len(workers), role, want)
				}
			}
		}
		for _, w := range workers {
			w.poller.close()
		}
	}
}
