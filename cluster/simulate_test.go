package cluster

import (
	"container/heap"
	"flag"
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var simulations = flag.Int("simulate", 10, "the `number` of simulations of each size of cluster")

// simulationConfig has short times, to have many changes in a run.
var simulationConfig = Config{
	Lease: 3 * time.Second, Heartbeat: 500 * time.Millisecond, Request: time.Second, Slack: 300 * time.Millisecond,
	Agree: Majority, OnStoreLoss: Failsafe,
}

// plan is what goes wrong in a simulation. The rest, such as the time that each
// message takes, follows from the seed.
type plan struct {
	Members int
	Share   int // as in world
	Seed    uint64
	Rates   []time.Duration // of the clocks, in 1/1000
	Faults  []mishap
}

// mishap is one fault. It begins After the one before.
type mishap struct {
	After         time.Duration
	Kind          kindOfMishap
	Member, Other int
	For           time.Duration
}

type kindOfMishap int

const (
	requestsLost  kindOfMishap = iota // of Member to the store
	answersLost                       // of the store to Member
	storeAway                         // for everybody
	peersApart                        // Member and Other
	paused                            // the process of Member
	killed                            // and it starts again after For
	left                              // in good order, and starts again
	keyLost                           // that of Member
	slow                              // everything between Member and the store
	kindsOfMishap                     // their number
)

func plans(members int) *rapid.Generator[plan] {
	mishaps := rapid.Custom(func(t *rapid.T) mishap {
		return mishap{
			After:  time.Duration(rapid.IntRange(0, 1500).Draw(t, "after")) * time.Millisecond,
			Kind:   kindOfMishap(rapid.IntRange(0, int(kindsOfMishap)-1).Draw(t, "kind")),
			Member: rapid.IntRange(0, members-1).Draw(t, "member"),
			Other:  rapid.IntRange(0, members-1).Draw(t, "other"),
			For:    time.Duration(rapid.IntRange(0, 9000).Draw(t, "for")) * time.Millisecond,
		}
	})
	return rapid.Custom(func(t *rapid.T) plan {
		faults := rapid.SampledFrom([]int{0, 1, 2, 5, 20, 60, 120, 150}).Draw(t, "number of faults")
		return plan{
			Members: members,
			Seed:    rapid.Uint64().Draw(t, "seed"),
			Rates:   rapid.SliceOfN(rapid.SampledFrom([]time.Duration{990, 1000, 1010}), members, members).Draw(t, "rates"),
			Faults:  rapid.SliceOfN(mishaps, faults, faults).Draw(t, "faults"),
		}
	})
}

// simulation is one run of a plan in virtual time.
type simulation struct {
	*world
	plan
	rng  *rand.Rand
	now  time.Duration // real
	todo events
	seq  uint64
	calm bool // the faults are over

	// Until when something does not work, in real time.
	requests, answers, slowness []time.Duration
	apart                       [][]time.Duration
	paused                      []time.Duration
	pausedAt                    []time.Duration
	slept                       []time.Duration // that a clock did not count

	opened, granted int
}

// event is something that happens at a time, in the process of a member or, with
// member -1, outside of all.
type event struct {
	at     time.Duration
	seq    uint64
	member int
	life   uint64
	do     func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// after has something happen in the process of member, if it lives on until then.
func (s *simulation) after(d time.Duration, member int, do func()) {
	s.seq++
	e := event{at: s.now + d, seq: s.seq, member: member, do: do}
	if member >= 0 {
		e.life = s.nodes[member].life
	}
	heap.Push(&s.todo, e)
}

func (s *simulation) upTo(d time.Duration) time.Duration {
	return time.Duration(s.rng.Int64N(int64(d) + 1))
}

// latency is the time of a message between a member and the store or a peer.
func (s *simulation) latency(member int) time.Duration {
	d := 10*time.Millisecond + s.upTo(30*time.Millisecond)
	switch {
	case s.now < s.slowness[member]:
		return d + s.upTo(3*time.Second)
	case !s.calm && s.rng.IntN(50) == 0:
		return d + s.upTo(2500*time.Millisecond)
	}
	return d
}

// transmit takes a message of a machine to the store or to a peer, and the answer
// back.
func (s *simulation) transmit(m message) {
	times := 1
	if !s.calm && s.rng.IntN(50) == 0 {
		times = 2
	}
	for range times {
		s.after(s.latency(m.from), -1, func() {
			if m.to >= 0 && (s.now < s.apart[m.from][m.to] || s.now < s.paused[m.to]) || m.to < 0 && s.now < s.requests[m.from] {
				return
			}
			version := s.record.Version
			m := m
			if m.answer = s.apply(m); m.answer == nil {
				return
			}
			if s.record.Version != version && s.record.Open {
				s.opened++
			}
			if s.record.Version != version {
				s.hint()
			}
			s.after(s.latency(m.from), m.from, func() {
				if m.to >= 0 && s.now < s.apart[m.from][m.to] || m.to < 0 && s.now < s.answers[m.from] {
					return
				}
				before := s.nodes[m.from].lease
				s.deliver(m)
				if _, grant := m.answer.(Granted); grant && s.nodes[m.from].lease > before {
					s.granted++
				}
				s.arm(m.from)
			})
		})
	}
}

// hint reports a new record to those who watch.
func (s *simulation) hint() {
	for i := range s.nodes {
		if s.nodes[i].dead || s.rng.IntN(10) == 0 {
			continue
		}
		s.after(s.latency(i), i, func() {
			if s.now >= s.answers[i] {
				s.step(i, Changed{})
				s.arm(i)
			}
		})
	}
}

// arm has member i wake when its machine wants to, and continue what it was
// ordered to do.
func (s *simulation) arm(i int) {
	n := &s.nodes[i]
	if n.dead {
		return
	}
	m := n.m
	if wake := m.Wake(); wake < forever {
		d := time.Duration(0)
		if wake > n.clock {
			d = ((wake-n.clock)*1000 + s.Rates[i] - 1) / s.Rates[i]
		}
		s.after(d+s.upTo(2*time.Millisecond), i, func() {
			if m.Wake() <= s.nodes[i].clock { // not postponed meanwhile
				s.step(i, Tick{})
				s.arm(i)
			}
		})
	}
	if order := n.ending; order != 0 && !n.armed {
		n.armed = true
		d := s.upTo(120 * time.Millisecond)
		switch {
		case !s.calm && s.rng.IntN(8) == 0:
			d = s.upTo(15 * time.Second) // it hangs
		case n.drain > 0:
			d += s.upTo(n.drain)
		}
		s.after(d, i, func() {
			if s.nodes[i].ending == order {
				s.fenced(i)
				s.arm(i)
			}
		})
	}
	if epoch := n.running; epoch != 0 && !n.armedRun {
		n.armedRun = true
		s.after(s.upTo(500*time.Millisecond), i, func() {
			if n := &s.nodes[i]; n.running == epoch {
				n.running = 0
				failed := s.rng.IntN(10) == 0
				s.step(i, Ran{Epoch: epoch, Failed: failed})
				if host := s.record.Host; failed {
					s.step(i, Want{Host: map[string]string{"a": "b", "b": "a"}[host], Agreed: true})
				}
				s.arm(i)
			}
		})
	}
}

// birth starts a life of member i.
func (s *simulation) birth(i int) {
	s.bear(i, simulationConfig)
	s.arm(i)
	s.wish(i)
}

// wish has member i want another primary now and then, for no reason.
func (s *simulation) wish(i int) {
	s.after(s.upTo(9*time.Second), i, func() {
		if s.calm {
			return
		}
		want := Want{Host: []string{"a", "b"}[s.rng.IntN(2)], Agreed: true}
		if s.rng.IntN(2) == 0 {
			want.Drain = s.upTo(8 * time.Second)
		}
		s.step(i, want)
		s.arm(i)
		s.wish(i)
	})
}

func (s *simulation) happen(f mishap) {
	until := max(s.now+f.For, s.now)
	switch i := f.Member; f.Kind {
	case requestsLost:
		s.requests[i] = until
	case answersLost:
		s.answers[i] = until
	case storeAway:
		for i := range s.nodes {
			s.requests[i] = until
		}
	case peersApart:
		s.apart[i][f.Other], s.apart[f.Other][i] = until, until
	case paused:
		if s.nodes[i].stop || s.nodes[i].dead {
			return
		}
		s.nodes[i].stop = true
		s.paused[i], s.pausedAt[i] = until, s.now
		s.after(f.For, -1, func() {
			if s.nodes[i].stop {
				s.resume(i)
			}
		})
	case killed:
		if s.nodes[i].dead {
			return
		}
		s.resume(i)
		s.kill(i)
		s.after(f.For/8, -1, func() { s.birth(i) })
	case left:
		if s.nodes[i].dead || s.nodes[i].stop || s.nodes[i].m.leaving {
			return
		}
		s.step(i, Leave{Drain: f.For / 3})
		s.arm(i)
		life := s.nodes[i].life
		s.after(f.For, -1, func() {
			if s.nodes[i].life == life && (!s.nodes[i].dead || s.nodes[i].m == nil) {
				s.resume(i)
				s.kill(i)
				s.birth(i)
			}
		})
	case keyLost:
		s.keys[i] = Entry{}
	case slow:
		s.slowness[i] = until
	case kindsOfMishap:
	}
}

// resume continues a paused process. Its connections move bytes before its
// machine learns of anything.
func (s *simulation) resume(i int) {
	n := &s.nodes[i]
	if n.stop && s.fault == monotonic {
		s.slept[i] += s.now - s.pausedAt[i]
	}
	n.stop, s.paused[i] = false, 0
	s.tell()
	s.move()
}

// tell sets all clocks.
func (s *simulation) tell() {
	for i := range s.nodes {
		now := s.now
		if s.nodes[i].stop && s.fault == monotonic {
			now = s.pausedAt[i]
		}
		s.nodes[i].clock = (now - s.slept[i]) * s.Rates[i] / 1000 //nolint:durationcheck // thousandths
	}
}

// run runs events until the time end.
func (s *simulation) run(end time.Duration) {
	for len(s.todo) > 0 && s.todo[0].at <= end && s.violation == "" {
		e := heap.Pop(&s.todo).(event)
		s.now = e.at
		s.tell()
		if e.member >= 0 {
			if n := &s.nodes[e.member]; n.dead || n.life != e.life {
				continue
			} else if n.stop {
				e.at = s.paused[e.member] + time.Nanosecond // as soon as it goes on
				heap.Push(&s.todo, e)
				continue
			}
		}
		e.do()
	}
	s.now = max(s.now, end)
	s.tell()
}

// simulate runs p, with a mutation, and returns the run; its violation is empty
// if nothing was wrong.
func simulate(p plan, fault mutation) *simulation {
	s := &simulation{plan: p, rng: rand.New(rand.NewPCG(p.Seed, 1))}
	s.world = newWorld(p.Members, fault, func(_ *world, m message) { s.transmit(m) })
	s.share = p.Share
	for range p.Members {
		s.apart = append(s.apart, make([]time.Duration, p.Members))
	}
	for _, times := range []*[]time.Duration{&s.requests, &s.answers, &s.slowness, &s.paused, &s.pausedAt, &s.slept} {
		*times = make([]time.Duration, p.Members)
	}
	for i := range s.nodes {
		s.birth(i)
	}
	at := 2 * time.Second
	for _, f := range p.Faults {
		at += f.After
		s.after(at-s.now, -1, func() { s.happen(f) })
	}
	s.run(at + 10*time.Second)

	// Nothing is wrong any more: everybody serves the same epoch soon.
	s.calm = true
	for i := range s.nodes {
		s.requests[i], s.answers[i], s.slowness[i] = 0, 0, 0
		for j := range s.nodes {
			s.apart[i][j] = 0
		}
	}
	s.run(s.now + 60*time.Second)
	for i := range s.nodes {
		if n := &s.nodes[i]; !s.record.Open || n.dead || !n.live || n.epoch != s.record.Epoch || n.clock >= n.lease {
			s.breaks("L1: %s does not serve epoch %d a minute after the last fault: %+v", name(i), s.record.Epoch, n.m)
		}
	}
	return s
}

// The protocol holds whatever happens to the store, the network, the processes
// and their clocks.
func TestSimulation(t *testing.T) {
	for _, tt := range []struct{ members, share int }{{2, 0}, {3, 0}, {5, 0}, {5, 1}} {
		t.Run(fmt.Sprintf("members=%d share=%d", tt.members, tt.share), func(t *testing.T) {
			if err := flag.Set("rapid.checks", strconv.Itoa(*simulations)); err != nil {
				t.Fatal(err)
			}
			opened, granted := 0, 0
			rapid.Check(t, func(t *rapid.T) {
				p := plans(tt.members).Draw(t, "plan")
				p.Share = tt.share
				s := simulate(p, unbroken)
				opened += s.opened
				granted += s.granted
				if s.violation != "" {
					t.Fatal(s.violation)
				}
			})
			t.Logf("%d runs: %d epochs were opened, %d leases extended by grants", *simulations, opened, granted)
			if *simulations >= 100 && (opened == 0 || granted == 0) {
				t.Error("nothing happened in the simulations")
			}
		})
	}
}

// A simulation that does not notice a broken rule is worth nothing. The runs are
// the same each time; some rules need more of them than a test has time for.
func TestSimulationCatchesMutants(t *testing.T) {
	most := 5 * *simulations
	for mutant, fault := range mutations {
		t.Run(mutant, func(t *testing.T) {
			t.Parallel()
			plans := plans(3)
			for seed := range most {
				if s := simulate(plans.Example(seed), fault); s.violation != "" {
					t.Logf("run %d: %s", seed, s.violation)
					return
				}
			}
			if *simulations < 1000 {
				t.Skipf("not noticed in %d runs; make prove has more", most)
			}
			t.Errorf("not noticed in %d runs", most)
		})
	}
}
