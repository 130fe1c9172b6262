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

	// Logger defaults to one that discards.
	Logger hclog.Logger
}

// Check is one question that is asked of every host.
type Check struct {
	// Name is what log records call it: "tcp", "http:8008", "check-host".
	Name string

	// Run asks the question. It gets a context that ends after Timeout; a Run
	// that stays longer counts as failed a second later, and Conductor.Run
	// waits for it. Either Run or Script is required.
	Run health.Check

	// Script is the path of a script that answers the question with its exit
	// status. Its Timeout begins when its process does. Its environment
	// describes the election that would make the host primary.
	Script string

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

const (
	defaultTriggerTimeout = 30 * time.Second

	// openRetry is the time between two tries to open a gate that does not
	// open because another program has taken the address.
	openRetry = time.Second
)

// Conductor conducts one relay.
type Conductor struct {
	cfg Config
	log hclog.Logger

	machine  *selector.Machine // owned by Run
	snapshot atomic.Pointer[selector.Snapshot]

	suspicions chan selector.Suspicion
	events     chan selector.Event
	tasks      sync.WaitGroup // checks and the switch

	// The following belong to Run's own goroutine.
	shutAt  time.Time      // since when clients are kept out; zero while they pass, and before the first Open
	opening *selector.Open // an Open that has not succeeded
	openAt  time.Time      // when to try it next; zero at once
	alarmed bool           // nobody is usable, and that was said
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
	if cfg.Triggers.Timeout == 0 {
		cfg.Triggers.Timeout = defaultTriggerTimeout
	}
	rules := selector.Config{
		Hosts: cfg.Hosts, Rise: cfg.Rise, Fall: cfg.Fall, FastInterval: cfg.FastInterval,
		Hold: cfg.Hold, MaxBackoff: cfg.MaxBackoff, Failback: cfg.Failback,
	}
	for _, k := range cfg.Checks {
		rules.Checks = append(rules.Checks, selector.Check{
			Name: k.Name, Interval: k.Interval, Timeout: k.Timeout, Script: k.Script != "",
		})
	}
	machine, err := selector.New(rules)
	if err != nil {
		return nil, err
	}
	// The machine has the defaults of the checks; those who run them need the
	// same.
	checks := machine.Checks()
	cfg.Checks = append([]Check(nil), cfg.Checks...)
	for i := range cfg.Checks {
		cfg.Checks[i].Interval, cfg.Checks[i].Timeout = checks[i].Interval, checks[i].Timeout
	}
	c := &Conductor{
		cfg:        cfg,
		log:        cfg.Logger.Named("failover").With("relay", cfg.Name),
		machine:    machine,
		suspicions: make(chan selector.Suspicion, 1),
		events:     make(chan selector.Event),
	}
	c.publish()
	return c, nil
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

// Snapshot returns what is known now, and takes no lock. Nobody may change it.
// It names a primary only while clients are let through to it.
func (c *Conductor) Snapshot() selector.Snapshot { return *c.snapshot.Load() }

func (c *Conductor) publish() {
	s := c.machine.Snapshot()
	if c.opening != nil {
		s.Primary = ""
	}
	c.snapshot.Store(&s)
}

// Run conducts until ctx ends. It returns nil when every check, trigger and
// goroutine that it started is gone.
func (c *Conductor) Run(ctx context.Context) error {
	defer c.tasks.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var ev selector.Event = selector.Tick{}
		select {
		case <-ctx.Done():
			return nil
		case ev = <-c.events:
		case ev = <-c.suspicions:
		case <-timer.C:
		}
		if ctx.Err() != nil {
			return nil // what came may be no more than a sign of that
		}
		for _, a := range c.machine.Step(time.Now(), ev) {
			c.act(ctx, a)
		}
		c.reopen()
		c.publish()
		wake := time.Until(c.machine.Wake())
		if c.opening != nil {
			wake = min(wake, time.Until(c.openAt))
		}
		timer.Reset(max(wake, 0))
	}
}

// report hands ev to Run, unless ctx has ended and nobody listens any more.
func (c *Conductor) report(ctx context.Context, ev selector.Event) {
	select {
	case c.events <- ev:
	case <-ctx.Done():
	}
}
