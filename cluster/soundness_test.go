package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// futures returns all that can happen to s next, with the codes of the sides that
// follow, in a world that rng makes up.
func (x *explorer) futures(s *side, rng *rand.Rand) []string {
	var all []string
	add := func(what any, n *side) {
		for k := range n.net {
			if m := n.net[k]; n.vain(&m) && !n.inVain(k) {
				all = append(all, fmt.Sprintf("%+v is not in vain", m))
			}
		}
		n.tidy()
		all = append(all, fmt.Sprintf("%v %x", what, n.code))
	}
	s.each(func(st step, n *side) { add(st, n) })
	n := s.copy()
	n.node.clock += tick(s.i)
	add("time", n)
	for from := range 2 {
		if !s.left.grants {
			break // nobody asks
		}
		for _, boot := range []uint64{10, 11, 20, 21, 1000} {
			for version := range uint64(6) {
				for life := range s.left.lives {
					all = append(all, fmt.Sprint(s.grants(from, (life+1)*10+uint64(from), version, boot)))
				}
			}
		}
	}
	for k := range s.net {
		c := x.commons[1+rng.IntN(len(x.commons)-1)]
		if s.net[k].answer != nil || !s.node.dead && !follows(&s.node.m.record, &c.record) {
			continue // a store does not go back
		}
		n := s.copy()
		w := c.world
		w.keys, w.nodes = slices.Clone(w.keys), make([]node, 2)
		for j := range w.keys {
			if r := rng.Int64N(3); r > 0 && w.keys[j].Revision > 0 {
				w.keys[j].Revision = r
			}
		}
		w.rev = newest - 1
		m := anonymous(n.net[k])
		n.net = slices.Delete(n.net, k, k+1)
		if m.answer = w.apply(m); m.answer != nil {
			n.net = append(n.net, m)
		}
		add(fmt.Sprint("arrives ", k, w.record, w.keys[0].Revision, w.keys[1].Revision), n)
	}
	var cur [2]int64
	var used [2]uint64
	for j := range cur {
		cur[j] = rng.Int64N(4)
		used[j] = s.seen[j] | 1<<cur[j]&^1
	}
	used[s.i] |= s.own &^ 1
	add("renamed", s.rename(cur, used, rng.Uint64N(6), true))
	return all
}

// follows reports whether a store that had the record was may have the record r later.
func follows(was, r *Record) bool {
	return r.Version == was.Version && r.id() == was.id() ||
		r.Version > was.Version && (r.Epoch > was.Epoch || r.Epoch == was.Epoch && r.DriverBoot == was.DriverBoot)
}

// inVain reports whether message k of s, if it arrives, has the effect of no message.
func (s *side) inVain(k int) bool {
	m := s.net[k]
	if !s.asks(&m) || m.answer == nil {
		return !s.asks(&m) || kind(m.request) == 'a' // the answer will be in vain
	}
	with, without := s.copy(), s.copy()
	with.net = slices.Delete(with.net, k, k+1)
	without.net = slices.Clone(with.net)
	with.within(func(w *world) { w.deliver(m) })
	without.within(func(w *world) { w.step(s.i, Tick{}) })
	with.tidy()
	without.tidy()
	return string(with.code) == string(without.code)
}

// What the code of a side leaves out has no effect: wherever a side has the code of one
// that was there before, the same can happen to both, and leads to sides that again
// have the same codes.
func TestCodesOfSides(t *testing.T) {
	for _, left := range []limits{
		{epochs: 2, lives: 1, wants: 1, wanters: 2, flying: 1, units: 1},
		{epochs: 3, lives: 2, wants: 2, wanters: 3, flying: 1, units: 1, twice: 1},
		{epochs: 3, lives: 2, wants: 2, wanters: 3, flying: 2, units: 2, twice: 1},
		{epochs: 3, lives: 2, wants: 2, wanters: 1, flying: 1, units: 1, leaves: 1, vanish: 1},
		{epochs: 3, lives: 2, wants: 2, wanters: 3, flying: 1, units: 1, drain: unit, grants: true},
		{epochs: 3, lives: 2, wants: 2, wanters: 3, flying: 1, units: 2, share: 1},
	} {
		for _, fault := range []mutation{unbroken, receipt, cached, drainLate, extend} {
			x := newExplorer(fault, left)
			same, rng := 0, rand.New(rand.NewPCG(1, 1))
			x.again = func(a, b *side) {
				if t.Failed() {
					return
				}
				same++
				seed := rng.Uint64()
				as := x.futures(a, rand.New(rand.NewPCG(seed, 1)))
				bs := x.futures(b, rand.New(rand.NewPCG(seed, 1)))
				for k := range max(len(as), len(bs)) {
					if k >= len(as) || k >= len(bs) || as[k] != bs[k] || strings.HasSuffix(as[k], "is not in vain") {
						t.Errorf("%+v, broken %d: these have one code\n%+v %+v\n%+v %+v\nand lead to\n%s\n%s", left, fault, *a.node.m, a.net, *b.node.m, b.net, as[min(k, len(as)-1)], bs[min(k, len(bs)-1)])
						break
					}
				}
			}
			x.run(min(*states/400, 20_000))
			if same == 0 {
				t.Errorf("only %d sides had the code of another", same)
			}
		}
	}
}

// An exploration that drops no message before its time, kills members and lets them be
// born again at different moments, and writes down all that it has of a side, finds
// the same.
func TestPlainExploration(t *testing.T) {
	for _, more := range []limits{{lives: 1}, {lives: 2}, {lives: 1, twice: 1}} {
		for _, tt := range append(mutants, mutant{"unbroken", limits{}}) {
			if *states < proven && (more != (limits{lives: 1}) || tt.name == "unbroken") || tt.name == "unbroken" && more.lives+uint64(more.twice) > 1 {
				continue
			}
			left := tt.left
			left.epochs, left.wants, left.wanters, left.flying, left.units = 2, 1, 2, 1, 1
			left.lives, left.twice = more.lives, more.twice
			small := explore(mutations[tt.name], left, proven)
			left.plain = true
			plain := explore(mutations[tt.name], left, proven)
			t.Logf("%s:\n%v %s\n%v %s", tt.name, small, small.violation, plain, plain.violation)
			if small.violation != plain.violation || small.complete != plain.complete {
				t.Errorf("%s with %d lives and %d messages twice: they differ", tt.name, more.lives, more.twice)
			}
		}
	}
}
