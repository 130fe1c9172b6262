package selector

import (
	"slices"
	"time"
)

// lock applies the operator's locks.
func (m *Machine) lock(l Locks) {
	m.frozen = l.Frozen
	for i := range m.hosts {
		h := &m.hosts[i]
		was := h.drained
		h.drained = slices.Contains(l.Drained, h.name)
		if was && !h.drained {
			h.failures = nil // the operator has declared it ready
		}
	}
	switch {
	case m.plan.host >= 0 && m.hosts[m.plan.host].drained:
		m.unplan("it is drained")
	case m.frozen && m.plan.kind == Failback:
		m.unplan("the relay is frozen")
	}
}

// inOrder lists the hosts in the current order of preference.
func (m *Machine) inOrder() []int {
	order := make([]int, 0, len(m.hosts))
	last := m.lastPrimary()
	if last >= 0 {
		order = append(order, last)
	}
	for i := range m.hosts {
		if i != last {
			order = append(order, i)
		}
	}
	return m.byRole(order)
}

// ineligible returns why host i may not be elected now, whatever its checks
// say; empty when it may be.
func (m *Machine) ineligible(i int) string {
	h, stays := &m.hosts[i], m.incumbent()
	switch {
	case h.rejected:
		return "rejected, a trigger failed"
	case h.drained:
		return "drained"
	case m.frozen && stays >= 0 && i != stays:
		return "frozen: no automatic change"
	}
	return ""
}

// whyNot returns why host i was not chosen.
func (m *Machine) whyNot(i int) string {
	if why := m.ineligible(i); why != "" {
		return why
	}
	if why := m.blocked(i); why != "" && m.standing(i) == passed {
		return why
	}
	return m.whyFailed(i)
}

// whyFailed returns which result of host i was not a success.
func (m *Machine) whyFailed(i int) string {
	for k, t := range m.hosts[i].tracks {
		switch t.answer {
		case failed:
			return m.cfg.Checks[k].Name + ": " + oneLine(t.last.Err)
		case unsure:
			return m.cfg.Checks[k].Name + " is unknown: " + oneLine(t.last.Err)
		case none, passed:
		}
	}
	return "no answer"
}

// The flap guard: a host that fails repeatedly is chosen only after it has
// stayed up, for a time that grows with each failure, or when no other host is
// usable.

// noteFailure records that h, which had been up, went down.
func (m *Machine) noteFailure(h *host) {
	h.failures = append(h.failures, m.now)
	if len(h.failures) > 16 { // more make no difference
		h.failures = h.failures[1:]
	}
}

// recentFailures returns how often h failed within guardWindow.
func (m *Machine) recentFailures(h *host) int {
	n := 0
	for _, at := range h.failures {
		if m.now.Sub(at) < guardWindow {
			n++
		}
	}
	return n
}

// penalty is the time for which h must have been up before it is chosen while another
// host is usable.
func (m *Machine) penalty(h *host) time.Duration {
	n := m.recentFailures(h)
	if n < 2 {
		return 0
	}
	return min(guardFirst<<(n-2), guardMost)
}

// guarded reports whether h has not been up for long enough.
func (m *Machine) guarded(h *host) bool {
	p := m.penalty(h)
	return p > 0 && (h.state() != Up || m.now.Sub(h.upSince) < p)
}
