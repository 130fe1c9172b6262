package health

import (
	"net"

	"golang.org/x/sys/unix"
)

// wakeEarly lets writes to a slow client go on whenever some 16 KiB were
// taken, see TCP_NOTSENT_LOWAT in tcp(7). By default that is a third of the
// send buffer, which grows to megabytes: a client that takes 50 KiB a second
// would look like one that takes nothing.
func wakeEarly(conn *net.TCPConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return // the connection is closed, which its user will find out
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, 32<<10) // without it slow clients are cut earlier
	})
}
