package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// canary connects one to the relay. Every read and write fails after patience.
func (tr *testRelay) canary() *Canary {
	tr.tb.Helper()
	ctx, stop := context.WithTimeout(tr.tb.Context(), patience)
	defer stop()
	c, err := tr.DialCanary(ctx)
	if err != nil {
		tr.tb.Fatalf("DialCanary: %v", err)
	}
	tr.tb.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// wantServed fails unless a host accepts the canary.
func (c *Canary) wantServed(tb testing.TB) {
	tb.Helper()
	select {
	case <-c.Served():
	case <-time.After(patience):
		tb.Fatal("no host has accepted the canary")
	}
}

// counted is everything that a relay has counted.
func (tr *testRelay) counted() string {
	m := tr.Measure()
	hosts := "" // that something is counted of
	for name, h := range m.Hosts {
		if h.Connect.Count()+h.FirstByte.Count() > 0 || !reflect.DeepEqual(h, MeasuredHost{}) {
			hosts += fmt.Sprintf("%s %+v ", name, h)
		}
	}
	return fmt.Sprintf("%+v %+v %+v queued %d header %d turned away %d local %+v held %d %d %d hosts %s silence %+v",
		m.Stats, m.Open, tr.Waiting(), m.Queued, m.NoHeader, m.TurnedAway, m.Local, m.HoldServed.Count(), m.HoldExpired.Count(), m.HoldGone.Count(), hosts, tr.Silence())
}

// single is a host with an echo, or with what serve does, that counts the connections that
// it has at a time.
type single struct {
	*testHost
	open, most atomic.Int64
}

func newSingle(tb testing.TB, serve func(c *net.TCPConn)) *single {
	tb.Helper()
	h := new(single)
	h.testHost = newHost(tb, func(c *net.TCPConn) {
		for now := h.open.Add(1); ; {
			if old := h.most.Load(); now <= old || h.most.CompareAndSwap(old, now) {
				break
			}
		}
		defer h.open.Add(-1)
		serve(c)
	})
	return h
}

func TestCanaryIsCountedNowhere(t *testing.T) {
	t.Parallel()
	var ended, firstBytes, reports atomic.Int64
	tr := start(t, Config{
		Ended:     func(Ending) { ended.Add(1) },
		FirstByte: func(uint64) { firstBytes.Add(1) },
		HostEnded: func(uint64) { reports.Add(1) },
		Suspect:   func(uint64, error) { reports.Add(1) },
	})
	host := newHost(t, echo)
	tr.open(1, host.addr)
	before := tr.counted()
	for range 5 {
		c := tr.canary()
		c.wantServed(t)
		wantEcho(t, "a canary", c)
		c.Close()
	}
	// One that its host ends at once, one whose host is gone, and one that leaves.
	rude := newHost(t, func(c *net.TCPConn) { reset(c) })
	tr.open(2, rude.addr)
	c := tr.canary()
	wantReset(t, "a canary of a host that resets", c, nil)
	tr.Hold()
	c = tr.canary()
	if now := tr.Waiting().Queued; now != 0 {
		t.Errorf("%d clients are queued, and there is only a canary", now)
	}
	tr.open(3, closed(t))
	time.Sleep(100 * time.Millisecond) // it is tried several times
	c.Close()
	tr.open(4, host.addr)
	c = tr.canary()
	wantEcho(t, "a canary", c)
	if after := tr.counted(); after != before {
		t.Errorf("with canaries\n%s\nbefore\n%s", after, before)
	}
	if ended.Load()+firstBytes.Load()+reports.Load() != 0 {
		t.Errorf("%d ends, %d first bytes and %d suspicions were reported", ended.Load(), firstBytes.Load(), reports.Load())
	}
	client := tr.dial()
	wantEcho(t, "a client", client)
	if s := tr.Stats(); s.Accepted != 1 || s.Live != 1 {
		t.Errorf("stats %+v, want one client", s)
	}
}

func TestCanaryWaitsAsClientsDo(t *testing.T) {
	t.Parallel()
	tr := start(t, Config{})
	if _, err := tr.DialCanary(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("before the first primary: %v, want refused", err)
	}
	a, b := newSingle(t, greet("a")), newSingle(t, greet("b"))
	tr.open(1, a.addr)
	first := tr.canary()
	readSome(t, first, 1)
	tr.Hold()
	waits := make(chan *Canary)
	go func() {
		// The one that is open at a has to end first.
		c, err := tr.DialCanary(t.Context())
		if err != nil {
			t.Error(err)
		}
		waits <- c
	}()
	c := <-waits
	wantReset(t, "the first canary", first, nil)
	select {
	case <-c.Served():
		t.Fatal("a canary was served while the gate was shut")
	case <-time.After(100 * time.Millisecond): // time for a wrong behaviour to show
	}
	tr.Fence(t.Context(), 2, b.addr, FencePolicy{})
	tr.open(2, b.addr)
	c.wantServed(t)
	if text := readSome(t, c, 1); text != "b" {
		t.Errorf("the canary got to %s, want b", text)
	}
	// A fence ends it.
	tr.Hold()
	if f := tr.Fence(t.Context(), 3, a.addr, FencePolicy{}); f != (Fenced{}) {
		t.Errorf("the fence counted %+v, and there were no clients", f)
	}
	wantReset(t, "a canary of an earlier epoch", c, nil)
	// When the relay turns to refusing, those who wait are reset.
	c = tr.canary()
	if w := tr.Refuse(); w.Queued != 0 {
		t.Errorf("%d clients were turned away, and there were none", w.Queued)
	}
	wantReset(t, "a canary in the queue of a relay that refuses", c, nil)
	if _, err := tr.DialCanary(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a relay that refuses: %v, want refused", err)
	}
	tr.open(3, a.addr)
	tr.canary().wantServed(t)
	if s := tr.Stats(); s != (Stats{}) {
		t.Errorf("stats %+v, and there were no clients", s)
	}
}

// A canary that was served and is idle is moved like a client over which no byte has passed.
func TestCanaryIsMoved(t *testing.T) {
	t.Parallel()
	tr := start(t, Config{})
	a := newHost(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	tr.open(1, a.addr)
	c := tr.canary()
	c.wantServed(t)
	tr.Hold()
	b := newHost(t, greet("b"))
	tr.Fence(t.Context(), 2, b.addr, FencePolicy{})
	tr.open(2, b.addr)
	if text := readSome(t, c, 1); text != "b" {
		t.Errorf("the canary got to %s, want b", text)
	}
}

func TestCanaryAddresses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, listen, from string }{
		{"IPv4", "127.0.0.1:0", "127.0.0.1"},
		{"another IPv4", "127.0.0.7:0", "127.0.0.7"},
		{"IPv6", "[::1]:0", "::1"},
		{"every IPv4", "0.0.0.0:0", "127.0.0.1"},
		{"every address", ":0", "127.0.0.1"},
		{"a file", "unix:", ""},
	} {
		for _, accept := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, accept-proxy=%t", tt.name, accept), func(t *testing.T) {
				t.Parallel()
				listen := tt.listen
				if listen == "unix:" {
					listen += filepath.Join(t.TempDir(), "socket")
				}
				tr := start(t, Config{Listen: []string{listen}, AcceptProxy: accept, SendProxy: 1})
				header := make(chan string, 1)
				host := newHost(t, func(c *net.TCPConn) {
					in := bufio.NewReader(c)
					line, _ := in.ReadString('\n')
					header <- line
					io.Copy(c, in)
				})
				tr.open(1, host.addr)
				c, err := tr.DialCanary(t.Context())
				if strings.HasPrefix(listen, "unix:") && runtime.GOOS != "linux" {
					if !errors.Is(err, ErrNoAddress) {
						t.Errorf("DialCanary: %v, want %v", err, ErrNoAddress)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				wantEcho(t, "a canary", c)
				want := "PROXY UNKNOWN"
				if tt.from != "" {
					want = " " + tt.from + " "
				}
				if got := <-header; !strings.Contains(got, want) {
					t.Errorf("the host got the header %q, want one with %q", got, want)
				}
				if s := tr.Stats(); s != (Stats{}) {
					t.Errorf("stats %+v, and there were no clients", s)
				}
			})
		}
	}
}

func TestCanaryTakesNoPlace(t *testing.T) {
	t.Parallel()
	tr := start(t, Config{MaxConnections: 1})
	tr.open(1, newHost(t, echo).addr)
	c := tr.canary()
	wantEcho(t, "a canary", c)
	client := tr.dial()
	wantEcho(t, "a client beside a canary", client) // there is one place
	next := tr.canary()                             // waits behind the limit, as clients do
	select {
	case <-next.Served():
		t.Error("a canary was served although no client would have been")
	case <-time.After(100 * time.Millisecond): // time for a wrong behaviour to show
	}
	client.Close()
	next.wantServed(t)
}

func TestCanaryIsNotAllowed(t *testing.T) {
	t.Parallel()
	tr := start(t, Config{Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	tr.open(1, newHost(t, echo).addr)
	c, err := tr.DialCanary(t.Context())
	switch {
	case err == nil:
		wantReset(t, "a canary that is not allowed", c, nil)
	case !isReset(err):
		t.Errorf("a canary that is not allowed: %v, want a reset", err)
	}
	if s := tr.Stats(); s.Denied != 0 {
		t.Errorf("stats %+v, and there were no clients", s)
	}
}

// The host of a paced opening gets the canary when those have had their turn who came
// before it, and it is counted in no figure of the pacing.
func TestCanaryThroughPacedGate(t *testing.T) {
	t.Parallel()
	const clients = 60
	tr := start(t, Config{OpenRate: 100})
	host := newHost(t, echo)
	tr.open(1, host.addr)
	tr.Hold()
	for range clients {
		tr.dial()
	}
	if tr.listeners[0].CountsQueue() {
		proctest.Until(t, "all to be queued", func() bool { return tr.Waiting().Queued == clients })
	}
	c := tr.canary()
	w, err := tr.Open(2, host.addr)
	if err != nil || !w.Paced || tr.listeners[0].CountsQueue() && w.Queued != clients {
		t.Fatalf("Open: %+v, %v, want %d that wait", w, err, clients)
	}
	c.wantServed(t)
	if turns, _ := tr.Pacing(); turns.Turns < clients*2/3 {
		t.Errorf("a canary that came last was served after %d of %d turns", turns.Turns, clients)
	}
	proctest.Until(t, "the pacing to end", func() bool { p, _ := tr.Pacing(); return p.Over })
	if p, _ := tr.Pacing(); p.Turns != clients || tr.Stats().Accepted != clients {
		t.Errorf("pacing %+v, stats %+v, want %d clients", p, tr.Stats(), clients)
	}
}

// A host never has two canaries, even if it does not end its side of the last one.
func TestCanaryIsAlone(t *testing.T) {
	t.Parallel()
	tr := start(t, Config{})
	host := newSingle(t, func(c *net.TCPConn) {
		io.WriteString(c, "x")
		for { // until a reset
			if _, err := c.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	tr.open(1, host.addr)
	for range 5 {
		c := tr.canary()
		readSome(t, c, 1)
		c.Conn.(*net.TCPConn).CloseWrite()
		proctest.Until(t, "the host to notice", func() bool { return host.open.Load() == 1 })
		c.Close()
		proctest.Until(t, "the host to notice", func() bool { return host.open.Load() == 0 })
	}
	if n := host.most.Load(); n != 1 {
		t.Errorf("the host had %d canaries at a time", n)
	}
}

// The end of a relay waits for no canary, and new settings concern canaries, too.
func TestCanaryAtReconfigureAndEnd(t *testing.T) {
	t.Parallel()
	cfg := Config{Listen: []string{"127.0.0.1:0"}, DrainTimeout: time.Hour}
	tr := start(t, cfg)
	header := make(chan string, 9)
	host := newHost(t, func(c *net.TCPConn) {
		line, _ := bufio.NewReader(c).ReadString('\n')
		header <- line
		io.Copy(io.Discard, c)
	})
	tr.open(1, host.addr)
	first := tr.canary()
	first.wantServed(t)
	first.Close() // it is served before a header is sent, so it could get one yet
	if got := <-header; got != "" {
		t.Errorf("the host got the header %q of a canary before the change", got)
	}
	cfg.SendProxy = 1
	tr.reconfigure(cfg)
	c := tr.canary()
	c.wantServed(t)
	if got := <-header; !strings.HasPrefix(got, "PROXY ") {
		t.Errorf("the host got %q, want a header", got)
	}
	tr.stop()
	select {
	case <-tr.done:
	case <-time.After(patience):
		t.Fatal("a relay waits for its canary to end")
	}
	if _, err := tr.DialCanary(t.Context()); !errors.Is(err, errClosed) {
		t.Errorf("DialCanary: %v, want %v", err, errClosed)
	}
}

// Nothing is made for a relay without canaries, and [twinConfig] knows every field that
// reports something.
func TestTwinReportsNothing(t *testing.T) {
	t.Parallel()
	tr := start(t, Config{})
	tr.open(1, newHost(t, echo).addr)
	wantEcho(t, "a client", tr.dial())
	if tr.canaries.twin.Load() != nil {
		t.Error("there is a twin, and there was no canary")
	}
	cfg := twinConfig(Config{
		Suspect: func(uint64, error) {}, HostEnded: func(uint64) {}, FirstByte: func(uint64) {}, Ended: func(Ending) {},
		Paced: func(Pacing) {}, Replay: func([]byte) bool { return true },
	}, nil)
	for k := range reflect.TypeFor[Config]().NumField() {
		f := reflect.TypeFor[Config]().Field(k)
		if f.Type.Kind() == reflect.Func && f.Name != "Replay" && !reflect.ValueOf(cfg).Field(k).IsNil() {
			t.Errorf("a twin calls %s", f.Name)
		}
	}
}
