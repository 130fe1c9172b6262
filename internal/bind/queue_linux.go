package bind

import "understudy/internal/rawsocket"

// countsQueue reports whether the system says how many clients wait to be accepted.
const countsQueue = true

// queueLength returns how many clients wait to be accepted: for a listening
// socket the tcpi_unacked of TCP_INFO; see tcp_diag in the kernel.
func queueLength(fd int) int {
	info, e := rawsocket.TCPInfo(fd)
	if e != 0 {
		return 0
	}
	return int(info.Unacked)
}
