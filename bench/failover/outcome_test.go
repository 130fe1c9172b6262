package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"
)

const ms = time.Millisecond

// at is a client that came and was served by host at a moment.
func at(host string, start, end time.Duration) client {
	return client{start: start, end: end, host: host, answers: []answer{{host, end}}}
}

func TestGap(t *testing.T) {
	for _, tt := range []struct {
		name    string
		moments []time.Duration // at which clients were served
		want    time.Duration
		never   bool
	}{
		{"steady", []time.Duration{1005 * ms, 1010 * ms, 1500 * ms, 1990 * ms}, 490 * ms, false},
		{"in any order", []time.Duration{1990 * ms, 1010 * ms, 1500 * ms, 1005 * ms}, 490 * ms, false},
		{"no client at first", []time.Duration{1800 * ms, 1900 * ms}, 800 * ms, false},
		{"no client at the end, for a moment", []time.Duration{1100 * ms, 1200 * ms}, 800 * ms, false},
		{"no client at all", nil, 1000 * ms, true},
		{"who waited is served after the end", []time.Duration{1100 * ms, 2600 * ms}, 1500 * ms, false},
	} {
		var served []client
		for _, m := range tt.moments {
			served = append(served, at(oldHost, m-ms, m))
		}
		got, never := gap(served, 1000*ms, 2000*ms)
		if got != tt.want || never != tt.never {
			t.Errorf("%s: gap = %v, never %v; want %v, %v", tt.name, got, never, tt.want, tt.never)
		}
	}
	if got, never := gap([]client{at(oldHost, 0, 1100*ms)}, 1000*ms, 3000*ms); got != 1900*ms || !never {
		t.Errorf("served once and never again: gap = %v, never %v; want 1.9s, true", got, never)
	}
}

func TestEvaluate(t *testing.T) {
	reset := fmt.Errorf("read: %w", errors.New("reset"))
	l := load{begin: 0, end: 1000 * ms, late: 3 * ms, clients: []client{
		at(oldHost, 0, 100*ms),
		at(oldHost, 100*ms, 200*ms),
		{start: 300 * ms, end: 310 * ms, err: reset},
		{start: 300 * ms, end: 310 * ms, host: oldHost, err: reset},
		{start: 300 * ms, end: 400 * ms, err: context.DeadlineExceeded},
		at(newHost, 200*ms, 700*ms),
		at(newHost, 900*ms, 950*ms),
	}, sessions: []client{
		{host: oldHost, answers: []answer{{oldHost, 100 * ms}}},             // open
		{host: oldHost, err: reset, answers: []answer{{oldHost, 200 * ms}}}, // cut
		{host: newHost, answers: []answer{{newHost, 800 * ms}}},             // on the new one
	}}
	o := l.evaluate()
	if o.clients != 7 || o.lost != 3 || o.greeted != 1 {
		t.Errorf("%d clients, %d lost, %d of them greeted; want 7, 3, 1", o.clients, o.lost, o.greeted)
	}
	if want := map[string]int{"reset": 2, "context deadline exceeded": 1}; !maps.Equal(o.reasons, want) {
		t.Errorf("lost by reason = %v, want %v", o.reasons, want)
	}
	if want := map[string]int{oldHost: 2, newHost: 2}; !maps.Equal(o.by, want) {
		t.Errorf("served by %v, want %v", o.by, want)
	}
	// A lost client does not end a gap.
	if o.gap != 500*ms || o.never || o.slowest != 500*ms || o.late != 3*ms {
		t.Errorf("gap %v, never %v, slowest %v, late %v; want 500ms, false, 500ms, 3ms", o.gap, o.never, o.slowest, o.late)
	}
	if o.left != 1 || o.wrong != 0 {
		t.Errorf("%d sessions left, %d wrong; want 1, 0", o.left, o.wrong)
	}
}

func TestP999IsTheNearestRank(t *testing.T) {
	var l load
	for i := range 1500 {
		l.clients = append(l.clients, at(oldHost, 0, time.Duration(i+1)*ms))
	}
	if o := l.evaluate(); o.p999 != 1499*ms || o.slowest != 1500*ms {
		t.Errorf("of 1 to 1500 ms: p99.9 %v, slowest %v; want 1.499s, 1.5s", o.p999, o.slowest)
	}
}

func TestWrongCountsWhoTheOldHostAnsweredLater(t *testing.T) {
	before, first, after := at(oldHost, 0, 400*ms), at(newHost, 0, 500*ms), at(oldHost, 0, 600*ms)
	session := client{host: oldHost, answers: []answer{{oldHost, 100 * ms}, {oldHost, 700 * ms}, {oldHost, 800 * ms}}}
	for _, tt := range []struct {
		name string
		load load
		want int
	}{
		{"the old one until the new one", load{clients: []client{before, first}}, 0},
		{"the old one only", load{clients: []client{before, after}, sessions: []client{session}}, 0},
		{"one client", load{clients: []client{after, before, first}}, 1},
		{"a session counts once", load{clients: []client{before, first}, sessions: []client{session}}, 1},
		{"both", load{clients: []client{first, after}, sessions: []client{session}}, 2},
		{"the new one is known by a session", load{clients: []client{after}, sessions: []client{{answers: []answer{{newHost, 500 * ms}}}}}, 1},
	} {
		if got := tt.load.wrong(); got != tt.want {
			t.Errorf("%s: wrong = %d, want %d", tt.name, got, tt.want)
		}
	}
}
