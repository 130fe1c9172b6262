package cluster

import (
	"fmt"
	"slices"
	"time"
)

// Times of a Machine that are not set.
const (
	never   = time.Duration(-1 << 62) // before every time
	forever = time.Duration(1<<63 - 1)
)

// pollShare is the part of a heartbeat, as a divisor, after which a member that
// waits for others to change the primary reads their keys again.
const pollShare = 10

// keysABeat is the number of other members' keys that a member reads for each of its
// heartbeats, on average. If 1,000 members each read all keys with each heartbeat,
// the store would send a million keys a second.
const keysABeat = 8

// Machine is one member of a cluster, for one relay. It is not safe for
// concurrent use.
type Machine struct {
	cfg    Config
	broken mutation // set by tests

	now     time.Duration // of this Step
	actions []Action

	// What is known of the store.
	known    bool          // the record was read, or it is known that there is none
	record   Record        // the newest
	revision int64         // the store's, of record
	learned  time.Duration // when record became known
	oldest   uint64        // the lowest epoch that a record may have
	wentBack bool          // the store has answered with an older record
	peers    []peer        // the keys of all members, in the order of the store

	// The own key.
	birth     birth
	own       int64         // its revision
	wrote     Member        // what was written into it last
	writing   time.Duration // Sent of the Write that has no answer; never for none
	confirmed time.Duration // Sent of the last Write that succeeded
	beaten    time.Duration // Sent of the last Write; never when one is due at once

	// Sent of the last Write that was to read the keys of all, and of the last that
	// has.
	reading, read time.Duration
	share         int // keysABeat

	// What lives here.
	live     bool   // connections of epoch may live, or the gate is open
	epoch    uint64 // of those
	ending   ending // whether they were ordered to end
	order    uint64 // of the last EndOlder
	fenced   uint64 // the highest epoch below which nothing lives
	lease    time.Duration
	lastOpen time.Duration // Sent of the last confirmation that epoch is open

	// A change of primary.
	want    Want          // Host is empty for none
	wantSet uint64        // the epoch of the record when it was requested
	wantAt  time.Duration // when that was
	unfit   bool          // its host was unfit then
	since   time.Duration // when the own fence record became known
	run     run
	forced  uint64
	swap    time.Duration // Sent of the Swap that has no answer; never for none

	// Changes of the record that wait for their Swap.
	locks    string
	relock   bool
	fact     Fact
	change   Change
	changing time.Duration // when record.Change became known

	// Grants.
	ask     time.Duration // Sent of the last Ask
	askFor  recordID
	nextAsk time.Duration
	granted []string

	down    []string
	leaving bool
	drain   time.Duration // of Leave
	left    bool
}

// peer is the key of a member as it was read last.
type peer struct {
	Entry
	moved time.Duration // when it was first seen with this revision
}

// birth is the way of a member to its own key.
type birth struct {
	done bool // the own key holds this life

	// A key of another life that is not leaving: its revision, and when it was
	// first seen with that.
	rival int64
	since time.Duration
	twice bool // its revision has changed: two processes have the name

	// Until when the acknowledgements of the earlier life are repeated, because it
	// is not certain that it has ended, and what it had acknowledged.
	until  time.Duration
	fenced uint64
}

// ending is how connections end.
type ending uint8

const (
	goOn     ending = iota
	draining        // they may finish
	cutting         // at once
)

// run is the state of the triggers of the own fence.
type run uint8

const (
	notRun run = iota
	running
	succeeded
	failed
	stopped // killed: the triggers of an epoch never run twice
)

// New returns a Machine, or an error that names every invalid field of cfg.
// Nothing happens before the first Step.
func New(cfg Config) (*Machine, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("cluster config: %w", err)
	}
	return &Machine{
		cfg: cfg, oldest: cfg.Epoch, share: keysABeat,
		learned: never, writing: never, confirmed: never, beaten: never, reading: never, read: never,
		lease: never, lastOpen: never, since: never, swap: never, wantAt: never, changing: never, ask: never, nextAsk: never,
		birth: birth{since: never, until: never},
	}, nil
}

// Step processes the event at the time now, and returns the actions to carry
// out, in that order. Now is that of a clock that also counts while the machine
// sleeps, and never goes back.
func (m *Machine) Step(now time.Duration, ev Event) []Action {
	m.now, m.actions = now, nil
	switch ev := ev.(type) {
	case Tick:
	case Wrote:
		m.answered(ev)
	case Swapped:
		if ev.Sent == m.swap {
			m.swap = never
		}
		m.learn(ev.Sent, ev.Record, ev.Revision)
	case Changed:
		m.beaten = never
	case Granted:
		m.take(ev)
	case Fenced:
		if ev.Order == m.order && m.ending != goOn {
			m.live, m.ending = false, goOn
		}
	case Ran:
		if m.run == running && ev.Epoch == m.record.Epoch {
			m.run = succeeded
			if ev.Failed {
				m.run, m.want = failed, Want{}
			}
		}
	case Want:
		m.want, m.wantSet, m.wantAt, m.unfit = ev, m.record.Epoch, now, slices.Contains(m.Unfit(), ev.Host)
		if ev.Host != "" && !ev.Agreed {
			m.beaten = never // what the others see has to be read first
		}
	case Down:
		m.down = slices.Clone(ev.Hosts)
	case SetLocks:
		m.locks, m.relock = ev.Locks, true
	case SetFact:
		m.fact = ev.Fact
	case SetRoster:
		m.change = ev.Change
	case SetSettings:
		m.cfg.Settings = ev.Settings
	case Force:
		m.forced = ev.Epoch
	case Leave:
		m.leaving, m.drain = true, ev.Drain
	}
	m.end()
	m.acknowledge()
	m.open()
	m.drive()
	m.amend()
	m.failsafe()
	m.beat()
	return m.actions
}

func (m *Machine) do(a Action) { m.actions = append(m.actions, a) }

// Wake returns when Step has to be called at the latest; it may have passed.
func (m *Machine) Wake() time.Duration {
	wake := m.nextBeat()
	if m.waits(m.writing) {
		wake = m.writing + m.cfg.Request
	}
	if m.live && m.ending != cutting || m.run == running {
		wake = min(wake, m.lease)
	}
	if m.waits(m.swap) {
		wake = min(wake, m.swap+m.cfg.Request)
	}
	if m.mayAsk() {
		wake = min(wake, max(m.lease-m.cfg.Lease/2, m.nextAsk))
	}
	return wake
}

// waits reports whether the answer to a request that was sent then is still
// waited for.
func (m *Machine) waits(sent time.Duration) bool {
	return sent != never && m.now < sent+m.cfg.Request
}

// learn takes note of a record that was read by a request sent at sent, and
// reports whether it may be trusted: a request that was sent when a record was
// already known cannot read an older one, unless the store has gone back.
func (m *Machine) learn(sent time.Duration, r Record, revision int64) bool {
	switch {
	case r.Epoch < m.oldest,
		m.known && r.Version < m.record.Version && sent > m.learned,
		m.known && r.Version == m.record.Version && r.Boot != m.record.Boot,
		m.known && r.Version > m.record.Version && r.Epoch < m.record.Epoch,
		m.known && r.Epoch == m.record.Epoch && r.DriverBoot != m.record.DriverBoot:
		m.wentBack = true
		return false
	case m.known && r.Version <= m.record.Version:
		m.wentBack = m.wentBack && sent <= m.learned
		return true
	}
	m.wentBack = false
	before := m.record
	m.known, m.record, m.revision, m.learned = true, r, revision, m.now
	if r.Change != before.Change {
		m.changing = m.now
	}
	if r.Epoch > before.Epoch {
		if m.run == running { // another member has taken over, and may run triggers soon
			m.do(Stop{Epoch: before.Epoch})
		}
		m.since, m.run = never, notRun
		if m.driving() {
			m.since = m.now
		} else if r.Epoch > m.wantSet {
			m.want = Want{} // somebody else was faster
		}
	}
	if r.Fact != before.Fact && r.Fact.Identity != m.fact.Identity {
		m.fact = Fact{} // another member was later: two that disagree must not overwrite each other for ever
	}
	if r.Locks != before.Locks {
		m.want = Want{} // the locks may forbid it: it has to be requested anew
		// The locks of this member are in the record, or those of another member are,
		// which they would overwrite: they have to be set anew.
		m.relock = false
	}
	if m.relock && r.Locks == m.locks {
		m.relock = false
	}
	if r.Change == m.change || slices.Contains(r.Roster, m.change.Name) != m.change.Forget || !r.has(m.cfg.Member) {
		m.change = Change{} // it is done, or no member wants it any more
	}
	return true
}

// member reports whether this member takes part: its key is its own, it is in
// the roster, and it believes the store.
func (m *Machine) member() bool {
	return m.birth.done && m.known && !m.wentBack && (m.record.Version == 0 || m.record.has(m.cfg.Member))
}

// answered processes the answer to a heartbeat.
func (m *Machine) answered(w Wrote) {
	if w.Sent == m.writing {
		m.writing = never
	}
	trusted := m.learn(w.Sent, w.Record, w.Revision)
	if w.Sent < m.confirmed {
		return // late, and a later one has succeeded
	}
	if len(w.Members) > 0 {
		m.meet(w.Members)
		m.read = w.Sent
	}
	if !w.OK {
		m.refused(w.Own)
		return
	}
	m.confirmed, m.own = w.Sent, w.Own.Revision
	m.born()
	if w.Own.Member.Leaving {
		m.left = true
		m.do(Left{})
	}
	if trusted {
		m.extend(w.Sent, &w.Record)
	}
	if m.driving() && w.Record.id() == m.record.id() && m.run == notRun && m.leased() && !m.parts() && m.barrier(w.Members) {
		m.run = running
		m.do(Run{Epoch: m.record.Epoch, Host: m.record.Host, Old: m.record.Old, Event: m.record.Event, Reason: m.record.Reason})
	}
}

// meet replaces the known keys of the members.
func (m *Machine) meet(members []Entry) {
	peers := make([]peer, len(members))
	for i, e := range members {
		peers[i] = peer{e, m.now}
		if k := m.peer(e.Name); k != nil && k.Revision == e.Revision {
			peers[i].moved = k.moved
		}
	}
	m.peers = peers
}

// peer returns the key of a member as it was read last; nil for none.
func (m *Machine) peer(name string) *peer {
	for i := range m.peers {
		if m.peers[i].Name == name {
			return &m.peers[i]
		}
	}
	return nil
}

// born takes note that the own key holds this life.
func (m *Machine) born() {
	if m.birth.until == forever {
		m.birth.until = m.now + m.cfg.Wait()
	}
	m.birth.done, m.birth.twice, m.birth.rival = true, false, 0
}

// refused processes the answer to a heartbeat whose own key was not as expected.
func (m *Machine) refused(own Entry) {
	b := &m.birth
	switch {
	case own.Revision == 0: // somebody has deleted it
		m.own, m.beaten = 0, never
	case own.Member.Boot == m.cfg.Boot: // an answer was lost
		m.own, m.beaten = own.Revision, never
		m.born()
	case own.Member.Leaving:
		m.own, m.beaten, b.done, b.until = own.Revision, never, false, never
	case own.Revision != b.rival:
		b.twice = b.rival != 0 || b.done
		b.rival, b.since, b.done = own.Revision, m.now, false
	case m.now-b.since >= 2*m.cfg.Heartbeat:
		// The earlier life writes no more. It may still live, cut off from the store:
		// nothing is acknowledged for it before its lease is over.
		m.own, m.beaten = own.Revision, never
		b.until, b.fenced = forever, own.Member.Fenced
	}
}

// acknowledge takes note of the epoch below which nothing lives.
func (m *Machine) acknowledge() {
	if m.known && !m.live {
		m.fenced = max(m.fenced, m.record.Epoch)
	}
}

// acknowledged is the epoch that the own key acknowledges. In a store that has gone
// back, epochs are counted anew: what was acknowledged before says nothing about one
// of the same number.
func (m *Machine) acknowledged() uint64 {
	if m.wentBack {
		return 0
	}
	if m.now < m.birth.until {
		return min(m.fenced, m.birth.fenced)
	}
	return m.fenced
}

// nextBeat returns when the next heartbeat is due.
//
// Who drives reads the keys of the others again and again until all have
// acknowledged: soon at first, because that usually takes some milliseconds.
func (m *Machine) nextBeat() time.Duration {
	every, poll := m.cfg.Heartbeat, m.cfg.Heartbeat/pollShare
	switch {
	case m.left:
		return forever
	case m.beaten == never:
		return never
	case m.driving():
		every = min(max((m.beaten-m.since)/2, poll/pollShare), poll)
	case m.want.Host != "":
		every = min(max(m.readEvery(), poll), every)
	}
	return m.beaten + every
}

// readEvery returns the time from one reading of the keys of all members to the
// next; zero for each heartbeat. It is shorter while it matters what the others
// say.
func (m *Machine) readEvery() time.Duration {
	n := len(m.record.Roster)
	if n <= m.share || m.driving() {
		return 0
	}
	every := m.cfg.Heartbeat * time.Duration((n+m.share-1)/m.share)
	if m.want.Host != "" || !m.record.Open || slices.Contains(m.down, m.record.Host) || m.record.Settings != m.cfg.Settings {
		every /= pollShare
	}
	return every
}

// parts reports whether the member leaves, and so may not run triggers: the others do not
// wait for one that has left.
func (m *Machine) parts() bool { return m.leaving && m.broken != parting }

// beatSeen is the longest time until a heartbeat of another member is read.
func (m *Machine) beatSeen() time.Duration { return max(m.cfg.Heartbeat, m.readEvery()) }

// beat writes the own key when that is due.
func (m *Machine) beat() {
	if m.left {
		return
	}
	mine := Member{
		Boot: m.cfg.Boot, Fenced: m.acknowledged(), Leaving: m.leaving && !m.live, Down: m.down,
		Settings: m.cfg.Settings, Address: m.cfg.Address, Version: m.cfg.Version,
	}
	due := m.now >= m.nextBeat() || m.birth.done && !mine.equal(&m.wrote)
	if !due || m.waits(m.writing) {
		return
	}
	mine.Clock = m.now
	m.beaten, m.writing, m.wrote = m.now, m.now, mine
	w := Write{Sent: m.now, Expect: m.own, Own: mine, Members: m.now-m.reading >= m.readEvery()}
	if w.Members {
		m.reading = m.now
	}
	m.do(w)
}
