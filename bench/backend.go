//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The backend is the service behind the proxies: one process, with as many
// threads as its shape says. Each thread is a worker, which serves connections
// of every role; the shape says which worker gets a connection once it is
// greeted. Echo and source connections are closed with a reset once the client
// has left, otherwise each would leave the proxy a port in TIME_WAIT, and its
// memory to the next measurement.

// serveBackend serves on addrs in shape s until a thread of it fails or the
// process is ended by a signal.
func serveBackend(s shape, addrs []address) error {
	workers, accepting, err := hire(s)
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		listener, err := listen(addr)
		if err != nil {
			return fmt.Errorf("listen on %s: %w", addr, err)
		}
		for _, w := range workers[:accepting] {
			if err := w.poller.add(listener, oneOfMany, kindListener, listener); err != nil {
				return err
			}
		}
	}
	runtime.GOMAXPROCS(len(workers) + 2) // a slot for each thread coming back from epoll_wait
	failed := make(chan error, len(workers))
	for _, w := range workers {
		go func() {
			if s == usual { // the others: see poller.bare
				runtime.LockOSThread()
			}
			failed <- w.run()
		}()
	}
	return <-failed
}

// hire makes the workers of shape s, of which the first few accept.
func hire(s shape) (workers []*worker, accepting int, err error) {
	n := s.clients()
	if s == usual {
		n = 3
	}
	for range n {
		p, err := newPoller(s)
		if err != nil {
			return nil, 0, err
		}
		workers = append(workers, &worker{poller: p, partial: map[int][]byte{}})
	}
	if s == usual {
		// A bulk stream never delays a small message here.
		for _, w := range workers {
			w.serves = func(role byte) *poller {
				if role == roleEcho {
					return workers[1].poller
				}
				return workers[2].poller
			}
		}
		return workers, 1, nil
	}
	var turn atomic.Uint32
	for _, w := range workers {
		w.serves = func(byte) *poller { return workers[int(turn.Add(1))%n].poller }
	}
	return workers, n, nil
}

// listen returns a non-blocking listening socket, with TCP_NODELAY set for
// every TCP connection it accepts. Every user may connect to a unix socket.
func listen(addr address) (int, error) {
	fd, err := unix.Socket(addr.family(), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if addr.path == "" {
		err = errors.Join(
			os.NewSyscallError("setsockopt SO_REUSEADDR", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)),
			os.NewSyscallError("setsockopt TCP_NODELAY", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)))
	}
	err = errors.Join(err, os.NewSyscallError("bind", unix.Bind(fd, addr.sockaddr())))
	if addr.path != "" && err == nil {
		err = os.Chmod(addr.path, 0o666) //nolint:gosec // G302: proxies run as another user
	}
	return fd, errors.Join(err, os.NewSyscallError("listen", unix.Listen(fd, 1<<15))) // the system limits it to its maximum
}

// worker is one thread of the backend.
type worker struct {
	poller  *poller
	serves  func(role byte) *poller // of the worker that gets a connection
	partial map[int][]byte          // of short connections whose message came in pieces
	pending [][]byte                // by descriptor: bytes to echo that the socket did not take
	streams []stream                // by descriptor
	buf     [64 << 10]byte
}

// stream holds the bytes that a source still has to send on one connection.
type stream struct {
	position, left int64
	request        [requestLen]byte // the request that is being read
	got            int              // bytes of it
}

func (w *worker) run() error {
	for {
		events, err := w.poller.wait(-1)
		if err != nil {
			return err
		}
		for i := range events {
			fd := int(events[i].Fd)
			switch events[i].Pad {
			case kindListener:
				if err := w.accept(fd); err != nil {
					return err
				}
			case kindNew:
				w.greet(fd, true)
			case roleEcho:
				w.pending = grow(w.pending, fd)
				if w.echo(fd, events[i].Events&hungUp != 0) != nil {
					w.pending[fd] = nil
					abort([]int{fd})
				}
			case roleSource:
				w.streams = grow(w.streams, fd)
				if w.serve(fd, &w.streams[fd]) != nil {
					w.streams[fd] = stream{}
					abort([]int{fd})
				}
			}
		}
	}
}

// accept takes every client that waits. Most have sent their first bytes by
// then and never need to be watched before they are greeted.
func (w *worker) accept(listener int) error {
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch {
		case err == nil:
			w.greet(fd, false)
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
		default:
			return os.NewSyscallError("accept4", err)
		}
	}
}

// greet reads the first bytes on fd and does what they request. A client that
// misbehaves is dropped: the client notices and counts it.
func (w *worker) greet(fd int, watched bool) {
	got := append(w.buf[:0], w.partial[fd]...)
	n, err := w.poller.read(fd, w.buf[len(got):shortLen])
	got = w.buf[:len(got)+n]
	switch {
	case errors.Is(err, unix.EAGAIN):
		if !watched && w.poller.add(fd, levelRead, kindNew, fd) != nil {
			w.drop(fd)
		}
	case err != nil, n == 0:
		w.drop(fd)
	case got[0] == roleShort && len(got) == shortLen:
		_, _ = w.poller.write(fd, got)
		delete(w.partial, fd)
		_ = unix.Close(fd) // cleanly: the client waits for it
	case got[0] == roleShort:
		w.partial[fd] = append([]byte(nil), got...)
		if !watched && w.poller.add(fd, levelRead, kindNew, fd) != nil {
			w.drop(fd)
		}
	case got[0] == roleEcho:
		w.handOver(fd, watched, got[0], edgeRead)
	case got[0] == roleSource:
		w.handOver(fd, watched, got[0], levelRead)
	default:
		w.drop(fd)
	}
}

// handOver confirms the role and gives fd to the worker that serves it.
func (w *worker) handOver(fd int, watched bool, role byte, interest uint32) {
	if watched && w.poller.remove(fd) != nil {
		w.drop(fd)
		return
	}
	_, err := w.poller.write(fd, []byte{role})
	if err != nil || w.serves(role).add(fd, interest, role, fd) != nil {
		w.drop(fd)
	}
}

// drop ends a connection that was not greeted, or was ended by the client.
func (w *worker) drop(fd int) {
	delete(w.partial, fd)
	abort([]int{fd})
}

// echo sends back what it reads on fd; an error, the end of the stream
// included, means that the connection is over.
func (w *worker) echo(fd int, ending bool) error {
	if rest := w.pending[fd]; len(rest) > 0 {
		n, err := w.writeAll(fd, rest)
		w.pending[fd] = append(rest[:0], rest[n:]...)
		if err != nil || n < len(rest) {
			return err // the next writable event goes on
		}
	}
	for {
		n, err := w.poller.read(fd, w.buf[:])
		switch {
		case err == unix.EAGAIN: //nolint:errorlint // a bare errno, compared for every message
			return nil
		case err != nil:
			return err
		case n == 0:
			return errEnded
		}
		taken, err := w.writeAll(fd, w.buf[:n])
		if err != nil {
			return err
		}
		if taken < n {
			w.pending[fd] = append(w.pending[fd], w.buf[taken:n]...)
			return w.poller.modify(fd, edgeBoth, roleEcho, fd)
		}
		if n < len(w.buf) && !ending {
			return nil // drained: further bytes cause a new event
		}
	}
}

// writeAll writes p until all of it is written or the socket takes no more, so
// that the next writable event comes.
func (w *worker) writeAll(fd int, p []byte) (int, error) {
	for sent := 0; ; {
		n, err := w.poller.write(fd, p[sent:])
		sent += n
		if err != nil || n == 0 || sent == len(p) {
			return sent, err
		}
	}
}

// serve reads a request or writes the next chunk of the answer; one chunk, so
// that streams take turns.
func (w *worker) serve(fd int, st *stream) error {
	if st.left <= 0 {
		n, err := w.poller.read(fd, st.request[st.got:])
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
		r := decodeRequest(st.request[:])
		*st = stream{position: r.start, left: r.length}
		return w.poller.modify(fd, unix.EPOLLOUT, roleSource, fd)
	}
	n, err := w.poller.write(fd, patternAt(st.position, int(min(st.left, chunk))))
	if err != nil {
		return err
	}
	st.position += int64(n)
	if st.left -= int64(n); st.left == 0 {
		return w.poller.modify(fd, levelRead, roleSource, fd)
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
