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

// ProberConfig configures a [Prober]. No setting in it has a default.
type ProberConfig struct {
	// Name is the name of the probe in log records. Required.
	Name string

	// Check runs once and returns by the end of ctx. One that does not counts as
	// failed at its timeout, and is not run again before it returns. Required.
	Check func(ctx context.Context) Result

	// Interval is the time from one start of Check to the next; a Check that
	// takes longer is run again at once. Required.
	Interval time.Duration

	// Timeout is the longest time that one Check may take. Required.
	Timeout time.Duration

	// Jitter lengthens each interval by a random part of it, so that many
	// probes do not run at the same time. Zero is none.
	Jitter time.Duration

	// Rise and Fall are how many passes in a row bring the probe up, and how
	// many failures bring it down. Required.
	Rise, Fall int

	// Logger gets every change of state, with its reason. Nil discards them.
	Logger hclog.Logger

	// Before is the Prober of the same check until now, with another schedule or
	// other thresholds: its state is continued. Nil is none.
	Before *Prober
}

// ProbeCondition is the condition that a [Prober] derives from its results.
type ProbeCondition string

// The conditions of a probe. One that is not known is not up.
const (
	ProbeUnknown ProbeCondition = "unknown"
	ProbeUp      ProbeCondition = "up"
	ProbeDown    ProbeCondition = "down"
)

// ProbeState is the state of a [Prober] at one moment.
type ProbeState struct {
	Condition ProbeCondition

	// Since is the time when Condition began; zero before Run.
	Since time.Time

	// Stale is true when there was no result for longer than three intervals,
	// including jitter, and a timeout. Condition is down then.
	Stale bool

	// Last is the newest result, including Unknown ones, and LastAt is its time;
	// both are zero before the first.
	Last   Result
	LastAt time.Time

	// Streak counts the passes in a row, or, as a negative number, the
	// failures. Unknown results do not count.
	Streak int
}

// Prober runs a check on a schedule and keeps its state. Its methods are safe for
// concurrent use and return at once.
type Prober struct {
	cfg ProberConfig
	log hclog.Logger

	mu         sync.Mutex // guards everything below
	state      ProbeState // without Stale, which State computes
	lastResult time.Time  // when a Check last returned in time, or when Run began; zero before
	quiet      bool       // goStale has handled this silence
	why        error      // the newest failure that counted
}

// NewProber returns a Prober, or an error naming every invalid field of cfg.
// It runs no check before [Prober.Run].
func NewProber(cfg ProberConfig) (*Prober, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	var errs []error
	if cfg.Name == "" {
		errs = append(errs, errors.New("name: it is empty"))
	}
	if cfg.Check == nil {
		errs = append(errs, errors.New("check: there is none"))
	}
	if cfg.Interval <= 0 {
		errs = append(errs, fmt.Errorf("interval: %s is not positive", cfg.Interval))
	}
	if cfg.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("timeout: %s is not positive", cfg.Timeout))
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
		p.cfg.Before = nil // or each would keep all earlier ones in memory
	}
	return p, nil
}

// State returns the present state.
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

// now returns the state, for how long there was no result, and the newest
// failure.
func (p *Prober) now() (state ProbeState, silence time.Duration, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	state = p.state
	if p.lastResult.IsZero() {
		return state, 0, p.why
	}
	silence = time.Since(p.lastResult)
	if silence >= p.staleAfter() {
		state.Stale = true
		if state.Condition != ProbeDown {
			state.Condition, state.Since = ProbeDown, p.lastResult.Add(p.staleAfter())
		}
	}
	return state, silence, p.why
}

// staleAfter is the time for which the state is valid without a new result.
func (p *Prober) staleAfter() time.Duration {
	return 3*(p.cfg.Interval+p.cfg.Jitter) + p.cfg.Timeout
}

// Run runs Check at once and then on the interval, until ctx ends. It returns nil when
// the Check in progress has returned, or 500ms after the end of ctx at the latest: then
// a Check that ignores its context is still running.
func (p *Prober) Run(ctx context.Context) error {
	p.mu.Lock()
	p.lastResult = time.Now() // so that a probe without any result becomes stale, too
	if p.state.Since.IsZero() {
		p.state.Since = p.lastResult
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
		p.runCheck(ctx)
		if ctx.Err() != nil {
			return nil
		}
		pause := p.cfg.Interval
		if p.cfg.Jitter > 0 {
			pause += rand.N(p.cfg.Jitter) //nolint:gosec // G404: no security depends on it
		}
		next.Reset(max(0, pause-time.Since(began)))
	}
}

// runCheck runs Check once and returns when it has returned, even after its timeout,
// so that no second call is started beside one that hangs.
func (p *Prober) runCheck(ctx context.Context) {
	call, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	done := make(chan Result, 1) // so that a call left behind can end
	go func() { done <- p.cfg.Check(call) }()

	// A check that ends with its context does so a little later.
	grace := p.cfg.Timeout + lateness
	overdue := time.NewTimer(grace)
	defer overdue.Stop()
	// When there was no result for too long already, this program was stopped:
	// the check still gets its full time.
	p.mu.Lock()
	stale := time.NewTimer(max(p.staleAfter()-time.Since(p.lastResult), grace))
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
			counted = true // a later result is ignored
			p.count(Result{
				Err:     fmt.Errorf("the check still runs %s after its timeout of %s", lateness, p.cfg.Timeout),
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

// leave waits up to 500ms for the call whose context has ended.
func (p *Prober) leave(done <-chan Result) {
	late := time.NewTimer(lateness)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
		p.log.Warn("check does not end, it still runs after its probe was removed")
	}
}

// record records the result of a Check that has returned.
func (p *Prober) record(r Result) {
	p.mu.Lock()
	p.lastResult, p.quiet = time.Now(), false
	p.mu.Unlock()
	p.count(r)
}

// count updates the state with r.
func (p *Prober) count(r Result) {
	p.mu.Lock()
	p.state.Last, p.state.LastAt = r, time.Now()
	was := p.state.Condition
	switch {
	case r.Unknown && !r.OK:
	case r.OK:
		p.state.Streak = max(p.state.Streak, 0) + 1
		if p.state.Streak >= p.cfg.Rise {
			p.state.Condition = ProbeUp
		}
	default:
		p.why = cmp.Or(r.Err, errors.New("the check failed without a reason"))
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
		p.log.Debug("check failed", "unknown", r.Unknown, "phase", r.Phase, "took", r.Latency, "error", r.Err)
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
}

// goStale sets the probe down, once, because there was no result for too long. It then
// rises like any probe that is down.
func (p *Prober) goStale() {
	p.mu.Lock()
	if p.quiet {
		p.mu.Unlock()
		return
	}
	p.quiet = true
	silence := time.Since(p.lastResult)
	was := p.state.Condition
	p.state.Condition = ProbeDown
	if was != ProbeDown {
		p.state.Since = time.Now()
	}
	p.mu.Unlock()
	p.log.Warn("probe is stale", "from", was, "to", ProbeDown, "silence", silence.Truncate(time.Second))
}
