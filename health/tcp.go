package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"
)

// resetWatch is how long a connection is watched for a reset.
const resetWatch = 5 * time.Millisecond

// TCP returns a check that passes when host accepts a connection and does not
// reset it at once, as a balancer without a backend or a service that cannot
// fork does. It watches for that for 5ms at most; data, or a clean end, passes
// too. A nil resolve asks the system's name servers, without the comfort of a
// [Resolver].
//
// The connection ends with a FIN. A reset would spare this machine a socket in
// TIME_WAIT, but hosts log it as a fault of their client, once a second; and
// one such socket a check, each for a minute and each to a port of its own,
// costs nothing.
func TCP(resolve ResolveFunc) Check {
	if resolve == nil {
		resolve = lookupAddrs
	}
	return (&tcpCheck{resolve: resolve}).check
}

// TCPConfig says what [TCPExchange] says and what it wants to hear.
type TCPConfig struct {
	// Port is the TCP port that is asked, on the host's own address, instead
	// of the port of the connection string. A host that is a unix socket is
	// then asked on localhost. Zero asks where the connection string leads.
	Port int

	// Send is sent after the connect, 64 KiB at most. Empty sends nothing.
	Send []byte

	// Expect must come within the first 64 KiB of what the host says, byte for
	// byte. Empty waits for nothing.
	Expect []byte

	// Resolve turns names into addresses. Defaults to asking the system's name
	// servers, without the comfort of a [Resolver].
	Resolve ResolveFunc
}

// TCPExchange returns a check that connects to the host, sends Send and passes
// when Expect has come, or an error that names every bad field. Without Expect
// it passes as [TCP] does. It does not wait for Expect before it sends: a
// banner and the answer to Send may be looked for, but not a dialogue.
func TCPExchange(cfg TCPConfig) (Check, error) {
	var errs []error
	if cfg.Port < 0 || cfg.Port > 65535 {
		errs = append(errs, fmt.Errorf("port: %d is not from 1 to 65535", cfg.Port))
	}
	if len(cfg.Send) > bodyLimit {
		errs = append(errs, fmt.Errorf("send: %d bytes, more than %d", len(cfg.Send), bodyLimit))
	}
	if len(cfg.Expect) > bodyLimit {
		errs = append(errs, fmt.Errorf("expect: %d bytes, more than the %d that are read", len(cfg.Expect), bodyLimit))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("tcp check: %w", err)
	}
	c := &tcpCheck{
		port:    uint16(cfg.Port), //nolint:gosec // G115: checked above
		send:    cfg.Send,
		expect:  cfg.Expect,
		resolve: cfg.Resolve,
	}
	if c.resolve == nil {
		c.resolve = lookupAddrs
	}
	return c.check, nil
}

// tcpCheck is a TCPConfig, validated.
type tcpCheck struct {
	port         uint16 // zero: the connection string's
	send, expect []byte
	resolve      ResolveFunc
}

func (c *tcpCheck) check(ctx context.Context, host string) Result {
	began := time.Now()
	phase, err := c.ask(ctx, host)
	return Outcome(ctx, began, phase, err)
}

func (c *tcpCheck) ask(ctx context.Context, host string) (Phase, error) {
	h, err := ParseHost(host)
	if err != nil {
		return Resolve, err
	}
	h = h.onPort(c.port)
	conn, phase, err := c.resolve.connect(ctx, h)
	if err != nil {
		return phase, err
	}
	defer conn.Close() // what was written has been answered, or nobody cares
	stop := endWith(ctx, conn)
	defer stop()

	if len(c.send) > 0 {
		if _, err := conn.Write(c.send); err != nil {
			return Write, err // already "write tcp …: cause"
		}
	}
	if len(c.expect) == 0 {
		return Read, watchReset(conn)
	}
	return awaitBytes(conn, h, c.expect)
}

// awaitBytes reads what h says until expect has come.
func awaitBytes(in io.Reader, h Host, expect []byte) (Phase, error) {
	said, found, err := findBytes(in, expect)
	switch {
	case found:
		return Criteria, nil
	case err == nil:
		return Criteria, fmt.Errorf("%s said %s and no %s in %d bytes", h, quoteBody(said), quoteBody(expect), len(said))
	case errors.Is(err, io.EOF):
		return Criteria, fmt.Errorf("%s said %s and ended the connection, want %s", h, quoteBody(said), quoteBody(expect))
	case len(said) > 0:
		return Read, fmt.Errorf("%s said %s, want %s: %w", h, quoteBody(said), quoteBody(expect), err)
	}
	return Read, err // already "read tcp …: cause"
}

// findBytes reads until expect has come or 64 KiB have, and returns what came.
// The error is the reader's when that ended first.
func findBytes(in io.Reader, expect []byte) (said []byte, found bool, err error) {
	// A small answer needs little; a long one doubles it a few times.
	said = make([]byte, 0, 1<<10)
	for len(said) < bodyLimit {
		if len(said) == cap(said) {
			said = slices.Grow(said, min(len(said), bodyLimit-len(said)))
		}
		n, err := in.Read(said[len(said):min(cap(said), bodyLimit)])
		// What is new may end what came before.
		from := max(0, len(said)-len(expect)+1)
		said = said[:len(said)+n]
		if bytes.Contains(said[from:], expect) {
			return said, true, nil
		}
		if err != nil {
			return said, false, err
		}
	}
	return said, false, nil
}

// watchReset waits up to 5ms for conn to do anything, and returns an error when
// what it does is fail. What it does send is read, as far as it fits: bytes
// left unread would turn the FIN of Close into a reset.
func watchReset(conn net.Conn) error {
	if err := conn.SetReadDeadline(time.Now().Add(resetWatch)); err != nil {
		return fmt.Errorf("watch %s: %w", conn.RemoteAddr(), err)
	}
	_, err := conn.Read(make([]byte, 4096))
	if err == nil || errors.Is(err, io.EOF) || isTimeout(err) {
		return nil
	}
	return err // already "read tcp …: connection reset by peer"
}
