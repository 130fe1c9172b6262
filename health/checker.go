package health

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"understudy/internal/address"
)

const (
	// checksAtOnce is from how many checks in progress on a host with one check in
	// progress gets no second one, so that hosts that hang leave descriptors to
	// others.
	checksAtOnce = 1024

	// resultKept is the time for which a result is kept for callers that are late.
	resultKept = 100 * time.Millisecond
)

// errCrowded is why a check was not run.
var errCrowded = errors.New("not run: too many checks of this program are in progress")

// Query is a request for the result of a check of a host.
type Query struct {
	// Check is the check to run.
	Check Check

	// Connect, if set, is the same check as Check. Where it is a handshake with an
	// address and nothing else, it takes a descriptor and no goroutine.
	Connect *TCPCheck

	// Key describes Check and its Timeout, in any form: one run serves all queries
	// with the same Key, Host and Addr. Empty for a check that serves no other caller.
	Key string

	// Host is the host as the operator wrote it.
	Host string

	// Addr is the address to use for the name of Host; see [At]. The zero Addr
	// leaves it to Check.
	Addr netip.Addr

	// Since is when a run must have begun to serve this query, at the earliest.
	Since time.Time

	// By identifies the caller. It gets the result of a run once only, so that a
	// result does not count twice.
	By any

	// Timeout is the longest time that the check may take. Required.
	Timeout time.Duration
}

// Checker runs the checks of all relays of a process. Equal checks of a host that are
// due at the same time are run once, and the result serves all callers. It is safe for
// concurrent use.
//
// A host may always have one check of a kind in progress. From 1,024 checks in
// progress on, further ones of a host that has one are not run and their Result is
// Unknown. So hosts that hang take a bounded number of descriptors and goroutines, and
// delay no other host.
type Checker struct {
	ctx     context.Context //nolint:containedctx // of the runs, which outlive their callers
	stop    context.CancelFunc
	running sync.WaitGroup // runs in progress

	connects connects

	mu     sync.Mutex // guards everything below
	closed bool
	busy   int // runs in progress
	kinds  map[kindKey]kind
	kept   []*run // those that have ended a short time ago, in the order of their ends
}

// kindKey identifies a check of a host.
type kindKey struct {
	key, host string
	addr      netip.Addr
}

// kind holds the runs of a check of a host.
type kind struct {
	newest *run
	busy   int // runs in progress
}

// run is one run of a check.
type run struct {
	kind  kindKey
	began time.Time
	until time.Time // when it must end

	// Guarded by Checker.mu:
	ended  time.Time // zero while it is in progress
	result Result
	by     []any          // the callers, also those that have got the result
	done   []func(Result) // called at the end
}

// NewChecker returns a Checker. It starts nothing.
func NewChecker() *Checker {
	c := &Checker{kinds: map[kindKey]kind{}}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// Close ends the checks in progress and returns when they have ended. Their results,
// and those of later queries, are Unknown.
func (c *Checker) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop()
	c.connects.close()
	c.running.Wait()
}

// Start gets the result of a check and calls done with it when the check has ended:
// before Start returns if that is known by then, and otherwise on another goroutine.
// Done must not block.
func (c *Checker) Start(q Query, done func(Result)) {
	if q.Connect != nil && q.Connect.doubts.has(q.Host) {
		q.Connect, q.Key = nil, "" // a complete connection is opened, and it settles the doubts of one relay only
	}
	r, result := c.join(q, done)
	switch to, ok := q.address(); {
	case result != nil:
		done(*result)
	case r == nil: // a run in progress will call done
	case ok:
		c.connects.start(to, q.Connect.dialer.source, r.until, func(err error) {
			c.end(r, newResult(r.began, r.until, errors.Is(err, context.Canceled), Connect, err))
		})
	default:
		go c.run(r, q)
	}
}

// Run is Start and returns the result. When ctx ends before, the result is Unknown, and
// the check goes on.
func (c *Checker) Run(ctx context.Context, q Query) Result {
	began, got := time.Now(), make(chan Result, 1)
	c.Start(q, func(r Result) { got <- r }) //nolint:contextcheck // a check of several relays ends by its own timeout
	select {
	case r := <-got:
		return r
	case <-ctx.Done():
		return Result{Unknown: true, Err: ctx.Err(), Latency: time.Since(began)}
	}
}

// run runs the check of q.
func (c *Checker) run(r *run, q Query) {
	ctx, cancel := context.WithDeadline(c.ctx, r.until)
	defer cancel()
	if h, err := address.ParseHost(q.Host); err == nil && q.Addr.IsValid() {
		ctx = At(ctx, h.Name, q.Addr)
	}
	c.end(r, q.Check(ctx, q.Host))
}

// join returns the run that the caller has to start for q; or the result, if it is
// known already; or neither when a run in progress serves q.
func (c *Checker) join(q Query, done func(Result)) (*run, *Result) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(now)
	key := kindKey{q.Key, q.Host, q.Addr}
	k := c.kinds[key]
	if r := k.newest; r != nil && q.Key != "" && !r.began.Before(q.Since) && !slices.Contains(r.by, q.By) {
		r.by = append(r.by, q.By)
		if !r.ended.IsZero() {
			return nil, &r.result
		}
		r.done = append(r.done, done)
		return nil, nil
	}
	switch {
	case c.closed:
		return nil, &Result{Unknown: true, Phase: Connect, Err: context.Canceled}
	case c.busy >= checksAtOnce && k.busy > 0:
		return nil, &Result{Unknown: true, Phase: Connect, Err: errCrowded}
	}
	r := &run{kind: key, began: now, until: now.Add(q.Timeout), by: []any{q.By}, done: []func(Result){done}}
	c.busy++
	c.kinds[key] = kind{newest: r, busy: k.busy + 1}
	c.running.Add(1)
	return r, nil
}

// end passes the result of r to its callers.
func (c *Checker) end(r *run, result Result) {
	now := time.Now()
	c.mu.Lock()
	r.ended, r.result = now, result
	done := r.done
	r.done = nil
	k := c.kinds[r.kind]
	k.busy--
	c.busy--
	c.kinds[r.kind] = k
	c.kept = append(c.kept, r)
	c.forget(now)
	c.mu.Unlock()
	for _, f := range done {
		f(result)
	}
	c.running.Done()
}

// forget drops the results that are too old to serve anybody. The caller holds mu.
func (c *Checker) forget(now time.Time) {
	n := 0
	for ; n < len(c.kept) && now.Sub(c.kept[n].ended) >= resultKept; n++ {
		r := c.kept[n]
		k := c.kinds[r.kind]
		if k.newest == r {
			k.newest = nil
			c.kinds[r.kind] = k
		}
		if k.newest == nil && k.busy == 0 {
			delete(c.kinds, r.kind)
		}
	}
	c.kept = slices.Delete(c.kept, 0, n)
}

// address returns the address to connect to; false when the check is something else
// than a handshake with an address that is known.
func (q Query) address() (netip.AddrPort, bool) {
	if q.Connect == nil || !q.Connect.dialer.quiet {
		return netip.AddrPort{}, false
	}
	h, err := address.ParseHost(q.Host)
	if err != nil {
		return netip.AddrPort{}, false
	}
	h = onPort(h, q.Connect.port)
	addr := q.Addr
	if !addr.IsValid() {
		addr = h.IP()
	}
	return netip.AddrPortFrom(addr, h.Port), h.Path == "" && addr.IsValid() && addr.Zone() == ""
}
