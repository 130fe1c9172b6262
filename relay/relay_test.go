package relay

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// patience is how long anything in these tests may take before it counts as
// hung. Nothing that works comes near it.
const patience = 30 * time.Second

// testRelay is a running relay with one address.
type testRelay struct {
	*Relay
	tb   testing.TB
	addr string
	stop context.CancelFunc
	done chan struct{}
}

// start binds and runs a relay. It is shut until the test opens it. At the end
// of the test it is stopped, and must have counted every connection.
func start(tb testing.TB, cfg Config) *testRelay {
	tb.Helper()
	if cfg.Listen == nil {
		cfg.Listen = []string{"127.0.0.1:0"}
	}
	if cfg.DrainTimeout == 0 {
		cfg.DrainTimeout = -1
	}
	if cfg.Logger == nil && testing.Verbose() {
		cfg.Logger = hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: tb.Output()})
	}
	cfg.Name = "test"
	r, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	if err := r.Bind(); err != nil {
		tb.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	tr := &testRelay{Relay: r, tb: tb, addr: r.Addrs()[0].String(), stop: stop, done: make(chan struct{})}
	go func() {
		defer close(tr.done)
		if err := r.Run(ctx); err != nil {
			tb.Errorf("Run: %v", err)
		}
	}()
	tb.Cleanup(func() {
		stop()
		select {
		case <-tr.done:
		case <-time.After(patience):
			tb.Fatal("Run did not return")
		}
		s := r.Stats()
		if sum := s.Live + s.Finished + s.Reset + s.Fenced + s.Expired + s.Gone; sum != s.Accepted || s.Live != 0 {
			tb.Errorf("stats %+v: accepted is not the sum of the others, or some live on", s)
		}
	})
	return tr
}

func (tr *testRelay) open(epoch uint64, host string) {
	tr.tb.Helper()
	if _, err := tr.Open(epoch, host); err != nil {
		tr.tb.Fatalf("Open(%d, %s): %v", epoch, host, err)
	}
}

// dial connects to the relay. Every read and write fails after patience.
func (tr *testRelay) dial() *net.TCPConn {
	tr.tb.Helper()
	return dialTo(tr.tb, tr.addr)
}

func dialTo(tb testing.TB, addr string) *net.TCPConn {
	tb.Helper()
	var d net.Dialer
	d.SetMultipathTCP(false)
	c, err := d.DialContext(tb.Context(), "tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// waitFor waits until cond holds.
func waitFor(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("waited in vain for %s", what)
		}
	}
}

// testHost is a host whose connections are given to serve.
type testHost struct {
	net.Listener
	addr     string
	accepted atomic.Int64
}

func newHost(tb testing.TB, serve func(c *net.TCPConn)) *testHost {
	tb.Helper()
	return newHostOn(tb, listen(tb, "127.0.0.1:0"), func(c net.Conn) { serve(c.(*net.TCPConn)) })
}

// newHostOn serves the connections of ln, which it owns.
func newHostOn(tb testing.TB, ln net.Listener, serve func(c net.Conn)) *testHost {
	tb.Helper()
	h := &testHost{Listener: ln, addr: ln.Addr().String()}
	if ln.Addr().Network() == "unix" {
		h.addr = "unix:" + h.addr
	}
	over, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			h.accepted.Add(1)
			wg.Go(func() {
				defer c.Close()
				defer context.AfterFunc(over, func() { c.Close() })()
				c.SetDeadline(time.Now().Add(patience))
				serve(c)
			})
		}
	})
	tb.Cleanup(func() {
		ln.Close()
		stop()
		wg.Wait()
	})
	return h
}

// listen makes a plain TCP listener that somebody else closes.
func listen(tb testing.TB, addr string) net.Listener {
	tb.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(tb.Context(), "tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	return ln
}

// echo sends back what it gets, and its end.
func echo(c *net.TCPConn) {
	if _, err := io.Copy(c, c); err == nil {
		c.CloseWrite()
	}
}

// greet says name and waits for the end.
func greet(name string) func(c *net.TCPConn) {
	return func(c *net.TCPConn) {
		io.WriteString(c, name)
		io.Copy(io.Discard, c)
	}
}

func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func readSome(tb testing.TB, c net.Conn, n int) string {
	tb.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		tb.Fatalf("reading %d bytes: %v", n, err)
	}
	return string(b)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func TestRefusesUntilOpen(t *testing.T) {
	r := start(t, Config{})
	if c, err := net.Dial("tcp", r.addr); !errors.Is(err, syscall.ECONNREFUSED) {
		if err == nil {
			c.Close()
		}
		t.Fatalf("dial before Open: %v, want refused", err)
	}
	h := newHost(t, echo)
	r.open(1, h.addr)
	c := r.dial()
	io.WriteString(c, "ping")
	if got := readSome(t, c, 4); got != "ping" {
		t.Errorf("got %q", got)
	}
	c.CloseWrite()
	if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
		t.Errorf("after half-close: %q, %v", rest, err)
	}
	waitFor(t, "the connection to be counted as finished", func() bool { return r.Stats().Finished == 1 })
	if s := r.Stats(); s.Sent != 4 || s.Received != 4 || s.Accepted != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestFenceAndMove(t *testing.T) {
	silent := newHost(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	second := newHost(t, greet("two"))
	first := newHost(t, greet("one"))
	r := start(t, Config{})

	r.open(1, first.addr)
	busy := r.dial()
	readSome(t, busy, 3)
	r.Hold()
	f := r.Fence(t.Context(), 2, 0)
	if f.Reset != 1 || f.Moved != 0 {
		t.Errorf("Fence: %+v, want one reset", f)
	}
	if _, err := busy.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("fenced client saw %v, want a reset", err)
	}

	r.open(2, silent.addr)
	quiet := r.dial()
	waitFor(t, "the connection", func() bool { return r.Stats().Live == 1 })
	time.Sleep(20 * time.Millisecond)
	r.Hold()
	waiting := r.dial() // in the kernel's queue
	if f := r.Fence(t.Context(), 3, 0); f.Moved != 1 {
		t.Errorf("Fence: %+v, want one moved", f)
	}
	waitFor(t, "both to wait", func() bool { return r.Waiting() == Waiting{Queued: 1, Held: 1} })
	r.open(3, second.addr)
	for _, c := range []net.Conn{quiet, waiting} {
		if got := readSome(t, c, 3); got != "two" {
			t.Errorf("after the switch: %q, want two", got)
		}
	}
}

// A host that has ended its stream has said something: its client is not moved.
func TestHostThatEndedIsNotLeft(t *testing.T) {
	t.Parallel()
	r := start(t, Config{})
	r.open(1, newHost(t, func(c *net.TCPConn) {
		c.CloseWrite()
		io.Copy(io.Discard, c)
	}).addr)
	c := r.dial()
	if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
		t.Fatalf("read %q, %v, want a clean end", rest, err)
	}
	r.Hold()
	if f := r.Fence(t.Context(), 2, 0); f != (Fenced{Reset: 1}) {
		t.Errorf("Fence: %+v, want one reset", f)
	}
}

// With a negative grace a fence resets nobody, but what has no host yet, or no
// byte, still goes to the next one.
func TestFenceThatKeeps(t *testing.T) {
	quiet := newHost(t, func(c *net.TCPConn) { io.Copy(c, c) })
	second := newHost(t, greet("two"))
	r := start(t, Config{})
	r.open(1, quiet.addr)
	busy, moved := r.dial(), r.dial()
	io.WriteString(busy, "x")
	readSome(t, busy, 1)
	waitFor(t, "both connections", func() bool { return r.Stats().Live == 2 })
	r.Hold()
	waitFor(t, "the one without a byte to be moved", func() bool {
		f := r.Fence(t.Context(), 2, -1)
		if f.Reset != 0 || f.Finished != 0 {
			t.Fatalf("Fence: %+v, want nobody reset", f)
		}
		return f.Moved == 1
	})
	r.open(2, second.addr)
	if got := readSome(t, moved, 3); got != "two" {
		t.Errorf("the moved client got %q, want two", got)
	}
	io.WriteString(busy, "y")
	if got := readSome(t, busy, 1); got != "y" {
		t.Errorf("the kept connection echoes %q", got)
	}
}

func TestHoldThenRefuseThenOpen(t *testing.T) {
	h := newHost(t, greet("x"))
	r := start(t, Config{})
	r.open(1, h.addr)
	live := r.dial() // a child of the listener, that must not keep it from listening again
	readSome(t, live, 1)
	for epoch := uint64(2); epoch < 5; epoch++ {
		r.Hold()
		waits := r.dial()
		waitFor(t, "the client to be queued", func() bool { return r.Waiting().Queued == 1 })
		r.Refuse()
		if _, err := waits.Read(make([]byte, 1)); !isReset(err) {
			t.Errorf("waiting client saw %v, want a reset", err)
		}
		if c, err := net.Dial("tcp", r.addr); !errors.Is(err, syscall.ECONNREFUSED) {
			if err == nil {
				c.Close()
			}
			t.Fatalf("dial while refusing: %v", err)
		}
		if ln, err := net.Listen("tcp", r.addr); err == nil {
			ln.Close()
			t.Error("somebody else could take the address while the relay refuses")
		}
		r.open(epoch, h.addr)
		c := r.dial()
		readSome(t, c, 1)
		c.Close()
	}
}

func TestClientWaitsForHost(t *testing.T) {
	suspects := make(chan error, 100)
	r := start(t, Config{Suspect: func(_ uint64, err error) { suspects <- err }})
	h := newHost(t, greet("late"))
	h.Close()
	r.open(1, h.addr)
	c := r.dial()
	if err := <-suspects; !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("suspected for %v, want refused", err)
	}
	gone := r.dial()
	waitFor(t, "both to be held", func() bool { return r.Waiting().Held == 2 })
	reset(gone)
	waitFor(t, "the client that left to be counted", func() bool { return r.Stats().Gone == 1 })
	r.open(2, newHost(t, greet("late")).addr)
	if got := readSome(t, c, 4); got != "late" {
		t.Errorf("got %q", got)
	}
}

func TestHoldExpires(t *testing.T) {
	h := newHost(t, echo)
	h.Close()
	r := start(t, Config{Hold: 50 * time.Millisecond})
	r.open(1, h.addr)
	c := r.dial()
	if _, err := c.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("got %v, want a reset", err)
	}
	waitFor(t, "the count", func() bool { return r.Stats().Expired == 1 })
}

func TestBusyAddress(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	r, err := New(Config{Name: "x", Listen: []string{ln.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	err = r.Bind()
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("Bind: %v, want address in use, with the address", err)
	}
	other := start(t, Config{}) // bound, not listening
	r, _ = New(Config{Name: "x", Listen: []string{other.addr}})
	if err := r.Bind(); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Bind to an address that is bound but does not listen: %v", err)
	}
}
