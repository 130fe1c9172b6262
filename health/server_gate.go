package health

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// patience is how long a client may keep us waiting before it can be cut off
// for another: enough for the head of a request to arrive, so that a burst of
// honest clients does not cut itself off, and short enough that a flood of slow
// ones delays nobody noticeably.
const patience = 50 * time.Millisecond

// gate is the listener of a [Server] or an [Agent]. It keeps the number of
// open connections under a limit without letting slow clients keep others out:
// who has kept us waiting longest makes place.
type gate struct {
	*net.TCPListener
	limit      int
	clients    sync.WaitGroup              // one for each accepted connection until whoever serves it is done with it
	tls        *atomic.Pointer[tls.Config] // for connections to come; nil inside is plain TCP
	complaints io.Writer                   // takes what is wrong with clients, a line for each Write

	mu      sync.Mutex // guards everything below, and the place of each client
	room    sync.Cond  // signalled when open or owing changes, or the gate closes
	open    int        // connections that count against limit
	lent    int        // those of them whose request takes as long as others make it
	owing   list.List  // the *peer whose turn it is to send, longest first
	closing bool
}

// peerKey is the key of the *peer in a request's context.
type peerKey struct{}

func newGate(ln *net.TCPListener, limit int) *gate {
	g := &gate{TCPListener: ln, limit: limit, tls: new(atomic.Pointer[tls.Config]), complaints: io.Discard}
	g.room.L = &g.mu
	return g
}

// Accept waits for the next client, and for place for it.
func (g *gate) Accept() (net.Conn, error) {
	conn, err := g.AcceptTCP()
	if err != nil {
		return nil, err
	}
	c := &peer{Conn: conn, TCPConn: conn, gate: g, counted: true}
	if cfg := g.tls.Load(); cfg != nil {
		c.tls = tls.Server(conn, cfg)
		c.Conn = c.tls
	}

	g.mu.Lock()
	defer g.mu.Unlock()
	for g.open >= g.limit && !g.closing {
		if longest := g.owing.Front(); longest != nil {
			left := patience - time.Since(longest.Value.(*peer).since)
			if left <= 0 {
				longest.Value.(*peer).cutLocked()
				continue
			}
			time.AfterFunc(left, g.lookAgain)
		}
		g.room.Wait()
	}
	if g.closing {
		conn.Close()
		return nil, net.ErrClosed
	}
	g.open++
	g.clients.Add(1)
	return c, nil
}

// lookAgain wakes Accept. With the lock held it cannot come before Accept
// waits, and be missed.
func (g *gate) lookAgain() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.room.Signal()
}

// Close stops accepting and cuts off everyone who has no whole request here.
func (g *gate) Close() error {
	err := g.TCPListener.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closing = true
	for g.owing.Len() > 0 {
		g.owing.Front().Value.(*peer).cutLocked()
	}
	g.room.Broadcast()
	return err
}

// connState follows net/http through the life of a connection.
func (g *gate) connState(conn net.Conn, state http.ConnState) {
	c := conn.(*peer)
	switch state {
	case http.StateNew:
		c.owes(true)
	case http.StateIdle:
		c.owes(false) // its last answer may still be on the way; net/http closes it when the gate does
	case http.StateActive:
		c.paid()
	case http.StateClosed:
		g.clients.Done()
	case http.StateHijacked: // no handler does
	}
}

// peer is one accepted connection. It remembers the bytes of each request's
// head, see [peer.nextHead].
type peer struct {
	net.Conn // tls, or else TCPConn: net/http must not see more of it, or it would write past TLS
	TCPConn  *net.TCPConn
	tls      *tls.Conn // nil on plain TCP
	gate     *gate

	// Guarded by gate.mu.
	place   *list.Element // in gate.owing; nil while the client waits for us
	since   time.Time     // when it got its place
	idle    bool          // it owes us nothing but its next request
	counted bool          // in gate.open

	mu   sync.Mutex // guards everything below
	raw  []byte     // what was read and belongs to no earlier request
	deaf bool       // nothing more is remembered: the connection ends with this request
}

// owes notes that it is the client's turn to send. When the gate has closed
// and the client stands in the middle of a request, it is too late for that.
func (c *peer) owes(midway bool) {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	if c.place == nil && c.counted {
		c.place, c.since, c.idle = c.gate.owing.PushBack(c), time.Now(), !midway
		c.gate.room.Signal()
	}
	if c.gate.closing && midway {
		c.cutLocked()
	}
}

// paid notes that the client waits for us.
func (c *peer) paid() {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	if c.place != nil {
		c.gate.owing.Remove(c.place)
		c.place = nil
	}
}

// lend lets the request on c take as long as others make it, until giveBack.
// It returns false when three quarters of all connections have such a request:
// the rest is for verdicts, which must come in time whatever endpoints do.
func (c *peer) lend() bool {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	if c.gate.lent >= c.gate.limit-c.gate.limit/4 {
		return false
	}
	c.gate.lent++
	return true
}

// giveBack undoes lend.
func (c *peer) giveBack() {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	c.gate.lent--
}

// Close closes the connection and gives its place to another.
func (c *peer) Close() error {
	c.gate.mu.Lock()
	c.leaveLocked()
	c.gate.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite ends our direction; net/http does so before a Close that could
// cost the client its answer.
func (c *peer) CloseWrite() error {
	if c.tls != nil {
		_ = c.tls.CloseWrite() // says goodbye only
	}
	return c.TCPConn.CloseWrite()
}

// SetLinger is that of the TCP connection; with 0 the next Close is a reset.
func (c *peer) SetLinger(seconds int) error { return c.TCPConn.SetLinger(seconds) }

// cutLocked ends a client that owes us something. One in the middle of its
// request is reset, so that a flood of them leaves nothing behind in the kernel.
// An idle one may not have received the whole of its last answer yet.
func (c *peer) cutLocked() {
	c.leaveLocked()
	if !c.idle {
		_ = c.SetLinger(0)
	}
	_ = c.TCPConn.Close() // net/http's read fails and it closes c again; TLS would wait to say goodbye
}

// leaveLocked takes c out of the gate's books, once.
func (c *peer) leaveLocked() {
	if c.place != nil {
		c.gate.owing.Remove(c.place)
		c.place = nil
	}
	if c.counted {
		c.counted = false
		c.gate.open--
		c.gate.room.Signal()
	}
}

// Read reads for net/http and remembers what may be part of a head. net/http
// limits what it reads of one request to maxHead before nextHead is called.
func (c *peer) Read(p []byte) (int, error) {
	if c.tls != nil {
		if err := c.handshake(); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.deaf {
		c.raw = append(c.raw, p[:n]...)
	}
	return n, err
}

// handshake brings TLS up with the first read, within the time that net/http
// gives the client for its head. It is not net/http that does it, which would
// then hide the bytes of the head. A failure ends the connection in silence.
func (c *peer) handshake() error {
	err := c.tls.HandshakeContext(context.Background()) // ends with the read deadline, or the connection
	if err == nil {
		return nil
	}
	var plain tls.RecordHeaderError
	if errors.As(err, &plain) && plain.Conn != nil && spokenPlainly(plain.RecordHeader) {
		_, _ = io.WriteString(c.TCPConn, "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nthis port speaks https\n")
		_ = c.TCPConn.CloseWrite()
	}
	_, _ = fmt.Fprintf(c.gate.complaints, "tls handshake with %s: %v", c.TCPConn.RemoteAddr(), err)
	return io.EOF
}

// spokenPlainly reports whether the beginning of a connection is that of an
// HTTP request.
func spokenPlainly(begin [5]byte) bool {
	switch string(begin[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "PATCH", "DELET", "OPTIO":
		return true
	}
	return false
}
