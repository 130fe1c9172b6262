//go:build portable

package relay

import (
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/tcp"
)

// The system-specific socket options and queries of the portable plane.

// setOptions sets what the standard library has no name for. A socket that is
// dialled from a chosen source address has it set before it is bound.
func setOptions(fd int, userTimeout time.Duration, source bool) {
	if userTimeout > 0 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout/time.Millisecond))
	}
	if source {
		tcp.SetLatePort(fd)
	}
}

// unsentBytes returns how many bytes written to a socket its peer has not taken
// yet (SIOCOUTQ; see tcp(7)).
func unsentBytes(fd int) (n int, known bool) {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	return n, err == nil
}
