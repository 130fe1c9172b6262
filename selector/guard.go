package selector

import (
	"slices"
	"time"
)

// lock takes the operator's locks in.
func (m *Machine) lock(l Locks) {
	m.frozen = l.Frozen
	for i := range m.hosts {
		h := &m.hosts[i]
		was := h.drained
		h.drained = slices.Contains(l.Drained, h.name)
		if was && !h.drained {
			h.failures = nil // the operator says that it is ready
		}
	}
	switch {
	case m.plan.host >= 0 && m.hosts[m.plan.host].drained:
		m.unplan("it is drained")
	case m.frozen && m.plan.kind == Failback:
		m.unplan("the relay is frozen")
	}
}

// inOrder lists the hosts in the order of preference that holds now.
func (m *Machine) inOrder() []int {
	order := make([]int, 0, len(m.hosts))
	if m.prefer >= 0 {
		order = append(order, m.prefer)
	}
	for i := range m.hosts {
		if i != m.prefer {
			order = append(order, i)
		}
	}
	return order
}

// barred says why host i may not be elected now, whatever it answers; nothing
// when it may.
func (m *Machine) barred(i int) string {
	h := &m.hosts[i]
	stays := m.elect
	if m.prefer >= 0 {
		stays = m.prefer
	}
	switch {
	case h.aside:
		return "put aside, a trigger failed"
	case h.drained:
		return "drained"
	case m.frozen && stays >= 0 && i != stays:
		return "frozen: no automatic change"
	}
	return ""
}

// whyNot says why host i was not chosen.
func (m *Machine) whyNot(i int) string {
	if why := m.barred(i); why != "" {
		return why
	}
	return m.whyFailed(i)
}

// whyFailed says what host i answered that was not right.
func (m *Machine) whyFailed(i int) string {
	for k, t := range m.hosts[i].tracks {
		if t.answer == failed {
			return m.cfg.Checks[k].Name + ": " + oneLine(t.last.Err)
		}
	}
	return "no answer"
}

// The flap guard: a host that fails again and again is chosen only when it has
// stayed up for longer and longer, or nobody else is there.

// noteFailure notes that h, which had been up, went down.
func (m *Machine) noteFailure(h *host) {
	h.failures = append(h.failures, m.now)
	if len(h.failures) > 16 { // more make no difference
		h.failures = h.failures[1:]
	}
}

// recentFailures is how often h failed in the last while.
func (m *Machine) recentFailures(h *host) int {
	n := 0
	for _, at := range h.failures {
		if m.now.Sub(at) < guardWindow {
			n++
		}
	}
	return n
}

// penalty is how long h must have been up before it is chosen while another
// host is usable.
func (m *Machine) penalty(h *host) time.Duration {
	n := m.recentFailures(h)
	if n < 2 {
		return 0
	}
	return min(guardFirst<<(n-2), guardMost)
}

// guarded says whether h has not been up for long enough.
func (m *Machine) guarded(h *host) bool {
	p := m.penalty(h)
	return p > 0 && (h.state() != Up || m.now.Sub(h.upSince) < p)
}
