// Package greeting performs the openings of protocols that show that a server answers.
// None logs in, and each ends as the server counts and logs least: the comment of each
// says what a server was seen to do.
package greeting

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"understudy/internal/criteria"
)

// ErrWrong is wrapped by errors about what a server sent. Other errors mean that it did
// not send its greeting, or not all of it.
var ErrWrong = errors.New("wrong greeting")

const (
	// maxGreeting limits the bytes that are read of a greeting.
	maxGreeting = 64 << 10

	// maxLine limits the bytes of one of its lines.
	maxLine = 4 << 10

	// farewell is the time that a server gets to end the connection from its side. It
	// is shorter than the usual time after which a check is late.
	farewell = 50 * time.Millisecond
)

// exchange reads the greeting of a server, and says goodbye in its protocol. Name is the
// host's name, or its IP address; empty for a unix socket.
type exchange func(in *bufio.Reader, conn net.Conn, name string) error

var exchanges = map[string]exchange{
	"mysql": mysql, "smtp": smtp, "ssh": ssh, "ftp": ftp, "tls": tlsHandshake, "postgres": postgres,
}

// Names returns the names of the protocols, sorted.
func Names() []string { return slices.Sorted(maps.Keys(exchanges)) }

// Known reports whether there is a protocol of that name.
func Known(protocol string) bool { return exchanges[protocol] != nil }

// Exchange performs the opening of a protocol that is [Known] over conn, to the server
// with that name or IP address, and returns why its greeting is missing or wrong. The
// caller sets the deadline of conn and closes it; at the end of Exchange the writing side
// is closed already, so that the server ends the connection first where it does so within
// 50ms.
func Exchange(protocol string, conn net.Conn, name string) error {
	in := bufio.NewReaderSize(io.LimitReader(conn, maxGreeting), maxLine)
	err := exchanges[protocol](in, conn, name)
	if err == nil {
		leave(conn)
	}
	return err
}

// leave closes conn for writing and reads until the server has closed it too: unread
// bytes would turn the FIN of Close into a reset, which servers log as a fault.
func leave(conn net.Conn) {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || conn.SetReadDeadline(time.Now().Add(farewell)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, conn, maxGreeting) // the greeting was good
}

// wrong returns an error about what a server sent.
func wrong(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrWrong}, args...)...)
}

// tlsHandshake makes a TLS handshake and accepts every certificate. nginx logs nothing
// about a connection that ends after it.
func tlsHandshake(_ *bufio.Reader, conn net.Conn, name string) error {
	cfg := &tls.Config{
		MinVersion:         tls.VersionTLS10, // nothing secret is sent
		InsecureSkipVerify: true,             //nolint:gosec // G402: likewise; checks of kind http verify
	}
	if _, err := netip.ParseAddr(name); err != nil {
		cfg.ServerName = name
	}
	client := tls.Client(conn, cfg)
	err := client.Handshake() //nolint:noctx // the deadline of conn ends it
	if err == nil {
		return client.CloseWrite() // close_notify
	}
	var failed net.Error
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &failed) && !isAlert(err) {
		return err
	}
	return wrong("%w", err)
}

// isAlert reports whether err is a TLS alert of the server, which package tls wraps like
// an error of the network.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// quote returns what a server sent for an error.
func quote[T ~string | ~[]byte](sent T) string { return criteria.Quote([]byte(sent)) }
