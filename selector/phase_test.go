package selector

import (
	"fmt"
	"testing"
	"time"
)

// fleet runs many machines in virtual time. Each check passes at once.
type fleet struct {
	tb       testing.TB
	machines []*Machine
	now      time.Time
	started  func(machine int, at time.Time, a StartCheck)
}

func newFleet(tb testing.TB, begin time.Time) *fleet {
	tb.Helper()
	return &fleet{tb: tb, now: begin, started: func(int, time.Time, StartCheck) {}}
}

func (f *fleet) add(cfg Config) {
	f.tb.Helper()
	m, err := New(complete(cfg))
	if err != nil {
		f.tb.Fatal(err)
	}
	f.machines = append(f.machines, m)
	f.step(len(f.machines)-1, Tick{})
}

// step passes an event to a machine, and the results of what it starts.
func (f *fleet) step(i int, ev Event) {
	for events := []Event{ev}; len(events) > 0; events = events[1:] {
		for _, a := range f.machines[i].Step(f.now, events[0]) {
			switch a := a.(type) {
			case StartCheck:
				f.started(i, f.now, a)
				events = append(events, Result{ID: a.ID, OK: true})
			case Switch:
				events = append(events, Switched{Epoch: a.Epoch})
			}
		}
	}
}

// run lets d pass.
func (f *fleet) run(d time.Duration) {
	for end := f.now.Add(d); ; {
		next := f.machines[0].Wake()
		for _, m := range f.machines {
			next = earliest(next, m.Wake())
		}
		if next.After(end) {
			f.now = end
			return
		}
		f.now = next
		for i, m := range f.machines {
			if !m.Wake().After(f.now) {
				f.step(i, Tick{})
			}
		}
	}
}

// The checks of few relays are started in few turns, and those of many are spread over the
// interval.
func TestChecksAreStartedInTurns(t *testing.T) {
	for _, tt := range []struct{ relays, turns, most int }{
		{1, 1, 2}, {20, 1, 40}, {21, 2, 40}, {40, 2, 40}, {60, 3, 40}, {400, 20, 40}, {1280, 32, 80},
	} {
		begin := time.Now()
		f := newFleet(t, begin)
		for i := range tt.relays {
			f.add(Config{
				Hosts:  []string{fmt.Sprintf("10.%d.%d.1:5432", i>>8, i&255), fmt.Sprintf("10.%d.%d.2:5432", i>>8, i&255)},
				Checks: []Check{{Name: "tcp"}}, Base: begin, Phases: []uint64{uint64(i), uint64(i)},
			})
		}
		f.run(2 * time.Second)
		starts := map[time.Duration]int{}
		f.started = func(_ int, at time.Time, _ StartCheck) { starts[at.Sub(begin)%time.Second]++ }
		f.run(time.Second)
		all, most := 0, 0
		for _, n := range starts {
			all, most = all+n, max(most, n)
		}
		if all != 2*tt.relays || len(starts) != tt.turns || most != tt.most {
			t.Errorf("%d relays: %d checks a second in %d turns, at most %d in one, want %d in %d, at most %d",
				tt.relays, all, len(starts), most, 2*tt.relays, tt.turns, tt.most)
		}
	}
}

// The turns of an interval are apart as far as can be: first the whole of it, then its
// half, and so on, to a limit.
func TestPhaseOf(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct {
		interval time.Duration
		want     []time.Duration // of every perTurn-th number
	}{
		{time.Second, []time.Duration{0, 500 * ms, 250 * ms, 750 * ms, 125 * ms}},
		{100 * ms, []time.Duration{0, 50 * ms, 25 * ms, 75 * ms, 0, 50 * ms}},
		{49 * ms, []time.Duration{0, 0}},
	} {
		for turn, want := range tt.want {
			for _, number := range []uint64{uint64(turn * perTurn), uint64(turn*perTurn + perTurn - 1)} {
				if got := PhaseOf(number, tt.interval); got != want {
					t.Errorf("number %d in %v has the phase %v, want %v", number, tt.interval, got, want)
				}
			}
		}
	}
}

// Relays with the same host and the same check run it at the same time, whenever
// they began. The check was due then for each of them, however late it is woken, so
// one run can serve all. A doubt is not dispelled by what began before it.
func TestSameCheckRunsAtTheSameTime(t *testing.T) {
	begin := time.Now()
	f := newFleet(t, begin)
	at := map[int]StartCheck{}
	f.started = func(i int, _ time.Time, a StartCheck) {
		if a.Host == "shared" {
			at[i] = a
		}
	}
	for i, other := range []string{"a", "b"} {
		f.add(Config{Hosts: []string{"shared", other}, Checks: []Check{{Name: "tcp"}}, Base: begin})
		f.run(time.Duration(i+1) * 333 * time.Millisecond)
	}
	for range 20 {
		f.run(time.Second)
		if !at[0].Since.Equal(at[1].Since) {
			t.Fatalf("one machine checked the host at %v, the other at %v", at[0].Since.Sub(begin), at[1].Since.Sub(begin))
		}
	}
	due := at[0].Since
	for _, late := range []time.Duration{time.Millisecond, tardy - 1, tardy, 5 * tardy} {
		due = due.Add(time.Second)
		f.run(due.Add(-1).Sub(f.now))
		f.now = due.Add(late)
		for i := range f.machines {
			f.step(i, Tick{})
		}
		want := due
		if late >= tardy {
			want = f.now
		}
		if got := at[0].Since; !got.Equal(want) {
			t.Errorf("a check that is %v late serves with a run since %v after it was due, want %v", late, got.Sub(due), want.Sub(due))
		}
	}
	for _, tt := range []struct {
		before, after time.Duration // the machine runs until before, and gets ev after
		ev            Event
	}{
		{-1, time.Millisecond, Suspicion{Epoch: 1, Err: errRefused}},
		{-1, time.Millisecond, CheckNow{Epoch: 1}},
		{29 * time.Millisecond, 30 * time.Millisecond, CheckNow{Epoch: 1}}, // the check that was due has passed
	} {
		due = due.Add(time.Second)
		f.run(due.Add(tt.before).Sub(f.now))
		f.now = due.Add(tt.after)
		f.step(0, tt.ev)
		if got := at[0].Since; !got.Equal(f.now) {
			t.Errorf("%T %v after a check was due accepts a run since %v before, want none from before", tt.ev, tt.after, f.now.Sub(got))
		}
	}
}

// A check outside of the schedule, and a machine that was late, delay the next check
// by no more than an interval.
func TestPhaseNeverDelaysACheck(t *testing.T) {
	begin := time.Now()
	f := newFleet(t, begin)
	last := map[string]time.Time{}
	longest := time.Duration(0)
	f.started = func(_ int, at time.Time, a StartCheck) {
		if before, ok := last[a.Host]; ok {
			longest = max(longest, at.Sub(before))
		}
		last[a.Host] = at
	}
	f.add(Config{Hosts: []string{"a", "b"}, Checks: []Check{{Name: "tcp", Interval: 300 * time.Millisecond}}, Base: begin.Add(time.Hour)})
	for i := range 200 {
		f.run(time.Duration(i) * time.Millisecond)
		f.step(0, CheckNow{Epoch: 1})
	}
	if longest > 300*time.Millisecond {
		t.Errorf("%v between two checks of a host, want 300ms at most", longest)
	}
}
