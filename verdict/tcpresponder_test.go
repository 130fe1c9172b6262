package verdict

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

	"understudy/internal/proctest"
)

// listens reports whether a connect to addr succeeds and is closed at once.
func listens(tb testing.TB, addr string) bool {
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

func TestTCPResponder(t *testing.T) {
	var o opinion
	o.be("no primary")
	r := newTCPResponder(t, "127.0.0.1:0", o.evaluate)
	addr, stop := run(t, r)
	if listens(t, addr) {
		t.Error("the port is open while the verdict is bad")
	}
	for range 3 {
		o.be("")
		proctest.Until(t, "the port opens", func() bool { return listens(t, addr) })
		for range 20 {
			if !listens(t, addr) {
				t.Error("the port is closed while the verdict is good")
			}
		}
		if runtime.GOOS == "linux" {
			wantBusy(t, addr)
		}
		o.be("down")
		proctest.Until(t, "the port closes", func() bool { return !listens(t, addr) })
		if runtime.GOOS == "linux" {
			wantBusy(t, addr)
		}
	}
	o.be("")
	proctest.Until(t, "the port opens", func() bool { return listens(t, addr) })
	stop()
	if listens(t, addr) {
		t.Error("the port is open after the end")
	}
	again := newTCPResponder(t, addr, o.evaluate)
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

// Bind takes the address, and a busy one is an error that names it.
func TestTCPResponderBind(t *testing.T) {
	good := func(context.Context) error { return nil }
	first := newTCPResponder(t, "127.0.0.1:0", good)
	if first.Addr() != nil || first.Close() != nil {
		t.Error("a responder has an address before Bind")
	}
	if err := first.Bind(); err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if listens(t, first.Addr().String()) {
		t.Error("the port is open before Run")
	}
	if runtime.GOOS == "linux" {
		second := newTCPResponder(t, first.Addr().String(), good)
		if err := second.Bind(); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), first.Addr().String()) {
			t.Errorf("Bind() = %v, want address in use, naming it", err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	busy := newTCPResponder(t, ln.Addr().String(), good)
	if err := busy.Bind(); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("Bind() = %v, want address in use, naming it", err)
	}
	if err := newTCPResponder(t, "no.such.name.invalid:1", good).Bind(); err == nil {
		t.Error("Bind() of no name = nil, want an error")
	}
}

func TestTCPResponderAddresses(t *testing.T) {
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
			addr, _ := run(t, newTCPResponder(t, tt.listen, func(context.Context) error { return nil }))
			_, port, _ := net.SplitHostPort(addr)
			proctest.Until(t, "the port opens", func() bool { return listens(t, net.JoinHostPort(tt.dial, port)) })
		})
	}
}

// The number of its descriptor may be reused as soon as it is closed.
func TestTCPResponderClosesOnce(t *testing.T) {
	r := newTCPResponder(t, "127.0.0.1:0", func(context.Context) error { return nil })
	_, stop := run(t, r)
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
	if err := r.Close(); err != nil {
		t.Errorf("Close() = %v after Run, want nil", err)
	}
	for _, f := range others {
		if _, err := f.Stat(); err != nil {
			t.Errorf("Close after Run has closed another's file: %v", err)
		}
	}
}

// A verdict that does not come closes the port.
func TestTCPResponderWithoutVerdict(t *testing.T) {
	proctest.NoLeaks(t)
	r := newTCPResponder(t, "127.0.0.1:0", func(context.Context) error { return nil })
	if err := r.Bind(); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.apply(nil)
	if !listens(t, r.Addr().String()) {
		t.Error("the port is closed, want it open")
	}
	r.apply(nil)
	r.apply(errOverdue)
	r.apply(errOverdue)
	if listens(t, r.Addr().String()) {
		t.Error("the port is open, want it closed")
	}
}

// Each change is reported once.
func TestTCPResponderLog(t *testing.T) {
	var out lockedBuffer
	var o opinion
	r, err := NewTCPResponder(TCPResponderConfig{Listen: "127.0.0.1:0", Evaluate: o.evaluate, Logger: hclog.New(&hclog.LoggerOptions{Output: &out})})
	if err != nil {
		t.Fatal(err)
	}
	addr, stop := run(t, r)
	proctest.Until(t, "the port opens", func() bool { return listens(t, addr) })
	o.be("no primary")
	proctest.Until(t, "the port closes", func() bool { return !listens(t, addr) })
	stop()
	got := out.String()
	if strings.Count(got, "\n") != 2 || !strings.Contains(got, "verdict port open: address="+addr) || !strings.Contains(got, `reason="no primary"`) {
		t.Errorf("log %q, want an opening and a closing", got)
	}
}
