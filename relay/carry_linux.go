//go:build !portable

package relay

import "math/rand/v2"

// How a connection moves from one loop to another.
//
// The loop that has it takes everything out: its record, the bytes that were read
// and not sent yet, what its PROXY header said. The other one puts everything in
// and registers the sockets with its own epoll, which reports at once what they
// are ready for: so no event is lost, however the two meet. Times are of the
// engine's clock, which all loops share.
//
// Between the two the connection belongs to no loop. What has to meet every
// connection of a relay therefore goes through [Engine.everywhere], which lets
// those that are on the way arrive first.

// carried is a connection on the way.
type carried struct {
	// conn is the record. Its place in the table and in lists, and the places of
	// its stores, are the loop's own; everything else is carried as it is.
	conn
	buffer  [2]buffer // by side; those of the stores that are buffers
	pipe    [2]pipe   // the same for pipes
	kept    buffer    // the opening
	proxied *proxyHeader
}

// carry moves connections to another loop. It does nothing while something has to
// meet all of them. No piece of theirs may be in the batch.
func (l *loop) carry(connections []int32, to *loop) {
	e := l.engine
	if len(connections) == 0 || to == l {
		return
	}
	e.inTransit.Add(1)
	if e.moveLocks.Load() > 0 {
		e.inTransit.Add(-1)
		return
	}
	all := make([]carried, 0, len(connections))
	for _, i := range connections {
		all = append(all, l.detach(i, l.at(i)))
	}
	n := int64(len(all))
	l.live.Add(-n)
	to.live.Add(n)
	to.post(func() {
		for k := range all {
			to.attach(&all[k])
		}
		e.inTransit.Add(-1)
	})
}

// detach removes a connection from the loop.
func (l *loop) detach(i int32, c *conn) carried {
	if c.ready[client]&watched != 0 {
		epollDel(l.ep, c.fd[client])
	}
	if c.fd[host] >= 0 {
		epollDel(l.ep, c.fd[host])
	}
	l.unpipe(c, client)
	l.unpipe(c, host)
	x := carried{conn: *c}
	l.clearRequest(c)
	for s := client; s <= host; s++ {
		switch store := c.half[s].store; {
		case store > 0:
			x.buffer[s] = l.buffers.release(store - 1)
		case store < 0:
			x.pipe[s] = l.pipes.release(-store - 1)
		}
	}
	if c.opening > 0 {
		x.kept = l.openings.release(c.opening - 1)
	}
	if h, ok := l.proxied[i]; ok {
		x.proxied = &h
		delete(l.proxied, i)
	}
	l.release(i, c)
	return x
}

// attach adds a connection to the loop.
func (l *loop) attach(x *carried) {
	i, c := l.alloc(x.slot)
	gen := c.gen
	*c = x.conn
	c.gen, c.prev, c.next, c.pending = gen, -1, -1, false
	if x.pending {
		l.pend(i, c)
	}
	for s := client; s <= host; s++ {
		switch store := x.half[s].store; {
		case store > 0:
			c.half[s].store = l.buffers.add(x.buffer[s]) + 1
		case store < 0:
			c.half[s].store = -l.pipes.add(x.pipe[s]) - 1
		}
	}
	if c.unansweredSince != 0 {
		l.addRequest()
	}
	if x.opening > 0 {
		c.opening = l.openings.add(x.kept) + 1
	}
	if x.proxied != nil {
		l.proxied[i] = *x.proxied
	}
	if c.state == relaying {
		if l.of(c).cfg().hostTimeout > 0 && c.ready[client]&c.ready[host]&writable == 0 {
			l.zeroWindow = true
		}
		if c.ready[host]&keptAlive == 0 {
			l.noteYoung()
		}
	}
	queues := c.half[client].flags&queued != 0
	c.half[client].flags &^= queued
	if c.ready[client]&watched != 0 {
		c.ready[client] &^= watched
		l.watch(i, c)
	}
	if c.fd[host] >= 0 {
		if e := epollAdd(l.ep, c.fd[host], socketEvents, c.tag(i, host)); e != 0 {
			l.of(c).relay.local("epoll_ctl", e)
			c.fail(host, e)
			queues = true
		}
	}
	switch {
	case c.broken(client) && c.state != relaying:
		l.clientLeft(i, c)
	case queues && c.state == relaying:
		l.enqueue(i, c)
	}
}

// stir moves a connection at random to another loop, if the batch has done
// something; see [Engine].
func (l *loop) stir() {
	if !l.worked || l.used == 0 {
		return
	}
	l.worked = false
	all := l.engine.loops()
	to := all[rand.IntN(len(all))] //nolint:gosec // of tests
	for range 16 {
		i := rand.Int32N(l.size()) //nolint:gosec // of tests
		if l.at(i).state != free {
			l.carry([]int32{i}, to)
			return
		}
	}
}
