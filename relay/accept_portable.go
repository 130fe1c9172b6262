//go:build !linux || portable

package relay

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/fault"
)

// stream is a TCP or unix connection.
type stream interface {
	net.Conn
	CloseWrite() error
	SyscallConn() (syscall.RawConn, error)
}

// deadlined is a TCP or unix listener.
type deadlined interface{ SetDeadline(t time.Time) error }

// past is a deadline that makes blocked calls return at once.
var past = time.Unix(1, 0)

// accepting is the state of one listener's accept goroutine.
type accepting struct {
	halt context.CancelFunc
	done chan struct{} // closed when it has ended
}

// accept starts to accept clients, unless that was started before.
func (p *goroutines) accept(ln *listener) {
	if _, ok := p.accepting[ln]; ok {
		return
	}
	ctx, halt := context.WithCancel(context.Background())
	done := make(chan struct{})
	p.accepting[ln] = accepting{halt, done}
	q, err := ln.Listener()
	go func() {
		defer close(done)
		for err != nil {
			p.relay.local("fcntl", err)
			if !sleep(10*tick, ctx.Done()) {
				return
			}
			q, err = ln.Listener()
		}
		closed := make(chan struct{})
		context.AfterFunc(ctx, func() { _ = q.Close(); close(closed) })
		p.acceptFrom(q, ctx.Done())
		<-closed
	}()
}

// rest stops the accepting: clients stay in the queue.
func (p *goroutines) rest(ln *listener) {
	if a, ok := p.accepting[ln]; ok {
		a.halt()
		<-a.done
		delete(p.accepting, ln)
	}
}

// acceptFrom accepts clients until stop is closed.
func (p *goroutines) acceptFrom(q net.Listener, stop <-chan struct{}) {
	for p.awaitRoom(stop) {
		c, err := q.Accept()
		switch {
		case err == nil:
			p.admit(c.(stream), stop)
		case errors.Is(err, net.ErrClosed):
			return // stop is closed
		case fault.Local(err):
			// Accepting again at once would busy-loop without freeing anything.
			p.relay.local("accept", err)
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
func (p *goroutines) acceptQueued(ln *listener) {
	if !ln.Listening() {
		return
	}
	q, err := ln.Listener()
	if err != nil {
		return
	}
	defer q.Close()
	_ = q.(deadlined).SetDeadline(time.Now().Add(time.Second)) // in case the client leaves before it is accepted
	now := make(chan struct{})
	close(now) // if another listener takes the last place, this one does not wait for room
	for p.relay.cfg.Load().room(p.relay.live.Load()) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(ln.FD), Events: unix.POLLIN}}, 0) //nolint:gosec // a descriptor
		if err != nil || n == 0 {
			return
		}
		c, err := q.Accept()
		if err != nil {
			return
		}
		p.admit(c.(stream), now)
	}
}
