// Package selector decides which host is primary. It is a state machine: its
// input is events and the time, its output is actions. It has no sockets, no
// goroutines and no clock, so a test of a whole failover takes microseconds.
//
// A [Machine] also decides which check of which host to start when. Its owner
// starts the check, passes its [Result] to [Machine.Step], carries out the
// actions that Step returns in their order, and calls Step again at
// [Machine.Wake] at the latest.
//
// The machine counts only the time in which it is awake. When Step comes much
// later than Wake required (the process was stopped, or had no processor time),
// that time is not part of any duration it measures, and the checks that were
// in flight prove nothing about a host. A shorter pause counts against a check
// that failed across it, in proportion to the timeout of the check.
//
// While nothing is suspected, the checks of each host have a phase: those of many
// relays are spread over their interval, and relays with the same host and the same
// check run it at the same time, so that one run can serve them all
// ([StartCheck.Since]).
package selector

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Config holds the hosts, their checks and the rules of selection. Nothing in
// it has a default: zero means what its field says, and is an error where it
// says required.
type Config struct {
	// Hosts are the candidates in the operator's order of preference, as the
	// operator wrote them. At least one, none twice.
	Hosts []string

	// Checks are run on every host. The first is the TCP connect; the others
	// are run only while the first passes. At least one.
	Checks []Check

	// Rise is the number of successes in a row that make a check up. An election needs
	// one success only: a host that was elected is up. Required.
	Rise int

	// Fall is the number of failures in a row that make a check down. A failure counts if
	// its check began at least FastInterval after the one before, or at least
	// the check's interval if that is shorter. Required.
	Fall int

	// FastInterval is the time between the checks of a suspected host, and of
	// every host in the first seconds without a primary. Required.
	FastInterval time.Duration

	// Hold is the time for which clients wait without a primary before they are
	// refused. Zero refuses at once.
	Hold time.Duration

	// MaxBackoff is the longest time between two reports that no host is
	// usable, and between two attempts at hosts whose triggers failed. Checks
	// are not delayed by it. Required.
	MaxBackoff time.Duration

	// Stay is the time for which an election waits for the last primary when another host
	// passes first after a time in which none was usable. Zero does not wait,
	// and all elections follow the operator's order.
	Stay time.Duration

	// Failback is the time for which a host that is preferred to the primary must have
	// been up before it becomes primary again. Zero is never.
	Failback time.Duration

	// Drain is the longest time that earlier connections may take to finish in a
	// failback; clients wait for that time in addition to Hold. Zero resets them at
	// once. A [Move] has a Drain of its own.
	Drain time.Duration

	// Epoch is the epoch of the last election before this machine. The first
	// election here has the next one. Zero is none.
	Epoch uint64

	// Freshest elects, of several replicas, the one with the newest data, and only
	// between equals the first in the operator's order. Without a role check it has no
	// effect.
	Freshest bool

	// Term and Identity are those of Prefer when it was primary, as its role check said.
	// Zero is not known.
	Term     uint64
	Identity string

	// Prefer is the host that was primary before this machine. It comes first
	// in the first election, whatever the order, and the election waits for it
	// as described at Stay. Empty, or a name that is not among Hosts, is none.
	Prefer string

	// Addr is the address of Prefer. It is tried before other addresses of the
	// name. The zero Addr is none.
	Addr netip.Addr

	// Shared lets several machines agree on one primary: this one proposes only; see
	// [Agreed]. The address of no host may change then.
	Shared bool

	// Locks are the operator's locks at the start.
	Locks Locks

	// Base is the moment from which the phases of the checks are counted. With the
	// zero Time a check is started an interval after the one before.
	Base time.Time

	// Phases has a number for each of Hosts, which determines the phase of its
	// checks: machines with the same Base and the same number for a host start the
	// same check of it at the same time, and hosts with the same number are checked
	// together. Small numbers are checked together, too: so many that a process wakes
	// seldom, and so few that no other work waits for them. Nil takes the numbers from
	// the names.
	Phases []uint64
}

// Check is one check that is run on every host.
type Check struct {
	// Name is its name in log records and reasons: "tcp", "http:8008".
	Name string

	// Spec describes the check, in any form. After new [Reconfigure] a check of the
	// same name and Spec is still the same check.
	Spec string

	// Interval is the time from one start to the next. Required.
	Interval time.Duration

	// Timeout is the longest time that one check may take; the caller, who runs the
	// check, enforces it. Required.
	Timeout time.Duration

	// Script marks a check that costs a process. It is never started again
	// while it runs. After a failure it is run again after FastInterval, until
	// Fall failures or a success.
	Script bool

	// Role marks a role check, whose results have a Fact, and decides what it means.
	// One check at most is one. Nil for all others.
	Role *RoleRules
}

const (
	// firstBackoff is the wait after the first round without a usable host, and
	// the time between two runs of a script in the first seconds without a
	// primary.
	firstBackoff = time.Second

	// quickFor is the time for which every host is checked at the fast interval when
	// there is no primary, and slowest the time between two connects to a host from
	// then on if its checks have a longer interval.
	quickFor = 5 * time.Second
	slowest  = 500 * time.Millisecond

	// stall is the delay of Step after which the machine ignores the results of the
	// checks that were in flight.
	stall = 500 * time.Millisecond

	// pauseShare is the part of a check's timeout, as a divisor, by which Step
	// may be late while the check is in flight. A check that fails after a
	// longer pause counts for nothing. It is also the longest time between two
	// Steps meanwhile, without which a pause could not be measured.
	pauseShare = 10

	// sparedFor is for how many timeouts of a check its failures may be ignored
	// without a success in between: a machine that is slow all the time must
	// notice a dead host, too.
	sparedFor = 2

	// overdue is the time after its timeout at which a check that is not a script
	// counts as failed although its result has not come.
	overdue = time.Second

	// spareFlights limits the checks in flight beyond Fall in a burst.
	spareFlights = 2

	// maxFlights bounds the checks of one kind that are in flight for one host,
	// including those that do not end at their timeout.
	maxFlights = 32

	// watchRate bounds the checks per second, over all hosts, that are started
	// to notice that a port is open again.
	watchRate = 160

	// perTurn is how many of Config.Phases have one turn, because each time that a
	// process wakes costs more than another check does. There are at most mostTurns in
	// an interval, with at least leastTurn between them.
	perTurn   = 20
	mostTurns = 32
	leastTurn = 25 * time.Millisecond

	// tardy is from how late a check takes no result of a run that began when it was due.
	tardy = 50 * time.Millisecond

	// quiet is the time for which a suspicion of the same check is not reported again.
	quiet = 10 * time.Second

	// guardWindow is the time for which a failure of a host is remembered.
	guardWindow = 10 * time.Minute

	// guardFirst is the time for which a host that failed twice within guardWindow must
	// have been up before it is chosen again while another one is usable. It
	// doubles with each further failure, up to guardMost.
	guardFirst = 10 * time.Second
	guardMost  = 5 * time.Minute
)

func (c Config) validate() error {
	var errs []error
	if len(c.Hosts) == 0 {
		errs = append(errs, errors.New("hosts: at least one is required"))
	}
	seen := map[string]bool{}
	for i, h := range c.Hosts {
		if h == "" {
			errs = append(errs, fmt.Errorf("hosts[%d]: empty", i))
		} else if seen[h] {
			errs = append(errs, fmt.Errorf("hosts[%d]: %q is listed twice", i, h))
		}
		seen[h] = true
	}
	if len(c.Checks) == 0 {
		errs = append(errs, errors.New("checks: at least one is required"))
	} else if c.Checks[0].Script {
		errs = append(errs, fmt.Errorf("checks[0]: %q is a script, the first check must be the TCP connect", c.Checks[0].Name))
	}
	positive := func(name string, d time.Duration) {
		if d <= 0 {
			errs = append(errs, fmt.Errorf("%s: %v is not positive", name, d))
		}
	}
	notNegative := func(name string, d time.Duration) {
		if d < 0 {
			errs = append(errs, fmt.Errorf("%s: %v is negative", name, d))
		}
	}
	for i, k := range c.Checks {
		positive(fmt.Sprintf("checks[%d].interval", i), k.Interval)
		positive(fmt.Sprintf("checks[%d].timeout", i), k.Timeout)
		if k.Role == nil {
			continue
		}
		positive(fmt.Sprintf("checks[%d].role.verify", i), k.Role.Verify)
		notNegative(fmt.Sprintf("checks[%d].role.max-lag", i), k.Role.MaxLag)
		if k.Script || slices.ContainsFunc(c.Checks[:i], func(k Check) bool { return k.Role != nil }) {
			errs = append(errs, fmt.Errorf("checks[%d]: %q must be the only role check, and no script", i, k.Name))
		}
	}
	if c.Rise < 1 {
		errs = append(errs, fmt.Errorf("rise: %d is less than 1", c.Rise))
	}
	if c.Fall < 1 {
		errs = append(errs, fmt.Errorf("fall: %d is less than 1", c.Fall))
	}
	positive("fast-interval", c.FastInterval)
	positive("max-backoff", c.MaxBackoff)
	notNegative("hold", c.Hold)
	notNegative("stay", c.Stay)
	notNegative("failback", c.Failback)
	notNegative("drain", c.Drain)
	if c.Phases != nil && len(c.Phases) != len(c.Hosts) {
		errs = append(errs, fmt.Errorf("phases: %d for %d hosts", len(c.Phases), len(c.Hosts)))
	}
	return errors.Join(errs...)
}

// Phase is the phase of a relay.
type Phase int

// The phases: no host is elected; a host is elected but clients are not
// connected yet; clients are connected.
const (
	Selecting Phase = iota
	Switching
	Serving
)

func (p Phase) String() string {
	switch p {
	case Selecting:
		return "selecting"
	case Switching:
		return "switching"
	case Serving:
		return "serving"
	}
	return fmt.Sprintf("phase(%d)", int(p))
}

// gate is the treatment of new clients.
type gate int

const (
	refused gate = iota
	held
	open
)

// Machine is the selection of one relay. It is not safe for concurrent use.
type Machine struct {
	cfg     Config
	watch   time.Duration // between two checks of a port that may open again, at least
	cheap   int           // checks that are no scripts
	longest time.Duration // a round
	beat    time.Duration // the longest interval of a check
	hosts   []host

	real time.Time     // the time of this Step
	now  time.Time     // the same without the time in which the machine was not awake
	lost time.Duration // real - now
	wake time.Time     // in now's terms; zero before the first Step

	phase     Phase
	since     time.Time // real
	epoch     uint64
	elect     int        // the host of the last election; -1 before the first, and when it is no longer a host
	last      string     // its name; empty before the first
	addr      netip.Addr // its address then
	electDown bool       // elect went down during the switch to it
	done      bool       // the switch to elect is complete: it was primary

	doubted    time.Time // since when the last primary had been suspected when it was lost
	noneUsable bool      // no host was usable at some time since then

	// prefer comes before the operator's order: the primary before a restart,
	// or before a planned change that is not done yet. -1 for none.
	prefer int
	back   bool // for a planned change: a failed trigger does not reject this host

	recheckAt time.Time // when the primary is checked again after a [CheckNow]
	rechecks  int       // how often

	frozen bool // no automatic change
	stayed bool // a primary that is down stays because of that, and this was reported

	gate      gate
	holdUntil time.Time // when held changes to refused

	cause        string        // why there is an election
	backoff      time.Duration // of the next round that fails, if MaxBackoff allows
	retryAt      time.Time     // when the next report that no host is usable is due; zero during a round
	quickBy      time.Time     // until when hosts are checked at the fast interval
	roundBy      time.Time     // when a round ends although a result is missing
	passedAt     time.Time     // when the first host passed; zero when none does
	chooseBy     time.Time     // when a host that passed is elected at the latest; zero when none passed
	awaited      bool          // the election waits for the last primary
	waitReported bool          // and that was reported

	plan   plan
	shared shared

	// Of the role check; see role.go.
	role         int        // its index; -1 for none
	identity     string     // of the last primary; empty where it is not known
	term         uint64     // of the last primary; zero where it is not known
	termOf       string     // the last primary; empty before the first
	positions    []position // of the last primary
	verifyBy     time.Time  // when the host that was elected must say primary at the latest; zero while it need not
	goesOn       bool       // it was primary before the election, too
	severalSince time.Time  // since when more than one host says primary; zero while none or one does
	writers      []string   // those hosts, when they were reported

	nextID  uint64
	flights map[uint64]place
	actions []Action
}

// plan is a change of primary that waits for the results of its host.
type plan struct {
	host   int // -1 for none
	kind   Kind
	reason string
	drain  time.Duration // is added to the hold
	by     time.Time     // when the plan is cancelled

	offered bool // it was proposed; see [Config.Shared]
}

var noPlan = plan{host: -1}

// place is the host and the check of a flight.
type place struct{ host, check int }

// New returns a Machine in its first round of selection, or an error that
// names every invalid field of cfg. Nothing happens before the first Step.
func New(cfg Config) (*Machine, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("selector config: %w", err)
	}
	m := &Machine{
		epoch:   cfg.Epoch,
		elect:   -1,
		prefer:  slices.Index(cfg.Hosts, cfg.Prefer),
		plan:    noPlan,
		backoff: firstBackoff,
		cause:   "the relay starts",
		nextID:  1,

		identity: cfg.Identity, term: cfg.Term, termOf: cfg.Prefer,
	}
	m.adopt(cfg)
	m.noneUsable = m.prefer >= 0 // it is not known what was usable before
	if m.prefer >= 0 {
		m.hosts[m.prefer].addr = cfg.Addr
	}
	m.lock(cfg.Locks)
	return m, nil
}

// Step processes the event at the time now, and returns the actions to carry
// out, in that order. Now must never go back; only its monotonic reading counts
// where it has one.
func (m *Machine) Step(now time.Time, ev Event) []Action {
	m.actions = nil
	first := m.wake.IsZero()
	m.real = now
	m.now = now.Add(-m.lost)
	if first {
		m.since = now
		m.startRound(false)
	} else if behind := m.now.Sub(m.wake); behind > stall {
		m.overslept(behind)
	} else if behind > 0 {
		m.paused(behind)
	}

	switch ev := ev.(type) {
	case Tick:
	case Result:
		m.result(ev)
	case Ended:
		m.ended(ev.ID)
	case Suspicion:
		if m.phase == Serving && ev.Epoch == m.epoch {
			m.suspect(m.elect, 0, ev.Err)
		}
	case CheckNow:
		if m.phase == Serving && ev.Epoch == m.epoch {
			t := &m.hosts[m.elect].tracks[0]
			t.due = latest(earliest(t.due, t.started.Add(m.cfg.FastInterval/4)), m.now)
			// The kernel of a killed process can close its connections before the
			// socket that listens, so a check that passes now proves little.
			m.recheckAt, m.rechecks = m.now.Add(2*m.cfg.FastInterval/5), 2
		}
	case Switched:
		m.switched(ev)
	case Locks:
		m.lock(ev)
	case Unfit:
		for i := range m.hosts {
			m.hosts[i].unfit = slices.Contains(ev.Hosts, m.hosts[i].name)
		}
	case Move:
		m.move(ev)
	case Relocated:
		m.relocated(ev)
	case Agreed:
		m.agreed(ev)
	case Reconfigure:
		m.reconfigure(Config(ev))
	}

	m.expireChecks()
	m.decide()
	m.noteWriters()
	m.schedule()
	return m.actions
}

// Wake returns when Step has to be called at the latest. It is always after the
// time of the last Step.
func (m *Machine) Wake() time.Time { return m.wake.Add(m.lost) }

// overslept excludes the time in which the machine was not awake from its own
// time, marks the checks in flight as void, and checks every host again.
func (m *Machine) overslept(behind time.Duration) {
	m.lost += behind
	m.now = m.wake
	m.do(Stalled{For: behind})
	for i := range m.hosts {
		for k := range m.hosts[i].tracks {
			t := &m.hosts[i].tracks[k]
			for f := range t.flights {
				t.flights[f].void = true
			}
			t.due = m.now
		}
	}
	if m.phase == Selecting && m.retryAt.IsZero() {
		m.startRound(false)
	}
}

// paused records for each check in flight that Step came late by behind.
func (m *Machine) paused(behind time.Duration) {
	for i := range m.hosts {
		for k := range m.hosts[i].tracks {
			t := &m.hosts[i].tracks[k]
			for f := range t.flights {
				t.flights[f].paused = max(t.flights[f].paused, behind)
			}
		}
	}
}

// decide acts on the current state.
func (m *Machine) decide() {
	m.shared.proposal = Proposal{}
	switch m.phase {
	case Serving:
		h := &m.hosts[m.elect]
		down := h.state() == Down
		if down && !m.frozen {
			m.lose(h, m.whyDown(h))
			break
		}
		if down && !m.stayed {
			m.do(Stayed{Host: h.name, Reason: m.whyDown(h)})
		}
		m.stayed = down
		if m.follow(); m.phase == Serving {
			m.pursue()
		}
	case Switching:
		if h := &m.hosts[m.elect]; h.state() == Down && !m.electDown {
			m.doubt(h)
			m.electDown = true // its triggers run to their end; then see switched
		}
		if !m.verifyBy.IsZero() {
			m.verify()
		}
	case Selecting:
	}
	if m.phase == Selecting {
		m.choose()
	}
	if m.gate == held && !m.now.Before(m.holdUntil) {
		m.gate = refused
		m.do(Refuse{})
	}
}

// lose handles the loss of the primary h, which is not primary any more because of
// cause.
func (m *Machine) lose(h *host, cause string) {
	m.cause = cause
	m.doubt(h)
	m.do(Lost{Host: h.name, Epoch: m.epoch, Reason: m.cause, After: m.now.Sub(m.doubted)})
	m.unplan("the primary was lost meanwhile")
	m.backoff = firstBackoff
	m.shut()
	m.selectAgain()
}

// whyDown returns why h, which is down, is down.
func (m *Machine) whyDown(h *host) string {
	k := h.down()
	return h.name + " is down: " + m.cfg.Checks[k].Name + ": " + oneLine(h.tracks[k].last.Err)
}

// shut keeps clients out until the next Open.
func (m *Machine) shut() {
	if m.cfg.Hold == 0 {
		m.gate = refused
		m.do(Refuse{})
		return
	}
	m.gate = held
	m.holdUntil = m.now.Add(m.cfg.Hold)
	m.do(Hold{})
}

func (m *Machine) switched(ev Switched) {
	if m.phase != Switching || ev.Epoch != m.epoch {
		return
	}
	h := &m.hosts[m.elect]
	// The old primary was usable until an operator requested another one. If
	// its triggers fail too, having no primary would be worse.
	returned := m.back && m.elect == m.prefer
	m.done = ev.Err == nil || returned
	switch {
	case !m.done:
		m.reject(h, oneLine(ev.Err))
	case m.electDown || h.state() == Down:
		m.cause = h.name + " went down while it was switched to"
		m.selectAgain()
	case m.role >= 0:
		m.verifyBy = m.now.Add(m.rules().Verify)
		m.request(h, m.role)
		m.do(Verifying{Host: h.name, By: m.real.Add(m.rules().Verify)})
	default:
		m.open()
	}
}

// reject tries another host than h, which was elected and must not become primary.
func (m *Machine) reject(h *host, why string) {
	h.rejected, h.rejection = true, why
	h.upSince = m.now // a failback is not tried again at once
	m.cause = h.name + " was rejected: " + why
	m.done = false
	m.selectAgain()
}

// open connects clients to the host that was elected.
func (m *Machine) open() {
	for i := range m.hosts {
		m.hosts[i].rejected = false
	}
	h := &m.hosts[m.elect]
	m.prefer, m.back = -1, false
	m.gate, m.shared.stands = open, true
	m.enter(Serving)
	m.do(Open{Epoch: m.epoch, Host: h.name, Addr: h.addr})
}

func (m *Machine) enter(p Phase) {
	m.phase = p
	m.since = m.real
}

func (m *Machine) do(a Action) { m.actions = append(m.actions, a) }

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
