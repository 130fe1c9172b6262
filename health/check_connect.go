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

	"understudy/internal/address"
)

const (
	// addressTimeout limits the connect to an address when the name has another
	// one.
	addressTimeout = 250 * time.Millisecond

	// queuePause is the time to wait for room in the queue of a unix socket.
	queuePause = 10 * time.Millisecond
)

// ResolveFunc turns the name of a host into addresses, in the order to try
// them. [Resolver.Resolve] is one.
type ResolveFunc func(ctx context.Context, name string) ([]netip.Addr, error)

// dialer connects for a check in the same way as the relay connects for clients.
type dialer struct {
	resolve ResolveFunc

	// source is the local address of connections over TCP; the zero Addr leaves
	// it to the system.
	source netip.Addr

	// proxy is a PROXY protocol header, sent first on connections to the address
	// that clients are connected to; nil sends none.
	proxy []byte

	// quiet keeps the connections from the service; see [quietly].
	quiet bool
}

// newDialer returns a dialer, or an error naming every field that is invalid. A
// nil resolve queries the system's name servers.
func newDialer(resolve ResolveFunc, source netip.Addr, sendProxy int) (dialer, error) {
	if resolve == nil {
		resolve = lookupAddrs
	}
	d := dialer{resolve: resolve, source: source.Unmap()}
	switch sendProxy {
	case 0:
	case 1:
		d.proxy = []byte("PROXY UNKNOWN\r\n")
	case 2:
		d.proxy = []byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00") // LOCAL, unspecified
	default:
		return dialer{}, fmt.Errorf("send-proxy: version %d is neither 1 nor 2", sendProxy)
	}
	return d, nil
}

// connect connects to port of host, or to the host's own port when port is zero, by
// the end of ctx. When it fails it also returns the phase.
func (d dialer) connect(ctx context.Context, host address.Host, port uint16) (net.Conn, Phase, error) {
	to := onPort(host, port)
	conn, phase, err := d.dial(ctx, to)
	if err != nil || to != host || d.proxy == nil || d.quiet && host.Path == "" {
		return conn, phase, err
	}
	// A new connection accepts so few bytes without blocking.
	if _, err := conn.Write(d.proxy); err != nil {
		_ = conn.Close() // the check failed
		return nil, Write, err
	}
	return conn, phase, nil
}

func (d dialer) dial(ctx context.Context, to address.Host) (net.Conn, Phase, error) {
	if to.Path != "" {
		conn, err := connectUnix(ctx, to.Path)
		return conn, Connect, err
	}
	addrs, err := d.resolve.at(ctx, to.Name)
	if err != nil {
		return nil, Resolve, err
	}
	conn, err := d.connectFirst(ctx, addrs, to.Port)
	return conn, Connect, err
}

// atKey is the key of an addressOf in a context.
type atKey struct{}

type addressOf struct {
	name string
	addr netip.Addr
}

// At returns a context in which checks connect to addr instead of looking up name, so
// that all checks of a host with a name use the same address.
func At(ctx context.Context, name string, addr netip.Addr) context.Context {
	return context.WithValue(ctx, atKey{}, addressOf{name, addr})
}

// AddrOf returns the address that [At] gave name; false for none.
func AddrOf(ctx context.Context, name string) (netip.Addr, bool) {
	at, ok := ctx.Value(atKey{}).(addressOf)
	return at.addr, ok && at.name == name
}

// at is resolve with the address of [At].
func (resolve ResolveFunc) at(ctx context.Context, name string) ([]netip.Addr, error) {
	if addr, ok := AddrOf(ctx, name); ok {
		return []netip.Addr{addr}, nil
	}
	return resolve(ctx, name)
}

// connectFirst tries addrs in turn and returns the first connection. Each but
// the last gets 250ms, or its share of the time until the end of ctx if that
// is less. An error names every address that was tried.
func (d dialer) connectFirst(ctx context.Context, addrs []netip.Addr, port uint16) (net.Conn, error) {
	var failed error
	for i, addr := range addrs {
		conn, err := d.connectShare(ctx, netip.AddrPortFrom(addr, port), len(addrs)-i)
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
func (d dialer) connectShare(ctx context.Context, addr netip.AddrPort, left int) (net.Conn, error) {
	if left > 1 {
		share := addressTimeout
		if end, ok := ctx.Deadline(); ok {
			share = min(share, time.Until(end)/time.Duration(left))
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, share)
		defer cancel()
	}
	return d.connectAddr(ctx, addr)
}

// connectAddr connects to addr by the end of ctx.
func (d dialer) connectAddr(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	nd := plainDialer()
	bound := d.source.IsValid() && d.source.Is4() == addr.Addr().Unmap().Is4() // as in the relay
	if bound {
		nd.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(d.source, 0))
	}
	nd.Control = func(_, _ string, raw syscall.RawConn) error { return prepare(raw, bound, d.quiet) }
	conn, err := nd.DialContext(ctx, "tcp", addr.String())
	if err != nil && !bound {
		err = withoutSource(ctx, addr, err)
	}
	return conn, err
}

// withoutSource returns the error for a connect to addr that failed with err from no
// particular source address. The cause of EADDRNOTAVAIL need not be a missing port:
// where this machine has no address that can reach addr, as in a container without
// IPv6, that is permanent and so no local fault, and the error number that means one is
// dropped.
func withoutSource(ctx context.Context, addr netip.AddrPort, err error) error {
	if !errors.Is(err, syscall.EADDRNOTAVAIL) || hasSource(ctx, addr) {
		return err
	}
	return fmt.Errorf("dial tcp %s: connect: this machine has no address to connect from", addr)
}

// hasSource reports whether this machine has a source address for addr. It connects
// a UDP socket, which sends nothing; UDP has separate ports, so it works when TCP has
// no free port.
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

// plainDialer returns a dialer for the connections of single checks: plain TCP as the
// relay's clients use, without Multipath TCP, and no keep-alive.
func plainDialer() net.Dialer {
	d := net.Dialer{KeepAlive: -1}
	d.SetMultipathTCP(false)
	return d
}

// isTimeout reports whether err means that a deadline has passed.
func isTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}
