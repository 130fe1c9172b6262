package cluster

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// world is a store and members with real machines, for the exploration and the
// simulation alike. It carries out the actions of the machines, and notices when
// an invariant of the protocol is broken.
type world struct {
	record Record  // its revision in the store is its version
	keys   []Entry // by member; with the revision 0 there is no key
	rev    int64   // the last revision of a key

	nodes []node
	fault mutation // also of the data path and the clocks
	share int      // that of the machines, to have few members read as seldom as many do; zero for keysABeat

	moved     uint64            // the highest epoch of which a byte was moved
	hosts     map[uint64]string // by epoch: the host to which bytes were moved; replaced, not changed
	ran       uint64            // the last epoch whose triggers were run
	violation string            // the first invariant that was broken

	// send takes a message that a machine sends.
	send func(*world, message)
}

// Mutations outside of the machine.
const (
	// timerOnly moves bytes without a look at the lease.
	timerOnly = parting + 1 + iota

	// monotonic gives the machines a clock that stands while they sleep.
	monotonic
)

// mutations are all, by name.
var mutations = map[string]mutation{
	"receipt": receipt, "cached": cached, "majority": majority, "timeronly": timerOnly,
	"monotonic": monotonic, "vanish": vanish, "extend": extend, "drainlate": drainLate, "parting": parting,
}

// node is one member, with its data path.
type node struct {
	m     *Machine
	life  uint64 // its boot; each life has the next number
	dead  bool
	clock time.Duration // its own
	stop  bool          // the process does not run

	lease   time.Duration // as published to the data path
	live    bool          // connections of epoch may live
	epoch   uint64
	host    string
	ending  uint64 // the order to end them; 0 for none
	drain   time.Duration
	running uint64 // the epoch whose triggers run; 0 for none

	armed, armedRun bool // the simulation has set when ending and running are complete
}

// message is a request of a machine on its way, or the answer to it.
type message struct {
	from, to int // to is a member for an Ask
	life     uint64
	request  Action
	answer   Event // nil for a request
}

func name(i int) string { return string(rune('m' + i)) }

// newWorld returns a world in which nobody was born yet, and whose record is open
// in epoch 1.
func newWorld(members int, fault mutation, send func(*world, message)) *world {
	w := &world{
		hosts: map[uint64]string{}, keys: make([]Entry, members), nodes: make([]node, members), fault: fault, send: send,
		record: Record{Version: 1, Boot: 1000, Epoch: 1, Open: true, Host: "a", Driver: "gone", Settings: "s"},
	}
	for i := range members {
		w.record.Roster = append(w.record.Roster, name(i))
	}
	return w
}

func (w *world) breaks(format string, args ...any) {
	if w.violation == "" {
		w.violation = fmt.Sprintf(format, args...)
	}
}

// bear starts the next life of member i.
func (w *world) bear(i int, cfg Config) {
	n := &w.nodes[i]
	*n = node{life: n.life + 1, clock: n.clock}
	cfg.Member, cfg.Boot, cfg.Roster, cfg.Settings = name(i), n.life*10+uint64(i), w.record.Roster, "s"
	m, err := New(cfg)
	if err != nil {
		panic(err)
	}
	if w.fault < timerOnly {
		m.broken = w.fault
	}
	if w.share > 0 {
		m.share = w.share
	}
	n.m = m
	w.step(i, Tick{})
}

// kill ends a life without any notice.
func (w *world) kill(i int) {
	n := &w.nodes[i]
	*n = node{life: n.life, clock: n.clock, dead: true}
}

// step passes an event to the machine of member i and carries out its actions.
func (w *world) step(i int, ev Event) {
	n := &w.nodes[i]
	m := n.m
	actions := m.Step(n.clock, ev)
	n.lease = m.Lease()
	if n.lease > n.clock+m.cfg.Lease && m.cfg.OnStoreLoss != Keep {
		w.breaks("E6: the lease of %s is longer than a lease", name(i))
	}
	if m.wentBack {
		w.breaks("%s believes that the store has gone back", name(i))
	}
	for _, a := range actions {
		w.act(i, a)
	}
	m.actions = nil
	w.move()
}

func (w *world) act(i int, a Action) {
	n := &w.nodes[i]
	switch a := a.(type) {
	case Write, Swap:
		w.send(w, message{from: i, to: -1, life: n.life, request: a})
	case Ask:
		for _, to := range a.To {
			w.send(w, message{from: i, to: slices.Index(w.record.Roster, to), life: n.life, request: a})
		}
	case Open:
		if n.live {
			w.breaks("%s opens while something lives", name(i))
		}
		n.live, n.epoch, n.host, n.ending = true, a.Epoch, a.Host, 0
	case EndOlder:
		n.ending, n.drain, n.armed = a.Order, a.Drain, false
	case Run:
		if n.dead {
			w.breaks("E5: %s runs the triggers of epoch %d after it has left", name(i), a.Epoch)
		}
		w.begin(i, a.Epoch)
		n.running, n.armedRun = a.Epoch, false
	case Stop:
		n.running = 0
	case Left:
		if n.live {
			w.breaks("%s leaves while something lives", name(i))
		}
		if n.running != 0 {
			w.breaks("E5: %s leaves while its triggers run", name(i))
		}
		w.kill(i)
	}
}

// begin checks that member i may begin the triggers of epoch e.
func (w *world) begin(i int, e uint64) {
	if e <= w.ran {
		w.breaks("E5: the triggers of epoch %d run after those of epoch %d", e, w.ran)
	}
	for j := range w.nodes { // one that does not run, or whose lease is over, has them killed when it wakes
		if o := &w.nodes[j]; o.running != 0 && !o.stop && o.clock < o.lease {
			w.breaks("E5: the triggers of epoch %d run at %s while %s runs those of epoch %d", e, name(i), name(j), o.running)
		}
	}
	w.ran = e
	w.barred(e)
}

// fenced completes the order to end connections.
func (w *world) fenced(i int) {
	n := &w.nodes[i]
	order := n.ending
	n.live, n.ending = false, 0
	w.step(i, Fenced{Order: order})
}

// apply carries out a request and returns the answer; nil for none.
func (w *world) apply(msg message) Event {
	switch r := msg.request.(type) {
	case Write:
		key := &w.keys[msg.from]
		ok := key.Revision == r.Expect
		if ok {
			w.rev++
			*key = Entry{Name: name(msg.from), Member: r.Own, Revision: w.rev}
		}
		a := Wrote{Sent: r.Sent, OK: ok, Own: *key, Record: w.record, Revision: int64(w.record.Version)}
		for _, k := range w.keys {
			if k.Revision != 0 && r.Members {
				a.Members = append(a.Members, k)
			}
		}
		return a
	case Swap:
		if int64(w.record.Version) == r.Expect {
			w.swap(&r.Record)
		}
		return Swapped{Sent: r.Sent, Record: w.record, Revision: int64(w.record.Version)}
	case Ask:
		n := &w.nodes[msg.to]
		if n.m != nil && !n.dead && !n.stop && n.m.Grants(name(msg.from), r.Life, r.Version, r.Boot) {
			return Granted{From: name(msg.to), Sent: r.Sent}
		}
	}
	return nil
}

// swap replaces the record, and checks that it may be replaced like that.
func (w *world) swap(next *Record) {
	was := &w.record
	switch {
	case next.Version != was.Version+1, next.Epoch != was.Epoch && next.Epoch != was.Epoch+1,
		next.Epoch > was.Epoch && next.Open, next.Epoch == was.Epoch && next.Host != was.Host,
		next.Epoch == was.Epoch && was.Open && !next.Open:
		w.breaks("E3: record %+v replaces %+v", *next, *was)
	}
	w.record = *next
	if next.Open {
		w.barred(next.Epoch)
	}
}

// barred checks that nothing can move a byte of an epoch before e any more.
func (w *world) barred(e uint64) {
	for i := range w.nodes {
		if n := &w.nodes[i]; n.live && n.epoch < e && n.clock < n.lease {
			w.breaks("E4: epoch %d passes the barrier while %s has a lease for epoch %d", e, name(i), n.epoch)
		}
	}
}

// deliver passes an answer to the life that has asked.
func (w *world) deliver(msg message) {
	if n := &w.nodes[msg.from]; !n.dead && n.life == msg.life {
		w.step(msg.from, msg.answer)
	}
}

// move moves a byte over every connection that can move one.
func (w *world) move() {
	for i := range w.nodes {
		if n := &w.nodes[i]; n.moves(w.fault) {
			w.moveOne(i, n.epoch, n.host)
		}
	}
}

// moves reports whether n has a connection that can move a byte.
func (n *node) moves(fault mutation) bool {
	var lease Lease
	lease.Set(n.lease)
	return n.live && !n.stop && (lease.Holds(n.clock) || fault == timerOnly)
}

// moveOne moves a byte over a connection of epoch from member i to host.
func (w *world) moveOne(i int, epoch uint64, host string) {
	if epoch < w.moved {
		w.breaks("E1: %s moves a byte of epoch %d after one of epoch %d", name(i), epoch, w.moved)
	}
	w.moved = max(w.moved, epoch)
	if was, used := w.hosts[epoch]; !used {
		w.hosts = maps.Clone(w.hosts)
		w.hosts[epoch] = host
	} else if was != host {
		w.breaks("E2: epoch %d has the hosts %s and %s", epoch, was, host)
	}
}
