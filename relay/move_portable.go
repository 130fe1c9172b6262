//go:build !linux || portable

package relay

import (
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keepAlive is set on the sockets of both sides.
var keepAlive = net.KeepAliveConfig{
	Enable:   true,
	Idle:     keepIdle * time.Second,
	Interval: keepInterval * time.Second,
	Count:    keepCount,
}

// socket is one side of a connection.
type socket struct {
	stream
	raw syscall.RawConn

	// broken is set in the same critical section of mu as the call that returned
	// the error: a system reports a socket's failure once, and to the next call a
	// broken stream looks like one that has ended.
	broken   atomic.Bool
	timedOut atomic.Bool // the system has given the peer up; set before broken

	mu       sync.Mutex // held while it is written to; guards what follows
	written  uint64     // relayed bytes that it took
	finished bool       // and the end of the stream behind them
	shut     bool       // it takes no more: a fence has taken the connection away
}

func socketOf(s stream) (*socket, error) {
	raw, err := s.SyscallConn()
	if err != nil {
		abort(s)
		return nil, err
	}
	return &socket{stream: s, raw: raw}, nil
}

// check reports whether the socket has failed.
func (s *socket) check() (broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.raw.Control(func(fd uintptr) { s.checkLocked(fd) })
	return s.broken.Load()
}

func (s *socket) checkLocked(fd uintptr) {
	if e, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err != nil || e != 0 {
		s.failed(unix.Errno(e)) //nolint:gosec // an errno
	}
}

// failed records that the socket has failed with err.
func (s *socket) failed(err error) {
	if errors.Is(err, unix.ETIMEDOUT) {
		s.timedOut.Store(true)
	}
	s.broken.Store(true)
}

// watch waits until the socket fails, without reading from it, and returns true
// then; false when its read deadline passes or it is closed.
func (s *socket) watch() (broken bool) {
	err := s.raw.Read(func(fd uintptr) (done bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.broken.Load() {
			s.checkLocked(fd)
		}
		return s.broken.Load()
	})
	return err == nil
}

// abort closes a connection so that its peer sees a reset.
func abort(s stream) {
	if sk, ok := s.(*socket); ok {
		s = sk.stream
	}
	if tcp, ok := s.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = s.Close()
}

// piece limits one read. Each reader that takes nothing occupies that much, so it
// is less than the size that is fastest for bulk.
const piece = chunk / 2

// buffers is the pool of buffers for bytes in transit.
var buffers = sync.Pool{New: func() any { return new([piece]byte) }}

// flow is one direction of a connection. It borrows a buffer when there are bytes
// to be read and gives it back when they are written; while it waits for them it
// holds none.
type flow struct {
	conn     *conn
	side     side // that it reads from
	from, to *socket
	blocked  atomic.Bool // its destination has no room
	lapsed   bool        // the relay's lease did not hold when it was about to write

	buf    *[piece]byte // nil while there is nothing on the way
	rest   []byte       // what is on the way
	urgent bool         // rest is one urgent byte
	ours   bool         // rest is our PROXY header and does not count
	err    error        // of the last call

	// The two functions that the poller runs, bound once: a closure for each call
	// would be an allocation for each call.
	fill, empty func(fd uintptr) (done bool)
}

func newFlow(c *conn, s side) *flow {
	f := &flow{conn: c, side: s, from: c.sock[s], to: c.sock[s.other()]}
	f.fill, f.empty = f.tryFill, f.tryEmpty
	return f
}

// run moves bytes until the direction is over: its end has been passed on, a
// side has failed, or a deadline has interrupted it.
func (f *flow) run() {
	defer f.giveBack()
	if f.side == client && !f.sendKept() {
		return
	}
	for {
		if f.from.raw.Read(f.fill) != nil {
			return // interrupted
		}
		switch {
		case f.err != nil:
			f.conn.fail(f.side, f.from)
			f.linger()
			return
		case len(f.rest) == 0 && f.doubtful():
			f.from.broken.Store(true)
			f.conn.fail(f.side, f.from)
			return
		case len(f.rest) == 0:
			f.passEnd()
			return
		case !f.send():
			return
		}
		f.giveBack()
	}
}

// sendKept sends what precedes the client's next bytes: our PROXY header, and
// bytes that no earlier host took.
func (f *flow) sendKept() bool {
	c := f.conn
	if v := c.relay.cfg.Load().SendProxy; v != 0 {
		h := proxyHeader{from: addrPortOf(f.from.RemoteAddr()), to: addrPortOf(f.from.LocalAddr())}
		if c.proxied != nil {
			h = *c.proxied
		}
		f.rest, f.ours = h.append(nil, v), true
		sent := f.send()
		f.rest, f.ours = nil, false
		if !sent {
			return false
		}
	}
	if len(c.kept) == 0 {
		return true
	}
	f.rest, c.kept = c.kept, nil
	return f.send()
}

// tryFill reads what there is. After it err is nil and rest empty at the end of
// the stream; err is set when the stream has failed.
func (f *flow) tryFill(fd uintptr) (done bool) {
	if b, ok := urgentByte(int(fd)); ok {
		f.rest, f.urgent = []byte{b}, true
		return true
	}
	f.buf = buffers.Get().(*[piece]byte)
	n, err := ignoringEINTR(func() (int, error) { return unix.Read(int(fd), f.buf[:]) })
	switch {
	case n > 0:
		f.err, f.rest = nil, f.buf[:n]
		return true
	case errors.Is(err, unix.EAGAIN):
		f.giveBack()
		return false
	}
	f.giveBack()
	f.from.mu.Lock()
	defer f.from.mu.Unlock()
	if err != nil {
		f.from.failed(err)
	} else if f.from.broken.Load() {
		err = unix.ECONNRESET // the error was reported to another call
	}
	f.err = err
	return true
}

// send writes what is on the way. It returns false when that could not be done,
// and keeps the client's bytes for another host.
func (f *flow) send() bool {
	err := f.to.raw.Write(f.empty)
	f.blocked.Store(false)
	if f.lapsed {
		f.conn.end(leaseOver)
		return false
	}
	if err == nil && len(f.rest) == 0 {
		f.urgent = false
		return true
	}
	if f.side == client && !f.ours {
		f.conn.kept = slices.Clone(f.rest)
	}
	if f.to.broken.Load() {
		f.conn.fail(f.side.other(), f.to)
	}
	return false
}

// tryEmpty writes what the destination takes.
func (f *flow) tryEmpty(fd uintptr) (done bool) {
	f.to.mu.Lock()
	defer f.to.mu.Unlock()
	for len(f.rest) > 0 && !f.to.shut {
		if f.lapsed = !f.conn.relay.leased(); f.lapsed {
			return true
		}
		n, err := ignoringEINTR(func() (int, error) { return f.write(int(fd)) })
		if errors.Is(err, unix.EAGAIN) {
			f.blocked.Store(true)
			return false
		}
		if err != nil {
			f.to.failed(err)
			return true
		}
		f.rest = f.rest[n:]
		if !f.ours {
			f.countLocked(n)
		}
	}
	return true
}

func (f *flow) write(fd int) (int, error) {
	if !f.urgent {
		return unix.Write(fd, f.rest)
	}
	if err := unix.Send(fd, f.rest, unix.MSG_OOB); err != nil {
		return 0, err
	}
	return len(f.rest), nil
}

func (f *flow) countLocked(n int) {
	to := f.conn.plane.hosts.of(f.conn.home.Load())
	if f.side == host && f.to.written == 0 {
		if !f.conn.session.Swap(true) {
			to.sessions.Add(1)
		}
		f.conn.relay.firstByte(f.conn.epoch.Load())
	}
	f.to.written += uint64(n)       //nolint:gosec // not negative
	to.bytes[f.side].Add(uint64(n)) //nolint:gosec // not negative
	f.conn.last.Store(time.Now().UnixNano())
	if f.from.broken.Load() { // progress
		_ = f.to.SetWriteDeadline(time.Now().Add(lingerTimeout))
	}
}

// giveBack returns the buffer.
func (f *flow) giveBack() {
	if f.buf != nil {
		buffers.Put(f.buf)
	}
	f.buf, f.rest = nil, nil
}

// doubtful returns true, once for a connection and an epoch, if the end of the
// stream is the host's and came before any byte. A host that is killed before
// it has sent a byte ends its streams in the same way as a host that has
// nothing to send. So the first such end counts as a failure, and it is passed
// on when it happens again with the next connect.
func (f *flow) doubtful() bool {
	c := f.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.side != host || c.ends > 0 || c.passed[client] {
		return false
	}
	f.to.mu.Lock()
	defer f.to.mu.Unlock()
	f.from.mu.Lock()
	defer f.from.mu.Unlock()
	return !exchanged(f.to, f.from)
}

// passEnd passes the end of the stream on as a half-close, and then watches its
// source for a failure while the other direction goes on.
func (f *flow) passEnd() {
	c, o := f.conn, f.side.other()
	if f.side == host {
		c.silentEnd()
	}
	c.mu.Lock()
	c.passed[f.side] = true
	last := c.passed[o]
	if !last {
		c.first = f.side
	}
	if last {
		_ = c.sock[o].SetReadDeadline(past) // the other flow need not watch any more
	}
	c.mu.Unlock()
	if last {
		return // closing the socket passes the end on
	}
	f.to.mu.Lock()
	if !f.to.shut {
		if f.to.CloseWrite() != nil {
			f.to.broken.Store(true)
		}
		f.to.finished = true
	}
	f.to.mu.Unlock()
	if f.to.broken.Load() {
		c.fail(o, f.to)
		return
	}
	if f.from.watch() {
		c.fail(f.side, f.from)
		f.linger()
	}
}

// linger waits until the destination has taken what was sent to it before the
// source failed: a reset would discard what it has not taken.
func (f *flow) linger() {
	const blind = 100 * time.Millisecond // where the system does not report unsent bytes
	due := time.Now().Add(lingerTimeout)
	for before := -1; !f.to.check(); {
		left, known := 0, true
		_ = f.to.raw.Control(func(fd uintptr) { left, known = unsentBytes(int(fd)) })
		now := time.Now()
		switch {
		case !known:
			_ = sleep(blind, f.conn.quit)
			return
		case left == 0 || now.After(due):
			return
		case left != before: // progress
			before = left
			due = now.Add(lingerTimeout)
		}
		if !sleep(tick, f.conn.quit) {
			return
		}
	}
}

// urgentByte takes the urgent byte of a socket when it is next; see the
// description of out-of-band data in tcp(7). Plain reads stop in front of it and
// then step over it.
func urgentByte(fd int) (b byte, ok bool) {
	if mark, err := unix.IoctlGetInt(fd, unix.SIOCATMARK); err != nil || mark == 0 {
		return 0, false
	}
	var p [1]byte
	n, _, err := unix.Recvfrom(fd, p[:], unix.MSG_OOB)
	return p[0], err == nil && n == 1
}

func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
