//go:build !portable

package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"understudy/internal/bind"
	"understudy/internal/rawsocket"
)

// tries makes the attempts of a canary that says nothing. Such an attempt is a descriptor
// that the event loops look after: no goroutine waits for it, and that is most of what one
// costs. There is one at a time.
type tries struct {
	mu  sync.Mutex // guards now and what it points to
	now *try       // nil for none
}

// try is the client's end of an attempt.
type try struct {
	fd   int32
	done func(error) // nil when it was called
	stop func() bool // of what ends the attempt with its context; nil until it is connected
}

// TryCanary begins an attempt of a canary that only wants to be accepted by a host, and
// calls done with nil when one has, or with why none did. Done may be called before
// TryCanary returns, or on a thread that moves clients' bytes, so it must return at once.
// When ctx ends the attempt is given up, and done may never be called. The connection then
// ends as a client's does that has finished.
//
// It returns false, and has done nothing, where only [Relay.DialCanary] can: for the first
// attempt, while something is left of the last one, for the socket files and PROXY headers
// of clients, and on other systems than Linux.
func (r *Relay) TryCanary(ctx context.Context, done func(error)) bool {
	if !r.canaries.one.TryLock() {
		return false
	}
	defer r.canaries.one.Unlock()
	twin := r.canaries.twin.Load()
	if twin == nil || twin.live.Load() > 0 || r.canaries.expected.Load() != nil || r.cfg.Load().AcceptProxy {
		return false
	}
	network, addr, err := r.canaryAddress()
	if err != nil || network != "tcp" {
		return false
	}
	at, err := netip.ParseAddrPort(addr)
	loops := r.plane.(*share).engine.loops() //nolint:forcetypeassert // there is no other one here
	if err != nil || len(loops) == 0 {
		return false
	}
	to := hostSockaddr(at.Addr(), at.Port())
	fd, e := socket(to.Family())
	if e != 0 {
		return false // and then the error is reported
	}
	t := &try{fd: fd, done: done}
	if !r.canaries.tries.begin(t) {
		closeFd(fd)
		return false
	}
	err = r.connectTry(fd, at, &to)
	if err == nil {
		err = r.canaries.tries.connecting(t)
	}
	if err != nil {
		r.canaries.expected.Store(nil)
		r.canaries.tries.fail(t, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(at), Err: err})
		return true
	}
	// The first loop accepts all clients.
	if err := r.canaries.tries.watch(ctx, t, loops[0].ep, r.plane.(*share).slot); err != nil { //nolint:forcetypeassert // as above
		r.canaries.tries.fail(t, err)
	}
	return true
}

// connectTry begins to connect to the relay at an address, as announce says.
func (r *Relay) connectTry(fd int32, at netip.AddrPort, to *sockaddr) error {
	from := rawsocket.Inet(netip.AddrPortFrom(at.Addr(), 0), bind.ZoneIndex(at.Addr()))
	if e := rawsocket.Bind(int(fd), &from); e != 0 {
		return wrap("bind", e)
	}
	r.canaries.expected.Store(&endName{addr: rawsocket.Own(int(fd))})
	if e := rawsocket.Connect(int(fd), &to.Addr); e != 0 && e != unix.EINPROGRESS {
		return wrap("connect", e)
	}
	return nil
}

// begin makes t the attempt of this moment, unless there is one.
func (k *tries) begin(t *try) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.now != nil {
		return false
	}
	k.now = t
	return true
}

// connecting returns why the connect of t has failed, which is known over loopback when
// connect has returned; nil if it has not.
func (k *tries) connecting(t *try) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.now != t || t.done == nil {
		return nil
	}
	if e := rawsocket.Error(int(t.fd)); e != 0 { // it is told only once
		return wrap("connect", e)
	}
	return nil
}

// watch has a loop notice when t is reset in the queue, and ends t with ctx. T may have
// been served meanwhile.
func (k *tries) watch(ctx context.Context, t *try, epoll int, slot int32) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.now != t {
		return nil
	}
	t.stop = context.AfterFunc(ctx, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.endLocked(t)
	})
	if t.done == nil {
		return nil
	}
	if e := epollAdd(epoll, t.fd, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLONESHOT, tag{slot: slotListener - slot, gen: genTry}); e != 0 {
		return wrap("epoll_ctl", e)
	}
	return nil
}

// genTry is the generation of the tag of an attempt; its slot is that of the listeners.
const genTry = -1

// endLocked closes t if it is the attempt of this moment.
func (k *tries) endLocked(t *try) {
	if t == nil || k.now != t {
		return
	}
	k.now = nil
	if t.stop != nil {
		t.stop()
	}
	closeFd(t.fd)
}

// fail ends t, which nobody has served.
func (k *tries) fail(t *try, err error) {
	k.mu.Lock()
	done := k.failLocked(t)
	k.mu.Unlock()
	done(err)
}

// failLocked closes t, and returns what has to be called with the reason.
func (k *tries) failLocked(t *try) func(error) {
	done := t.done
	t.done = nil
	k.endLocked(t)
	if done == nil {
		done = func(error) {}
	}
	return done
}

// served reports that a host has accepted the attempt. Its stream ends: a client that has
// finished would do that.
func (k *tries) served() {
	k.mu.Lock()
	var done func(error)
	if t := k.now; t != nil && t.done != nil {
		done, t.done = t.done, nil
		_ = shutdown(t.fd, unix.SHUT_WR) // it may be reset
	}
	k.mu.Unlock()
	if done != nil {
		done(nil)
	}
}

// dropped ends the attempt: the relay has closed its end.
func (k *tries) dropped() { k.look(true) }

// look fails the attempt if its stream has ended before a host has accepted it, and with
// over closes it in any case.
func (k *tries) look(over bool) {
	k.mu.Lock()
	t := k.now
	var err error
	var done func(error)
	switch {
	case t == nil:
	case t.done != nil:
		if err = endOf(t.fd); err == nil && over {
			err = io.EOF
		}
		if err != nil { // at once: the kernel tells a reset only once
			done = k.failLocked(t)
		}
	case over:
		k.endLocked(t)
	}
	k.mu.Unlock()
	if done != nil {
		done(err)
	}
}

// endOf returns how the stream of a client has ended that waits for its host; nil if it has
// not.
func endOf(fd int32) error {
	var b [1]byte
	switch n, e := recv(fd, b[:], unix.MSG_PEEK); {
	case e == errAgain:
		return nil
	case e != 0:
		return &net.OpError{Op: "read", Net: "tcp", Err: wrap("recv", e)}
	case n == 0:
		return io.EOF
	}
	return errors.New("something was received before a host accepted the connection")
}

// end closes what is left of an attempt.
func (k *tries) end() {
	k.mu.Lock()
	t := k.now
	k.mu.Unlock()
	if t != nil {
		k.fail(t, errClosed)
	}
}

// wasDropped calls dropped.
func (r *Relay) wasDropped() {
	if r.dropped != nil {
		r.dropped()
	}
}
