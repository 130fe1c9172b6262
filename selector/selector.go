// Package selector decides who should be primary. It is a state machine: facts
// and the time go in, what to do comes out. It has no sockets, no goroutines
// and no clock, so every rule of a failover can be played in microseconds.
//
// A [Machine] also says which check of which host to start when. Its owner
// starts the check, hands its [Result] back, carries out what [Machine.Step]
// returns in that order, and calls Step again at [Machine.Wake] at the latest.
//
// The machine counts time in which it is awake: when Step comes much later
// than Wake asked for (the process was stopped, or starved of processor time),
// that time has not passed for anything it measures, and what was in flight
// meanwhile proves nothing about a host.
package selector

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Config says whom to choose from and by which rules. Zero fields mean their
// defaults.
type Config struct {
	// Hosts are the candidates in the operator's order of preference, as the
	// operator wrote them. At least one, none twice.
	Hosts []string

	// Checks are asked of every host. The first is the TCP connect; the others
	// are only asked of a host whose first check passes. At least one.
	Checks []Check

	// Rise is how many successes in a row make a check up. Defaults to 2. An
	// election needs one success only: a host that was elected is up.
	Rise int

	// Fall is how many failures in a row make a check down. Defaults to 3.
	Fall int

	// FastInterval is the time between the checks of a suspected host, and of
	// every host while there is no primary. Defaults to 100ms.
	FastInterval time.Duration

	// Hold is how long clients wait without a primary before they are
	// refused. Defaults to 10s; negative refuses at once.
	Hold time.Duration

	// MaxBackoff is the longest wait between two rounds of selection. Defaults
	// to 60s; less than a second counts as a second.
	MaxBackoff time.Duration

	// Failback is how long a host that is preferred to the primary must have
	// been up before it takes over again. Zero, the default, is never.
	Failback time.Duration

	// Drain is how long earlier connections may finish in a failback, which
	// clients wait for beyond Hold. For a [Move] it says so itself.
	Drain time.Duration

	// Epoch is the epoch of the last election before this machine, which the
	// first one here follows. Zero, the default, is none.
	Epoch uint64

	// Prefer is the host that was primary before this machine. It comes first
	// in the first election, whatever the order. Empty, the default, or a name
	// that is not among Hosts is none.
	Prefer string

	// Locks are those that hold from the start.
	Locks Locks
}

// Check is one question that is asked of every host.
type Check struct {
	// Name is what log records and reasons call it: "tcp", "http:8008".
	Name string

	// Spec is what is asked, in any form. After new [Rules] a check of the same
	// name and Spec is still the same question.
	Spec string

	// Interval is the time from one start to the next. Defaults to 1s, and to
	// 2s for a script.
	Interval time.Duration

	// Timeout is how long one check may take; whoever runs it enforces it.
	// Defaults to 1s, and to 5s for a script.
	Timeout time.Duration

	// Script marks a check that costs a process. It is never started again
	// while it runs, is run again at once when it failed, until Fall or a
	// success, and is not asked while a failed round is waited out.
	Script bool
}

const (
	// firstBackoff is the wait after the first round that nobody won.
	firstBackoff = time.Second

	// stall is how late Step may be before the machine distrusts whatever
	// happened meanwhile.
	stall = 500 * time.Millisecond

	// overdue is how long after its timeout a check that is not a script
	// counts as failed although its result has not come.
	overdue = time.Second

	// spareFlights is how many checks may be in flight beyond Fall in a burst.
	spareFlights = 2

	// maxFlights bounds the checks of one kind that are in flight for one host,
	// those included that do not end at their timeout.
	maxFlights = 32

	// watchRate bounds the checks that are started in a second, over all hosts,
	// to see a port open again.
	watchRate = 160

	// quiet is how long a suspicion of the same check is not told again.
	quiet = 10 * time.Second

	// guardWindow is how long a failure of a host is remembered.
	guardWindow = 10 * time.Minute

	// guardFirst is how long a host that failed twice within guardWindow must
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
	notNegative := func(name string, d time.Duration) {
		if d < 0 {
			errs = append(errs, fmt.Errorf("%s: %v is negative", name, d))
		}
	}
	for i, k := range c.Checks {
		notNegative(fmt.Sprintf("checks[%d].interval", i), k.Interval)
		notNegative(fmt.Sprintf("checks[%d].timeout", i), k.Timeout)
	}
	if c.Rise < 0 {
		errs = append(errs, fmt.Errorf("rise: %d is negative", c.Rise))
	}
	if c.Fall < 0 {
		errs = append(errs, fmt.Errorf("fall: %d is negative", c.Fall))
	}
	notNegative("fast-interval", c.FastInterval)
	notNegative("max-backoff", c.MaxBackoff)
	notNegative("failback", c.Failback)
	notNegative("drain", c.Drain)
	return errors.Join(errs...)
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	c.Checks = append([]Check(nil), c.Checks...)
	for i := range c.Checks {
		k := &c.Checks[i]
		if k.Script {
			set(&k.Interval, 2*time.Second)
			set(&k.Timeout, 5*time.Second)
		}
		set(&k.Interval, time.Second)
		set(&k.Timeout, time.Second)
	}
	if c.Rise == 0 {
		c.Rise = 2
	}
	if c.Fall == 0 {
		c.Fall = 3
	}
	set(&c.FastInterval, 100*time.Millisecond)
	set(&c.Hold, 10*time.Second)
	set(&c.MaxBackoff, time.Minute)
	c.MaxBackoff = max(c.MaxBackoff, firstBackoff)
	return c
}

// Phase is where in its life a relay is.
type Phase int

// The phases: nobody is chosen; somebody is chosen but clients do not pass
// yet; clients pass.
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

// gate is what clients meet.
type gate int

const (
	refused gate = iota
	held
	open
)

// Machine is the selection of one relay. It is not safe for concurrent use.
type Machine struct {
	cfg     Config
	watch   time.Duration // between two checks of a port that may open again
	longest time.Duration // a round
	hosts   []host

	real time.Time     // the time of this Step
	now  time.Time     // the same without the time the machine was asleep
	lost time.Duration // real - now
	wake time.Time     // in now's terms; zero before the first Step

	phase Phase
	since time.Time // real
	epoch uint64
	elect int    // the host of the last election; -1 before the first, and when it is no host any more
	last  string // its name; empty before the first
	gone  bool   // elect went down while it was switched to

	// prefer comes before the operator's order: the primary before a restart,
	// or before a planned change that is not done yet. -1 for none.
	prefer int
	back   bool // in the latter case: a trigger that fails for it is no reason to leave it

	frozen bool // no automatic change
	stayed bool // a primary that is down stays because of that, and it was told

	gate      gate
	holdUntil time.Time // when held turns to refused

	cause    string // why there is an election
	backoff  time.Duration
	retryAt  time.Time // the next round of selection; zero while a round is on
	roundBy  time.Time // when a round is over although somebody has not answered
	chooseBy time.Time // when a host that passed need not wait any more; zero when none passed

	plan plan

	nextID  uint64
	flights map[uint64]place
	actions []Action
}

// plan is a change of primary that waits for the answers of its host.
type plan struct {
	host   int // -1 for none
	kind   Kind
	reason string
	drain  time.Duration // is added to the hold
	by     time.Time     // it is not waited for longer
}

var noPlan = plan{host: -1}

// place is where a check in flight belongs.
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
	}
	m.adopt(cfg)
	m.lock(cfg.Locks)
	return m, nil
}

// Checks returns the checks with their defaults filled in. Nobody may change
// them.
func (m *Machine) Checks() []Check { return m.cfg.Checks }

// Step tells the machine what happened, at the time now, and returns what to
// do, in that order. Now never goes back; only its monotonic reading counts
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
	case Switched:
		m.switched(ev)
	case Locks:
		m.lock(ev)
	case Move:
		m.move(ev)
	case Rules:
		m.changeRules(Config(ev))
	}

	m.judge()
	m.decide()
	m.schedule()
	return m.actions
}

// Wake returns when Step wants to be called at the latest. It is always after
// the time of the last Step.
func (m *Machine) Wake() time.Time { return m.wake.Add(m.lost) }

// overslept takes the time the machine was not awake out of its own, distrusts
// what is in flight, and asks everybody again.
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

// decide acts on what is known now.
func (m *Machine) decide() {
	switch m.phase {
	case Serving:
		h := &m.hosts[m.elect]
		down := h.state() == Down
		if down && !m.frozen {
			m.lose(h)
			break
		}
		if down && !m.stayed {
			m.do(Stayed{Host: h.name, Reason: m.whyDown(h)})
		}
		m.stayed = down
		m.pursue()
	case Switching:
		if m.hosts[m.elect].state() == Down {
			m.gone = true // its triggers run to their end; then see switched
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

// lose ends the reign of the primary h.
func (m *Machine) lose(h *host) {
	m.cause = m.whyDown(h)
	lost := Lost{Host: h.name, Epoch: m.epoch, Reason: m.cause}
	if t := &h.tracks[h.down()]; !t.doubted.IsZero() {
		lost.After = m.now.Sub(t.doubted)
	}
	m.do(lost)
	m.unplan("the primary was lost meanwhile")
	m.backoff = firstBackoff
	m.shut()
	m.selectAgain()
}

// whyDown says why h, which is down, is.
func (m *Machine) whyDown(h *host) string {
	k := h.down()
	return h.name + " is down: " + m.cfg.Checks[k].Name + ": " + oneLine(h.tracks[k].last.Err)
}

// shut keeps clients out until the next Open.
func (m *Machine) shut() {
	if m.cfg.Hold < 0 {
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
	// The old primary was good enough until an operator wanted another one.
	// When not even its triggers work, to have nobody would be worse.
	returned := m.back && m.elect == m.prefer
	switch {
	case ev.Err != nil && !returned:
		h.aside = true
		h.upSince = m.now // a failback is not tried again at once
		m.cause = h.name + " was put aside: " + oneLine(ev.Err)
		m.selectAgain()
	case m.gone || h.state() == Down:
		m.cause = h.name + " went down while it was switched to"
		m.selectAgain()
	default:
		for i := range m.hosts {
			m.hosts[i].aside = false
		}
		m.prefer, m.back = -1, false
		m.gate = open
		m.enter(Serving)
		m.do(Open{Epoch: m.epoch, Host: h.name})
	}
}

func (m *Machine) enter(p Phase) {
	m.phase = p
	m.since = m.real
}

func (m *Machine) do(a Action) { m.actions = append(m.actions, a) }
