package relay

import (
	"time"

	"golang.org/x/sys/unix"
)

// What the portable engine asks of the system.

// setOptions has nothing to set here.
func setOptions(int, time.Duration, bool) {}

// fionwrite is FIONWRITE of sys/filio.h, _IOR('f', 119, int).
const fionwrite = 0x40046677

// unsentBytes says how many bytes written to a socket its peer has not taken yet
// (FIONWRITE; see ioctl(2) and sys/filio.h).
func unsentBytes(fd int) (n int, known bool) {
	n, err := unix.IoctlGetInt(fd, fionwrite)
	return n, err == nil
}

// queueLength is how many clients wait to be accepted (SO_LISTENQLEN; see
// getsockopt(2)).
func queueLength(fd int) int {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LISTENQLEN)
	if err != nil {
		return 0
	}
	return n
}
