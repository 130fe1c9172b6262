package selector

import (
	"fmt"
	"time"
)

// schedule starts every check that is due and computes when to wake.
func (m *Machine) schedule() {
	// Waking once an interval, even with nothing to do, is how a stall is
	// noticed.
	m.wake = m.now.Add(m.cfg.Checks[0].Interval)
	for i := range m.hosts {
		for k, c := range m.cfg.Checks {
			t := &m.hosts[i].tracks[k]
			if at, ok := m.lateAt(t, c); ok && !m.now.Before(at) {
				m.suspect(i, k, fmt.Errorf("no answer for %v", m.patience(t, c)))
			}
			at, ok := m.dueAt(i, k)
			if ok && !m.now.Before(at) {
				m.start(i, k)
				at, ok = m.dueAt(i, k)
			}
			m.wakeBy(at, ok)
			m.wakeBy(m.lateAt(t, c))
			for _, f := range t.flights {
				m.wakeBy(f.at.Add(c.Timeout+overdue), !c.Script && !f.void && !f.judged)
			}
		}
	}
	m.wakeBy(m.holdUntil, m.gate == held)
	switch m.phase {
	case Selecting:
		switch {
		case !m.chooseBy.IsZero(): // somebody passed, so the round is decided
			m.wakeBy(m.chooseBy, true)
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
		m.wake = m.now.Add(time.Millisecond) // what is due now was looked at in this Step
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
	interval := m.cfg.Checks[k].Interval
	next := t.due.Add(interval) // keeps the beat
	if m.now.Before(t.due) || !next.After(m.now) {
		next = m.now.Add(interval)
	}
	id := m.nextID
	m.nextID++
	t.due, t.asked, t.wanted = next, m.now, false
	t.flights = append(t.flights, flight{id: id, at: m.now})
	m.flights[id] = place{i, k}
	m.do(StartCheck{ID: id, Host: m.hosts[i].name, Check: k})
}

// dueAt returns when check k of host i is to be started next; false means that
// something else has to happen first.
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
		if c.Script {
			return never, false
		}
		return t.asked.Add(m.watch), true
	}
	if c.Script {
		if t.streak < 0 && -t.streak < m.cfg.Fall {
			if t.last.Local {
				// It could not even be started; at once would be a spin.
				return t.asked.Add(m.cfg.FastInterval), true
			}
			return m.now, true
		}
		return t.due, true
	}
	if t.inFlight() >= m.cfg.Fall+spareFlights {
		return never, false
	}
	if t.suspect != 0 {
		if fast := t.asked.Add(m.cfg.FastInterval); fast.Before(t.due) {
			return fast, true
		}
	}
	return t.due, true
}
