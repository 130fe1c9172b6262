//go:build linux && !portable

package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

// silentPort returns a port at which no address of this machine answers a SYN: the
// queue of its listener is full.
func silentPort(t *testing.T) int {
	t.Helper()
	port, _ := fullQueue(t, netip.MustParseAddrPort("0.0.0.0:0"))
	return port
}

func silentHost(t *testing.T) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(silentPort(t)))
}

// A host that hangs costs a descriptor and no goroutine until the timeout, and delays
// no other.
func TestHostsThatHangCostADescriptor(t *testing.T) {
	const hosts = 800
	c := newChecker(t)
	port, good := silentPort(t), listenHost(t, "tcp", "127.0.0.1:0", serveNothing)
	fds, goroutines := descriptors(t), runtime.NumGoroutine()
	var results, timeouts atomic.Int64
	for i := range hosts {
		q := plainQuery(t, fmt.Sprintf("127.1.%d.%d:%d", i/200, 1+i%200, port))
		q.Timeout = 2 * time.Second
		c.Start(q, func(r Result) {
			results.Add(1)
			if !r.OK && isTimeout(r.Err) {
				timeouts.Add(1)
			}
		})
	}
	if n := results.Load(); n > 0 {
		t.Skip("this machine was so slow that timeouts have passed already: ", n)
	}
	if n := descriptors(t) - fds; n < hosts || n > hosts+10 {
		t.Errorf("%d hosts that hang take %d descriptors", hosts, n)
	}
	if n := runtime.NumGoroutine() - goroutines; n > 5 {
		t.Errorf("%d hosts that hang take %d goroutines", hosts, n)
	}
	for i := range 20 {
		q := plainQuery(t, good)
		q.By = i
		if got := c.Run(t.Context(), q); !got.OK {
			t.Errorf("check of another host = %+v, want OK", got)
		}
	}
	if n := results.Load(); n > 0 {
		t.Errorf("20 checks of another host have waited for %d of those that hang", n)
	}
	proctest.Until(t, "all hosts that hang have failed", func() bool { return results.Load() == hosts })
	// A process that is stopped for long has Unknown results.
	if n := timeouts.Load(); n != hosts {
		t.Errorf("%d of %d checks failed with a timeout", n, hosts)
	}
	proctest.Until(t, "their descriptors are closed", func() bool { return descriptors(t) <= fds+5 })
}

// A handshake that takes a while ends when it is complete: here, when there is room in
// the queue for its second SYN, a second later.
func TestSlowHandshakePasses(t *testing.T) {
	c := newChecker(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	host := net.JoinHostPort("127.0.0.1", strconv.Itoa(sa.(*unix.SockaddrInet4).Port))
	conn, err := net.DialTimeout("tcp", host, checkLimit)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got := make(chan Result, 1)
	c.Start(plainQuery(t, host), func(r Result) { got <- r })
	select {
	case r := <-got:
		t.Fatalf("check of a host with a full queue = %+v, want none yet", r)
	default:
	}
	accepted, _, err := unix.Accept(fd)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(accepted)
	if r := <-got; !r.OK {
		t.Errorf("check of a host with room in its queue again = %+v, want OK", r)
	}
}

// The source address and the families are those of the settings, and the errors are
// net's.
func TestConnectsAreLikeThoseOfNet(t *testing.T) {
	c := newChecker(t)
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 on this machine: ", err)
	}
	defer ln.Close()
	ports := map[string]string{"127.0.0.1": refusedHost(t), "::1": ln.Addr().String()}
	for _, cfg := range []TCPConfig{{}, {Source: netip.MustParseAddr("127.0.0.9")}, {Source: netip.MustParseAddr("192.0.2.1")}} {
		check, err := NewTCPCheck(cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, host := range ports {
			want := check.Check(checkContext(t, checkLimit), host)
			got := c.Run(t.Context(), Query{Check: func(context.Context, string) Result { panic("needs no goroutine") }, Connect: check, Host: host, Timeout: checkLimit})
			if got.OK != want.OK || got.Unknown != want.Unknown || text(got.Err) != text(want.Err) {
				t.Errorf("from %v to %s: %+v, want %+v", cfg.Source, host, got, want)
			}
		}
	}
}

// The end of a Checker ends the checks in progress, and their result is Unknown.
func TestCloseEndsChecks(t *testing.T) {
	c := newChecker(t)
	var unknown atomic.Int64
	done := func(r Result) {
		if r.Unknown && errors.Is(r.Err, context.Canceled) {
			unknown.Add(1)
		}
	}
	c.Start(plainQuery(t, silentHost(t)), done)
	c.Start(Query{Host: "a", Timeout: checkLimit, Check: func(ctx context.Context, _ string) Result {
		<-ctx.Done()
		return NewResult(ctx, time.Now(), Read, ctx.Err())
	}}, done)
	c.Close()
	c.Start(plainQuery(t, "127.0.0.1:9"), done)
	if n := unknown.Load(); n != 3 {
		t.Errorf("%d of 3 checks are Unknown at the end", n)
	}
}

// A check of a host that does not answer fails at its timeout, unless no caller waits for
// it any more.
func TestCheckerTimesOut(t *testing.T) {
	c := newChecker(t)
	q := plainQuery(t, silentHost(t))
	q.Timeout = 100 * time.Millisecond
	if got := c.Run(t.Context(), q); got.OK || got.Unknown || !isTimeout(got.Err) || got.Latency < q.Timeout {
		t.Errorf("check of a silent host = %+v, want a timeout", got)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if got := c.Run(canceled, plainQuery(t, silentHost(t))); !got.Unknown || !errors.Is(got.Err, context.Canceled) {
		t.Errorf("check that nobody waits for = %+v, want Unknown", got)
	}
}

// descriptors returns how many descriptors this process has open.
func descriptors(tb testing.TB) int {
	tb.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Skip("no list of descriptors on this system: ", err)
	}
	return len(all)
}
