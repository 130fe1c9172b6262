//go:build linux && !portable

package health

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/bind"
	"understudy/internal/rawsocket"
	"understudy/internal/tcp"
)

// connects makes the quiet connects of a [Checker]; see [quietly]. One that is in
// progress costs a descriptor and a record: a single goroutine waits for all of them, on
// an epoll of its own. The zero connects has none.
type connects struct {
	running sync.WaitGroup // the goroutine that waits

	mu      sync.Mutex // guards everything below
	closed  bool
	idle    []int                 // sockets for another connect over IPv4
	epoll   *os.File              // nil before the first connect that has to be waited for
	waiting map[int32]*connecting // by id
	lastID  int32
}

// socketsKept is the number of sockets that are kept for another connect. That saves
// a quarter of the processor time of a check.
const socketsKept = 8

// connecting is one connect in progress.
type connecting struct {
	fd     int
	to     netip.AddrPort
	source netip.Addr // zero where the system chooses it
	late   *time.Timer
	done   func(error)
}

// start connects to an address, from source if it is of the same family, and calls done
// when the handshake is complete or has failed: at once if that is known at once, as it
// usually is on one machine. The connect fails at until.
func (c *connects) start(to netip.AddrPort, source netip.Addr, until time.Time, done func(error)) {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if source.IsValid() && source.Is4() != to.Addr().Is4() {
		source = netip.Addr{}
	}
	p := &connecting{fd: -1, to: to, source: source, done: done}
	call, err := p.begin(c)
	if errors.Is(err, unix.EINPROGRESS) || errors.Is(err, unix.EALREADY) {
		if call, err = c.wait(p, until); err == nil {
			return
		}
	}
	if err == nil && p.reusable() && !p.toItself() && c.keep(p.fd) {
		done(nil)
		return
	}
	p.end(call, err)
}

// reusable reports whether the socket can be used for another connect.
func (p *connecting) reusable() bool { return p.to.Addr().Is4() && !p.source.IsValid() }

// toItself reports whether the socket is connected to itself, which proves no listener.
// Its own port is enough to say no, nearly always.
func (p *connecting) toItself() bool {
	return rawsocket.Own(p.fd).Port() == p.to.Port() && tcp.ConnectedToItself(p.fd)
}

// keep resets the connection of a socket, and keeps the socket for another one. It is
// false when the socket must be closed.
func (c *connects) keep(fd int) bool {
	if tcp.Reset(fd) != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.idle) >= socketsKept {
		return false
	}
	c.idle = append(c.idle, fd)
	return true
}

// kept returns a socket that was kept; false for none.
func (c *connects) kept() (fd int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := len(c.idle) - 1
	if last < 0 {
		return -1, false
	}
	fd = c.idle[last]
	c.idle = c.idle[:last]
	return fd, true
}

// begin opens the socket and begins to connect. It returns nil when the handshake is
// complete, and otherwise the call that failed as well; EINPROGRESS is no failure.
func (p *connecting) begin(c *connects) (call string, err error) {
	to := rawsocket.Inet(p.to, bind.ZoneIndex(p.to.Addr()))
	kept := false
	if p.reusable() {
		p.fd, kept = c.kept()
	}
	if !kept {
		p.fd, err = unix.Socket(to.Family(), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		return "socket", err
	}
	if e := setQuiet(p.fd); e != 0 {
		return "setsockopt", e
	}
	if p.source.IsValid() {
		tcp.SetLatePort(p.fd)
		from := rawsocket.Inet(netip.AddrPortFrom(p.source, 0), bind.ZoneIndex(p.source))
		if e := rawsocket.Bind(p.fd, &from); e != 0 {
			return "bind", e
		}
	}
	// Over loopback the handshake is complete when connect(2) returns, which a second
	// call reports. After an error of the first the second would start anew.
	e := rawsocket.Connect(p.fd, &to)
	if e == unix.EINPROGRESS {
		e = rawsocket.Connect(p.fd, &to)
	}
	if e != 0 {
		return "connect", e
	}
	return "", nil
}

// end closes the socket and reports the result.
func (p *connecting) end(call string, err error) {
	if err == nil && p.toItself() {
		err = unix.ECONNREFUSED
	}
	if p.fd >= 0 {
		_ = unix.Close(p.fd) // nothing was sent
	}
	switch {
	case err == nil:
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = p.failed(err)
	case errors.Is(err, context.Canceled):
	default:
		err = p.failed(os.NewSyscallError(call, err))
		if !p.source.IsValid() {
			err = withoutSource(context.Background(), p.to, err)
		}
	}
	p.done(err)
}

// failed returns err as [net.Dialer] does.
func (p *connecting) failed(err error) error {
	e := &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(p.to), Err: err}
	if p.source.IsValid() {
		e.Source = net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.source, 0))
	}
	return e
}

// wait has the goroutine wait for p until then. When it returns an error p is not
// waited for.
func (c *connects) wait(p *connecting, until time.Time) (call string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return "", context.Canceled
	}
	if err := c.openLocked(); err != nil {
		return "epoll_create", err
	}
	// The event has an id and not the descriptor, which may be another connect's by
	// the time at which the event is looked at.
	c.lastID++
	id := c.lastID
	event := unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLONESHOT, Fd: id}
	if err := control(c.epoll, func(epoll int) error { return unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, p.fd, &event) }); err != nil {
		return "epoll_ctl", err
	}
	c.waiting[id] = p
	p.late = time.AfterFunc(time.Until(until), func() {
		if c.take(id) != nil {
			p.end("connect", os.ErrDeadlineExceeded)
		}
	})
	return "", nil
}

// openLocked opens the epoll and starts the goroutine, unless that was done before.
func (c *connects) openLocked() error {
	if c.epoll != nil {
		return nil
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that the runtime waits for it
		_ = unix.Close(fd) // it is not used
		return err
	}
	c.epoll, c.waiting = os.NewFile(uintptr(fd), "epoll"), map[int32]*connecting{}
	c.running.Go(c.await)
	return nil
}

// await ends the connects whose handshake is complete or has failed, until the epoll is
// closed.
func (c *connects) await() {
	raw, err := c.epoll.SyscallConn()
	if err != nil {
		return // closed
	}
	events := make([]unix.EpollEvent, 64)
	for {
		n := 0
		err := raw.Read(func(epoll uintptr) bool {
			n, _ = rawsocket.Events(int(epoll), events)
			return n > 0
		})
		if err != nil {
			return // closed
		}
		for _, e := range events[:n] {
			p := c.take(e.Fd)
			if p == nil {
				continue // too late
			}
			p.late.Stop()
			var err error
			if e := rawsocket.Error(p.fd); e != 0 {
				err = e
			}
			p.end("connect", err)
		}
	}
}

// take returns a connect, which is no longer waited for then; nil when that was done
// before.
func (c *connects) take(id int32) *connecting {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.waiting[id]
	delete(c.waiting, id)
	return p
}

// close ends all connects.
func (c *connects) close() {
	c.mu.Lock()
	c.closed = true
	waiting, idle, epoll := c.waiting, c.idle, c.epoll
	c.waiting, c.idle = nil, nil
	c.mu.Unlock()
	for _, fd := range idle {
		_ = unix.Close(fd) // nothing was sent
	}
	for _, p := range waiting {
		p.late.Stop()
		p.end("connect", context.Canceled)
	}
	if epoll != nil {
		_ = epoll.Close() // ends the goroutine
	}
	c.running.Wait()
}

// control calls f with the descriptor of file.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}
