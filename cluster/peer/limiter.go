package peer

import (
	"container/list"
	"net"
	"sync"
)

// limiter is a listener that keeps the number of open connections below a limit,
// without letting strangers keep members out: a new connection replaces the
// oldest one that is not known to be a member's. Where all are, the new one is
// closed.
type limiter struct {
	net.Listener
	limit  int
	served sync.WaitGroup // one for each connection that net/http has

	mu        sync.Mutex // guards everything below, and the place of each conn
	open      int
	strangers list.List // each *conn that has not proved to be a member's, the oldest first
}

// Accept waits for the next connection.
func (g *limiter) Accept() (net.Conn, error) {
	for {
		accepted, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: accepted, limiter: g}
		if c.enter() {
			return c, nil
		}
		_ = accepted.Close() // there is no room
	}
}

// connKey is the key of the connection in the context of a request.
type connKey struct{}

// conn is a connection to a limiter.
type conn struct {
	net.Conn
	limiter *limiter
	place   *list.Element // in limiter.strangers; nil for a member's
	left    bool
}

// enter makes room for c, and reports whether there is.
func (c *conn) enter() bool {
	g := c.limiter
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open >= g.limit {
		oldest := g.strangers.Front()
		if oldest == nil {
			return false
		}
		stranger := oldest.Value.(*conn)
		stranger.leaveLocked()
		_ = stranger.Conn.Close() // net/http's read fails, and it closes it again
	}
	g.open++
	c.place = g.strangers.PushBack(c)
	return true
}

// proved takes note that c is a member's.
func (c *conn) proved() {
	c.limiter.mu.Lock()
	defer c.limiter.mu.Unlock()
	if c.place != nil {
		c.limiter.strangers.Remove(c.place)
		c.place = nil
	}
}

// leaveLocked gives the room of c to others, once.
func (c *conn) leaveLocked() {
	if c.left {
		return
	}
	c.left = true
	c.limiter.open--
	if c.place != nil {
		c.limiter.strangers.Remove(c.place)
		c.place = nil
	}
}

// Close closes the connection and gives its room to others.
func (c *conn) Close() error {
	c.limiter.mu.Lock()
	c.leaveLocked()
	c.limiter.mu.Unlock()
	return c.Conn.Close()
}
