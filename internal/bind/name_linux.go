package bind

import (
	"net/netip"

	"understudy/internal/rawsocket"
)

// LocalAddr returns a socket's own address, without a zone; invalid if it has no IP address.
func LocalAddr(fd int) netip.AddrPort { return rawsocket.Own(fd) }

// PeerAddr returns the address of a socket's other end, as [LocalAddr] does.
func PeerAddr(fd int) netip.AddrPort { return rawsocket.Peer(fd) }
