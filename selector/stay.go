package selector

import "time"

// When no host was usable for a while, the cause is probably one that all have
// in common: the network of this machine, or a name server that every script
// uses. Hosts come back from that in any order, and the first one that passes
// is not a better primary because of it: it may be a standby that has missed
// writes. So the last primary then comes first, and the election waits for it.

// lastPrimary returns the host that comes first in an election: the one that
// was primary last, if no other one has been elected since; -1 for none.
func (m *Machine) lastPrimary() int {
	switch {
	case m.prefer >= 0:
		return m.prefer
	case m.done && (m.cfg.Stay > 0 || m.agreedOn(m.elect)):
		return m.elect
	}
	return -1
}

// doubt records since when h, the primary that is lost, has been suspected.
func (m *Machine) doubt(h *host) {
	m.doubted, m.noneUsable = m.now, false
	if k := h.down(); k >= 0 && !h.tracks[k].doubted.IsZero() {
		m.doubted = h.tracks[k].doubted
	}
}

// noneWasUsable reports whether no host was usable at some time since the last
// primary failed: none passed when they were checked, or every one of them
// failed at about the same time as the primary.
func (m *Machine) noneWasUsable() bool {
	if m.noneUsable {
		return true
	}
	last, others := m.lastPrimary(), 0
	for i := range m.hosts {
		h := &m.hosts[i]
		if i == last || h.drained {
			continue
		}
		if h.bad.IsZero() || h.bad.Before(m.doubted.Add(-m.beat)) {
			return false
		}
		others++
	}
	m.noneUsable = others > 0
	return m.noneUsable
}

// await starts fresh checks of host last, the last primary, when host usable
// passes before it, and returns how long the election waits for it from then
// on.
func (m *Machine) await(last, usable int) time.Duration {
	if m.cfg.Stay == 0 {
		return 0
	}
	h := &m.hosts[last]
	if !m.awaited {
		m.awaited = true
		m.quickBy = m.now.Add(max(quickFor, m.cfg.Stay))
		if m.standing(last) == failed {
			m.requestAll(h, false)
		}
	}
	if !m.waitReported && m.now.Sub(m.passedAt) >= m.cfg.FastInterval { // a shorter wait is not worth reporting
		m.waitReported = true
		m.do(Awaited{Host: h.name, Usable: m.hosts[usable].name, For: m.cfg.Stay})
	}
	if h.tracks[0].answer != failed && m.scriptFromBefore(h) {
		m.passedAt = m.now // its next results count
	}
	return m.cfg.Stay
}

// scriptFromBefore reports whether a script of h runs that began before another
// host passed: what the script depends on may have been unavailable then, and
// the script cannot be started again before it ends.
func (m *Machine) scriptFromBefore(h *host) bool {
	for k, c := range m.cfg.Checks {
		for _, f := range h.tracks[k].flights {
			if c.Script && !f.void && !f.settled && f.at.Before(m.passedAt) && m.now.Before(f.at.Add(c.Timeout)) {
				return true
			}
		}
	}
	return false
}

// answersSoon reports whether only results of scripts are missing for h, the
// last primary, and none of its scripts timed out before. The cause of the
// failure may be over, so the election waits for it as for a host that comes
// first in the operator's order.
func (m *Machine) answersSoon(h *host) bool {
	for k, c := range m.cfg.Checks {
		t := &h.tracks[k]
		if !c.Script && t.answer != passed || c.Script && t.last.Latency >= c.Timeout {
			return false
		}
	}
	return true
}

// noteSilence records that h had no result for a while before the check passed
// succeeded.
func (m *Machine) noteSilence(h *host, k int, passed flight) {
	t, c := &h.tracks[k], m.cfg.Checks[k]
	if c.Script {
		return
	}
	// A packet that was lost is sent again after 200 ms or, the first of a
	// connection, after a second. Less than half a timeout is a busy machine, and
	// no reason to make a failover wait for the last primary.
	allowed := max(m.lateAfter(t, c), c.Timeout/2)
	late := func(f flight) bool { return m.now.Sub(f.at)-f.paused > allowed }
	if late(passed) {
		h.bad = m.now
	}
	for _, f := range t.flights {
		if f.id < passed.id && !f.void && !f.settled && late(f) {
			h.bad = m.now
		}
	}
}
