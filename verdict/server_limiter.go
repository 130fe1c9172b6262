package verdict

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

	"github.com/hashicorp/go-hclog"

	"understudy/internal/accept"
)

// evictAfter is the longest time that a connection may be reading before it can be
// closed for another one: long enough for the head of a request to arrive, so that a
// burst of correct clients does not close its own connections, and short enough that
// a flood of slow clients causes no noticeable delay.
const evictAfter = 50 * time.Millisecond

// limiter is the listener of a [Server] or an [Agent]. It keeps the number of
// open connections under a limit without letting slow clients block others: at
// the limit it closes the connection that has been reading for longest.
type limiter struct {
	*accept.Listener // of TCP
	limit            int
	clients          sync.WaitGroup              // one for each accepted connection until its handler has finished
	tls              *atomic.Pointer[tls.Config] // for connections to come; nil inside is plain TCP
	clientErrors     io.Writer                   // receives errors of clients, one line for each Write

	mu       sync.Mutex // guards everything below, and the place of each client
	room     sync.Cond  // signalled when open or reading changes, or the limiter closes
	open     int        // connections that count against limit
	acquired int        // those of them that are held by [peer.acquire]
	reading  list.List  // each *peer that must send next, the longest wait first
	closing  bool
}

// peerKey is the key of the *peer in a request's context.
type peerKey struct{}

func newLimiter(ln net.Listener, limit int, log hclog.Logger) *limiter {
	g := &limiter{Listener: accept.Retry(ln, log), limit: limit, tls: new(atomic.Pointer[tls.Config]), clientErrors: io.Discard}
	g.room.L = &g.mu
	return g
}

// Accept waits for the next client, and then until the limit allows it.
func (g *limiter) Accept() (net.Conn, error) {
	accepted, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	conn := accepted.(*net.TCPConn)
	c := &peer{Conn: conn, TCPConn: conn, limiter: g, counted: true}
	if cfg := g.tls.Load(); cfg != nil {
		c.tls = tls.Server(conn, cfg)
		c.Conn = c.tls
	}

	g.mu.Lock()
	defer g.mu.Unlock()
	for g.open >= g.limit && !g.closing {
		if longest := g.reading.Front(); longest != nil {
			left := evictAfter - time.Since(longest.Value.(*peer).since)
			if left <= 0 {
				longest.Value.(*peer).cutLocked()
				continue
			}
			time.AfterFunc(left, g.wakeAccept)
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

// wakeAccept wakes Accept. The lock makes sure that the signal is not sent
// before Accept waits for it, and lost.
func (g *limiter) wakeAccept() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.room.Signal()
}

// Close stops accepting and closes every connection without a complete request.
func (g *limiter) Close() error {
	err := g.Listener.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closing = true
	for g.reading.Len() > 0 {
		g.reading.Front().Value.(*peer).cutLocked()
	}
	g.room.Broadcast()
	return err
}

// connState follows net/http through the life of a connection.
func (g *limiter) connState(conn net.Conn, state http.ConnState) {
	c := conn.(*peer)
	switch state {
	case http.StateNew:
		c.setReading(true)
	case http.StateIdle:
		c.setReading(false) // its last answer may still be in transit; net/http closes it when the limiter closes
	case http.StateActive:
		c.setBusy()
	case http.StateClosed:
		g.clients.Done()
	case http.StateHijacked: // no handler hijacks
	}
}

// peer is one accepted connection. It records the bytes of each request's head,
// see [peer.nextHead].
type peer struct {
	net.Conn // tls, or else TCPConn; not embedded as *net.TCPConn, or net/http would write past TLS
	TCPConn  *net.TCPConn
	tls      *tls.Conn // nil on plain TCP
	limiter  *limiter

	// Guarded by limiter.mu.
	place   *list.Element // in limiter.reading; nil while the client waits for an answer
	since   time.Time     // when it was put into limiter.reading
	idle    bool          // it is between two requests
	counted bool          // it is counted in limiter.open

	mu   sync.Mutex // guards everything below
	raw  []byte     // bytes that were read and belong to no earlier request
	last bool       // the connection ends with this request: no more bytes are recorded
}

// setReading marks c as waiting for bytes of the client; midway, in the middle of
// a request. When the limiter has closed, a connection midway is closed.
func (c *peer) setReading(midway bool) {
	c.limiter.mu.Lock()
	defer c.limiter.mu.Unlock()
	if c.place == nil && c.counted {
		c.place, c.since, c.idle = c.limiter.reading.PushBack(c), time.Now(), !midway
		c.limiter.room.Signal()
	}
	if c.limiter.closing && midway {
		c.cutLocked()
	}
}

// setBusy marks c as waiting for our answer.
func (c *peer) setBusy() {
	c.limiter.mu.Lock()
	defer c.limiter.mu.Unlock()
	if c.place != nil {
		c.limiter.reading.Remove(c.place)
		c.place = nil
	}
}

// acquire marks the request on c as one whose duration depends on endpoints,
// until release. It returns false when three quarters of all connections have
// such a request: the rest is reserved for verdicts, which must be in time even
// when endpoints are slow.
func (c *peer) acquire() bool {
	c.limiter.mu.Lock()
	defer c.limiter.mu.Unlock()
	if c.limiter.acquired >= c.limiter.limit-c.limiter.limit/4 {
		return false
	}
	c.limiter.acquired++
	return true
}

// release undoes acquire.
func (c *peer) release() {
	c.limiter.mu.Lock()
	defer c.limiter.mu.Unlock()
	c.limiter.acquired--
}

// Close closes the connection and frees its place.
func (c *peer) Close() error {
	c.limiter.mu.Lock()
	c.leaveLocked()
	c.limiter.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite ends our direction. net/http calls it before a Close that could
// destroy the answer in transit.
func (c *peer) CloseWrite() error {
	if c.tls != nil {
		_ = c.tls.CloseWrite() // sends close_notify only
	}
	return c.TCPConn.CloseWrite()
}

// SetLinger sets SO_LINGER on the TCP connection; with 0 the next Close sends a
// reset.
func (c *peer) SetLinger(seconds int) error { return c.TCPConn.SetLinger(seconds) }

// cutLocked closes a connection that is reading. One in the middle of a request
// is reset, so that a flood of them leaves no state in the kernel. An idle one is
// closed normally: its client may not have received all of its last answer yet.
func (c *peer) cutLocked() {
	c.leaveLocked()
	if !c.idle {
		_ = c.SetLinger(0)
	}
	_ = c.TCPConn.Close() // net/http's read fails and it closes c again; a TLS close would wait to send close_notify
}

// leaveLocked removes c from the limiter's list and count, once.
func (c *peer) leaveLocked() {
	if c.place != nil {
		c.limiter.reading.Remove(c.place)
		c.place = nil
	}
	if c.counted {
		c.counted = false
		c.limiter.open--
		c.limiter.room.Signal()
	}
}

// Read reads for net/http and records what may be part of a head. net/http
// reads at most maxHead bytes of one request before nextHead is called.
func (c *peer) Read(p []byte) (int, error) {
	if c.tls != nil {
		if err := c.handshake(); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	if !c.last {
		c.raw = append(c.raw, p[:n]...)
	}
	c.mu.Unlock()
	if len(p) == 1 && n == 0 && errors.Is(err, io.EOF) {
		// While a handler runs, net/http reads one byte to detect whether the
		// client has disconnected, and cancels the request at an error. A
		// half-close is no error: the client still waits for its answer. A full
		// close looks the same until something is sent; its cost is bounded,
		// because handlers have time limits.
		return 0, awaitFailure(c.TCPConn)
	}
	return n, err
}

// handshake performs the TLS handshake at the first read, within net/http's
// timeout for the head. net/http does not perform it, because it would then hide
// the bytes of the head. A failure ends the connection without an answer.
func (c *peer) handshake() error {
	err := c.tls.HandshakeContext(context.Background()) // ends with the read deadline, or the connection
	if err == nil {
		return nil
	}
	var plain tls.RecordHeaderError
	if errors.As(err, &plain) && plain.Conn != nil && looksLikeHTTP(plain.RecordHeader) {
		_, _ = io.WriteString(c.TCPConn, "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nthis port speaks https\n")
		_ = c.TCPConn.CloseWrite()
	}
	_, _ = fmt.Fprintf(c.limiter.clientErrors, "tls handshake with %s: %v", c.TCPConn.RemoteAddr(), err)
	return io.EOF
}

// looksLikeHTTP reports whether the beginning of a connection is that of an
// HTTP request.
func looksLikeHTTP(begin [5]byte) bool {
	switch string(begin[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "PATCH", "DELET", "OPTIO":
		return true
	}
	return false
}
