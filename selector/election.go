package selector

import (
	"slices"
	"time"
)

// selectAgain begins an election: the earlier results are not enough.
func (m *Machine) selectAgain() {
	m.plan = noPlan
	m.enter(Selecting)
	m.startRound(false)
}

// startRound checks every host anew, all at the same time. The round does not
// wait for a host that is down or, with again, did not pass in the round
// before, unless the host accepts connections now and did not then: it is
// coming back.
func (m *Machine) startRound(again bool) {
	m.retryAt, m.passedAt, m.chooseBy = time.Time{}, time.Time{}, time.Time{}
	m.awaited, m.waitReported = false, false
	m.roundBy = m.now.Add(m.longest)
	if !again {
		m.quickBy = m.now.Add(quickFor)
	}
	for i := range m.hosts {
		m.doNotAwait(i, again)
		m.requestAll(&m.hosts[i], again)
	}
}

// doNotAwait sets that the round does not wait for host i if it is down or,
// with before, did not pass.
func (m *Machine) doNotAwait(i int, before bool) {
	h := &m.hosts[i]
	h.knownDown = h.state() == Down || before && m.standing(i) != passed
	h.unreachable = h.tracks[0].state == Down
}

// requestAll requests fresh results of every check of h. With again, a result
// that is still awaited stays awaited: a script may have to wait longer than
// one round before it can run.
func (m *Machine) requestAll(h *host, again bool) {
	h.refusing = false
	for k, c := range m.cfg.Checks {
		if t := &h.tracks[k]; again && c.Script && t.answer == none && !t.wanted {
			continue
		}
		m.request(h, k)
	}
}

// request requests a fresh result of one check of h.
func (m *Machine) request(h *host, k int) {
	t := &h.tracks[k]
	t.answer, t.wanted, t.freshFrom = none, true, m.nextID
	if !m.cfg.Checks[k].Script || len(t.flights) == 0 {
		return
	}
	// A script that is running cannot be started again. If it began a moment
	// ago, its result is fresh enough; if not, it has to run once more.
	if f := t.flights[0]; !f.void && !f.settled && m.now.Sub(f.at) <= m.cfg.FastInterval {
		t.wanted, t.freshFrom = false, f.id
	}
}

// answered records h's result of check k.
func (m *Machine) answered(h *host, k int, a answer) {
	t := &h.tracks[k]
	t.answer = a
	if m.cfg.Checks[k].Script {
		return
	}
	if a != passed {
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
	// The host has come back: its scripts are run now instead of when they are
	// due. This takes a change from failing to passing, so a script that keeps
	// failing does not run all the time.
	h.refusing = false
	for k, c := range m.cfg.Checks {
		if c.Script {
			m.request(h, k)
		}
	}
}

// choose elects the first host in order that passed, as soon as no host before
// it can be expected to answer.
func (m *Machine) choose() {
	last := m.lastPrimary()
	best, pending, awaited, decided := -1, false, false, false
	for _, i := range m.inOrder() {
		h := &m.hosts[i]
		if m.ineligible(i) != "" || m.blocked(i) != "" {
			continue
		}
		standing := m.standing(i)
		if standing == passed && decided {
			continue
		}
		if standing == passed && (m.guarded(h) || h.unfit) && !m.agreedOn(i) && (i != last || !m.noneWasUsable()) && !m.writer(i) {
			// It has failed too often to be preferred to another host, or is down for
			// others, but is better than none, and than one that lacks data which it has.
			if best < 0 {
				best = i
			}
			continue
		}
		if standing == passed {
			decided = true
			if !m.fresher(best, i) { // one that failed too often
				best = i
			}
			if m.role < 0 {
				break
			}
			continue // the facts of the others may put one of them first
		}
		if standing == none {
			pending = true
			awaited = awaited || !h.knownDown || m.writer(i) || h.unreachable && h.tracks[0].answer == passed || i == last && m.answersSoon(h)
		}
	}
	if best < 0 {
		m.passedAt, m.chooseBy, m.awaited, m.waitReported = time.Time{}, time.Time{}, false, false
		switch {
		case m.retryAt.IsZero():
			// A result may not come for a long time: a script can hang in the
			// kernel.
			if !pending || !m.now.Before(m.roundBy) {
				m.roundFailed()
			}
		case m.now.Before(m.retryAt):
		case slices.ContainsFunc(m.hosts, func(h host) bool { return h.rejected }):
			for i := range m.hosts {
				m.hosts[i].rejected = false
			}
			m.startRound(true)
		default:
			m.roundFailed()
		}
		return
	}
	if m.passedAt.IsZero() {
		m.passedAt = m.now
	}
	wait := time.Duration(0)
	if awaited {
		wait = m.cfg.Checks[0].Timeout
	}
	if best != last && last >= 0 && m.ineligible(last) == "" && !m.supersedes(best) && m.noneWasUsable() {
		wait = max(wait, m.await(last, best))
	}
	m.chooseBy = m.passedAt.Add(wait)
	if m.now.Before(m.chooseBy) {
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
		m.electHost(best, m.again(best), m.cause)
	default:
		m.electHost(best, Failover, m.cause)
	}
}

// roundFailed reports that no host is usable. All hosts are checked further.
func (m *Machine) roundFailed() {
	wait := min(m.backoff, m.cfg.MaxBackoff)
	m.retryAt, m.noneUsable = m.now.Add(wait), true
	m.backoff = 2 * wait
	fact := RoundFailed{Wait: wait}
	for i, h := range m.hosts {
		fact.Hosts = append(fact.Hosts, Refusal{Host: h.name, Reason: m.whyNot(i)})
		m.doNotAwait(i, true)
	}
	m.do(fact)
}

// electHost makes host i the next primary.
func (m *Machine) electHost(i int, kind Kind, reason string) {
	if m.cfg.Shared {
		m.offer(i, kind, reason, m.cfg.Drain)
		return
	}
	h := &m.hosts[i]
	elected := Switch{Epoch: m.epoch + 1, Host: h.name, Old: m.last, Kind: kind, Reason: reason, Addr: h.addr, OldAddr: m.addr}
	if m.role >= 0 {
		elected.Fact = h.role.fact
		if h.name != m.last {
			elected.Loss = m.lossOf(i)
		}
	}
	m.goesOn = i == m.incumbent()
	m.passes(h)
	m.epoch++
	if kind == Switchover || kind == Failback {
		m.prefer, m.back = m.elect, true
	}
	m.elect, m.last, m.addr, m.electDown, m.plan, m.stayed = i, h.name, h.addr, false, noPlan, false
	m.retryAt, m.passedAt, m.chooseBy = time.Time{}, time.Time{}, time.Time{}
	m.done, m.noneUsable, m.awaited, m.waitReported = false, false, false, false
	m.enter(Switching)
	m.do(elected)
}

// pursue makes the planned change of primary once the host passes, and plans a
// failback when one is due.
func (m *Machine) pursue() {
	if m.plan.host < 0 {
		m.planFailback()
		return
	}
	switch standing := m.standing(m.plan.host); {
	case standing == passed && m.cfg.Shared && m.plan.offered && !m.now.Before(m.plan.by):
		m.unplan(NotAgreed)
	case standing == passed && m.cfg.Shared:
		if p := &m.plan; !p.offered {
			p.offered, p.by = true, m.now.Add(agreeFor)
		}
		m.offer(m.plan.host, m.plan.kind, m.plan.reason, m.plan.drain)
	case standing == passed:
		p := m.plan
		m.shut()
		m.holdUntil = m.holdUntil.Add(p.drain)
		m.electHost(p.host, p.kind, p.reason)
	case standing == failed:
		m.unplan(m.whyFailed(m.plan.host))
		m.planFailback() // a failback may have become due meanwhile
	case !m.now.Before(m.plan.by):
		m.unplan("it did not answer in time")
		m.planFailback()
	}
}

// unplan cancels the planned change. A failback is tried again after the host
// has been up for the failback time once more.
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
	m.requestAll(&m.hosts[i], false)
}

// move plans the switchover that an operator requested, or declines it with the
// reason.
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

// nextUp returns the host that would most likely be elected now; -1 when every
// other host is down. The host is checked before anything happens, so a host
// whose state is unknown is acceptable where none is known to be up.
func (m *Machine) nextUp() int {
	best, rank := -1, 0
	order := make([]int, len(m.hosts))
	for i := range order {
		order[i] = i
	}
	for _, i := range m.byRole(order) {
		h := &m.hosts[i]
		fit := 0
		switch {
		case i == m.elect || h.drained || h.state() == Down:
		case h.state() == Unknown:
			fit = 1
		case m.guarded(h) || h.unfit:
			fit = 2
		default:
			fit = 3
		}
		if fit > rank && (rank != 2 || !m.fresher(best, i)) {
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

// failbackAt returns when host i, which is preferred to the primary, may become
// primary again.
func (m *Machine) failbackAt(i int) (time.Time, bool) {
	h := &m.hosts[i]
	// A host that says that it is primary beside the primary is a matter for a person.
	if h.state() != Up || h.suspected() || h.drained || h.unfit || m.frozen || m.writer(i) {
		return time.Time{}, false
	}
	return h.upSince.Add(max(m.cfg.Failback, m.penalty(h))), true
}
