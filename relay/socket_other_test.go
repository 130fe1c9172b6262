//go:build !linux

package relay

import (
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// acked waits until the other end's kernel has taken all that was written to c,
// as far as that can be known here.
func acked(tb testing.TB, _ *net.TCPConn) {
	tb.Helper()
	time.Sleep(200 * time.Millisecond) // it cannot be observed here
}

// dup returns a new descriptor of f, which no *os.File owns.
func dup(tb testing.TB, f *os.File) int {
	tb.Helper()
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		tb.Fatal(err)
	}
	return fd
}
