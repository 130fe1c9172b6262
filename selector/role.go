package selector

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"understudy/internal/role"
)

// A role check asks a host who it is, and its answer is a fact: primary or replica,
// of which cluster, in which term, how far behind. The election stands on the facts of
// all hosts, so it is here that they get their meaning:
//
//   - A primary is usable. A replica is, with Promote, if its lag is within the limits:
//     the trigger promotes it, and clients are connected when it says primary.
//   - A host that says primary comes before every replica. Of two that say it, the one
//     with the higher term is the later one. Without that difference the last primary
//     stays, and two writers are only reported.
//   - A host with the identity of another cluster is not usable, and neither is a second
//     writer, or a primary of a term before that of the last one: it has missed writes. It
//     counts again once it has been a replica, and also while the last primary is drained.
//   - A host that is starting, is a replica or lags has not failed: the flap guard does
//     not count it.

// RoleRules decide what the facts of a role check mean.
type RoleRules struct {
	// Promote makes replicas candidates: the triggers promote the one that is elected.
	Promote bool

	// MaxLagBytes is the largest lag of a candidate, and MaxLag where its bytes are not
	// known, or not limited. A lag that is not known is within them. Zero is no limit.
	MaxLagBytes uint64
	MaxLag      time.Duration

	// Identity is the identity of the cluster. Empty takes that of the last primary.
	// [AnyIdentity] accepts all.
	Identity string

	// Verify is the longest time, after its triggers, for the host that was elected to
	// say that it is primary. Required.
	Verify time.Duration
}

// AnyIdentity is the [RoleRules.Identity] that makes no difference between clusters.
const AnyIdentity = "any"

// Loss is how much of the data of the last primary a candidate lacks.
type Loss struct {
	Host string    // the candidate; empty where there is none
	Role role.Role // of the candidate
	Lag  role.Lag
}

// TwoWriters reports that several hosts of the cluster say that they are primary, each
// of them asked again after the other one was noticed. No action follows from it.
type TwoWriters struct{ Hosts []string }

// OneWriter reports the end of [TwoWriters].
type OneWriter struct{}

// Verifying reports that the triggers have run and that the host has until By to say
// that it is primary.
type Verifying struct {
	Host string
	By   time.Time
}

// Unverified reports that the host that was elected did not say that it is primary. It is
// rejected, and the election goes on.
type Unverified struct {
	Host   string
	Epoch  uint64
	Reason string // one line
}

func (TwoWriters) action() {}
func (OneWriter) action()  {}
func (Verifying) action()  {}
func (Unverified) action() {}

// identified is what a host has said of itself.
type identified struct {
	fact    *role.Fact // the last one with a role; nil before the first
	replica *role.Fact // the last one as a replica; nil before the first
	at      time.Time  // when the check began that brought fact
	says    role.Role  // now; Unknown where the last check brought no role
	check   uint64     // the last check that brought a fact
	became  time.Time  // when a replica was first seen as primary
	rival   bool       // it says primary, and said so beside the primary, not in a higher term
}

// rules returns the rules of the role check; nil when there is none.
func (m *Machine) rules() *RoleRules {
	if m.role < 0 {
		return nil
	}
	return m.cfg.Checks[m.role].Role
}

// learn records the fact that check f of host i brought, and returns the result by the
// rules. Whether a failure may count for the flap guard is in Result.excused.
func (m *Machine) learn(i int, f flight, r Result) Result {
	h, rules := &m.hosts[i], m.rules()
	if r.Fact == nil {
		h.role.says = role.Unknown
		return r
	}
	fact := r.Fact
	was := &h.role
	if was.says == role.Replica && fact.Role == role.Primary {
		was.became = m.now
	}
	was.says, was.check = fact.Role, f.id
	if fact.Role != role.Unknown {
		was.fact, was.at = fact, f.at
	}
	if fact.Role == role.Replica {
		was.replica, was.rival = fact, false
	}
	if i == m.elect && m.phase == Serving && m.writer(i) {
		m.served(h)
	}

	fail := func(format string, args ...any) Result {
		r.OK, r.excused, r.Err = false, true, fmt.Errorf(format, args...)
		if fact.Detail != "" {
			r.Err = fmt.Errorf("%w (%s)", r.Err, fact.Detail)
		}
		return r
	}
	switch {
	case fact.Role == role.Unknown:
		r.OK, r.Unknown = false, true
		if r.Err == nil {
			r.Err = errors.New(cmp.Or(fact.Detail, "the role is unknown"))
		}
		return r
	case fact.Role == role.Starting:
		if r.Err == nil {
			return fail("it is starting")
		}
		r.OK, r.excused = false, true
		return r
	case m.foreign(i):
		return fail("its identity %s is not that of the cluster, %s", fact.Identity, rules.Foreign(fact, m.identity))
	case m.stale(i) && fact.Term > 0 && fact.Term < m.term:
		return fail("it says primary in term %d, and %s was primary in term %d", fact.Term, m.termOf, m.term)
	case m.stale(i):
		return fail("it says primary beside %s, and no higher term shows that it comes after it", m.termOf)
	case fact.Role == role.Replica && (!rules.Promote || i == m.elect && m.phase == Serving):
		return fail("it is a replica")
	case fact.Role == role.Replica && fact.Detached && h.name != m.termOf:
		return fail("it follows no primary: its data may not be that of the cluster")
	case fact.Role == role.Replica:
		if why := rules.Refuses(m.lag(i)); why != "" {
			return fail("%s", why)
		}
	}
	r.OK, r.Phase, r.Err = true, "", nil
	return r
}

// Refuses returns why a replica with this lag is no candidate; empty when it is one.
func (r *RoleRules) Refuses(lag role.Lag) string {
	switch {
	case r.MaxLagBytes > 0 && lag.BytesKnown: // decides alone
		if lag.Bytes <= r.MaxLagBytes {
			return ""
		}
		return fmt.Sprintf("it is a replica that lags by %d bytes, and %d are allowed", lag.Bytes, r.MaxLagBytes)
	case r.MaxLag > 0 && lag.TimeKnown && lag.Time > r.MaxLag:
		return fmt.Sprintf("it is a replica that lags by %v, and %v is allowed", lag.Time.Round(100*time.Millisecond), r.MaxLag)
	}
	return ""
}

// Foreign returns the identity that a host with fact should have and does not have, where
// last is the one of the last primary; empty when the host may belong to the cluster.
func (r *RoleRules) Foreign(fact *role.Fact, last string) string {
	want := cmp.Or(r.Identity, last)
	if fact == nil || fact.Identity == "" || want == AnyIdentity || fact.Identity == want {
		return ""
	}
	return want
}

// givenUp reports whether the operator has drained the last primary, and so has given up
// what was written to it.
func (m *Machine) givenUp() bool {
	return slices.ContainsFunc(m.hosts, func(h host) bool { return h.name == m.termOf && h.drained })
}

// served records the cluster, the term and the position of h, which says that it is primary
// and is the one that clients are connected to.
func (m *Machine) served(h *host) {
	f := h.role.fact
	if f.Identity != "" {
		m.identity = f.Identity
	}
	m.term, m.termOf = f.Term, h.name
	h.role.rival = false
	m.sample(f.Position)
}

// foreign reports whether host i belongs to another cluster.
func (m *Machine) foreign(i int) bool {
	rules := m.rules()
	return rules != nil && rules.Foreign(m.hosts[i].role.fact, m.identity) != ""
}

// writer reports whether host i of the cluster says that it is primary.
func (m *Machine) writer(i int) bool { return m.hosts[i].role.says == role.Primary && !m.foreign(i) }

// stale reports whether host i says that it is primary in a term before that of the last
// primary, or said so beside it: it has missed what was written there.
func (m *Machine) stale(i int) bool {
	h := &m.hosts[i]
	if !m.writer(i) || h.name == m.termOf || m.givenUp() {
		return false
	}
	return h.role.rival && !m.demoted() || h.role.fact.Term > 0 && h.role.fact.Term < m.term
}

// demoted reports whether the last primary says that it is a replica now. Then a host that
// said primary beside it was no second writer, but its successor: who changes roles by hand
// promotes one host before demoting the other.
func (m *Machine) demoted() bool {
	return slices.ContainsFunc(m.hosts, func(h host) bool { return h.name == m.termOf && h.role.says == role.Replica })
}

// supersedes reports whether host i was promoted by somebody else after the last primary
// was lost or beside it: its term is higher, or it was a replica until then.
func (m *Machine) supersedes(i int) bool {
	w := &m.hosts[i].role
	if m.role < 0 || !m.writer(i) || m.stale(i) {
		return false
	}
	return m.term > 0 && w.fact.Term > m.term || !w.became.IsZero() && !w.became.Before(m.doubted)
}

// byRole sorts hosts, which are in order of preference, by what they say of themselves.
// Before all others comes a host that says that it is primary, of those the one with the
// higher term. The last primary keeps its place if only its role is unknown.
func (m *Machine) byRole(order []int) []int {
	if m.role < 0 {
		return order
	}
	last := m.lastPrimary()
	writes := func(i int) bool {
		return m.writer(i) || i == last && m.hosts[i].role.says == role.Unknown && m.standing(i) == passed
	}
	term := func(i int) (n uint64) {
		if i == last {
			n = m.term
		}
		if f := m.hosts[i].role.fact; f != nil {
			n = max(n, f.Term)
		}
		return n
	}
	slices.SortStableFunc(order, func(a, b int) int {
		first := func(is func(int) bool) int {
			switch was, is := is(a), is(b); {
			case was && !is:
				return -1
			case is && !was:
				return 1
			}
			return 0
		}
		if c := first(writes); c != 0 {
			return c
		}
		if writes(a) {
			if ta, tb := term(a), term(b); ta > 0 && tb > 0 && ta != tb {
				return cmp.Compare(tb, ta)
			}
			return first(m.supersedes)
		}
		if !m.cfg.Freshest {
			return 0
		}
		fa, fb := m.hosts[a].role.fact, m.hosts[b].role.fact
		if fa == nil || fb == nil {
			return first(func(i int) bool { return m.hosts[i].role.fact != nil })
		}
		return cmp.Or(cmp.Compare(fb.Term, fa.Term), cmp.Compare(fb.Position, fa.Position))
	})
	return order
}

// fresher reports whether, by the settings, replica a comes before replica b whatever
// else is said against it, because b lacks data that a has.
func (m *Machine) fresher(a, b int) bool {
	if m.role < 0 || !m.cfg.Freshest || a < 0 {
		return false
	}
	fa, fb := m.hosts[a].role.fact, m.hosts[b].role.fact
	if fa == nil || fb == nil || fa.Role != role.Replica || fb.Role != role.Replica {
		return false
	}
	return cmp.Or(cmp.Compare(fa.Term, fb.Term), cmp.Compare(fa.Position, fb.Position)) > 0
}

// blocked returns why host i, a replica, must not be promoted in an election: another
// host that works says that it is primary, and only may not be elected. Empty when there
// is no such host.
func (m *Machine) blocked(i int) string {
	if m.role < 0 || m.writer(i) {
		return ""
	}
	for j := range m.hosts {
		if j != i && m.writer(j) && !m.stale(j) && m.ineligible(j) != "" && m.standing(j) == passed {
			return "not promoted: " + m.hosts[j].name + " says that it is primary"
		}
	}
	return ""
}

// follow gives up a primary that somebody else has replaced: another host says that it is
// primary in a higher term, or says it while the primary says that it is a replica.
func (m *Machine) follow() {
	if m.role < 0 || m.frozen {
		return
	}
	h := &m.hosts[m.elect]
	for i := range m.hosts {
		w := &m.hosts[i].role
		if i == m.elect || !m.writer(i) || m.stale(i) || m.ineligible(i) != "" {
			continue
		}
		switch {
		case m.term > 0 && w.fact.Term > m.term:
			m.lose(h, fmt.Sprintf("%s says that it is primary in term %d, %s had term %d", m.hosts[i].name, w.fact.Term, m.termOf, m.term))
		case h.role.says == role.Replica:
			m.lose(h, fmt.Sprintf("%s says that it is primary, and %s that it is a replica", m.hosts[i].name, h.name))
		default:
			continue
		}
		return
	}
}

// verify opens the relay once the host that was elected says that it is primary.
func (m *Machine) verify() {
	h := &m.hosts[m.elect]
	t := &h.tracks[m.role]
	answered := h.role.check >= t.freshFrom
	switch {
	case m.electDown || h.state() == Down:
		m.verifyBy = time.Time{}
		m.cause = h.name + " went down while it was switched to"
		m.selectAgain()
	case answered && m.writer(m.elect),
		m.goesOn && t.answer == unsure && !m.foreign(m.elect): // an unknown role takes no primary down
		m.verifyBy, m.positions = time.Time{}, nil
		if h.role.says == role.Primary {
			m.served(h)
		}
		m.open()
	case !m.now.Before(m.verifyBy):
		m.verifyBy = time.Time{}
		why := fmt.Sprintf("it did not say that it is primary within %v after its triggers", m.rules().Verify)
		if h.role.says != role.Unknown {
			why = fmt.Sprintf("it still says %s %v after its triggers", h.role.says, m.rules().Verify)
		} else if t.last.Err != nil {
			why += ": " + oneLine(t.last.Err)
		}
		m.do(Unverified{Host: h.name, Epoch: m.epoch, Reason: why})
		m.reject(h, why)
	}
}

// noteWriters reports that two hosts say that they are primary, and the end of that. An
// answer from before the other one was noticed may be out of date, so each is asked again.
func (m *Machine) noteWriters() {
	if m.role < 0 || m.phase == Switching { // a planned change may pass through it
		return
	}
	var all []int
	var names []string
	for i := range m.hosts {
		if m.writer(i) && !m.hosts[i].role.fact.Shared {
			all, names = append(all, i), append(names, m.hosts[i].name)
		}
	}
	if len(all) < 2 {
		m.severalSince = time.Time{}
		if m.writers != nil {
			m.writers = nil
			m.do(OneWriter{})
		}
		return
	}
	if m.severalSince.IsZero() {
		m.severalSince = m.now
		for _, i := range all {
			m.hosts[i].tracks[m.role].due = m.now
		}
	}
	for _, i := range all {
		if m.hosts[i].role.at.Before(m.severalSince) {
			return
		}
	}
	for _, i := range all {
		if f := m.hosts[i].role.fact; m.phase == Serving && i != m.elect && (m.term == 0 || f.Term <= m.term) {
			m.hosts[i].role.rival = true
		}
	}
	if !slices.Equal(names, m.writers) {
		m.writers = names
		m.do(TwoWriters{Hosts: slices.Clone(names)})
	}
}

// hurry reports whether the roles of all hosts are asked at the fast interval although
// there is a primary: it is in doubt, or says that it is none.
func (m *Machine) hurry() bool {
	if m.phase != Serving || m.elect < 0 {
		return m.phase == Switching && !m.verifyBy.IsZero()
	}
	h := &m.hosts[m.elect]
	return h.suspected() || h.role.says == role.Replica || h.role.says == role.Starting
}

// position is how far the primary was at a time.
type position struct {
	at time.Time
	n  uint64
}

// sample records how far the primary is. Of older positions fewer are kept, so that the
// time for which a replica has been behind is known to an eighth, however long that is.
func (m *Machine) sample(n uint64) {
	if n == 0 {
		return
	}
	m.positions = append(m.positions, position{m.now, n})
	kept := m.positions[:1]
	for k := 1; k < len(m.positions)-1; k++ {
		if p := m.positions[k]; m.positions[k+1].at.Sub(kept[len(kept)-1].at) > m.now.Sub(p.at)/8 {
			kept = append(kept, p)
		}
	}
	if len(m.positions) > 1 {
		kept = append(kept, m.positions[len(m.positions)-1])
	}
	m.positions = kept
}

// lag returns how far host i is behind the last primary: by their positions where both
// are known, otherwise by what the host said itself.
func (m *Machine) lag(i int) role.Lag {
	f := m.hosts[i].role.replica // what a primary writes later closes no gap
	switch {
	case f == nil:
		return role.Lag{}
	case f.Position == 0 || len(m.positions) == 0:
		return f.Lag
	}
	lag, last := f.Lag, m.positions[len(m.positions)-1]
	if f.Bytes {
		lag.Bytes, lag.BytesKnown = max(last.n, f.Position)-f.Position, true
	}
	for _, p := range slices.Backward(m.positions) {
		if p.n <= f.Position {
			lag.Time, lag.TimeKnown = last.at.Sub(p.at), true
			return lag
		}
	}
	// It was behind before the first position that is known.
	if behind := last.at.Sub(m.positions[0].at); lag.TimeKnown && lag.Time < behind {
		lag.Time = behind
	}
	return lag
}

// loss returns what the best candidate lacks now of the data of the primary.
func (m *Machine) loss() Loss {
	if m.role < 0 {
		return Loss{}
	}
	i := m.nextUp()
	if m.phase == Switching {
		i = m.elect
	}
	if i < 0 {
		return Loss{}
	}
	return m.lossOf(i)
}

func (m *Machine) lossOf(i int) Loss {
	h := &m.hosts[i]
	return Loss{Host: h.name, Role: h.role.says, Lag: m.lag(i)}
}
