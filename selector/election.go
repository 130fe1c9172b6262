package selector

import "time"

// selectAgain begins an election: what was known before is not enough.
func (m *Machine) selectAgain() {
	m.planned = -1
	m.enter(Selecting)
	m.startRound(false)
}

// startRound asks every host anew, all at the same time. A host that is down,
// or again did not pass in the round before, is not waited for, unless it did
// not accept connections then and does now: it is on its way back.
func (m *Machine) startRound(again bool) {
	m.retryAt, m.chooseBy = time.Time{}, time.Time{}
	m.roundBy = m.now.Add(m.longest)
	for i := range m.hosts {
		h := &m.hosts[i]
		h.knownDown = h.state() == Down || again && h.standing() != passed
		h.deaf = h.tracks[0].state == Down
		m.ask(h, again)
	}
}

// ask wants fresh answers of every check of h. When it is asked again, an
// answer that is still awaited stays awaited: a script may have to wait for
// longer than a round before it can run.
func (m *Machine) ask(h *host, again bool) {
	h.refusing = false
	for k, c := range m.cfg.Checks {
		if t := &h.tracks[k]; again && c.Script && t.answer == none && !t.wanted {
			continue
		}
		m.want(h, k)
	}
}

// want wants a fresh answer of one check of h.
func (m *Machine) want(h *host, k int) {
	t := &h.tracks[k]
	t.answer, t.wanted, t.freshFrom = none, true, m.nextID
	if !m.cfg.Checks[k].Script || len(t.flights) == 0 {
		return
	}
	// A script that runs cannot be started again. If it began a moment ago,
	// its answer is as fresh as any; if not, it has to run once more.
	if f := t.flights[0]; !f.void && !f.judged && m.now.Sub(f.at) <= m.cfg.FastInterval {
		t.wanted, t.freshFrom = false, f.id
	}
}

// answered takes in h's answer to check k.
func (m *Machine) answered(h *host, k int, ok bool) {
	t := &h.tracks[k]
	t.answer = failed
	if ok {
		t.answer = passed
	}
	if m.cfg.Checks[k].Script {
		return
	}
	if !ok {
		h.refusing = true
		return
	}
	if !h.refusing {
		return
	}
	for k, c := range m.cfg.Checks {
		if !c.Script && h.tracks[k].answer != passed {
			return
		}
	}
	// The host has come back: its scripts are asked now, and not in the next
	// round. It takes a turn from failing to passing, so a script that keeps
	// failing does not run all the time.
	h.refusing = false
	for k, c := range m.cfg.Checks {
		if c.Script {
			m.want(h, k)
		}
	}
}

// choose elects the first host in order that passed, once nobody whom the
// operator prefers can be expected to answer.
func (m *Machine) choose() {
	best, pending, awaited := -1, false, false
	for i := range m.hosts {
		h := &m.hosts[i]
		if h.aside {
			continue
		}
		standing := h.standing()
		if standing == passed {
			best = i
			break
		}
		if standing == none {
			pending = true
			awaited = awaited || !h.knownDown || h.deaf && h.tracks[0].answer == passed
		}
	}
	if best < 0 {
		m.chooseBy = time.Time{}
		switch {
		case m.retryAt.IsZero():
			// Somebody may not answer for long: a script can be stuck in the
			// kernel. The others are asked again meanwhile.
			if !pending || !m.now.Before(m.roundBy) {
				m.roundFailed()
			}
		case !m.now.Before(m.retryAt):
			for i := range m.hosts {
				m.hosts[i].aside = false
			}
			m.startRound(true)
		}
		return
	}
	if m.chooseBy.IsZero() {
		m.chooseBy = m.now.Add(m.cfg.Checks[0].Timeout)
	}
	if awaited && m.now.Before(m.chooseBy) {
		return
	}
	switch m.elect {
	case -1:
		m.electHost(best, Start, "first usable host at the start")
	case best:
		m.electHost(best, Reselect, m.cause)
	default:
		m.electHost(best, Failover, m.cause)
	}
}

// roundFailed waits for the next round.
func (m *Machine) roundFailed() {
	wait := m.backoff
	m.retryAt = m.now.Add(wait)
	m.backoff = min(2*wait, m.cfg.MaxBackoff)
	fact := RoundFailed{Wait: wait}
	for i := range m.hosts {
		h := &m.hosts[i]
		fact.Hosts = append(fact.Hosts, Refusal{Host: h.name, Reason: h.whyNot(m.cfg.Checks)})
	}
	m.do(fact)
}

// electHost makes host i the next primary.
func (m *Machine) electHost(i int, kind Kind, reason string) {
	old := ""
	if m.elect >= 0 {
		old = m.hosts[m.elect].name
	}
	h := &m.hosts[i]
	for k := range h.tracks {
		// It was asked just now; the thresholds are for those who were not.
		t := &h.tracks[k]
		t.state, t.streak = Up, max(t.streak, 1)
	}
	m.noteState(h, 0, nil)
	m.epoch++
	m.elect, m.gone, m.planned = i, false, -1
	m.retryAt, m.chooseBy = time.Time{}, time.Time{}
	m.enter(Switching)
	m.do(Switch{Epoch: m.epoch, Host: h.name, Old: old, Kind: kind, Reason: reason})
}

// failback returns to a preferred host that was up for long enough and still
// passes when it is asked now.
func (m *Machine) failback() {
	if m.cfg.Failback == 0 {
		return
	}
	if m.planned >= 0 {
		h := &m.hosts[m.planned]
		switch h.standing() {
		case none:
			return
		case passed:
			m.shut()
			m.electHost(m.planned, Failback, h.name+" has been up for "+m.cfg.Failback.String())
			return
		case failed:
			m.do(Declined{Host: h.name, Kind: Failback, Reason: h.whyNot(m.cfg.Checks)})
			h.upSince = m.now
			m.planned = -1
		}
	}
	for i := range m.hosts[:m.elect] {
		if at, ok := m.failbackAt(i); ok && !m.now.Before(at) {
			m.planned = i
			m.ask(&m.hosts[i], false)
			return
		}
	}
}

// failbackAt returns when host i, which is preferred to the primary, may take
// over again.
func (m *Machine) failbackAt(i int) (time.Time, bool) {
	h := &m.hosts[i]
	if h.state() != Up || h.suspected() {
		return time.Time{}, false
	}
	return h.upSince.Add(m.cfg.Failback), true
}
