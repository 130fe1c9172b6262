// Package failover conducts one relay: it runs the checks of the hosts, passes
// the results to the [selector], and carries out its decisions. A switch is
// always the same sequence: the gate is shut, connections of earlier epochs are
// fenced, the triggers run one after the other, the gate opens.
//
// A [Conductor] owns every goroutine and script that it starts; when
// [Conductor.Run] returns, all of them have ended. The relay and the scripts'
// runner belong to the caller.
package failover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/health"
	"understudy/hooks"
	"understudy/relay"
	"understudy/selector"
)

// Gate lets clients connect to the primary; see [relay.Relay].
type Gate interface {
	Open(epoch uint64, host string) (relay.Waiting, error)
	Hold()
	Refuse() relay.Waiting
	Fence(ctx context.Context, before uint64, stays string, p relay.FencePolicy) relay.Fenced
}

// Scripts runs the operator's scripts; see [hooks.Runner].
type Scripts interface {
	Run(ctx context.Context, s hooks.Script) hooks.Result
}

// Config holds the settings of a conductor. No setting in it has a default:
// the meaning of zero is documented at each field; for a required one it is an
// error.
type Config struct {
	// Name is the relay's name in log records and in the scripts' environment.
	Name string

	// Hosts are the candidates in the operator's order of preference, as the
	// operator wrote them.
	Hosts []string

	// Gate is the relay's gate. It is shut at first. Run leaves it unchanged
	// when it returns. Required.
	Gate Gate

	// Checks are run on every host. The first must be the TCP connect; the
	// others are run only on a host that accepts connections. Required.
	Checks []Check

	// Triggers run after each election, before clients are connected.
	Triggers Triggers

	// Rejoin is run at hosts that came back and are not usable, by NoticeScripts.
	Rejoin Rejoin

	// Notices holds the destinations of events. NoticeScripts runs its scripts,
	// and Deliver posts a body to its webhook, both until their context ends.
	// Each is required where Notices uses it.
	Notices       Notices
	NoticeScripts Scripts
	Deliver       func(ctx context.Context, url string, body []byte) error

	// Fence selects how the connections of earlier epochs end.
	Fence relay.FencePolicy

	// Cluster has the relay agree with other instances on its primary. With nil it
	// decides alone. The hosts must be addresses then, and Fence must not keep
	// connections.
	Cluster *Cluster

	// Scripts runs the triggers and the checks that are scripts. Required if
	// there are any.
	Scripts Scripts

	// Rise and Fall are how many results in a row make a host up or down.
	// An election needs one success. Required.
	Rise, Fall int

	// FastInterval is the time between the checks of a suspected host, and of
	// all while there is no primary. Required.
	FastInterval time.Duration

	// Hold is the time for which clients wait without a primary before they are
	// refused. Zero refuses at once.
	Hold time.Duration

	// OpenRate is that of the relay, for the prediction.
	OpenRate relay.OpenRate

	// MaxBackoff is the longest wait between two rounds of selection. Required.
	MaxBackoff time.Duration

	// Stay is the time for which an election waits for the last primary when another host
	// is usable first after a time in which none was; without triggers at most
	// one timeout of the first check. Zero does not wait.
	Stay time.Duration

	// Freshest elects the replica with the newest data first; see [selector.Config]. It
	// needs a role check.
	Freshest bool

	// Failback is the time for which a preferred host must have been up before it becomes
	// primary again. Zero is never.
	Failback time.Duration

	// Checker runs the checks that are functions. With nil each runs on a goroutine
	// of its own and serves this conductor only.
	Checker *health.Checker

	// Base is the moment from which the phases of checks are counted, and Phases has
	// a number for each host; see [selector.Config].
	Base   time.Time
	Phases []uint64

	// Names resolves host names. All checks of such a host are then run at one
	// address, which is pinned while the host is primary, and the gate is
	// opened to that address. With nil the checks and the gate resolve names
	// themselves.
	Names Names

	// DNSHold is the time for which a name keeps its last addresses after name servers
	// report that it does not exist or has no address. After that the host is
	// unknown; with zero it is unknown at once.
	DNSHold time.Duration

	// StateFile keeps primary, epoch, locks and incidents across restarts. With
	// nil they are not kept. The caller closes it after Run.
	StateFile *StateFile

	// Changed is called when the state or the role of a host or the primary has changed, or
	// a host passes a check again, and [Conductor.Status] shows it. It must not
	// block. May be nil.
	Changed func()

	// Stats counts the relay's clients, for the incident record. May be nil.
	Stats func() relay.Stats

	// Usual returns the usual number of new clients in a second, for the prediction;
	// zero while it is not known. May be nil.
	Usual func() float64

	// Silence returns how many clients in a row the relay's host has closed
	// without sending a byte. May be nil.
	Silence func() relay.Silence

	// Hang describes the relay's host if it accepts clients and answers none of
	// them. May be nil.
	Hang func() relay.Hang

	// OnHang is the reaction to that.
	OnHang OnHang

	// Canary is a client that measures what clients see.
	Canary Canary

	// DialCanary connects to the relay as a client does, until ctx ends; see
	// [relay.Relay.DialCanary]. Required if there is a Canary.
	DialCanary func(ctx context.Context) (CanaryConn, error)

	// TryCanary makes an attempt of a canary without Talk at less cost, where it can;
	// see [relay.Relay.TryCanary]. May be nil.
	TryCanary func(ctx context.Context, done func(error)) bool

	// Logger gets the conductor's log. Nil discards it.
	Logger hclog.Logger
}

// Check is one check that is run on every host.
type Check struct {
	// Name is its name in log records: "tcp", "http:8008", "check-host".
	Name string

	// Spec describes what Run checks, in any form. After
	// [Conductor.Reconfigure] a check of the same name, Spec and Script is
	// still the same check, and its results are kept. The Checker runs a check
	// of the same name, Spec and Timeout once for several relays.
	Spec string

	// Run performs the check. It gets a context that ends after Timeout. A Run
	// that takes longer counts as failed a second later, and Conductor.Run
	// waits for it if there is no Checker. Either Run or Script is required.
	Run health.Check

	// Connect is Run as the Checker prefers it; see [health.Query]. May be nil.
	Connect *health.TCPCheck

	// Answers is true when Run passes only after the service has answered, so that it
	// fails with one that hangs. It is for predictions, and only about the first check.
	Answers bool

	// Script is the path of a script whose exit status is the result. Its
	// Timeout begins when its process does. Its environment describes the
	// election that would make the host primary.
	Script string

	// Args come before the host in the script's arguments.
	Args []string

	// Role marks a role check, whose results have a Fact, and decides what it means. Nil
	// for all others.
	Role *selector.RoleRules

	// Interval is the time from one start to the next. Required.
	Interval time.Duration

	// Timeout is the longest time that one check may take. Required.
	Timeout time.Duration
}

// Triggers are the scripts of an election.
type Triggers struct {
	// Path is a script, or a directory whose scripts run in byte order of
	// their names; it is read at each election. Empty is none.
	Path string

	// Timeout is the longest time that each of them may run. Required if there is a Path.
	Timeout time.Duration

	// Abort rejects a host when one of its triggers fails, runs no further
	// one, and tries the next host. Otherwise a failed trigger is a warning and
	// the switch goes on.
	Abort bool
}

// openRetry is the time between two attempts to open a gate whose address
// another program has taken.
const openRetry = time.Second

// Conductor conducts one relay.
type Conductor struct {
	settings atomic.Pointer[settings] // stored by Run's goroutine only
	log      hclog.Logger

	machine  *selector.Machine // owned by Run
	status   atomic.Pointer[Status]
	history  history
	evidence evidence
	measure  measure
	canary   canary

	addresses *addresses

	suspicions chan selector.Suspicion
	checksNow  chan selector.CheckNow
	firstBytes chan firstByte
	paced      chan relay.Pacing
	inbox      inbox[selector.Event]
	notices    chan *Notice // from other packages
	requests   chan request
	over       chan struct{}             // closed when Run has returned
	turns      sync.Map                  // by command line: a place for one run of a check script
	opened     sync.Map                  // of strings: the host by what the gate was opened to
	progress   atomic.Pointer[Progress]  // the change in progress; nil when there is none
	drill      atomic.Pointer[rehearsal] // the one in progress; nil when there is none
	tasks      sync.WaitGroup            // checks, the switch and the delivery of notices

	scriptQueue, webhookQueue noticeQueue

	// The following belong to Run's own goroutine.
	shutAt     time.Time            // since when clients are kept out; zero while they are connected, and before the first Open
	opening    *selector.Open       // an Open that has not succeeded
	fencing    fencing              // the fence of the last election
	openAt     time.Time            // when to retry the Open; zero at once
	flaps      map[string]*flaps    // by host
	alarmed    bool                 // it was reported that no host is usable
	hung       atomic.Pointer[hung] // the primary that failed because it hangs
	hangWarned time.Time            // when the last warning of a host that hangs was logged
	silence    time.Time            // when the last warning of silence was logged
	standby    standbyWatch
	rejoin     rejoinState
	guarded    []string // hosts that the flap guard held back last

	locks     locks
	relocked  bool        // they have changed, and were not passed to the machine yet
	recorded  locks       // as the record has them
	requested *switchover // the operator's switchover in progress; nil for none
	next      *settings   // to be applied when no switch is in progress; nil for none
	answers   []func()    // replies to operators, sent after the new status is published
	elected   Status      // Reason, Event and Elected of the last election
	goodDrill time.Time
	scheduled *Scheduled // nil for none
	recorder  recorder
	agree     *agreement // nil where the relay decides alone
}

// New returns a Conductor, or an error that names every invalid field of cfg.
// It starts nothing.
func New(cfg Config) (*Conductor, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("failover config: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	var kept state
	if cfg.StateFile != nil {
		kept = cfg.StateFile.loaded
	}
	held, _ := kept.Locks.readAt(kept.Clock, clockNow()).at(time.Now())
	first := cfg.election()
	first.Epoch, first.Prefer, first.Addr, first.Locks = kept.Epoch, kept.Primary, kept.Address, held.selection()
	first.Term, first.Identity = kept.Term, kept.Identity
	var agree *agreement
	if cfg.Cluster != nil {
		if kept.Cluster != cfg.Cluster.Name {
			first.Epoch = 0 // it was counted without the others
		}
		var err error
		if agree, err = newAgreement(cfg.Cluster, cfg.Name, first.Epoch); err != nil {
			return nil, err
		}
	}
	machine, err := selector.New(first)
	if err != nil {
		return nil, err
	}
	c := &Conductor{
		log:        cfg.Logger.Named("failover").With("relay", cfg.Name),
		machine:    machine,
		addresses:  newAddresses(),
		flaps:      map[string]*flaps{},
		suspicions: make(chan selector.Suspicion, 1),
		checksNow:  make(chan selector.CheckNow, 1),
		firstBytes: make(chan firstByte, 1),
		paced:      make(chan relay.Pacing, 1),
		inbox:      newInbox[selector.Event](),
		notices:    make(chan *Notice, noticesKept),
		requests:   make(chan request),
		over:       make(chan struct{}),
		locks:      held,
		recorded:   held,
		goodDrill:  kept.GoodDrill,
		scheduled:  kept.Scheduled,
		agree:      agree,
		recorder:   recorder{nextID: 1, doubted: map[string]time.Time{}},
	}
	c.settings.Store(newSettings(cfg))
	c.measure.keep(c.cfg())
	for _, i := range kept.record() {
		if !i.Done {
			i.Done = true
			if i.Outcome == UnderWay {
				i.Outcome = Interrupted
			}
		}
		c.history.put(i)
		c.recorder.nextID = max(c.recorder.nextID, i.ID+1)
	}
	c.publish()
	return c, nil
}

// election returns the part of cfg that the machine needs.
func (cfg Config) election() selector.Config {
	e := selector.Config{
		Hosts: cfg.Hosts, Rise: cfg.Rise, Fall: cfg.Fall, FastInterval: cfg.FastInterval,
		Hold: cfg.Hold, MaxBackoff: cfg.MaxBackoff, Failback: cfg.Failback,
		Shared: cfg.Cluster != nil,
		Drain:  cfg.Fence.Drain, Stay: cfg.stay(), Base: cfg.Base, Phases: cfg.Phases, Freshest: cfg.Freshest,
	}
	for _, k := range cfg.Checks {
		e.Checks = append(e.Checks, selector.Check{
			Name: k.Name, Spec: k.Spec + k.Script, Interval: k.Interval, Timeout: k.Timeout, Script: k.Script != "", Role: k.Role,
		})
	}
	return e
}

// stay returns how long an election waits for the last primary. To elect
// another host costs less where it is not promoted by triggers.
func (cfg Config) stay() time.Duration {
	if cfg.Triggers.Path == "" && len(cfg.Checks) > 0 {
		return min(cfg.Stay, cfg.Checks[0].Timeout)
	}
	return cfg.Stay
}

func (cfg Config) validate() error {
	var errs []error
	if cfg.Gate == nil {
		errs = append(errs, errors.New("gate: required"))
	}
	scripts := cfg.Triggers.Path != ""
	for i, k := range cfg.Checks {
		switch {
		case k.Run == nil && k.Script == "":
			errs = append(errs, fmt.Errorf("checks[%d]: %q is neither a function nor a script", i, k.Name))
		case k.Run != nil && k.Script != "":
			errs = append(errs, fmt.Errorf("checks[%d]: %q is both a function and a script", i, k.Name))
		}
		scripts = scripts || k.Script != ""
	}
	if scripts && cfg.Scripts == nil {
		errs = append(errs, errors.New("scripts: required to run scripts"))
	}
	if r := cfg.Rejoin; r.Path != "" && r.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("standby-timeout: %v is not positive", r.Timeout))
	}
	if (cfg.Notices.Path != "" || cfg.Rejoin.Path != "") && cfg.NoticeScripts == nil {
		errs = append(errs, errors.New("notice scripts: required to run scripts for events"))
	}
	if cfg.Notices.Webhook != "" && cfg.Deliver == nil {
		errs = append(errs, errors.New("deliver: required for a webhook"))
	}
	if t := cfg.Triggers; t.Timeout < 0 || t.Timeout == 0 && (t.Path != "" || cfg.Notices.Path != "") {
		errs = append(errs, fmt.Errorf("trigger-timeout: %v is not positive", t.Timeout))
	}
	if cfg.DNSHold < 0 {
		errs = append(errs, fmt.Errorf("dns-hold: %v is negative", cfg.DNSHold))
	}
	if cfg.Fence.Drain < 0 {
		errs = append(errs, fmt.Errorf("fence: drain of %v is negative", cfg.Fence.Drain))
	}
	if cfg.Fence.Keep && cfg.Fence.Drain > 0 {
		errs = append(errs, errors.New("fence: keep and drain exclude each other"))
	}
	if cfg.Cluster != nil {
		errs = append(errs, cfg.validateCluster()...)
	}
	errs = append(errs, cfg.Canary.validate())
	if cfg.Canary.Every > 0 && cfg.DialCanary == nil {
		errs = append(errs, errors.New("dial canary: required for a canary"))
	}
	return errors.Join(errs...)
}

// Suspect reports that a client's connect to the primary of an epoch failed or
// is slow. It never blocks and may be called at any time.
func (c *Conductor) Suspect(epoch uint64, err error) {
	select {
	case c.suspicions <- selector.Suspicion{Epoch: epoch, Err: err}:
	default: // one is queued already, which has the same effect
	}
}

// HostEnded reports that the primary of an epoch has ended connections in use,
// as a host does that dies. It is checked at once; the report alone does not
// count against it. It never blocks and may be called at any time.
func (c *Conductor) HostEnded(epoch uint64) {
	select {
	case c.checksNow <- selector.CheckNow{Epoch: epoch}:
	default: // one is queued already, which has the same effect
	}
}

// Snapshot returns the current state of the machine, and takes no lock. Callers
// must not change it. It names a primary only while clients are connected to
// it.
func (c *Conductor) Snapshot() selector.Snapshot { return c.status.Load().Snapshot }

// WithoutStandby reports whether no other host could become primary; see
// [Status.NoStandby]. It takes no lock.
func (c *Conductor) WithoutStandby() bool { return !c.status.Load().NoStandby.IsZero() }

func (c *Conductor) publish() { c.publishState(c.machine.Snapshot()) }

// publishState publishes the state of the machine with that of the conductor.
func (c *Conductor) publishState(now selector.Snapshot) {
	s := c.elected
	s.Snapshot = now
	if c.opening != nil {
		s.Primary = ""
	}
	s.Cluster = c.agree.status()
	s.Relay, s.Locks, s.GoodDrill, s.Scheduled = c.cfg().Name, c.locks, c.goodDrill, c.scheduled
	if s.Primary != "" {
		s.NoStandby = c.standby.missing
	}
	before := c.status.Swap(&s)
	if before != nil && c.cfg().Changed != nil && differ(before.Snapshot, s.Snapshot) {
		c.cfg().Changed()
	}
}

// differ reports whether the primary, a host's state, its role or whether it fails
// differs between two snapshots.
func differ(a, b selector.Snapshot) bool {
	return a.Phase != b.Phase || a.Primary != b.Primary || !slices.Equal(a.Writers, b.Writers) ||
		!slices.EqualFunc(a.Hosts, b.Hosts, func(a, b selector.Host) bool {
			return a.Name == b.Name && a.State == b.State && a.Says == b.Says && slices.EqualFunc(a.Checks, b.Checks, func(a, b selector.Record) bool {
				return a.State == b.State && a.Failing.IsZero() == b.Failing.IsZero()
			})
		})
}

// save saves the current state. It returns nil when no state is kept.
func (c *Conductor) save() *saving {
	if c.cfg().StateFile == nil {
		return nil
	}
	now := c.machine.Snapshot()
	elections, orders := c.history.split()
	primary, address := now.Elect, now.Addr
	if primary == "" { // no host was elected yet
		primary, address = c.cfg().StateFile.loaded.Primary, c.cfg().StateFile.loaded.Address
	}
	term, identity := now.Term, now.Identity
	if c.cfg().roleCheck() == nil { // it may be configured again
		term, identity = c.cfg().StateFile.loaded.Term, c.cfg().StateFile.loaded.Identity
	}
	at := clockNow()
	return c.cfg().StateFile.save(state{
		Relay: c.cfg().Name, Primary: primary, Address: address, Term: term, Identity: identity, Epoch: now.Epoch, Clock: at, Locks: c.locks.onWall(at.Wall),
		Scheduled: c.scheduled, GoodDrill: c.goodDrill, Incidents: elections, Orders: orders, Cluster: c.agree.name(),
	})
}

// Run conducts the relay until ctx ends. It returns nil when every check,
// trigger and goroutine that it started has ended. It can be called once.
func (c *Conductor) Run(ctx context.Context) error {
	defer c.tasks.Wait()
	defer c.finish(Interrupted, "the program ended")
	over := sync.OnceFunc(func() { close(c.over) })
	defer over()
	if c.agree != nil {
		ask, stop := context.WithCancel(context.WithoutCancel(ctx))
		defer stop()
		c.agree.start(ask, &c.tasks, c.heed)
		defer func() { //nolint:contextcheck // Run's context has ended when it leaves
			over()
			c.leaveCluster()
		}()
	}
	c.logPrediction()
	c.applyCanary(ctx)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var ev selector.Event = selector.Tick{}
		var done chan struct{}
		select {
		case <-ctx.Done():
			return nil
		case <-c.inbox.ready: // see below
		case <-c.agree.ready(): // see below
		case ev = <-c.suspicions:
		case ev = <-c.checksNow:
		case r := <-c.requests:
			ev, done = r.do(), r.done
		case n := <-c.notices:
			c.deliver(ctx, *n)
			continue
		case b := <-c.firstBytes:
			c.noteFirstByte(b)
			continue
		case p := <-c.paced:
			c.notePacing(p)
			continue
		case <-timer.C:
		}
		if ctx.Err() != nil {
			return nil // the event may be only a consequence of that
		}
		c.step(ctx, ev)
		// A check that ends at once has its result here by now.
		for _, ev := range c.inbox.take() {
			c.step(ctx, ev)
		}
		c.keepAgreement(ctx)
		c.takeSettings(ctx)
		c.reopen(ctx)
		nextEnd := c.expire(time.Now())
		if c.relocked {
			c.relocked = false
			c.step(ctx, c.locks.selection())
			c.keepAgreement(ctx)
		}
		if at := c.recorder.closeAt; !at.IsZero() && !time.Now().Before(at) {
			c.finish(Open, "")
		}
		nextSwitch := c.runScheduled(ctx, time.Now())
		now := c.machine.Snapshot()
		c.warnOfSilence(now)
		c.warnOfHang(now)
		nextRejoin := c.watchRejoin(ctx, time.Now(), now)
		nextSum := c.sumUpFlaps(time.Now(), now)
		nextLook := c.watchStandby(ctx, time.Now(), now)
		c.watchFlapping(ctx, now)
		c.publishState(now)
		for _, answer := range c.answers {
			answer()
		}
		c.answers = nil
		if done != nil {
			close(done)
		}

		wake := min(time.Until(c.machine.Wake()), c.agree.wake())
		if c.opening != nil {
			wake = min(wake, time.Until(c.openAt))
		}
		for _, at := range []time.Time{nextEnd, nextLook, nextSwitch, nextRejoin, nextSum, c.recorder.closeAt} {
			if !at.IsZero() {
				wake = min(wake, time.Until(at))
			}
		}
		timer.Reset(max(wake, 0))
	}
}

// step passes an event to the machine and carries out its actions.
func (c *Conductor) step(ctx context.Context, ev selector.Event) {
	for _, a := range c.machine.Step(time.Now(), ev) {
		c.act(ctx, a)
	}
}

// logPrediction logs the [Prediction] of the settings at the start.
func (c *Conductor) logPrediction() {
	fields := []any{}
	for _, k := range c.settings.Load().prediction.Cases {
		if k.Traffic {
			continue // the other one is the worst case
		}
		bound := "never noticed"
		if !k.Never {
			bound = k.total.String()
		}
		fields = append(fields, string(k.Failure), bound)
	}
	c.log.Info("worst case of a failover", fields...)
	for _, w := range c.cfg().contradictions(c.cfg().triggers()) {
		if w.serious {
			c.log.Warn("settings conflict", "reason", w.text)
		} else {
			c.log.Info("settings conflict", "reason", w.text)
		}
	}
}

// reportRequest runs f on Run's goroutine, unless ctx has ended and Run no
// longer reads requests.
func (c *Conductor) reportRequest(ctx context.Context, f func() selector.Event) {
	select {
	case c.requests <- request{do: f}:
	case <-ctx.Done():
	}
}

// report passes ev to Run. It never blocks.
func (c *Conductor) report(ev selector.Event) { c.inbox.put(ev) }
