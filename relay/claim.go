package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// claim is a bound socket that does not listen: nobody else can have the
// address, and connects to it are refused.
type claim struct {
	fd      int
	path    string // of a unix socket of our own
	addr    net.Addr
	setting string // see [listenAddr.setting], or given
}

// given is the setting of a socket that somebody else made: no address reads so.
const given = ""

// claimAll claims every address of the settings, or none. The sockets that
// somebody else made come first.
func claimAll(cfg Config) ([]claim, error) {
	var all []claim
	fail := func(err error) ([]claim, error) {
		for _, c := range all {
			c.close()
		}
		return nil, err
	}
	for _, fd := range cfg.Sockets {
		c, err := adoptSocket(fd)
		if err != nil {
			return fail(err)
		}
		all = append(all, c)
	}
	for _, text := range cfg.Listen {
		c, err := claimListed(text)
		if err != nil {
			return fail(err)
		}
		all = append(all, c)
	}
	return all, nil
}

// claimListed claims one address of the settings.
func claimListed(text string) (claim, error) {
	a, err := parseListen(text)
	if err != nil {
		return claim{}, err
	}
	c, err := claimAddr(a)
	if err != nil {
		return claim{}, fmt.Errorf("listen on %s: %w", text, err)
	}
	c.setting = a.setting()
	return c, nil
}

func claimAddr(a listenAddr) (claim, error) {
	if a.path != "" {
		return claimUnix(a.path)
	}
	if a.host == "" {
		c, err := claimTCP(netip.AddrPortFrom(netip.IPv6Unspecified(), a.port))
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) { // no IPv6 on this machine
			return claimTCP(netip.AddrPortFrom(netip.IPv4Unspecified(), a.port))
		}
		return c, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", a.host)
	if err != nil {
		return claim{}, err
	}
	return claimTCP(netip.AddrPortFrom(ips[0].Unmap(), a.port))
}

// claimTCP claims ip and port without listening. For the unspecified IPv6
// address the socket takes IPv4 as well.
func claimTCP(ap netip.AddrPort) (claim, error) {
	sa, family := inetSockaddr(ap)
	fd, err := newSocket(family)
	if err != nil {
		return claim{}, err
	}
	if family == unix.AF_INET6 {
		only := 1
		if ap.Addr().IsUnspecified() {
			only = 0
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
	}
	// An address on which another program listens is busy with SO_REUSEADDR
	// too; one that another program has merely bound, with SO_REUSEADDR, is busy
	// only without. Remains of our own last run (TIME_WAIT) need it.
	err = wrap("bind", unix.Bind(fd, sa))
	if errors.Is(err, unix.EADDRINUSE) {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		err = wrap("bind", unix.Bind(fd, sa))
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
	}
	if err != nil {
		_ = unix.Close(fd)
		return claim{}, err
	}
	bound := boundTo(fd)
	if ap.Port() == 0 {
		// A port that the system chose is not held through a shutdown(2) (the
		// kernel's SOCK_BINDPORT_LOCK), so the choice is claimed by its number.
		_ = unix.Close(fd)
		return claimTCP(netip.AddrPortFrom(ap.Addr(), bound.Port()))
	}
	bound = netip.AddrPortFrom(bound.Addr().WithZone(ap.Addr().Zone()), bound.Port())
	return claim{fd: fd, addr: net.TCPAddrFromAddrPort(bound)}, nil
}

// claimUnix claims a socket file without listening. A file left behind by a
// program that is gone is no obstacle; one that somebody answers on is.
func claimUnix(path string) (claim, error) {
	if len(path) > unixPathMax {
		return claim{}, fmt.Errorf("%w: the path is longer than %d bytes", wrap("bind", unix.ENAMETOOLONG), unixPathMax)
	}
	sa := &unix.SockaddrUnix{Name: path}
	fd, err := newSocket(unix.AF_UNIX)
	if err != nil {
		return claim{}, err
	}
	err = wrap("bind", unix.Bind(fd, sa))
	if errors.Is(err, unix.EADDRINUSE) && isStale(path) {
		_ = os.Remove(path)
		err = wrap("bind", unix.Bind(fd, sa))
	}
	if err != nil {
		_ = unix.Close(fd)
		return claim{}, err
	}
	return claim{fd: fd, path: path, addr: &net.UnixAddr{Name: path, Net: "unix"}}, nil
}

// isStale says whether path is a socket on which nobody listens.
func isStale(path string) bool {
	if info, err := os.Lstat(path); err != nil || info.Mode()&os.ModeSocket == 0 {
		return false
	}
	fd, err := newSocket(unix.AF_UNIX)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	return errors.Is(unix.Connect(fd, &unix.SockaddrUnix{Name: path}), unix.ECONNREFUSED)
}

// adoptSocket takes over a bound stream socket that somebody else made. One
// that listens already stays so.
func adoptSocket(fd int) (claim, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return claim{}, fmt.Errorf("socket %d: %w", fd, wrap("getsockopt", err))
	}
	if kind != unix.SOCK_STREAM {
		return claim{}, fmt.Errorf("socket %d: it is not a stream socket", fd)
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return claim{}, fmt.Errorf("socket %d: %w", fd, wrap("fcntl", err))
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return claim{}, fmt.Errorf("socket %d: %w", fd, wrap("getsockname", err))
	}
	if a, ok := sa.(*unix.SockaddrUnix); ok {
		// No path: the file belongs to whoever made the socket.
		return claim{fd: fd, addr: &net.UnixAddr{Name: a.Name, Net: "unix"}}, nil
	}
	return claim{fd: fd, addr: net.TCPAddrFromAddrPort(addrPort(sa))}, nil
}

// listens says whether the socket is in the listening state.
func (c claim) listens() bool {
	v, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && v != 0
}

// close gives the address up.
func (c claim) close() {
	if c.fd >= 0 {
		_ = unix.Close(c.fd)
	}
	removeSocketFile(c.path)
}

// removeSocketFile removes the file of a unix socket; an empty path and a name
// of the abstract namespace have none.
func removeSocketFile(path string) {
	if path != "" && path[0] != '@' {
		_ = os.Remove(path)
	}
}

// newSocket makes a non-blocking stream socket that no script inherits. Protocol
// 0 is plain TCP.
func newSocket(family int) (int, error) {
	syscall.ForkLock.RLock()
	fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err == nil {
		if err = unix.SetNonblock(fd, true); err != nil {
			_ = unix.Close(fd)
		}
	}
	return fd, wrap("socket", err)
}

// boundTo is a socket's own address.
func boundTo(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return addrPort(sa)
}

func inetSockaddr(ap netip.AddrPort) (sa unix.Sockaddr, family int) {
	if a := ap.Addr().Unmap(); a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(ap.Port())}, unix.AF_INET
	}
	return &unix.SockaddrInet6{Addr: ap.Addr().As16(), Port: int(ap.Port()), ZoneId: scope(ap.Addr())}, unix.AF_INET6
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)) //nolint:gosec // a port
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port)) //nolint:gosec // a port
	}
	return netip.AddrPort{}
}
