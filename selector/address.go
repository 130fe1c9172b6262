package selector

import (
	"net/netip"
	"slices"
	"time"

	"understudy/internal/role"
)

// A host name may have several addresses, and they need not belong to one
// machine. So each host has one address at a time: the one where its first
// check passed last. All its other checks use that address. While a host is
// primary that address is pinned: the first check tries no other, and clients
// are connected to it. The address of a primary changes only by an election.

// Relocated reports that the name of a host resolves to another address now,
// and that all checks of the host passed at Addr. The primary moves there by an
// election of the kind [Moved].
type Relocated struct {
	Host string
	Addr netip.Addr
}

func (Relocated) event() {}

// pinned reports whether host i keeps its address.
func (m *Machine) pinned(i int) bool { return i == m.elect && m.phase != Selecting }

// atItsAddress reports whether the result of f is about the address of host i.
func (m *Machine) atItsAddress(i, k int, f flight, r Result) bool {
	h := &m.hosts[i]
	if k > 0 || f.pinned {
		return f.addr == h.addr
	}
	return !m.pinned(i) || r.Addr == h.addr
}

// noteAddress takes the address of host i from a check that is not pinned.
func (m *Machine) noteAddress(i, k int, r Result) {
	h := &m.hosts[i]
	switch {
	case m.pinned(i) || r.Unknown && !r.NoAddress:
	case k > 0:
		// Another address of the name may do better. The addresses are changed
		// no more often than the first check is due, since all other checks
		// are run again.
		if !r.OK && !m.cfg.Checks[k].Script && m.now.Sub(h.turned) >= m.cfg.Checks[0].Interval {
			h.next = true
		}
	case r.NoAddress:
		for k := range h.tracks {
			t := &h.tracks[k]
			t.state, t.streak, t.suspect, t.doubted = Unknown, 0, 0, time.Time{}
		}
		m.noteState(h, 0, r.Err)
	case r.OK && r.Addr != h.addr:
		h.addr = r.Addr
		h.role.says = role.Unknown
		for k := range h.tracks[1:] {
			m.request(h, k+1) // the earlier results were about another address
		}
	}
}

// relocated moves the primary, unless nothing may change now. The event is sent
// again in that case.
func (m *Machine) relocated(ev Relocated) {
	i := slices.Index(m.cfg.Hosts, ev.Host)
	if i < 0 || i != m.elect || m.phase != Serving || m.frozen || m.plan.host >= 0 {
		return
	}
	h := &m.hosts[i]
	if h.drained || h.addr == ev.Addr {
		return
	}
	reason := h.name + " has moved from " + h.addr.String() + " to " + ev.Addr.String()
	h.addr = ev.Addr
	for k := range h.tracks {
		t := &h.tracks[k]
		t.suspect, t.doubted, t.answer = 0, time.Time{}, passed
	}
	m.shut()
	m.holdUntil = m.holdUntil.Add(m.cfg.Drain)
	m.electHost(i, Moved, reason)
}

// again returns the kind of an election that elects host i, the last primary,
// again.
func (m *Machine) again(i int) Kind {
	if m.hosts[i].addr != m.addr {
		return Moved
	}
	return Reselect
}
