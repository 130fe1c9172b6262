// Package accept keeps a server alive when accept(2) fails.
//
// Almost every failure is temporary: no descriptors, no memory, a connection
// that died in the queue, a refusal by a firewall. net/http ends its server at
// most of them, so every listener of this program whose clients are served by
// Go code is wrapped by [Retry].
package accept

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	firstDelay = 5 * time.Millisecond
	maxDelay   = time.Second

	// quiet is the time without a failure after which the next one is logged
	// again.
	quiet = 10 * time.Second
)

// Listener is a listener whose Accept retries after failures. Only one
// goroutine may call Accept at a time.
type Listener struct {
	net.Listener
	log    hclog.Logger
	closed chan struct{}
	close  func() error // once

	failed time.Time // the last failure
}

// Retry returns ln with an Accept that fails only when the socket can accept
// nothing any more: when it was closed ([net.ErrClosed]), or shut down by other
// code (EINVAL, EBADF). Every other failure is logged once and retried, after 5
// ms at first and 1 s at most. The Listener owns ln.
func Retry(ln net.Listener, log hclog.Logger) *Listener {
	l := &Listener{Listener: ln, log: log, closed: make(chan struct{})}
	l.close = sync.OnceValue(func() error {
		close(l.closed)
		return ln.Close()
	})
	return l
}

// Accept returns the next connection.
func (l *Listener) Accept() (net.Conn, error) {
	for delay := firstDelay; ; delay = min(2*delay, maxDelay) {
		conn, err := l.Listener.Accept()
		if err == nil || isFinal(err) {
			return conn, err
		}
		now := time.Now()
		if l.failed.IsZero() || now.Sub(l.failed) > quiet {
			l.log.Warn("accept failed, retrying", "address", l.Addr(), "error", err)
		}
		l.failed = now
		select { // an immediate retry would loop without freeing anything
		case <-time.After(delay):
		case <-l.closed:
			return nil, net.ErrClosed
		}
	}
}

// Close closes the socket and ends an Accept that waits. Every call returns the
// result of the first, and returns when the address is free: a second call of
// [net.TCPListener.Close] returns at once, even while the first one is still
// closing the socket.
func (l *Listener) Close() error { return l.close() }

// isFinal reports whether no later accept can succeed.
func isFinal(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EINVAL) ||
		errors.Is(err, syscall.EBADF) || errors.Is(err, syscall.ENOTSOCK)
}
