package cluster

import (
	"flag"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"testing"
	"time"
)

var states = flag.Int("explore", 600_000, "explore what has fewer `states`")

// proven is a number of states from which on tests take as long as they like.
const proven = 10_000_000

// limits bound an exploration.
type limits struct {
	epochs  uint64 // the highest
	lives   uint64 // of each member
	wants   int    // changes that members request
	wanters int    // the members that do, as bits
	twice   int    // messages that arrive twice
	vanish  int    // keys that are deleted
	leaves  int    // members that end in order
	drain   time.Duration
	grants  bool // members ask each other
	flying  int  // requests of one kind and life that are on their way at once
	share   int  // as in world
	units   int  // of time in a lease
	plain   bool // without what makes the exploration smaller
}

// common is what is in neither side of a state. One that has a number is never changed.
type common struct {
	world // without nodes

	wants, twice, vanish, leaves int // as in limits, what is left

	low  uint64 // hosts has no epochs before this one
	more uint32 // the number of the same with one more of twice; zero if that is not known yet
}

// state is a state of the exploration. Its two sides and what is common have numbers, and
// different ones are different for the rest of the exploration: so a state is
// one number of 64 bits, and is not only known by a hash.
type state struct {
	sides  [2]uint32
	common uint32
}

// The bits of the parts of a state. Nothing was ever near to their number.
const (
	sideBits   = 22
	commonBits = 20
)

func (s state) pack() uint64 {
	return uint64(s.sides[0])<<(sideBits+commonBits) | uint64(s.sides[1])<<commonBits | uint64(s.common)
}

func unpack(p uint64) state {
	return state{[2]uint32{uint32(p >> (sideBits + commonBits)), uint32(p >> commonBits & (1<<sideBits - 1))}, uint32(p & (1<<commonBits - 1))}
}

// explorer visits states. What happens at one side, and what a request does to the store,
// is computed once for each side, and once for each side and what is common.
type explorer struct {
	fault mutation
	left  limits

	sides     [2][]*side // by number; the first is none
	numbers   [2]map[string]uint32
	commons   []*common
	ofCommons map[string]uint32
	renames   map[renaming]uint32
	requests  map[request]outcome
	movements map[movement]uint32
	again     func(a, b *side) // gets a side and another with the same code; nil for nobody
	progress  func()           // is called after each depth; nil for nothing
	seen      set
	next      []uint64 // states that were not visited yet
	f         found
	doing     origin            // of the state that is visited next
	origins   map[uint64]origin // by state, if that is wanted
}

// origin is how a state was reached first.
type origin struct {
	from   uint64
	what   string
	member int
	arg    int
}

// renaming is what the result of renaming revisions depends on.
type renaming struct {
	number  uint32
	member  int8 // or -1 for what is common
	cur     [2]int8
	used    [2]uint64
	version uint8
	spent   bool
}

// request is the arrival of request k of a side.
type request struct {
	side, common uint32
	member, k    int8
	again        int8 // it stays on its way
}

// outcome is what a request has changed. Common is zero if the exploration does not go
// on there.
type outcome struct {
	side, common uint32
	violation    string
	opens        bool // the record
}

// movement is the first byte of an epoch that is moved to a host, or with host 0 that
// no byte of an earlier epoch can be moved any more.
type movement struct {
	common uint32
	epoch  uint8
	host   byte
}

// found is the outcome of an exploration.
type found struct {
	states, transitions, depth int
	complete                   bool // there are no more states
	violation                  string
	trail                      string // the shortest way to the violation
	epoch                      uint64 // the highest of which a byte was moved
}

// set is a set of packed states. Zero is none.
type set struct {
	table []uint64
	n     int
}

// add reports whether v is new.
func (s *set) add(v uint64) bool {
	if s.n*4 >= len(s.table)*3 {
		old := s.table
		s.table = make([]uint64, max(1<<16, 2*len(old)))
		for _, v := range old {
			if v != 0 {
				s.insert(v)
			}
		}
	}
	if !s.insert(v) {
		return false
	}
	s.n++
	return true
}

// has reports whether v is in the set.
func (s *set) has(v uint64) bool { return s.table[s.slot(v)] == v }

// insert adds v without a look at the size, and reports whether it is new.
func (s *set) insert(v uint64) bool {
	at := s.slot(v)
	if s.table[at] == v {
		return false
	}
	s.table[at] = v
	return true
}

// slot returns where v is, or where it would have to be.
func (s *set) slot(v uint64) uint64 {
	h := v * 0x9e3779b97f4a7c15
	h ^= h >> 32
	h *= 0xd6e8feb86659fd93
	last := uint64(len(s.table) - 1)
	for at := h >> 17 & last; ; at = (at + 1) & last {
		if s.table[at] == v || s.table[at] == 0 {
			return at
		}
	}
}

func newExplorer(fault mutation, left limits) *explorer {
	x := &explorer{
		fault: fault, left: left, commons: []*common{nil}, ofCommons: map[string]uint32{},
		renames: map[renaming]uint32{}, requests: map[request]outcome{}, movements: map[movement]uint32{},
	}
	for i := range x.sides {
		x.sides[i], x.numbers[i] = []*side{nil}, map[string]uint32{}
	}
	return x
}

// side returns the number of s.
func (x *explorer) side(s *side) uint32 {
	s.tidy()
	n, known := x.numbers[s.i][string(s.code)]
	if known {
		if x.again != nil {
			x.again(x.sides[s.i][n], s)
		}
		return n
	}
	n = uint32(len(x.sides[s.i]))
	if n >= 1<<sideBits {
		panic("too many sides")
	}
	x.numbers[s.i][string(s.code)] = n
	x.sides[s.i] = append(x.sides[s.i], s)
	return n
}

// common returns the number of c.
func (x *explorer) common(c *common) uint32 {
	e := encoder{}
	e.record(&c.record)
	for k := range c.keys {
		e.member(&c.keys[k].Member)
		e.num(uint64(c.keys[k].Revision))
	}
	e.num(c.moved, c.ran, uint64(c.wants), uint64(c.twice), uint64(c.vanish), uint64(c.leaves))
	for epoch := range x.left.epochs {
		e.b = append(append(e.b, c.hosts[epoch+1]...), '.')
	}
	n, known := x.ofCommons[string(e.b)]
	if !known {
		c.more = 0
		n = uint32(len(x.commons))
		if n >= 1<<commonBits {
			panic("too many commons")
		}
		x.ofCommons[string(e.b)] = n
		x.commons = append(x.commons, c)
	}
	return n
}

// world returns s as a world, whose nodes are not to be changed.
func (x *explorer) world(s state) *world {
	c := x.commons[s.common]
	w := c.world
	w.nodes = []node{x.sides[0][s.sides[0]].node, x.sides[1][s.sides[1]].node}
	w.keys = slices.Clone(w.keys)
	return &w
}

// settle has s move bytes, and then makes equal what differs without an effect. It returns
// the state that results, and the violation.
func (x *explorer) settle(s state) (state, string) {
	sides := [2]*side{x.sides[0][s.sides[0]], x.sides[1][s.sides[1]]}
	for i, d := range sides {
		if !d.moves {
			continue
		}
		epoch, host := d.node.epoch, d.node.host
		x.f.epoch = max(x.f.epoch, epoch)
		c := x.commons[s.common]
		if was, used := c.hosts[epoch]; epoch == c.moved && used && host == was {
			continue
		}
		n := *c
		if n.moveOne(i, epoch, host); n.violation != "" {
			return s, n.violation
		}
		s.common = x.move(movement{s.common, uint8(epoch), host[0]}, &n)
	}
	// What was moved of epochs that cannot come back is of no interest.
	c := x.commons[s.common]
	if low := min(c.record.Epoch, sides[0].epoch, sides[1].epoch); low > c.low {
		n := *c
		n.low, n.moved = low, max(n.moved, low)
		n.hosts = maps.Clone(n.hosts)
		maps.DeleteFunc(n.hosts, func(e uint64, _ string) bool { return e < low })
		s.common = x.move(movement{s.common, uint8(low), 0}, &n)
	}
	return x.rename(s), ""
}

// move returns the number of c, which m leads to.
func (x *explorer) move(m movement, c *common) uint32 {
	to, known := x.movements[m]
	if !known {
		to = x.common(c)
		x.movements[m] = to
	}
	return to
}

// rename renames the revisions of s.
func (x *explorer) rename(s state) state {
	sides := [2]*side{x.sides[0][s.sides[0]], x.sides[1][s.sides[1]]}
	c := x.commons[s.common]
	r := renaming{version: uint8(c.record.Version), spent: c.wants == 0}
	same := true
	for j := range r.used {
		cur := uint64(1) << c.keys[j].Revision
		r.cur[j] = int8(c.keys[j].Revision)
		r.used[j] = cur&^1 | sides[0].seen[j] | sides[1].seen[j]
		same = same && r.used[j]+2 == 1<<bits.Len64(r.used[j]|1) && // they are numbered through
			sides[j].own&^cur == 0 && sides[j].oldestSwap >= c.record.Version && sides[j].spent == r.spent
	}
	if same {
		return s
	}
	cur := [2]int64{c.keys[0].Revision, c.keys[1].Revision}
	for i := range sides {
		r.member, r.number = int8(i), s.sides[i]
		to, known := x.renames[r]
		if !known {
			if len(x.renames) > 1<<22 {
				clear(x.renames)
			}
			to = x.side(sides[i].rename(cur, r.used, c.record.Version, r.spent))
			x.renames[r] = to
		}
		s.sides[i] = to
	}
	r.member, r.number = -1, s.common
	to, known := x.renames[r]
	if !known {
		n := *c
		n.keys = slices.Clone(c.keys)
		for j := range n.keys {
			if cur[j] != 0 {
				n.keys[j].Revision = rank(r.used[j], cur[j])
			}
		}
		to = x.common(&n)
		x.renames[r] = to
	}
	s.common = to
	return x.rename(s) // what was left out may have been the last to have a revision
}

// steps returns what can happen at a side.
func (x *explorer) steps(i int, number uint32) []step {
	s := x.sides[i][number]
	if s.steps == nil {
		s.steps = []step{}
		s.each(func(st step, n *side) {
			st.side = x.side(n)
			if st.side != number || st.runs != 0 || st.violation != "" {
				s.steps = append(s.steps, st)
			}
		})
	}
	return s.steps
}

func (x *explorer) aged(i int, number uint32) uint32 {
	s := x.sides[i][number]
	if s.aged == 0 {
		n := s.copy()
		n.node.clock += tick(i)
		s.aged = x.side(n)
	}
	return s.aged
}

// spend returns c without one of u; false if there is none.
func (x *explorer) spend(number uint32, u use) (uint32, bool) {
	if u == nothing {
		return number, true
	}
	n := *x.commons[number]
	left := map[use]*int{oneWant: &n.wants, oneTwice: &n.twice, oneLeave: &n.leaves, oneVanish: &n.vanish}[u]
	*left--
	if *left < 0 {
		return 0, false
	}
	return x.common(&n), true
}

// anonymous returns m without what has no effect once the record is open: which life has
// opened it, and how long connections could finish before.
func anonymous(m message) message {
	if r, swap := m.request.(Swap); swap && r.Record.Open {
		r.Record.Boot, r.Record.Drain = 1000, 0
		m.request = r
	}
	return m
}

// apply carries out request k of member i, which with again 1 stays on its way too.
func (x *explorer) apply(s state, i, k, again int) outcome {
	by := request{s.sides[i], s.common, int8(i), int8(k), int8(again)}
	to, known := x.requests[by]
	if known {
		return to
	}
	n := x.sides[i][s.sides[i]].copy()
	m := anonymous(n.net[k])
	if again == 0 {
		n.net = slices.Delete(n.net, k, k+1)
	}
	w := x.world(s)
	version := w.record.Version
	w.rev = newest - 1
	if m.answer = w.apply(m); m.answer != nil {
		n.net = append(n.net, m)
	}
	to = outcome{side: x.side(n), opens: w.record.Open && w.record.Version != version}
	if !to.opens {
		to.violation = w.violation // otherwise it depends on the other side
	}
	if w.record.Epoch <= x.left.epochs {
		c := *x.commons[s.common]
		c.record, c.keys = w.record, w.keys
		to.common = x.common(&c)
	}
	if len(x.requests) > 1<<22 {
		clear(x.requests)
	}
	x.requests[by] = to
	return to
}

// visit takes note of a state that can follow, by what x is doing.
func (x *explorer) visit(s state, violation string) {
	x.f.transitions++
	if violation == "" {
		s, violation = x.settle(s)
	}
	if violation != "" {
		x.f.violation, x.f.trail = violation, x.trail()
		return
	}
	if x.dominated(s) {
		return
	}
	if p := s.pack(); x.seen.add(p) {
		x.next = append(x.next, p)
		if x.origins != nil {
			x.origins[p] = x.doing
		}
	}
}

// dominated reports whether the same state was visited with one message more that may
// arrive twice: all that can follow s can follow that.
func (x *explorer) dominated(s state) bool {
	c := x.commons[s.common]
	if c.twice == x.left.twice || x.left.plain {
		return false
	}
	if c.more == 0 {
		n := *c
		n.twice++
		c.more = x.common(&n)
	}
	return x.seen.has(state{s.sides, c.more}.pack())
}

// trail returns the way to what x is doing, if that was written down.
func (x *explorer) trail() string {
	var steps []string
	for o := x.doing; x.origins != nil && o.what != ""; o = x.origins[o.from] {
		steps = append(steps, fmt.Sprintf("%s: %s %d", name(o.member), o.what, o.arg))
	}
	slices.Reverse(steps)
	return strings.Join(steps, "\n")
}

// expand visits all states that can follow s.
func (x *explorer) expand(s state) {
	// Time passes. Where the clocks stand while a machine sleeps, each may sleep.
	sleepers := 1
	if x.fault == monotonic {
		sleepers = 4
	}
	for asleep := range sleepers {
		n := s
		for i := range n.sides {
			if asleep>>i&1 == 0 {
				n.sides[i] = x.aged(i, s.sides[i])
			}
		}
		x.doing = origin{s.pack(), "time passes, asleep are", 0, asleep}
		x.visit(n, "")
	}
	for i := range s.sides {
		x.local(s, i)
		x.remote(s, i)
		if c := x.commons[s.common]; c.vanish > 0 && c.keys[i].Revision != 0 {
			v := *c
			v.vanish--
			v.keys = slices.Clone(v.keys)
			v.keys[i] = Entry{}
			x.doing = origin{s.pack(), "its key vanishes", i, 0}
			x.visit(state{s.sides, x.common(&v)}, "")
		}
	}
}

// local visits the states that follow s by a step of member i.
func (x *explorer) local(s state, i int) {
	for _, st := range x.steps(i, s.sides[i]) {
		n := s
		var may bool
		if n.common, may = x.spend(s.common, st.use); !may {
			continue
		}
		n.sides[i] = st.side
		violation := st.violation
		if st.runs != 0 && violation == "" {
			w := x.world(n)
			w.nodes[i].running = 0
			w.begin(i, st.runs)
			violation = w.violation
			c := *x.commons[n.common]
			c.ran = w.ran
			n.common = x.common(&c)
		}
		x.doing = origin{s.pack(), st.what, i, st.arg}
		x.visit(n, violation)
	}
}

// remote visits the states that follow s when a request of member i arrives at the
// store or at the other member.
func (x *explorer) remote(s state, i int) {
	net := x.sides[i][s.sides[i]].net
	for k := range net {
		m := &net[k]
		if m.answer != nil {
			continue
		}
		if ask, is := m.request.(Ask); is && !x.sides[1-i][s.sides[1-i]].grants(i, ask.Life, ask.Version, ask.Boot) {
			continue // as if it was lost
		}
		for again, u := range []use{nothing, oneTwice} {
			n := s
			var may bool
			if n.common, may = x.spend(s.common, u); !may {
				continue
			}
			to := x.apply(n, i, k, again)
			violation := to.violation
			if to.opens {
				w := x.world(n)
				w.apply(anonymous(*m))
				violation = w.violation
			}
			if to.common == 0 && violation == "" {
				continue
			}
			n.sides[i], n.common = to.side, to.common
			x.doing = origin{s.pack(), "request arrives: " + string(kind(m.request)), i, again}
			x.visit(n, violation)
		}
	}
}

// settled returns a state in which all members serve the first epoch.
func (x *explorer) settled() state {
	w := newWorld(2, x.fault, nil)
	w.share = x.left.share
	sides := [2]*side{}
	for i := range sides {
		s := &side{i: i, fault: x.fault, left: &x.left}
		s.node.dead = true
		s.within(func(w *world) { w.bear(i, exploreConfig(x.left.units)) })
		sides[i] = s
	}
	for again := true; again; {
		again = false
		for _, s := range sides {
			for len(s.net) > 0 {
				m := s.net[0]
				s.net = s.net[1:]
				if m.answer = w.apply(m); m.answer != nil {
					s.within(func(w *world) { w.deliver(m) })
				}
				again = true
			}
		}
	}
	c := &common{world: *w, wants: x.left.wants, twice: x.left.twice, vanish: x.left.vanish, leaves: x.left.leaves}
	s := state{[2]uint32{x.side(sides[0]), x.side(sides[1])}, x.common(c)}
	s, _ = x.settle(s)
	return s
}

// explore visits every state that can be reached within left, or the first most.
// Breadth first it finds a violation by the shortest way.
func explore(fault mutation, left limits, most int) found {
	return newExplorer(fault, left).run(most)
}

func (x *explorer) run(most int) found {
	first := x.settled()
	x.seen.add(first.pack())
	x.next = append(x.next, first.pack())
	f := &x.f
	var depth []uint64
	for len(x.next) > 0 && f.violation == "" && x.seen.n < most {
		depth, x.next = x.next, depth[:0]
		f.depth++
		for _, p := range depth {
			if x.expand(unpack(p)); f.violation != "" || x.seen.n >= most {
				break
			}
		}
		if x.progress != nil {
			x.progress()
		}
	}
	f.states, f.complete = x.seen.n, len(x.next) == 0
	return *f
}

func (f found) String() string {
	end := "not complete"
	if f.complete {
		end = "complete"
	}
	return fmt.Sprintf("%d states, %d transitions, greatest depth %d, %s, up to epoch %d", f.states, f.transitions, f.depth, end, f.epoch)
}

// explorations visit every state that can be reached within their limits. Each has as many
// states as it says: another number is another protocol, or another exploration. Those with
// zero were not brought to an end yet, and are only begun where time does not matter.
var explorations = []struct {
	name   string
	states int
	left   limits
}{
	{"a change by the fast", 517_055, limits{epochs: 2, lives: 1, wants: 1, wanters: 2, flying: 1, units: 1}},
	{"a change", 1_233_491, limits{epochs: 2, lives: 1, wants: 1, wanters: 3, flying: 1, units: 1}},
	{"finer time", 4_220_298, limits{epochs: 2, lives: 1, wants: 1, wanters: 3, flying: 1, units: 2}},
	{"keys are read seldom", 2_156_790, limits{epochs: 2, lives: 1, wants: 1, wanters: 3, flying: 1, units: 1, share: 1}},
	{"members ask each other", 2_603_411, limits{epochs: 2, lives: 1, wants: 1, wanters: 3, flying: 1, units: 1, grants: true}},
	{"a member leaves", 6_732_268, limits{epochs: 2, lives: 1, wants: 1, wanters: 3, flying: 1, units: 1, leaves: 1}},
	{"connections may finish", 7_244_639, limits{epochs: 2, lives: 1, wants: 1, wanters: 3, flying: 1, units: 1, drain: unit}},
	{"a message arrives twice", 7_351_106, limits{epochs: 2, lives: 1, wants: 1, wanters: 3, flying: 1, units: 1, twice: 1}},
	{"a key vanishes", 9_210_364, limits{epochs: 2, lives: 1, wants: 1, wanters: 3, flying: 1, units: 1, vanish: 1}},
	{"three epochs", 5_712_297, limits{epochs: 3, lives: 1, wants: 1, wanters: 3, flying: 1, units: 1}},
	{"two changes", 25_902_237, limits{epochs: 3, lives: 1, wants: 2, wanters: 3, flying: 1, units: 1}},
	{"three epochs, a message arrives twice", 0, limits{epochs: 3, lives: 1, wants: 1, wanters: 3, flying: 1, units: 1, twice: 1}},
	{"two lives", 48_094_717, limits{epochs: 2, lives: 2, wants: 1, wanters: 3, flying: 1, units: 1}},
	{"three epochs, two lives, by the fast", 153_556_842, limits{epochs: 3, lives: 2, wants: 1, wanters: 2, flying: 1, units: 1}},
	{"three epochs, two lives, by the slow", 150_987_554, limits{epochs: 3, lives: 2, wants: 1, wanters: 1, flying: 1, units: 1}},
}

// The protocol holds in every order of what can happen to two members, with
// clocks that are wrong by as much as is allowed, in opposite directions.
func TestExplore(t *testing.T) {
	for _, tt := range explorations {
		t.Run(strings.ReplaceAll(tt.name, " ", "-"), func(t *testing.T) {
			if tt.states >= *states || tt.states == 0 && *states < proven {
				t.Skipf("skipped: it has %d states or, with 0, nobody knows how many; make prove explores them all", tt.states)
			}
			x := newExplorer(unbroken, tt.left)
			start := time.Now()
			x.progress = func() {
				if testing.Verbose() && x.f.depth%5 == 0 {
					fmt.Printf("depth %d: %d states, %d to do, %d transitions, %v\n",
						x.f.depth, x.seen.n, len(x.next), x.f.transitions, time.Since(start).Round(time.Second))
				}
			}
			f := x.run(*states)
			t.Log(f)
			if f.violation != "" {
				x = newExplorer(unbroken, tt.left)
				x.origins = map[uint64]origin{}
				t.Fatalf("%s\n%s", f.violation, x.run(*states).trail)
			}
			if !f.complete || f.states != tt.states && tt.states > 0 {
				t.Errorf("it has another number of states than %d", tt.states)
			}
			if f.epoch != tt.left.epochs {
				t.Error("not every epoch was opened")
			}
		})
	}
}

type mutant struct {
	name string
	left limits
}

// mutants are the explorations that catch a broken rule. The member with the fast
// clock drives: it is the one that waits too short.
//
// Majority is missing: of two members the half of the others is all of them. The
// simulation of three catches it.
var mutants = []mutant{
	{"vanish", limits{vanish: 1}},
	{"monotonic", limits{}},
	{"timeronly", limits{}},
	{"extend", limits{}},
	{"receipt", limits{}},
	{"parting", limits{leaves: 1}},
	{"cached", limits{grants: true}},
	{"drainlate", limits{drain: unit}},
}

// An exploration that does not notice a broken rule is worth nothing.
func TestExploreCatchesMutants(t *testing.T) {
	for _, tt := range mutants {
		t.Run(tt.name, func(t *testing.T) {
			left := tt.left
			left.epochs, left.lives, left.wants, left.wanters, left.flying = 2, 1, 1, 2, 1
			for units := range 1 + min(*states/proven, 1) {
				left.units = 1 + units
				f := explore(mutations[tt.name], left, 1_000_000)
				t.Log(f, f.violation)
				if f.violation == "" {
					t.Errorf("not noticed with a lease of %d units", left.units)
				}
			}
		})
	}
}
