package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

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
	proctest.Until(t, "the connection to be counted as finished", func() bool { return r.Stats().Finished == 1 })
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
	f := r.Fence(t.Context(), 2, "", FencePolicy{})
	if f.Reset != 1 || f.Moved != 0 {
		t.Errorf("Fence: %+v, want one reset", f)
	}
	if _, err := busy.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("fenced client saw %v, want a reset", err)
	}

	r.open(2, silent.addr)
	quiet := r.dial()
	proctest.Until(t, "the connection", func() bool { return r.Stats().Live == 1 })
	time.Sleep(20 * time.Millisecond) // for it to reach its host
	r.Hold()
	waiting := r.dial() // in the kernel's queue
	if f := r.Fence(t.Context(), 3, "", FencePolicy{}); f.Moved != 1 {
		t.Errorf("Fence: %+v, want one moved", f)
	}
	proctest.Until(t, "both to wait", func() bool { return r.Waiting() == Waiting{Queued: 1, Held: 1} })
	r.open(3, second.addr)
	for _, c := range []net.Conn{quiet, waiting} {
		if got := readSome(t, c, 3); got != "two" {
			t.Errorf("after the switch: %q, want two", got)
		}
	}
}

// A host's end of stream counts as data: its client is not moved.
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
	if f := r.Fence(t.Context(), 2, "", FencePolicy{}); f != (Fenced{Reset: 1}) {
		t.Errorf("Fence: %+v, want one reset", f)
	}
}

// A fence that keeps connections resets none, but clients without a
// host, or over whose connection no byte has passed, still go to the next one.
func TestFenceThatKeeps(t *testing.T) {
	quiet := newHost(t, func(c *net.TCPConn) { io.Copy(c, c) })
	second := newHost(t, greet("two"))
	r := start(t, Config{})
	r.open(1, quiet.addr)
	busy, moved := r.dial(), r.dial()
	io.WriteString(busy, "x")
	readSome(t, busy, 1)
	proctest.Until(t, "both connections", func() bool { return r.Stats().Live == 2 })
	r.Hold()
	proctest.Until(t, "the one without a byte to be moved", func() bool {
		f := r.Fence(t.Context(), 2, "", FencePolicy{Keep: true})
		if f.Reset != 0 || f.Finished != 0 {
			t.Fatalf("Fence: %+v, want none reset", f)
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

// A fence leaves connections to the host that stays where they are, whether bytes
// have passed or not, and carries them into the new epoch: the next fence finds
// them. Connections to other hosts are not spared by it, of whichever epoch
// they are.
func TestFenceSparesTheHostThatStays(t *testing.T) {
	t.Parallel()
	const each = 10
	var answered atomic.Uint64
	r := start(t, Config{Engine: engine(2), FirstByte: answered.Store})
	a, b := newHost(t, echo), newHost(t, echo)
	request := func(c net.Conn, when string) {
		t.Helper()
		io.WriteString(c, "x")
		if got := readSome(t, c, 1); got != "x" {
			t.Errorf("%s: got %q", when, got)
		}
	}
	gather := func(epoch uint64, h *testHost) (busy, quiet []*net.TCPConn) {
		t.Helper()
		r.open(epoch, h.addr)
		before := h.accepted.Load()
		for range each {
			busy, quiet = append(busy, r.dial()), append(quiet, r.dial())
		}
		for _, c := range busy {
			request(c, "at first")
		}
		// The relay knows of the connection when its host does; a little later
		// for a quiet one.
		proctest.Until(t, "the host to have all", func() bool { return h.accepted.Load() == before+2*each })
		time.Sleep(50 * time.Millisecond) // that little
		return busy, quiet
	}
	busyA, quietA := gather(1, a)

	r.Hold()
	connects := a.accepted.Load()
	if f := r.Fence(t.Context(), 2, a.addr, FencePolicy{}); f != (Fenced{Kept: 2 * each}) {
		t.Errorf("Fence whose host stays: %+v, want %d kept and nothing else", f, 2*each)
	}
	for _, c := range busyA {
		request(c, "while the gate is shut")
	}
	request(quietA[0], "while the gate is shut")
	proctest.Until(t, "the bytes to be counted", func() bool { return r.Stats().Received == 2*each+1 })
	r.open(2, a.addr)
	if n := answered.Load(); n != 1 {
		t.Errorf("first byte of epoch %d, want none of epoch 2 before it was open", n)
	}
	for _, c := range quietA[1:] {
		request(c, "when the gate is open again")
	}
	if n := answered.Load(); n != 2 {
		t.Errorf("first byte of epoch %d, want 2", n)
	}
	if n := a.accepted.Load() - connects; n != 0 {
		t.Errorf("%d connects to the host that stayed, want none", n)
	}

	// They are left alive, and then there are connections to two hosts.
	r.Hold()
	if f := r.Fence(t.Context(), 3, b.addr, FencePolicy{Keep: true}); f != (Fenced{Kept: 2 * each}) {
		t.Errorf("Fence that lets live: %+v, want %d kept", f, 2*each)
	}
	busyB, quietB := gather(3, b)
	for _, c := range quietB {
		request(c, "at the other host")
	}
	r.Hold()
	if f := r.Fence(t.Context(), 4, a.addr, FencePolicy{}); f != (Fenced{Kept: 2 * each, Reset: 2 * each}) {
		t.Errorf("Fence whose host stays: %+v, want its %d kept and the other's %d reset", f, 2*each, 2*each)
	}
	for _, c := range busyB {
		wantReset(t, "a client of the other host", c, nil)
	}
	if f := r.Fence(t.Context(), 5, "", FencePolicy{}); f != (Fenced{Reset: 2 * each}) {
		t.Errorf("the next Fence: %+v, want %d reset", f, 2*each)
	}
	if s := r.Stats(); s.Live != 0 || s.Fenced != 4*each {
		t.Errorf("stats %+v, want %d fenced", s, 4*each)
	}
}

// A connect that is under way when its host is elected again has had no answer
// for as long as the host was away: it is started again.
func TestFenceStartsConnectsAnew(t *testing.T) {
	t.Parallel()
	r := start(t, Config{ConnectTimeout: time.Hour})
	addr := fullQueue(t)
	r.open(1, addr)
	c := r.dial()
	proctest.Until(t, "the client to be accepted", func() bool { return r.Stats().Live == 1 })
	r.Hold()
	if f := r.Fence(t.Context(), 2, addr, FencePolicy{}); f != (Fenced{Moved: 1}) {
		t.Errorf("Fence: %+v, want one moved", f)
	}
	r.open(3, newHost(t, greet("two")).addr)
	if got := readSome(t, c, 3); got != "two" {
		t.Errorf("got %q", got)
	}
}

// A fence whose context ends leaves unfinished connections alive.
func TestFenceThatIsGivenUpKeeps(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{})
	client, host := r.pair(hosts)
	r.Hold()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if f := r.Fence(ctx, 2, "", FencePolicy{Drain: time.Hour}); f != (Fenced{Kept: 1}) {
		t.Errorf("Fence: %+v, want one kept", f)
	}
	io.WriteString(client, "x")
	if got := readSome(t, host, 1); got != "x" {
		t.Errorf("got %q", got)
	}
	if f := r.Fence(t.Context(), 3, hosts.Addr().String(), FencePolicy{}); f != (Fenced{Kept: 1}) {
		t.Errorf("Fence whose host stays: %+v, want one kept", f)
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
		proctest.Until(t, "the client to be queued", func() bool { return r.Waiting().Queued == 1 })
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
			t.Error("another program could take the address while the relay refuses")
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
	proctest.Until(t, "both to be held", func() bool { return r.Waiting().Held == 2 })
	reset(gone)
	proctest.Until(t, "the client that left to be counted", func() bool { return r.Stats().Aborted == 1 })
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
	proctest.Until(t, "the count", func() bool { return r.Stats().Expired == 1 })
}

func TestBusyAddress(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	r, err := New(complete(Config{Name: "x", Listen: []string{ln.Addr().String()}}))
	if err != nil {
		t.Fatal(err)
	}
	err = r.Bind()
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("Bind: %v, want address in use, with the address", err)
	}
	other := start(t, Config{}) // bound, not listening
	r, _ = New(complete(Config{Name: "x", Listen: []string{other.addr}}))
	if err := r.Bind(); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Bind to an address that is bound but does not listen: %v", err)
	}
}
