package health

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

func newLamp(tb testing.TB, listen string, judge func(context.Context) error) *Lamp {
	tb.Helper()
	l, err := NewLamp(LampConfig{Listen: listen, Judge: judge})
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// lit reports whether a connect to addr succeeds and is closed at once.
func lit(tb testing.TB, addr string) bool {
	tb.Helper()
	conn, err := net.DialTimeout("tcp", addr, 20*time.Second)
	if err != nil {
		// Reset: the port was closed while the connect was under way.
		if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET) {
			tb.Fatalf("dial: %v, want success or a refusal", err)
		}
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	got, err := io.ReadAll(conn)
	if errors.Is(err, syscall.ECONNRESET) {
		return true // it was in the queue when the port was closed
	}
	if len(got) > 0 || err != nil {
		tb.Fatalf("read %q, %v, want the end", got, err)
	}
	return true
}

func TestLamp(t *testing.T) {
	var o opinion
	o.be("no primary")
	l := newLamp(t, "127.0.0.1:0", o.judge)
	addr, stop := run(t, l)
	if lit(t, addr) {
		t.Error("the port is open while the verdict is bad")
	}
	for range 3 {
		o.be("")
		waitUntil(t, "the port opens", func() bool { return lit(t, addr) })
		for range 20 {
			if !lit(t, addr) {
				t.Error("the port is closed while the verdict is good")
			}
		}
		if runtime.GOOS == "linux" {
			wantBusy(t, addr)
		}
		o.be("down")
		waitUntil(t, "the port closes", func() bool { return !lit(t, addr) })
		if runtime.GOOS == "linux" {
			wantBusy(t, addr)
		}
	}
	o.be("")
	waitUntil(t, "the port opens", func() bool { return lit(t, addr) })
	stop()
	if lit(t, addr) {
		t.Error("the port is open after the end")
	}
	again := newLamp(t, addr, o.judge)
	if err := again.Bind(); err != nil {
		t.Errorf("Bind() = %v after another has ended, want success", err)
	}
	again.Close()
}

// wantBusy reports an address that another program could have.
func wantBusy(t *testing.T, addr string) {
	t.Helper()
	if ln, err := net.Listen("tcp", addr); !errors.Is(err, syscall.EADDRINUSE) {
		if err == nil {
			ln.Close()
		}
		t.Errorf("another listens on %s: %v, want address in use", addr, err)
	}
}

// Bind claims the address, and a busy one is an error that names it.
func TestLampBind(t *testing.T) {
	good := func(context.Context) error { return nil }
	first := newLamp(t, "127.0.0.1:0", good)
	if first.Addr() != nil || first.Close() != nil {
		t.Error("a lamp has an address before Bind")
	}
	if err := first.Bind(); err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if lit(t, first.Addr().String()) {
		t.Error("the port is open before Run")
	}
	if runtime.GOOS == "linux" {
		second := newLamp(t, first.Addr().String(), good)
		if err := second.Bind(); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), first.Addr().String()) {
			t.Errorf("Bind() = %v, want address in use, naming it", err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	busy := newLamp(t, ln.Addr().String(), good)
	if err := busy.Bind(); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("Bind() = %v, want address in use, naming it", err)
	}
	if err := newLamp(t, "no.such.name.invalid:1", good).Bind(); err == nil {
		t.Error("Bind() of no name = nil, want an error")
	}
}

func TestLampAddresses(t *testing.T) {
	for _, tt := range []struct{ listen, dial string }{
		{":0", "127.0.0.1"}, {"0.0.0.0:0", "127.0.0.1"}, {"localhost:0", "localhost"}, {"[::1]:0", "::1"}, {":0", "::1"},
	} {
		t.Run(tt.listen+" "+tt.dial, func(t *testing.T) {
			if tt.dial == "::1" {
				ln, err := net.Listen("tcp", "[::1]:0")
				if err != nil {
					t.Skip("no IPv6 on this machine")
				}
				ln.Close()
			}
			addr, _ := run(t, newLamp(t, tt.listen, func(context.Context) error { return nil }))
			_, port, _ := net.SplitHostPort(addr)
			waitUntil(t, "the port opens", func() bool { return lit(t, net.JoinHostPort(tt.dial, port)) })
		})
	}
}

// The number of its descriptor is somebody else's as soon as it is closed.
func TestLampClosesOnce(t *testing.T) {
	l := newLamp(t, "127.0.0.1:0", func(context.Context) error { return nil })
	_, stop := run(t, l)
	stop()
	var others []*os.File
	for range 64 { // one of them gets the number
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		others = append(others, f)
	}
	if err := l.Close(); err != nil {
		t.Errorf("Close() = %v after Run, want nil", err)
	}
	for _, f := range others {
		if _, err := f.Stat(); err != nil {
			t.Errorf("Close after Run has closed another's file: %v", err)
		}
	}
}

// A verdict that does not come closes the port.
func TestLampWithoutVerdict(t *testing.T) {
	noLeaks(t)
	l := newLamp(t, "127.0.0.1:0", func(context.Context) error { return nil })
	if err := l.Bind(); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	l.show(ctx, nil)
	if !lit(t, l.Addr().String()) {
		t.Error("the port is closed, want it open")
	}
	l.show(ctx, nil)
	l.show(ctx, errOverdue)
	l.show(ctx, errOverdue)
	if lit(t, l.Addr().String()) {
		t.Error("the port is open, want it closed")
	}
}

// Each change is told once.
func TestLampLog(t *testing.T) {
	var out lockedBuffer
	var o opinion
	l, err := NewLamp(LampConfig{Listen: "127.0.0.1:0", Judge: o.judge, Logger: hclog.New(&hclog.LoggerOptions{Output: &out})})
	if err != nil {
		t.Fatal(err)
	}
	addr, stop := run(t, l)
	waitUntil(t, "the port opens", func() bool { return lit(t, addr) })
	o.be("no primary")
	waitUntil(t, "the port closes", func() bool { return !lit(t, addr) })
	stop()
	got := out.String()
	if strings.Count(got, "\n") != 2 || !strings.Contains(got, "verdict port open: address="+addr) || !strings.Contains(got, `reason="no primary"`) {
		t.Errorf("log %q, want an opening and a closing", got)
	}
}
