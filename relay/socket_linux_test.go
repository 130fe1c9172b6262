package relay

import (
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

// acked waits until the other end's kernel has taken all that was written to c.
func acked(tb testing.TB, c *net.TCPConn) {
	tb.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		tb.Error(err)
		return
	}
	proctest.Until(tb, "what was sent to be acknowledged", func() bool {
		left := 0
		raw.Control(func(fd uintptr) { left, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
		return err != nil || left == 0
	})
}

// dup returns a new descriptor of f, which no *os.File owns.
func dup(tb testing.TB, f *os.File) int {
	tb.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	return fd
}
