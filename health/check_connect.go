package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

const (
	// addrPatience is how long an address is waited for when the name has
	// another one.
	addrPatience = 250 * time.Millisecond

	// queuePause is how long to wait for room in the queue of a unix socket.
	queuePause = 10 * time.Millisecond
)

// ResolveFunc turns the name of a host into addresses, in the order to try
// them. [Resolver.Resolve] is one.
type ResolveFunc func(ctx context.Context, name string) ([]netip.Addr, error)

// connect connects to host by the end of ctx. When it fails it also says in
// which phase.
func (resolve ResolveFunc) connect(ctx context.Context, host Host) (net.Conn, Phase, error) {
	if host.Path != "" {
		conn, err := connectUnix(ctx, host.Path)
		return conn, Connect, err
	}
	addrs, err := resolve(ctx, host.Name)
	if err != nil {
		return nil, Resolve, err
	}
	conn, err := connectFirst(ctx, addrs, host.Port)
	return conn, Connect, err
}

// connectFirst tries addrs in turn and returns the first connection. Each but
// the last gets 250ms, or its share of the time until the end of ctx if that
// is less. An error names every address that was tried.
func connectFirst(ctx context.Context, addrs []netip.Addr, port uint16) (net.Conn, error) {
	var failed error
	for i, addr := range addrs {
		conn, err := connectShare(ctx, netip.AddrPortFrom(addr, port), len(addrs)-i)
		if err == nil {
			return conn, nil
		}
		if failed == nil {
			failed = err
		} else {
			failed = fmt.Errorf("%w; %w", failed, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

// connectShare connects to addr, the first of left addresses, in its share of
// the time until the end of ctx.
func connectShare(ctx context.Context, addr netip.AddrPort, left int) (net.Conn, error) {
	if left > 1 {
		share := addrPatience
		if end, ok := ctx.Deadline(); ok {
			share = min(share, time.Until(end)/time.Duration(left))
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, share)
		defer cancel()
	}
	return connectAddr(ctx, addr)
}

// connectAddr connects to addr by the end of ctx.
func connectAddr(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	d := plainDialer()
	conn, err := d.DialContext(ctx, "tcp", addr.String())
	if errors.Is(err, syscall.EADDRNOTAVAIL) && !hasSource(ctx, addr) {
		// Not for want of a port: this machine has no address that could
		// speak to addr, as in a container without IPv6. That lasts, so it is
		// no local fault, and the number that says so is dropped.
		return nil, fmt.Errorf("dial tcp %s: connect: this machine has no address to connect from", addr)
	}
	return conn, err
}

// hasSource reports whether this machine has an address to speak to addr
// from. Connecting a UDP socket finds that out and sends nothing; UDP has
// ports of its own, so it works when TCP has none left.
func hasSource(ctx context.Context, addr netip.AddrPort) bool {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", addr.String())
	if err != nil {
		return !errors.Is(err, syscall.EADDRNOTAVAIL)
	}
	_ = conn.Close() // nothing was sent
	return true
}

// connectUnix connects to the unix socket at path by the end of ctx. While the
// host's queue is full it waits, as TCP does; the kernel refuses at once.
func connectUnix(ctx context.Context, path string) (net.Conn, error) {
	d := plainDialer()
	pause := time.NewTimer(queuePause)
	defer pause.Stop()
	var full error
	for {
		conn, err := d.DialContext(ctx, "unix", path)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			full = err
		case full != nil && (isTimeout(err) || errors.Is(err, context.Canceled)):
			return nil, fmt.Errorf("%w: its queue stayed full", full)
		default:
			return conn, err
		}
		pause.Reset(queuePause)
		select {
		case <-pause.C:
		case <-ctx.Done(): // so the next dial fails at once
		}
	}
}

// plainDialer returns a dialer for connections that live for one question:
// plain TCP, since Multipath TCP would ask the host something else than the
// relay's clients do, and no keep-alive.
func plainDialer() net.Dialer {
	d := net.Dialer{KeepAlive: -1}
	d.SetMultipathTCP(false)
	return d
}

// isTimeout reports whether err means that a deadline has passed.
func isTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}
