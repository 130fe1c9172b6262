package rawsocket

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SetInt sets an integer option; see setsockopt(2).
func SetInt(fd, level, name, value int) unix.Errno {
	v := int32(value)
	return set(fd, level, name, unsafe.Pointer(&v), unsafe.Sizeof(v))
}

// SetResetOnClose has close(2) reset the connection and throw away what was not sent yet;
// see SO_LINGER in socket(7).
func SetResetOnClose(fd int, on bool) unix.Errno {
	linger := unix.Linger{}
	if on {
		linger.Onoff = 1
	}
	return set(fd, unix.SOL_SOCKET, unix.SO_LINGER, unsafe.Pointer(&linger), unsafe.Sizeof(linger))
}

func set(fd, level, name int, value unsafe.Pointer, size uintptr) unix.Errno {
	_, _, e := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(value), size, 0)
	return e
}

// Error takes the pending error of a socket; see SO_ERROR in socket(7). A descriptor that
// is none has EBADF.
func Error(fd int) unix.Errno {
	v, size := int32(0), uint32(unsafe.Sizeof(int32(0)))
	_, _, e := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR, uintptr(unsafe.Pointer(&v)), uintptr(unsafe.Pointer(&size)), 0)
	if e != 0 {
		return unix.EBADF
	}
	return unix.Errno(v)
}

// TCPInfo returns what the kernel knows of a TCP socket; see TCP_INFO in tcp(7). What an older
// kernel does not know is 0.
func TCPInfo(fd int) (info unix.TCPInfo, e unix.Errno) {
	size := uint32(unsafe.Sizeof(info))
	_, _, e = unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_INFO, uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	return info, e
}

// Own returns a socket's own address, and Peer that of its other end; see getsockname(2)
// and getpeername(2). It is invalid if there is none, or if it is no IP address.
func Own(fd int) netip.AddrPort { return name(unix.SYS_GETSOCKNAME, fd) }

// Peer: see [Own].
func Peer(fd int) netip.AddrPort { return name(unix.SYS_GETPEERNAME, fd) }

func name(call uintptr, fd int) netip.AddrPort {
	var a Addr
	a.Len = uint32(unsafe.Sizeof(a.Raw))
	if _, _, e := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&a.Raw)), uintptr(unsafe.Pointer(&a.Len))); e != 0 {
		return netip.AddrPort{}
	}
	return a.AddrPort()
}

// Bind gives a socket its own address; see bind(2).
func Bind(fd int, to *Addr) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&to.Raw)), uintptr(to.Len))
	return e
}

// Connect begins a connection; see connect(2). EINPROGRESS is the usual answer.
func Connect(fd int, to *Addr) unix.Errno {
	for {
		_, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&to.Raw)), uintptr(to.Len))
		if e != unix.EINTR {
			return e
		}
	}
}

// Events returns how many events an epoll has at present, which are in events then; see
// epoll_pwait(2), which every Linux port has.
func Events(epoll int, events []unix.EpollEvent) (int, unix.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	return int(n), e
}

// Addr is the address of a socket as the kernel has it.
type Addr struct {
	Raw unix.RawSockaddrAny
	Len uint32 // of what is used of it
}

// Inet returns an IP address and port. Scope is the index of the interface of a link-local
// IPv6 address. An IPv4 address in IPv6 form is an IPv4 address.
func Inet(ap netip.AddrPort, scope uint32) Addr {
	var to Addr
	b := [2]byte{byte(ap.Port() >> 8), byte(ap.Port())}
	port := *(*uint16)(unsafe.Pointer(&b))
	if a := ap.Addr().Unmap(); a.Is4() {
		p := (*unix.RawSockaddrInet4)(unsafe.Pointer(&to.Raw))
		p.Family, p.Port, p.Addr = unix.AF_INET, port, a.As4()
		to.Len = unix.SizeofSockaddrInet4
		return to
	}
	p := (*unix.RawSockaddrInet6)(unsafe.Pointer(&to.Raw))
	p.Family, p.Port, p.Addr, p.Scope_id = unix.AF_INET6, port, ap.Addr().As16(), scope
	to.Len = unix.SizeofSockaddrInet6
	return to
}

// Family returns the family of the address; see address_families(7).
func (a *Addr) Family() int { return int(a.Raw.Addr.Family) }

// AddrPort returns the IP address and port, without a zone; invalid if it is none.
func (a *Addr) AddrPort() netip.AddrPort {
	switch a.Raw.Addr.Family {
	case unix.AF_INET:
		p := (*unix.RawSockaddrInet4)(unsafe.Pointer(&a.Raw))
		return netip.AddrPortFrom(netip.AddrFrom4(p.Addr), hostOrder(p.Port))
	case unix.AF_INET6:
		p := (*unix.RawSockaddrInet6)(unsafe.Pointer(&a.Raw))
		return netip.AddrPortFrom(netip.AddrFrom16(p.Addr).Unmap(), hostOrder(p.Port))
	}
	return netip.AddrPort{}
}

// hostOrder turns a port of the network's byte order into a number.
func hostOrder(port uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&port))
	return uint16(b[0])<<8 | uint16(b[1])
}
