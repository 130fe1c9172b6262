package failover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"understudy/internal/fault"
	"understudy/internal/histogram"
	"understudy/selector"
)

// Canary configures a client of the conductor's own, which connects through the relay as
// clients do, to measure what they see. The zero Canary is none.
type Canary struct {
	// Every is the time from one attempt to the next. Zero makes none.
	Every time.Duration

	// Slow is the longest time that a good attempt takes. Required if there is a canary.
	Slow time.Duration

	// Timeout is the time that Talk may take once a host has accepted the connection.
	// Before, an attempt waits for as long as clients do. Required if there is a canary.
	Timeout time.Duration

	// Talk speaks with the host, and returns an error if the host does not answer as it
	// should. With nil it is enough that a host accepts the connection.
	Talk func(ctx context.Context, conn net.Conn) error
}

// CanaryConn is the client's end of a connection through the relay; see [relay.Canary].
type CanaryConn interface {
	net.Conn

	// Served returns a channel that is closed when a host has accepted the connection.
	Served() <-chan struct{}
}

func (k Canary) validate() error {
	if k.Every != 0 && (k.Every < 0 || k.Slow <= 0 || k.Timeout <= 0) {
		return fmt.Errorf("canary: every %v, slow %v and timeout %v have to be positive", k.Every, k.Slow, k.Timeout)
	}
	return nil
}

// CanaryOutcome is the result of one attempt of a canary.
type CanaryOutcome string

// The outcomes.
const (
	CanaryGood   CanaryOutcome = "good"
	CanarySlow   CanaryOutcome = "slow"   // served, but not soon enough
	CanaryFailed CanaryOutcome = "failed" // refused, reset or not answered
	CanaryLocal  CanaryOutcome = "local"  // a failure of this machine, which says nothing about the service
)

// CanaryOutcomes lists the outcomes.
func CanaryOutcomes() []CanaryOutcome {
	return []CanaryOutcome{CanaryGood, CanarySlow, CanaryFailed, CanaryLocal}
}

// CanaryMeasured is what a canary has counted since the start.
type CanaryMeasured struct {
	Attempts map[CanaryOutcome]uint64
	Took     histogram.Snapshot // attempts that were served
	Outage   time.Duration      // all outages together, the one in progress included
}

// CanaryStatus is the current state of a canary.
type CanaryStatus struct {
	Last      CanaryOutcome // of the last attempt that has ended; empty before the first
	LastAt    time.Time     // when it ended
	Took      time.Duration // how long it took
	LastError error         // why it failed

	// Since is when the outage in progress began; zero while there is none.
	Since time.Time
	Error error // why an attempt of this outage failed last; nil if it only waits

	Outage time.Duration // of the last outage that is over; zero if there was none
	Over   time.Time     // when that was over
}

// CanaryRun is what the canary saw of an election.
type CanaryRun struct {
	Began    time.Time `json:"began,omitzero"`  // of the first attempt that failed or was slow; absent if there was none
	Seconds  float64   `json:"seconds"`         // until an attempt was good again; zero if all were
	Attempts int       `json:"attempts"`        // that failed or were slow
	Error    string    `json:"error,omitempty"` // of the last one that failed
}

// outage is a time in which the canary was not served, or late: from the beginning of the
// first attempt that failed or was slow. It ends when the first good attempt after a
// failure does. If a slow attempt comes before a good one, it has waited until the service
// was there again, so the outage ends with it.
type outage struct {
	began    time.Time
	until    time.Time // the end so far
	failed   bool      // the last attempt failed, so the outage goes on until now
	attempts int
	err      error // of the last attempt that failed; nil if none did
}

// length returns its length at now. Attempt is when the attempt in progress began, if that
// is late; otherwise zero.
func (o *outage) length(now, attempt time.Time) time.Duration {
	switch {
	case o == nil && attempt.IsZero():
		return 0
	case o == nil:
		return now.Sub(attempt)
	case o.failed || !attempt.IsZero():
		return now.Sub(o.began)
	}
	return o.until.Sub(o.began)
}

// canaryRecord counts attempts and outages. It knows no clock.
type canaryRecord struct {
	attempts map[CanaryOutcome]uint64
	took     histogram.Histogram
	total    time.Duration // of the outages that are over
	current  *outage       // nil while there is none
	last     CanaryStatus  // but for Since and Error
	running  time.Time     // when the attempt in progress began; zero for none
}

// ended records an attempt, and returns the outage that it has ended; nil for none.
func (r *canaryRecord) ended(began, now time.Time, err error, slow time.Duration) (outcome CanaryOutcome, over *outage) {
	took := now.Sub(began)
	switch {
	case err != nil && fault.Local(err):
		outcome = CanaryLocal
	case err != nil:
		outcome = CanaryFailed
	case took > slow:
		outcome = CanarySlow
	default:
		outcome = CanaryGood
	}
	if r.attempts == nil {
		r.attempts = map[CanaryOutcome]uint64{}
	}
	r.attempts[outcome]++
	r.running = time.Time{}
	r.last.Last, r.last.LastAt, r.last.Took, r.last.LastError = outcome, now, took, err
	if err == nil {
		r.took.Observe(took)
	}
	switch outcome {
	case CanaryLocal:
	case CanaryGood:
		if over = r.current; over != nil {
			if over.failed {
				over.until = now
			}
			r.current = nil
			r.total += over.until.Sub(over.began)
			r.last.Outage, r.last.Over = over.until.Sub(over.began), over.until
		}
	case CanarySlow, CanaryFailed:
		if r.current == nil {
			r.current = &outage{began: began}
		}
		o := r.current
		o.until, o.failed = now, outcome == CanaryFailed
		o.attempts++
		if o.failed {
			o.err = err
		}
	}
	return outcome, over
}

// late returns when the attempt in progress began, if it is slow already; otherwise zero.
func (r *canaryRecord) late(now time.Time, slow time.Duration) time.Time {
	if r.running.IsZero() || now.Sub(r.running) <= slow {
		return time.Time{}
	}
	return r.running
}

func (r *canaryRecord) status(now time.Time, slow time.Duration) CanaryStatus {
	s := r.last
	if o := r.current; o != nil && (o.failed || !r.late(now, slow).IsZero()) {
		s.Since, s.Error = o.began, o.err
	} else if o == nil {
		s.Since = r.late(now, slow)
	}
	return s
}

// canary makes the attempts of a conductor's canary. Only Run's goroutine starts and stops
// it.
type canary struct {
	stop    context.CancelFunc // nil while there is none
	over    chan struct{}      // closed when the last one has ended
	changed chan struct{}      // holds an element when the settings have changed
	wanted  atomic.Bool        // the record of an election waits for a good attempt

	mu     sync.Mutex // guards record
	record canaryRecord
}

// attempted is an attempt that has ended and has to be reported.
type attempted struct {
	outcome CanaryOutcome
	first   bool    // there was no outage
	over    *outage // nil if it ended none
	at      time.Time
	err     error
}

// applyCanary starts, stops or changes the canary by the settings.
func (c *Conductor) applyCanary(ctx context.Context) {
	k := &c.canary
	switch on := c.cfg().Canary.Every > 0; {
	case on && k.stop == nil:
		before := k.over
		ctx, stop := context.WithCancel(ctx)
		k.stop, k.over, k.changed = stop, make(chan struct{}), make(chan struct{}, 1)
		over, changed := k.over, k.changed
		c.tasks.Go(func() {
			defer close(over)
			if before != nil {
				<-before
			}
			k.mu.Lock()
			k.record.current, k.record.running = nil, time.Time{} // of the time before it was stopped
			k.mu.Unlock()
			c.runCanary(ctx, changed)
		})
	case !on && k.stop != nil:
		k.stop()
		k.stop = nil
	case on:
		select {
		case k.changed <- struct{}{}:
		default: // it does not know of the last change yet
		}
	}
}

// runCanary makes attempts until ctx ends.
func (c *Conductor) runCanary(ctx context.Context, changed <-chan struct{}) {
	base := c.cfg().Base
	if base.IsZero() {
		base = time.Now()
	}
	t := time.NewTimer(0)
	defer t.Stop()
	ended := make(chan attempted, 1) // one attempt is made at a time
	for {
		every := cmp.Or(c.cfg().Canary.Every, time.Hour) // switched off: ctx ends in a moment
		t.Reset(untilTurn(time.Now(), base, every, c.turnOf()))
		select {
		case <-ctx.Done():
			return
		case <-changed:
			continue
		case a := <-ended:
			c.noteAttempt(ctx, a)
			continue
		case <-t.C:
		}
		if k := c.cfg().Canary; k.Every > 0 && c.beginAttempt() {
			c.noteEnded(ctx, ended) // makes room
			if !c.try(ctx, k, ended) {
				c.attempt(ctx, k, ended)
			}
		}
	}
}

// turnOf returns the number of the relay for [untilTurn]. It has its turn with the checks of
// its first host.
func (c *Conductor) turnOf() uint64 {
	cfg := c.cfg()
	if cfg.Phases == nil {
		return selector.NumberOf(cfg.Hosts[0])
	}
	return cfg.Phases[0]
}

// untilTurn returns the time until the next attempt. Those of several relays are spread over
// the interval, by number.
func untilTurn(now, base time.Time, every time.Duration, number uint64) time.Duration {
	phase := selector.PhaseOf(number, every)
	since := (now.Sub(base) - phase) % every
	if since < 0 {
		since += every
	}
	return every - since
}

// beginAttempt records that an attempt begins, and returns false while one is under way.
func (c *Conductor) beginAttempt() bool {
	w := &c.canary
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.record.running.IsZero() {
		return false
	}
	w.record.running = time.Now()
	return true
}

// try begins an attempt that no goroutine waits for, which is recorded when it ends. It
// returns false where that is not possible.
func (c *Conductor) try(ctx context.Context, k Canary, ended chan<- attempted) bool {
	if k.Talk != nil || c.cfg().TryCanary == nil {
		return false
	}
	return c.cfg().TryCanary(ctx, func(err error) { c.endAttempt(ctx, k, err, ended) })
}

// attempt makes and records one attempt.
func (c *Conductor) attempt(ctx context.Context, k Canary, ended chan attempted) {
	conn, err := c.cfg().DialCanary(ctx)
	if err == nil {
		err = k.talk(ctx, conn)
	}
	c.endAttempt(ctx, k, err, ended)
	c.noteEnded(ctx, ended)
	if conn != nil {
		k.leave(conn)
	}
}

// endAttempt records the end of an attempt, and sends it to ended if something has to be
// said of it. It does not block.
func (c *Conductor) endAttempt(ctx context.Context, k Canary, err error, ended chan<- attempted) {
	w := &c.canary
	w.mu.Lock()
	defer w.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	a := attempted{first: w.record.current == nil, at: time.Now(), err: err}
	a.outcome, a.over = w.record.ended(w.record.running, a.at, err, k.Slow)
	if a.outcome == CanaryFailed && a.first || a.over != nil || a.outcome == CanaryGood && w.wanted.Load() {
		ended <- a // there is room before the next attempt begins
	}
}

// noteEnded reports the last attempt if that was not done.
func (c *Conductor) noteEnded(ctx context.Context, ended <-chan attempted) {
	select {
	case a := <-ended:
		c.noteAttempt(ctx, a)
	default:
	}
}

// noteAttempt reports an attempt to the log and to the record of the election.
func (c *Conductor) noteAttempt(ctx context.Context, a attempted) {
	if a.outcome == CanaryFailed && a.first && c.Snapshot().Primary != "" {
		c.log.Warn("the canary is not served", "primary", c.Snapshot().Primary, "error", a.err)
	}
	if a.over != nil {
		fields := []any{"for", a.over.until.Sub(a.over.began).Round(time.Millisecond), "attempts", a.over.attempts}
		if a.over.err != nil {
			fields = append(fields, "error", a.over.err)
		}
		c.log.Warn("the canary was not served, or slowly, and is served again", fields...)
	}
	if a.outcome == CanaryGood && (a.over != nil || c.canary.wanted.Load()) {
		c.reportRequest(ctx, func() selector.Event {
			c.noteCanary(a.over, a.at)
			return selector.Tick{}
		})
	}
}

// talk returns when the connection is served and the host has answered, or why not.
func (k Canary) talk(ctx context.Context, conn CanaryConn) error {
	var mu sync.Mutex // guards done
	done := false
	limit := func(at time.Time) {
		mu.Lock()
		defer mu.Unlock()
		if !done {
			_ = conn.SetDeadline(at) // it may be closed
		}
	}
	over := make(chan struct{})
	defer close(over)
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		done = true
	}()
	defer context.AfterFunc(ctx, func() { limit(time.Unix(1, 0)) })()
	if k.Talk == nil {
		return served(conn)
	}
	go func() {
		select {
		case <-conn.Served():
			limit(time.Now().Add(k.Timeout))
		case <-over:
		}
	}()
	return k.Talk(ctx, conn)
}

// served waits until a host has accepted the connection. What the host sends meanwhile is
// lost.
func served(conn CanaryConn) error {
	ended := make(chan error, 1)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		ended <- err
	}()
	var err error
	select {
	case <-conn.Served():
		_ = conn.SetReadDeadline(time.Unix(1, 0)) // it may have ended
		<-ended                                   //nolint:errcheck // it is that of the deadline
		return conn.SetReadDeadline(time.Time{})
	case err = <-ended:
	}
	select {
	case <-conn.Served():
		return nil // and then the host has sent something, or ended the connection
	default:
	}
	if err == nil {
		err = errors.New("something was received before a host accepted the connection")
	}
	return err
}

// leave ends the connection as a client does that has finished: bytes that are not read
// would make a reset of it.
func (k Canary) leave(conn CanaryConn) {
	defer conn.Close() // nothing more is expected of it
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || conn.SetReadDeadline(time.Now().Add(min(k.Timeout, k.Every)/2)) != nil {
		return
	}
	rest := make([]byte, 4<<10)
	for {
		if _, err := conn.Read(rest); err != nil {
			return
		}
	}
}

// noteCanary adds what the canary saw to the record in progress, at a good attempt that
// ended at now; over is the outage that ended with it.
func (c *Conductor) noteCanary(over *outage, now time.Time) {
	i := c.recorder.current
	if i == nil {
		return
	}
	opened := !i.Opened.IsZero() && !now.Before(i.Opened)
	if over == nil && !opened {
		return
	}
	was := i.Canary
	if was == nil {
		was = &CanaryRun{}
	}
	run := *was // readers may have the old one
	if over != nil {
		if run.Began.IsZero() {
			run.Began = over.began
		}
		run.Seconds += over.until.Sub(over.began).Seconds()
		run.Attempts += over.attempts
		if over.err != nil {
			run.Error = over.err.Error()
		}
	}
	i.Canary = &run
	if opened {
		c.canary.wanted.Store(false)
		c.finishOpen()
		return
	}
	c.publishIncident()
}

// Canary returns the state of the canary; false if there is none.
func (c *Conductor) Canary() (CanaryStatus, bool) {
	cfg := c.cfg().Canary
	if cfg.Every == 0 {
		return CanaryStatus{}, false
	}
	c.canary.mu.Lock()
	defer c.canary.mu.Unlock()
	return c.canary.record.status(time.Now(), cfg.Slow), true
}

// measureCanary returns what the canary has counted, in the room of m; nil if there is none.
func (c *Conductor) measureCanary(m *CanaryMeasured) *CanaryMeasured {
	cfg := c.cfg().Canary
	if cfg.Every == 0 {
		return nil
	}
	c.canary.mu.Lock()
	defer c.canary.mu.Unlock()
	r := &c.canary.record
	now := time.Now()
	if m == nil {
		m = &CanaryMeasured{}
	}
	m.Outage, m.Took = r.total+r.current.length(now, r.late(now, cfg.Slow)), histogram.Snapshot{}
	empty(&m.Attempts)
	maps.Copy(m.Attempts, r.attempts)
	m.Took.Add(&r.took)
	return m
}
