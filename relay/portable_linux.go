//go:build portable

package relay

import (
	"time"

	"golang.org/x/sys/unix"
)

// What the portable engine asks of the system.

// setOptions sets what the standard library has no name for. A socket that is
// dialled from a chosen source address has it set before it is bound.
func setOptions(fd int, userTimeout time.Duration, source bool) {
	if userTimeout > 0 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout/time.Millisecond))
	}
	if source {
		// Without this the kernel would pick a port at bind already, and one port
		// could serve one connection only; see ip(7).
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	}
}

// unsentBytes says how many bytes written to a socket its peer has not taken yet
// (SIOCOUTQ; see tcp(7)).
func unsentBytes(fd int) (n int, known bool) {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	return n, err == nil
}

// queueLength is how many clients wait to be accepted: for a listening socket the
// tcpi_unacked of TCP_INFO; see tcp_diag in the kernel.
func queueLength(fd int) int {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return int(info.Unacked)
}
