// Package failover conducts one relay: it has the hosts checked, hands what
// was found to the [selector], and carries out what that decides. A switch is
// always the same sequence: the gate is shut, connections of earlier epochs
// are fenced, the triggers run one after the other, the gate opens.
//
// A [Conductor] owns every goroutine and script that it starts; when
// [Conductor.Run] returns, all of them are gone. The relay and the scripts'
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

// Gate is what clients pass on their way to the primary; see [relay.Relay].
type Gate interface {
	Open(epoch uint64, host string) (relay.Waiting, error)
	Hold()
	Refuse() relay.Waiting
	Fence(ctx context.Context, before uint64, grace time.Duration) relay.Fenced
}

// Scripts runs the operator's scripts; see [hooks.Runner].
type Scripts interface {
	Run(ctx context.Context, s hooks.Script) hooks.Result
}

// Config says how one relay is conducted. Zero fields mean their defaults.
type Config struct {
	// Name is the relay's name in log records and in the scripts' environment.
	Name string

	// Hosts are the candidates in the operator's order of preference, as the
	// operator wrote them.
	Hosts []string

	// Gate is the relay's gate. It is shut at first. Run leaves it as it is
	// when it returns. Required.
	Gate Gate

	// Checks are asked of every host. The first must be the TCP connect; the
	// others are only asked of a host that accepts connections. Required.
	Checks []Check

	// Triggers run after each election, before clients are let through.
	Triggers Triggers

	// Fence says what becomes of the connections of earlier epochs.
	Fence Fence

	// Scripts runs the triggers and the checks that are scripts. Required if
	// there are any.
	Scripts Scripts

	// Rise and Fall are how many results in a row make a host up or down.
	// They default to 2 and 3. An election needs one success.
	Rise, Fall int

	// FastInterval is the time between the checks of a suspected host, and of
	// all while there is no primary. Defaults to 100ms.
	FastInterval time.Duration

	// Hold is how long clients wait without a primary before they are
	// refused. Defaults to 10s; negative refuses at once.
	Hold time.Duration

	// MaxBackoff is the longest wait between two rounds of selection. Defaults
	// to 60s; less than a second counts as a second.
	MaxBackoff time.Duration

	// Failback is how long a preferred host must have been up before it takes
	// over again. Zero, the default, is never.
	Failback time.Duration

	// Keeper keeps primary, epoch, locks and incidents across restarts. Nil,
	// the default, forgets them. The caller closes it after Run.
	Keeper *Keeper

	// Stats counts the relay's clients, for the incident record. May be nil.
	Stats func() relay.Stats

	// Logger defaults to one that discards.
	Logger hclog.Logger
}

// Check is one question that is asked of every host.
type Check struct {
	// Name is what log records call it: "tcp", "http:8008", "check-host".
	Name string

	// Spec is what Run asks, in any form. After [Conductor.Reconfigure] a check
	// of the same name, Spec and Script is still the same question, and what it
	// found stays.
	Spec string

	// Run asks the question. It gets a context that ends after Timeout; a Run
	// that stays longer counts as failed a second later, and Conductor.Run
	// waits for it. Either Run or Script is required.
	Run health.Check

	// Script is the path of a script that answers the question with its exit
	// status. Its Timeout begins when its process does. Its environment
	// describes the election that would make the host primary.
	Script string

	// Args stand in front of the host in the script's arguments.
	Args []string

	// Interval is the time from one start to the next. Defaults to 1s, and to
	// 2s for a script.
	Interval time.Duration

	// Timeout is how long one check may take. Defaults to 1s, and to 5s for a
	// script.
	Timeout time.Duration
}

// Triggers are the scripts of an election.
type Triggers struct {
	// Path is a script, or a directory whose scripts run in byte order of
	// their names; it is read at each election. Empty, the default, is none.
	Path string

	// Timeout is how long each of them may run. Defaults to 30s.
	Timeout time.Duration

	// Abort puts a host aside when one of its triggers fails, runs no further
	// one, and tries the next host. By default a failed trigger is a warning
	// and the switch goes on.
	Abort bool
}

// Fence is what becomes of the connections of earlier epochs. The zero Fence
// resets them at once.
type Fence struct {
	// Keep lets them live. Nothing else does, and it is how two databases get
	// written to.
	Keep bool

	// Drain is how long they may finish before they are reset.
	Drain time.Duration
}

// grace is what [Gate] calls it: negative for ever.
func (f Fence) grace() time.Duration {
	if f.Keep {
		return -1
	}
	return f.Drain
}

const (
	defaultTriggerTimeout = 30 * time.Second

	// openRetry is the time between two tries to open a gate that does not
	// open because another program has taken the address.
	openRetry = time.Second
)

// Conductor conducts one relay.
type Conductor struct {
	rules atomic.Pointer[rules] // stored by Run's goroutine only
	log   hclog.Logger

	machine  *selector.Machine // owned by Run
	status   atomic.Pointer[Status]
	record   record
	evidence evidence

	suspicions chan selector.Suspicion
	firstBytes chan firstByte
	events     chan selector.Event
	requests   chan request
	over       chan struct{}             // closed when Run has returned
	turns      sync.Map                  // by command line: a place for one run of a check script
	drill      atomic.Pointer[rehearsal] // the one under way; nil when there is none
	tasks      sync.WaitGroup            // checks and the switch

	// The following belong to Run's own goroutine.
	shutAt  time.Time      // since when clients are kept out; zero while they pass, and before the first Open
	opening *selector.Open // an Open that has not succeeded
	openAt  time.Time      // when to try it next; zero at once
	alarmed bool           // nobody is usable, and that was said

	locks     locks
	relocked  bool        // they have changed, and the machine does not know
	asked     *switchover // what an operator waits for; nil for nothing
	next      *rules      // to be taken when no switch is under way; nil for none
	answers   []func()    // to operators, after what they ask for is published
	elected   Status      // Reason, Event and Elected of the last election
	goodDrill time.Time
	scribe    scribe
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
	cfg = cfg.withDefaults()
	var kept memory
	if cfg.Keeper != nil {
		kept = cfg.Keeper.loaded
	}
	held, _ := kept.Locks.at(time.Now())
	held = held.anchored()
	first := cfg.election()
	first.Epoch, first.Prefer, first.Locks = kept.Epoch, kept.Primary, held.rules()
	machine, err := selector.New(first)
	if err != nil {
		return nil, err
	}
	c := &Conductor{
		log:        cfg.Logger.Named("failover").With("relay", cfg.Name),
		machine:    machine,
		suspicions: make(chan selector.Suspicion, 1),
		firstBytes: make(chan firstByte, 1),
		events:     make(chan selector.Event),
		requests:   make(chan request),
		over:       make(chan struct{}),
		locks:      held,
		goodDrill:  kept.GoodDrill,
		scribe:     scribe{nextID: 1, doubted: map[string]time.Time{}},
	}
	c.rules.Store(&rules{Config: cfg, prediction: Predict(cfg)})
	for _, i := range kept.Incidents {
		if !i.Done {
			i.Done = true
			if i.Outcome == UnderWay {
				i.Outcome = Interrupted
			}
		}
		c.record.put(i)
		c.scribe.nextID = max(c.scribe.nextID, i.ID+1)
	}
	c.publish()
	return c, nil
}

// election is the part of cfg that the machine needs.
func (cfg Config) election() selector.Config {
	e := selector.Config{
		Hosts: cfg.Hosts, Rise: cfg.Rise, Fall: cfg.Fall, FastInterval: cfg.FastInterval,
		Hold: cfg.Hold, MaxBackoff: cfg.MaxBackoff, Failback: cfg.Failback,
		Drain: max(cfg.Fence.grace(), 0),
	}
	for _, k := range cfg.Checks {
		e.Checks = append(e.Checks, selector.Check{
			Name: k.Name, Spec: k.Spec + k.Script, Interval: k.Interval, Timeout: k.Timeout, Script: k.Script != "",
		})
	}
	return e
}

// withDefaults fills the defaults in, those of the checks too: whoever runs
// them needs the same as the machine.
func (cfg Config) withDefaults() Config {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&cfg.Triggers.Timeout, defaultTriggerTimeout)
	set(&cfg.FastInterval, 100*time.Millisecond)
	set(&cfg.Hold, 10*time.Second)
	if cfg.Rise == 0 {
		cfg.Rise = 2
	}
	if cfg.Fall == 0 {
		cfg.Fall = 3
	}
	cfg.Checks = slices.Clone(cfg.Checks)
	for i := range cfg.Checks {
		k := &cfg.Checks[i]
		if k.Script != "" {
			set(&k.Interval, 2*time.Second)
			set(&k.Timeout, 5*time.Second)
		}
		set(&k.Interval, time.Second)
		set(&k.Timeout, time.Second)
	}
	return cfg
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
	if cfg.Triggers.Timeout < 0 {
		errs = append(errs, fmt.Errorf("trigger-timeout: %v is negative", cfg.Triggers.Timeout))
	}
	if cfg.Fence.Drain < 0 {
		errs = append(errs, fmt.Errorf("fence: drain of %v is negative", cfg.Fence.Drain))
	}
	if cfg.Fence.Keep && cfg.Fence.Drain > 0 {
		errs = append(errs, errors.New("fence: keep and drain exclude each other"))
	}
	return errors.Join(errs...)
}

// Suspect tells that a client's connect to the primary of an epoch failed or
// is slow. It never blocks and may be called at any time.
func (c *Conductor) Suspect(epoch uint64, err error) {
	select {
	case c.suspicions <- selector.Suspicion{Epoch: epoch, Err: err}:
	default: // one is waiting to be looked at, which has the same effect
	}
}

// Snapshot returns what the machine knows now, and takes no lock. Nobody may
// change it. It names a primary only while clients are let through to it.
func (c *Conductor) Snapshot() selector.Snapshot { return c.status.Load().Snapshot }

func (c *Conductor) publish() {
	s := c.elected
	s.Snapshot = c.machine.Snapshot()
	if c.opening != nil {
		s.Primary = ""
	}
	s.Relay, s.Locks, s.GoodDrill, s.Kept = c.cfg().Name, c.locks, c.goodDrill, c.cfg().Keeper != nil
	c.status.Store(&s)
}

// remember has the disk know what is known now. It returns nil when nothing is
// kept.
func (c *Conductor) remember() *saving {
	if c.cfg().Keeper == nil {
		return nil
	}
	now := c.machine.Snapshot()
	incidents, _ := c.record.all()
	primary := now.Elect
	if primary == "" {
		primary = c.cfg().Keeper.loaded.Primary // nobody was elected yet
	}
	return c.cfg().Keeper.save(memory{
		Relay: c.cfg().Name, Primary: primary, Epoch: now.Epoch, Locks: c.locks,
		GoodDrill: c.goodDrill, Incidents: incidents,
	})
}

// Run conducts until ctx ends. It returns nil when every check, trigger and
// goroutine that it started is gone. It can be called once.
func (c *Conductor) Run(ctx context.Context) error {
	defer c.tasks.Wait()
	defer close(c.over)
	defer c.finish(Interrupted, "the program ended")
	c.logPrediction()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var ev selector.Event = selector.Tick{}
		var done chan struct{}
		select {
		case <-ctx.Done():
			return nil
		case ev = <-c.events:
		case ev = <-c.suspicions:
		case r := <-c.requests:
			ev, done = r.do(), r.done
		case b := <-c.firstBytes:
			c.noteFirstByte(b)
			continue
		case <-timer.C:
		}
		if ctx.Err() != nil {
			return nil // what came may be no more than a sign of that
		}
		c.step(ctx, ev)
		c.takeRules(ctx)
		c.reopen()
		nextEnd := c.expire(time.Now())
		if c.relocked {
			c.relocked = false
			c.step(ctx, c.locks.rules())
		}
		if at := c.scribe.closeAt; !at.IsZero() && !time.Now().Before(at) {
			c.finish(Open, "")
		}
		c.publish()
		for _, answer := range c.answers {
			answer()
		}
		c.answers = nil
		if done != nil {
			close(done)
		}

		wake := time.Until(c.machine.Wake())
		if c.opening != nil {
			wake = min(wake, time.Until(c.openAt))
		}
		for _, at := range []time.Time{nextEnd, c.scribe.closeAt} {
			if !at.IsZero() {
				wake = min(wake, time.Until(at))
			}
		}
		timer.Reset(max(wake, 0))
	}
}

// step tells the machine what happened and does what it wants.
func (c *Conductor) step(ctx context.Context, ev selector.Event) {
	for _, a := range c.machine.Step(time.Now(), ev) {
		c.act(ctx, a)
	}
}

// logPrediction says at the start what the settings promise.
func (c *Conductor) logPrediction() {
	fields := []any{}
	for _, k := range c.rules.Load().prediction.Cases {
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
	for _, w := range c.rules.Load().prediction.Warnings {
		// No warning here: the defaults of trigger-timeout and hold are a pair
		// of this kind, and somebody may want them so.
		c.log.Info("settings work against each other", "reason", w)
	}
}

// reportRequest has f run on Run's goroutine, unless ctx has ended and nobody
// listens any more.
func (c *Conductor) reportRequest(ctx context.Context, f func() selector.Event) {
	select {
	case c.requests <- request{do: f}:
	case <-ctx.Done():
	}
}

// report hands ev to Run, unless ctx has ended and nobody listens any more.
func (c *Conductor) report(ctx context.Context, ev selector.Event) {
	select {
	case c.events <- ev:
	case <-ctx.Done():
	}
}
