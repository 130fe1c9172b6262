//go:build !portable

package relay

import (
	"golang.org/x/sys/unix"
)

// How a byte travels.
//
// A client's segment makes its socket readable; epoll reports that to the loop
// that owns the connection, once (edge-triggered). The loop notes "readable" in
// the connection's record and pumps that direction:
//
//	recv(client, room for 32 KiB) → send(host)
//
// through a buffer that belongs to the loop: a large piece at once, a small one
// together with the others of the same batch of events ([loop.sendBatch]).
// Bytes that send does not take are kept in a pooled buffer until epoll reports
// that the host is writable again; nothing more is read from the client
// meanwhile, so TCP's own window slows it down.
//
// A read that fills all the room indicates bulk. The direction then changes to
// splice(2): from the socket into a pipe and from the pipe into the other
// socket, without a copy to user space. A splice that brings little, or
// nothing, changes it back. A pipe is borrowed from the loop's pool for as long
// as it holds bytes or the turn lasts.
//
// A direction moves at most [turn] bytes before others have their turn; bulk
// directions wait in a queue, and between two calls of epollWait one of them
// gets one turn, so a small message never waits for more than one turn.
//
// The end of a stream is passed on as it was: a FIN as a half-close once all
// bytes before it are sent; a failure as a reset of the other side once all
// bytes that had arrived before it are delivered ([loop.settle]).

const (
	// turn is the number of bytes that one direction moves before others have their turn.
	turn = 512 << 10

	// spliceChunk is the length that one splice requests. On loopback one slot of
	// a pipe holds 32 KiB, so without a bound a pipe would hold megabytes.
	spliceChunk = 256 << 10

	// keepSmall is the most that a buffer holds for a peer that takes nothing,
	// as long as pipes are available.
	keepSmall = 8 << 10

	// spliceWorth is the least that one splice must bring to go on that way:
	// below, two system calls for each piece cost more than the copy.
	spliceWorth = 16 << 10
)

// pump moves bytes of a connection from side s to the other one until the
// source is drained, the destination is full, or the turn is over; only then it
// returns true.
//
// Invariant: when it returns false, either an event will come that makes more
// possible, or the direction is over (ended, or its destination has failed).
func (l *loop) pump(i int32, c *conn, s side) (more bool) {
	h := &c.half[s]
	o := s.other()
	for left := turn; left > 0; {
		if c.broken(o) {
			if c.exchanged() {
				l.discard(c, s) // the destination has failed: there is nothing to deliver to
			}
			return false
		}
		if h.store != 0 {
			n, done := l.flush(c, s)
			left -= n
			if !done {
				return false
			}
		}
		if h.flags&ended != 0 {
			l.passEnd(i, c, s)
			return false
		}
		if c.ready[s]&readable == 0 || c.ready[o]&writable == 0 {
			l.unpipe(c, s)
			return false
		}
		if h.flags&splicing != 0 && c.ready[s]&urgent == 0 {
			n, done := l.pumpSpliced(c, s)
			left -= n
			if !done {
				return false
			}
			continue
		}
		n, done := l.pumpCopied(i, c, s)
		left -= n
		if !done {
			return false
		}
	}
	l.unpipe(c, s)
	return true
}

// pumpCopied moves one piece through the loop's buffer. It returns false when the
// direction cannot go on now.
func (l *loop) pumpCopied(i int32, c *conn, s side) (n int, again bool) {
	h := &c.half[s]
	l.unpipe(c, s) // after an urgent byte the direction may still have a pipe
	if c.ready[s]&urgent != 0 && !l.passUrgent(c, s) {
		return 0, false
	}
	// While no pipe is available, bytes are only peeked at before they are sent,
	// so bytes that the peer does not take stay in the kernel.
	look := 0
	if l.pipes.exhausted(l.clock) {
		look = unix.MSG_PEEK
	}
	room := l.batch.room()
	n, e := recv(c.fd[s], room, look)
	switch {
	case e == errAgain && !c.broken(s):
		c.ready[s] &^= readable | urgent
		return 0, false
	case e != 0:
		c.readFailed(s, e)
		return 0, false
	case n == 0:
		h.flags |= ended
		return 0, true // for pump to pass it on
	case n < chunk:
		// A short read has drained the socket: no second call is needed to get
		// EAGAIN. But an end of the stream that epoll has already announced will not
		// be announced again, nor the bytes behind an urgent one.
		if c.ready[s]&(hungUp|failed|urgent) == 0 {
			c.ready[s] &^= readable
		} else if look == 0 && c.ready[s]&(failed|urgent) == 0 {
			n += l.readEnd(c, s, room[n:])
		}
	default:
		h.flags |= splicing
		if s == client {
			l.giveUp(c) // bulk is no opening, and what goes through pipes is not kept
		}
	}
	if look == 0 && s == client {
		l.remember(c, room[:n])
	}
	if look == 0 && l.batch.waits(c, s, n) {
		l.batch.put(i, c, s, n)
		return n, false
	}
	return n, l.sendCopied(c, s, room[:n], look)
}

// readEnd reads on behind bytes that have not been sent yet, because the end of
// the stream has been announced. When that is next it can leave with them, in one
// segment and with one wake-up of the other side.
func (l *loop) readEnd(c *conn, s side, room []byte) (n int) {
	n, e := recv(c.fd[s], room, 0)
	switch {
	case e == errAgain:
		n = 0
	case e != 0:
		n = 0
		c.readFailed(s, e)
	case n == 0:
		c.half[s].flags |= ended
	}
	return n
}

// sendCopied sends bytes that were read from side s, or with look only peeked
// at. It returns false when the direction cannot go on now.
func (l *loop) sendCopied(c *conn, s side, p []byte, look int) (again bool) {
	o := s.other()
	flags := 0
	if c.half[s].flags&ended != 0 && !c.broken(s) {
		flags = unix.MSG_MORE // until shutdown sends it, in a moment
	}
	sent, e := send(c.fd[o], p, flags)
	if e != 0 {
		sent = 0
		if e != errAgain {
			c.fail(o, e)
			// Nothing was taken. If nothing ever was, these bytes go to the
			// next host instead.
			if !c.exchanged() && look == 0 {
				c.half[s].store = l.buffers.keep(p) + 1
			}
			return false
		}
	}
	l.count(c, s, sent)
	if look != 0 && sent > 0 {
		_, _ = recv(c.fd[s], p[:sent], 0)
		if s == client {
			l.remember(c, p[:sent])
		}
	}
	if sent == len(p) {
		return c.ready[s]&readable != 0
	}
	l.full(c, o)
	if look != 0 {
		c.ready[s] |= readable
	} else {
		l.keep(c, s, p[sent:])
	}
	return false
}

// keep stores bytes that were read from side s and that the other side did not
// take. A large amount goes into a pipe, so that a peer that takes nothing
// occupies little memory of this process.
func (l *loop) keep(c *conn, s side, rest []byte) {
	if len(rest) > keepSmall {
		if i, ok := l.pipes.take(l.clock); ok {
			p := &l.pipes.all[i]
			if p.n = write(p.w, rest); p.n == len(rest) {
				c.half[s].store = -i - 1
				return
			}
			l.pipes.put(i)
		}
	}
	c.half[s].store = l.buffers.keep(rest) + 1
}

// pumpSpliced moves one piece through a pipe. An EAGAIN or an end of stream is
// not trusted: splice returns either in front of an urgent byte. The direction
// goes back to plain reads, which give the true state. An error is trusted,
// because the call that reports it clears it from the socket: a read after it
// would see a clean end.
func (l *loop) pumpSpliced(c *conn, s side) (n int, again bool) {
	h := &c.half[s]
	if h.store == 0 {
		i, ok := l.pipes.take(l.clock)
		if !ok {
			return 0, l.unsplice(c, s)
		}
		h.store = -i - 1
	}
	p := &l.pipes.all[-h.store-1]
	n, e := splice(c.fd[s], p.w, spliceChunk)
	if e != 0 || n <= 0 {
		l.unpipe(c, s)
		switch e {
		case 0, errAgain:
		case unix.EINVAL, unix.ENOMEM: // of the call, not of the socket
		default:
			c.readFailed(s, e)
			return 0, false
		}
		return 0, l.unsplice(c, s)
	}
	p.n = n
	l.load.spliced += n
	worth := n >= spliceWorth
	_, done := l.flush(c, s)
	if !worth && !l.unsplice(c, s) {
		done = false
	}
	return n, done
}

// unsplice has direction s go on with plain reads. It returns false when there
// is nothing to be read now.
//
// The cause may be an urgent byte that epoll has not reported yet, and a read
// would skip it. Once the source has been seen to have something, or nothing,
// it is certain whether that is the urgent byte.
func (l *loop) unsplice(c *conn, s side) (again bool) {
	h := &c.half[s]
	h.flags &^= splicing
	l.unpipe(c, s)
	_, e := recv(c.fd[s], l.batch.room()[:1], unix.MSG_PEEK)
	switch {
	case e != 0 && (e != errAgain || c.broken(s)):
		c.readFailed(s, e)
		return false
	case atMark(c.fd[s]):
		c.ready[s] |= urgent
	case e == errAgain:
		c.ready[s] &^= readable
		return false
	}
	return true
}

// flush sends what direction s holds. It returns true when all of it is sent.
func (l *loop) flush(c *conn, s side) (n int, done bool) {
	h := &c.half[s]
	o := s.other()
	if h.store < 0 && l.pipes.all[-h.store-1].n == 0 {
		if h.flags&splicing == 0 {
			l.unpipe(c, s)
		}
		return 0, true
	}
	if c.ready[o]&writable == 0 {
		return 0, false
	}
	var e unix.Errno
	if h.store > 0 {
		b := &l.buffers.all[h.store-1]
		var sent int
		sent, e = send(c.fd[o], b.rest, 0)
		if e == 0 {
			b.rest = b.rest[sent:]
			n = sent
			if len(b.rest) == 0 {
				l.buffers.put(h.store - 1)
				h.store = 0
			}
		}
		l.count(c, s, sent)
	} else {
		p := &l.pipes.all[-h.store-1]
		for p.n > 0 && e == 0 {
			var sent int
			sent, e = splice(p.r, c.fd[o], p.n)
			if e == 0 && sent <= 0 {
				e = unix.EPIPE // a pipe with bytes in it never ends
			}
			if e == 0 {
				p.n -= sent
				n += sent
			}
		}
		l.count(c, s, n)
		if p.n == 0 && h.flags&splicing == 0 {
			l.unpipe(c, s)
		}
	}
	switch {
	case e == 0 && !l.holds(c, s):
		return n, true
	case e == 0 || e == errAgain:
		l.full(c, o)
		return n, false
	default:
		c.fail(o, e)
		return n, false
	}
}

// holds reports whether bytes of direction s wait in this process.
func (l *loop) holds(c *conn, s side) bool {
	st := c.half[s].store
	return st > 0 || st < 0 && l.pipes.all[-st-1].n > 0
}

// unpipe returns an empty pipe to the pool: no direction keeps one while it
// waits for events.
func (l *loop) unpipe(c *conn, s side) {
	h := &c.half[s]
	if h.store < 0 && l.pipes.all[-h.store-1].n == 0 {
		l.pipes.put(-h.store - 1)
		h.store = 0
	}
}

// discard drops what direction s holds.
func (l *loop) discard(c *conn, s side) {
	h := &c.half[s]
	switch {
	case h.store > 0:
		l.buffers.put(h.store - 1)
	case h.store < 0:
		l.pipes.put(-h.store - 1)
	}
	h.store = 0
}

// passEnd passes the end of the stream of side s on to the other side, once. If
// the other direction is over too, closing the socket does that.
//
// A host that is killed before it has sent a byte ends its streams in the same
// way as a host that has nothing to send. So an end before any byte counts as a
// failure at first, and is passed on when it happens again with the next
// connect.
func (l *loop) passEnd(i int32, c *conn, s side) {
	h := &c.half[s]
	if h.flags&passedOn != 0 || c.broken(s) {
		return
	}
	if s == host && c.ends == 0 && l.canMove(c) && !l.endedByBoth(c) {
		c.fail(host, 0)
		return
	}
	if s == host {
		l.silentEnd(i, c)
	}
	h.flags |= passedOn
	if c.half[s.other()].flags&passedOn != 0 {
		return
	}
	h.first = true
	if e := shutdown(c.fd[s.other()], unix.SHUT_WR); e != 0 {
		c.fail(s.other(), e)
	}
}

// passUrgent forwards the urgent byte of side s when it is next (see tcp(7),
// MSG_OOB). It returns false when the other side cannot take it now.
func (l *loop) passUrgent(c *conn, s side) bool {
	if !atMark(c.fd[s]) {
		return true // ordinary bytes come first; recv stops at the mark
	}
	var b [1]byte
	if n, e := recv(c.fd[s], b[:], unix.MSG_OOB|unix.MSG_PEEK); e == 0 && n == 1 {
		n, e := send(c.fd[s.other()], b[:], unix.MSG_OOB)
		if e == errAgain {
			l.full(c, s.other())
			return false
		}
		if e != 0 {
			c.fail(s.other(), e)
			return false
		}
		l.count(c, s, n)
		_, _ = recv(c.fd[s], b[:], unix.MSG_OOB)
		l.giveUp(c)
	}
	c.ready[s] &^= urgent
	return true
}

// fail records that side s is broken, with the error of the call that showed it, or
// 0. The bytes that it sent before are still to be read.
func (c *conn) fail(s side, e unix.Errno) {
	c.ready[s] |= failed | readable
	c.half[s].timedOut = c.half[s].timedOut || e == unix.ETIMEDOUT
}

// readFailed records that side s is broken and has no more bytes.
func (c *conn) readFailed(s side, e unix.Errno) {
	c.ready[s] |= failed
	c.half[s].flags |= ended
	c.half[s].timedOut = c.half[s].timedOut || e == unix.ETIMEDOUT
}

func (l *loop) count(c *conn, s side, n int) {
	if n <= 0 {
		return
	}
	t := l.of(c)
	to := t.hosts.of(c.home)
	if s == host && c.moved[host] == 0 {
		l.forget(c)
		to.sessions.Add(1)
		t.relay.firstByte(c.epoch)
	}
	if s == client {
		l.noteRequest(c)
		c.turned = 0
	} else {
		l.noteAnswer(c, t, to)
	}
	l.worked = true
	c.moved[s] += uint64(n)
	to.bytes[s].Add(uint64(n))
}
