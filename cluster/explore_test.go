package cluster

import (
	"cmp"
	"flag"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"testing"
	"time"
)

var states = flag.Int("explore", 5_000, "the most `states` to explore")

// unit is one step of the time in the exploration.
const unit = time.Second

// exploreConfig has a lease of two units, and no slack: what the waiting side
// waits is exactly what two clocks that are wrong by 1 % make necessary.
var exploreConfig = Config{
	Lease: 2 * unit, Heartbeat: unit, Request: unit, Agree: Majority, OnStoreLoss: Failsafe,
}

// rates are those of the clocks, in 1/1000.
var rates = []time.Duration{990, 1010}

// limits bound an exploration.
type limits struct {
	epochs uint64 // the highest
	lives  uint64 // of each member
	wants  int    // changes that members request
	twice  int    // messages that arrive twice
	vanish int    // keys that are deleted
	leaves int    // members that end in order
	drain  time.Duration
	grants bool // members ask each other
	flying int  // requests of one kind and member that are on their way at once
	from   int  // the first member that wants another primary
	share  int  // as in world
}

// state is a state of the exploration.
type state struct {
	*world
	net   []message
	left  limits // what may still happen
	trail *trail
}

// trail is how a state was reached.
type trail struct {
	before *trail
	what   string
	member int
	arg    int
}

func (t *trail) String() string {
	var steps []string
	for ; t != nil; t = t.before {
		steps = append(steps, fmt.Sprintf("%s: %s %d", name(t.member), t.what, t.arg))
	}
	slices.Reverse(steps)
	return strings.Join(steps, "\n")
}

// next returns a copy of s to which something happens.
func (s *state) next(what string, member, arg int) *state {
	n := &state{world: s.clone(), net: slices.Clone(s.net), left: s.left, trail: &trail{s.trail, what, member, arg}}
	n.send = func(_ *world, m message) { n.put(m) }
	return n
}

// put takes a request on its way. With too many of a kind the oldest is lost.
func (s *state) put(m message) {
	if _, ask := m.request.(Ask); ask && !s.left.grants {
		return
	}
	same := 0
	for i, o := range slices.Backward(s.net) {
		if o.from == m.from && o.to == m.to && o.life == m.life && kind(o.request) == kind(m.request) {
			if same++; same >= s.left.flying {
				s.net = slices.Delete(s.net, i, i+1)
			}
		}
	}
	s.net = append(s.net, m)
}

func (m *message) what() string {
	what := map[byte]string{'w': "Write", 's': "Swap", 'a': "Ask"}[kind(m.request)]
	if m.answer != nil {
		return "answer to " + what + " arrives"
	}
	return what + " arrives, and stays on its way"
}

func kind(a Action) byte {
	switch a.(type) {
	case Write:
		return 'w'
	case Swap:
		return 's'
	}
	return 'a'
}

func sent(a Action) time.Duration {
	switch a := a.(type) {
	case Write:
		return a.Sent
	case Swap:
		return a.Sent
	case Ask:
		return a.Sent
	}
	return 0
}

// successors calls visit with every state that can follow s.
func (s *state) successors(visit func(*state)) {
	// Time passes. Where the clocks stand while a machine sleeps, each may sleep.
	sleepers := 1
	if s.fault == monotonic {
		sleepers = 1 << len(s.nodes)
	}
	for asleep := range sleepers {
		n := s.next("time passes, asleep are", 0, asleep)
		for i := range n.nodes {
			if asleep>>i&1 == 0 {
				n.nodes[i].clock += unit * rates[i%2] / 1000 //nolint:durationcheck // thousandths
			}
		}
		n.net = slices.DeleteFunc(n.net, func(m message) bool {
			return m.answer != nil && (n.nodes[m.from].life != m.life || n.nodes[m.from].dead)
		})
		n.move()
		visit(n)
	}
	for k, m := range s.net {
		for again := range 2 {
			if again == 1 && s.left.twice == 0 {
				continue
			}
			n := s.next(m.what(), m.from, again)
			n.left.twice -= again
			if again == 0 {
				n.net = slices.Delete(n.net, k, k+1)
			}
			if m.answer != nil {
				n.deliver(m)
			} else if m.answer = n.apply(m); m.answer != nil {
				n.net = append(n.net, m)
			}
			visit(n)
		}
	}
	for i := range s.nodes {
		o := &s.nodes[i]
		if o.dead {
			if o.life < s.left.lives {
				n := s.next("is born again", i, 0)
				n.bear(i, exploreConfig)
				visit(n)
			}
			continue
		}
		if o.clock >= o.m.Wake() {
			n := s.next("wakes", i, 0)
			n.step(i, Tick{})
			visit(n)
		}
		if o.ending != 0 {
			n := s.next("has ended its connections", i, 0)
			n.fenced(i)
			visit(n)
		}
		if o.running != 0 {
			n := s.next("has run its triggers", i, 0)
			n.nodes[i].running = 0
			n.step(i, Ran{Epoch: o.running})
			visit(n)
		}
		if r := &o.m.record; s.left.wants > 0 && i >= s.left.from && o.m.maySwap() && r.Epoch < s.left.epochs && o.m.want.Host == "" && !o.m.driving() {
			host := "b"
			if r.Host == "b" {
				host = "a"
			}
			for drain := time.Duration(0); drain <= s.left.drain; drain += unit {
				n := s.next("wants another primary, with a drain of", i, int(drain/unit))
				n.left.wants--
				n.step(i, Want{Host: host, Agreed: true, Drain: drain})
				visit(n)
			}
		}
		if o.life < s.left.lives {
			n := s.next("is killed", i, 0)
			n.kill(i)
			n.net = slices.DeleteFunc(n.net, func(m message) bool { return m.from == i && m.answer != nil })
			visit(n)
		}
		if s.left.leaves > 0 && !o.m.leaving {
			n := s.next("leaves", i, 0)
			n.left.leaves--
			n.step(i, Leave{})
			visit(n)
		}
		if s.left.vanish > 0 && s.keys[i].Revision != 0 {
			n := s.next("its key vanishes", i, 0)
			n.left.vanish--
			n.keys[i] = Entry{}
			visit(n)
		}
	}
}

// encoder writes a state as bytes that are equal for states with the same future.
// Times are relative to the clock of their member, and are left out where they
// have no effect; revisions are only told apart.
type encoder struct {
	b    []byte
	revs [3][]int64 // by member: all revisions of its key that occur
	msgs [][]byte
}

func (e *encoder) num(v ...uint64) {
	for _, v := range v {
		for ; v >= 0x80; v >>= 7 {
			e.b = append(e.b, byte(v)|0x80)
		}
		e.b = append(e.b, byte(v))
	}
}

func (e *encoder) flags(v ...bool) {
	for _, v := range v {
		if v {
			e.b = append(e.b, 1)
		} else {
			e.b = append(e.b, 0)
		}
	}
}

// past encodes how long ago t was, with an effect for most; due how long it is
// until t.
func (e *encoder) past(now, t, most time.Duration) {
	e.num(uint64(min(now-t, most) / time.Millisecond))
}

func (e *encoder) due(now, t time.Duration) { e.num(uint64(max(t-now, 0) / time.Millisecond)) }

func (e *encoder) rev(i int, rev int64) {
	at, _ := slices.BinarySearch(e.revs[i], rev)
	e.num(uint64(at))
}

func (e *encoder) record(r *Record) {
	e.num(r.Version, r.Boot, r.Epoch, r.DriverBoot, uint64(r.Drain/time.Millisecond))
	e.flags(r.Open)
	e.b = append(e.b, r.Host...)
}

func (e *encoder) member(m *Member) { e.num(m.Boot, m.Fenced); e.flags(m.Leaving) }

func index(name string) int { return int(name[0] - 'm') }

func (e *encoder) entries(entries []Entry) {
	for k := range entries {
		i := index(entries[k].Name)
		e.num(uint64(i))
		e.member(&entries[k].Member)
		e.rev(i, entries[k].Revision)
	}
	e.b = append(e.b, '.')
}

func (e *encoder) message(s *state, m message) {
	n := &s.nodes[m.from]
	at := sent(m.request)
	e.b = append(e.b, kind(m.request), byte(m.from), byte(m.to))
	e.num(m.life)
	if !n.dead && n.life == m.life {
		if kind(m.request) != 's' {
			e.past(n.clock, at, exploreConfig.Lease)
		}
		e.flags(at == n.m.writing, at == n.m.swap, at == n.m.ask, at >= n.m.confirmed, at > n.m.learned)
	}
	e.flags(m.answer != nil)
	switch a := m.answer.(type) {
	case Wrote:
		e.flags(a.OK)
		e.member(&a.Own.Member)
		e.rev(m.from, a.Own.Revision)
		e.record(&a.Record)
		e.entries(a.Members)
	case Swapped:
		e.record(&a.Record)
	case nil:
		switch r := m.request.(type) {
		case Write:
			e.rev(m.from, r.Expect)
			e.member(&r.Own)
		case Swap:
			e.num(uint64(r.Expect))
			e.record(&r.Record)
		case Ask:
			e.num(r.Version, r.Boot)
		}
	}
}

func (e *encoder) encode(s *state) []byte {
	for i := range s.nodes {
		e.revs[i] = append(e.revs[i][:0], 0, s.keys[i].Revision)
		if m := s.nodes[i].m; m != nil {
			e.revs[i] = append(e.revs[i], m.own, m.birth.rival)
		}
	}
	see := func(entries []Entry) {
		for k := range entries {
			i := index(entries[k].Name)
			e.revs[i] = append(e.revs[i], entries[k].Revision)
		}
	}
	for i := range s.nodes {
		if m := s.nodes[i].m; m != nil {
			for k := range m.peers {
				j := index(m.peers[k].Name)
				e.revs[j] = append(e.revs[j], m.peers[k].Revision)
			}
		}
	}
	for _, m := range s.net {
		switch a := m.answer.(type) {
		case Wrote:
			e.revs[m.from] = append(e.revs[m.from], a.Own.Revision)
			see(a.Members)
		case nil:
			if r, write := m.request.(Write); write {
				e.revs[m.from] = append(e.revs[m.from], r.Expect)
			}
		}
	}
	for i := range s.nodes {
		slices.Sort(e.revs[i])
		e.revs[i] = slices.Compact(e.revs[i])
	}

	e.b = e.b[:0]
	for i := range s.nodes {
		e.node(s, i)
		e.member(&s.keys[i].Member)
		e.rev(i, s.keys[i].Revision)
	}
	e.record(&s.record)
	e.num(s.moved, uint64(s.left.wants), uint64(s.left.twice), uint64(s.left.vanish), uint64(s.left.leaves))
	e.num(s.ran)
	for epoch := range s.left.epochs {
		e.b = append(append(e.b, s.hosts[epoch+1]...), '.')
	}
	// The order of the messages has no effect.
	e.msgs = e.msgs[:0]
	start := len(e.b)
	ends := []int{start}
	for _, m := range s.net {
		e.message(s, m)
		ends = append(ends, len(e.b))
	}
	for k := range s.net {
		e.msgs = append(e.msgs, slices.Clone(e.b[ends[k]:ends[k+1]]))
	}
	slices.SortFunc(e.msgs, func(a, b []byte) int { return cmp.Compare(string(a), string(b)) })
	e.b = e.b[:start]
	for _, m := range e.msgs {
		e.b = append(e.b, m...)
	}
	return e.b
}

func (e *encoder) node(s *state, i int) {
	n := &s.nodes[i]
	e.flags(n.dead)
	e.num(n.life)
	if n.dead {
		return
	}
	m := n.m
	e.flags(n.live, n.ending == m.order && n.ending != 0, n.ending != 0)
	e.num(n.epoch, n.running)
	e.b = append(e.b, n.host...)
	e.due(n.clock, n.lease)

	now := n.clock
	e.flags(m.known, m.birth.done, m.live, m.leaving, m.left)
	e.record(&m.record)
	follows := !m.record.Open && !m.driving()
	if follows {
		e.past(now, m.learned, m.cfg.Wait())
		e.past(now, m.read, m.cfg.Wait())
	}
	for k := range m.peers {
		p := &m.peers[k]
		j := index(p.Name)
		e.num(uint64(j), p.Member.Boot)
		e.flags(p.Member.Leaving)
		e.rev(j, p.Revision)
		if follows && p.moved > m.learned || s.fault == cached {
			e.past(now, p.moved, m.cfg.wait(s.left.drain))
		}
	}
	e.b = append(e.b, '.')
	if !m.birth.done {
		e.rev(i, m.birth.rival)
		e.past(now, m.birth.since, 2*m.cfg.Heartbeat)
		e.flags(m.birth.until == forever)
	} else {
		e.due(now, m.birth.until)
	}
	if now < m.birth.until {
		e.num(m.birth.fenced)
	}
	e.rev(i, m.own)
	e.member(&m.wrote)
	e.past(now, m.writing, m.cfg.Request)
	e.due(now, m.nextBeat())
	if m.readEvery() > 0 {
		e.past(now, m.reading, m.readEvery())
	}
	e.num(m.epoch, uint64(m.ending), m.fenced, uint64(m.run))
	if s.left.drain > 0 && m.live {
		e.past(now, m.lastOpen, m.cfg.Lease+s.left.drain)
	}
	if m.want.Host != "" {
		e.b = append(e.b, m.want.Host...)
		e.num(m.wantSet, uint64(m.want.Drain/time.Millisecond))
	}
	if m.driving() {
		e.past(now, m.since, m.cfg.wait(s.left.drain))
	}
	e.past(now, m.swap, m.cfg.Request)
	if s.left.grants {
		e.due(now, m.nextAsk)
		e.flags(m.askFor == m.record.id())
		for _, g := range m.granted {
			e.b = append(e.b, g...)
		}
	}
	e.b = append(e.b, '.')
}

// found is the outcome of an exploration.
type found struct {
	states, moves int
	complete      bool // there are no more states
	violation     string
	trail         *trail
	opened        int    // states in which a member has opened an epoch after the first
	deepest       uint64 // the highest epoch that was open
}

// settled returns a state in which all members serve the first epoch.
func settled(members int, fault mutation, left limits) *state {
	s := &state{left: left}
	s.world = newWorld(members, fault, func(_ *world, m message) { s.put(m) })
	s.share = left.share
	for i := range members {
		s.bear(i, exploreConfig)
	}
	for len(s.net) > 0 {
		m := s.net[0]
		s.net = s.net[1:]
		if m.answer = s.apply(m); m.answer != nil {
			s.deliver(m)
		}
	}
	return s
}

// explore visits every state that can be reached within left, or the first most.
// Breadth first it finds a violation by the shortest way; otherwise it needs less
// memory.
func explore(members int, fault mutation, left limits, most int, breadth bool) found {
	s := settled(members, fault, left)
	var e encoder
	seed := maphash.MakeSeed()
	seen := map[uint64]struct{}{maphash.Bytes(seed, e.encode(s)): {}}
	queue := []*state{s}
	var f found
	for len(queue) > 0 && f.violation == "" && len(seen) < most {
		if breadth {
			s, queue[0] = queue[0], nil
			queue = queue[1:]
		} else {
			s = queue[len(queue)-1]
			queue[len(queue)-1] = nil
			queue = queue[:len(queue)-1]
		}
		s.successors(func(n *state) {
			f.moves++
			if n.violation != "" {
				f.violation, f.trail = n.violation, n.trail
				return
			}
			if n.record.Epoch > left.epochs {
				return
			}
			h := maphash.Bytes(seed, e.encode(n))
			if _, old := seen[h]; old {
				return
			}
			seen[h] = struct{}{}
			if n.moved > 1 {
				f.opened++
				f.deepest = max(f.deepest, n.moved)
			}
			queue = append(queue, n)
		})
	}
	f.states, f.complete = len(seen), len(queue) == 0
	return f
}

func (f found) String() string {
	end := "not complete"
	if f.complete {
		end = "complete"
	}
	return fmt.Sprintf("%d states, %d moves, %s; %d states with a later epoch open, up to epoch %d", f.states, f.moves, end, f.opened, f.deepest)
}

// The protocol holds in every order of what can happen to two members, with
// clocks that are wrong by as much as is allowed, in opposite directions.
func TestExplore(t *testing.T) {
	for _, tt := range []struct {
		name string
		left limits
	}{
		{"one change", limits{epochs: 2, lives: 1, wants: 1, flying: 1}},
		{"keys are read seldom", limits{epochs: 2, lives: 1, wants: 1, flying: 1, share: 1}},
		{"a member leaves", limits{epochs: 3, lives: 2, wants: 1, leaves: 1, flying: 1}},
		{"all", limits{epochs: 3, lives: 2, wants: 3, twice: 1, vanish: 1, leaves: 1, drain: unit, grants: true, flying: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := explore(2, unbroken, tt.left, *states, false)
			t.Log(f)
			if f.violation != "" {
				t.Errorf("%s\n%s", f.violation, f.trail)
			}
			if f.opened == 0 {
				t.Error("no other epoch was opened")
			}
		})
	}
}

// An exploration that does not notice a broken rule is worth nothing. The member
// with the fast clock drives: it is the one that waits too short.
//
// Majority is missing: of two members the half of the others is all of them. The
// simulation of three catches it.
func TestExploreCatchesMutants(t *testing.T) {
	for _, tt := range []struct {
		mutant string
		left   limits
		most   int // states that suffice
	}{
		{"vanish", limits{vanish: 1}, 5_000},
		{"monotonic", limits{}, 10_000},
		{"timeronly", limits{}, 100_000},
		{"extend", limits{}, 100_000},
		{"receipt", limits{}, 200_000},
		{"parting", limits{leaves: 1}, 100_000},
		{"cached", limits{grants: true}, 250_000},
		{"drainlate", limits{drain: unit}, 250_000},
	} {
		t.Run(tt.mutant, func(t *testing.T) {
			if tt.most > *states {
				t.Skipf("skipped: needs up to %d states; make prove explores that many", tt.most)
			}
			left := tt.left
			left.epochs, left.lives, left.wants, left.flying, left.from = 2, 1, 1, 1, 1
			f := explore(2, mutations[tt.mutant], left, tt.most, true)
			t.Log(f, f.violation)
			if f.violation == "" {
				t.Error("not noticed")
			}
		})
	}
}
