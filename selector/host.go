package selector

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// State is what the thresholds make of the results.
type State int

// The states. Unknown is not usable.
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

// answer is what a host said when it was last asked for an election.
type answer int

const (
	none answer = iota
	passed
	failed
)

// host is one candidate.
type host struct {
	name   string
	tracks []track // one for each of Config.Checks

	seen    State     // the state that was told last
	changed time.Time // real: since when it is in that state
	upSince time.Time // when it became up; kept only while it is

	wasUp    bool        // since it was last down
	failures []time.Time // when it went down, the last few
	drained  bool        // by the operator

	aside     bool // a trigger failed: not chosen before the next timed round
	knownDown bool // when the round began, so nobody waits for it
	deaf      bool // it did not accept connections then
	refusing  bool // a cheap check failed since the scripts were last asked
}

// track is the record of one check of one host.
type track struct {
	state  State
	streak int // successes in a row, or failures as a negative number
	last   Outcome

	flights  []flight      // oldest first
	asked    time.Time     // when the last one was started
	due      time.Time     // when the next one is, unless there is a reason to hurry
	youngest uint64        // the youngest check that passed; what is older proves nothing any more
	latency  time.Duration // smoothed over the checks that passed

	suspect uint64    // zero, or the first check whose success clears the suspicion
	doubted time.Time // when the suspicion arose; zero when there is none, or it was cleared
	told    bool      // the suspicion was returned as a fact
	toldAt  time.Time // when one was

	wanted    bool   // an answer is wanted and no check for it has been started
	freshFrom uint64 // the first check that counts as an answer
	answer    answer
}

// flight is one check that has been started and whose result has not come.
type flight struct {
	id     uint64
	at     time.Time
	void   bool // the machine slept meanwhile: its result proves nothing
	judged bool // its outcome is known, or it counted as failed without one
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

// standing is what the host's answers come to in an election.
func (h *host) standing() answer {
	all := passed
	for i := range h.tracks {
		switch h.tracks[i].answer {
		case failed:
			return failed
		case none:
			all = none
		case passed:
		}
	}
	return all
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
	return strings.Join(strings.Fields(err.Error()), " ")
}

// step folds one result into t.
func (t *track) step(ok bool, rise, fall int) {
	if ok {
		t.streak = max(t.streak, 0) + 1
	} else {
		t.streak = min(t.streak, 0) - 1
	}
	switch {
	case t.streak >= rise:
		t.state = Up
	case -t.streak >= fall:
		t.state = Down
	}
}

// inFlight counts the checks whose result is still worth something.
func (t *track) inFlight() int {
	n := 0
	for _, f := range t.flights {
		if !f.void && !f.judged {
			n++
		}
	}
	return n
}

// patience is how long a check may take before that is suspicious.
func (m *Machine) patience(t *track, c Check) time.Duration {
	return min(max(m.cfg.FastInterval, 4*t.latency), c.Timeout)
}

// result takes in the outcome of a check.
func (m *Machine) result(r Result) {
	f, p, ok := m.find(r.ID)
	if !ok {
		return
	}
	was := *f
	f.judged = true
	if !r.Running {
		m.ended(r.ID)
	}
	switch {
	case was.judged:
	case was.void:
		m.hosts[p.host].tracks[p.check].renew(r.ID)
	default:
		m.observe(p.host, p.check, was, r)
	}
}

// find returns the check id, which has not ended, and where it belongs.
func (m *Machine) find(id uint64) (*flight, place, bool) {
	p, ok := m.flights[id]
	if !ok {
		return nil, p, false
	}
	flights := m.hosts[p.host].tracks[p.check].flights
	n := slices.IndexFunc(flights, func(f flight) bool { return f.id == id })
	return &flights[n], p, true
}

// ended forgets the check id.
func (m *Machine) ended(id uint64) {
	if p, ok := m.flights[id]; ok {
		delete(m.flights, id)
		t := &m.hosts[p.host].tracks[p.check]
		t.flights = slices.DeleteFunc(t.flights, func(f flight) bool { return f.id == id })
	}
}

// renew asks again when the check id, which came to nothing, was to be the answer.
func (t *track) renew(id uint64) {
	if id >= t.freshFrom && t.answer == none {
		t.wanted = true
	}
}

// observe folds what a check found into the record of its host.
func (m *Machine) observe(i, k int, f flight, r Result) {
	h := &m.hosts[i]
	t := &h.tracks[k]
	if f.id < t.youngest {
		return // a check that began later has passed: this is old news
	}
	t.last = Outcome{At: m.real, OK: r.OK, Local: r.Local, Phase: r.Phase, Err: r.Err, Latency: r.Latency}
	if !r.Local {
		was := t.state
		t.step(r.OK, m.cfg.Rise, m.cfg.Fall)
		if r.OK {
			m.cleared(h, k, f)
		} else if was == Up && t.state == Up {
			m.suspect(i, k, r.Err)
		}
		if was != Down && t.state == Down {
			t.suspect = 0
			if k == 0 {
				h.forget()
			}
		}
		m.noteState(h, k, r.Err)
	}
	if f.id >= t.freshFrom {
		m.answered(h, k, r.OK)
	}
}

// cleared takes in the success of check f.
func (m *Machine) cleared(h *host, k int, f flight) {
	t := &h.tracks[k]
	t.youngest = f.id
	took := m.now.Sub(f.at)
	if t.latency == 0 {
		t.latency = took
	} else {
		t.latency += (took - t.latency) / 8
	}
	if f.id < t.suspect {
		return // it began before there was a doubt
	}
	if t.suspect != 0 && t.told {
		m.do(Cleared{Host: h.name, Check: m.cfg.Checks[k].Name})
	}
	t.suspect, t.doubted = 0, time.Time{}
}

// forget drops what was known of the checks that are not asked any more,
// because the host does not accept connections: when it does again, they
// start from nothing.
func (h *host) forget() {
	for k := 1; k < len(h.tracks); k++ {
		t := &h.tracks[k]
		t.state, t.streak, t.suspect, t.doubted = Unknown, 0, 0, time.Time{}
	}
}

// noteState tells a change of h's state, which check k brought about.
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
		m.noteFailure(h)
	}
	for i := range h.tracks {
		h.tracks[i].toldAt = time.Time{} // what comes now is news again
	}
	m.do(HostChanged{Host: h.name, From: from, To: to, Check: m.cfg.Checks[k].Name, Err: err})
}

// suspect has check k of host i asked at the fast interval until it passes or
// is down.
func (m *Machine) suspect(i, k int, err error) {
	h := &m.hosts[i]
	t := &h.tracks[k]
	if t.suspect != 0 {
		return
	}
	t.suspect, t.doubted = m.nextID, m.now
	t.told = t.toldAt.IsZero() || m.now.Sub(t.toldAt) >= quiet
	if t.told {
		t.toldAt = m.now
		m.do(Suspected{Host: h.name, Check: m.cfg.Checks[k].Name, Err: err})
	}
}

// judge takes checks that should have ended long ago as failed.
func (m *Machine) judge() {
	for i := range m.hosts {
		for k, c := range m.cfg.Checks {
			if c.Script {
				// A script may wait for its turn, so its age says nothing;
				// whoever runs it ends it.
				continue
			}
			t := &m.hosts[i].tracks[k]
			for n := range t.flights {
				f := &t.flights[n]
				if f.void || f.judged || m.now.Before(f.at.Add(c.Timeout+overdue)) {
					continue
				}
				f.judged = true
				m.observe(i, k, *f, Result{Err: errOverdue, Latency: m.now.Sub(f.at)})
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
		if !f.void && !f.judged && f.id > t.youngest {
			return f.at.Add(m.patience(t, c)), true
		}
	}
	return time.Time{}, false
}
