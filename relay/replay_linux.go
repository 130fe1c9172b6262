//go:build !portable

package relay

import "golang.org/x/sys/unix"

// Sending an opening again.
//
// Nearly every protocol opens with bytes that have no effect. So what a client
// sends first is kept until its host has sent something. If the host fails before
// that, or its epoch ends, the client is connected to the next primary and its
// opening is sent again: the client sees a slower answer. [Config.Replay] decides
// which openings that holds for; what it does not accept is reset.
//
// An established connection keeps nothing: the first byte of the host frees it,
// and so does what is too long to be an opening.

// openingMost is the longest opening that is kept. One read of bulk is longer.
const openingMost = 16 << 10

// remember keeps what the client has sent, if that is still its opening.
func (l *loop) remember(c *conn, p []byte) {
	if c.moved[host] != 0 || c.half[client].flags&givenUp != 0 || len(p) == 0 || l.of(c).cfg().Replay == nil {
		return
	}
	if c.opening == 0 {
		if len(p) > openingMost {
			l.giveUp(c)
			return
		}
		c.opening = l.openings.keep(p) + 1
		return
	}
	b := &l.openings.all[c.opening-1]
	if len(b.rest)+len(p) > openingMost {
		l.giveUp(c)
		return
	}
	if len(b.rest)+len(p) <= cap(b.rest) {
		b.rest = append(b.rest, p...)
		return
	}
	longer := append(append(make([]byte, 0, len(b.rest)+len(p)), b.rest...), p...)
	l.openings.put(c.opening - 1)
	c.opening = l.openings.keep(longer) + 1
}

// giveUp forgets the opening of a client and keeps nothing of it any more.
func (l *loop) giveUp(c *conn) {
	l.forget(c)
	c.half[client].flags |= givenUp
}

// forget frees the opening of a client.
func (l *loop) forget(c *conn) {
	if c.opening > 0 {
		l.openings.put(c.opening - 1)
		c.opening = 0
	}
}

// answered reports whether the host has sent something, or ended its stream.
func (l *loop) answered(c *conn) bool {
	return c.moved[host] != 0 || c.half[host].flags&passedOn != 0 || l.holds(c, host)
}

// canMove reports whether a connection can be made again to another host without
// losing anything: the host has not answered, and the client has sent nothing, or
// something that may be sent again.
func (l *loop) canMove(c *conn) bool {
	switch {
	case l.answered(c):
		return false
	case c.moved[client] == 0:
		return true
	case c.opening == 0:
		return false
	}
	replay := l.of(c).cfg().Replay
	if replay == nil || !replay(l.openings.all[c.opening-1].rest) {
		return false
	}
	// An answer may have come that was not read yet.
	var b [1]byte
	n, e := recv(c.fd[host], b[:], unix.MSG_PEEK)
	return e != 0 || n == 0
}

// endedByBoth reports whether the client has ended without sending anything: then
// a host that ends or resets the connection has only closed in its own way.
func (l *loop) endedByBoth(c *conn) bool {
	return c.half[client].flags&passedOn != 0 && c.moved[client] == 0
}

// rewind prepares for the next host what the last one was sent.
func (l *loop) rewind(c *conn) {
	if c.moved[client] == 0 {
		return
	}
	l.discard(c, client)
	c.half[client].store = l.buffers.keep(l.openings.all[c.opening-1].rest) + 1
	c.moved[client] = 0
	c.half[client].rewound = true
}
