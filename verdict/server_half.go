//go:build unix

package verdict

import (
	"net"
	"os"
	"syscall"
)

// awaitFailure waits until conn, which the client has half-closed, fails: by a
// reset, by its read deadline, or by Close. It returns the cause.
func awaitFailure(conn *net.TCPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	failure := error(nil)
	err = raw.Read(func(fd uintptr) bool {
		// A read would only return the end of the stream again, but a reset
		// still sets the socket's error.
		errno, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
		switch {
		case err != nil:
			failure = os.NewSyscallError("getsockopt", err)
		case errno != 0:
			failure = os.NewSyscallError("read", syscall.Errno(errno))
		}
		return failure != nil
	})
	if failure != nil {
		return failure
	}
	return err
}
