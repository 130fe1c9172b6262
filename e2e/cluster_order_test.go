//go:build linux

package e2e

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// arrival is a number of bytes that arrived at a host from an instance, over one
// connection. Times are those of one clock, in nanoseconds.
type arrival struct {
	at         int64
	host       string
	instance   string
	connection int // its number at that host
}

// barrier is the moment at which the triggers of an epoch ran: after every
// connection of an earlier epoch has ended, and before the first of its own.
type barrier struct {
	at    int64
	epoch uint64
	host  string
}

// readArrivals parses the log of a host: a line for each read, with the time, the
// instance, the number of the connection and the number of bytes.
func readArrivals(host string, log []string) ([]arrival, error) {
	var all []arrival
	for i, line := range log {
		words := strings.Fields(line)
		if len(words) != 4 {
			return nil, fmt.Errorf("log of %s, line %d: %q", host, i+1, line)
		}
		at, err := strconv.ParseInt(words[0], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("log of %s, line %d: %w", host, i+1, err)
		}
		connection, err := strconv.Atoi(words[2])
		if err != nil {
			return nil, fmt.Errorf("log of %s, line %d: %w", host, i+1, err)
		}
		all = append(all, arrival{at: at, host: host, instance: words[1], connection: connection})
	}
	return all, nil
}

// readBarriers parses what the triggers have logged: the time in microseconds,
// the epoch and the host.
func readBarriers(log []string) ([]barrier, error) {
	var all []barrier
	for i, line := range log {
		words := strings.Fields(line)
		if len(words) != 3 {
			return nil, fmt.Errorf("log of the triggers, line %d: %q", i+1, line)
		}
		at, err := strconv.ParseInt(words[0], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("log of the triggers, line %d: %w", i+1, err)
		}
		epoch, err := strconv.ParseUint(words[1], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("log of the triggers, line %d: %w", i+1, err)
		}
		all = append(all, barrier{at: at * 1000, epoch: epoch, host: words[2]})
	}
	return all, nil
}

// disorder returns what is wrong with the order of what arrived, a line each:
//
//   - E1: bytes of an epoch arrived after bytes of a later one.
//   - E4: bytes of an epoch arrived after the barrier of a later one, or before
//     their own.
//   - E5: the triggers of an epoch ran twice, or of an earlier one later.
//
// A connection is of the epoch in which its first bytes arrived.
func disorder(arrivals []arrival, barriers []barrier) []string {
	var wrong []string
	arrivals, barriers = slices.Clone(arrivals), slices.Clone(barriers)
	slices.SortStableFunc(arrivals, func(a, b arrival) int { return cmp.Compare(a.at, b.at) })
	slices.SortStableFunc(barriers, func(a, b barrier) int { return cmp.Compare(a.at, b.at) })
	for i := range barriers {
		if i > 0 && barriers[i].epoch <= barriers[i-1].epoch {
			wrong = append(wrong, fmt.Sprintf("E5: the triggers of epoch %d ran after those of epoch %d", barriers[i].epoch, barriers[i-1].epoch))
		}
	}
	type connection struct {
		host   string
		number int
	}
	first := map[connection]int{} // index of the barrier of its epoch
	now, newest := -1, -1         // indexes of the last barrier, and of the highest epoch of which bytes have arrived
	for _, a := range arrivals {
		for now+1 < len(barriers) && barriers[now+1].at <= a.at {
			now++
		}
		c := connection{a.host, a.connection}
		of, known := first[c]
		if !known {
			// Of the last epoch of its host.
			of = now
			for of >= 0 && barriers[of].host != a.host {
				of--
			}
			first[c] = of
		}
		what := fmt.Sprintf("bytes from %s to %s, connection %d, at %d", a.instance, a.host, a.connection, a.at)
		// A host that is elected again keeps its connections.
		for of >= 0 && of < now && barriers[of+1].host == a.host {
			of++
		}
		switch {
		case of < 0:
			wrong = append(wrong, "E4: "+what+", before any epoch of that host")
		case of < newest:
			wrong = append(wrong, fmt.Sprintf("E1: %s, of epoch %d after bytes of epoch %d", what, barriers[of].epoch, barriers[newest].epoch))
		case of < now:
			wrong = append(wrong, fmt.Sprintf("E4: %s, of epoch %d after the barrier of epoch %d", what, barriers[of].epoch, barriers[of+1].epoch))
		}
		newest = max(newest, of)
	}
	return wrong
}

// A checker that finds nothing in bad logs is worth nothing.
func TestClusterOrderIsChecked(t *testing.T) {
	t.Parallel()
	// A time, in the log of the triggers in microseconds, and in those of hosts in
	// nanoseconds.
	barriers := []string{"10 1 h1", "20 2 h2", "30 3 h1"}
	for what, tt := range map[string]struct {
		h1, h2   []string
		barriers []string
		want     []string // the beginning of each
	}{
		"good": {
			h1: []string{"11000 a 1 4", "19999 b 2 4", "30000 a 3 4", "31000 b 4 4"},
			h2: []string{"20000 a 1 4", "29000 b 2 4"},
		},
		"the same host again keeps its connections": {
			h1:       []string{"11000 a 1 4", "15000 a 1 4", "25000 a 1 4", "25000 b 2 4"},
			barriers: []string{"10 1 h1", "20 2 h1"},
		},
		"a stale byte after a new one": {
			h1:   []string{"11000 a 1 4", "22000 a 1 4"},
			h2:   []string{"21000 b 1 4"},
			want: []string{"E1: bytes from a to h1, connection 1, at 22000, of epoch 1 after bytes of epoch 2"},
		},
		"a stale byte before a new one": {
			h1:   []string{"11000 a 1 4", "20500 a 1 4"},
			h2:   []string{"21000 b 1 4"},
			want: []string{"E4: bytes from a to h1, connection 1, at 20500, of epoch 1 after the barrier of epoch 2"},
		},
		"a new connection to the old host": {
			h1:   []string{"21000 a 7 4"},
			h2:   []string{"20500 b 1 4"},
			want: []string{"E1: bytes from a to h1, connection 7"},
		},
		"a connection that outlived a change and back": {
			h1:   []string{"11000 a 1 4", "30500 b 2 4", "31000 a 1 4"},
			h2:   []string{"25000 b 1 4"},
			want: []string{"E1: bytes from a to h1, connection 1, at 31000, of epoch 1 after bytes of epoch 3"},
		},
		"too early": {
			h2:   []string{"19000 a 1 4"},
			want: []string{"E4: bytes from a to h2, connection 1, at 19000, before any epoch"},
		},
		"triggers twice": {
			barriers: []string{"10 1 h1", "20 2 h2", "21 2 h2"},
			want:     []string{"E5: the triggers of epoch 2 ran after those of epoch 2"},
		},
	} {
		t.Run(what, func(t *testing.T) {
			if tt.barriers == nil {
				tt.barriers = barriers
			}
			ran, err := readBarriers(tt.barriers)
			if err != nil {
				t.Fatal(err)
			}
			var arrived []arrival
			for host, log := range map[string][]string{"h1": tt.h1, "h2": tt.h2} {
				all, err := readArrivals(host, log)
				if err != nil {
					t.Fatal(err)
				}
				arrived = append(arrived, all...)
			}
			wrong := disorder(arrived, ran)
			if len(wrong) != len(tt.want) {
				t.Fatalf("found %q, want %d", wrong, len(tt.want))
			}
			for i, want := range tt.want {
				if !strings.HasPrefix(wrong[i], want) {
					t.Errorf("found %q, want %q", wrong[i], want)
				}
			}
		})
	}
	for _, bad := range []string{"1 a 1", "x a 1 4", "1 a x 4"} {
		if _, err := readArrivals("h1", []string{bad}); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
