package relay

import (
	"time"

	"golang.org/x/sys/unix"
)

// The system-specific socket options and queries of the portable plane.

// setOptions sets what the standard library has no name for: the system's nearest
// to TCP_USER_TIMEOUT, in whole seconds; see tcp(4).
func setOptions(fd int, userTimeout time.Duration, _ bool) {
	if userTimeout > 0 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_RXT_CONNDROPTIME, int(max(1, userTimeout/time.Second)))
	}
}

// unsentBytes returns how many bytes written to a socket its peer has not taken
// yet (SO_NWRITE; see getsockopt(2)).
func unsentBytes(fd int) (n int, known bool) {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NWRITE)
	return n, err == nil
}
