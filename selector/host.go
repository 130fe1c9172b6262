package selector

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"understudy/internal/role"
	"understudy/internal/safetext"
)

// State is the state that the thresholds derive from the results.
type State int

// The states. A host in the state Unknown is not usable.
const (
	Unknown State = iota
	Up
	Down
)

func (s State) String() string {
	switch s {
	case Unknown:
		return "unknown"
	case Up:
		return "up"
	case Down:
		return "down"
	}
	return fmt.Sprintf("state(%d)", int(s))
}

// answer is the result of the last check of a host for an election.
type answer int

const (
	none answer = iota
	passed
	failed
	unsure // the check could not determine the state
)

// host is one candidate.
type host struct {
	name   string
	tracks []track // one for each of Config.Checks

	addr   netip.Addr // see pinned; zero before the first pass, and for a host that is not a name
	next   bool       // another address is tried before addr
	turned time.Time  // when next was last set

	seen    State     // the state that was reported last
	changed time.Time // real: since when it is in that state
	upSince time.Time // when it became up; kept only while it is

	bad time.Time // when a check last failed or was late

	role identified // what it says of itself, with a role check

	wasUp    bool        // since it was last down
	failures []time.Time // when it went down, the last few
	drained  bool        // by the operator
	unfit    bool        // see Unfit

	rejected    bool   // a trigger failed: not chosen before the next timed round
	rejection   string // how it failed, one line; of the last rejection
	knownDown   bool   // when the round began, so the round does not wait for it
	unreachable bool   // it did not accept connections then
	refusing    bool   // a cheap check failed since the scripts were last run
}

// track is the record of one check of one host.
type track struct {
	state  State
	streak int // successes in a row, or failures as a negative number
	last   CheckResult
	failed time.Time // when the last failure that counts began

	phase    time.Duration // of its regular checks, from Config.Base
	flights  []flight      // oldest first
	started  time.Time     // when the last check was started
	due      time.Time     // when the next check is due, unless there is a reason to hurry
	youngest uint64        // the latest check that passed; results of earlier ones prove nothing
	latency  time.Duration // smoothed over the checks that passed

	failing time.Time   // when the first check of a row of failures began; zero when the last one passed
	failure CheckResult // the last failure in that row

	suspect    uint64    // zero, or the first check whose success clears the suspicion
	doubted    time.Time // when the suspicion arose; zero when there is none, or it was cleared
	spared     time.Time // when a failure was first ignored since the last success; zero when none was
	reported   bool      // the suspicion was returned as a fact
	reportedAt time.Time // when a suspicion was last returned

	excused bool // the last failure is none for the flap guard

	unknown   string    // the reported reason why a script or a role check had no result; empty when it has one
	unknownAt time.Time // when that was reported

	wanted    bool   // a result is requested and no check for it has been started
	freshFrom uint64 // the first check whose result counts as fresh
	answer    answer
}

// flight is one check that has been started and has no result yet.
type flight struct {
	id      uint64
	at      time.Time
	void    bool // the machine slept meanwhile: its result proves nothing
	settled bool // its outcome is known, or it counted as failed without one

	paused time.Duration // the longest delay of a Step meanwhile
	addr   netip.Addr    // the address of the host when the check was started
	pinned bool          // it tries no other address
}

var errOverdue = errors.New("timeout: the check did not end")

func (h *host) state() State {
	up := true
	for i := range h.tracks {
		switch h.tracks[i].state {
		case Down:
			return Down
		case Unknown:
			up = false
		case Up:
		}
	}
	if up {
		return Up
	}
	return Unknown
}

// standing combines the results of host i in an election: passed, failed or
// none yet. A host whose check could not determine its state is not elected.
// Such a check is no reason to elect another host, either: the last primary
// continues with an unknown check, as it would have without an election, if it
// accepts connections.
func (m *Machine) standing(i int) answer {
	h := &m.hosts[i]
	all, goesOn := passed, i == m.incumbent() && h.tracks[0].answer == passed && !m.foreign(i)
	for k := range h.tracks {
		switch t := &h.tracks[k]; t.answer {
		case failed:
			return failed
		case unsure:
			if !goesOn || t.state == Down {
				return failed
			}
		case none:
			all = none
		case passed:
		}
	}
	return all
}

// incumbent returns the host that was primary last, here or before a restart;
// -1 for none.
func (m *Machine) incumbent() int {
	if m.prefer >= 0 {
		return m.prefer
	}
	return m.elect
}

func (h *host) suspected() bool {
	for i := range h.tracks {
		if h.tracks[i].suspect != 0 {
			return true
		}
	}
	return false
}

// down returns the index of the check that is down; -1 when none is.
func (h *host) down() int {
	return slices.IndexFunc(h.tracks, func(t track) bool { return t.state == Down })
}

func oneLine(err error) string {
	if err == nil {
		return "no reason given"
	}
	return safetext.Line(err.Error())
}

// step adds the result of a check that began at began to t. A failure that
// began less than apart from the last one that counted is not counted.
func (t *track) step(ok bool, began time.Time, apart time.Duration, rise, fall int) {
	switch {
	case ok:
		t.streak = max(t.streak, 0) + 1
	case t.streak < 0 && began.Sub(t.failed).Abs() < apart:
		return
	default:
		t.streak = min(t.streak, 0) - 1
		t.failed = began
	}
	switch {
	case t.streak >= rise:
		t.state = Up
	case -t.streak >= fall:
		t.state = Down
	}
}

// inFlight counts the checks whose result still counts.
func (t *track) inFlight() int {
	n := 0
	for _, f := range t.flights {
		if !f.void && !f.settled {
			n++
		}
	}
	return n
}

// lateAfter returns how long a check may take before it becomes suspicious.
func (m *Machine) lateAfter(t *track, c Check) time.Duration {
	return min(max(m.cfg.FastInterval, 4*t.latency), c.Timeout)
}

// result processes the outcome of a check.
func (m *Machine) result(r Result) {
	f, p, ok := m.find(r.ID)
	if !ok {
		return
	}
	was := *f
	f.settled = true
	if !r.Running {
		m.ended(r.ID)
	}
	switch {
	case was.settled:
	case was.void:
		m.hosts[p.host].tracks[p.check].renew(r.ID)
	case !r.OK && m.spare(p.host, p.check, was):
	default:
		m.observe(p.host, p.check, was, r)
	}
}

// find returns the check id, which has not ended, and its place.
func (m *Machine) find(id uint64) (*flight, place, bool) {
	p, ok := m.flights[id]
	if !ok {
		return nil, p, false
	}
	flights := m.hosts[p.host].tracks[p.check].flights
	n := slices.IndexFunc(flights, func(f flight) bool { return f.id == id })
	return &flights[n], p, true
}

// ended removes the check id.
func (m *Machine) ended(id uint64) {
	if p, ok := m.flights[id]; ok {
		delete(m.flights, id)
		t := &m.hosts[p.host].tracks[p.check]
		t.flights = slices.DeleteFunc(t.flights, func(f flight) bool { return f.id == id })
	}
}

// renew requests a new check when the check id was the requested one and gave
// no result.
func (t *track) renew(id uint64) {
	if id >= t.freshFrom && t.answer == none {
		t.wanted = true
	}
}

// spare reports whether the failure of f is not counted, because this process
// was stopped for a good part of the check's timeout. The check is run again at
// once in that case.
func (m *Machine) spare(i, k int, f flight) bool {
	t := &m.hosts[i].tracks[k]
	c := m.cfg.Checks[k]
	if f.paused <= c.Timeout/pauseShare {
		return false
	}
	if t.spared.IsZero() {
		t.spared = m.now
	}
	if m.now.Sub(t.spared) > sparedFor*c.Timeout {
		return false
	}
	t.renew(f.id)
	t.due = m.now
	return true
}

// observe adds the result of a check to the record of its host.
func (m *Machine) observe(i, k int, f flight, r Result) {
	h := &m.hosts[i]
	t := &h.tracks[k]
	if f.id < t.youngest {
		return // a check that began later has passed: this result is out of date
	}
	if !m.atItsAddress(i, k, f, r) {
		t.renew(f.id)
		return
	}
	if k == m.role {
		if f.id < h.role.check {
			return // a check that began later has brought another fact
		}
		r = m.learn(i, f, r)
	}
	t.excused = r.excused
	t.last = CheckResult{At: m.real, OK: r.OK, Unknown: r.Unknown, Phase: r.Phase, Err: r.Err, Latency: r.Latency}
	m.noteUnknown(h, k, r)
	if !r.Unknown {
		was := t.state
		if r.Final && !r.OK {
			t.streak, t.failed = min(t.streak, 1-m.cfg.Fall), time.Time{}
		}
		t.step(r.OK, f.at, min(m.cfg.FastInterval, m.cfg.Checks[k].Interval), m.cfg.Rise, m.cfg.Fall)
		switch {
		case r.OK:
			t.failing, t.failure = time.Time{}, CheckResult{}
		case t.failing.IsZero() || f.at.Before(t.failing):
			t.failing, t.failure = f.at, t.last
		default:
			t.failure = t.last
		}
		if r.OK {
			m.noteSilence(h, k, f)
			m.cleared(h, k, f)
		} else {
			if !r.excused { // the host has answered
				h.bad = m.now
			}
			if was == Up && t.state == Up {
				m.suspect(i, k, r.Err)
			}
		}
		if was != Down && t.state == Down {
			t.suspect = 0
			if k == 0 {
				h.reset()
			}
		}
		m.noteState(h, k, r.Err)
	}
	m.noteAddress(i, k, r)
	if f.id >= t.freshFrom {
		answer := failed
		switch {
		case r.OK:
			answer = passed
		case r.Unknown:
			answer = unsure
		}
		m.answered(h, k, answer)
	}
}

// noteUnknown reports that a script or a role check has no result, that the reason for
// that has changed, or that it has a result again.
func (m *Machine) noteUnknown(h *host, k int, r Result) {
	t, c := &h.tracks[k], m.cfg.Checks[k]
	switch {
	case !c.Script && c.Role == nil:
	case !r.Unknown:
		if t.unknown != "" {
			t.unknown = ""
			m.do(CheckKnown{Host: h.name, Check: c.Name})
		}
	case t.unknown != oneLine(r.Err) && (t.unknownAt.IsZero() || m.now.Sub(t.unknownAt) >= quiet):
		t.unknown, t.unknownAt = oneLine(r.Err), m.now
		m.do(CheckUnknown{Host: h.name, Check: c.Name, Err: r.Err})
	}
}

// cleared processes the success of check f.
func (m *Machine) cleared(h *host, k int, f flight) {
	t := &h.tracks[k]
	t.youngest, t.spared = f.id, time.Time{}
	took := m.now.Sub(f.at) - f.paused
	if t.latency == 0 {
		t.latency = took
	} else {
		t.latency += (took - t.latency) / 8
	}
	if f.id < t.suspect {
		return // it began before there was a doubt
	}
	if t.suspect != 0 && t.reported {
		m.do(Cleared{Host: h.name, Check: m.cfg.Checks[k].Name})
	}
	t.suspect, t.doubted = 0, time.Time{}
}

// reset drops the results of the checks that are not run while the host does
// not accept connections: when it does again, they start from nothing.
func (h *host) reset() {
	h.role.says = role.Unknown
	for k := 1; k < len(h.tracks); k++ {
		t := &h.tracks[k]
		t.state, t.streak, t.failing, t.failure, t.suspect, t.doubted = Unknown, 0, time.Time{}, CheckResult{}, 0, time.Time{}
	}
}

// noteState reports a change of h's state, which check k caused.
func (m *Machine) noteState(h *host, k int, err error) {
	to := h.state()
	if to == h.seen {
		return
	}
	from := h.seen
	h.seen, h.changed = to, m.real
	switch {
	case to == Up:
		h.upSince, h.wasUp = m.now, true
	case to == Down && h.wasUp:
		h.wasUp = false
		if !h.tracks[k].excused {
			m.noteFailure(h)
		}
	}
	for i := range h.tracks {
		h.tracks[i].reportedAt = time.Time{} // a new suspicion is reported again
	}
	m.do(HostChanged{Host: h.name, From: from, To: to, Check: m.cfg.Checks[k].Name, Err: err})
}

// suspect has check k of host i run at the fast interval until it passes or is
// down.
func (m *Machine) suspect(i, k int, err error) {
	h := &m.hosts[i]
	t := &h.tracks[k]
	if t.suspect != 0 {
		return
	}
	t.suspect, t.doubted = m.nextID, m.now
	t.reported = t.reportedAt.IsZero() || m.now.Sub(t.reportedAt) >= quiet
	if t.reported {
		t.reportedAt = m.now
		m.do(Suspected{Host: h.name, Check: m.cfg.Checks[k].Name, Err: err})
	}
}

// expireChecks counts checks that should have ended long ago as failed.
func (m *Machine) expireChecks() {
	for i := range m.hosts {
		for k, c := range m.cfg.Checks {
			if c.Script {
				// A script may wait for its turn, so its age proves nothing;
				// its runner ends it.
				continue
			}
			t := &m.hosts[i].tracks[k]
			for n := range t.flights {
				f := &t.flights[n]
				if f.void || f.settled || m.now.Before(f.at.Add(c.Timeout+overdue)) {
					continue
				}
				f.settled = true
				if !m.spare(i, k, *f) {
					m.observe(i, k, *f, Result{Err: errOverdue, Latency: m.now.Sub(f.at)})
				}
			}
		}
	}
}

// lateAt returns when the oldest check in flight becomes suspicious.
func (m *Machine) lateAt(t *track, c Check) (time.Time, bool) {
	if c.Script || t.state != Up || t.suspect != 0 || m.phase == Selecting {
		return time.Time{}, false
	}
	for _, f := range t.flights {
		if !f.void && !f.settled && f.id > t.youngest {
			return f.at.Add(m.lateAfter(t, c) + f.paused), true
		}
	}
	return time.Time{}, false
}
