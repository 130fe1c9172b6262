//go:build linux && !portable

package health

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"understudy/internal/rawsocket"
	"understudy/internal/tcp"
)

// quietly reports whether a connection can be made and ended without the
// service noticing. Then the handshake alone shows that there is a listener
// with room in its queue: with TCP_QUICKACK off, the SYN-ACK is not acknowledged for
// up to 200ms, and closing the socket before that sends a reset instead (SO_LINGER
// of 0). The kernel of the host drops a handshake that is reset, and accept(2) never
// returns it.
const quietly = true

// prepare sets what a socket of a check needs before it is bound and connects.
func prepare(raw syscall.RawConn, bound, quiet bool) error {
	var errno unix.Errno
	set := func(fd uintptr) {
		if bound {
			tcp.SetLatePort(int(fd))
		}
		if quiet {
			errno = setQuiet(int(fd))
		}
	}
	if e := raw.Control(set); e != nil {
		return e
	}
	if errno != 0 {
		return fmt.Errorf("quiet connect: %w", os.NewSyscallError("setsockopt", errno))
	}
	return nil
}

// setQuiet prepares a socket for a connect that the service does not notice.
func setQuiet(fd int) unix.Errno {
	if e := rawsocket.SetInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0); e != 0 {
		return e
	}
	return rawsocket.SetResetOnClose(fd, true)
}
