//go:build !linux || portable

package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The life of a connection, which is one goroutine's work ([conn.serve]):
//
//	greet ──▶ connect ──▶ relay ──▶ end
//	             ▲          │
//	             └──────────┘ the host failed, or its epoch ended, before a byte
//	                          passed
//
// Others may look at it, take it away from its host or end it at any time; they
// and the goroutine meet under its mu.

// state is how far a connection has come.
type state uint8

const (
	greeting   state = iota // the client has not been let in: it may owe a PROXY header
	waiting                 // there is no host, or it did not answer
	connecting              // a lookup or a connect is under way
	relaying                // bytes move
)

// conn is one relayed connection.
type conn struct {
	engine *engine
	quit   chan struct{} // closed when it has ended
	last   atomic.Int64  // when a byte last moved, in nanoseconds

	mu      sync.Mutex // guards everything down to flow; taken before a socket's mu
	state   state
	over    bool
	epoch   uint64
	taken   bool               // taken away from its host, or from a connect, by a fence
	halt    context.CancelFunc // of the connect under way
	sock    [2]*socket         // by side; the host's is nil when there is none
	flow    [2]*flow           // by the side it reads from; nil before the first host
	passed  [2]bool            // by the same: its end has been passed on
	doubted bool               // a host's end before any byte was not believed, once

	patience time.Duration // how much longer than Hold a client waits that a fence has moved

	// Only the goroutine that serves the connection knows these.
	kept    []byte        // read from the client and taken by no host
	proxied *proxyHeader  // what the client's PROXY header said
	waited  time.Duration // how long the client has waited for hosts
	tries   uint8         // failed connects since the gate last opened
}

func newConn(e *engine, s stream) (*conn, error) {
	cl, err := socketOf(s)
	if err != nil {
		return nil, err
	}
	c := &conn{engine: e, quit: make(chan struct{}), sock: [2]*socket{client: cl}}
	if tcp, ok := s.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(keepAlive)
		_ = cl.raw.Control(func(fd uintptr) { setOptions(int(fd), e.cfg.Load().UserTimeout, false) })
	}
	return c, nil
}

// serve is the whole life.
func (c *conn) serve() {
	if c.engine.cfg.Load().AcceptProxy && !c.greet() {
		c.end(outcomeReset)
		return
	}
	c.letIn()
	for c.connect() && c.relay() { //nolint:revive // the work is in the condition
	}
}

// letIn counts a client that has shown all it has to.
func (c *conn) letIn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	c.state = waiting
	c.engine.mu.Lock()
	c.engine.counts.Accepted++
	c.engine.mu.Unlock()
}

// greet reads the PROXY header that the client owes. What comes behind it is
// kept for the host.
func (c *conn) greet() bool {
	cl := c.sock[client]
	_ = cl.SetReadDeadline(time.Now().Add(c.engine.cfg.Load().ConnectTimeout))
	buf := make([]byte, proxyMax)
	for n := 0; n < len(buf); {
		m, err := cl.Read(buf[n:])
		n += m
		h, length, bad := parseProxy(buf[:n])
		if bad != nil {
			c.engine.log.Debug("client sent no PROXY header", "client", cl.RemoteAddr())
			return false
		}
		if length > 0 {
			c.kept = slices.Clone(buf[length:n])
			c.proxied = &h
			_ = cl.SetReadDeadline(time.Time{})
			return true
		}
		if err != nil {
			return false
		}
	}
	return false
}

// connect finds a host for the client: the primary of this moment, or one to
// come. It returns false when the connection is over.
func (c *conn) connect() bool {
	e := c.engine
	unwatch := c.watchClient()
	defer unwatch()
	begin := time.Now().Add(c.takePatience() - c.waited)
	g, opened := e.current()
	var delay time.Duration
	if c.tries > 0 && g != nil && g.epoch == c.epoch { // this host has failed us before
		delay = retryDelay(c.tries)
	}
	for {
		if delay > 0 && !c.await(delay, begin, opened) {
			return false
		}
		var ctx context.Context
		if g, ctx, opened = c.enter(); g == nil {
			delay = time.Hour // until the gate is opened
			continue
		}
		h, err := e.dial(ctx, g)
		switch c.attach(h, err) {
		case dialed:
			c.waited = time.Since(begin)
			return true
		case dialOver:
			return false
		case dialTaken:
			begin, c.tries, delay = time.Now().Add(c.takePatience()), 0, 0
		case dialFailed:
			if IsLocal(err) {
				e.local("connect", err)
			} else {
				e.suspect(g.epoch, err)
			}
			c.tries = min(c.tries+1, 8)
			delay = retryDelay(c.tries)
		}
	}
}

// takePatience is how much longer than Hold the client waits now.
func (c *conn) takePatience() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.patience
	c.patience = 0
	return d
}

// await lets the client wait for at most d, until the gate is opened, or until
// it has waited for all of Hold since begin, which ends it. It returns false
// when it is over.
func (c *conn) await(d time.Duration, begin time.Time, opened <-chan struct{}) bool {
	left := c.engine.cfg.Load().Hold - time.Since(begin)
	if left <= 0 {
		c.end(outcomeExpired)
		return false
	}
	t := time.NewTimer(min(d, left))
	defer t.Stop()
	select {
	case <-t.C:
	case <-opened:
		c.tries = 0
	case <-c.quit:
		return false
	}
	return true
}

// enter begins a connect through the gate, which is nil when it is shut. Who
// shuts it and then fences sees all that came through.
func (c *conn) enter() (g *gate, ctx context.Context, opened <-chan struct{}) {
	e := c.engine
	e.gateMu.RLock()
	defer e.gateMu.RUnlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.gate == nil || c.over {
		c.state = waiting
		return nil, nil, e.opened
	}
	c.state = connecting
	c.epoch = e.gate.epoch
	ctx, c.halt = context.WithTimeout(context.Background(), e.cfg.Load().ConnectTimeout)
	return e.gate, ctx, e.opened
}

// dialResult is what became of a connect.
type dialResult uint8

const (
	dialed     dialResult = iota
	dialFailed            // the client waits
	dialTaken             // a fence took the connection away
	dialOver              // the connection has ended
)

// attach ends a connect that began with enter, with a host or an error.
func (c *conn) attach(h *socket, err error) dialResult {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.halt()
	c.halt = nil
	var result dialResult
	switch {
	case c.over:
		result = dialOver
	case c.taken:
		c.taken = false
		result = dialTaken
	case err != nil:
		result = dialFailed
	default:
		c.sock[host] = h
		c.state = relaying
		c.last.Store(time.Now().UnixNano()) // before look may ask for it
		c.passed = [2]bool{}
		c.flow = [2]*flow{client: newFlow(c, client), host: newFlow(c, host)}
		return dialed
	}
	if h != nil {
		abort(h)
	}
	c.state = waiting
	return result
}

// dial connects to the gate's host: to each of its addresses in turn.
func (e *engine) dial(ctx context.Context, g *gate) (*socket, error) {
	if g.to.path != "" {
		return e.dialTo(ctx, g, "unix", g.to.path, netip.Addr{})
	}
	ips := []netip.Addr{g.to.ip}
	if g.to.name != "" {
		var err error
		if ips, err = e.lookup(ctx, g.to.name); err != nil {
			return nil, err
		}
	}
	var s *socket
	var err error
	for k, ip := range ips {
		if s, err = e.dialIP(ctx, g, ip, k == len(ips)-1); err == nil || ctx.Err() != nil {
			break
		}
	}
	return s, err
}

func (e *engine) dialIP(ctx context.Context, g *gate, ip netip.Addr, last bool) (*socket, error) {
	if !last {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, addressTimeout)
		defer cancel()
	}
	return e.dialTo(ctx, g, "tcp", netip.AddrPortFrom(ip.Unmap(), g.to.port).String(), ip.Unmap())
}

func (e *engine) dialTo(ctx context.Context, g *gate, network, address string, ip netip.Addr) (*socket, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var slow func()
	slow = func() {
		if ctx.Err() == nil {
			e.suspect(g.epoch, errSlow)
			time.AfterFunc(slowConnect/2, slow)
		}
	}
	defer time.AfterFunc(slowConnect, slow).Stop()
	d := net.Dialer{
		KeepAliveConfig: keepAlive,
		Control:         e.prepare,
	}
	d.SetMultipathTCP(false)
	if src := e.cfg.Load().Source.Unmap(); src.IsValid() && ip.IsValid() && src.Is4() == ip.Is4() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0))
	}
	s, err := d.DialContext(ctx, network, address)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("connect to %s: %w", address, errTimeout)
	}
	if err != nil {
		return nil, err
	}
	// A connect to a loopback port on which nobody listens can meet itself when
	// the system picks that very port as the source.
	if a := addrPortOf(s.LocalAddr()); a.IsValid() && a == addrPortOf(s.RemoteAddr()) {
		abort(s.(stream))
		return nil, &net.OpError{Op: "dial", Net: network, Addr: s.RemoteAddr(), Err: wrap("connect", unix.ECONNREFUSED)}
	}
	return socketOf(s.(stream))
}

// prepare sets what a socket to a host needs before it is bound and connects.
func (e *engine) prepare(network, _ string, raw syscall.RawConn) error {
	if network == "unix" {
		return nil
	}
	return raw.Control(func(fd uintptr) {
		setOptions(int(fd), e.cfg.Load().UserTimeout, e.cfg.Load().Source.IsValid())
	})
}

// watchClient ends the connection when the client breaks, until end is called.
// A connect that succeeds at once never notices.
func (c *conn) watchClient() (end func()) {
	cl := c.sock[client]
	done := make(chan struct{})
	begin := time.AfterFunc(tick, func() {
		defer close(done)
		if cl.watch() {
			c.end(outcomeGone)
		}
	})
	return func() {
		if begin.Stop() {
			return
		}
		_ = cl.SetReadDeadline(past)
		<-done
		_ = cl.SetReadDeadline(time.Time{})
	}
}

// relay moves bytes between client and host. It returns true when the client
// needs another host.
func (c *conn) relay() bool {
	up, down := c.flow[client], c.flow[host]
	done := make(chan struct{})
	go func() {
		defer close(done)
		down.run()
	}()
	up.run()
	<-done
	o, moves := c.settle()
	switch {
	case moves:
		// Nobody interrupts the client's flows any more.
		cl := c.sock[client]
		_ = cl.SetDeadline(time.Time{})
		cl.mu.Lock()
		cl.shut = false
		cl.mu.Unlock()
	default:
		c.end(o)
	}
	return moves
}

// settle says, after both flows have ended, how the connection ends, or that its
// client moves on to another host.
func (c *conn) settle() (o outcome, moves bool) {
	c.mu.Lock()
	cl, h := c.sock[client], c.sock[host]
	failed := !c.over && !c.taken
	switch {
	case c.over:
		c.mu.Unlock()
		return outcomeReset, false // which end ignores
	case c.taken:
		c.taken = false
		c.waited, c.tries = 0, 0
	case h.broken.Load() && !cl.broken.Load() && !exchanged(cl, h) && !c.passed[client]:
		// Nothing was exchanged, so nothing is lost: the client waits for what
		// comes of it. (A host that resets once the client has ended has only
		// closed in its own way.)
		c.tries = min(c.tries+1, 8)
	default:
		clean := c.passed == [2]bool{true, true} && !cl.broken.Load() && !h.broken.Load()
		c.mu.Unlock()
		if clean {
			return outcomeFinished, false
		}
		return outcomeReset, false
	}
	c.sock[host] = nil
	c.state = waiting
	epoch := c.epoch
	c.mu.Unlock()
	abort(h)
	if failed {
		c.engine.suspect(epoch, errNoByte)
	}
	return outcomeReset, true
}

// exchanged says whether a byte or a client's end of stream has passed. Until
// then a connection is as good as still connecting: it can be made anew to
// another host and nothing is lost. Both flows have ended, or both sockets' mu is
// held.
func exchanged(cl, h *socket) bool {
	return cl.written+h.written != 0 || cl.finished
}

// waits says whether the client is without a host.
func (c *conn) waits() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state == waiting && !c.over
}

// fencedHow is what a fence has done to a connection.
type fencedHow uint8

const (
	fencedNot fencedHow = iota // it is of a later epoch, or has no host
	fencedLeft
	fencedCut
	fencedMoved
)

// fence takes a connection of an epoch before the given one away from its host,
// if no byte has passed over it; otherwise it ends it, if reset is true.
func (c *conn) fence(before uint64, reset bool, patience time.Duration) fencedHow {
	c.mu.Lock()
	if c.over || c.epoch >= before {
		c.mu.Unlock()
		return fencedNot
	}
	switch c.state {
	case greeting, waiting:
		c.mu.Unlock()
		return fencedNot
	case connecting:
		c.taken = true
		c.patience = patience
		c.state = waiting
		c.halt()
		c.mu.Unlock()
		return fencedMoved
	case relaying:
		if c.takeLocked() {
			c.patience = patience
			c.mu.Unlock()
			return fencedMoved
		}
	}
	c.mu.Unlock()
	if !reset {
		return fencedLeft
	}
	if !c.end(outcomeFenced) {
		return fencedNot
	}
	return fencedCut
}

// takeLocked takes the connection away from its host, if no byte has passed, and
// sees to it that none does.
func (c *conn) takeLocked() bool {
	cl, h := c.sock[client], c.sock[host]
	cl.mu.Lock()
	h.mu.Lock()
	free := !exchanged(cl, h) && !cl.broken.Load()
	if free {
		cl.shut, h.shut = true, true
	}
	h.mu.Unlock()
	cl.mu.Unlock()
	if free {
		c.taken = true
		c.state = waiting
		_ = cl.SetDeadline(past)
		_ = h.SetDeadline(past)
	}
	return free
}

// fail is told that the socket of side s is broken. What came from it may still
// be delivered; nothing can be delivered to it.
func (c *conn) fail(s side, broken *socket) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != relaying || c.over || c.sock[s] != broken {
		return
	}
	o := c.sock[s.other()]
	_ = o.SetReadDeadline(past)
	_ = o.SetWriteDeadline(time.Now().Add(lingerTimeout))
	if c.passed[s] {
		_ = c.sock[s].SetReadDeadline(past) // its flow watches for this only
	}
}

// look ends a connection that has been idle for too long, and finds out that a
// side has failed from which nothing is read because the other side is stuck.
func (c *conn) look(now time.Time) {
	c.mu.Lock()
	if c.state != relaying || c.over {
		c.mu.Unlock()
		return
	}
	flows, socks := c.flow, c.sock
	c.mu.Unlock()
	// A connection that failed still delivers what had arrived, unseen.
	failed := socks[client].broken.Load() || socks[host].broken.Load()
	if d := c.engine.cfg.Load().IdleTimeout; d > 0 && !failed && now.UnixNano()-c.last.Load() >= int64(d) {
		c.end(outcomeReset)
		return
	}
	for s, f := range flows {
		if f.stuck.Load() && !socks[s].broken.Load() && socks[s].check() {
			c.fail(side(s), socks[s])
		}
	}
}

// end closes the connection and counts it; one that was not let in yet is denied.
// It returns false for such a one, and where all this has happened already. When
// it returns both sockets are closed.
func (c *conn) end(o outcome) bool {
	c.mu.Lock()
	if c.over {
		c.mu.Unlock()
		return false
	}
	c.over = true
	close(c.quit)
	if c.halt != nil {
		c.halt()
	}
	letIn := c.state != greeting
	socks := c.sock
	c.mu.Unlock()
	for _, s := range socks {
		switch {
		case s == nil:
		case o == outcomeFinished:
			_ = s.Close()
		default:
			abort(s)
		}
	}
	e := c.engine
	e.mu.Lock()
	if letIn {
		e.counts.ended(o)
	} else {
		e.counts.Denied++
	}
	delete(e.live, c)
	e.mu.Unlock()
	e.fixed.Together.Add(-1)
	if letIn && e.log.IsDebug() {
		up, down := c.moved()
		e.log.Debug("connection ended", "client", c.sock[client].RemoteAddr(), "epoch", c.epoch, "outcome", o.String(),
			"sent", up, "received", down)
	}
	return letIn
}

// moved is how many bytes have come from either side.
func (c *conn) moved() (up, down uint64) {
	c.mu.Lock()
	cl, h := c.sock[client], c.sock[host]
	c.mu.Unlock()
	if h != nil {
		h.mu.Lock()
		up = h.written
		h.mu.Unlock()
	}
	cl.mu.Lock()
	down = cl.written
	cl.mu.Unlock()
	return up, down
}
