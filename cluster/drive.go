package cluster

import "slices"

// driving reports whether the record is a fence that this life has made.
func (m *Machine) driving() bool {
	return m.known && !m.record.Open && m.record.Driver == m.cfg.Member && m.record.DriverBoot == m.cfg.Boot
}

// barrier reports whether nothing lives of any epoch before that of the own
// fence, given the keys that were read together with it. A member has
// acknowledged the epoch, or has left, or its lease is over, whatever it does:
// nothing that was seen before the fence counts.
func (m *Machine) barrier(members []Entry) bool {
	if m.live {
		return false
	}
	for _, name := range m.record.Roster {
		i := slices.IndexFunc(members, func(e Entry) bool { return e.Name == name })
		switch {
		case name == m.cfg.Member && m.acknowledged() >= m.record.Epoch,
			i >= 0 && name != m.cfg.Member && (members[i].Member.Fenced >= m.record.Epoch || members[i].Member.Leaving),
			i < 0 && m.broken == vanish,
			m.leasesOver(name):
		default:
			return false
		}
	}
	return true
}

// leasesOver reports whether every lease of a member for an earlier epoch than
// that of the own fence is over.
func (m *Machine) leasesOver(name string) bool {
	if m.cfg.OnStoreLoss == Keep {
		return m.forced == m.record.Epoch
	}
	since := m.since
	if p := m.peer(name); m.broken == cached && p != nil {
		since = min(since, p.moved)
	}
	return m.now-since >= m.cfg.wait(m.record.Drain)
}

// orphaned reports whether the record is a fence of another life, which has left
// or was silent for so long that its triggers have been killed.
func (m *Machine) orphaned() bool {
	if m.record.Version == 0 || m.record.Open || m.driving() {
		return false
	}
	heard := m.learned
	if p := m.peer(m.record.Driver); p != nil && p.Member.Boot == m.record.DriverBoot {
		if p.Member.Leaving {
			return true
		}
		heard = max(heard, p.moved)
	}
	return m.read-heard >= m.cfg.Wait() // it was looked for in vain
}

// maySwap reports whether the member may change the record now.
func (m *Machine) maySwap() bool {
	return m.member() && m.leased() && !m.leaving && !m.waits(m.swap)
}

// drive does the next step of a change of primary.
func (m *Machine) drive() {
	if m.run == running && (!m.driving() || !m.leased() || m.parts()) {
		m.run = stopped
		m.do(Stop{Epoch: m.record.Epoch})
	}
	if !m.maySwap() {
		return
	}
	r, want := &m.record, &m.want
	if again := m.driving() && m.run == stopped || m.orphaned(); again && want.Host == "" {
		m.want, m.wantSet = Want{Host: r.Host, Event: r.Event, Reason: r.Reason, Drain: r.Drain, Agreed: true}, r.Epoch
	}
	switch {
	case m.driving() && m.run == succeeded && (want.Host == "" || want.Host == r.Host):
		next := *r
		next.Open = true
		m.put(next)
		return
	case want.Host == "" || r.Version > 0 && r.Settings != m.cfg.Settings:
		return
	case r.Version == 0:
	case r.Open && want.Host == r.Host:
		*want = Want{}
		return
	case r.Open:
		if !want.Agreed && (m.read <= m.wantAt || !m.agreed()) {
			return
		}
		if !want.Agreed && !m.unfit && slices.Contains(m.Unfit(), want.Host) {
			*want = Want{} // there may be a better one
			return
		}
	case m.driving():
		if want.Host == r.Host && m.run != failed && m.run != stopped {
			return
		}
	case !m.orphaned():
		return
	}
	next := *r
	next.Epoch++
	next.Open, next.Host, next.Event, next.Reason, next.Drain = false, want.Host, want.Event, want.Reason, want.Drain
	if r.Open {
		next.Old = r.Host
	}
	next.Driver, next.DriverBoot, next.Settings = m.cfg.Member, m.cfg.Boot, m.cfg.Settings
	if r.Version == 0 {
		next.Roster = m.cfg.Roster
	}
	m.put(next)
}

// put requests that the record becomes next.
func (m *Machine) put(next Record) {
	next.Version++
	next.Boot = m.cfg.Boot
	m.swap = m.now
	m.do(Swap{Sent: m.now, Expect: m.revision, Record: next})
}

// enough reports whether so many of so many members are as many as must agree.
func (m *Machine) enough(n, of int) bool {
	switch m.cfg.Agree {
	case Any:
		return n > 0
	case All:
		return n == of
	case Majority:
	}
	return 2*n > of
}

// agreed reports whether enough members see the primary down.
func (m *Machine) agreed() bool { return m.enough(m.verdicts(m.record.Host)) }

// Unfit returns the hosts that fewer members see up than would have to see the
// primary down, in order. They become primary only where no other host can.
func (m *Machine) Unfit() []string {
	var hosts []string
	m.eachFresh(func(down []string) { hosts = append(hosts, down...) })
	slices.Sort(hosts)
	return slices.DeleteFunc(slices.Compact(hosts), func(host string) bool {
		down, fresh := m.verdicts(host)
		return m.enough(fresh-down, fresh)
	})
}

// verdicts counts the members with a fresh heartbeat, this one included, and
// those of them that see host down.
func (m *Machine) verdicts(host string) (down, fresh int) {
	m.eachFresh(func(hosts []string) {
		fresh++
		if slices.Contains(hosts, host) {
			down++
		}
	})
	return down, fresh
}

// eachFresh calls visit with the hosts that each member with a fresh heartbeat
// sees down.
func (m *Machine) eachFresh(visit func(down []string)) {
	recent := m.cfg.Heartbeat + m.beatSeen()
	for _, name := range m.record.Roster {
		if name == m.cfg.Member {
			visit(m.down)
		} else if p := m.peer(name); p != nil && !p.Member.Leaving && m.now-p.moved <= recent {
			visit(p.Member.Down)
		}
	}
}

// amend makes the changes of an open record that are no change of the primary.
func (m *Machine) amend() {
	r := &m.record
	if !m.maySwap() || !r.Open {
		return
	}
	next := *r
	switch change := r.Change; {
	case change != (Change{}) && m.now-m.changing >= m.cfg.Wait():
		// Nobody has a lease that was granted to the old roster: this member is in it,
		// and has granted none since.
		next.Change = Change{}
		next.Roster = slices.DeleteFunc(slices.Clone(r.Roster), func(name string) bool { return name == change.Name })
		if !change.Forget {
			next.Roster = append(next.Roster, change.Name)
		}
	case m.relock:
		next.Locks = m.locks
	case r.newer(m.fact):
		next.Fact = m.fact
	case change == (Change{}) && m.change != (Change{}):
		next.Change = m.change
	case r.Settings != m.cfg.Settings && m.unanimous():
		next.Settings = m.cfg.Settings
	default:
		return
	}
	m.put(next)
}

// unanimous reports whether all members have the settings of this one.
func (m *Machine) unanimous() bool {
	for _, name := range m.record.Roster {
		if p := m.peer(name); name != m.cfg.Member && (p == nil || p.Member.Settings != m.cfg.Settings) {
			return false
		}
	}
	return true
}
