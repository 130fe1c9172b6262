// Package bind binds addresses without listening on them. A bound address is
// reserved for this process, and connects to it are refused until it listens.
package bind

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"understudy/internal/address"
)

// backlog requests the longest queue of clients that the system allows:
// listen(2) reduces it to its limit, on Linux net.core.somaxconn.
const backlog = 1<<16 - 1

// Socket is a bound stream socket. It listens only between Listen and Refuse.
// Its methods must not be called by two goroutines at once.
type Socket struct {
	// FD is the descriptor, which belongs to the Socket; -1 while there is none.
	FD int

	// Addr is the address, with the port that the system chose.
	Addr net.Addr

	// Path is the file of a unix socket; empty for TCP and for a socket that
	// another program made.
	Path string

	given     bool // another program made it
	freebind  bool
	file      File
	listening bool
	resume    func() // ends the discarding of clients; nil while there is none
}

// TCP binds an IP address and port. The zero Addr and the unspecified IPv6
// address are every address, IPv4 and IPv6. With port zero the system chooses
// one. With freebind it need not be an address of this machine. The error is
// that of the system call.
func TCP(ap netip.AddrPort, freebind bool) (*Socket, error) {
	if !ap.Addr().IsValid() {
		s, err := TCP(netip.AddrPortFrom(netip.IPv6Unspecified(), ap.Port()), freebind)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) { // no IPv6 on this machine
			return TCP(netip.AddrPortFrom(netip.IPv4Unspecified(), ap.Port()), freebind)
		}
		return s, err
	}
	fd, err := bindTCP(ap, freebind)
	if err != nil {
		return nil, err
	}
	bound := LocalAddr(fd)
	if ap.Port() == 0 {
		// A port that the system chose is released by shutdown(2) (the
		// kernel's SOCK_BINDPORT_LOCK), so the port is bound again by its
		// number.
		_ = unix.Close(fd)
		return TCP(netip.AddrPortFrom(ap.Addr(), bound.Port()), freebind)
	}
	bound = netip.AddrPortFrom(bound.Addr().WithZone(ap.Addr().Zone()), bound.Port())
	return &Socket{FD: fd, Addr: net.TCPAddrFromAddrPort(bound), freebind: freebind}, nil
}

func bindTCP(ap netip.AddrPort, freebind bool) (int, error) {
	if zone := ap.Addr().Zone(); zone != "" && ZoneIndex(ap.Addr()) == 0 {
		return -1, fmt.Errorf("there is no interface %s: %w", zone, unix.EADDRNOTAVAIL)
	}
	sa, family := Sockaddr(ap)
	fd, err := open(family)
	if err != nil {
		return -1, err
	}
	if family == unix.AF_INET6 {
		only := 1
		if ap.Addr().IsUnspecified() {
			only = 0
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
	}
	if freebind {
		err = setFreebind(fd, family)
	}
	if err == nil {
		// Without SO_REUSEADDR, connections of our own last run (TIME_WAIT)
		// make the bind fail. With it, an address on which another program
		// listens is still busy, but one that another program has only bound,
		// with SO_REUSEADDR, is not.
		err = os.NewSyscallError("bind", unix.Bind(fd, sa))
		if errors.Is(err, unix.EADDRINUSE) {
			reuse(fd, 1)
			err = os.NewSyscallError("bind", unix.Bind(fd, sa))
			reuse(fd, 0)
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// reuse sets SO_REUSEADDR.
func reuse(fd, on int) { _ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, on) }

// Unix binds a socket file, which gets the mode and owner of file. A file left
// behind by a program that has ended is replaced; a socket on which a program
// listens is an error.
func Unix(path string, file File) (*Socket, error) {
	fd, err := bindUnix(path, file)
	if err != nil {
		return nil, err
	}
	return &Socket{FD: fd, Addr: &net.UnixAddr{Name: path, Net: "unix"}, Path: path, file: file}, nil
}

func bindUnix(path string, file File) (int, error) {
	if len(path) > address.MaxPath {
		return -1, fmt.Errorf("%w: the path is longer than %d bytes", os.NewSyscallError("bind", unix.ENAMETOOLONG), address.MaxPath)
	}
	sa := &unix.SockaddrUnix{Name: path}
	fd, err := open(unix.AF_UNIX)
	if err != nil {
		return -1, err
	}
	// Only the owner may use the file until it has its mode; see unix(7).
	_ = unix.Fchmod(fd, 0o600)
	err = os.NewSyscallError("bind", unix.Bind(fd, sa))
	if errors.Is(err, unix.EADDRINUSE) && isStale(path) {
		_ = os.Remove(path)
		err = os.NewSyscallError("bind", unix.Bind(fd, sa))
	}
	if err == nil {
		if err = file.apply(path); err != nil {
			_ = os.Remove(path)
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// isStale reports whether path is a socket on which no program listens.
func isStale(path string) bool {
	if info, err := os.Lstat(path); err != nil || info.Mode()&os.ModeSocket == 0 {
		return false
	}
	fd, err := open(unix.AF_UNIX)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	return errors.Is(unix.Connect(fd, &unix.SockaddrUnix{Name: path}), unix.ECONNREFUSED)
}

// Adopt takes over a bound stream socket that another program made. If it
// listens already, it continues to.
func Adopt(fd int) (*Socket, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, fmt.Errorf("socket %d: %w", fd, os.NewSyscallError("getsockopt", err))
	}
	if kind != unix.SOCK_STREAM {
		return nil, fmt.Errorf("socket %d: it is not a stream socket", fd)
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("socket %d: %w", fd, os.NewSyscallError("fcntl", err))
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("socket %d: %w", fd, os.NewSyscallError("getsockname", err))
	}
	s := &Socket{FD: fd, Addr: net.TCPAddrFromAddrPort(LocalAddr(fd)), given: true}
	if a, ok := sa.(*unix.SockaddrUnix); ok {
		// No path: the file belongs to the program that made the socket.
		s.Addr = &net.UnixAddr{Name: a.Name, Net: "unix"}
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	s.listening = err == nil && listens != 0
	return s, nil
}

// SetFile changes the mode and owner of the file of a unix socket. It does
// nothing for other sockets.
func (s *Socket) SetFile(file File) error {
	if s.Path == "" {
		return nil
	}
	if err := file.apply(s.Path); err != nil {
		return err
	}
	s.file = file
	return nil
}

// Listening reports whether clients are accepted into the queue.
func (s *Socket) Listening() bool { return s.listening }

// Listen starts to accept clients into the queue. The error is that of the
// system call; it may mean that another program has taken the address of a unix
// socket, or on systems other than Linux any address, since Refuse.
func (s *Socket) Listen() error {
	s.stopDiscarding()
	if s.listening {
		return nil
	}
	if s.FD < 0 {
		if err := s.rebind(); err != nil {
			return err
		}
	}
	tcp := s.Addr.Network() == "tcp"
	if tcp {
		// Connections that are still open share the port, and listen(2) fails
		// unless all of them have SO_REUSEADDR, which they inherit. A socket
		// that does not listen has it off, so that no other program can bind
		// the address.
		reuse(s.FD, 1)
	}
	if err := unix.Listen(s.FD, backlog); err != nil {
		if tcp {
			reuse(s.FD, 0)
		}
		return os.NewSyscallError("listen", err)
	}
	s.listening = true
	return nil
}

// Refuse resets the clients in the queue and refuses new ones; the address
// stays bound. Listeners of [Socket.Listener] must be closed before. Two kinds
// of sockets that another program made cannot refuse: on Linux a unix socket,
// whose clients wait from then on, and on other systems any socket, whose
// clients are accepted and reset.
//
// An error, never on Linux, says that the address could not be bound again.
func (s *Socket) Refuse() error {
	switch {
	case !s.listening:
		return nil
	case s.Path == "":
		return s.refuse()
	}
	// A unix socket cannot listen again after shutdown(2). Without shutdown the
	// file stays, and connects to it are refused.
	s.listening = false
	s.closeFD()
	return nil
}

// rebind binds the address again.
func (s *Socket) rebind() (err error) {
	if a, ok := s.Addr.(*net.TCPAddr); ok {
		s.FD, err = bindTCP(a.AddrPort(), s.freebind)
	} else {
		s.FD, err = bindUnix(s.Path, s.file)
	}
	return err
}

func (s *Socket) closeFD() {
	if s.FD < 0 {
		return
	}
	if !s.given {
		// If a process is being forked at this moment, its copy would continue
		// to listen until it executes its program.
		_ = unix.Shutdown(s.FD, unix.SHUT_RDWR)
	}
	_ = unix.Close(s.FD)
	s.FD = -1
}

func (s *Socket) stopDiscarding() {
	if s.resume != nil {
		s.resume()
		s.resume = nil
	}
}

// Close releases the address, and removes the file of a unix socket that this
// process made. Closing twice does nothing.
func (s *Socket) Close() {
	s.stopDiscarding()
	s.listening = false
	s.closeFD()
	if s.Path != "" {
		_ = os.Remove(s.Path)
	}
}

// CountsQueue reports whether [Socket.Queued] knows how many clients wait.
func (s *Socket) CountsQueue() bool { return countsQueue && s.Addr.Network() == "tcp" }

// Queued returns how many clients wait to be accepted; 0 where the system does
// not report it.
func (s *Socket) Queued() int {
	if !s.listening || !s.CountsQueue() {
		return 0
	}
	return queueLength(s.FD)
}

// Listener returns a listener of the standard library for a copy of a socket
// that listens. Closing it closes only the copy.
func (s *Socket) Listener() (net.Listener, error) {
	fd, err := unix.FcntlInt(uintptr(s.FD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), s.Addr.String())
	defer f.Close() // FileListener makes a copy
	return net.FileListener(f)
}

// open makes a non-blocking stream socket that scripts do not inherit. Protocol
// 0 is plain TCP.
func open(family int) (int, error) {
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
	return fd, os.NewSyscallError("socket", err)
}

// Sockaddr returns an address for system calls, with its family. An IPv4 address in
// IPv6 form is an IPv4 address.
func Sockaddr(ap netip.AddrPort) (sa unix.Sockaddr, family int) {
	if a := ap.Addr().Unmap(); a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(ap.Port())}, unix.AF_INET
	}
	return &unix.SockaddrInet6{Addr: ap.Addr().As16(), Port: int(ap.Port()), ZoneId: ZoneIndex(ap.Addr())}, unix.AF_INET6
}

// ZoneIndex returns the interface index of a link-local address's zone; 0 without one.
func ZoneIndex(a netip.Addr) uint32 {
	zone := a.Zone()
	if zone == "" {
		return 0
	}
	if ifi, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifi.Index) //nolint:gosec // an index is positive
	}
	n, _ := strconv.ParseUint(zone, 10, 32)
	return uint32(n)
}
