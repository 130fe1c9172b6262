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

	// writeTimeout is how long a peer may take nothing before the connection
	// is given up for a new one.
	writeTimeout = 10 * time.Second

	minRetry = 100 * time.Millisecond
	maxRetry = 5 * time.Second

	// datagramAge is how long a UDP socket is used: nothing else would notice
	// that the collector's name means another address.
	datagramAge = time.Minute

	// troubleInterval is the shortest time between two tales of trouble.
	troubleInterval = time.Minute
)

var (
	errClosed  = errors.New("the log is closed")
	errRefused = errors.New("connection refused")
)

// link is a connection that is made anew whenever it is lost, by name, so that
// a collector may move.
type link struct {
	dial    func(ctx context.Context) (net.Conn, error)
	trouble *trouble
	timeout time.Duration // of one write
	retry   time.Duration // the first wait after a failure

	conn    net.Conn // nil when there is none
	made    time.Time
	refused bool // a datagram came to a closed port
}

func newLink(dial func(ctx context.Context) (net.Conn, error), trouble *trouble) *link {
	return &link{dial: dial, trouble: trouble, timeout: writeTimeout, retry: minRetry}
}

// send sends packet, over as many connections as it takes, and fails only when
// ctx ends.
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
		// That was the answer to an earlier datagram; this one was not sent.
		l.refused = true
		_, err = conn.Write(packet)
	}
	return err
}

// worn reports whether the connection is not worth another write. The first
// write to one that the peer has closed would seem to work, and be lost.
func (l *link) worn() bool {
	if _, udp := l.conn.(*net.UDPConn); udp {
		return time.Since(l.made) > datagramAge
	}
	conn, ok := l.conn.(syscall.Conn)
	return ok && ended(conn)
}

// ended reports whether the peer has closed conn. What the peer said is of no
// interest.
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
		return true // whatever it said: nobody waits here
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

// trouble tells people, on another stream, that the log does not get through.
type trouble struct {
	who, output string
	w           io.Writer

	told bool // that it began, and not yet that it ended
	when time.Time
}

// began tells of a failure, if it is the first and not of our own making.
func (t *trouble) began(ctx context.Context, err error) {
	if t.told || ctx.Err() != nil || !t.when.IsZero() && time.Since(t.when) < troubleInterval {
		return
	}
	t.told, t.when = true, time.Now()
	fmt.Fprintf(t.w, "%s: log output %s does not work, trying on: %v\n", t.who, t.output, err)
}

// ended tells that it works again, if began had told that it does not.
func (t *trouble) ended() {
	if t.told {
		t.told = false
		fmt.Fprintf(t.w, "%s: log output %s works again\n", t.who, t.output)
	}
}
