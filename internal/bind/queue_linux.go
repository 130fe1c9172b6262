package bind

import "golang.org/x/sys/unix"

// countsQueue reports whether the system says how many clients wait to be accepted.
const countsQueue = true

// queueLength returns how many clients wait to be accepted: for a listening
// socket the tcpi_unacked of TCP_INFO; see tcp_diag in the kernel.
func queueLength(fd int) int {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return int(info.Unacked)
}
