//go:build !portable

package relay

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// The life of a connection.
//
//	greeting ──▶ resolving ──▶ connecting ──▶ relaying ──▶ free
//	                  ▲            │             │
//	                  └── waiting ◀┴─────────────┘ the host failed, or its epoch
//	                                               ended, before a byte passed
//
// A client whose connect failed is not dropped: it waits, and is connected to
// whichever host is primary then.

// dial begins to look for the client's host: the primary of this moment.
func (l *loop) dial(i int32, c *conn) {
	g := l.engine.gate.Load()
	if g == nil {
		l.hold(i, c, l.now+int64(l.cfg().Hold))
		return
	}
	c.epoch = g.epoch
	c.address = 0
	c.began = l.now
	c.due = l.now + int64(l.cfg().ConnectTimeout)
	l.pend(i, c)
	if g.name == "" {
		l.connect(i, c, g.addr[:])
		return
	}
	c.state = resolving
	mine := c.tag(i, host)
	l.engine.lookup(g, func(addrs []sockaddr, err error) {
		l.post(func() { l.resolved(mine, g, addrs, err) })
	})
}

// resolved goes on with a connection whose host's name has been looked up.
func (l *loop) resolved(t tag, g *gate, addrs []sockaddr, err error) {
	i := t.slot >> 1
	c := l.at(i)
	if c.gen != t.gen || c.state != resolving || c.epoch != g.epoch {
		return // the client left, or the epoch is over
	}
	if err != nil {
		l.connectFailed(i, c, err)
		return
	}
	if len(addrs) > 1 {
		l.lookups[i] = addrs
	}
	l.connect(i, c, addrs)
}

// connect tries the next of a host's addresses.
func (l *loop) connect(i int32, c *conn, addrs []sockaddr) {
	to := &addrs[c.address]
	fd, e := socket(to.family)
	if e != 0 {
		l.connectFailed(i, c, wrap("socket", e))
		return
	}
	if e := l.engine.prepare(fd, to.family); e != 0 {
		closeFd(fd)
		l.connectFailed(i, c, wrap("bind", e))
		return
	}
	c.fd[host] = fd
	c.ready[host] = 0
	if to.ephemeral {
		c.ready[host] = looped
	}
	c.state = connecting
	if e := connect(fd, to); e != 0 && e != unix.EINPROGRESS {
		l.connectError(i, c, addrs, wrap("connect", e))
		return
	}
	if e := epollAdd(l.ep, fd, socketEvents, c.tag(i, host)); e != 0 {
		l.connectFailed(i, c, wrap("epoll_ctl", e))
		return
	}
	if int(c.address)+1 < len(addrs) {
		c.due = min(l.now+int64(addressTimeout), c.began+int64(l.cfg().ConnectTimeout))
	}
}

// connected is told that something happened to a socket that connects.
func (l *loop) connected(i int32, c *conn, events uint32) {
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		if e := socketError(c.fd[host]); e != 0 {
			l.connectError(i, c, l.addresses(i), wrap("connect", e))
			return
		}
	}
	if events&unix.EPOLLOUT == 0 {
		return
	}
	if c.ready[host]&looped != 0 && metItself(c.fd[host]) {
		l.connectError(i, c, l.addresses(i), wrap("connect", unix.ECONNREFUSED))
		return
	}
	l.begin(i, c)
}

// metItself says whether a socket is connected to itself, as happens when
// nobody listens on a loopback port that the system then picks as the source.
func metItself(fd int32) bool {
	sa, err := unix.Getsockname(int(fd))
	return err == nil && addrPort(sa) == peer(fd)
}

// addresses are those that connection i still has to try, the gate's one if its
// host is not a name.
func (l *loop) addresses(i int32) []sockaddr { return l.lookups[i] }

// connectError goes on with the next address, if there is one.
func (l *loop) connectError(i int32, c *conn, addrs []sockaddr, err error) {
	l.closeHost(c)
	if int(c.address)+1 < len(addrs) {
		c.address++
		c.due = c.began + int64(l.cfg().ConnectTimeout)
		l.connect(i, c, addrs)
		return
	}
	l.connectFailed(i, c, err)
}

// connectFailed lets the client wait for the outcome.
func (l *loop) connectFailed(i int32, c *conn, err error) {
	l.closeHost(c)
	if IsLocal(err) {
		l.engine.local("connect", err)
	} else {
		l.engine.suspect(c.epoch, err)
	}
	l.hold(i, c, l.now+c.backoff())
}

// backoff is how long to wait before the next connect while there is a primary.
func (c *conn) backoff() int64 {
	c.tries = min(c.tries+1, 8)
	return int64(retryDelay(c.tries))
}

// closeHost gives up the connection's host without a word to the client.
func (l *loop) closeHost(c *conn) {
	if c.fd[host] >= 0 {
		disconnect(c.fd[host])
		closeFd(c.fd[host])
		c.fd[host] = -1
	}
	c.ready[host] = 0
}

// hold lets the client wait until due, or until the gate opens.
func (l *loop) hold(i int32, c *conn, due int64) {
	delete(l.lookups, i)
	if l.cfg().Hold < 0 {
		l.end(i, c, outcomeExpired)
		return
	}
	c.due = due
	l.pend(i, c)
	if c.state != waiting {
		c.state = waiting
		l.held.Add(1)
	}
	l.watch(i, c)
	if c.broken(client) {
		l.gone(i, c)
	}
}

// unhold ends the wait, one way or the other.
func (l *loop) unhold(c *conn) {
	if c.state == waiting {
		c.state = resolving
		l.held.Add(-1)
	}
}

// retry dials again for a client that waits.
func (l *loop) retry(i int32, c *conn) {
	l.unhold(c)
	l.dial(i, c)
}

// gone ends a connection whose client did not wait for its host.
func (l *loop) gone(i int32, c *conn) { l.end(i, c, outcomeGone) }

// begin starts the relaying between client and host.
func (l *loop) begin(i int32, c *conn) {
	l.unpend(i, c)
	delete(l.lookups, i)
	c.state = relaying
	c.ready[host] |= writable
	// The client has most likely sent something by now, so it is read from at
	// once; if it has not, that costs one call.
	c.ready[client] |= readable | writable
	if version := l.cfg().SendProxy; version != 0 {
		l.introduce(i, c, version)
	}
	l.unguard()
	l.watch(i, c)
	l.serve(i, c)
}

// redial takes a connection over which no byte has passed away from its host.
// What the client has sent, or its FIN, goes to the next one.
func (l *loop) redial(i int32, c *conn, due int64) {
	l.closeHost(c)
	l.discard(c, host)
	c.half[client].flags &^= passedOn | splicing
	c.half[host].flags = 0
	l.hold(i, c, due)
}

// settle looks whether a relayed connection is over, and returns false when it
// is, or when it has left its host.
func (l *loop) settle(i int32, c *conn) bool {
	if !c.broken(client) && !c.broken(host) {
		if c.half[client].flags&c.half[host].flags&passedOn != 0 {
			l.end(i, c, outcomeFinished)
			return false
		}
		return true
	}
	if c.broken(client) && c.broken(host) {
		l.end(i, c, outcomeReset)
		return false
	}
	from := client
	if c.broken(host) {
		from = host
		if !c.exchanged() && c.half[host].flags&ended == 0 {
			return true // there are bytes of its to be read first
		}
		if !c.exchanged() && c.half[client].flags&passedOn == 0 {
			// Nothing was exchanged, so nothing is lost: the client waits for
			// what comes of it. (A host that resets once the client has ended
			// has only closed in its own way.)
			l.engine.suspect(c.epoch, errNoByte)
			l.redial(i, c, l.now+c.backoff())
			return false
		}
	}
	// One side failed: what had arrived from it is delivered, then the other
	// side is reset, because a truncated stream must not look like a whole one.
	if c.half[from].flags&ended != 0 && !l.holds(c, from) && unsent(c.fd[from.other()]) == 0 {
		l.end(i, c, outcomeReset)
		return false
	}
	if !c.pending {
		c.due = l.now + int64(lingerTimeout)
		l.pend(i, c)
	}
	return true
}

// overdue looks at a connection of the pending list.
func (l *loop) overdue(i int32, c *conn) {
	switch c.state {
	case free:
	case greeting:
		if l.now >= c.due {
			l.deny(i, c)
		}
	case resolving, connecting:
		l.overdueConnect(i, c)
	case waiting:
		switch {
		case l.now-c.since >= int64(l.cfg().Hold):
			l.end(i, c, outcomeExpired)
		case l.now >= c.due && l.engine.gate.Load() != nil:
			l.retry(i, c)
		}
	case relaying: // a failed one
		if from := client; c.broken(client) || c.broken(host) {
			if c.broken(host) {
				from = host
			}
			left := unsent(c.fd[from.other()])
			if c.half[from].flags&ended == 0 || l.holds(c, from) {
				left++ // not all of it has come that far
			}
			if left != int(c.since) { // progress
				c.since = int64(left)
				c.due = l.now + int64(lingerTimeout)
			}
			if left == 0 || l.now >= c.due {
				l.end(i, c, outcomeReset)
			}
		}
	}
}

func (l *loop) overdueConnect(i int32, c *conn) {
	waited := time.Duration(l.now - c.began)
	if waited >= tick && c.ready[client]&watched == 0 {
		l.watch(i, c) // to hear when it leaves
		if c.broken(client) {
			l.gone(i, c)
			return
		}
	}
	if l.now < c.due {
		if waited >= slowConnect && c.state == connecting {
			l.engine.suspect(c.epoch, errSlow)
		}
		return
	}
	if c.state == connecting {
		l.connectError(i, c, l.addresses(i), fmt.Errorf("connect: %w", errTimeout))
		return
	}
	l.connectFailed(i, c, fmt.Errorf("resolve: %w", errTimeout))
}

// deny resets a client that the kernel accepted but that is not let in.
func (l *loop) deny(i int32, c *conn) {
	l.mu.Lock()
	l.counts.Denied++
	l.mu.Unlock()
	l.drop(i, c, true)
}

// end closes a connection and counts it.
func (l *loop) end(i int32, c *conn, o outcome) {
	if c.state == greeting {
		l.deny(i, c) // it was never counted
		return
	}
	if l.engine.log.IsDebug() {
		l.engine.log.Debug("connection ended", "client", peer(c.fd[client]), "epoch", c.epoch, "outcome", o.String(),
			"sent", c.moved[client], "received", c.moved[host])
	}
	l.drop(i, c, o != outcomeFinished)
	l.mu.Lock()
	l.counts.ended(o)
	l.mu.Unlock()
}

// close1 closes both sockets, with a reset unless the streams ended cleanly,
// and frees all the connection has.
func (l *loop) drop(i int32, c *conn, reset bool) {
	l.unhold(c)
	delete(l.lookups, i)
	delete(l.proxied, i)
	l.discard(c, client)
	l.discard(c, host)
	for _, fd := range c.fd {
		if fd < 0 {
			continue
		}
		if reset {
			disconnect(fd)
		}
		closeFd(fd)
	}
	l.release(i, c)
	l.live.Add(-1)
	l.engine.leave()
	if l.paused != 0 {
		l.paused = l.now // there may be room again
	}
}

// fence ends, or with reset false only counts, the connections of epochs before
// the given one. Those over which no byte has passed lose their host and wait,
// patience longer than others.
func (l *loop) fence(before uint64, reset bool, patience time.Duration) (left, cut, moved int) {
	l.tell()
	l.each(func(i int32, c *conn) {
		if c.epoch >= before {
			return
		}
		switch c.state {
		case free, greeting, waiting:
		case resolving, connecting:
			moved++
			c.since = l.now + int64(patience)
			l.redial(i, c, l.now)
		case relaying:
			switch {
			case !c.exchanged() && !c.broken(client):
				moved++
				c.since = l.now + int64(patience)
				l.redial(i, c, l.now)
			case reset:
				cut++
				l.end(i, c, outcomeFenced)
			default:
				left++
			}
		}
	})
	return left, cut, moved
}
