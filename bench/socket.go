//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The generator and the backend are event loops over plain descriptors, one
// thread each, and not goroutines over net.Conn: client, proxy and backend
// share the machine's cores, so every microsecond spent here is taken from the
// proxy, and a wake-up of Go's scheduler for each message would hide the
// differences that are to be measured.

// chunk limits one read or write of a bulk stream.
const chunk = 256 << 10

// patternLen is prime, so that a lost, doubled or moved piece of a stream of
// any likely size (a pipe, a buffer, a page) shows as different bytes.
const patternLen = 262139

// pattern is the source of every byte on every connection: position p of the
// endless stream is pattern[p%patternLen]. It goes on behind its end, so that
// chunk bytes from any position are one slice.
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

// near is within how many bytes of the pattern all messages begin. The usual
// shape takes them from everywhere, lean ones from what stays in the first
// cache of a processor. It is prime, like the length of the pattern.
func (s shape) near() int64 {
	if s == usual {
		return patternLen
	}
	return 8191
}

// The first byte on a connection names what it is for. Echo and source are
// confirmed by the same byte, so the client knows that the connection reaches
// the backend.
const (
	roleEcho   = 'e' // every byte comes back
	roleSource = 's' // answers each request with a piece of the stream
	roleShort  = 'c' // the first byte of a message that is answered, then closed
)

// Other kinds of events than those of a connection with a role.
const (
	kindNew      = 'n' // a connection that has not named its role
	kindListener = 'l'
	kindTimer    = 't'
)

// shortLen is the length of a short connection's message and of its answer.
const shortLen = 64

// request requests length bytes of the stream from a source, from position
// start.
type request struct{ start, length int64 }

const requestLen = 16

func (r request) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(r.start))  //nolint:gosec // G115: positions are not negative
	return binary.BigEndian.AppendUint64(b, uint64(r.length)) //nolint:gosec // G115: lengths are not negative
}

func decodeRequest(b []byte) request {
	return request{
		start:  int64(binary.BigEndian.Uint64(b) & (1<<62 - 1)),
		length: int64(binary.BigEndian.Uint64(b[8:])), //nolint:gosec // G115: a negative length requests nothing
	}
}

// setupTimeout limits each blocking step of setting a connection up.
const setupTimeout = 10 * time.Second

// dial connects a blocking socket to addr; the caller owns it. The i-th
// connection comes from 127.0.0.(2 + i/4096), so that thousands find a port.
// The address must be one of 127.0.0.0/8, or a unix socket.
func dial(addr address, i int) (int, error) {
	fd, err := unix.Socket(addr.family(), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := connect(fd, addr, i); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return fd, nil
}

func connect(fd int, addr address, i int) error {
	timeout := unix.NsecToTimeval(int64(setupTimeout))
	err := errors.Join(
		os.NewSyscallError("setsockopt SO_SNDTIMEO", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)),
		os.NewSyscallError("setsockopt SO_RCVTIMEO", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)),
	)
	if addr.path == "" {
		// The port is chosen at connect, where it needs to be unique for this
		// destination only.
		source := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(2 + i/4096)}} //nolint:gosec // G115: far below 2^20 connections
		err = errors.Join(err,
			os.NewSyscallError("setsockopt TCP_NODELAY", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)),
			os.NewSyscallError("setsockopt IP_BIND_ADDRESS_NO_PORT", unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)),
			os.NewSyscallError("bind", unix.Bind(fd, source)))
	}
	if err != nil {
		return err
	}
	for {
		switch err := unix.Connect(fd, addr.sockaddr()); {
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

// greet sends the purpose of the connection on a blocking socket and waits
// until the backend has confirmed it.
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
func open(addr address, n int, role byte) ([]int, error) {
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
func read(fd int, p []byte) (int, error) { return readWith(unix.Read, fd, p) }

// write is write(2), retrying EINTR. It returns what was taken, which can be
// less than p, and 0, nil when the socket takes nothing now.
func write(fd int, p []byte) (int, error) { return writeWith(unix.Write, fd, p) }

// read is [read] as the poller makes its calls, for a descriptor that does not
// block.
func (p *poller) read(fd int, b []byte) (int, error) {
	if p.bare {
		return readWith(bareRead, fd, b)
	}
	return readWith(unix.Read, fd, b)
}

// write is [write] as the poller makes its calls, for a descriptor that does
// not block.
func (p *poller) write(fd int, b []byte) (int, error) {
	if p.bare {
		return writeWith(bareWrite, fd, b)
	}
	return writeWith(unix.Write, fd, b)
}

func readWith(call func(int, []byte) (int, error), fd int, p []byte) (int, error) {
	for {
		n, err := call(fd, p)
		if err == nil {
			return n, nil
		}
		if err == unix.EAGAIN { //nolint:errorlint // a bare errno, compared for every message
			return 0, unix.EAGAIN
		}
		if err != unix.EINTR { //nolint:errorlint // a bare errno, compared for every message
			return 0, os.NewSyscallError("read", err)
		}
	}
}

func writeWith(call func(int, []byte) (int, error), fd int, p []byte) (int, error) {
	for {
		n, err := call(fd, p)
		if err == nil {
			return n, nil
		}
		if err == unix.EAGAIN { //nolint:errorlint // a bare errno, compared for every message
			return 0, nil
		}
		if err != unix.EINTR { //nolint:errorlint // a bare errno, compared for every message
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

// poller is one epoll instance and the buffer for its events. Each event comes
// back with the number and the kind that were given to add. One thread waits and
// calls read and write; any may call the rest.
type poller struct {
	fd int
	// bare means that system calls are made past Go's scheduler, which costs
	// less; see bare.go. Its goroutine then keeps its thread without being
	// locked to it, which would be worse: every 10 ms the runtime stops a
	// goroutine that runs for long, and one that is locked to a thread goes on
	// only after another thread has woken it. It keeps its slot for Go code as
	// well, so the process needs one for each such thread, and one more.
	bare   bool
	events [256]unix.EpollEvent
}

// readable and writable are the kinds of events. An error or a hang-up counts
// as both: the next call on the descriptor returns it.
const (
	readable  = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	writable  = unix.EPOLLOUT | unix.EPOLLHUP | unix.EPOLLERR
	hungUp    = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	edgeRead  = unix.EPOLLIN | unix.EPOLLRDHUP | edge
	edgeBoth  = edgeRead | unix.EPOLLOUT
	edge      = 1 << 31 // unix.EPOLLET is negative on some ports
	levelRead = unix.EPOLLIN
	// oneOfMany wakes one of the threads that watch the same listener.
	oneOfMany = unix.EPOLLIN | unix.EPOLLEXCLUSIVE
)

func newPoller(s shape) (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	return &poller{fd: fd, bare: s.bare()}, nil
}

func (p *poller) close() { _ = unix.Close(p.fd) }

// add watches fd for interest; its events carry kind in Pad and tag in Fd.
func (p *poller) add(fd int, interest uint32, kind byte, tag int) error {
	return p.control(unix.EPOLL_CTL_ADD, fd, interest, kind, tag)
}

// modify changes what was given to add.
func (p *poller) modify(fd int, interest uint32, kind byte, tag int) error {
	return p.control(unix.EPOLL_CTL_MOD, fd, interest, kind, tag)
}

// remove stops watching fd.
func (p *poller) remove(fd int) error {
	return p.control(unix.EPOLL_CTL_DEL, fd, 0, 0, 0)
}

func (p *poller) control(op, fd int, interest uint32, kind byte, tag int) error {
	event := unix.EpollEvent{Events: interest, Fd: int32(tag), Pad: int32(kind)} //nolint:gosec // G115: tags are indices and descriptors
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.fd, op, fd, &event))
}

// wait returns the next events, none after the timeout. The slice is valid
// until the next call. A negative timeout waits without end.
func (p *poller) wait(timeout time.Duration) ([]unix.EpollEvent, error) {
	ms := -1
	if timeout >= 0 {
		ms = int((timeout + time.Millisecond - 1) / time.Millisecond)
	}
	var n int
	var err error
	if p.bare {
		n, err = bareWait(p.fd, p.events[:], ms)
	} else {
		n, err = unix.EpollWait(p.fd, p.events[:], ms)
	}
	if err != nil && !errors.Is(err, unix.EINTR) {
		return nil, os.NewSyscallError("epoll_wait", err)
	}
	return p.events[:max(n, 0)], nil
}
