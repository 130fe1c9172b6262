package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"understudy/internal/address"
	"understudy/internal/criteria"
	"understudy/internal/greeting"
)

// resetWatch is the time for which a connection is watched for a reset.
const resetWatch = 5 * time.Millisecond

// TCPConfig configures [TCPExchange].
type TCPConfig struct {
	// Port is the TCP port to check, on the host's own address, instead of the
	// port of the connection string. A host that is a unix socket is then
	// checked on localhost. Zero checks the target of the connection string.
	Port int

	// Send is sent after the connect, 64 KiB at most. Empty sends nothing.
	Send []byte

	// Expect must be contained in the first 64 KiB that the host sends, byte for
	// byte. Empty does not wait.
	Expect []byte

	// Handshake is the protocol of the greeting to read, one of [greeting.Names],
	// instead of Send and Expect. Empty reads none.
	Handshake string

	// Complete opens a connection that the service accepts also where Send, Expect
	// and Handshake are empty.
	Complete bool

	// Resolve turns names into addresses. Nil queries the system's name servers,
	// without the earlier answers of a [Resolver].
	Resolve ResolveFunc

	// Source is the local address to connect from, if it is of the family of the
	// host's address. The zero Addr leaves it to the system.
	Source netip.Addr

	// SendProxy is the version of the PROXY protocol header that is sent first:
	// UNKNOWN in version 1 and LOCAL in version 2, both of which mean a
	// connection of the proxy itself. It is sent to the target of the connection
	// string, not to another Port. Zero sends none.
	SendProxy int

	// Doubts holds hosts for which the check opens a complete connection and
	// waits for a reset, as for a unix socket, until one check has passed. Nil
	// holds none.
	Doubts *Doubts
}

// TCPExchange returns the check of [NewTCPCheck].
func TCPExchange(cfg TCPConfig) (Check, error) {
	c, err := NewTCPCheck(cfg)
	if err != nil {
		return nil, err
	}
	return c.Check, nil
}

// NewTCPCheck returns a check that connects to the host, sends Send and passes
// when Expect has come, or an error that names every bad field. Without Expect
// it passes when the host does not reset the connection at once. It does not wait
// for Expect before it sends: a banner and the answer to Send may be looked for,
// but not a dialogue.
//
// With Handshake it passes when the host has sent the greeting of that protocol, and it
// ends the connection as the protocol wants it; see [greeting.Exchange].
//
// Without any of these, and without Complete, it passes when the host has a listener with room in its
// queue. On Linux the service does not notice such a check: the connection is
// reset before its handshake is complete, so that accept(2) never returns it. A
// service that counted connections without a login against this machine, as
// MariaDB does, would otherwise refuse its clients in the end. So a listener passes
// whatever the service does with connections; [Doubts] covers what clients'
// connections show.
//
// To a unix socket, on other systems, and with Complete, the connection is accepted by
// the host. Then the check also fails when the host resets it at once, as a
// balancer without a backend or a service that cannot fork does. It watches for
// that for 5ms at most; data, or a clean end, passes too. That connection ends
// with a FIN, since hosts log a reset as a fault of their client.
func NewTCPCheck(cfg TCPConfig) (*TCPCheck, error) {
	var errs []error
	if cfg.Port < 0 || cfg.Port > 65535 {
		errs = append(errs, fmt.Errorf("port: %d is not from 1 to 65535", cfg.Port))
	}
	if len(cfg.Send) > criteria.BodyLimit {
		errs = append(errs, fmt.Errorf("send: %d bytes, more than %d", len(cfg.Send), criteria.BodyLimit))
	}
	if len(cfg.Expect) > criteria.BodyLimit {
		errs = append(errs, fmt.Errorf("expect: %d bytes, more than the %d that are read", len(cfg.Expect), criteria.BodyLimit))
	}
	if cfg.Handshake != "" && !greeting.Known(cfg.Handshake) {
		errs = append(errs, fmt.Errorf("handshake: %q is none of %s", cfg.Handshake, strings.Join(greeting.Names(), ", ")))
	}
	if cfg.Handshake != "" && len(cfg.Send)+len(cfg.Expect) > 0 {
		errs = append(errs, errors.New("handshake: it is set together with send or expect"))
	}
	d, err := newDialer(cfg.Resolve, cfg.Source, cfg.SendProxy)
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("tcp check: %w", err)
	}
	d.quiet = quietly && !cfg.Complete && cfg.Handshake == "" && len(cfg.Send) == 0 && len(cfg.Expect) == 0
	return &TCPCheck{
		port:   uint16(cfg.Port), //nolint:gosec // G115: checked above
		send:   cfg.Send,
		expect: cfg.Expect, handshake: cfg.Handshake,
		dialer: d,
		doubts: cfg.Doubts,
	}, nil
}

// TCPCheck is a TCPConfig, validated.
type TCPCheck struct {
	port         uint16 // zero: the connection string's
	send, expect []byte
	handshake    string
	dialer       dialer
	doubts       *Doubts
}

// Check is the [Check].
func (c *TCPCheck) Check(ctx context.Context, host string) Result {
	began := time.Now()
	d, doubted := c.dialer, c.doubts.has(host)
	if doubted {
		d.quiet = false
	}
	phase, err := c.run(ctx, d, host)
	if doubted && err == nil {
		c.doubts.clear(host)
	}
	return NewResult(ctx, began, phase, err)
}

func (c *TCPCheck) run(ctx context.Context, d dialer, host string) (Phase, error) {
	h, err := address.ParseHost(host)
	if err != nil {
		return Resolve, fmt.Errorf("host %q %w", host, err)
	}
	conn, phase, err := d.connect(ctx, h, c.port)
	if err != nil {
		return phase, err
	}
	defer conn.Close() // the check needs no more of the connection
	if h = onPort(h, c.port); d.quiet && h.Path == "" {
		return Connect, nil // the service is not to notice
	}
	stop := endWith(ctx, conn)
	defer stop()
	return c.exchange(conn, h)
}

// Talk does over a connection what the check does after its own connect. The caller sets the
// deadline of conn and closes it.
func (c *TCPCheck) Talk(conn net.Conn) error {
	to := conn.RemoteAddr().String()
	if conn.RemoteAddr().Network() == "unix" {
		to = "unix:" + to
	}
	h, err := address.ParseHost(to)
	if err == nil {
		_, err = c.exchange(conn, h)
	}
	return err
}

func (c *TCPCheck) exchange(conn net.Conn, h address.Host) (Phase, error) {
	if c.handshake != "" {
		return c.greeted(conn, h)
	}
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

// greeted performs the handshake over conn, to h.
func (c *TCPCheck) greeted(conn net.Conn, h address.Host) (Phase, error) {
	err := greeting.Exchange(c.handshake, conn, h.Name)
	switch {
	case err == nil || errors.Is(err, greeting.ErrWrong):
		return Criteria, err
	case errors.Is(err, io.EOF):
		return Read, fmt.Errorf("no greeting: %s closed the connection", h)
	}
	return Read, fmt.Errorf("no greeting: %w", err)
}

// awaitBytes reads from h until expect was received.
func awaitBytes(in io.Reader, h address.Host, expect []byte) (Phase, error) {
	said, found, err := findBytes(in, expect)
	switch {
	case found:
		return Criteria, nil
	case err == nil:
		return Criteria, fmt.Errorf("%s sent %s and no %s in %d bytes", h, criteria.Quote(said), criteria.Quote(expect), len(said))
	case errors.Is(err, io.EOF):
		return Criteria, fmt.Errorf("%s sent %s and closed the connection, want %s", h, criteria.Quote(said), criteria.Quote(expect))
	case len(said) > 0:
		return Read, fmt.Errorf("%s sent %s, want %s: %w", h, criteria.Quote(said), criteria.Quote(expect), err)
	}
	return Read, err // already "read tcp …: cause"
}

// findBytes reads until expect or 64 KiB were received, and returns the bytes. The error
// is the reader's when that ended first.
func findBytes(in io.Reader, expect []byte) (said []byte, found bool, err error) {
	// A small answer needs little; a long one doubles it a few times.
	said = make([]byte, 0, 1<<10)
	for len(said) < criteria.BodyLimit {
		if len(said) == cap(said) {
			said = slices.Grow(said, min(len(said), criteria.BodyLimit-len(said)))
		}
		n, err := in.Read(said[len(said):min(cap(said), criteria.BodyLimit)])
		// A match may span the bytes before and the new ones.
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

// watchReset waits up to 5ms for data, the end or an error of conn, and returns an
// error. Data is read, as far as it fits: unread bytes would turn the FIN of Close into
// a reset.
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
