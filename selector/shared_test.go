package selector

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// sharer runs a machine with Config.Shared in virtual time. What it did since the last look
// is in story.
type sharer struct {
	tb     testing.TB
	m      *Machine
	now    time.Time
	down   map[string]bool
	coming []Event // results of checks that have just been started
	story  []string
}

func newSharer(tb testing.TB, hosts ...string) *sharer {
	tb.Helper()
	m, err := New(complete(Config{Hosts: hosts, Checks: []Check{{Name: "tcp"}}, Shared: true}))
	if err != nil {
		tb.Fatal(err)
	}
	return &sharer{tb: tb, m: m, now: time.Now(), down: map[string]bool{}}
}

func (s *sharer) step(ev Event) {
	for _, a := range s.m.Step(s.now, ev) {
		switch a := a.(type) {
		case StartCheck:
			r := Result{ID: a.ID, OK: !s.down[a.Host]}
			if !r.OK {
				r.Err = errors.New("refused")
			}
			s.coming = append(s.coming, r)
		case Hold:
			s.story = append(s.story, "hold")
		case Refuse:
			s.story = append(s.story, "refuse")
		case Switch:
			s.story = append(s.story, fmt.Sprintf("switch %d %s %s", a.Epoch, a.Host, a.Kind))
		case Open:
			s.story = append(s.story, fmt.Sprintf("open %d %s", a.Epoch, a.Host))
		case Lost:
			s.story = append(s.story, "lost "+a.Host)
		case Declined:
			s.story = append(s.story, "declined "+a.Host+": "+a.Reason)
		}
	}
}

// run lets time pass.
func (s *sharer) run(d time.Duration) {
	for end := s.now.Add(d); ; {
		next, ev := s.m.Wake(), Event(Tick{})
		if len(s.coming) > 0 {
			next, ev = s.now.Add(time.Millisecond), s.coming[0]
			s.coming = s.coming[1:]
		}
		if next.After(end) {
			if ev != Event(Tick{}) {
				s.coming = slices.Insert(s.coming, 0, ev)
			}
			s.now = end
			return
		}
		s.now = next
		s.step(ev)
	}
}

// did fails unless that is what happened since the last call.
func (s *sharer) did(when string, want ...string) {
	s.tb.Helper()
	if got := strings.Join(s.story, ", "); got != strings.Join(want, ", ") {
		s.tb.Errorf("%s: %q, want %q", when, got, strings.Join(want, ", "))
	}
	s.story = nil
}

// proposes fails unless the machine proposes host, which may be empty.
func (s *sharer) proposes(when, host string, kind Kind) {
	s.tb.Helper()
	if p := s.m.Proposal(); p.Host != host || p.Kind != kind {
		s.tb.Errorf("%s: %+v is proposed, want %q %q", when, p, host, kind)
	}
}

// A machine that shares its primary elects nobody: it proposes, and follows.
func TestSharedProposesAndFollows(t *testing.T) {
	t.Parallel()
	s := newSharer(t, "a", "b")
	s.step(Tick{})
	s.run(2 * time.Second)
	s.did("while nothing is known")
	s.proposes("while nothing is known", "", "")

	s.step(Agreed{})
	s.proposes("at the start", "a", Start)
	agreed := Agreed{Epoch: 1, Host: "a", Kind: Start}
	s.step(agreed)
	s.did("elected", "switch 1 a start")
	s.proposes("elected", "", "")
	s.run(time.Minute)
	s.did("while it may not open")
	agreed.Served = true
	s.step(agreed)
	s.did("allowed", "open 1 a")
	s.step(agreed)
	s.run(time.Minute)
	s.did("told twice")

	// Others have elected another host.
	s.step(Agreed{Epoch: 2, Host: "b", Old: "a", Kind: Failover})
	s.did("elected elsewhere", "hold", "switch 2 b failover")
	s.step(Agreed{Epoch: 2, Host: "b", Old: "a", Kind: Failover, Served: true})
	s.did("allowed again", "open 2 b")

	// The one that runs the triggers opens when they have run.
	s.step(Agreed{Epoch: 3, Host: "a", Old: "b", Kind: Switchover})
	s.step(Switched{Epoch: 3})
	s.did("driven here", "hold", "switch 3 a switchover", "open 3 a")
	s.step(Agreed{Epoch: 3, Host: "a", Old: "b", Kind: Switchover, Served: true})
	s.did("allowed after the triggers")
}

// A primary that is down only here is lost only here, and comes back without an election.
func TestSharedIsolated(t *testing.T) {
	t.Parallel()
	s := newSharer(t, "a", "b")
	s.step(Agreed{Epoch: 7, Host: "a", Kind: Start, Served: true})
	s.run(3 * time.Second)
	s.did("the start", "switch 7 a start", "open 7 a")
	s.down["a"] = true
	s.run(5 * time.Second)
	s.did("down here", "lost a", "hold")
	s.proposes("down here", "b", Failover)
	s.run(20 * time.Second)
	s.did("after the hold", "refuse")
	s.down["a"] = false
	s.run(2 * time.Second)
	s.did("up again", "open 7 a")
	s.proposes("up again", "", "")
	if now := s.m.Snapshot(); now.Primary != "a" || now.Epoch != 7 {
		t.Errorf("it serves %q in epoch %d", now.Primary, now.Epoch)
	}

	// Without the permission it stays away.
	s.step(Agreed{Epoch: 7, Host: "a", Kind: Start})
	s.did("the lease is over", "hold")
	s.run(time.Minute)
	s.did("the hold is over", "refuse")
	s.proposes("the lease is over", "", "")
	s.step(Agreed{Epoch: 7, Host: "a", Kind: Start, Served: true})
	s.did("the lease is back", "open 7 a")
}

// A primary that is lost here again and again is still the one that all have agreed on:
// when it passes, neither the flap guard nor the operator's order is in its way.
func TestSharedFlaps(t *testing.T) {
	t.Parallel()
	s := newSharer(t, "a", "b")
	s.step(Agreed{Epoch: 1, Host: "b", Kind: Start, Served: true})
	for range 4 {
		s.run(5 * time.Second)
		s.story = nil
		s.down["b"] = true
		s.run(5 * time.Second)
		s.did("down here", "lost b", "hold")
		s.proposes("down here", "a", Failover)
		s.down["b"] = false
		s.run(2 * time.Second)
		s.did("up again", "open 1 b")
		s.proposes("up again", "", "")
	}
}

// What an operator orders is proposed until all have agreed, for a time.
func TestSharedMove(t *testing.T) {
	t.Parallel()
	s := newSharer(t, "a", "b")
	s.step(Agreed{Epoch: 1, Host: "a", Kind: Start, Served: true})
	s.run(3 * time.Second)
	s.story = nil
	s.step(Move{Host: "b", Reason: "switch", Drain: time.Second})
	s.run(time.Second)
	if p := s.m.Proposal(); p != (Proposal{Host: "b", Kind: Switchover, Reason: "switch", Drain: time.Second}) {
		t.Errorf("%+v is proposed", p)
	}
	s.did("while it waits for the others")
	s.run(agreeFor)
	s.did("the others do not answer", "declined b: the instances did not agree in time")
	s.proposes("the others did not answer", "", "")

	s.step(Move{Host: "b", Reason: "switch"})
	s.run(time.Second)
	s.step(Agreed{Epoch: 2, Host: "b", Old: "a", Kind: Switchover})
	s.did("agreed", "hold", "switch 2 b switchover")
	s.step(Switched{Epoch: 2, Err: errors.New("trigger failed")})
	s.run(time.Second)
	s.proposes("the triggers failed", "a", Failover)

	// Somebody else was faster.
	s.step(Agreed{Epoch: 3, Host: "a", Old: "b", Kind: Failover, Served: true})
	s.story = nil
	s.step(Move{Host: "b", Reason: "switch"})
	s.run(100 * time.Millisecond)
	s.step(Agreed{Epoch: 4, Host: "a", Old: "a", Kind: Failover})
	s.did("overtaken", "declined b: the instances have agreed on a meanwhile", "hold", "switch 4 a failover")
}

// Locks hold for what is proposed, too.
func TestSharedLocks(t *testing.T) {
	t.Parallel()
	s := newSharer(t, "a", "b", "c")
	s.step(Agreed{Epoch: 1, Host: "a", Kind: Start, Served: true})
	s.run(3 * time.Second)
	s.step(Locks{Drained: []string{"b"}})
	s.down["a"] = true
	s.run(5 * time.Second)
	s.proposes("b is drained", "c", Failover)
	s.step(Locks{Frozen: true})
	s.run(time.Second)
	s.proposes("frozen", "", "")
}

// What other machines have found out about the primary counts as if it were found here: a
// higher term, another host, and another cluster, which has terms of its own.
func TestSharedHears(t *testing.T) {
	t.Parallel()
	s := newSharer(t, "a", "b")
	for _, tt := range []struct{ last, want Last }{
		{Last{"a", 3, "ours"}, Last{"a", 3, "ours"}},
		{Last{"a", 2, "ours"}, Last{"a", 3, "ours"}},
		{Last{"a", 4, ""}, Last{"a", 4, "ours"}},
		{Last{"b", 2, "ours"}, Last{"b", 2, "ours"}},
		{Last{"b", 1, "made anew"}, Last{"b", 1, "made anew"}},
	} {
		s.step(Agreed{Epoch: 1, Host: "a", Kind: Start, Last: tt.last})
		if got := (Last{s.m.termOf, s.m.term, s.m.identity}); got != tt.want {
			t.Errorf("after %+v: %+v, want %+v", tt.last, got, tt.want)
		}
	}
}

// A host that only others have is followed as far as that goes: to nobody.
func TestSharedUnknownHost(t *testing.T) {
	t.Parallel()
	s := newSharer(t, "a", "b")
	s.step(Agreed{Epoch: 1, Host: "x", Kind: Start, Served: true})
	s.run(3 * time.Second)
	s.did("an unknown host", "switch 1 x start")
	s.proposes("an unknown host", "a", Failover)
	s.step(Agreed{Epoch: 2, Host: "a", Old: "x", Kind: Failover, Served: true})
	s.did("a known one", "switch 2 a failover", "open 2 a")
}

// A host that is down for the other instances comes after all that are usable.
func TestSharedUnfit(t *testing.T) {
	t.Parallel()
	s := newSharer(t, "a", "b", "c")
	s.step(Agreed{Epoch: 1, Host: "a", Kind: Start, Served: true})
	s.run(3 * time.Second)
	s.step(Unfit{Hosts: []string{"b"}})
	if h := s.m.Snapshot().Hosts; !h[1].Unfit || h[2].Unfit {
		t.Errorf("hosts %+v", h)
	}
	s.down["a"] = true
	s.run(5 * time.Second)
	s.proposes("down for others", "c", Failover)
	s.step(Unfit{})
	s.run(time.Second)
	s.proposes("down for nobody", "b", Failover)
	s.step(Unfit{Hosts: []string{"b"}})
	s.run(time.Second)
	s.proposes("down for others again", "c", Failover)
	s.down["c"] = true
	s.run(10 * time.Second)
	s.proposes("the only one that is usable", "b", Failover)
}

// A host that is down for the other instances is not returned to, and not taken where the
// operator names none.
func TestSharedUnfitIsNotPlanned(t *testing.T) {
	t.Parallel()
	s := newSharer(t, "a", "b", "c")
	s.step(Reconfigure(complete(Config{Hosts: []string{"a", "b", "c"}, Checks: []Check{{Name: "tcp"}}, Shared: true, Failback: 10 * time.Second})))
	s.step(Agreed{Epoch: 1, Host: "c", Kind: Start, Served: true})
	s.step(Unfit{Hosts: []string{"a"}})
	s.run(15 * time.Second)
	s.proposes("after the time", "b", Failback)

	s.step(Agreed{Epoch: 2, Host: "b", Old: "c", Kind: Failback, Served: true})
	s.step(Move{})
	s.run(time.Second)
	s.proposes("any other one", "c", Switchover)
}
