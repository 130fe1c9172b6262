package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

func TestTCP(t *testing.T) {
	silent := listenHost(t, "tcp", "127.0.0.1:0", serveNothing)
	refused := refusedHost(t)
	// The kernel accepts for a process that is stopped.
	stopped, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stopped.Close()
	dir := t.TempDir()

	for _, tt := range []struct {
		name  string
		host  string
		ok    bool
		phase Phase
		err   error // what errors.Is finds
	}{
		{"accepts and says nothing", silent, true, "", nil},
		{"speaks first", listenHost(t, "tcp", "127.0.0.1:0", serveBanner), true, "", nil},
		{"ends cleanly", listenHost(t, "tcp", "127.0.0.1:0", serveClose), true, "", nil},
		{"is stopped", stopped.Addr().String(), true, "", nil},
		{"listens on IPv6", listenHost(t, "tcp6", "[::1]:0", serveNothing), true, "", nil},
		{"listens on a unix socket", listenHost(t, "unix", filepath.Join(dir, "s"), serveNothing), true, "", nil},
		{"has a name", named("db1", portOf(t, silent)), true, "", nil},
		{"refuses on the first address", named("both", portOf(t, silent)), true, "", nil},
		{"refuses on every address", named("both", portOf(t, refused)), false, Connect, syscall.ECONNREFUSED},
		{"refuses", refused, false, Connect, syscall.ECONNREFUSED},
		{"has no socket there", "unix:" + filepath.Join(dir, "none"), false, Connect, syscall.ENOENT},
		{"has an unknown name", "nobody:80", false, Resolve, nil},
		{"is written wrong", "db1:0", false, Resolve, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := checkContext(t, checkLimit)
			resolve := func(ctx context.Context, name string) ([]netip.Addr, error) {
				if addr, err := netip.ParseAddr(name); err == nil {
					return []netip.Addr{addr}, nil
				}
				if name == "both" {
					return namesOf("both", "::1", "127.0.0.1")(ctx, name)
				}
				return namesOf("db1", "127.0.0.1")(ctx, name)
			}
			host := tt.host
			got := tcpOf(resolve)(ctx, host)
			if got.OK != tt.ok || got.Unknown || got.Phase != tt.phase || (got.Err == nil) != tt.ok {
				t.Fatalf("TCP(%s) = %+v, want OK %v, phase %q", host, got, tt.ok, tt.phase)
			}
			if tt.err != nil && !errors.Is(got.Err, tt.err) {
				t.Errorf("TCP(%s) = %v, want %v", host, got.Err, tt.err)
			}
			if got.Latency <= 0 || got.Latency > checkLimit {
				t.Errorf("TCP(%s) took %v", host, got.Latency)
			}
		})
	}
}

// politeTCP returns the check as it is where the host accepts the connection.
func politeTCP() Check {
	return (&TCPCheck{dialer: dialer{resolve: lookupAddrs}}).Check
}

// A host that resets what it accepted fails, whether the connect sees it or the
// watch after it.
func TestTCPSeesReset(t *testing.T) {
	for _, pause := range []time.Duration{0, 2 * time.Millisecond} {
		ctx := checkContext(t, 3*checkLimit)
		host := listenHost(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
			time.Sleep(pause) // the reset comes with the accept or later
			serveReset(conn)
		})
		check := politeTCP()
		missed := 0
		for range 50 {
			switch got := check(ctx, host); {
			case got.OK:
				missed++ // the host was slower than 5ms
			case !errors.Is(got.Err, syscall.ECONNRESET) || got.Unknown:
				t.Fatalf("TCP = %+v, want a reset", got)
			}
		}
		if missed > 40 {
			t.Errorf("%d of 50 resets %v after the accept were missed", missed, pause)
		}
	}
}

// The watch for a reset ends with the first event, and after 5ms without one.
func TestTCPWatchIsShort(t *testing.T) {
	ctx := checkContext(t, 3*checkLimit)
	for _, tt := range []struct {
		name     string
		serve    func(net.Conn)
		from, to time.Duration // the shortest of 20 checks lies here
	}{
		{"silence", serveNothing, resetWatch, 20 * resetWatch},
		{"end", serveClose, 0, resetWatch},
		{"banner", serveBanner, 0, resetWatch},
	} {
		host := listenHost(t, "tcp", "127.0.0.1:0", tt.serve)
		shortest := time.Hour
		for range 20 {
			got := politeTCP()(ctx, host)
			if !got.OK {
				t.Fatal(got.Err)
			}
			shortest = min(shortest, got.Latency)
		}
		if shortest < tt.from || shortest >= tt.to {
			t.Errorf("%s: the shortest check took %v, want %v to %v", tt.name, shortest, tt.from, tt.to)
		}
	}
}

// The host sees an orderly end, also when it had spoken first.
func TestTCPEndsWithFIN(t *testing.T) {
	ctx := checkContext(t, checkLimit)
	for _, banner := range []string{"", "220 ready\r\n"} {
		end := make(chan error, 1)
		host := listenHost(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
			io.WriteString(conn, banner)
			_, err := conn.Read(make([]byte, 1))
			end <- err
		})
		if got := politeTCP()(ctx, host); !got.OK {
			t.Fatal(got.Err)
		}
		if err := <-end; !errors.Is(err, io.EOF) {
			t.Errorf("banner %q: the host read %v, want %v", banner, err, io.EOF)
		}
	}
}

func TestTCPCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(checkContext(t, checkLimit))
	requested := make(chan struct{})
	done := make(chan Result)
	go func() {
		done <- tcpOf(func(ctx context.Context, _ string) ([]netip.Addr, error) {
			close(requested)
			<-ctx.Done()
			return nil, ctx.Err()
		})(ctx, "db1:80")
	}()
	<-requested
	cancel()
	if got := <-done; got.OK || !got.Unknown || got.Phase != Resolve {
		t.Errorf("TCP of a canceled context = %+v, want it Unknown in resolve", got)
	}
}

func TestTCPErrorNamesEveryAddress(t *testing.T) {
	ctx := checkContext(t, checkLimit)
	port := portOf(t, refusedHost(t))
	got := tcpOf(namesOf("db1", "::1", "127.0.0.1"))(ctx, fmt.Sprintf("db1:%d", port))
	want := fmt.Sprintf("dial tcp [::1]:%d: connect: connection refused; dial tcp 127.0.0.1:%d: connect: connection refused", port, port)
	if got.Err == nil || got.Err.Error() != want {
		t.Errorf("TCP = %v, want %s", got.Err, want)
	}
}

func TestTCPLeavesNothing(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("SKIP: needs /proc/self/fd")
	}
	ctx := checkContext(t, 3*checkLimit)
	hosts := []string{
		listenHost(t, "tcp", "127.0.0.1:0", serveClose),
		listenHost(t, "tcp", "127.0.0.1:0", serveReset),
		refusedHost(t),
		"db1.invalid..:80",
	}
	answers := listenHost(t, "tcp", "127.0.0.1:0", serveRaw("HTTP/1.1 200 OK\r\n\r\npong", ""))
	open := listenHost(t, "tcp", "127.0.0.1:0", serveRaw("HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("a", 4096)))
	quiet, polite := tcpOf(nil), politeTCP()
	// The garbage collector closes what was forgotten; it is not to help here.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	before := openFiles(t)
	for range 50 {
		for _, h := range hosts {
			quiet(ctx, h)
			polite(ctx, h)
		}
		checkHTTP(ctx, t, HTTPConfig{Expect: pongExpect}, answers)
		checkHTTP(ctx, t, HTTPConfig{Expect: pongExpect}, open)
	}
	// The listeners close their side when they get to it.
	proctest.Until(t, fmt.Sprintf("no more than %d descriptors are open after 500 checks", before), func() bool { return openFiles(t) <= before })
}

func openFiles(tb testing.TB) int {
	tb.Helper()
	names, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		tb.Fatal(err)
	}
	return len(names)
}

func ExampleTCPExchange() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	resolver := NewResolver()
	defer resolver.Close()
	check, err := TCPExchange(TCPConfig{Resolve: resolver.Resolve})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	host := ln.Addr().String()
	fmt.Println("up:", check(ctx, host).OK)
	ln.Close()
	result := check(ctx, host)
	fmt.Println("up:", result.OK, "phase:", result.Phase)
	_, cause, _ := strings.Cut(result.Err.Error(), host+": ")
	fmt.Println(cause)
	// Output:
	// up: true
	// up: false phase: connect
	// connect: connection refused
}
