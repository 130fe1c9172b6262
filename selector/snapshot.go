package selector

import (
	"net/netip"
	"slices"
	"time"

	"understudy/internal/role"
)

// Snapshot is the state of a Machine at one moment. It shares no memory with
// the machine.
type Snapshot struct {
	Phase   Phase
	Since   time.Time // when the phase began
	Epoch   uint64
	Primary string     // empty unless Serving
	Elect   string     // the host of the last election; empty before the first
	Addr    netip.Addr // its address then; zero when it is not a name
	RetryAt time.Time  // when hosts whose triggers failed are tried again; zero unless no host was usable
	Frozen  bool
	Awaited string // the last primary, while the election waits for it although another host is usable; or empty
	Planned string // the host of a planned change that is being checked, or empty
	Hosts   []Host // in the operator's order

	Roles bool // there is a role check; with it:

	Term     uint64   // of the last primary; zero where it is not known
	TermOf   string   // the last primary; empty before the first
	Identity string   // of the cluster; empty where it is not known
	Writers  []string // the hosts that say that they are primary, if several do
	Loss     Loss     // what the best candidate lacks now

	Proposal Proposal // with Config.Shared: the election that the machine would make now

	Verifying bool // while switching: the triggers have run, and Elect must say that it is primary
}

// Host is the state of one host.
type Host struct {
	Name     string
	Addr     netip.Addr // where its checks are run; zero when none passed yet, and when it is not a name
	State    State
	Since    time.Time // when it came into that state; zero when it never left Unknown
	Rejected bool      // a trigger failed for it in this election

	Rejection string // how it failed, one line; empty if it is not rejected
	Drained   bool
	Failures  int           // in the last ten minutes
	Penalty   time.Duration // how long it must have been up because of those; usually zero
	Guarded   bool          // and it has not been up for that long
	Unfit     bool          // see [Unfit]

	Checks []Record // in the order of Config.Checks

	// With a role check:
	Says role.Role  // now
	Fact *role.Fact // the last one with a role, and when it was asked for; nil before the first
	At   time.Time
	Lag  role.Lag // behind the last primary; also of a replica that was promoted since
}

// Record is the state of one check of one host.
type Record struct {
	Name      string
	Interval  time.Duration // from one start to the next
	State     State
	Streak    int         // successes in a row, or failures as a negative number
	Failing   time.Time   // when the first of those failures began; zero when it passed
	Failure   CheckResult // the last of them; never a result that is unknown
	Suspected bool
	InFlight  int
	Last      CheckResult // zero before the first
}

// CheckResult is the result of one check.
type CheckResult struct {
	At      time.Time
	OK      bool
	Unknown bool   // failed, and this proves nothing about the host
	Phase   string // how far the check got
	Err     error
	Latency time.Duration
}

// Snapshot returns the current state of the machine.
func (m *Machine) Snapshot() Snapshot {
	s := Snapshot{Phase: m.phase, Since: m.since, Epoch: m.epoch, Frozen: m.frozen, Hosts: make([]Host, len(m.hosts))}
	s.Elect, s.Addr, s.Proposal = m.last, m.addr, m.shared.proposal
	if m.phase == Serving {
		s.Primary = m.last
	}
	if m.phase == Selecting && m.awaited {
		s.Awaited = m.hosts[m.lastPrimary()].name
	}
	if m.plan.host >= 0 {
		s.Planned = m.hosts[m.plan.host].name
	}
	if m.phase == Selecting && !m.retryAt.IsZero() {
		s.RetryAt = m.retryAt.Add(m.lost)
	}
	if m.role >= 0 {
		s.Roles, s.Verifying = true, !m.verifyBy.IsZero()
		s.Term, s.TermOf, s.Identity, s.Writers, s.Loss = m.term, m.termOf, m.identity, slices.Clone(m.writers), m.loss()
	}
	records := make([]Record, len(m.hosts)*len(m.cfg.Checks)) // of all hosts: one allocation
	for i := range m.hosts {
		h := &m.hosts[i]
		rejection := ""
		if h.rejected {
			rejection = h.rejection
		}
		s.Hosts[i] = Host{
			Name: h.name, Addr: h.addr, State: h.state(), Since: h.changed, Rejected: h.rejected, Rejection: rejection,
			Drained: h.drained, Failures: m.recentFailures(h), Penalty: m.penalty(h), Guarded: m.guarded(h), Unfit: h.unfit,
			Checks: records[:len(h.tracks):len(h.tracks)],
			Says:   h.role.says, Fact: h.role.fact,
		}
		records = records[len(h.tracks):]
		if h.role.fact != nil {
			s.Hosts[i].At, s.Hosts[i].Lag = h.role.at.Add(m.lost), m.lag(i)
		}
		for k := range h.tracks {
			t := &h.tracks[k]
			s.Hosts[i].Checks[k] = Record{
				Name: m.cfg.Checks[k].Name, Interval: m.cfg.Checks[k].Interval, State: t.state, Streak: t.streak,
				Failure: t.failure, Suspected: t.suspect != 0, InFlight: t.inFlight(), Last: t.last,
			}
			if !t.failing.IsZero() {
				s.Hosts[i].Checks[k].Failing = t.failing.Add(m.lost)
			}
		}
	}
	return s
}
