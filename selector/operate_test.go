package selector

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What operators request, and the state that an earlier process saved.
func TestOperatorsOrders(t *testing.T) {
	const start = "1ms switch 1 start >a | 1ms open 1 a"
	script := []Check{{Name: "tcp"}, {Name: "script", Script: true}}
	failOnce := func(s Switch) (time.Duration, error) {
		if s.Kind == Switchover {
			return time.Second, errScript
		}
		return 0, nil
	}
	for _, tt := range []struct {
		name    string
		cfg     Config
		hosts   []string
		orders  map[time.Duration]Event
		trigger func(Switch) (time.Duration, error)
		end     time.Duration
		want    string
	}{
		// Planned switchovers.
		{
			name:   "a switchover asks its host first, and only then shuts the gate",
			cfg:    Config{Checks: script},
			hosts:  []string{"a: up", "b: up"},
			orders: map[time.Duration]Event{10500 * time.Millisecond: Move{Host: "b"}},
			want:   "51ms switch 1 start >a | 51ms open 1 a | 10.551s hold | 10.551s switch 2 switchover a>b | 10.551s open 2 b",
		},
		{
			name:   "a host that refuses does not become primary, and nothing happens to clients",
			hosts:  []string{"a: up", "b: refused"},
			orders: map[time.Duration]Event{10500 * time.Millisecond: Move{Host: "b"}},
			want:   start + " | 10.501s declined b: tcp: connection refused",
		},
		{
			name:   "a host whose script fails does not become primary",
			cfg:    Config{Checks: script},
			hosts:  []string{"a: up", "b: up; 10s sick"},
			orders: map[time.Duration]Event{11500 * time.Millisecond: Move{Host: "b"}},
			want:   "51ms switch 1 start >a | 51ms open 1 a | 11.551s declined b: script: exit status 1",
		},
		{
			name:   "a silent host is waited for by one timeout",
			hosts:  []string{"a: up", "b: silent"},
			orders: map[time.Duration]Event{10500 * time.Millisecond: Move{Host: "b"}},
			want:   start + " | 11.5s declined b: tcp: timeout",
		},
		{
			name:   "a stuck script is not waited for for ever",
			cfg:    Config{Checks: []Check{{Name: "tcp"}, {Name: "script", Script: true, Timeout: 2 * time.Minute}}},
			hosts:  []string{"a: up", "b: up; 10s mute"},
			orders: map[time.Duration]Event{11500 * time.Millisecond: Move{Host: "b"}},
			end:    20 * time.Minute,
			want:   "51ms switch 1 start >a | 51ms open 1 a | 4m12.5s declined b: it did not answer in time",
		},
		{
			name:  "what cannot be is said at once",
			hosts: []string{"a: up", "b: up", "c: up"},
			orders: map[time.Duration]Event{
				10 * time.Second:      Move{Host: "nobody"},
				11 * time.Second:      Move{Host: "a"},
				12 * time.Second:      Locks{Drained: []string{"b"}},
				13 * time.Second:      Move{Host: "b"},
				1 * time.Microsecond:  Move{Host: "b"},
				14 * time.Second:      Move{Host: "c"},
				14*time.Second + 1000: Move{Host: "c"},
			},
			want: "1µs declined b: there is no primary now: an election is under way | " + start +
				" | 10s declined nobody: there is no such host | 11s declined a: it is primary already | 13s declined b: it is drained" +
				" | 14.000001s declined c: another switchover is under way | 14.001s hold | 14.001s switch 2 switchover a>c | 14.001s open 2 c",
		},
		{
			name:    "after a trigger that failed the old primary goes on, although it is not the first in order",
			hosts:   []string{"c: refused; 500ms up", "b: up", "a: up"},
			orders:  map[time.Duration]Event{3 * time.Second: Move{Host: "a"}},
			trigger: failOnce,
			end:     4500 * time.Millisecond,
			want: "1ms switch 1 start >b | 1ms open 1 b | 3.001s hold | 3.001s switch 2 switchover b>a" +
				" | 4.002s switch 3 failover a>b | 4.002s open 3 b",
		},
		{
			name:    "clients wait for the drain that was asked for, and for the hold behind it",
			hosts:   []string{"a: up", "b: up"},
			orders:  map[time.Duration]Event{10500 * time.Millisecond: Move{Host: "b", Drain: 30 * time.Second}},
			trigger: func(s Switch) (time.Duration, error) { return time.Duration(s.Epoch-1) * 45 * time.Second, nil },
			want:    start + " | 10.501s hold | 10.501s switch 2 switchover a>b | 50.501s refuse | 55.501s open 2 b",
		},
		{
			name:   "a switchover without a host takes the first other one that is up",
			hosts:  []string{"a: up", "b: refused", "c: up"},
			orders: map[time.Duration]Event{10500 * time.Millisecond: Move{}},
			want:   start + " | 10.501s hold | 10.501s switch 2 switchover a>c | 10.501s open 2 c",
		},
		{
			name:   "and there may be no host",
			hosts:  []string{"a: up", "b: refused"},
			orders: map[time.Duration]Event{10500 * time.Millisecond: Move{}},
			want:   start + " | 10.5s declined : every other host is down or drained",
		},
		{
			name:   "a primary that is lost while another host is asked is no switchover",
			hosts:  []string{"a: up; 9.5s refused", "b: up; 10s silent; 12s up"},
			orders: map[time.Duration]Event{10100 * time.Millisecond: Move{Host: "b"}},
			end:    16 * time.Second,
			want:   "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s declined b: the primary was lost meanwhile | 10.201s hold | 11.201s none usable, 1s | 12.102s b passes, a is waited for | 15.002s switch 2 failover a>b | 15.002s open 2 b",
		},

		// Locks.
		{
			name:   "a drained host is not elected",
			hosts:  []string{"a: up; 9.5s refused", "b: up", "c: up"},
			orders: map[time.Duration]Event{5 * time.Second: Locks{Drained: []string{"b"}}},
			want:   start + " | 10.201s lost a | 10.201s hold | 10.202s switch 2 failover a>c | 10.202s open 2 c",
		},
		{
			name:  "a drained host is not returned to, and is once it is ready",
			cfg:   Config{Failback: 30 * time.Second, Locks: Locks{Drained: []string{"a"}}},
			hosts: []string{"a: up", "b: up"},
			orders: map[time.Duration]Event{
				2 * time.Minute: Locks{},
			},
			end:  3 * time.Minute,
			want: "1ms switch 1 start >b | 1ms open 1 b | 2m0.001s hold | 2m0.001s switch 2 failback b>a | 2m0.001s open 2 a",
		},
		{
			name:  "frozen, a primary that is down stays, until the relay is not frozen any more",
			hosts: []string{"a: up; 9.5s refused", "b: up"},
			orders: map[time.Duration]Event{
				5 * time.Second:          Locks{Frozen: true},
				30100 * time.Millisecond: Locks{},
			},
			want: start + " | 10.201s a stays | 30.1s lost a | 30.1s hold | 30.101s switch 2 failover a>b | 30.101s open 2 b",
		},
		{
			name:  "frozen, what an operator asks for is done",
			hosts: []string{"a: up; 9.5s refused", "b: up"},
			orders: map[time.Duration]Event{
				5 * time.Second:  Locks{Frozen: true},
				20 * time.Second: Move{Host: "b"},
			},
			want: start + " | 10.201s a stays | 20.001s hold | 20.001s switch 2 switchover a>b | 20.001s open 2 b",
		},
		{
			name:  "frozen, what an operator asks for and cannot be done has its own reason",
			hosts: []string{"a: up", "b: refused"},
			orders: map[time.Duration]Event{
				5 * time.Second:          Locks{Frozen: true},
				10500 * time.Millisecond: Move{Host: "b"},
			},
			want: start + " | 10.501s declined b: tcp: connection refused",
		},
		{
			name:   "frozen without a primary, only the last one is elected again",
			hosts:  []string{"a: up; 9.5s refused; 20s up", "b: up; 9.5s refused; 12s up"},
			orders: map[time.Duration]Event{11 * time.Second: Locks{Frozen: true}},
			end:    25 * time.Second,
			want:   "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s none usable, 1s | 11.202s none usable, 2s | 13.202s none usable, 4s | 17.202s none usable, 8s | 20.102s switch 2 reselect a>a | 20.102s open 2 a",
		},

		// Saved state.
		{
			name:  "the primary from before is elected first, and epochs go on",
			cfg:   Config{Epoch: 0, Prefer: "b"},
			hosts: []string{"a: up", "b: slow"},
			want:  "101ms a passes, b is waited for | 400ms switch 1 start >b | 400ms open 1 b",
		},
		{
			name:  "if it is usable",
			cfg:   Config{Prefer: "b"},
			hosts: []string{"a: up", "b: refused"},
			want:  "101ms a passes, b is waited for | 3.001s switch 1 start >a | 3.001s open 1 a",
		},
		{
			name:  "once: later the operator's order counts again",
			cfg:   Config{Prefer: "c"},
			hosts: []string{"a: up", "b: up; 9.5s refused", "c: up; 9.5s refused; 12s up"},
			want:  "1ms switch 1 start >c | 1ms open 1 c | 10.201s lost c | 10.201s hold | 10.202s switch 2 failover c>a | 10.202s open 2 a",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, tt.cfg, tt.hosts...)
			for at, order := range tt.orders {
				w.later(at, order)
			}
			if tt.trigger != nil {
				w.trigger = tt.trigger
			}
			if tt.end == 0 {
				tt.end = time.Minute
			}
			w.play(tt.end)
			if diff := cmp.Diff(tt.want, strings.Join(w.story, " | ")); diff != "" {
				t.Errorf("got\n%s\n%s", strings.Join(w.story, " | "), diff)
			}
		})
	}
}

func TestEpochsGoOn(t *testing.T) {
	m, err := New(complete(Config{Hosts: []string{"a"}, Checks: []Check{{Name: "tcp"}}, Epoch: 41}))
	if err != nil {
		t.Fatal(err)
	}
	ids := started(m.Step(time.Now(), Tick{}))
	for _, a := range m.Step(time.Now(), Result{ID: ids[0], OK: true}) {
		if s, ok := a.(Switch); ok && s.Epoch == 42 {
			return
		}
	}
	t.Errorf("the first election after epoch 41 is not 42: %+v", m.Snapshot())
}

// The flap guard: a host that fails repeatedly has to stay up, for a time that
// grows with each failure, before it is chosen again while another host is
// usable.
func TestFlapGuard(t *testing.T) {
	// a fails at 10s and 40s, and b at 70s, five seconds after a came back.
	hosts := []string{"a: up; 9.5s refused; 20s up; 39.5s refused; 65s up", "b: up; 69.5s refused; 90s up", "c: up"}
	t.Run("it is passed over", func(t *testing.T) {
		w := newWorld(t, Config{Failback: 5 * time.Second}, hosts...).play(72 * time.Second)
		if w.primary != "c" {
			t.Errorf("%q is primary, want c, because a failed twice and is up for five seconds only:\n%s", w.primary, strings.Join(w.story, "\n"))
		}
		if h := w.m.Snapshot().Hosts[0]; h.Failures != 2 || h.Penalty != guardFirst || !h.Guarded {
			t.Errorf("snapshot of a = %+v, want two failures and a penalty of %v", h, guardFirst)
		}
		w.play(78 * time.Second)
		if w.primary != "a" {
			t.Errorf("%q is primary, want a, which was up for longer than its penalty:\n%s", w.primary, strings.Join(w.story, "\n"))
		}
	})
	t.Run("it is better than no host", func(t *testing.T) {
		w := newWorld(t, Config{}, "a: up; 9.5s refused; 20s up; 29.5s refused; 40s up", "b: refused").play(45 * time.Second)
		if w.primary != "a" {
			t.Errorf("%q is primary, want a, the only one there is:\n%s", w.primary, strings.Join(w.story, "\n"))
		}
	})
	t.Run("it doubles, up to a bound, and is forgotten", func(t *testing.T) {
		line := "a: up"
		at := 5 * time.Second
		for range 12 {
			line += "; " + at.String() + " refused; " + (at + 5*time.Second).String() + " up"
			at += 15 * time.Second
		}
		w := newWorld(t, Config{}, line, "b: up")
		var seen []time.Duration
		for now := time.Duration(0); now < at; now += time.Second {
			w.play(now)
			if p := w.m.Snapshot().Hosts[0].Penalty; len(seen) == 0 || p != seen[len(seen)-1] {
				seen = append(seen, p)
			}
		}
		s := time.Second
		if diff := cmp.Diff([]time.Duration{0, 10 * s, 20 * s, 40 * s, 80 * s, 160 * s, guardMost}, seen); diff != "" {
			t.Errorf("penalties (-want +got):\n%s", diff)
		}
		w.play(at + guardWindow)
		if h := w.m.Snapshot().Hosts[0]; h.Penalty != 0 || h.Guarded {
			t.Errorf("snapshot of a = %+v, want its failures forgotten", h)
		}
	})
	t.Run("an operator's word ends it", func(t *testing.T) {
		w := newWorld(t, Config{}, hosts...)
		w.later(66*time.Second, Locks{Drained: []string{"a"}})
		w.later(67*time.Second, Locks{})
		if h := w.play(68 * time.Second).m.Snapshot().Hosts[0]; h.Failures != 0 || h.Guarded {
			t.Errorf("snapshot of a = %+v, want no failures after it was said to be ready", h)
		}
	})
}

// The primary of a frozen relay is not changed, not even by a change that was
// planned before.
func TestFreezeStopsAPlannedFailback(t *testing.T) {
	cfg := Config{
		Failback: 5 * time.Second, Locks: Locks{Drained: []string{"a"}},
		Checks: []Check{{Name: "tcp"}, {Name: "script", Script: true}},
	}
	w := newWorld(t, cfg, "a: up; 5s lazy", "b: up")
	w.later(20*time.Second, Locks{}) // a is checked, which takes 300ms
	w.later(20100*time.Millisecond, Locks{Frozen: true})
	if w.play(25 * time.Second); w.primary != "b" {
		t.Errorf("frozen, and %s is primary:\n%s", w.primary, strings.Join(w.story, "\n"))
	}
}

// A failback that became due while another change was planned is considered in
// the same step, and no step sets a wake time in the past.
func TestFailbackThatIsDueBehindASwitchover(t *testing.T) {
	w := newWorld(t, Config{Failback: 5 * time.Second, Locks: Locks{Drained: []string{"a"}}}, "a: up", "b: up", "c: up; 60s silent")
	w.later(61*time.Second, Move{Host: "c"})
	w.later(61500*time.Millisecond, Locks{})
	w.play(70 * time.Second)
	want := "1ms switch 1 start >b | 1ms open 1 b | 1m2s declined c: tcp: timeout" +
		" | 1m2.001s hold | 1m2.001s switch 2 failback b>a | 1m2.001s open 2 a"
	if diff := cmp.Diff(want, strings.Join(w.story, " | ")); diff != "" {
		t.Errorf("what happened (-want +got):\n%s", diff)
	}
}

// The old primary is accepted again after a failed switchover, even if its
// triggers fail.
func TestTheOldPrimaryNeedsNoTrigger(t *testing.T) {
	w := newWorld(t, Config{}, "a: up", "b: up")
	w.trigger = func(s Switch) (time.Duration, error) {
		if s.Kind == Start {
			return 0, nil
		}
		return time.Second, errScript
	}
	w.later(10*time.Second, Move{Host: "b"})
	w.play(time.Minute)
	want := "1ms switch 1 start >a | 1ms open 1 a | 10.001s hold | 10.001s switch 2 switchover a>b" +
		" | 11.002s switch 3 failover b>a | 12.002s open 3 a"
	if diff := cmp.Diff(want, strings.Join(w.story, " | ")); diff != "" {
		t.Errorf("what happened (-want +got):\n%s", diff)
	}
}

// In a failback, clients wait for the drain as well.
func TestClientsOutlastTheDrainOfAFailback(t *testing.T) {
	w := newWorld(t, Config{Failback: 20 * time.Second, Drain: 30 * time.Second}, "a: refused; 1s up", "b: up")
	w.trigger = func(s Switch) (time.Duration, error) { return time.Duration(s.Epoch-1) * 30 * time.Second, nil }
	w.play(2 * time.Minute)
	if story := strings.Join(w.story, " | "); !strings.Contains(story, "failback b>a") || strings.Contains(story, "refuse") {
		t.Errorf("want a failback without a refusal:\n%s", story)
	}
}
