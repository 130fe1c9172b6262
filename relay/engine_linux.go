//go:build !portable

package relay

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// engine is the inside of a relay on Linux: N event loops that share the
// listening sockets and the gate, and nothing else on the way of a byte.
type engine struct {
	reports
	cfg   atomic.Pointer[settings]
	log   hclog.Logger
	loops []*loop

	gate atomic.Pointer[gate] // nil while it is shut
	live atomic.Int64

	changing sync.Mutex // held while the settings are changed; taken before gating
	bound    bool       // the addresses are claimed; guarded by changing

	// gating is held while the gate is changed. Listeners are changed only
	// then, and while no loop has them in its epoll.
	gating    sync.Mutex
	listeners []*listener // replaced only while changing is held, too
	listens   bool        // the gate is open, or holds; guarded by gating
	closed    bool        // the addresses are given up; guarded by gating

	started chan struct{} // closed when the loops run
	over    chan struct{} // closed when they have ended
	cutting chan struct{}
	cutOnce sync.Once

	lookups    sync.WaitGroup
	lookupCtx  context.Context //nolint:containedctx // ends with Run; lookups belong to no caller
	lookupStop context.CancelFunc
}

// gate is where connections go to. It never changes; another takes its place.
type gate struct {
	epoch uint64
	host  string
	name  string // to be looked up at each connect; "" for a fixed address
	port  uint16
	addr  [1]sockaddr // the fixed address
}

func newEngine(cfg Config) *engine {
	ctx, stop := context.WithCancel(context.Background())
	e := &engine{
		reports:    reports{fixed: &cfg},
		log:        cfg.Logger,
		started:    make(chan struct{}),
		over:       make(chan struct{}),
		cutting:    make(chan struct{}),
		lookupCtx:  ctx,
		lookupStop: stop,
	}
	e.cfg.Store(newSettings(cfg))
	return e
}

func (e *engine) loopCount() int { return e.cfg.Load().Loops }

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

// run has the loops run until ctx ends and the drain is over.
func (e *engine) run(ctx context.Context) error {
	defer e.lookupStop()
	// A loop that comes back from its sleep must find a processor slot.
	if n := e.loopCount() + 2; runtime.GOMAXPROCS(0) < n {
		runtime.GOMAXPROCS(n)
	}
	for range e.loopCount() {
		l, err := newLoop(e)
		if err != nil {
			for _, l := range e.loops {
				l.close()
			}
			close(e.over)
			e.unbind()
			return fmt.Errorf("relay %s: %w", e.cfg.Load().Name, err)
		}
		e.loops = append(e.loops, l)
	}
	var wg sync.WaitGroup
	for _, l := range e.loops {
		wg.Go(l.run)
	}
	close(e.started)

	<-ctx.Done()
	e.stopAccepting() //nolint:contextcheck // ctx has ended; look-ups end with Run
	if cut := e.drain(); cut > 0 {
		e.log.Warn("drain cut connections", "count", cut, "drain-timeout", e.cfg.Load().DrainTimeout)
	}
	e.everywhere(func(l *loop) { l.finished = true })
	wg.Wait()
	close(e.over)
	e.lookupStop()
	e.lookups.Wait()
	for _, l := range e.loops {
		l.close()
	}
	return nil
}

// stopAccepting lets in who is in the queue already, while there is a primary,
// and gives the addresses up.
func (e *engine) stopAccepting() {
	e.gating.Lock()
	defer e.gating.Unlock()
	e.onLoops(func(l *loop) {
		for _, ln := range e.listeners {
			l.acceptQueued(ln)
		}
		l.leave()
	})
	e.unbindLocked()
}

// drain lets the open connections finish, for the drain timeout or until cut,
// and resets the rest, whose number it returns.
func (e *engine) drain() int {
	timeout := time.NewTimer(max(e.cfg.Load().DrainTimeout, 0))
	defer timeout.Stop()
	poll := time.NewTicker(fencePoll)
	defer poll.Stop()
	for e.live.Load() > 0 {
		select {
		case <-poll.C:
			continue
		case <-timeout.C:
		case <-e.cutting:
		}
		break
	}
	var cut atomic.Int64
	e.everywhere(func(l *loop) {
		l.each(func(i int32, c *conn) {
			if c.state != greeting {
				cut.Add(1)
			}
			l.end(i, c, outcomeFenced)
		})
	})
	return int(cut.Load())
}

func (e *engine) cut() { e.cutOnce.Do(func() { close(e.cutting) }) }

// everywhere runs f on every loop and returns when all have, or at once when
// they are over.
func (e *engine) everywhere(f func(*loop)) {
	select {
	case <-e.started:
	case <-e.over:
		return
	}
	e.onLoops(f)
}

// onLoops is everywhere for who need not wait for Run: before it there is no
// loop.
func (e *engine) onLoops(f func(*loop)) {
	var wg sync.WaitGroup
	for _, l := range e.running() {
		wg.Go(func() { l.call(func() { f(l) }) })
	}
	wg.Wait()
}

func (e *engine) open(epoch uint64, to string) (Waiting, error) {
	g, err := newGate(epoch, to)
	if err != nil {
		return Waiting{}, err
	}
	e.gating.Lock()
	defer e.gating.Unlock()
	if e.closed {
		return Waiting{}, errClosed
	}
	waited := e.waitingLocked()
	for _, ln := range e.listeners {
		if err := ln.listen(); err != nil {
			return waited, err
		}
	}
	e.listens = true
	e.gate.Store(g)
	e.everywhere(func(l *loop) {
		l.tell()
		l.take()
		l.each(func(i int32, c *conn) {
			if c.state == waiting {
				c.tries = 0
				l.retry(i, c)
			}
		})
	})
	return waited, nil
}

func newGate(epoch uint64, to string) (*gate, error) {
	h, err := parseHost(to)
	if err != nil {
		return nil, err
	}
	g := &gate{epoch: epoch, host: to, name: h.name, port: h.port}
	switch {
	case h.path != "":
		addr, ok := unixAddr(h.path)
		if !ok {
			return nil, fmt.Errorf("host %s: the path is too long", to)
		}
		g.addr[0] = addr
	case h.name == "":
		g.addr[0] = hostSockaddr(h.ip, h.port)
	}
	return g, nil
}

// hostSockaddr is the address of a host to connect to. A loopback port that the
// system may also give out as a source port is marked, because a connect to it
// can meet itself.
func hostSockaddr(ip netip.Addr, port uint16) sockaddr {
	a := inetAddr(netip.AddrPortFrom(ip, port), scope(ip))
	low, high := ephemeralPorts()
	a.ephemeral = ip.Unmap().IsLoopback() && port >= low && port <= high
	return a
}

var ephemeralPorts = sync.OnceValues(func() (low, high uint16) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		_, err = fmt.Sscan(string(text), &low, &high)
	}
	if err != nil {
		return 32768, 60999
	}
	return low, high
})

func (e *engine) hold() {
	e.gating.Lock()
	defer e.gating.Unlock()
	e.holdLocked()
}

func (e *engine) holdLocked() {
	e.gate.Store(nil)
	e.everywhere((*loop).leave)
}

func (e *engine) refuse() Waiting {
	e.gating.Lock()
	defer e.gating.Unlock()
	waited := e.waitingLocked()
	e.holdLocked()
	e.listens = false
	for _, ln := range e.listeners {
		ln.refuse()
	}
	e.everywhere(func(l *loop) {
		l.tell()
		l.each(func(i int32, c *conn) {
			if c.state == waiting {
				l.end(i, c, outcomeExpired)
			}
		})
	})
	return waited
}

func (e *engine) fence(ctx context.Context, before uint64, grace time.Duration) Fenced {
	return fenceWith(ctx, grace, func(reset bool, patience time.Duration) (left, cut, moved int) {
		var mu sync.Mutex
		e.everywhere(func(l *loop) {
			a, b, c := l.fence(before, reset, patience)
			mu.Lock()
			defer mu.Unlock()
			left += a
			cut += b
			moved += c
		})
		return left, cut, moved
	})
}

func (e *engine) stats() Stats {
	var s Stats
	for _, l := range e.running() {
		l.mu.Lock()
		c := l.counts
		l.mu.Unlock()
		s.Accepted += c.Accepted
		s.Finished += c.Finished
		s.Reset += c.Reset
		s.Fenced += c.Fenced
		s.Expired += c.Expired
		s.Gone += c.Gone
		s.Denied += c.Denied
		s.Sent += l.bytes[client].Load()
		s.Received += l.bytes[host].Load()
	}
	s.Live = s.Accepted - s.Finished - s.Reset - s.Fenced - s.Expired - s.Gone
	return s
}

// running is the loops, none before Run.
func (e *engine) running() []*loop {
	select {
	case <-e.started:
		return e.loops
	default:
		return nil
	}
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
	for _, l := range e.running() {
		w.Held += int(l.held.Load())
	}
	return w
}

// lookup finds the addresses of the gate's host and hands them to got, from
// another goroutine.
func (e *engine) lookup(g *gate, got func([]sockaddr, error)) {
	e.lookups.Go(func() {
		ctx, cancel := context.WithTimeout(e.lookupCtx, e.cfg.Load().ConnectTimeout)
		defer cancel()
		ips, err := e.cfg.Load().Resolve(ctx, g.name)
		if err == nil && len(ips) == 0 {
			err = fmt.Errorf("resolve %s: no addresses", g.name)
		}
		addrs := make([]sockaddr, 0, len(ips))
		for _, ip := range ips[:min(len(ips), 255)] {
			addrs = append(addrs, hostSockaddr(ip, g.port))
		}
		got(addrs, err)
	})
}

// prepare sets what a socket to a host needs before it connects.
func (e *engine) prepare(fd int32, family int) unix.Errno {
	if family == unix.AF_UNIX {
		return 0
	}
	quicken(fd)
	src := e.cfg.Load().Source
	if !src.IsValid() || src.Unmap().Is4() != (family == unix.AF_INET) {
		return 0
	}
	// Without this the kernel would pick a port at bind already, and one port
	// could serve one connection only; see ip(7).
	setsockopt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	sa := inetAddr(netip.AddrPortFrom(src, 0), scope(src))
	return bind(fd, &sa)
}

// allowed says whether the client at the other end of fd may come in.
func (e *engine) allowed(fd int32) bool {
	allow := e.cfg.Load().Allow
	if len(allow) == 0 {
		return true
	}
	a := peer(fd).Addr()
	if !a.IsValid() {
		return true // a unix socket has its file's mode
	}
	for _, p := range allow {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// enter takes the place of one connection, or returns false when there is none.
func (e *engine) enter() bool {
	s := e.cfg.Load()
	all, own := s.Together.Add(1), e.live.Add(1)
	if all <= s.most && own <= s.limit {
		return true
	}
	e.leave()
	return false
}

// leave gives the place of a connection back.
func (e *engine) leave() {
	e.live.Add(-1)
	e.fixed.Together.Add(-1)
}

// idlest is the loop that should take a client: the one that accepted it unless
// another has clearly fewer connections.
func (e *engine) idlest(mine *loop) *loop {
	best := mine
	least := mine.live.Load() - 8
	for _, l := range e.loops {
		if n := l.live.Load(); n < least {
			best, least = l, n
		}
	}
	return best
}
