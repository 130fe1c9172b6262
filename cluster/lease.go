package cluster

import (
	"slices"
	"sync/atomic"
	"time"
)

// Lease is the permission to move bytes, for the data path. The zero Lease is
// over.
type Lease struct{ until atomic.Int64 }

// Set replaces the end of the lease; see [Machine.Lease].
func (l *Lease) Set(until time.Duration) { l.until.Store(int64(until)) }

// Holds reports whether bytes may be moved at the time now of the clock that the
// machine is given.
func (l *Lease) Holds(now time.Duration) bool { return int64(now) < l.until.Load() }

// Lease returns until when bytes may be moved.
func (m *Machine) Lease() time.Duration { return m.lease }

// leased reports whether the lease is valid.
func (m *Machine) leased() bool { return m.now < m.lease }

// extend extends the lease because of a request sent at sent that has read r.
// Only a member extends it that has nothing alive, or that has read that its
// epoch is still open. Where connections may finish after a fence, the lease goes
// on until a moment that was fixed before the fence.
func (m *Machine) extend(sent time.Duration, r *Record) {
	if !m.member() {
		return
	}
	if m.broken == receipt {
		sent = m.now
	}
	until := sent + m.cfg.Lease
	if m.cfg.OnStoreLoss == Keep {
		until = forever
	}
	switch {
	case !m.live || m.broken == extend:
		m.lease = max(m.lease, until)
	case r.Open && r.Epoch == m.epoch:
		m.lease = max(m.lease, until)
		m.lastOpen = max(m.lastOpen, sent)
	case !r.Open && r.Epoch == m.epoch+1 && r.Drain > 0:
		end := m.lastOpen + m.cfg.Lease + r.Drain
		if m.broken == drainLate {
			end = m.learned + m.cfg.Lease + r.Drain
		}
		m.lease = max(m.lease, min(until, end))
	}
}

// end orders the end of connections that must not go on.
func (m *Machine) end() {
	if !m.live {
		return
	}
	how, drain := goOn, time.Duration(0)
	switch next := m.record.Epoch > m.epoch; {
	case !m.leased(), next && (m.record.Open || m.record.Epoch > m.epoch+1), !m.record.has(m.cfg.Member):
		how = cutting
	case next:
		how, drain = draining, m.record.Drain
	case m.leaving:
		how, drain = draining, m.drain
	}
	if how <= m.ending {
		return
	}
	m.ending = how
	m.order++
	m.do(EndOlder{Order: m.order, Drain: drain, LeaseOver: !m.leased()})
}

// open opens the gate if the record and the lease allow it.
func (m *Machine) open() {
	if m.live || m.leaving || !m.member() || !m.leased() || !m.record.Open ||
		m.fenced != m.record.Epoch || m.record.Settings != m.cfg.Settings {
		return
	}
	m.live, m.epoch, m.ending = true, m.record.Epoch, goOn
	m.do(Open{Epoch: m.epoch, Host: m.record.Host})
}

// mayAsk reports whether the member may go on by the grants of the others.
func (m *Machine) mayAsk() bool {
	return m.cfg.OnStoreLoss == Failsafe && m.member() && m.record.Open && !m.leaving &&
		m.fenced == m.record.Epoch && (!m.live || m.epoch == m.record.Epoch && m.ending == goOn) &&
		(m.cfg.FailsafeLimit == 0 || m.now-m.confirmed < m.cfg.FailsafeLimit)
}

// failsafe asks the others for a lease when the store has not extended it.
func (m *Machine) failsafe() {
	if !m.mayAsk() || m.lease-m.now >= m.cfg.Lease/2 || m.now < m.nextAsk {
		return
	}
	m.ask, m.askFor, m.nextAsk, m.granted = m.now, m.record.id(), m.now+m.cfg.Heartbeat, nil
	others := slices.DeleteFunc(slices.Clone(m.record.Roster), func(name string) bool { return name == m.cfg.Member })
	if len(others) == 0 {
		m.extend(m.ask, &m.record) // nobody else can drive
		return
	}
	m.do(Ask{Sent: m.ask, Life: m.cfg.Boot, Version: m.record.Version, Boot: m.record.Boot, To: others})
}

// take counts a grant. Whoever drives is in the roster, so its grant is needed:
// it grants nothing from when it knows of its own fence, and waits from then on
// for longer than any lease it has granted. For that all must grant, not most.
func (m *Machine) take(g Granted) {
	if g.Sent != m.ask || m.askFor != m.record.id() || !m.mayAsk() || slices.Contains(m.granted, g.From) ||
		!slices.Contains(m.record.Roster, g.From) || g.From == m.cfg.Member {
		return
	}
	m.granted = append(slices.Clip(m.granted), g.From)
	need := len(m.record.Roster) - 1
	if m.broken == majority {
		need = len(m.record.Roster) / 2
	}
	if len(m.granted) >= need {
		m.extend(m.ask, &m.record)
	}
}

// Grants reports whether the member grants a lease to a life of from that knows the
// record of version and boot. It changes nothing. A life that does not hold the key
// of the member, or leaves it to the next one, grants nothing: the other life may
// drive. And a life gets nothing if the member has read the key of another one: that
// acknowledges epochs in its place, when the lease that it could have had is over.
func (m *Machine) Grants(from string, life, version, boot uint64) bool {
	if p := m.peer(from); p != nil && p.Member.Boot != life {
		return false
	}
	return m.member() && !m.leaving && m.record.Open && m.record.id() == recordID{version, boot} && m.record.has(from)
}
