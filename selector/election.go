package selector

import (
	"slices"
	"time"
)

// selectAgain begins an election: what was known before is not enough.
func (m *Machine) selectAgain() {
	m.plan = noPlan
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
	for _, i := range m.inOrder() {
		h := &m.hosts[i]
		if m.barred(i) != "" {
			continue
		}
		standing := h.standing()
		if standing == passed && m.guarded(h) {
			// It has failed too often to be chosen before another one, and is
			// better than none.
			if best < 0 {
				best = i
			}
			continue
		}
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
	switch {
	case m.last == "":
		reason := "first usable host at the start"
		if best == m.prefer {
			reason = "it was elected before the start"
		}
		m.electHost(best, Start, reason)
	case m.elect == best:
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
	for i, h := range m.hosts {
		fact.Hosts = append(fact.Hosts, Refusal{Host: h.name, Reason: m.whyNot(i)})
	}
	m.do(fact)
}

// electHost makes host i the next primary.
func (m *Machine) electHost(i int, kind Kind, reason string) {
	old := m.last
	h := &m.hosts[i]
	for k := range h.tracks {
		// It was asked just now; the thresholds are for those who were not.
		t := &h.tracks[k]
		t.state, t.streak = Up, max(t.streak, 1)
	}
	m.noteState(h, 0, nil)
	m.epoch++
	if kind == Switchover || kind == Failback {
		m.prefer, m.back = m.elect, true
	}
	m.elect, m.last, m.gone, m.plan, m.stayed = i, h.name, false, noPlan, false
	m.retryAt, m.chooseBy = time.Time{}, time.Time{}
	m.enter(Switching)
	m.do(Switch{Epoch: m.epoch, Host: h.name, Old: old, Kind: kind, Reason: reason})
}

// pursue makes the change of primary that is planned once its host passes, and
// plans a failback when one is due.
func (m *Machine) pursue() {
	if m.plan.host < 0 {
		m.planFailback()
		return
	}
	h := &m.hosts[m.plan.host]
	switch standing := h.standing(); {
	case standing == passed:
		p := m.plan
		m.shut()
		m.holdUntil = m.holdUntil.Add(p.drain)
		m.electHost(p.host, p.kind, p.reason)
	case standing == failed:
		m.unplan(m.whyFailed(m.plan.host))
		m.planFailback() // one may have become due meanwhile
	case !m.now.Before(m.plan.by):
		m.unplan("it did not answer in time")
		m.planFailback()
	}
}

// unplan gives up what is planned. A failback is tried again when the host has
// been up for as long once more.
func (m *Machine) unplan(reason string) {
	if m.plan.host < 0 {
		return
	}
	h := &m.hosts[m.plan.host]
	if m.plan.kind == Failback {
		h.upSince = m.now
	}
	m.do(Declined{Host: h.name, Kind: m.plan.kind, Reason: reason})
	m.plan = noPlan
}

// propose plans to make host i primary.
func (m *Machine) propose(i int, kind Kind, reason string) {
	m.plan = plan{host: i, kind: kind, reason: reason, by: m.now.Add(m.longest + m.cfg.Checks[0].Timeout)}
	m.ask(&m.hosts[i], false)
}

// move plans what an operator asked for, or says why not.
func (m *Machine) move(ev Move) {
	i := slices.Index(m.cfg.Hosts, ev.Host)
	if ev.Host == "" {
		i = m.nextUp()
	}
	why := ""
	switch {
	case m.phase != Serving:
		why = "there is no primary now: an election is under way"
	case i < 0 && ev.Host == "":
		why = "every other host is down or drained"
	case i < 0:
		why = "there is no such host"
	case i == m.elect:
		why = "it is primary already"
	case m.hosts[i].drained:
		why = "it is drained"
	case m.plan.host >= 0 && m.plan.kind == Switchover:
		why = "another switchover is under way"
	}
	if why != "" {
		m.do(Declined{Host: ev.Host, Kind: Switchover, Reason: why})
		return
	}
	m.propose(i, Switchover, ev.Reason)
	m.plan.drain = ev.Drain
}

// nextUp is the host that would most likely take over now; -1 when every other
// one is down. It is asked before anything happens, so one that is not known yet
// will do where none is known to be up.
func (m *Machine) nextUp() int {
	best, rank := -1, 0
	for i := range m.hosts {
		h := &m.hosts[i]
		fit := 0
		switch {
		case i == m.elect || h.drained || h.state() == Down:
		case h.state() == Unknown:
			fit = 1
		case m.guarded(h):
			fit = 2
		default:
			fit = 3
		}
		if fit > rank {
			best, rank = i, fit
		}
	}
	return best
}

// planFailback plans the return to a preferred host that was up for long
// enough.
func (m *Machine) planFailback() {
	if m.cfg.Failback == 0 || m.frozen {
		return
	}
	for i := range m.hosts[:m.elect] {
		if at, ok := m.failbackAt(i); ok && !m.now.Before(at) {
			m.propose(i, Failback, m.hosts[i].name+" has been up for "+m.cfg.Failback.String())
			m.plan.drain = m.cfg.Drain
			return
		}
	}
}

// failbackAt returns when host i, which is preferred to the primary, may take
// over again.
func (m *Machine) failbackAt(i int) (time.Time, bool) {
	h := &m.hosts[i]
	if h.state() != Up || h.suspected() || h.drained || m.frozen {
		return time.Time{}, false
	}
	return h.upSince.Add(max(m.cfg.Failback, m.penalty(h))), true
}
