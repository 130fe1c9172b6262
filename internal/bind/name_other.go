//go:build !linux

package bind

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// LocalAddr returns a socket's own address, without a zone; invalid if it has no IP address.
func LocalAddr(fd int) netip.AddrPort { return addrPort(unix.Getsockname(fd)) }

// PeerAddr returns the address of a socket's other end, as [LocalAddr] does.
func PeerAddr(fd int) netip.AddrPort { return addrPort(unix.Getpeername(fd)) }

func addrPort(sa unix.Sockaddr, err error) netip.AddrPort {
	if err != nil {
		return netip.AddrPort{}
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}
