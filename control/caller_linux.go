package control

import (
	"net"

	"golang.org/x/sys/unix"
)

// callerOf returns the user at the other end of c; see SO_PEERCRED in unix(7).
func callerOf(c net.Conn) caller {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return caller{}
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return caller{}
	}
	var who caller
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			who = caller{known: true, uid: cred.Uid}
		}
	})
	return who
}
