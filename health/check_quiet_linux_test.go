//go:build linux && !portable

package health

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

// The service never sees a check that only connects, however it is configured:
// accept(2) returns the test's own connection at the end, and nothing before.
func TestTCPIsNotSeen(t *testing.T) {
	const checks = 200
	configured, err := TCPExchange(TCPConfig{SendProxy: 2, Source: netip.MustParseAddr("127.0.0.9")})
	if err != nil {
		t.Fatal(err)
	}
	checker := newChecker(t)
	checked := func(ctx context.Context, host string) Result {
		q := plainQuery(t, host)
		q.Key = ""
		return checker.Run(ctx, q)
	}
	for name, check := range map[string]Check{"plain": tcpOf(nil), "with a source and a PROXY header": configured, "of a Checker": checked} {
		t.Run(name, func(t *testing.T) {
			ctx := checkContext(t, 6*checkLimit)
			var accepted atomic.Int64
			last := make(chan struct{})
			host := listenHost(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
				if n, _ := conn.Read(make([]byte, 1)); n == 1 {
					close(last)
					return
				}
				accepted.Add(1)
			})
			late := 0
			for range checks {
				got := check(ctx, host)
				if !got.OK {
					t.Fatalf("TCP = %+v, want OK", got)
				}
				// The kernel acknowledges by itself after 200ms, so a test that is
				// not given processor time for as long shows nothing.
				if got.Latency > 100*time.Millisecond {
					late++
				}
			}
			conn, err := net.Dial("tcp", host)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			<-last
			if n := accepted.Load(); n > int64(late) {
				t.Errorf("the service accepted %d of %d checks (%d of them were late), want none", n, checks, late)
			}
		})
	}
}

// A host that is stopped with room in its queue passes, as for any client; with
// clients waiting in all of the queue it does not, and when there is room again
// it does: checks take no place in it.
func TestTCPTakesNoPlaceInTheQueue(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 2); err != nil { // room for three
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	host := net.JoinHostPort("127.0.0.1", strconv.Itoa(sa.(*unix.SockaddrInet4).Port))
	check := tcpOf(nil)
	ctx := checkContext(t, 6*checkLimit)
	for i := range 100 {
		if got := check(ctx, host); !got.OK {
			t.Fatalf("check %d of a host with room in its queue = %+v, want OK", i+1, got)
		}
	}
	for range 3 {
		conn, err := net.DialTimeout("tcp", host, checkLimit)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	if got := check(short, host); got.OK || got.Phase != Connect || !isTimeout(got.Err) {
		t.Errorf("check of a host with a full queue = %+v, want a timeout in connect", got)
	}
	conn, _, err := unix.Accept(fd)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(conn)
	if got := check(ctx, host); !got.OK {
		t.Errorf("check of a host with room in its queue again = %+v, want OK", got)
	}
}

// A host that clients doubt is asked by a whole connection until one passes.
func TestDoubtedHostIsCheckedByAConnection(t *testing.T) {
	var broken atomic.Bool
	var accepted atomic.Int64
	host := listenHost(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		accepted.Add(1)
		if broken.Load() {
			serveReset(conn)
		}
	})
	var doubts Doubts
	check, err := TCPExchange(TCPConfig{Doubts: &doubts})
	if err != nil {
		t.Fatal(err)
	}
	ctx := checkContext(t, 3*checkLimit)
	connections := int64(0)
	want := func(ok bool) {
		t.Helper()
		for end := time.Now().Add(checkLimit); ; {
			if doubts.has(host) {
				connections++
			}
			got := check(ctx, host)
			if !got.OK && !errors.Is(got.Err, unix.ECONNRESET) {
				t.Fatal(got.Err)
			}
			if got.OK == ok {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("check = %+v, want OK %v", got, ok)
			}
			doubts.Add(host) // a reset that came later than 5ms was missed
		}
	}
	broken.Store(true)
	want(true)
	doubts.Add(host)
	want(false)
	want(false) // the doubt lasts
	broken.Store(false)
	want(true)
	want(true)                         // it is over
	conn, err := net.Dial("tcp", host) // the last in the queue
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	proctest.Until(t, "the host has accepted the last one", func() bool { return accepted.Load() > connections })
	if n := accepted.Load() - 1; n != connections || n < 3 {
		t.Errorf("the host accepted %d of the checks, want the %d in doubt", n, connections)
	}
}
