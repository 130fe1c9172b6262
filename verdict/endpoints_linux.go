package verdict

import (
	"net"

	"golang.org/x/sys/unix"
)

// wakeEarly lets a blocked write to a slow client resume after about 16 KiB were
// read, see TCP_NOTSENT_LOWAT in tcp(7). By default it resumes after a third of
// the send buffer, which grows to megabytes: a client that reads 50 KiB a second
// would look like one that reads nothing.
func wakeEarly(conn *net.TCPConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return // the connection is closed: the next write fails
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, 32<<10) // without it slow clients are cut earlier
	})
}
