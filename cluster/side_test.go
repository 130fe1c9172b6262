package cluster

import (
	"bytes"
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"time"
)

// unit is one step of the time in the exploration.
const unit = time.Second

// exploreConfig returns the times of an exploration with a lease of so many units.
// There is no slack: what the waiting side waits is exactly what two clocks that are
// wrong by 1 % make necessary.
func exploreConfig(units int) Config {
	lease := unit * time.Duration(units)
	return Config{Lease: lease, Heartbeat: lease / 2, Request: lease / 2, Agree: Majority, OnStoreLoss: Failsafe}
}

// tick is what the clock of member i counts in one unit: 0.99 or 1.01 of it.
func tick(i int) time.Duration { return unit / 100 * time.Duration(99+2*(i%2)) }

// Revisions of a key in the exploration are small numbers, and these.
const (
	newest = 62 // of the write that has just happened, until it is renamed
	stale  = 63 // one that the key will never have again
)

// side is one member with its messages that are on their way. Whatever happens to it
// follows from nothing else, but for what a request does at the store or to the other member.
// One that has a number is never changed.
//
// Two sides are one if they have the same code. That leaves out what has no effect any more,
// and only that: TestCodesOfSides looks at every two of them.
type side struct {
	i     int
	fault mutation
	left  *limits // those of the exploration
	spent bool    // nobody will want another primary any more
	node  node
	net   []message

	// What follows is derived, by tidy.

	code []byte

	// Revisions of keys as bits: own are those which are only compared with the own key
	// as it is in the store, and seen all others, by key.
	own  uint64
	seen [2]uint64

	oldestSwap uint64 // the version that the oldest swap on its way expects; forNone without
	epoch      uint64 // the lowest of which bytes may be moved still, if the record has no lower one
	moves      bool   // bytes are moved

	// What follows is derived later, by the exploration.

	steps []step
	aged  uint32 // the side one unit later; zero if that is not known yet
}

const forNone = 1 << 60

// step is something that happens at one side.
type step struct {
	what      string
	arg       int
	use       use
	side      uint32
	runs      uint64 // the epoch whose triggers begin; zero for none
	violation string
}

// use is what a step uses up of the limits.
type use uint8

const (
	nothing use = iota
	oneWant
	oneTwice
	oneLeave
	oneVanish
)

// copy returns a side that may be changed.
func (s *side) copy() *side {
	n := &side{i: s.i, fault: s.fault, left: s.left, spent: s.spent, node: s.node, net: slices.Clone(s.net)}
	if s.node.m != nil {
		m := *s.node.m
		n.node.m = &m
	}
	return n
}

// asks reports whether the life that has sent m still lives.
func (s *side) asks(m *message) bool { return !s.node.dead && s.node.life == m.life }

// put takes a request on its way. With too many of a kind the oldest is lost, with all of
// its copies and answers.
func (s *side) put(m message) {
	if _, ask := m.request.(Ask); ask && !s.left.grants {
		return
	}
	same := func(o message) bool { return o.to == m.to && o.life == m.life && kind(o.request) == kind(m.request) }
	for {
		var at []time.Duration
		for _, o := range s.net {
			if same(o) && !slices.Contains(at, sent(o.request)) {
				at = append(at, sent(o.request))
			}
		}
		if len(at) < s.left.flying {
			break
		}
		oldest := slices.Min(at)
		s.net = slices.DeleteFunc(s.net, func(o message) bool { return same(o) && sent(o.request) == oldest })
	}
	s.net = append(s.net, m)
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

// within has do happen to s, in a world in which there is no other member. What
// it does to others is checked by the exploration.
func (s *side) within(do func(*world)) (ran uint64, violation string) {
	w := newWorld(2, s.fault, func(_ *world, m message) { s.put(m) })
	w.share = s.left.share
	for i := range w.nodes {
		w.nodes[i].dead = true
	}
	w.nodes[s.i] = s.node
	do(w)
	s.node = w.nodes[s.i]
	return w.ran, w.violation
}

// each calls visit with each step that can happen at s.
func (s *side) each(visit func(st step, n *side)) {
	do := func(what string, arg int, u use, how func(n *side, w *world)) {
		n := s.copy()
		st := step{what: what, arg: arg, use: u}
		st.runs, st.violation = n.within(func(w *world) { how(n, w) })
		visit(st, n)
	}
	i := s.i
	o := &s.node
	if o.dead {
		if o.life < s.left.lives {
			do("is born again", 0, nothing, func(_ *side, w *world) { w.bear(i, exploreConfig(s.left.units)) })
		}
		return
	}
	for k, m := range s.net {
		if m.answer == nil {
			continue
		}
		for again, u := range []use{nothing, oneTwice}[:1+min(s.left.twice, 1)] {
			do("answer arrives: "+string(kind(m.request)), again, u, func(n *side, w *world) {
				if again == 0 {
					n.net = slices.Delete(n.net, k, k+1)
				}
				w.deliver(m)
			})
		}
	}
	do("wakes", 0, nothing, func(_ *side, w *world) { w.step(i, Tick{}) })
	if o.ending != 0 {
		do("has ended its connections", 0, nothing, func(_ *side, w *world) { w.fenced(i) })
	}
	if o.running != 0 {
		do("has run its triggers", 0, nothing, func(_ *side, w *world) {
			w.nodes[i].running = 0
			w.step(i, Ran{Epoch: o.running})
		})
	}
	m := *o.m
	m.now = o.clock
	if r := &m.record; s.left.wants > 0 && s.left.wanters>>i&1 == 1 && m.maySwap() && r.Epoch < s.left.epochs && m.want.Host == "" && !m.driving() {
		host := "b"
		if r.Host == "b" {
			host = "a"
		}
		for drain := time.Duration(0); drain <= s.left.drain; drain += unit {
			do("wants another primary, with a drain of", int(drain/unit), oneWant, func(_ *side, w *world) {
				w.step(i, Want{Host: host, Agreed: true, Drain: drain})
			})
		}
	}
	// A dead member does no more than one to which nothing happens, so its end is
	// explored together with its next birth.
	if o.life < s.left.lives && !s.left.plain {
		do("is killed and born again", 0, nothing, func(_ *side, w *world) {
			w.kill(i)
			w.bear(i, exploreConfig(s.left.units))
		})
	} else if o.life < s.left.lives {
		do("is killed", 0, nothing, func(_ *side, w *world) { w.kill(i) })
	}
	if s.left.leaves > 0 && !m.leaving {
		do("leaves", 0, oneLeave, func(_ *side, w *world) { w.step(i, Leave{}) })
	}
}

// grants reports whether the member grants a lease to a life of another one that knows the
// record of version and boot.
func (s *side) grants(from int, life, version, boot uint64) bool {
	return !s.node.dead && s.node.m.Grants(name(from), life, version, boot)
}

// rename numbers revisions anew: cur are those of the keys, and used has all that occur
// anywhere as bits. It only matters which are the same. Requests that the store cannot carry
// out any more, because the key or the record has moved on from what they expect, are all
// alike, and those of an ended life are nothing.
func (s *side) rename(cur [2]int64, used [2]uint64, version uint64, spent bool) *side {
	n := s.copy()
	n.spent = spent
	i := s.i
	seen := func(j int, r int64) int64 {
		if r == 0 || r == stale {
			return r
		}
		return rank(used[j], r)
	}
	own := func(r int64) int64 {
		if r == cur[i] || r == 0 && s.left.vanish > 0 {
			return seen(i, r)
		}
		return stale
	}
	entries := func(e []Entry) []Entry {
		e = slices.Clone(e)
		for k := range e {
			if j := index(e[k].Name); j == i && !n.node.dead && e[k].Member.Boot == n.node.m.cfg.Boot {
				e[k].Revision = own(e[k].Revision)
			} else {
				e[k].Revision = seen(j, e[k].Revision)
			}
		}
		return e
	}
	if m := n.node.m; m != nil {
		m.own = own(m.own)
		m.birth.rival = seen(i, m.birth.rival)
		m.peers = slices.Clone(m.peers)
		for k := range m.peers {
			m.peers[k].Entry = entries([]Entry{m.peers[k].Entry})[0]
		}
	}
	net := n.net[:0]
	for _, m := range n.net {
		switch a := m.answer.(type) {
		case Wrote:
			if a.Own.Name != "" {
				a.Own = entries([]Entry{a.Own})[0]
			}
			a.Members = entries(a.Members)
			m.answer = a
		case nil:
			switch r := m.request.(type) {
			case Write:
				r.Expect = own(r.Expect)
				if r.Expect == stale && !s.asks(&m) {
					continue
				}
				m.request = r
			case Swap:
				if r.Expect < int64(version) {
					if !s.asks(&m) {
						continue
					}
					r.Expect = -1
				}
				m.request = r
			}
		}
		net = append(net, m)
	}
	n.net = net
	return n
}

// rank returns the number of revisions in use up to r.
func rank(used uint64, r int64) int64 {
	return int64(bits.OnesCount64(used&(1<<r-1)) + 1)
}

// tidy drops messages that can have no effect, and sets what is derived from a side.
func (s *side) tidy() {
	s.net = slices.DeleteFunc(s.net, func(m message) bool { return s.vain(&m) })
	s.own, s.seen, s.oldestSwap = 0, [2]uint64{}, forNone
	s.moves = s.node.moves(s.fault)
	s.epoch = s.lowest()
	e := encoder{s: s}
	e.encode()
	s.code = e.b
}

// lowest returns the epoch of side.epoch.
func (s *side) lowest() uint64 {
	low := uint64(forNone)
	if s.node.dead {
		return low
	}
	if s.node.live {
		low = s.node.epoch
	}
	if s.node.m.known {
		low = min(low, s.node.m.record.Epoch)
	}
	for _, m := range s.net {
		switch a := m.answer.(type) {
		case Wrote:
			low = min(low, a.Record.Epoch)
		case Swapped:
			low = min(low, a.Record.Epoch)
		}
	}
	return low
}

// cares reports whether it matters that the key e was read, when r is the newest
// record that is known, and done whether the own key holds this life.
//
// A member wants to know since when the driver of a fence was silent. When it learns
// of a fence together with the keys, what it knew of them before is of no interest. So
// the keys only matter once it knows of a fence, or where it may learn of one from the answer
// to a swap. And it grants nothing to a life that it has read to be over.
func (s *side) cares(e *Entry, r *Record, done bool) bool {
	m := s.node.m
	if s.left.plain || s.left.grants && s.left.lives > 1 || s.fault == cached || s.left.flying > 1 || done && (m.want.Host != "" || !s.spent && s.left.wanters>>s.i&1 == 1) {
		return true
	}
	for k := range s.net {
		if s.asks(&s.net[k]) && kind(s.net[k].request) == 's' {
			return true
		}
	}
	mine := r.Driver == m.cfg.Member && r.DriverBoot == m.cfg.Boot
	return !r.Open && !mine && (done || r.Driver == e.Name && r.DriverBoot == e.Member.Boot)
}

// late reports whether m is a heartbeat, or the answer to it, and a later one has succeeded:
// then the machine only looks at the record that it reads.
func (s *side) late(m *message) bool {
	return !s.left.plain && kind(m.request) == 'w' && sent(m.request) < s.node.m.confirmed
}

// vain reports whether m can have no effect. To be on its way is then as if it was lost.
func (s *side) vain(m *message) bool {
	if !s.asks(m) {
		switch r := m.request.(type) {
		case Write:
			return m.answer != nil || r.Expect == stale
		case Swap:
			return m.answer != nil || r.Expect < 0
		}
		return true
	}
	if s.left.plain {
		return false
	}
	n := s.node.m
	at := sent(m.request)
	if kind(m.request) == 'a' {
		return at != n.ask || n.askFor != n.record.id() || len(n.granted) > 0
	}
	var version uint64
	switch a := m.answer.(type) {
	case nil:
		return false
	case Wrote:
		if at == n.writing && s.waits(n.writing, n.cfg.Request) || !s.late(m) {
			return false
		}
		version = a.Record.Version
	case Swapped:
		if at == n.swap && s.waits(n.swap, n.cfg.Request) {
			return false
		}
		version = a.Record.Version
	}
	return n.known && (version == n.record.Version || version < n.record.Version && at <= n.learned)
}

// gone reports whether the machine will say that the store has gone back when it
// reads r by a request sent at at.
func (s *side) gone(at time.Duration, r *Record) bool {
	m := s.node.m
	return r.Version < m.record.Version && at > m.learned
}

// waits reports whether less than most has passed since t.
func (s *side) waits(t, most time.Duration) bool { return t != never && s.node.clock < t+most }

// encoder writes a side as bytes that are equal for sides with the same future.
// Times are relative to the clock of the member. What has no effect is left out.
type encoder struct {
	s   *side
	b   []byte
	age func(*message) uint64 // of a heartbeat or its answer, as far as that is of interest
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

// past encodes how long ago t was, with an effect for less than most; due how
// long it is until t.
func (e *encoder) past(t, most time.Duration) {
	if !e.s.waits(t, most) {
		e.num(1)
		return
	}
	e.num(2 * uint64((e.s.node.clock-t)/time.Millisecond))
}

func (e *encoder) due(t time.Duration) {
	e.num(uint64(max(t-e.s.node.clock, 0) / time.Millisecond))
}

func (e *encoder) ownRev(r int64) {
	if r != stale && (r != 0 || e.s.left.vanish == 0) {
		e.s.own |= 1 << r
	}
	e.num(uint64(r))
}

func (e *encoder) rev(j int, r int64) {
	if r != 0 && r != stale {
		e.s.seen[j] |= 1 << r
	}
	e.num(uint64(r))
}

func (e *encoder) record(r *Record) {
	e.num(r.Version, r.Epoch, r.DriverBoot)
	e.flags(r.Open)
	if !r.Open {
		e.num(r.Boot, uint64(r.Drain/time.Millisecond))
	}
	e.b = append(append(e.b, r.Host...), '.')
}

func (e *encoder) member(m *Member) { e.num(m.Boot, m.Fenced); e.flags(m.Leaving) }

func index(name string) int { return int(name[0] - 'm') }

// entry encodes a key that was read. Of the own key of this life only the revision
// is of interest, and that only where it was written.
func (e *encoder) entry(k *Entry, mine, fenced bool) {
	i := index(k.Name)
	e.num(uint64(i), k.Member.Boot)
	if i == e.s.i && !e.s.node.dead && k.Member.Boot == e.s.node.m.cfg.Boot {
		if mine {
			e.flags(k.Member.Leaving)
			e.ownRev(k.Revision)
		}
		return
	}
	e.flags(k.Member.Leaving)
	if fenced {
		e.num(k.Member.Fenced)
	}
	e.rev(i, k.Revision)
}

// ages returns the ages of times, of which only the differences to each other
// and to now are of interest, and those up to most.
func (e *encoder) ages(times []time.Duration, most time.Duration) map[time.Duration]uint64 {
	slices.SortFunc(times, func(a, b time.Duration) int { return cmp.Compare(b, a) })
	ages := map[time.Duration]uint64{}
	before, age := e.s.node.clock, uint64(0)
	for _, t := range times {
		age += uint64(min(before-t, most) / time.Millisecond)
		ages[t], before = age, t
	}
	return ages
}

// heard returns since when the driver of the fence, which is another life, was
// silent; see Machine.orphaned.
func heard(m *Machine) time.Duration {
	heard := m.learned
	if p := m.peer(m.record.Driver); p != nil && p.Member.Boot == m.record.DriverBoot {
		heard = max(heard, p.moved)
	}
	return heard
}

func (e *encoder) encode() {
	s := e.s
	n := &s.node
	e.num(uint64(s.i), n.life)
	e.flags(n.dead, s.spent)
	var ages map[time.Duration]uint64
	if !n.dead {
		m := n.m
		follows := m.known && !m.record.Open && !m.driving()
		var times []time.Duration
		if follows {
			times = append(times, heard(m))
		}
		for k := range s.net {
			if o := &s.net[k]; s.asks(o) && kind(o.request) == 'w' && !s.late(o) {
				times = append(times, sent(o.request))
			}
		}
		ages = e.ages(times, m.cfg.wait(s.left.drain))
		e.age = func(o *message) uint64 {
			at := sent(o.request)
			w, answered := o.answer.(Wrote)
			r, _ := o.request.(Write)
			extends := max(n.lease, n.clock)-m.cfg.Lease < at && (answered && w.OK || !answered && r.Expect != stale)
			parts := s.left.drain > 0 && n.clock-at < m.cfg.Lease+e.s.left.drain
			foreign := answered && !w.OK && w.Own.Revision != 0 && w.Own.Member.Boot != m.cfg.Boot
			if s.left.plain || extends || parts || follows && !foreign && at > heard(m) {
				return ages[at]
			}
			return 1
		}
		e.machine(n, m)
		if follows {
			e.flags(m.birth.done && m.orphaned())
			e.num(ages[heard(m)])
		}
	}
	// The order of the messages has no effect, but for which of a kind is the oldest.
	type code struct {
		m message
		b []byte
	}
	var codes []code
	start := len(e.b)
	for _, m := range s.net {
		e.message(m)
		codes = append(codes, code{m, slices.Clone(e.b[start:])})
		e.b = e.b[:start]
	}
	slices.SortFunc(codes, func(a, b code) int {
		return cmp.Or(
			cmp.Compare(kind(a.m.request), kind(b.m.request)), cmp.Compare(a.m.life, b.m.life), cmp.Compare(a.m.to, b.m.to),
			cmp.Compare(sent(a.m.request), sent(b.m.request)), bytes.Compare(a.b, b.b))
	})
	for k := range codes {
		s.net[k] = codes[k].m
		if s.left.flying > 1 && k > 0 { // whether it is a copy of the one before
			e.flags(kind(s.net[k-1].request) == kind(s.net[k].request) && s.net[k-1].life == s.net[k].life &&
				sent(s.net[k-1].request) == sent(s.net[k].request))
		}
		e.b = append(e.b, codes[k].b...)
	}
}

func (e *encoder) machine(n *node, m *Machine) {
	cfg := &m.cfg
	e.flags(n.live, m.live)
	if n.live || m.live {
		e.num(n.epoch, m.epoch, uint64(m.ending))
		e.flags(n.ending == m.order && n.ending != 0, n.ending != 0)
		e.b = append(append(e.b, n.host...), '.')
	}
	if e.s.left.drain > 0 {
		e.past(m.lastOpen, cfg.Lease+e.s.left.drain)
	}
	e.num(n.running)
	e.due(n.lease)
	e.due(m.lease)

	e.flags(m.known, m.wentBack, m.birth.done, m.leaving, m.left)
	e.record(&m.record)
	if m.broken == drainLate {
		e.past(m.learned, cfg.Lease+e.s.left.drain)
	}
	for k := range m.peers {
		p := &m.peers[k]
		if !e.s.cares(&p.Entry, &m.record, m.birth.done) {
			continue
		}
		e.entry(&p.Entry, false, false)
		if m.broken == cached {
			e.past(p.moved, cfg.wait(e.s.left.drain))
		}
	}
	e.b = append(e.b, '.')
	e.rev(e.s.i, m.birth.rival)
	if m.birth.rival != 0 {
		e.past(m.birth.since, 2*cfg.Heartbeat)
	}
	e.flags(m.birth.until == forever)
	if n.clock < m.birth.until {
		e.num(m.birth.fenced)
		if m.birth.until != forever {
			e.due(m.birth.until)
		}
	}
	e.ownRev(m.own)
	mine := Member{Boot: cfg.Boot, Fenced: m.fenced, Leaving: m.leaving && !m.live}
	if n.clock < m.birth.until {
		mine.Fenced = min(m.fenced, m.birth.fenced)
	}
	switch w := m.wrote; {
	case w.Boot == mine.Boot && w.Fenced == mine.Fenced && w.Leaving == mine.Leaving:
		e.num(0)
	case w.Boot == 0, w.Fenced < mine.Fenced, w.Fenced == mine.Fenced && mine.Leaving:
		e.num(1) // and never will be what is to be written
	default:
		e.num(2)
		e.member(&w)
	}
	e.past(m.writing, cfg.Request)
	e.past(m.beaten, cfg.Heartbeat)
	if m.share < 2 {
		e.past(m.reading, 2*cfg.Heartbeat)
	}
	e.num(m.fenced)
	if m.driving() || m.run == running {
		e.num(uint64(m.run))
	}
	e.b = append(append(e.b, m.want.Host...), '.')
	if m.want.Host != "" {
		e.num(uint64(m.want.Drain / time.Millisecond))
	}
	if m.driving() {
		e.past(m.since, cfg.wait(e.s.left.drain))
	}
	e.past(m.swap, cfg.Request)
	if e.s.left.grants {
		e.due(m.nextAsk)
	}
}

func (e *encoder) message(m message) {
	s := e.s
	alive := s.asks(&m)
	at := sent(m.request)
	e.b = append(e.b, kind(m.request))
	e.num(m.life)
	e.flags(m.answer != nil)
	late := alive && s.late(&m)
	if alive {
		n := s.node.m
		switch kind(m.request) {
		case 'w':
			e.flags(late, at == n.writing && s.waits(at, n.cfg.Request))
			if !late {
				e.num(e.age(&m))
			}
		case 's':
			e.flags(at == n.swap && s.waits(at, n.cfg.Request))
		case 'a':
			e.past(at, n.cfg.Lease)
		}
	}
	switch a := m.answer.(type) {
	case Wrote:
		e.record(&a.Record)
		e.flags(s.gone(at, &a.Record))
		if late {
			break
		}
		e.flags(a.OK)
		e.flags(a.Own.Name != "")
		if a.Own.Name != "" {
			e.entry(&a.Own, true, true)
		}
		n := s.node.m
		r := &n.record
		if a.Record.Version >= r.Version {
			r = &a.Record
		}
		done := a.OK || a.Own.Revision == 0 && n.birth.done || a.Own.Member.Boot == n.cfg.Boot
		for k := range a.Members {
			own := !a.Record.Open && a.Record.DriverBoot == n.cfg.Boot && a.Record.Version >= n.record.Version
			if !own && !s.cares(&a.Members[k], r, done) {
				continue
			}
			e.entry(&a.Members[k], false, own)
		}
		e.b = append(e.b, '.')
	case Swapped:
		e.record(&a.Record)
		e.flags(s.gone(at, &a.Record))
	case nil:
		switch r := m.request.(type) {
		case Write:
			e.ownRev(r.Expect)
			e.flags(alive && r.Members)
			if r.Expect != stale {
				e.member(&r.Own)
			}
		case Swap:
			e.num(uint64(r.Expect))
			if r.Expect >= 0 {
				s.oldestSwap = min(s.oldestSwap, uint64(r.Expect))
				e.record(&r.Record)
			}
		}
	}
}

func (s *side) String() string { return fmt.Sprintf("%s %x", name(s.i), s.code) }
