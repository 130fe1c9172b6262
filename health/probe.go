package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// ErrUnknown is wrapped by [Prober.Err] while no threshold has been met yet.
var ErrUnknown = errors.New("not known yet")

// ProberConfig says what a [Prober] asks and what it concludes. Zero fields
// mean their defaults.
type ProberConfig struct {
	// Name is what records call the probe. Required.
	Name string

	// Check asks once, and returns by the end of ctx. One that does not is
	// taken for failed at its timeout, and not run again before it returns.
	// Required.
	Check func(ctx context.Context) Result

	// Interval is the time from one start of Check to the next; a Check that
	// takes longer is run again at once. Defaults to 1s.
	Interval time.Duration

	// Timeout is how long one Check may take. Defaults to 1s.
	Timeout time.Duration

	// Jitter lengthens each interval by a random part of it, so that many
	// probes do not ask in step. Defaults to none.
	Jitter time.Duration

	// Rise and Fall are how many passes in a row bring the probe up, and how
	// many failures bring it down. They default to 2 and 3.
	Rise, Fall int

	// Logger is told of every change of state, with its reason. Defaults to
	// none.
	Logger hclog.Logger

	// Before asked the same question until now, by another schedule or with
	// other thresholds: what it found counts on. Defaults to nobody.
	Before *Prober

	// Changed is called behind every change of state, by the goroutine of
	// [Prober.Run]: it must return soon. Defaults to nothing.
	Changed func()
}

// ProbeCondition is what a [Prober] concludes of its results.
type ProbeCondition string

// The conditions of a probe. One that is not known is not up.
const (
	ProbeUnknown ProbeCondition = "unknown"
	ProbeUp      ProbeCondition = "up"
	ProbeDown    ProbeCondition = "down"
)

// ProbeState is what a [Prober] knows at one moment.
type ProbeState struct {
	Condition ProbeCondition

	// Since is when Condition began; zero before Run.
	Since time.Time

	// Stale is true when no result has come for longer than three intervals,
	// jitter included, and a timeout. Condition is down then.
	Stale bool

	// Last is the newest result, Local ones included, and LastAt is when it
	// came; both are zero before the first.
	Last   Result
	LastAt time.Time

	// Streak counts the passes in a row, or, as a negative number, the
	// failures. Local results do not count.
	Streak int
}

// Prober runs a check on a schedule and remembers what came of it. Its methods
// may be called from many goroutines, and at once return what is known.
type Prober struct {
	cfg ProberConfig
	log hclog.Logger

	mu    sync.Mutex // guards everything below
	state ProbeState // Stale is worked out when asked for
	heard time.Time  // when a Check last returned in time, or when Run began; zero before
	quiet bool       // goStale has been told of this silence
	why   error      // the newest failure that counted
}

// NewProber returns a Prober, or an error naming every invalid field of cfg.
// It asks nothing before [Prober.Run].
func NewProber(cfg ProberConfig) (*Prober, error) {
	cfg.Interval = cmp.Or(cfg.Interval, time.Second)
	cfg.Timeout = cmp.Or(cfg.Timeout, time.Second)
	cfg.Rise = cmp.Or(cfg.Rise, 2)
	cfg.Fall = cmp.Or(cfg.Fall, 3)
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	var errs []error
	if cfg.Name == "" {
		errs = append(errs, errors.New("name: it is empty"))
	}
	if cfg.Check == nil {
		errs = append(errs, errors.New("check: there is none"))
	}
	if cfg.Interval < 0 {
		errs = append(errs, fmt.Errorf("interval: %s is negative", cfg.Interval))
	}
	if cfg.Timeout < 0 {
		errs = append(errs, fmt.Errorf("timeout: %s is negative", cfg.Timeout))
	}
	if cfg.Jitter < 0 {
		errs = append(errs, fmt.Errorf("jitter: %s is negative", cfg.Jitter))
	}
	if cfg.Rise < 1 {
		errs = append(errs, fmt.Errorf("rise: %d is less than 1", cfg.Rise))
	}
	if cfg.Fall < 1 {
		errs = append(errs, fmt.Errorf("fall: %d is less than 1", cfg.Fall))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("probe %q: %w", cfg.Name, err)
	}
	p := &Prober{
		cfg:   cfg,
		log:   cfg.Logger.Named("probe").With("probe", cfg.Name),
		state: ProbeState{Condition: ProbeUnknown},
	}
	if b := cfg.Before; b != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		p.state, p.why = b.state, b.why
		p.cfg.Before = nil // or each would keep all before it
	}
	return p, nil
}

// Name returns the name of the probe.
func (p *Prober) Name() string { return p.cfg.Name }

// State returns what is known now.
func (p *Prober) State() ProbeState {
	state, _, _ := p.now()
	return state
}

// Err returns nil while the probe is up, and otherwise why it is not: it wraps
// [ErrUnknown] before the first threshold is met.
func (p *Prober) Err() error {
	state, silence, why := p.now()
	switch {
	case state.Stale:
		return fmt.Errorf("stale: no result for %s", silence.Truncate(time.Second))
	case state.Condition == ProbeUp:
		return nil
	case state.Condition == ProbeDown && why != nil:
		return fmt.Errorf("down: %w", why)
	case state.Condition == ProbeDown:
		return errors.New("down: no results until a moment ago") // stale, and then one pass
	case why != nil:
		return fmt.Errorf("%w: %w", ErrUnknown, why)
	}
	return ErrUnknown
}

// now returns the state, for how long nothing was heard, and the newest
// failure.
func (p *Prober) now() (state ProbeState, silence time.Duration, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	state = p.state
	if p.heard.IsZero() {
		return state, 0, p.why
	}
	silence = time.Since(p.heard)
	if silence >= p.patience() {
		state.Stale = true
		if state.Condition != ProbeDown {
			state.Condition, state.Since = ProbeDown, p.heard.Add(p.patience())
		}
	}
	return state, silence, p.why
}

// patience is how long a probe without a result is believed.
func (p *Prober) patience() time.Duration {
	return 3*(p.cfg.Interval+p.cfg.Jitter) + p.cfg.Timeout
}

// Run asks at once and then on the interval, until ctx ends. It returns nil
// when the Check under way has returned, or 500ms after the end of ctx at the
// latest: only a Check that ignores its context is left behind.
func (p *Prober) Run(ctx context.Context) error {
	p.mu.Lock()
	p.heard = time.Now() // a probe that never answers is stale one day, too
	if p.state.Since.IsZero() {
		p.state.Since = p.heard
	}
	p.mu.Unlock()

	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-next.C:
		case <-ctx.Done():
			return nil
		}
		began := time.Now()
		p.ask(ctx)
		if ctx.Err() != nil {
			return nil
		}
		pause := p.cfg.Interval
		if p.cfg.Jitter > 0 {
			pause += rand.N(p.cfg.Jitter) //nolint:gosec // G404: nobody gains by guessing it
		}
		next.Reset(max(0, pause-time.Since(began)))
	}
}

// ask runs Check once and returns when it has, whatever its timeout says: a
// call that is stuck is not joined by another.
func (p *Prober) ask(ctx context.Context) {
	call, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	done := make(chan Result, 1) // so that a call left behind can end
	go func() { done <- p.cfg.Check(call) }()

	// A check that ends with its context does so a little later.
	grace := p.cfg.Timeout + lateness
	overdue := time.NewTimer(grace)
	defer overdue.Stop()
	// When nothing was heard for too long already, it was this program that was
	// stopped: the check gets its time all the same.
	p.mu.Lock()
	stale := time.NewTimer(max(p.patience()-time.Since(p.heard), grace))
	p.mu.Unlock()
	defer stale.Stop()

	counted := false
	for {
		select {
		case result := <-done:
			if ctx.Err() == nil && !counted {
				p.record(result)
			}
			return
		case <-overdue.C:
			counted = true // what comes later answers no question
			p.count(Result{
				Err:     fmt.Errorf("the check goes on %s after its timeout of %s", lateness, p.cfg.Timeout),
				Latency: grace,
			})
		case <-stale.C:
			p.goStale()
		case <-ctx.Done():
			p.leave(done)
			return
		}
	}
}

// leave waits a moment for the call whose context has ended.
func (p *Prober) leave(done <-chan Result) {
	late := time.NewTimer(lateness)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
		p.log.Warn("check left behind, it goes on after its end")
	}
}

// record takes the result of a Check that has returned.
func (p *Prober) record(r Result) {
	p.mu.Lock()
	p.heard, p.quiet = time.Now(), false
	p.mu.Unlock()
	p.count(r)
}

// count folds r into the state.
func (p *Prober) count(r Result) {
	p.mu.Lock()
	p.state.Last, p.state.LastAt = r, time.Now()
	was := p.state.Condition
	switch {
	case r.Local && !r.OK:
	case r.OK:
		p.state.Streak = max(p.state.Streak, 0) + 1
		if p.state.Streak >= p.cfg.Rise {
			p.state.Condition = ProbeUp
		}
	default:
		p.why = cmp.Or(r.Err, errors.New("the check failed and does not say why"))
		p.state.Streak = min(p.state.Streak, 0) - 1
		if -p.state.Streak >= p.cfg.Fall {
			p.state.Condition = ProbeDown
		}
	}
	is, why := p.state.Condition, p.why
	if is != was {
		p.state.Since = p.state.LastAt
	}
	p.mu.Unlock()

	if !r.OK {
		p.log.Debug("check failed", "local", r.Local, "phase", r.Phase, "took", r.Latency, "error", r.Err)
	}
	if is == was {
		return
	}
	switch is {
	case ProbeUp:
		p.log.Info("probe changed state", "from", was, "to", is)
	case ProbeDown, ProbeUnknown: // nothing leads to unknown
		p.log.Warn("probe changed state", "from", was, "to", is, "error", why)
	}
	p.cfg.Changed()
}

// goStale takes the probe down, once, because nothing has been heard for too
// long. It then rises as any probe that is down.
func (p *Prober) goStale() {
	p.mu.Lock()
	if p.quiet {
		p.mu.Unlock()
		return
	}
	p.quiet = true
	silence := time.Since(p.heard)
	was := p.state.Condition
	p.state.Condition = ProbeDown
	if was != ProbeDown {
		p.state.Since = time.Now()
	}
	p.mu.Unlock()
	p.log.Warn("probe is stale", "from", was, "to", ProbeDown, "silence", silence.Truncate(time.Second))
	if was != ProbeDown {
		p.cfg.Changed()
	}
}
