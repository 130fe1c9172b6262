package selector

import "time"

// Snapshot is what a Machine knows at one moment. It shares nothing with the
// machine.
type Snapshot struct {
	Phase   Phase
	Since   time.Time // when the phase began
	Epoch   uint64
	Primary string    // empty unless Serving
	Elect   string    // the host of the last election; empty before the first
	RetryAt time.Time // the next round; zero unless a failed one is waited out
	Frozen  bool
	Planned string // the host that a planned change asks at present, or empty
	Hosts   []Host // in the operator's order
}

// Host is what is known of one host.
type Host struct {
	Name  string
	State State
	Since time.Time // when it came into that state; zero when it never left Unknown
	Aside bool      // a trigger failed for it in this election

	Drained  bool
	Failures int           // in the last ten minutes
	Penalty  time.Duration // how long it must have been up because of those; mostly zero
	Guarded  bool          // and it has not been up for that long

	Checks []Record // in the order of Config.Checks
}

// Record is what is known of one check of one host.
type Record struct {
	Name      string
	State     State
	Streak    int // successes in a row, or failures as a negative number
	Suspected bool
	InFlight  int
	Last      Outcome // zero before the first
}

// Outcome is how one check ended.
type Outcome struct {
	At      time.Time
	OK      bool
	Local   bool   // failed, and the host was not to blame
	Phase   string // how far the check came
	Err     error
	Latency time.Duration
}

// Snapshot returns what the machine knows now.
func (m *Machine) Snapshot() Snapshot {
	s := Snapshot{Phase: m.phase, Since: m.since, Epoch: m.epoch, Frozen: m.frozen, Hosts: make([]Host, len(m.hosts))}
	s.Elect = m.last
	if m.phase == Serving {
		s.Primary = m.last
	}
	if m.plan.host >= 0 {
		s.Planned = m.hosts[m.plan.host].name
	}
	if m.phase == Selecting && !m.retryAt.IsZero() {
		s.RetryAt = m.retryAt.Add(m.lost)
	}
	for i := range m.hosts {
		h := &m.hosts[i]
		s.Hosts[i] = Host{
			Name: h.name, State: h.state(), Since: h.changed, Aside: h.aside,
			Drained: h.drained, Failures: m.recentFailures(h), Penalty: m.penalty(h), Guarded: m.guarded(h),
			Checks: make([]Record, len(h.tracks)),
		}
		for k := range h.tracks {
			t := &h.tracks[k]
			s.Hosts[i].Checks[k] = Record{
				Name: m.cfg.Checks[k].Name, State: t.state, Streak: t.streak,
				Suspected: t.suspect != 0, InFlight: t.inFlight(), Last: t.last,
			}
		}
	}
	return s
}
