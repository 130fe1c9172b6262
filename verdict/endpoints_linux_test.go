package verdict

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// A connect ends when its caller has given up.
func TestEndpointsRaceEndsConnects(t *testing.T) {
	// The queue of a listener that accepts nothing fills up, and then its
	// connects hang as those to a dead host do.
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	hole := name.(*syscall.SockaddrInet4).Port
	for range 8 {
		if conn, err := net.DialTimeout("tcp", fmt.Sprint("127.0.0.1:", hole), 100*time.Millisecond); err == nil {
			defer conn.Close()
		}
	}
	var handshakes atomic.Int32
	hungTLS := rawService(t, func(c net.Conn) {
		handshakes.Add(1)
		untilHungUp(c)
		handshakes.Add(-1)
	})
	e := serveEndpoints(t, EndpointsConfig{
		URLs:    []string{at(hole), fmt.Sprint("https://127.0.0.1:", hungTLS), at(saying(t, 200, "pong"))},
		Race:    true,
		Timeout: time.Minute, Total: time.Minute,
	})
	for range 5 {
		if got := e.request(t, ""); got.body != "pong" {
			t.Errorf("answered %q, want pong", got.body)
		}
	}
	began, stacks := time.Now(), make([]byte, 1<<20)
	proctest.Until(t, "nothing is being opened any more", func() bool {
		n := runtime.Stack(stacks, true)
		return handshakes.Load() == 0 && !bytes.Contains(stacks[:n], []byte("net.(*netFD).connect"))
	})
	if took := time.Since(began); took > 15*time.Second { // the service gives up after 20s
		t.Errorf("a handshake ended after %s, want at once", took)
	}
}
