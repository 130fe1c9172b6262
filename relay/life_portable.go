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

	"understudy/internal/fault"
)

// The life of a connection, which is one goroutine's work ([conn.serve]):
//
//	readProxy ──▶ connect ──▶ move ──▶ end
//	                 ▲         │
//	                 └─────────┘ the host failed, or its epoch ended, before a byte
//	                              passed
//
// Other goroutines may inspect it, take it away from its host or end it at any
// time; its mu synchronises them with that goroutine.

// state is the progress of a connection.
type state uint8

const (
	readingProxy state = iota // the client is not admitted yet: a PROXY header may be expected from it
	waiting                   // there is no host, or it did not answer
	connecting                // a connect is under way
	relaying                  // bytes move
)

// conn is one relayed connection.
type conn struct {
	plane *goroutines
	relay *Relay
	quit  chan struct{} // closed when it has ended
	last  atomic.Int64  // when a byte last moved, in nanoseconds

	mu      sync.Mutex // guards everything down to flow; taken before a socket's mu
	state   state
	over    bool
	epoch   atomic.Uint64      // changed only under mu
	home    atomic.Int32       // the number of its host; changed only under mu
	session atomic.Bool        // the client got a byte from its host, or the connection has ended
	taken   bool               // taken away from its host, or from a connect, by a fence
	lines   bool               // it waits for its turn; see pace.go
	turn    bool               // it has got it
	failed  bool               // the last connect failed
	dialed  time.Time          // when the last connect began
	until   time.Time          // it waits
	turns   chan struct{}      // holds an element when it has got its turn
	halt    context.CancelFunc // of the connect under way
	sock    [2]*socket         // by side; the host's is nil when there is none
	flow    [2]*flow           // by the side it reads from; nil before the first host
	passed  [2]bool            // by the same: its end has been passed on
	ends    uint8              // of hosts' streams, before a byte had passed, in this epoch
	began   time.Time          // when the host accepted
	unheard bool               // it is counted in Silent
	first   side               // that ended its stream first; the client's until one has
	moves   int                // to another host
	by      uint64             // the epoch whose fence ends it

	accepted time.Time // when the client was

	heldAt time.Time // when the client began to wait for a host; zero if it does not

	timeout time.Duration // how much longer than Hold a client waits that a fence has moved

	// Only the goroutine that serves the connection uses these.
	kept    []byte        // read from the client and taken by no host
	proxied *proxyHeader  // what the client's PROXY header said
	waited  time.Duration // how long the client has waited for hosts
	tries   uint8         // failed connects since the gate last opened
}

func newConn(p *goroutines, s stream) (*conn, error) {
	cl, err := socketOf(s)
	if err != nil {
		return nil, err
	}
	c := &conn{plane: p, relay: p.relay, quit: make(chan struct{}), turns: make(chan struct{}, 1), accepted: time.Now(), sock: [2]*socket{client: cl}}
	if tcp, ok := s.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(keepAlive)
		_ = cl.raw.Control(func(fd uintptr) { setOptions(int(fd), p.relay.cfg.Load().UserTimeout, false) })
	}
	return c, nil
}

// serve runs the connection from accept to end.
func (c *conn) serve() {
	if c.relay.cfg.Load().AcceptProxy && !c.readProxy() {
		c.end(clientLeft) // which denies it
		return
	}
	c.admit()
	for c.connect() && c.move() { //nolint:revive // the work is in the condition
	}
}

// admit counts a client that is allowed and whose PROXY header, if one is
// expected, was read.
func (c *conn) admit() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	c.state = waiting
	c.plane.mu.Lock()
	c.plane.counts.Accepted++
	c.plane.admitted[waiting]++
	c.plane.mu.Unlock()
}

// becomeLocked changes the state of a connection that is admitted.
func (c *conn) becomeLocked(s state) {
	if c.state != s && !c.over {
		c.plane.mu.Lock()
		c.plane.admitted[c.state]--
		c.plane.admitted[s]++
		c.plane.mu.Unlock()
	}
	c.state = s
}

// readProxy reads the PROXY header that is expected from the client. Bytes
// behind it are kept for the host.
func (c *conn) readProxy() bool {
	cl := c.sock[client]
	_ = cl.SetReadDeadline(time.Now().Add(c.relay.cfg.Load().ConnectTimeout))
	buf := make([]byte, proxyMax)
	for n := 0; n < len(buf); {
		m, err := cl.Read(buf[n:])
		n += m
		h, length, bad := parseProxy(buf[:n])
		if bad != nil {
			c.relay.log.Debug("client sent no PROXY header", "client", cl.RemoteAddr())
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
	p, r := c.plane, c.relay
	unwatch := c.watchClient()
	defer unwatch()
	begin := time.Now().Add(c.takeTimeout() - c.waited)
	g, opened := p.current()
	var delay time.Duration
	switch {
	case g == nil || g.epoch != c.epoch.Load():
	case c.hadItsTries():
		delay = endWait
	case c.tries > 0: // this host failed before
		delay = retryDelay(c.tries)
	}
	for {
		if delay > 0 && !c.await(delay, begin, opened) {
			return false
		}
		if c.hadItsTries() {
			c.silent()
			c.end(noByte)
			return false
		}
		var ctx context.Context
		if g, ctx, opened = c.enter(begin); g == nil {
			delay = time.Hour // until the gate is opened, or its turn has come
			if r.gate.Load() != nil && !r.leased() {
				delay = leaseRetry
			}
			continue
		}
		dialing, counts := time.Now(), &p.hosts.of(g.home).dials
		h, err := p.dial(ctx, g)
		switch c.attach(h, err) {
		case dialed:
			counts.made.Add(1)
			counts.took.Observe(time.Since(dialing))
			c.waited = time.Since(begin)
			return true
		case dialOver:
			return false
		case dialTaken:
			begin, c.tries, delay = time.Now().Add(c.takeTimeout()), 0, 0
		case dialFailed:
			counts.failure(err)
			if fault.Local(err) {
				r.local("connect", err)
			} else {
				r.suspect(g.epoch, err)
			}
			c.tries = min(c.tries+1, 8)
			delay = retryDelay(c.tries)
			if isEarlyEnd(err) && c.endedEarly() {
				delay = endWait
			}
		}
	}
}

// hadItsTries reports whether the current primary has ended endsMost
// connections of the client before a byte had passed.
func (c *conn) hadItsTries() bool {
	g, _ := c.plane.current()
	c.mu.Lock()
	defer c.mu.Unlock()
	return g != nil && g.epoch == c.epoch.Load() && c.ends >= endsMost
}

// endedEarly counts an end before any byte, and reports whether that was the
// last try.
func (c *conn) endedEarly() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ends = min(c.ends+1, endsMost)
	return c.ends == endsMost
}

// silentEnd handles a host that has ended its stream, with or without a
// failure, with all its bytes read.
func (c *conn) silentEnd() {
	c.mu.Lock()
	cl := c.sock[client]
	cl.mu.Lock()
	first := !c.passed[client] && !c.over && !cl.broken.Load()
	silent := first && cl.written == 0 && time.Since(c.began) <= silentWithin
	inUse := first && cl.written != 0
	reset := c.sock[host] != nil && c.sock[host].broken.Load()
	cl.mu.Unlock()
	c.mu.Unlock()
	if inUse {
		c.relay.hostEnded(c.epoch.Load(), reset)
	}
	if silent {
		c.silent()
	}
}

// silent counts, once, a client whose connection the host ended without a byte.
func (c *conn) silent() {
	c.mu.Lock()
	known := c.unheard
	c.unheard = true
	c.mu.Unlock()
	if known {
		return
	}
	from := addrPortOf(c.sock[client].RemoteAddr())
	if c.proxied != nil {
		from = c.proxied.from
	}
	c.relay.silent(c.epoch.Load(), from.Addr())
}

// takeTimeout returns the time that the client waits now in addition to Hold.
func (c *conn) takeTimeout() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.timeout
	c.timeout = 0
	return d
}

// await lets the client wait for at most d, until the gate is opened, or until
// it has waited for all of Hold since begin, which ends it. It returns false
// when it is over.
func (c *conn) await(d time.Duration, begin time.Time, opened <-chan struct{}) bool {
	c.mu.Lock()
	if c.heldAt.IsZero() {
		c.heldAt = time.Now()
	}
	c.mu.Unlock()
	left := c.relay.cfg.Load().Hold - time.Since(begin)
	if left <= 0 {
		c.end(holdExpired)
		return false
	}
	t := time.NewTimer(min(d, left))
	defer t.Stop()
	select {
	case <-t.C:
	case <-opened:
		c.tries = 0
	case <-c.turns:
	case <-c.quit:
		return false
	}
	return true
}

// enter begins a connect through the gate, which is nil when it is shut, or when the
// client has to wait for its turn. It has waited since begin. A fence that follows the
// shutting of the gate finds every connection that came through it.
func (c *conn) enter(begin time.Time) (g *gate, ctx context.Context, opened <-chan struct{}) {
	p := c.plane
	p.gateMu.RLock()
	defer p.gateMu.RUnlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	g = c.relay.gate.Load()
	if g != nil && !c.relay.leased() {
		g = nil
	}
	hold := c.relay.cfg.Load().Hold
	c.lines = g != nil && g.paced && hold > 0 && !c.turn
	if g == nil || c.over || c.lines {
		c.becomeLocked(waiting)
		c.until = begin.Add(hold)
		c.turn = c.turn && g != nil
		return nil, nil, p.opened
	}
	c.becomeLocked(connecting)
	c.turn, c.failed, c.dialed = false, false, time.Now()
	select {
	case <-c.turns: // it has noticed by something else
	default:
	}
	if g.epoch != c.epoch.Load() {
		c.ends = 0
	}
	c.epoch.Store(g.epoch)
	c.home.Store(g.home)
	ctx, c.halt = context.WithTimeout(context.Background(), c.relay.cfg.Load().ConnectTimeout)
	return g, ctx, p.opened
}

// dialResult is the outcome of a connect.
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
		c.failed = true
	default:
		c.plane.connected(c.home.Load(), time.Since(c.dialed))
		if f := c.relay.connected; f != nil {
			f()
		}
		c.sock[host] = h
		c.becomeLocked(relaying)
		if !c.heldAt.IsZero() {
			c.plane.holds.served.Observe(time.Since(c.heldAt))
			c.heldAt = time.Time{}
		}
		c.began = time.Now()
		c.last.Store(time.Now().UnixNano()) // before look may read it
		c.passed = [2]bool{}
		c.flow = [2]*flow{client: newFlow(c, client), host: newFlow(c, host)}
		return dialed
	}
	if h != nil {
		abort(h)
	}
	c.becomeLocked(waiting)
	return result
}

// dial connects to the gate's host.
func (p *goroutines) dial(ctx context.Context, g *gate) (*socket, error) {
	if g.to.path != "" {
		return p.dialTo(ctx, g, "unix", g.to.path, netip.Addr{})
	}
	ip := g.to.ip.Unmap()
	return p.dialTo(ctx, g, "tcp", netip.AddrPortFrom(ip, g.to.port).String(), ip)
}

func (p *goroutines) dialTo(ctx context.Context, g *gate, network, address string, ip netip.Addr) (*socket, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var slow func()
	slow = func() {
		if ctx.Err() == nil {
			p.relay.suspect(g.epoch, errSlow)
			time.AfterFunc(SlowConnect/2, slow)
		}
	}
	defer time.AfterFunc(SlowConnect, slow).Stop()
	d := net.Dialer{
		KeepAliveConfig: keepAlive,
		Control:         p.prepare,
	}
	d.SetMultipathTCP(false)
	if src := p.relay.cfg.Load().Source.Unmap(); src.IsValid() && ip.IsValid() && src.Is4() == ip.Is4() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0))
	}
	s, err := d.DialContext(ctx, network, address)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("connect to %s: %w", address, errTimeout)
	}
	if err != nil {
		return nil, err
	}
	// A connect to a loopback port without a listener can connect to itself when
	// the system picks that very port as the source.
	if a := addrPortOf(s.LocalAddr()); a.IsValid() && a == addrPortOf(s.RemoteAddr()) {
		abort(s.(stream))
		return nil, &net.OpError{Op: "dial", Net: network, Addr: s.RemoteAddr(), Err: wrap("connect", unix.ECONNREFUSED)}
	}
	if conn, ok := s.(*net.TCPConn); ok && p.relay.fixed.Lease != nil {
		_ = conn.SetLinger(0) // of what is on the way when the process is killed, nothing arrives later
	}
	return socketOf(s.(stream))
}

// prepare sets what a socket to a host needs before it is bound and connects.
func (p *goroutines) prepare(network, _ string, raw syscall.RawConn) error {
	if network == "unix" {
		return nil
	}
	cfg := p.relay.cfg.Load()
	return raw.Control(func(fd uintptr) { setOptions(int(fd), cfg.hostTimeout, cfg.Source.IsValid()) })
}

// watchClient ends the connection when the client breaks, until end is called.
// A connect that succeeds at once never notices.
func (c *conn) watchClient() (end func()) {
	cl := c.sock[client]
	done := make(chan struct{})
	begin := time.AfterFunc(tick, func() {
		defer close(done)
		if cl.watch() {
			c.end(clientLeft)
		}
	})
	return func() {
		if begin.Stop() {
			return
		}
		_ = cl.SetReadDeadline(past)
		<-done
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.taken { // a fence may have come since the connect, and interrupts the flows
			_ = cl.SetReadDeadline(time.Time{})
		}
	}
}

// move moves bytes between client and host. It returns true when the client
// needs another host.
func (c *conn) move() bool {
	up, down := c.flow[client], c.flow[host]
	done := make(chan struct{})
	go func() {
		defer close(done)
		down.run()
	}()
	up.run()
	<-done
	why, moves := c.settle()
	switch {
	case moves:
		// From here on no deadline interrupts the client's flows.
		cl := c.sock[client]
		_ = cl.SetDeadline(time.Time{})
		cl.mu.Lock()
		cl.shut = false
		cl.mu.Unlock()
	default:
		c.end(why)
	}
	return moves
}

// settle returns, after both flows have ended, how the connection ends, or that
// its client moves on to another host.
func (c *conn) settle() (why reason, moves bool) {
	c.mu.Lock()
	cl, h := c.sock[client], c.sock[host]
	failed := !c.over && !c.taken
	switch {
	case c.over:
		c.mu.Unlock()
		return clientLeft, false // which end ignores
	case c.taken:
		c.taken = false
		c.waited, c.tries = 0, 0
	case h.broken.Load() && !cl.broken.Load() && !exchanged(cl, h) && !c.passed[client]:
		// Nothing was exchanged, so nothing is lost: the client waits for another
		// host. (A host that resets once the client has ended has only closed in its
		// own way.)
		c.tries = min(c.tries+1, 8)
		c.ends = min(c.ends+1, endsMost)
		c.failed = true
	default:
		clean := c.passed == [2]bool{true, true} && !cl.broken.Load() && !h.broken.Load()
		c.mu.Unlock()
		switch {
		case clean && c.first == host:
			return hostClosed, false
		case clean:
			return clientClosed, false
		}
		if h.broken.Load() {
			c.silentEnd()
		}
		return brokenBy([2]bool{cl.broken.Load(), h.broken.Load()}, [2]bool{cl.timedOut.Load(), h.timedOut.Load()}), false
	}
	c.sock[host] = nil
	c.becomeLocked(waiting)
	c.moves++
	c.mu.Unlock()
	abort(h)
	if failed {
		c.relay.suspect(c.epoch.Load(), errNoByte)
	}
	return hostReset, true
}

// exchanged reports whether a byte or a client's end of stream has passed.
// Until then the connection can be made again to another host without losing
// anything. The caller ensures that both flows have ended, or holds both
// sockets' mu.
func exchanged(cl, h *socket) bool {
	return cl.written+h.written != 0 || cl.finished
}

// waits reports whether the client is without a host.
func (c *conn) waits() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state == waiting && !c.over
}

// relays reports whether the client has a host.
func (c *conn) relays() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state == relaying && !c.over
}

// fence carries a connection of an epoch before the given one into it, if its
// host stays. Otherwise it takes it away from its host, if no byte has passed over
// it, or ends it, if reset is true.
func (c *conn) fence(before uint64, stays int32, reset bool, timeout time.Duration) fencedHow {
	c.mu.Lock()
	if c.over || c.epoch.Load() >= before {
		c.mu.Unlock()
		return fencedNot
	}
	switch c.state {
	case readingProxy, waiting:
		c.mu.Unlock()
		return fencedNot
	case connecting:
		c.taken = true
		c.timeout = timeout
		c.becomeLocked(waiting)
		c.moves++
		c.halt()
		c.mu.Unlock()
		return fencedMoved
	case relaying:
		if c.home.Load() == stays {
			c.epoch.Store(before)
			c.mu.Unlock()
			return fencedCarried
		}
		if c.takeLocked() {
			c.timeout = timeout
			c.mu.Unlock()
			return fencedMoved
		}
	}
	if reset {
		c.by = before
	}
	c.mu.Unlock()
	if !reset {
		return fencedLeft
	}
	if !c.end(fencedOff) {
		return fencedNot
	}
	return fencedCut
}

// takeLocked takes the connection away from its host, if no byte has passed, and
// ensures that none passes afterwards.
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
		c.becomeLocked(waiting)
		_ = cl.SetDeadline(past)
		_ = h.SetDeadline(past)
	}
	return free
}

// fail records that the socket of side s is broken. Bytes received from it may
// still be delivered; nothing can be delivered to it.
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

// look ends a connection that has been idle for too long, and detects the
// failure of a side from which nothing is read because the other side takes
// nothing.
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
	if d := c.relay.cfg.Load().IdleTimeout; d > 0 && !failed && now.UnixNano()-c.last.Load() >= int64(d) {
		c.end(idleTimeout)
		return
	}
	for s, f := range flows {
		if f.blocked.Load() && !socks[s].broken.Load() && socks[s].check() {
			c.fail(side(s), socks[s])
		}
	}
}

// end closes the connection, counts it and reports it; one that was not admitted
// yet is denied. It returns false in that case, and when the connection has ended
// already. When it returns, both sockets are closed.
func (c *conn) end(why reason) bool {
	o := why.outcome()
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
	was := c.state
	admit := was != readingProxy
	if held := c.plane.holds.of(o); held != nil && !c.heldAt.IsZero() {
		held.Observe(time.Since(c.heldAt))
	}
	socks := c.sock
	c.mu.Unlock()
	for i, s := range socks {
		switch {
		case s == nil:
		case o == outcomeFinished:
			if conn, ok := s.stream.(*net.TCPConn); ok && side(i) == host && c.relay.fixed.Lease != nil {
				_ = conn.SetLinger(-1) // what is still on the way arrives
			}
			_ = s.Close()
		default:
			abort(s)
		}
	}
	p := c.plane
	if c.session.Swap(true) { // one that begins now counts no more
		p.hosts.of(c.home.Load()).ended.Add(1)
	}
	p.mu.Lock()
	if admit {
		p.counts.ended(o)
		p.admitted[was]--
	} else {
		p.counts.Denied++
		p.noHeader++
	}
	delete(p.live, c)
	p.mu.Unlock()
	c.relay.leave()
	if ended := c.relay.cfg.Load().Ended; admit && ended != nil {
		ended(c.ending(why))
	}
	return admit
}

// ending describes a connection that has ended.
func (c *conn) ending(why reason) Ending {
	up, down := c.moved()
	c.mu.Lock()
	defer c.mu.Unlock()
	e := Ending{
		Client: addrPortOf(c.sock[client].RemoteAddr()), Host: c.relay.homes.name(c.home.Load()), Epoch: c.epoch.Load(),
		Started: c.accepted, Duration: time.Since(c.accepted), Sent: up, Received: down,
		Outcome: why.outcome().String(), Why: why.String(), Moved: c.moves,
	}
	if c.proxied != nil && c.proxied.from.IsValid() {
		e.Client = c.proxied.from
	}
	if why == fencedOff {
		e.FencedBy = c.by
	}
	return e
}

// moved returns the number of bytes that have come from either side.
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
