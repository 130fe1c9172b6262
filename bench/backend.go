//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// The backend is the service behind the proxies: one process, three threads.
// The greeter accepts, reads what a connection is for and answers short ones
// itself; echo and source connections go to a thread of their own, so that a
// bulk stream never delays a small message here. Connections of these two are
// closed with a reset once the client has left, or each would leave the proxy
// a port in TIME_WAIT and the next measurement its memory.

// serveBackend serves on addr until a thread of it fails or the process is
// ended by a signal.
func serveBackend(addr netip.AddrPort) error {
	runtime.GOMAXPROCS(5) // a slot for each thread coming back from epoll_wait
	listener, err := listen(addr)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	greeting, err1 := newPoller()
	echoing, err2 := newPoller()
	sourcing, err3 := newPoller()
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	if err := greeting.add(listener, levelRead, listener); err != nil {
		return err
	}
	failed := make(chan error, 3)
	for _, thread := range []func() error{
		(&greeter{listener: listener, poller: greeting, echoes: echoing, sources: sourcing, partial: map[int][]byte{}}).run,
		(&echoServer{poller: echoing}).run,
		(&sourceServer{poller: sourcing}).run,
	} {
		go func() {
			runtime.LockOSThread()
			failed <- thread()
		}()
	}
	return <-failed
}

// listen returns a non-blocking listening socket, with TCP_NODELAY set for
// every connection it accepts.
func listen(addr netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	return fd, errors.Join(
		os.NewSyscallError("setsockopt SO_REUSEADDR", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)),
		os.NewSyscallError("setsockopt TCP_NODELAY", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)),
		os.NewSyscallError("bind", unix.Bind(fd, sockaddr(addr))),
		os.NewSyscallError("listen", unix.Listen(fd, 1<<15)), // the system cuts it to its maximum
	)
}

type greeter struct {
	listener        int
	poller          *poller
	echoes, sources *poller
	partial         map[int][]byte // of short connections whose message came in pieces
	buf             [shortLen]byte
}

func (g *greeter) run() error {
	for {
		events, err := g.poller.wait(-1)
		if err != nil {
			return err
		}
		for i := range events {
			if fd := int(events[i].Fd); fd != g.listener {
				g.greet(fd, true)
				continue
			}
			if err := g.accept(); err != nil {
				return err
			}
		}
	}
}

// accept takes every client that waits. Most have sent their first bytes by
// then and never need to be watched here.
func (g *greeter) accept() error {
	for {
		fd, _, err := unix.Accept4(g.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch {
		case err == nil:
			g.greet(fd, false)
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
		default:
			return os.NewSyscallError("accept4", err)
		}
	}
}

// greet reads the first bytes on fd and does what they ask for. A client that
// misbehaves is dropped: it notices, and it does the counting.
func (g *greeter) greet(fd int, watched bool) {
	got := append(g.buf[:0], g.partial[fd]...)
	n, err := read(fd, g.buf[len(got):])
	got = g.buf[:len(got)+n]
	switch {
	case errors.Is(err, unix.EAGAIN):
		if !watched && g.poller.add(fd, levelRead, fd) != nil {
			g.drop(fd)
		}
	case err != nil, n == 0:
		g.drop(fd)
	case got[0] == roleShort && len(got) == shortLen:
		_, _ = write(fd, got)
		delete(g.partial, fd)
		_ = unix.Close(fd) // in good order: the client waits for it
	case got[0] == roleShort:
		g.partial[fd] = append([]byte(nil), got...)
		if !watched && g.poller.add(fd, levelRead, fd) != nil {
			g.drop(fd)
		}
	case got[0] == roleEcho:
		g.handOver(fd, watched, g.echoes, edgeBoth)
	case got[0] == roleSource:
		g.handOver(fd, watched, g.sources, levelRead)
	default:
		g.drop(fd)
	}
}

// handOver confirms the role and gives fd to the thread behind to.
func (g *greeter) handOver(fd int, watched bool, to *poller, interest uint32) {
	if watched && g.poller.control(unix.EPOLL_CTL_DEL, fd, 0, fd) != nil {
		g.drop(fd)
		return
	}
	_, err := write(fd, g.buf[:1])
	if err != nil || to.add(fd, interest, fd) != nil {
		g.drop(fd)
	}
}

// drop ends a connection that was not greeted, or was ended by the client.
func (g *greeter) drop(fd int) {
	delete(g.partial, fd)
	abort([]int{fd})
}

// echoServer sends back what it reads.
type echoServer struct {
	poller  *poller
	pending [][]byte // by descriptor: what was read and the socket did not take
	buf     [64 << 10]byte
}

func (s *echoServer) run() error {
	for {
		events, err := s.poller.wait(-1)
		if err != nil {
			return err
		}
		for i := range events {
			fd := int(events[i].Fd)
			s.pending = grow(s.pending, fd)
			if s.echo(fd, events[i].Events&hungUp != 0) != nil {
				s.pending[fd] = nil
				abort([]int{fd})
			}
		}
	}
}

// echo moves what can be moved on fd; an error, the end of the stream
// included, means that the connection is over.
func (s *echoServer) echo(fd int, ending bool) error {
	if rest := s.pending[fd]; len(rest) > 0 {
		n, err := writeAll(fd, rest)
		s.pending[fd] = append(rest[:0], rest[n:]...)
		if err != nil || n < len(rest) {
			return err // the next writable event goes on
		}
	}
	for {
		n, err := read(fd, s.buf[:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil:
			return err
		case n == 0:
			return errEnded
		}
		taken, err := writeAll(fd, s.buf[:n])
		if err != nil {
			return err
		}
		if taken < n {
			s.pending[fd] = append(s.pending[fd], s.buf[taken:n]...)
			return nil
		}
		if n < len(s.buf) && !ending {
			return nil // drained: whatever comes now is a new event
		}
	}
}

// writeAll writes p until it is gone or the socket takes no more, which is
// what makes the next writable event come.
func writeAll(fd int, p []byte) (int, error) {
	for sent := 0; ; {
		n, err := write(fd, p[sent:])
		sent += n
		if err != nil || n == 0 || sent == len(p) {
			return sent, err
		}
	}
}

// sourceServer answers requests with pieces of the stream.
type sourceServer struct {
	poller  *poller
	streams []stream // by descriptor
}

// stream is what a source still owes on one connection.
type stream struct {
	position, left int64
	asked          [requestLen]byte // the request that is being read
	got            int              // bytes of it
}

func (s *sourceServer) run() error {
	for {
		events, err := s.poller.wait(-1)
		if err != nil {
			return err
		}
		for i := range events {
			fd := int(events[i].Fd)
			s.streams = grow(s.streams, fd)
			if s.serve(fd, &s.streams[fd]) != nil {
				s.streams[fd] = stream{}
				abort([]int{fd})
			}
		}
	}
}

// serve reads a request or writes the next chunk of the answer; one chunk, so
// that streams take turns.
func (s *sourceServer) serve(fd int, st *stream) error {
	if st.left <= 0 {
		n, err := read(fd, st.asked[st.got:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil:
			return err
		case n == 0:
			return errEnded
		}
		if st.got += n; st.got < requestLen {
			return nil
		}
		r := decodeRequest(st.asked[:])
		*st = stream{position: r.start, left: r.length}
		return s.poller.modify(fd, unix.EPOLLOUT, fd)
	}
	n, err := write(fd, patternAt(st.position, int(min(st.left, chunk))))
	if err != nil {
		return err
	}
	st.position += int64(n)
	if st.left -= int64(n); st.left == 0 {
		return s.poller.modify(fd, levelRead, fd)
	}
	return nil
}

// grow returns list with an element for index i.
func grow[T any](list []T, i int) []T {
	if i < len(list) {
		return list
	}
	return append(list, make([]T, i+1-len(list)+64)...)
}
