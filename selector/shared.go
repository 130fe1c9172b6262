package selector

import (
	"slices"
	"time"
)

// With [Config.Shared] the primary is that of several machines, in other processes. Then
// the machine elects nobody: whom it would elect is its [Proposal], and whom all have
// elected is told to it by [Agreed]. What a host's checks mean for it stays its own
// matter: a primary that is down only here is lost only here.

// agreeFor is the time for which a planned change that was proposed waits for [Agreed].
const agreeFor = 10 * time.Second

// NotAgreed is the reason of a [Declined] for which no [Agreed] came in time.
const NotAgreed = "the instances did not agree in time"

// Agreed reports what all machines have agreed on, or that clients may be connected now,
// or may not any more. It is an error without [Config.Shared].
type Agreed struct {
	Epoch  uint64 // zero: no host was elected yet
	Host   string
	Old    string // the host before; empty for none
	Kind   Kind
	Reason string        // one line
	Drain  time.Duration // the longest time that earlier connections may take to finish

	// Last is what is known of the host that was primary last; zero where nothing is.
	Last Last

	// Served allows to connect clients to Host. It comes after the [Switched] of the
	// machine that was told to run the triggers, and at others without one.
	Served bool
}

// Last is what a role check has found out about a primary, at any of the machines.
type Last struct {
	Host     string
	Term     uint64
	Identity string
}

// Proposal is the election that a machine with [Config.Shared] would make.
type Proposal struct {
	Host   string // empty: none
	Kind   Kind
	Reason string        // one line
	Drain  time.Duration // that of a planned change
}

func (Agreed) event() {}

// shared is what a machine with [Config.Shared] knows of the agreement.
type shared struct {
	known    bool // an Agreed came
	joined   bool // one with a host did
	served   bool // the last one allows to connect clients
	stands   bool // the host of the last one was primary
	last     Last // of the last one
	proposal Proposal
}

// Proposal returns the election that the machine would make now.
func (m *Machine) Proposal() Proposal { return m.shared.proposal }

// agreedOn reports whether host i is the primary for all, even if it is lost here. It needs
// no election: neither the flap guard nor the operator's order makes another one of it.
func (m *Machine) agreedOn(i int) bool { return m.cfg.Shared && m.shared.stands && i == m.elect }

// offer is electHost with [Config.Shared].
func (m *Machine) offer(i int, kind Kind, reason string, drain time.Duration) {
	switch s := &m.shared; {
	case !s.known:
	case i != m.elect || !s.stands:
		s.proposal = Proposal{Host: m.hosts[i].name, Kind: kind, Reason: reason, Drain: drain}
	case s.served:
		m.passes(&m.hosts[i])
		m.retryAt, m.passedAt, m.chooseBy = time.Time{}, time.Time{}, time.Time{}
		m.electDown, m.done, m.noneUsable, m.awaited, m.waitReported = false, true, false, false, false
		m.open()
	}
}

// passes takes h, whose checks have passed once just now, for up: the thresholds are for
// hosts that were not checked anew.
func (m *Machine) passes(h *host) {
	for k := range h.tracks {
		t := &h.tracks[k]
		if t.answer == unsure {
			continue
		}
		t.state, t.streak = Up, max(t.streak, 1)
	}
	m.noteState(h, 0, nil)
}

// agreed processes an Agreed.
func (m *Machine) agreed(ev Agreed) {
	s := &m.shared
	s.known, s.served = true, ev.Served
	if ev.Last != s.last {
		s.last = ev.Last
		m.hear(ev.Last)
	}
	if ev.Epoch > m.epoch || ev.Epoch > 0 && !s.joined {
		m.follows(ev)
	}
	switch {
	case ev.Served && m.phase == Switching:
		m.verifyBy, m.done = time.Time{}, true
		m.open()
	case !ev.Served && m.phase == Serving && ev.Epoch == m.epoch:
		m.unplan("this instance lost the agreement with the others")
		m.shut()
		m.enter(Switching)
	}
}

// hear takes over what another machine has found out. Without it, a machine that never
// opened to the primary would elect a host of another cluster, or of an earlier term.
func (m *Machine) hear(l Last) {
	other := l.Identity != "" && l.Identity != m.identity // with terms of its own
	if other {
		m.identity = l.Identity
	}
	if other || l.Host != m.termOf || l.Term > m.term {
		m.term, m.termOf = l.Term, l.Host
	}
}

// follows makes the host that was agreed on the next primary.
func (m *Machine) follows(ev Agreed) {
	s := &m.shared
	s.joined, s.stands = true, false
	if m.plan.host >= 0 && (m.hosts[m.plan.host].name != ev.Host || m.plan.kind != ev.Kind) {
		m.unplan("the instances have agreed on " + ev.Host + " meanwhile")
	}
	if m.gate == open {
		m.shut()
		m.holdUntil = m.holdUntil.Add(ev.Drain)
	}
	i := slices.Index(m.cfg.Hosts, ev.Host)
	elected := Switch{Epoch: ev.Epoch, Host: ev.Host, Old: ev.Old, Kind: ev.Kind, Reason: ev.Reason}
	if ev.Kind == Switchover || ev.Kind == Failback {
		m.prefer, m.back = m.elect, true
	}
	m.goesOn = i >= 0 && i == m.incumbent()
	if i >= 0 && m.role >= 0 {
		elected.Fact = m.hosts[i].role.fact
		if ev.Host != m.last {
			elected.Loss = m.lossOf(i)
		}
	}
	m.epoch, m.elect, m.last, m.electDown, m.plan, m.stayed = ev.Epoch, i, ev.Host, false, noPlan, false
	m.retryAt, m.passedAt, m.chooseBy, m.verifyBy = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	m.done, m.noneUsable, m.awaited, m.waitReported = false, false, false, false
	m.do(elected)
	if i < 0 {
		m.cause = ev.Host + ", on which the instances have agreed, is no host here"
		m.selectAgain()
		return
	}
	h := &m.hosts[i]
	h.rejected = false
	if !slices.ContainsFunc(h.tracks, func(t track) bool { return !t.last.OK }) {
		m.passes(h)
	}
	m.enter(Switching)
}
