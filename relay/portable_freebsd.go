package relay

import (
	"time"

	"golang.org/x/sys/unix"
)

// The system-specific socket options and queries of the portable plane.

// setOptions has nothing to set here.
func setOptions(int, time.Duration, bool) {}

// fionwrite is FIONWRITE of sys/filio.h, _IOR('f', 119, int).
const fionwrite = 0x40046677

// unsentBytes returns how many bytes written to a socket its peer has not taken
// yet (FIONWRITE; see ioctl(2) and sys/filio.h).
func unsentBytes(fd int) (n int, known bool) {
	n, err := unix.IoctlGetInt(fd, fionwrite)
	return n, err == nil
}
