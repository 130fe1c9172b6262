//go:build !portable

package relay

import (
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/fault"
	"understudy/internal/rawsocket"
	"understudy/internal/tcp"
)

// The life of a connection.
//
//	readingProxy ──▶ connecting ──▶ relaying ──▶ free
//	               ▲   │           │
//	               │   ▼           │ the host failed, or its epoch
//	              waiting ◀────────┘ ended, before a byte passed
//
// A client whose connect failed is not dropped: it waits, and is then connected
// to the host that is primary at that time.

// dial connects a new client to its host, or lets it wait for its turn.
func (l *loop) dial(i int32, c *conn) {
	if g := l.of(c).relay.gate.Load(); g != nil && g.paced && l.of(c).cfg().Hold > 0 {
		l.hold(i, c, l.now)
		return
	}
	l.dialNow(i, c)
}

// dialNow begins to connect to the client's host: the primary of this moment.
func (l *loop) dialNow(i int32, c *conn) {
	g := l.of(c).relay.gate.Load()
	if g == nil {
		l.hold(i, c, l.now+int64(l.of(c).cfg().Hold))
		return
	}
	if l.of(c).lapsed {
		l.hold(i, c, l.now+int64(leaseRetry))
		return
	}
	if c.epoch != g.epoch {
		c.epoch, c.home, c.ends = g.epoch, g.home, 0
	}
	l.worked = true
	c.began = l.now
	c.due = l.now + int64(l.of(c).cfg().ConnectTimeout)
	l.pend(i, c)
	l.connect(i, c, &g.to)
}

// connect begins the connect to a host.
func (l *loop) connect(i int32, c *conn, to *sockaddr) {
	fd, e := socket(to.Family())
	if e != 0 {
		l.connectFailed(i, c, wrap("socket", e))
		return
	}
	if e := prepare(fd, to.Family(), l.of(c).cfg().Source); e != 0 {
		closeFd(fd)
		l.connectFailed(i, c, wrap("bind", e))
		return
	}
	if l.of(c).relay.fixed.Lease != nil {
		// At once, and not with keep-alive later: the process may be stopped before.
		tcp.SetResetOnClose(int(fd), true)
		setUserTimeout(fd, l.of(c).cfg().hostTimeout)
	}
	c.fd[host] = fd
	c.ready[host] = 0
	if to.ephemeral {
		c.ready[host] = looped
	}
	if e := rawsocket.Connect(int(fd), &to.Addr); e != 0 && e != unix.EINPROGRESS {
		l.connectFailed(i, c, connectFault(to, e))
		return
	}
	if e := epollAdd(l.ep, fd, socketEvents, c.tag(i, host)); e != 0 {
		l.connectFailed(i, c, wrap("epoll_ctl", e))
	}
}

// connectFault is the error of a connect to an address. For a unix socket it
// names that, because some errors have another meaning there; see
// [fault.Local].
func connectFault(to *sockaddr, e unix.Errno) error {
	err := wrap("connect", e)
	if to.Family() == unix.AF_UNIX {
		return &net.OpError{Op: "dial", Net: "unix", Err: err}
	}
	return err
}

// connected handles events of a socket that is connecting.
func (l *loop) connected(i int32, c *conn, events uint32) {
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		if e := rawsocket.Error(int(c.fd[host])); e != 0 {
			l.connectFailed(i, c, wrap("connect", e))
			return
		}
	}
	if events&unix.EPOLLOUT == 0 {
		return
	}
	if c.ready[host]&looped != 0 && tcp.ConnectedToItself(int(c.fd[host])) {
		l.connectFailed(i, c, wrap("connect", unix.ECONNREFUSED))
		return
	}
	l.begin(i, c)
}

// connectFailed reports the error and lets the client wait for another host or
// another try.
func (l *loop) connectFailed(i int32, c *conn, err error) {
	l.closeHost(c)
	l.of(c).hosts.of(c.home).dials.failure(err)
	if fault.Local(err) {
		l.of(c).relay.local("connect", err)
	} else {
		l.of(c).relay.suspect(c.epoch, err)
	}
	wait := c.backoff()
	if isEarlyEnd(err) {
		wait = c.endedEarly(wait)
	}
	l.hold(i, c, l.now+wait)
}

// endedEarly counts an end before any byte, and returns how long the client waits
// for another host: wait, unless that was the last try.
func (c *conn) endedEarly(wait int64) int64 {
	c.ends = min(c.ends+1, endsMost)
	if c.ends < endsMost {
		return wait
	}
	return int64(endWait)
}

// backoff returns the time to wait before the next connect while there is a primary.
func (c *conn) backoff() int64 {
	c.tries = min(c.tries+1, 8)
	return int64(retryDelay(c.tries))
}

// closeHost closes the socket to the host; the client does not notice.
func (l *loop) closeHost(c *conn) {
	if c.fd[host] >= 0 {
		_ = tcp.Reset(int(c.fd[host])) // it may not be connected
		closeFd(c.fd[host])
		c.fd[host] = -1
	}
	c.ready[host] = 0
}

// hold lets the client wait until due, or until the gate opens.
func (l *loop) hold(i int32, c *conn, due int64) {
	if l.of(c).cfg().Hold == 0 {
		l.end(i, c, holdExpired)
		return
	}
	c.due = due
	l.pend(i, c)
	if c.heldAt == 0 {
		begin := l.now
		if c.moves == 0 {
			begin = c.accepted // it has had no host yet
		}
		c.heldAt = heldAt(begin)
	}
	l.become(c, waiting)
	l.watch(i, c)
	if c.broken(client) {
		l.clientLeft(i, c)
	}
}

// heldAt is a time as the record of a client has it: in milliseconds, never 0.
func heldAt(now int64) uint32 { return max(1, uint32(now/int64(time.Millisecond))) }

// waited returns how long a client of which hold has taken the time has waited.
func (l *loop) waited(c *conn) time.Duration {
	return time.Duration(heldAt(l.now)-c.heldAt) * time.Millisecond
}

// retry dials again for a client that waits, unless the primary has had its tries.
func (l *loop) retry(i int32, c *conn) {
	if g := l.of(c).relay.gate.Load(); g != nil && g.epoch == c.epoch && c.ends >= endsMost {
		l.silent(i, c)
		l.end(i, c, noByte)
		return
	}
	l.become(c, connecting)
	l.dialNow(i, c)
}

// clientLeft ends a connection whose client did not wait for its host.
func (l *loop) clientLeft(i int32, c *conn) { l.end(i, c, clientLeft) }

// begin starts the relaying between client and host.
func (l *loop) begin(i int32, c *conn) {
	l.unpend(i, c)
	l.become(c, relaying)
	if f := l.of(c).relay.connected; f != nil {
		f()
	}
	to := l.of(c).hosts.of(c.home)
	to.connects.add(time.Duration(l.now - c.began))
	to.dials.made.Add(1)
	to.dials.took.Observe(time.Duration(l.now - c.began))
	if c.heldAt != 0 {
		l.of(c).holds.served.Observe(l.waited(c))
		c.heldAt = 0
	}
	c.began = l.now
	if c.half[client].rewound {
		c.half[client].rewound = false
		c.replays = more(c.replays)
		l.of(c).count(func(s *Stats) { s.Replayed++ })
	}
	c.ready[host] |= writable
	// The client has most likely sent something by now, so it is read from at
	// once; if it has not, that costs one call.
	c.ready[client] |= readable | writable
	if version := l.of(c).cfg().SendProxy; version != 0 {
		l.sendProxy(i, c, version)
	}
	l.noteYoung()
	l.watch(i, c)
	l.serve(i, c)
}

// redial takes a connection that can be made again away from its host. What the
// client has sent, or its FIN, goes to the next one.
func (l *loop) redial(i int32, c *conn, due int64) {
	l.closeHost(c)
	l.discard(c, host)
	l.clearRequest(c)
	l.rewind(c)
	c.half[client].flags &^= passedOn | splicing
	c.half[host] = half{store: c.half[host].store}
	c.moves = more(c.moves)
	l.hold(i, c, due)
}

// settle checks whether a relayed connection is over, and returns false when it
// is, or when it was taken away from its host.
func (l *loop) settle(i int32, c *conn) bool {
	if !c.broken(client) && !c.broken(host) {
		if c.half[client].flags&c.half[host].flags&passedOn != 0 {
			why := clientClosed
			if c.half[host].first {
				why = hostClosed
			}
			l.end(i, c, why)
			return false
		}
		return true
	}
	if c.broken(client) && c.broken(host) {
		l.end(i, c, c.brokenBy())
		return false
	}
	from := client
	if c.broken(host) {
		from = host
		if c.moved[host] == 0 && c.half[host].flags&(ended|passedOn) == 0 {
			return true // the host's remaining bytes are read first
		}
		if l.canMove(c) && !l.endedByBoth(c) {
			// The host has not answered, so nothing is lost: the client waits for
			// another host.
			l.of(c).relay.suspect(c.epoch, errNoByte)
			c.since = l.now // its wait begins now, however long the host had it
			l.redial(i, c, l.now+c.endedEarly(c.backoff()))
			return false
		}
		if c.half[host].flags&ended != 0 && !l.holds(c, host) {
			l.silentEnd(i, c)
		}
	}
	// One side failed: what had arrived from it is delivered, then the other
	// side is reset, because a truncated stream must not look like a whole one.
	if c.half[from].flags&ended != 0 && !l.holds(c, from) && unsent(c.fd[from.other()]) == 0 {
		l.end(i, c, c.brokenBy())
		return false
	}
	if !c.pending {
		c.due = l.now + int64(lingerTimeout)
		l.pend(i, c)
	}
	return true
}

// silentEnd handles a host that has ended its stream, with or without a
// failure, with all its bytes read.
func (l *loop) silentEnd(i int32, c *conn) {
	if c.moved[host] != 0 && c.half[client].flags&ended == 0 && !c.broken(client) {
		l.of(c).relay.hostEnded(c.epoch, c.broken(host))
	}
	if c.moved[host] == 0 && c.half[client].flags&ended == 0 && l.now-c.began <= int64(silentWithin) {
		l.silent(i, c)
	}
}

// silent counts, once, a client whose connection the host ended without a byte.
func (l *loop) silent(i int32, c *conn) {
	if c.half[client].flags&unheard != 0 {
		return
	}
	c.half[client].flags |= unheard
	l.of(c).relay.silent(c.epoch, l.from(i, c))
}

// overdue does what is due for a connection of the pending list.
func (l *loop) overdue(i int32, c *conn) {
	switch c.state {
	case free:
	case readingProxy:
		if l.now >= c.due {
			l.deny(i, c)
		}
	case connecting:
		l.overdueConnect(i, c)
	case waiting:
		switch {
		case l.now-c.since >= int64(l.of(c).cfg().Hold):
			l.end(i, c, holdExpired)
		case l.now >= c.due:
			if g := l.of(c).relay.gate.Load(); g != nil && !g.paced {
				l.retry(i, c)
			}
		}
	case relaying: // a failed one
		if from := client; c.broken(client) || c.broken(host) {
			if c.broken(host) {
				from = host
			}
			left := unsent(c.fd[from.other()])
			if c.half[from].flags&ended == 0 || l.holds(c, from) {
				left++ // bytes that are still in this process
			}
			if left != int(c.since) { // progress
				c.since = int64(left)
				c.due = l.now + int64(lingerTimeout)
			}
			if left == 0 || l.now >= c.due {
				l.end(i, c, c.brokenBy())
			}
		}
	}
}

func (l *loop) overdueConnect(i int32, c *conn) {
	waited := time.Duration(l.now - c.began)
	if waited >= tick && c.ready[client]&watched == 0 {
		l.watch(i, c) // to notice when the client leaves
		if c.broken(client) {
			l.clientLeft(i, c)
			return
		}
	}
	if l.now < c.due {
		if waited >= SlowConnect {
			l.of(c).relay.suspect(c.epoch, errSlow)
		}
		return
	}
	l.connectFailed(i, c, fmt.Errorf("connect: %w", errTimeout))
}

// deny resets a client that the kernel accepted but the relay does not admit.
func (l *loop) deny(i int32, c *conn) {
	t := l.of(c)
	t.mu.Lock()
	t.counts.Denied++
	t.noHeader++
	t.mu.Unlock()
	l.drop(i, c, true)
}

// end closes a connection, counts it and reports it.
func (l *loop) end(i int32, c *conn, why reason) {
	if c.state == readingProxy {
		l.deny(i, c) // it was never counted
		return
	}
	if c.moved[host] != 0 {
		l.of(c).hosts.of(c.home).ended.Add(1)
	}
	t, o, was := l.of(c), why.outcome(), c.state
	if held := t.holds.of(o); held != nil && c.heldAt != 0 {
		held.Observe(l.waited(c))
	}
	lost := (c.moved[client] != 0 || c.opening > 0) && !l.answered(c) && !c.broken(client) && o != outcomeFinished && o != outcomeAborted
	ended := t.cfg().Ended
	var e Ending
	if ended != nil {
		e = l.ending(i, c, why)
	}
	l.drop(i, c, o != outcomeFinished)
	t.mu.Lock()
	t.counts.ended(o)
	if lost {
		t.counts.Unanswered++
	}
	t.admitted[was]--
	t.mu.Unlock()
	if ended != nil {
		ended(e)
	}
}

// ending describes a connection that ends now.
func (l *loop) ending(i int32, c *conn, why reason) Ending {
	t := l.of(c)
	d := time.Duration(l.now - c.accepted)
	e := Ending{
		Client: l.proxied[i].from, Host: t.relay.homes.name(c.home), Epoch: c.epoch,
		Started: l.clock.Add(-d), Duration: d, Sent: c.moved[client], Received: c.moved[host],
		Outcome: why.outcome().String(), Why: why.String(), Moved: int(c.moves), Replayed: int(c.replays),
	}
	if !e.Client.IsValid() { // its header named no client, or it was accepted before its end was to be recorded
		e.Client = peer(c.fd[client])
	}
	if why == fencedOff {
		e.FencedBy = t.fencedBy
	}
	return e
}

// brokenBy is the reason of a reset.
func (c *conn) brokenBy() reason {
	return brokenBy([2]bool{c.broken(client), c.broken(host)}, [2]bool{c.half[client].timedOut, c.half[host].timedOut})
}

// drop closes both sockets, with a reset if reset is true, and frees everything
// that the connection holds.
func (l *loop) drop(i int32, c *conn, reset bool) {
	delete(l.proxied, i)
	l.discard(c, client)
	l.discard(c, host)
	l.forget(c)
	l.clearRequest(c)
	for s, fd := range c.fd {
		if fd < 0 {
			continue
		}
		if reset {
			_ = tcp.Reset(int(fd)) // it may have ended
		} else if side(s) == host && l.of(c).relay.fixed.Lease != nil {
			tcp.SetResetOnClose(int(fd), false) // what is still on the way arrives
		}
		closeFd(fd)
	}
	l.release(i, c)
	l.live.Add(-1)
	l.of(c).relay.leave()
	l.of(c).relay.wasDropped()
	l.roomAgain()
}

// fence ends, or with reset false only counts, the connections of epochs before
// the given one. Those of the host that stays are carried into it. Of the others,
// those that can be made again lose their host and wait, patience longer than
// others.
func (l *loop) fence(t *tenant, before uint64, stays int32, reset bool, patience time.Duration) (counts fencedCounts) {
	l.updateTime()
	t.fencedBy = before
	l.each(t, func(i int32, c *conn) {
		if c.epoch >= before {
			return
		}
		counts[l.fenceOne(i, c, before, stays, reset, patience)]++
	})
	return counts
}

func (l *loop) fenceOne(i int32, c *conn, before uint64, stays int32, reset bool, patience time.Duration) fencedHow {
	switch c.state {
	case free, readingProxy, waiting:
		return fencedNot
	case connecting: // for as long as the host was away, or nearly
	case relaying:
		switch {
		case c.home == stays:
			c.epoch = before
			return fencedCarried
		case !c.broken(client) && l.canMove(c):
		case !reset:
			return fencedLeft
		default:
			l.end(i, c, fencedOff)
			return fencedCut
		}
	}
	c.since = l.now + int64(patience)
	l.redial(i, c, l.now)
	return fencedMoved
}
