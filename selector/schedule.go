package selector

import (
	"fmt"
	"hash/fnv"
	"io"
	"time"
)

// schedule starts every check that is due and computes the next wake time.
func (m *Machine) schedule() {
	if m.rechecks > 0 && !m.now.Before(m.recheckAt) {
		m.rechecks--
		m.recheckAt = m.now.Add(m.cfg.FastInterval)
		if m.phase == Serving {
			h := &m.hosts[m.elect]
			h.tracks[0].due = earliest(h.tracks[0].due, m.now)
			if m.role > 0 {
				h.tracks[m.role].due = earliest(h.tracks[m.role].due, m.now)
			}
		}
	}
	// A stall is noticed only if the machine wakes at least once in an
	// interval, even with nothing to do.
	m.wake = m.now.Add(m.cfg.Checks[0].Interval)
	for i := range m.hosts {
		for k, c := range m.cfg.Checks {
			t := &m.hosts[i].tracks[k]
			if at, ok := m.lateAt(t, c); ok && !m.now.Before(at) {
				m.suspect(i, k, fmt.Errorf("no answer for %v", m.lateAfter(t, c)))
			}
			at, ok := m.dueAt(i, k)
			if ok && !m.now.Before(at) {
				m.start(i, k)
				at, ok = m.dueAt(i, k)
			}
			m.wakeBy(at, ok)
			m.wakeBy(m.lateAt(t, c))
			for _, f := range t.flights {
				m.wakeBy(f.at.Add(c.Timeout+overdue), !c.Script && !f.void && !f.settled)
				// A pause is noticed by a Step that comes late.
				m.wakeBy(m.now.Add(c.Timeout/pauseShare), !f.void && !f.settled)
			}
		}
	}
	m.wakeBy(m.holdUntil, m.gate == held)
	m.wakeBy(m.recheckAt, m.rechecks > 0)
	m.wakeBy(m.verifyBy, !m.verifyBy.IsZero())
	switch m.phase {
	case Selecting:
		switch {
		case !m.chooseBy.IsZero(): // a host passed, so the round is decided
			m.wakeBy(m.chooseBy, m.now.Before(m.chooseBy)) // a proposal waits for others
		case !m.retryAt.IsZero():
			m.wakeBy(m.retryAt, true)
		default:
			m.wakeBy(m.roundBy, true)
		}
	case Serving:
		m.wakeBy(m.plan.by, m.plan.host >= 0)
		if m.cfg.Failback > 0 && m.plan.host < 0 {
			for i := range m.hosts[:m.elect] {
				m.wakeBy(m.failbackAt(i))
			}
		}
	case Switching:
	}
	if !m.wake.After(m.now) {
		m.wake = m.now.Add(time.Millisecond) // what is due now was handled in this Step
	}
}

func (m *Machine) wakeBy(at time.Time, ok bool) {
	if ok && at.Before(m.wake) {
		m.wake = at
	}
}

// start starts check k of host i.
func (m *Machine) start(i, k int) {
	t := &m.hosts[i].tracks[k]
	id := m.nextID
	m.nextID++
	since := m.earliestStart(t)
	t.due, t.started, t.wanted = m.nextDue(t, m.cfg.Checks[k].Interval), m.now, false
	h := &m.hosts[i]
	a := StartCheck{ID: id, Host: h.name, Check: k, Addr: h.addr, Pinned: m.pinned(i), Since: since}
	if k == 0 && h.next {
		a.Next, h.next, h.turned = true, false, m.now
	}
	t.flights = append(t.flights, flight{id: id, at: m.now, addr: a.Addr, pinned: a.Pinned})
	m.flights[id] = place{i, k}
	m.do(a)
}

// earliestStart returns the Since of a check that is started now.
func (m *Machine) earliestStart(t *track) time.Time {
	late := m.now.Sub(t.due)
	if t.wanted || t.suspect != 0 || m.phase == Selecting || late < 0 || late >= tardy {
		return m.real
	}
	return m.real.Add(-late)
}

// nextDue returns when the next regular check of t is due if one is started now:
// within an interval, at the phase of t.
func (m *Machine) nextDue(t *track, interval time.Duration) time.Time {
	if m.cfg.Base.IsZero() {
		next := t.due.Add(interval) // keeps the schedule
		if m.now.Before(t.due) || !next.After(m.now) {
			next = m.now.Add(interval)
		}
		return next
	}
	passed := (m.real.Sub(m.cfg.Base) - t.phase) % interval
	if passed < 0 {
		passed += interval
	}
	return m.now.Add(interval - passed)
}

// phaseOf returns the phase of the checks of host i with an interval.
func (c Config) phaseOf(i int, interval time.Duration) time.Duration {
	if c.Phases != nil {
		return PhaseOf(c.Phases[i], interval)
	}
	return PhaseOf(NumberOf(c.Hosts[i]), interval)
}

// PhaseOf returns the phase of what is done once in an interval, by one of
// [Config.Phases]: that of the turn of the number. The first turn is full before there is
// another one, which begins in the middle of the longest time without any.
func PhaseOf(number uint64, interval time.Duration) time.Duration {
	turns := uint64(1)
	for turns < mostTurns && interval/time.Duration(2*turns) >= leastTurn {
		turns *= 2
	}
	turn, phase := number/perTurn%turns, time.Duration(0)
	for half := interval / 2; turn > 0; turn, half = turn/2, half/2 {
		phase += half * time.Duration(turn%2)
	}
	return phase
}

// NumberOf returns a number for [Config.Phases], as if there were none.
func NumberOf(host string) uint64 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, host) // never fails
	return h.Sum64()
}

// pace returns the time between two checks of a kind of h while there is no
// primary. The rate of the first seconds, in which most hosts come back, would
// be a permanent load when none does.
func (m *Machine) pace(h *host, c Check) time.Duration {
	quick := m.now.Before(m.quickBy)
	switch {
	case c.Script && quick:
		return min(c.Interval, firstBackoff)
	case c.Script:
		return c.Interval
	case quick || c.Role != nil: // somebody else may promote a host at any time
		return m.watch
	}
	connects := 1 // in each turn
	if h.tracks[0].last.OK {
		connects = m.cheap
	}
	return max(min(c.Interval, time.Duration(connects)*slowest), m.watch)
}

// dueAt returns when check k of host i is to be started next; false means that
// another event has to happen first.
func (m *Machine) dueAt(i, k int) (time.Time, bool) {
	h := &m.hosts[i]
	t := &h.tracks[k]
	c := m.cfg.Checks[k]
	never := time.Time{}

	if len(t.flights) >= maxFlights || c.Script && len(t.flights) > 0 {
		return never, false
	}
	electing := t.wanted || m.phase == Selecting
	if k > 0 {
		first := &h.tracks[0]
		if electing && first.answer != passed || first.state == Down && !electing || !first.last.OK {
			return never, false
		}
	}
	if t.wanted {
		return m.now, true
	}
	if m.phase == Selecting {
		return t.started.Add(m.pace(h, c)), true
	}
	if c.Script {
		// A script that could not determine the state is not run faster.
		if t.streak < 0 && -t.streak < m.cfg.Fall && !t.last.Unknown {
			return t.started.Add(m.cfg.FastInterval), true
		}
		return t.due, true
	}
	if t.inFlight() >= m.cfg.Fall+spareFlights {
		return never, false
	}
	if t.suspect != 0 || k == m.role && m.hurry() {
		if fast := t.started.Add(m.cfg.FastInterval); fast.Before(t.due) {
			return fast, true
		}
	}
	return t.due, true
}
