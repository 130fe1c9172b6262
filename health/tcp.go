package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
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
	return func(ctx context.Context, host string) Result {
		began := time.Now()
		phase, err := checkTCP(ctx, resolve, host)
		return Outcome(ctx, began, phase, err)
	}
}

func checkTCP(ctx context.Context, resolve ResolveFunc, host string) (Phase, error) {
	h, err := ParseHost(host)
	if err != nil {
		return Resolve, err
	}
	conn, phase, err := resolve.connect(ctx, h)
	if err != nil {
		return phase, err
	}
	defer conn.Close() // nothing was written that could be lost
	return Read, watchReset(conn)
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
