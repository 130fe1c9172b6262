package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

const (
	dialTimeout = 5 * time.Second

	// writeTimeout is the longest time that a write may block before the connection is
	// replaced by a new one.
	writeTimeout = 10 * time.Second

	minRetry = 100 * time.Millisecond
	maxRetry = 5 * time.Second

	// datagramAge is the time for which a UDP socket is used, so that a new address
	// of the collector's name is noticed.
	datagramAge = time.Minute

	// failureInterval is the shortest time between two reports of failures.
	failureInterval = time.Minute
)

var (
	errClosed  = errors.New("the log is closed")
	errRefused = errors.New("connection refused")
)

// link is a connection that is opened again whenever it is lost. It resolves the name
// each time, since the address of a collector may change.
type link struct {
	dial    func(ctx context.Context) (net.Conn, error)
	trouble *failures
	timeout time.Duration // of one write
	retry   time.Duration // the first wait after a failure

	conn    net.Conn // nil when there is none
	made    time.Time
	refused bool // a datagram came to a closed port
}

func newLink(dial func(ctx context.Context) (net.Conn, error), trouble *failures) *link {
	return &link{dial: dial, trouble: trouble, timeout: writeTimeout, retry: minRetry}
}

// send sends packet, with new connections as needed, and fails only when ctx ends.
func (l *link) send(ctx context.Context, packet []byte) error {
	for delay := l.retry; ; delay = min(2*delay, maxRetry) {
		err := l.try(ctx, packet)
		if err == nil {
			return nil
		}
		l.close()
		l.trouble.began(ctx, err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay):
		}
	}
}

func (l *link) try(ctx context.Context, packet []byte) error {
	if l.conn != nil && l.worn() {
		l.close()
	}
	if l.conn == nil {
		dialing, cancel := context.WithTimeout(ctx, dialTimeout)
		conn, err := l.dial(dialing)
		cancel()
		if err != nil {
			return err
		}
		l.conn, l.made = conn, time.Now()
	}
	conn := l.conn
	if err := conn.SetWriteDeadline(time.Now().Add(l.timeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetWriteDeadline(time.Now()) }) // fails when it is closed
	defer stop()
	_, err := conn.Write(packet)
	if _, udp := conn.(*net.UDPConn); udp && errors.Is(err, syscall.ECONNREFUSED) {
		// The error is for an earlier datagram; this one was not sent.
		l.refused = true
		_, err = conn.Write(packet)
	}
	return err
}

// worn reports whether the connection must be replaced before the next write. The first
// write to one that the peer has closed would succeed, and be lost.
func (l *link) worn() bool {
	if _, udp := l.conn.(*net.UDPConn); udp {
		return time.Since(l.made) > datagramAge
	}
	conn, ok := l.conn.(syscall.Conn)
	return ok && ended(conn)
}

// ended reports whether the peer has closed conn. Bytes from the peer are discarded.
func ended(conn syscall.Conn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	var buf [512]byte
	var n int
	var readErr error
	err = raw.Read(func(fd uintptr) bool {
		n, readErr = syscall.Read(int(fd), buf[:])
		return true // do not wait for bytes
	})
	switch {
	case err != nil:
		return true
	case readErr != nil:
		return !errors.Is(readErr, syscall.EAGAIN) && !errors.Is(readErr, syscall.EINTR)
	default:
		return n == 0
	}
}

// wasRefused reports, once, that an earlier datagram was refused.
func (l *link) wasRefused() error {
	if !l.refused {
		return nil
	}
	l.refused = false
	return errRefused
}

func (l *link) close() {
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
}

// failures reports on another stream that the log cannot be written.
type failures struct {
	who, output string
	w           io.Writer

	reported bool // a failure was reported, and not yet its end
	when     time.Time
}

// began reports a failure, if it is the first and not caused by our own close.
func (t *failures) began(ctx context.Context, err error) {
	if t.reported || ctx.Err() != nil || !t.when.IsZero() && time.Since(t.when) < failureInterval {
		return
	}
	t.reported, t.when = true, time.Now()
	fmt.Fprintf(t.w, "%s: log output %s does not work, trying on: %v\n", t.who, t.output, err)
}

// ended reports that the log is written again, if began has reported a failure.
func (t *failures) ended() {
	if t.reported {
		t.reported = false
		fmt.Fprintf(t.w, "%s: log output %s works again\n", t.who, t.output)
	}
}
