//go:build !linux || portable

package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// engine is the inside of a relay where there is no epoll: two goroutines for
// each connection, over the sockets of the standard library. It keeps the
// contract of the Linux engine but for these:
//
//   - Refusing gives the listening socket up and claims its address anew, since
//     shutdown(2) does not undo listen(2) elsewhere: for an instant another
//     program could take it, which the next Open then reports. A socket that
//     somebody else made cannot be claimed anew; on it clients are accepted and
//     reset at once.
//   - The queue's length is known on Linux and FreeBSD only; Waiting.Queued is 0
//     elsewhere.
//   - An urgent byte is passed on when something comes behind it.
//   - Bytes are copied through user space.
//   - UserTimeout is the system's own: on Linux it ends a peer that is alive but
//     takes nothing, too; macOS knows it in whole seconds, others not at all.
type engine struct {
	reports
	cfg atomic.Pointer[settings]
	log hclog.Logger

	gateMu sync.RWMutex  // guards the two below; taken before a conn's mu
	gate   *gate         // nil while it is shut
	opened chan struct{} // closed, and replaced, by each Open

	changing sync.Mutex // held while the settings are changed; taken before gating
	bound    bool       // the addresses are claimed; guarded by changing

	// gating is held while the gate is changed, and the listeners with it.
	gating    sync.Mutex
	listeners []*listener // replaced only while changing is held, too
	listens   bool        // the gate is open, or holds; guarded by gating
	closed    bool        // the addresses are given up; guarded by gating

	started chan struct{} // closed when Run is under way
	over    chan struct{} // closed when it is over
	cutting chan struct{}
	cutOnce sync.Once

	running sync.WaitGroup // connections and lookups
	bytes   [2]atomic.Uint64

	mu     sync.Mutex // guards the two below
	live   map[*conn]struct{}
	counts Stats // its connection counters
}

// gate is where connections go to. It never changes; another takes its place.
type gate struct {
	epoch uint64
	to    hostAddr
}

func newEngine(cfg Config) *engine {
	e := &engine{
		reports: reports{fixed: &cfg},
		log:     cfg.Logger,
		opened:  make(chan struct{}),
		started: make(chan struct{}),
		over:    make(chan struct{}),
		cutting: make(chan struct{}),
		live:    make(map[*conn]struct{}),
	}
	e.cfg.Store(newSettings(cfg))
	return e
}

// bind claims every address of the settings, or none.
func (e *engine) bind() error {
	e.changing.Lock()
	defer e.changing.Unlock()
	claims, err := claimAll(e.cfg.Load().Config)
	if err != nil {
		return err
	}
	e.gating.Lock()
	defer e.gating.Unlock()
	for _, c := range claims {
		e.listeners = append(e.listeners, newListener(e, c))
	}
	for _, ln := range e.listeners {
		if err := ln.adopt(); err != nil {
			e.unbindLocked()
			return err
		}
	}
	e.bound = true
	return nil
}

// apply replaces the listeners. Who is in the queue of one that goes is let in
// first, while there is a primary. All else looks at the settings itself.
func (e *engine) apply(c listeners) {
	g, _ := e.current()
	for _, ln := range c.gone {
		ln.rest()
		if g != nil {
			e.acceptQueued(ln)
		}
		ln.close()
	}
	e.listeners = c.all
	if g == nil {
		return
	}
	for _, ln := range c.fresh {
		ln.accept(e.admit)
	}
}

func (e *engine) unbind() {
	e.gating.Lock()
	defer e.gating.Unlock()
	e.unbindLocked()
}

// unbindLocked gives the addresses up, once: afterwards a socket file of that name
// may be somebody else's.
func (e *engine) unbindLocked() {
	if e.closed {
		return
	}
	e.closed = true
	for _, ln := range e.listeners {
		ln.close()
	}
}

func (e *engine) addrs() []net.Addr {
	e.gating.Lock()
	defer e.gating.Unlock()
	var all []net.Addr
	for _, ln := range e.listeners {
		all = append(all, ln.addr)
	}
	return all
}

// run lets the gate be opened until ctx ends and the drain is over.
func (e *engine) run(ctx context.Context) error {
	var watch sync.WaitGroup
	watch.Go(e.watch)
	close(e.started)

	<-ctx.Done()
	e.stopAccepting()
	if cut := e.drain(); cut > 0 {
		e.log.Warn("drain cut connections", "count", cut, "drain-timeout", e.cfg.Load().DrainTimeout)
	}
	e.running.Wait()
	close(e.over)
	watch.Wait()
	return nil
}

// stopAccepting lets in who is in the queue already, while there is a primary,
// and gives the addresses up.
func (e *engine) stopAccepting() {
	e.gating.Lock()
	defer e.gating.Unlock()
	g, _ := e.current()
	for _, ln := range e.listeners {
		ln.rest()
		if g != nil {
			e.acceptQueued(ln)
		}
	}
	e.unbindLocked()
}

// drain lets the open connections finish, for the drain timeout or until cut,
// and resets the rest, whose number it returns.
func (e *engine) drain() int {
	timeout := time.NewTimer(max(e.cfg.Load().DrainTimeout, 0))
	defer timeout.Stop()
	poll := time.NewTicker(fencePoll)
	defer poll.Stop()
	for e.liveCount() > 0 {
		select {
		case <-poll.C:
			continue
		case <-timeout.C:
		case <-e.cutting:
		}
		break
	}
	cut := 0
	for _, c := range e.all() {
		if c.end(outcomeFenced) {
			cut++
		}
	}
	return cut
}

func (e *engine) cut() { e.cutOnce.Do(func() { close(e.cutting) }) }

func (e *engine) open(epoch uint64, to string) (Waiting, error) {
	h, err := parseHost(to)
	if err != nil {
		return Waiting{}, err
	}
	select {
	case <-e.started:
	case <-e.over:
	}
	e.gating.Lock()
	defer e.gating.Unlock()
	if e.closed {
		return Waiting{}, errClosed
	}
	waited := e.waitingLocked()
	for _, ln := range e.listeners {
		if err := ln.listen(); err != nil {
			return waited, fmt.Errorf("listen on %s: %w", ln.addr, err)
		}
	}
	e.listens = true
	e.gateMu.Lock()
	e.gate = &gate{epoch: epoch, to: h}
	close(e.opened)
	e.opened = make(chan struct{})
	e.gateMu.Unlock()
	for _, ln := range e.listeners {
		ln.accept(e.admit)
	}
	return waited, nil
}

// current is the gate, nil when it is shut, and what the next Open closes.
func (e *engine) current() (*gate, <-chan struct{}) {
	e.gateMu.RLock()
	defer e.gateMu.RUnlock()
	return e.gate, e.opened
}

func (e *engine) hold() {
	e.gating.Lock()
	defer e.gating.Unlock()
	e.holdLocked()
}

func (e *engine) holdLocked() {
	e.gateMu.Lock()
	e.gate = nil
	e.gateMu.Unlock()
	for _, ln := range e.listeners {
		ln.rest()
	}
}

func (e *engine) refuse() Waiting {
	e.gating.Lock()
	defer e.gating.Unlock()
	waited := e.waitingLocked()
	e.holdLocked()
	e.listens = false
	for _, ln := range e.listeners {
		if err := ln.refuse(); err != nil {
			e.log.Warn("address was lost", "address", ln.addr, "error", err)
		}
	}
	for _, c := range e.all() {
		if c.waits() {
			c.end(outcomeExpired)
		}
	}
	return waited
}

func (e *engine) fence(ctx context.Context, before uint64, grace time.Duration) Fenced {
	return fenceWith(ctx, grace, func(reset bool, patience time.Duration) (left, cut, moved int) {
		for _, c := range e.all() {
			switch c.fence(before, reset, patience) {
			case fencedNot:
			case fencedLeft:
				left++
			case fencedCut:
				cut++
			case fencedMoved:
				moved++
			}
		}
		return left, cut, moved
	})
}

func (e *engine) stats() Stats {
	e.mu.Lock()
	s := e.counts
	e.mu.Unlock()
	s.Live = s.Accepted - s.Finished - s.Reset - s.Fenced - s.Expired - s.Gone
	s.Sent = e.bytes[client].Load()
	s.Received = e.bytes[host].Load()
	return s
}

func (e *engine) waiting() Waiting {
	e.gating.Lock()
	defer e.gating.Unlock()
	return e.waitingLocked()
}

func (e *engine) waitingLocked() Waiting {
	var w Waiting
	for _, ln := range e.listeners {
		w.Queued += ln.queued()
	}
	for _, c := range e.all() {
		if c.waits() {
			w.Held++
		}
	}
	return w
}

// all is the connections of this moment.
func (e *engine) all() []*conn {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]*conn, 0, len(e.live))
	for c := range e.live {
		all = append(all, c)
	}
	return all
}

func (e *engine) liveCount() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.live)
}

// admit lets a client in, if it may come. It waits for room under the limit,
// or until stop is closed.
func (e *engine) admit(s stream, stop <-chan struct{}) {
	if !e.allowed(s) {
		abort(s)
		e.mu.Lock()
		e.counts.Denied++
		e.mu.Unlock()
		return
	}
	c, err := newConn(e, s)
	if err != nil {
		abort(s)
		return // it was closed already
	}
	e.mu.Lock()
	// Where there are several listeners, another may have taken the last place.
	for !e.cfg.Load().room(len(e.live)) {
		e.mu.Unlock()
		waits := sleep(tick, stop)
		e.mu.Lock()
		if !waits {
			break // better one too many than one lost
		}
	}
	e.live[c] = struct{}{}
	e.fixed.Together.Add(1)
	e.mu.Unlock()
	e.running.Go(c.serve)
}

// room says whether there may be another connection beside live ones.
func (s *settings) room(live int) bool {
	return int64(live) < s.limit && s.Together.Load() < s.most
}

// awaitRoom waits until there may be another connection. It returns false when
// stop is closed.
func (e *engine) awaitRoom(stop <-chan struct{}) bool {
	for {
		s := e.cfg.Load()
		if s.room(e.liveCount()) {
			return true
		}
		e.full(s.limit)
		if !sleep(tick, stop) {
			return false
		}
	}
}

// allowed says whether a client may come in.
func (e *engine) allowed(s stream) bool {
	a := addrPortOf(s.RemoteAddr()).Addr()
	allow := e.cfg.Load().Allow
	if len(allow) == 0 || !a.IsValid() { // a unix socket has its file's mode
		return true
	}
	for _, p := range allow {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// watchEvery is how often connections are looked at for what no event tells:
// that nothing has passed for long, or that a side has failed from which nothing
// is read because the other side is stuck.
const watchEvery = 250 * time.Millisecond

func (e *engine) watch() {
	for {
		every := watchEvery
		if d := e.cfg.Load().IdleTimeout; d > 0 {
			every = min(max(d/8, tick), every)
		}
		if !sleep(every, e.over) {
			return
		}
		now := time.Now()
		for _, c := range e.all() {
			c.look(now)
		}
	}
}

// sleep waits for d. It returns false as soon as stop is closed.
func sleep(d time.Duration, stop <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-stop:
		return false
	}
}

// lookup finds a name's addresses. It does not wait longer than ctx allows,
// whatever the resolver does.
func (e *engine) lookup(ctx context.Context, name string) (found []netip.Addr, err error) {
	type answer struct {
		found []netip.Addr
		err   error
	}
	got := make(chan answer, 1)
	e.running.Go(func() {
		found, err := e.cfg.Load().Resolve(ctx, name)
		got <- answer{found, err}
	})
	select {
	case a := <-got:
		if a.err == nil && len(a.found) == 0 {
			a.err = errors.New("no addresses")
		}
		found, err = a.found, a.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", name, err)
	}
	return found, nil
}
