//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The generator and the backend are event loops over plain descriptors, one
// thread each, and not goroutines over net.Conn: client, proxy and backend
// share the machine's cores, so every microsecond spent here is taken from the
// proxy, and a wake-up of Go's scheduler for each message would hide the
// differences that are to be measured.

// chunk is how much one read or write of a bulk stream moves at most.
const chunk = 256 << 10

// patternLen is prime, so that a lost, doubled or moved piece of a stream of
// any likely size (a pipe, a buffer, a page) shows as different bytes.
const patternLen = 262139

// pattern is what every byte on every connection is taken from: position p of
// the endless stream is pattern[p%patternLen]. It goes on behind its end, so
// that chunk bytes from any position are one slice.
var pattern = func() []byte {
	p := make([]byte, patternLen+chunk)
	_, _ = rand.NewChaCha8([32]byte([]byte("understudy bench: every byte ok?"))).Read(p[:patternLen]) // cannot fail
	for i := patternLen; i < len(p); i++ {
		p[i] = p[i-patternLen]
	}
	return p
}()

// patternAt returns n bytes, at most chunk, of the stream from position p on.
func patternAt(p int64, n int) []byte {
	from := int(p % patternLen)
	return pattern[from : from+n]
}

// The first byte on a connection names what it is for. Echo and source are
// confirmed by the same byte, so the client knows that the whole way stands.
const (
	roleEcho   = 'e' // every byte comes back
	roleSource = 's' // answers each request with a piece of the stream
	roleShort  = 'c' // the first byte of a message that is answered, then closed
)

// shortLen is the length of a short connection's message and of its answer.
const shortLen = 64

// request asks a source for length bytes of the stream from position start.
type request struct{ start, length int64 }

const requestLen = 16

func (r request) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(r.start))  //nolint:gosec // G115: positions are not negative
	return binary.BigEndian.AppendUint64(b, uint64(r.length)) //nolint:gosec // G115: lengths are not negative
}

func decodeRequest(b []byte) request {
	return request{
		start:  int64(binary.BigEndian.Uint64(b) & (1<<62 - 1)),
		length: int64(binary.BigEndian.Uint64(b[8:])), //nolint:gosec // G115: a negative length asks for nothing
	}
}

// setupTimeout limits each blocking step of setting a connection up.
const setupTimeout = 10 * time.Second

// sockaddr is addr in the kernel's form.
func sockaddr(addr netip.AddrPort) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}
}

// dial connects a blocking socket to addr; the caller owns it. The i-th
// connection comes from 127.0.0.(2 + i/4096), so that thousands find a port.
// The address must be one of 127.0.0.0/8.
func dial(addr netip.AddrPort, i int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := connect(fd, addr, i); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return fd, nil
}

func connect(fd int, addr netip.AddrPort, i int) error {
	timeout := unix.NsecToTimeval(int64(setupTimeout))
	// The port is chosen at connect, where it needs to be unique for this
	// destination only.
	source := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(2 + i/4096)}} //nolint:gosec // G115: far below 2^20 connections
	if err := errors.Join(
		os.NewSyscallError("setsockopt TCP_NODELAY", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)),
		os.NewSyscallError("setsockopt SO_SNDTIMEO", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)),
		os.NewSyscallError("setsockopt SO_RCVTIMEO", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)),
		os.NewSyscallError("setsockopt IP_BIND_ADDRESS_NO_PORT", unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)),
		os.NewSyscallError("bind", unix.Bind(fd, source)),
	); err != nil {
		return err
	}
	for {
		switch err := unix.Connect(fd, sockaddr(addr)); {
		case err == nil, errors.Is(err, unix.EISCONN): // connected, or finished after EINTR
			return nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EALREADY):
		case errors.Is(err, unix.EINPROGRESS), errors.Is(err, unix.EAGAIN):
			return fmt.Errorf("no answer for %v", setupTimeout)
		default:
			return os.NewSyscallError("connect", err)
		}
	}
}

// greet says on a blocking socket what the connection is for and waits until
// the backend has confirmed it.
func greet(fd int, role byte) error {
	if _, err := write(fd, []byte{role}); err != nil {
		return err
	}
	answer := make([]byte, 1)
	switch n, err := read(fd, answer); {
	case errors.Is(err, unix.EAGAIN):
		return fmt.Errorf("no greeting for %v", setupTimeout)
	case err != nil:
		return err
	case n == 0:
		return errors.New("the connection ended before the greeting")
	case answer[0] != role:
		return fmt.Errorf("greeting is %q, want %q", answer, role)
	}
	return nil
}

// open dials addr n times and greets each time. It returns the descriptors,
// blocking still, which the caller owns; after an error there are none.
func open(addr netip.AddrPort, n int, role byte) ([]int, error) {
	fds := make([]int, 0, n)
	for i := range n {
		fd, err := dial(addr, i)
		if err == nil {
			fds = append(fds, fd)
			err = greet(fd, role)
		}
		if err != nil {
			abort(fds)
			return nil, fmt.Errorf("connection %d of %d: %w", i+1, n, err)
		}
	}
	return fds, nil
}

// abort closes each descriptor with a reset, so that no port stays behind in
// TIME_WAIT and no peer goes on sending.
func abort(fds []int) {
	for _, fd := range fds {
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		_ = unix.Close(fd)
	}
}

// read is read(2), retrying EINTR. It returns 0, nil at the end of the stream
// and a bare unix.EAGAIN when there is nothing to read.
func read(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd, p)
		if err == nil {
			return n, nil
		}
		if err == unix.EAGAIN {
			return 0, unix.EAGAIN
		}
		if err != unix.EINTR {
			return 0, os.NewSyscallError("read", err)
		}
	}
}

// write is write(2), retrying EINTR. It returns what was taken, which can be
// less than p, and 0, nil when the socket takes nothing now.
func write(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Write(fd, p)
		if err == nil {
			return n, nil
		}
		if err == unix.EAGAIN {
			return 0, nil
		}
		if err != unix.EINTR {
			return 0, os.NewSyscallError("write", err)
		}
	}
}

// errEnded is the error of a connection that ended when it should not have.
var errEnded = errors.New("the connection ended early")

// diff describes the first difference between what was read and what was
// wanted, for an error message.
func diff(got, want []byte) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("byte %d of %d is %#02x, want %#02x", i, len(got), got[i], want[i])
		}
	}
	return fmt.Sprintf("%d bytes, want %d", len(got), len(want))
}

// poller is one epoll instance and the buffer for its events. The number that
// comes back with an event is the one given to add.
type poller struct {
	fd     int
	events [256]unix.EpollEvent
}

// readable and writable tell what an event is about. An error or a hang-up
// counts as both: the next call on the descriptor says what it is.
const (
	readable  = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	writable  = unix.EPOLLOUT | unix.EPOLLHUP | unix.EPOLLERR
	hungUp    = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	edgeBoth  = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | edge
	edge      = 1 << 31 // unix.EPOLLET is negative on some ports
	levelRead = unix.EPOLLIN
)

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	return &poller{fd: fd}, nil
}

func (p *poller) close() { _ = unix.Close(p.fd) }

// add watches fd for interest; its events carry tag.
func (p *poller) add(fd int, interest uint32, tag int) error {
	return p.control(unix.EPOLL_CTL_ADD, fd, interest, tag)
}

// modify changes what add asked for.
func (p *poller) modify(fd int, interest uint32, tag int) error {
	return p.control(unix.EPOLL_CTL_MOD, fd, interest, tag)
}

func (p *poller) control(op, fd int, interest uint32, tag int) error {
	event := unix.EpollEvent{Events: interest, Fd: int32(tag)} //nolint:gosec // G115: tags are indices and descriptors
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.fd, op, fd, &event))
}

// wait returns the next events, none after the timeout. The slice is valid
// until the next call. A negative timeout waits without end.
func (p *poller) wait(timeout time.Duration) ([]unix.EpollEvent, error) {
	ms := -1
	if timeout >= 0 {
		ms = int((timeout + time.Millisecond - 1) / time.Millisecond)
	}
	n, err := unix.EpollWait(p.fd, p.events[:], ms)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return nil, os.NewSyscallError("epoll_wait", err)
	}
	return p.events[:max(n, 0)], nil
}
