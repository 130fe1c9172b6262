package selector

import (
	"slices"
	"time"
)

// adopt takes cfg, which is valid, for the rules. What is known of a host stays
// as far as it is asked the same questions.
func (m *Machine) adopt(cfg Config) {
	cfg = cfg.withDefaults()
	before, asked := m.hosts, m.cfg.Checks
	m.cfg = cfg
	m.hosts, m.flights = make([]host, len(cfg.Hosts)), map[uint64]place{}
	for i, name := range cfg.Hosts {
		h := &m.hosts[i]
		h.name = name
		tracks := make([]track, len(cfg.Checks))
		if was := slices.IndexFunc(before, func(h host) bool { return h.name == name }); was >= 0 {
			*h = before[was]
			for k, c := range cfg.Checks {
				q := slices.IndexFunc(asked, func(a Check) bool { return a.Name == c.Name && a.Spec == c.Spec && a.Script == c.Script })
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
		h.tracks = tracks
	}

	cheap := 0
	m.longest = 0
	for _, k := range cfg.Checks {
		if !k.Script {
			cheap++
		}
		m.longest = max(m.longest, 2*k.Timeout)
	}
	m.watch = max(cfg.FastInterval, time.Duration(cheap*len(cfg.Hosts))*time.Second/watchRate)
}

// changeRules takes new rules in.
func (m *Machine) changeRules(cfg Config) {
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
		m.startRound(false) // the new rules may be the way out
	}
}
