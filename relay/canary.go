package relay

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/bind"
)

// A canary is a client of the relay's own program, to find out what clients see. It comes
// through a listener, waits in the queue while the gate is shut, and is connected to the
// host of the gate like every client.
//
// It is counted nowhere. So that nobody can count it by mistake, the relay hands it over,
// when it has accepted it, to its twin: another Relay, with the same settings and the same
// gate, that has no listeners and reports nothing. Whatever is counted, recorded or
// compared there concerns canaries alone. A relay without canaries has no twin.
//
// The relay recognizes a canary by its address, which is bound, and announced, before it
// connects.

// ErrNoAddress is the error of [Relay.DialCanary] for a relay that has no address yet, or
// none that a canary can connect to.
var ErrNoAddress = errors.New("the relay has no address that a canary can connect to")

// Canary is the client's end of a connection through the relay.
type Canary struct {
	net.Conn
	served chan struct{}
	once   sync.Once
}

// Served returns a channel that is closed when a host has accepted the connection.
func (c *Canary) Served() <-chan struct{} { return c.served }

// CloseWrite ends the stream to the host.
func (c *Canary) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (c *Canary) wasServed() { c.once.Do(func() { close(c.served) }) }

// canaries is what a relay knows of its canaries.
type canaries struct {
	one      sync.Mutex              // held by DialCanary: there is one at a time
	twin     atomic.Pointer[Relay]   // nil until there is one; stored under gating
	expected atomic.Pointer[endName] // the address of one that is not accepted yet; nil for none
	current  atomic.Pointer[Canary]  // the last one
	tries    tries
}

// DialCanary connects to the relay through its first address, as a client does, and
// returns when its kernel has accepted the connection. Only the end of ctx limits the
// time. The connection is counted nowhere, and takes nobody's place under a limit.
//
// There is one canary at a time: what is left of the last one, at its host too, has ended
// when the next one connects.
func (r *Relay) DialCanary(ctx context.Context) (*Canary, error) {
	select {
	case <-r.started:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r.canaries.one.Lock()
	defer r.canaries.one.Unlock()
	twin, err := r.makeTwin()
	if err != nil {
		return nil, err
	}
	if err := r.awaitNoCanary(ctx, twin); err != nil {
		return nil, err
	}
	network, addr, err := r.canaryAddress()
	if err != nil {
		return nil, err
	}
	c := &Canary{served: make(chan struct{})}
	r.canaries.current.Store(c)
	d := net.Dialer{Control: func(network, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = r.announce(int(fd), network, addr) }); e != nil {
			return e
		}
		return err
	}}
	d.SetMultipathTCP(false)
	c.Conn, err = d.DialContext(ctx, network, addr)
	if err != nil {
		r.canaries.expected.Store(nil)
		return nil, err
	}
	if r.cfg.Load().AcceptProxy {
		h := proxyHeader{from: addrPortOf(c.LocalAddr()), to: addrPortOf(c.RemoteAddr())}
		if _, err := c.Write(h.append(nil, 1)); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// announce binds the socket of a canary and makes its address known.
func (r *Relay) announce(fd int, network, to string) error {
	var sa unix.Sockaddr = &unix.SockaddrUnix{} // the system chooses a name; see unix(7), autobind
	if network != "unix" {
		at, err := netip.ParseAddrPort(to)
		if err != nil {
			return err
		}
		sa, _ = bind.Sockaddr(netip.AddrPortFrom(at.Addr(), 0))
	}
	if err := unix.Bind(fd, sa); err != nil {
		return os.NewSyscallError("bind", err)
	}
	name, err := socketName(bind.LocalAddr(fd), fd, unix.Getsockname)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	r.canaries.expected.Store(&name)
	return nil
}

// socketName is the address of a socket, the same whichever end asks: addr, or the name of a
// unix socket.
func socketName(addr netip.AddrPort, fd int, name func(fd int) (unix.Sockaddr, error)) (endName, error) {
	if addr.IsValid() {
		return endName{addr: addr}, nil
	}
	sa, err := name(fd)
	if u, ok := sa.(*unix.SockaddrUnix); ok {
		return endName{unix: u.Name}, err
	}
	return endName{}, err
}

// endName is the address of a client's socket.
type endName struct {
	addr netip.AddrPort
	unix string // of a unix socket
}

// canaryAddress returns the address that canaries connect to: the first one that they can.
// One that stands for every address of the machine is reached over loopback.
func (r *Relay) canaryAddress() (network, addr string, err error) {
	r.gating.Lock()
	defer r.gating.Unlock()
	for _, ln := range r.listeners {
		switch a := ln.Addr.(type) {
		case *net.TCPAddr:
			ip, _ := netip.AddrFromSlice(a.IP)
			if ip = ip.Unmap(); ip.IsUnspecified() || !ip.IsValid() {
				return "tcp", netip.AddrPortFrom(loopback(ln), uint16(a.Port)).String(), nil //nolint:gosec // a port
			}
			return "tcp", net.JoinHostPort(ip.WithZone(a.Zone).String(), strconv.Itoa(a.Port)), nil
		case *net.UnixAddr:
			// Elsewhere the client of a unix socket has no address to be recognized by.
			if runtime.GOOS == "linux" && a.Name != "" {
				return "unix", a.Name, nil
			}
		}
	}
	return "", "", ErrNoAddress
}

// loopback returns the loopback address at which a listener on every address is reached.
func loopback(ln *listener) netip.Addr {
	if ln.FD >= 0 {
		if only, err := unix.GetsockoptInt(ln.FD, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY); err == nil && only != 0 {
			return netip.IPv6Loopback()
		}
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// makeTwin returns the twin, and makes it if there is none.
func (r *Relay) makeTwin() (*Relay, error) {
	r.gating.Lock()
	defer r.gating.Unlock()
	if r.closed {
		return nil, errClosed
	}
	if t := r.canaries.twin.Load(); t != nil {
		return t, nil
	}
	t := newRelay(twinConfig(r.cfg.Load().Config, nil))
	t.connected = func() {
		if c := r.canaries.current.Load(); c != nil {
			c.wasServed()
		}
		r.canaries.tries.served()
	}
	t.dropped = r.canaries.tries.dropped
	if err := t.plane.start(); err != nil {
		return nil, fmt.Errorf("relay %s: %w", r.fixed.Name, err)
	}
	t.gate.Store(r.gate.Load())
	t.plane.leave(nil) // returns when every loop knows it
	r.canaries.twin.Store(t)
	return t, nil
}

// twinConfig is the configuration of a twin of a relay with the given one, which counts its
// connections in together.
func twinConfig(cfg Config, together *atomic.Int64) Config {
	cfg.Listen, cfg.Sockets = nil, nil
	cfg.Suspect, cfg.HostEnded, cfg.FirstByte, cfg.Ended, cfg.Paced = nil, nil, nil, nil, nil
	cfg.MaxConnections, cfg.Together, cfg.Logger = 0, together, nil
	return cfg
}

// awaitNoCanary waits until nothing is left of the last canary.
func (r *Relay) awaitNoCanary(ctx context.Context, twin *Relay) error {
	for {
		if r.canaries.expected.Load() != nil && r.queueIsEmpty() {
			r.canaries.expected.Store(nil) // it was reset in the queue
		}
		if r.canaries.expected.Load() == nil {
			if twin.live.Load() == 0 {
				return nil
			}
			twin.plane.cut()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(tick):
		}
	}
}

// queueIsEmpty reports whether no client waits to be accepted. Where the system does not
// say, none is expected to while the gate is open.
func (r *Relay) queueIsEmpty() bool {
	r.gating.Lock()
	defer r.gating.Unlock()
	if !r.listens || r.closed {
		return true
	}
	for _, ln := range r.listeners {
		if ln.Queued() > 0 || !ln.CountsQueue() && r.gate.Load() == nil {
			return false
		}
	}
	return true
}

// queuedLocked returns how many clients wait to be accepted, without a canary.
func (r *Relay) queuedLocked() (n int) {
	for _, ln := range r.listeners {
		n += ln.Queued()
	}
	if r.canaries.expected.Load() != nil {
		n = max(n-1, 0)
	}
	return n
}

// canaryTwin returns the twin if a client that was just accepted over the socket fd is the
// canary that is expected; otherwise nil.
func (r *Relay) canaryTwin(fd int) *Relay {
	want := r.canaries.expected.Load()
	if want == nil {
		return nil
	}
	name, err := socketName(bind.PeerAddr(fd), fd, unix.Getpeername)
	if err != nil || name != *want || !r.canaries.expected.CompareAndSwap(want, nil) {
		return nil
	}
	return r.canaries.twin.Load()
}

// The changes of the gate, for the twin. They follow those of the relay, but for the
// opening: a canary that is accepted at once must find the gate open.

func (c *canaries) gateLocked(g *gate) {
	if t := c.twin.Load(); t != nil {
		t.gate.Store(g)
	}
}

func (c *canaries) do(f func(twin *Relay)) {
	if t := c.twin.Load(); t != nil {
		f(t)
	}
}

// giveTurn lets a canary through a gate that is paced if it came when a client came that has
// its turn now, or before; the time is that of the plane.
func (c *canaries) giveTurn(came int64) {
	c.do(func(t *Relay) { t.plane.giveTurns(came, math.MaxInt) })
}

// end ends the twin and what it serves. The relay has no listeners any more.
func (c *canaries) end() {
	c.do(func(t *Relay) {
		for t.live.Load() > 0 {
			t.plane.cut()
			<-time.After(time.Millisecond) // one may be on its way to a loop
		}
		t.plane.stop()
	})
	c.tries.end()
}
