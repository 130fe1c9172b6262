package bind

import "golang.org/x/sys/unix"

// countsQueue reports whether the system says how many clients wait to be accepted.
const countsQueue = true

// queueLength returns how many clients wait to be accepted (SO_LISTENQLEN; see
// getsockopt(2)).
func queueLength(fd int) int {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LISTENQLEN)
	if err != nil {
		return 0
	}
	return n
}
