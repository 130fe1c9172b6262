//go:build !portable

package relay

import (
	"golang.org/x/sys/unix"
)

// How a byte travels.
//
// A client's segment makes its socket readable; epoll tells the loop that owns
// the connection, once (edge-triggered). The loop notes "readable" in the
// connection's record and pumps that direction:
//
//	recv(client, room for 32 KiB) → send(host)
//
// through a buffer that belongs to the loop: a large piece in one go, a small one
// together with the others of the same batch of events ([loop.sendBatch]). What
// send does not take is kept in a pooled buffer until epoll says that the host is
// writable again; nothing more is read from the client meanwhile, so TCP's own
// window slows it down.
//
// A read that fills all the room means bulk. The direction then
// changes to splice(2): from the socket into a pipe and from the pipe into the
// other socket, without a copy to user space. A splice that brings little, or
// nothing, changes it back. A pipe is borrowed from the loop's pool for as long
// as it holds bytes or the turn lasts.
//
// A direction moves at most [turn] bytes before others have theirs; bulk
// directions wait in a queue, one turn each between two looks at epoll, so a
// small message never waits for more than one turn.
//
// The end of a stream is passed on as it was: a FIN as a half-close once all
// bytes before it are sent; a failure as a reset of the other side once all
// bytes that had arrived before it are delivered ([loop.settle]).

const (
	// turn is how many bytes one direction moves before others have their turn.
	turn = 512 << 10

	// spliceChunk is how much one splice asks for. On loopback one slot of a
	// pipe holds 32 KiB, so without a bound a pipe would hold megabytes.
	spliceChunk = 256 << 10

	// keepSmall is the most that a buffer holds for a peer that takes nothing,
	// while there are pipes.
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
				l.discard(c, s) // nobody is left to deliver to
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
			l.passEnd(c, s)
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
	l.unpipe(c, s) // an urgent byte brings a direction here that has a pipe still
	if c.ready[s]&urgent != 0 && !l.passUrgent(c, s) {
		return 0, false
	}
	// While there is no pipe to be had, bytes are only looked at before they
	// are sent, so what a stuck peer does not take stays in the kernel.
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
		c.ready[s] |= failed
		h.flags |= ended
		return 0, false
	case n == 0:
		h.flags |= ended
		return 0, true // for pump to pass it on
	case n < chunk:
		// A short read has drained the socket: no second call to hear EAGAIN.
		// But an end of the stream that epoll has already announced will not
		// be announced again, nor the bytes behind an urgent one.
		if c.ready[s]&(hungUp|failed|urgent) == 0 {
			c.ready[s] &^= readable
		} else if look == 0 && c.ready[s]&(failed|urgent) == 0 {
			n += l.readEnd(c, s, room[n:])
		}
	default:
		h.flags |= splicing
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
		c.ready[s] |= failed
		c.half[s].flags |= ended
	case n == 0:
		c.half[s].flags |= ended
	}
	return n
}

// sendCopied sends what was read from side s, or with look only looked at. It
// returns false when the direction cannot go on now.
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
			c.fail(o)
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

// keep stores what side s has given and the other side did not take. Much of it
// goes into a pipe, so that a peer that is stuck holds little memory of this
// process.
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
// not believed: splice says either in front of an urgent byte. The direction
// goes back to plain reads, and they tell. An error is believed, because the
// call that reports one takes it from the socket: a read after it would see a
// clean end.
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
			c.ready[s] |= failed
			h.flags |= ended
			return 0, false
		}
		return 0, l.unsplice(c, s)
	}
	p.n = n
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
// An urgent byte may be what brought the direction here, before epoll has said
// so, and a read would pass over it. Once the source has been seen to have
// something, or nothing, it is certain whether that is the urgent byte.
func (l *loop) unsplice(c *conn, s side) (again bool) {
	h := &c.half[s]
	h.flags &^= splicing
	l.unpipe(c, s)
	_, e := recv(c.fd[s], l.batch.room()[:1], unix.MSG_PEEK)
	switch {
	case e != 0 && (e != errAgain || c.broken(s)):
		c.ready[s] |= failed
		h.flags |= ended
		return false
	case atMark(c.fd[s]):
		c.ready[s] |= urgent
	case e == errAgain:
		c.ready[s] &^= readable
		return false
	}
	return true
}

// flush sends what direction s holds. It returns true when that is all gone.
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
		c.fail(o)
		return n, false
	}
}

// holds says whether bytes of direction s wait in this process.
func (l *loop) holds(c *conn, s side) bool {
	st := c.half[s].store
	return st > 0 || st < 0 && l.pipes.all[-st-1].n > 0
}

// unpipe gives an empty pipe back: no direction sleeps on one.
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

// passEnd tells the other side, once, that side s will send no more. Where the
// other direction is over too, closing says the same.
//
// A host that is killed before it has said a word ends its streams as one does
// that has nothing to say. So an end before any byte counts as a failure at
// first, and is believed when the next connect brings it again.
func (l *loop) passEnd(c *conn, s side) {
	h := &c.half[s]
	if h.flags&passedOn != 0 || c.broken(s) {
		return
	}
	if s == host && !c.exchanged() && c.half[client].flags&(passedOn|doubted) == 0 {
		c.half[client].flags |= doubted
		c.fail(host)
		return
	}
	h.flags |= passedOn
	if c.half[s.other()].flags&passedOn != 0 {
		return
	}
	if e := shutdown(c.fd[s.other()], unix.SHUT_WR); e != 0 {
		c.fail(s.other())
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
			c.fail(s.other())
			return false
		}
		l.count(c, s, n)
		_, _ = recv(c.fd[s], b[:], unix.MSG_OOB)
	}
	c.ready[s] &^= urgent
	return true
}

// fail notes that side s is broken. What it sent before is still to be read.
func (c *conn) fail(s side) { c.ready[s] |= failed | readable }

func (l *loop) count(c *conn, s side, n int) {
	if n <= 0 {
		return
	}
	if s == host && c.moved[host] == 0 {
		l.engine.firstByte(c.epoch)
	}
	c.moved[s] += uint64(n)
	l.bytes[s].Add(uint64(n))
}
