//go:build !linux || portable

package relay

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stream is a TCP or unix connection.
type stream interface {
	net.Conn
	CloseWrite() error
	SyscallConn() (syscall.RawConn, error)
}

// queue is a listening TCP or unix socket.
type queue interface {
	net.Listener
	SetDeadline(time.Time) error
	SyscallConn() (syscall.RawConn, error)
}

// past is a deadline that ends what waits.
var past = time.Unix(1, 0)

// listener is one claimed address. Only who holds the engine's gating calls its
// methods.
type listener struct {
	engine  *engine
	setting string // of its first claim
	claim   claim  // its socket is -1 while the address listens, or is lost
	addr    net.Addr
	queue   queue // nil while the address is merely claimed

	stop chan struct{} // closed to end the accepting; nil while there is none
	done chan struct{} // closed when it has ended
}

// newListener makes the listener of a claim, which is its own from then on.
func newListener(e *engine, c claim) *listener {
	return &listener{engine: e, setting: c.setting, claim: c, addr: c.addr}
}

// adopt has a socket that listens already, because somebody else made it, stay
// so: its clients wait instead of being refused.
func (ln *listener) adopt() error {
	if ln.claim.fd < 0 || !ln.claim.listens() {
		return nil
	}
	return ln.convert()
}

// listen takes clients into the queue from now on.
func (ln *listener) listen() error {
	if ln.queue != nil {
		return nil
	}
	if ln.claim.fd < 0 { // lost when it was refused last
		if err := ln.reclaim(); err != nil {
			return err
		}
	}
	if ln.claim.path == "" {
		// Connections of ours that are still open share the port: the address
		// can be claimed anew only if all of them have SO_REUSEADDR, which they
		// inherit.
		_ = unix.SetsockoptInt(ln.claim.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err := unix.Listen(ln.claim.fd, backlog); err != nil {
		return wrap("listen", err)
	}
	return ln.convert()
}

// convert hands the listening socket to the standard library. Where that fails
// the socket is lost.
func (ln *listener) convert() error {
	f := os.NewFile(uintptr(ln.claim.fd), ln.addr.String())
	ln.claim.fd = -1
	q, err := net.FileListener(f) // a duplicate
	_ = f.Close()
	if err != nil {
		return err
	}
	ln.queue = q.(queue)
	return nil
}

// reclaim binds the address again, without listening.
func (ln *listener) reclaim() error {
	var c claim
	var err error
	if a, ok := ln.addr.(*net.TCPAddr); ok {
		c, err = claimTCP(a.AddrPort())
	} else {
		c, err = claimUnix(ln.claim.path)
	}
	if err == nil {
		ln.claim = c
	}
	return err
}

// accept starts to accept clients, each of which is handed to admit.
func (ln *listener) accept(admit func(stream, <-chan struct{})) {
	ln.rest()
	_ = ln.queue.SetDeadline(time.Time{})
	stop, done := make(chan struct{}), make(chan struct{})
	ln.stop, ln.done = stop, done
	go func() {
		defer close(done)
		ln.engine.acceptFrom(ln.queue, stop, admit)
	}()
}

// rest stops the accepting: clients stay in the queue.
func (ln *listener) rest() {
	if ln.stop == nil {
		return
	}
	close(ln.stop)
	_ = ln.queue.SetDeadline(past)
	<-ln.done
	ln.stop, ln.done = nil, nil
}

// refuse resets who waits and refuses the next; the address stays claimed.
func (ln *listener) refuse() error {
	switch {
	case ln.queue == nil:
		return nil
	case ln.setting == given: // it cannot be made again
		ln.accept(func(s stream, _ <-chan struct{}) { abort(s) })
		return nil
	}
	ln.shut()
	return ln.reclaim()
}

// shut ends the listening. Linux ends it with the shutdown(2), even while a
// process that is being forked still holds a copy of the descriptor; others
// refuse that and end it with the close(2).
func (ln *listener) shut() {
	if raw, err := ln.queue.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
	_ = ln.queue.Close()
	ln.queue = nil
}

// close gives the address up.
func (ln *listener) close() {
	ln.rest()
	if ln.queue != nil {
		ln.shut()
	}
	ln.claim.close()
	ln.claim.fd = -1
}

// queued is how many clients wait to be accepted, 0 where that is not known.
func (ln *listener) queued() int {
	if _, tcp := ln.addr.(*net.TCPAddr); !tcp || ln.queue == nil {
		return 0
	}
	raw, err := ln.queue.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	_ = raw.Control(func(fd uintptr) { n = queueLength(int(fd)) })
	return n
}

// acceptFrom accepts clients until stop is closed.
func (e *engine) acceptFrom(q queue, stop <-chan struct{}, admit func(stream, <-chan struct{})) {
	for e.awaitRoom(stop) {
		c, err := q.Accept()
		switch {
		case err == nil:
			admit(c.(stream), stop)
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, net.ErrClosed):
			return // this is how we are asked to stop
		case IsLocal(err):
			// Accepting again at once would spin without freeing anything.
			e.local("accept", err)
			if !sleep(10*tick, stop) {
				return
			}
		default:
			// The connection died in the queue, or the network did; see
			// accept(2), Error handling.
			if !sleep(tick, stop) {
				return
			}
		}
	}
}

// acceptQueued accepts the clients that are in the queue, as many as there is
// room for, and does not wait for more.
func (e *engine) acceptQueued(ln *listener) {
	if ln.queue == nil {
		return
	}
	raw, err := ln.queue.SyscallConn()
	if err != nil {
		return
	}
	_ = ln.queue.SetDeadline(time.Now().Add(time.Second)) // for one that leaves meanwhile
	now := make(chan struct{})
	close(now) // where another listener takes the last place, this one does not wait for more
	for e.cfg.Load().room(e.liveCount()) {
		ready := false
		_ = raw.Control(func(fd uintptr) {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0) //nolint:gosec // a descriptor
			ready = err == nil && n > 0
		})
		if !ready {
			return
		}
		c, err := ln.queue.Accept()
		if err != nil {
			return
		}
		e.admit(c.(stream), now)
	}
}
