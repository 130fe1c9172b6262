package health

import (
	"errors"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// lampSocket is a bound socket. While it does not listen connects to it are
// refused, and nobody else can have the address.
type lampSocket struct {
	fd      int
	addr    *net.TCPAddr
	closing sync.Once
}

// claimLamp binds the address without listening.
func claimLamp(listen string) (*lampSocket, error) {
	addr, err := net.ResolveTCPAddr("tcp", listen)
	if err != nil {
		return nil, err
	}
	s, err := bindLamp(addr)
	if addr.IP == nil && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) { // no IPv6 on this machine
		addr.IP = net.IPv4zero
		s, err = bindLamp(addr)
	}
	if err == nil && addr.Port == 0 {
		// A port that the system chose is not held through a shutdown(2), so
		// the choice is claimed by its number.
		addr.Port = s.addr.Port
		_ = s.close()
		return bindLamp(addr)
	}
	return s, err
}

// bindLamp binds addr; without an IP every address, IPv4 and IPv6.
func bindLamp(addr *net.TCPAddr) (*lampSocket, error) {
	family := unix.AF_INET6
	var sa unix.Sockaddr
	if ip := addr.IP.To4(); ip != nil {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte(ip)}
	} else {
		in6 := &unix.SockaddrInet6{Port: addr.Port, ZoneId: zoneID(addr.Zone)}
		copy(in6.Addr[:], addr.IP)
		sa = in6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &lampSocket{fd: fd}
	if family == unix.AF_INET6 {
		only := 1
		if addr.IP == nil {
			only = 0
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
	}
	// With SO_REUSEADDR an address is free that another program has merely
	// bound with it. It is needed only for what our own last run left behind.
	err = unix.Bind(fd, sa)
	if errors.Is(err, unix.EADDRINUSE) {
		s.reuse(1)
		err = unix.Bind(fd, sa)
		s.reuse(0)
	}
	if err != nil {
		_ = s.close()
		return nil, os.NewSyscallError("bind", err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		_ = s.close()
		return nil, os.NewSyscallError("getsockname", err)
	}
	s.addr = &net.TCPAddr{IP: addr.IP, Zone: addr.Zone}
	if addr.IP == nil {
		s.addr.IP = net.IPv6unspecified
	}
	switch bound := bound.(type) {
	case *unix.SockaddrInet4:
		s.addr.Port = bound.Port
	case *unix.SockaddrInet6:
		s.addr.Port = bound.Port
	}
	return s, nil
}

// zoneID returns the index of the interface that an IPv6 zone names.
func zoneID(zone string) uint32 {
	if ifi, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifi.Index) //nolint:gosec // an index is small and positive
	}
	n, _ := strconv.ParseUint(zone, 10, 32)
	return uint32(n)
}

// reuse sets SO_REUSEADDR.
func (s *lampSocket) reuse(on int) {
	_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, on)
}

// listen takes connections from now on.
func (s *lampSocket) listen() (net.Listener, error) {
	// Connections that were closed a moment ago still have the port, and
	// listen(2) refuses that unless all have SO_REUSEADDR, which they inherit.
	// While we do not listen we go without: nobody else can bind it then.
	s.reuse(1)
	if err := unix.Listen(s.fd, unix.SOMAXCONN); err != nil {
		s.reuse(0)
		return nil, os.NewSyscallError("listen", err)
	}
	fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		s.shut()
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), s.addr.String())
	ln, err := net.FileListener(f) // a duplicate
	_ = f.Close()
	if err != nil {
		s.shut()
		return nil, err
	}
	return ln, nil
}

// refuse ends what listen began: who waits is reset, who comes is refused.
func (s *lampSocket) refuse(ln net.Listener) {
	s.shut()
	_ = ln.Close()
}

// shut stops listening. On Linux shutdown(2) does that to a listening socket,
// and listen(2) undoes it.
func (s *lampSocket) shut() {
	_ = unix.Shutdown(s.fd, unix.SHUT_RD)
	s.reuse(0)
}

// close gives the address up, once: its descriptor may be another's then.
func (s *lampSocket) close() (err error) {
	s.closing.Do(func() { err = os.NewSyscallError("close", unix.Close(s.fd)) })
	return err
}
