package selector

import (
	"slices"
	"time"
)

// adopt applies cfg, which is valid. The state of a host is kept for every
// check that stays the same.
func (m *Machine) adopt(cfg Config) {
	cfg.Checks = slices.Clone(cfg.Checks)
	hostsBefore, checksBefore := m.hosts, m.cfg.Checks
	m.cfg = cfg
	m.hosts, m.flights = make([]host, len(cfg.Hosts)), map[uint64]place{}
	for i, name := range cfg.Hosts {
		h := &m.hosts[i]
		h.name = name
		tracks := make([]track, len(cfg.Checks))
		if was := slices.IndexFunc(hostsBefore, func(h host) bool { return h.name == name }); was >= 0 {
			*h = hostsBefore[was]
			for k, c := range cfg.Checks {
				q := slices.IndexFunc(checksBefore, func(a Check) bool { return a.Name == c.Name && a.Spec == c.Spec && a.Script == c.Script })
				if q < 0 {
					continue
				}
				t := &tracks[k]
				*t = h.tracks[q]
				if soon := m.now.Add(c.Interval); soon.Before(t.due) {
					t.due = soon // the interval has become shorter
				}
				for _, f := range t.flights {
					m.flights[f.id] = place{i, k}
				}
			}
		}
		for k, c := range cfg.Checks {
			tracks[k].phase = cfg.phaseOf(i, c.Interval)
		}
		h.tracks = tracks
	}

	m.role = slices.IndexFunc(cfg.Checks, func(k Check) bool { return k.Role != nil })
	if m.role < 0 {
		m.writers, m.severalSince = nil, time.Time{}
		for i := range m.hosts {
			m.hosts[i].role = identified{}
		}
	}
	m.cheap, m.longest, m.beat = 0, 0, 0
	for _, k := range cfg.Checks {
		if !k.Script {
			m.cheap++
		}
		m.longest, m.beat = max(m.longest, 2*k.Timeout), max(m.beat, k.Interval)
	}
	m.watch = max(cfg.FastInterval, time.Duration(m.cheap*len(cfg.Hosts))*time.Second/watchRate)
}

// reconfigure replaces the Config.
func (m *Machine) reconfigure(cfg Config) {
	if m.plan.host >= 0 && !slices.Contains(cfg.Hosts, m.hosts[m.plan.host].name) {
		m.unplan("it is no host any more")
	}
	moved := func(i int) int {
		if i < 0 {
			return -1
		}
		return slices.Index(cfg.Hosts, m.hosts[i].name)
	}
	elect, prefer, planned := moved(m.elect), moved(m.prefer), moved(m.plan.host)
	m.adopt(cfg)
	m.elect, m.prefer, m.plan.host = elect, prefer, planned
	m.back = m.back && prefer >= 0
	m.backoff = firstBackoff
	switch {
	case m.phase == Serving && elect < 0:
		m.cause = m.last + " is no host any more"
		m.do(Lost{Host: m.last, Epoch: m.epoch, Reason: m.cause})
		m.unplan("the primary is no host any more")
		m.shut()
		m.selectAgain()
	case m.phase == Selecting:
		m.startRound(false) // the new Config may be the way out
	}
}
