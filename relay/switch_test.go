package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// What becomes of clients when the host fails, is changed, or is a poor one.

// suspicions collects what a relay says of its hosts.
type suspicions struct {
	mu  sync.Mutex
	all []string
	err error // the last one
}

// add is a Config.Suspect. That a connect took its time is no news on a busy
// machine, and counts only as the last one.
func (s *suspicions) add(epoch uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	if !errors.Is(err, errSlow) {
		s.all = append(s.all, fmt.Sprintf("epoch %d: %v", epoch, err))
	}
}

func (s *suspicions) list() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.all...)
}

func (s *suspicions) last() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// none fails when somebody was suspected.
func (s *suspicions) none(tb testing.TB) {
	tb.Helper()
	if all := s.list(); len(all) != 0 {
		tb.Errorf("suspected a host that did nothing wrong: %q", all)
	}
}

// stuffed is the address of a host whose accept queue is full: connects to it
// get no answer.
func stuffed(tb testing.TB) string {
	tb.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		tb.Fatal(err)
	}
	syscall.CloseOnExec(fd)
	tb.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		tb.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		tb.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		tb.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", sa.(*syscall.SockaddrInet4).Port)
	for range 8 { // as many as it takes, plus one
		c, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			return addr
		}
		tb.Cleanup(func() { c.Close() })
	}
	tb.Skip("SKIP: a listen backlog of 0 is not small here")
	return ""
}

// closed is an address at which connects are refused.
func closed(tb testing.TB) string {
	tb.Helper()
	ln := listen(tb, "127.0.0.1:0")
	defer ln.Close()
	return ln.Addr().String()
}

func TestSwitchInTheMiddleOfTransfers(t *testing.T) {
	t.Parallel()
	const many = 200
	r := start(t, Config{Loops: 2})
	var hostSaw [many]atomic.Bool
	var old atomic.Int64
	first := newHost(t, func(c *net.TCPConn) {
		n := old.Add(1) - 1
		wrote := make(chan struct{})
		go func() {
			defer close(wrote)
			b := randomBytes(4 << 10)
			for {
				if _, err := c.Write(b); err != nil {
					if isReset(err) { // a reset is told once: to the reader or to the writer
						hostSaw[n].Store(true)
					}
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
		if _, err := io.Copy(io.Discard, c); isReset(err) {
			hostSaw[n].Store(true)
		}
		<-wrote
		old.Add(-1)
	})
	r.open(1, first.addr)
	var wg sync.WaitGroup
	for k := range many {
		c := r.dial()
		readSome(t, c, 1)
		wg.Go(func() {
			if _, err := io.Copy(io.Discard, c); !isReset(err) {
				t.Errorf("client %d saw %v in the middle of its answer, want a reset", k, err)
			}
		})
	}
	r.Hold()
	begin := time.Now()
	f := r.Fence(t.Context(), 2, 0)
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("Fence took %s", took)
	}
	if f.Reset != many || f.Moved != 0 || r.Stats().Fenced != many || r.Stats().Live != 0 {
		t.Errorf("Fence: %+v, stats %+v, want %d cut", f, r.Stats(), many)
	}
	wg.Wait()
	waitFor(t, "the old host to be rid of them", func() bool { return old.Load() == 0 })
	for k := range hostSaw {
		if !hostSaw[k].Load() {
			t.Errorf("the old host's connection %d saw no reset", k)
		}
	}
	r.open(2, newHost(t, greet("two")).addr)
	if got := readSome(t, r.dial(), 3); got != "two" {
		t.Errorf("got %q", got)
	}
}

func TestFenceWithGrace(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{Loops: 2})
	data := randomBytes(200 << 10)
	var wg sync.WaitGroup
	const each = 10
	for range each {
		client, host := r.pair(hosts) // ends in time
		wg.Go(func() {
			wantAll(t, "a transfer that ends in time", client, data)
			client.CloseWrite()
		})
		wg.Go(func() {
			for rest := data; len(rest) > 0; rest = rest[min(20<<10, len(rest)):] {
				host.Write(rest[:min(20<<10, len(rest))])
				time.Sleep(100 * time.Millisecond)
			}
			host.CloseWrite()
		})
		late, _ := r.pair(hosts)
		wg.Go(func() { wantReset(t, "a transfer that never ends", late, nil) })
	}
	r.Hold()
	const grace = 5 * time.Second
	begin := time.Now()
	f := r.Fence(t.Context(), 2, grace)
	if took := time.Since(begin); took < grace {
		t.Errorf("Fence returned after %s although some had not ended, want %s", took, grace)
	}
	if f != (Fenced{Finished: each, Reset: each}) {
		t.Errorf("Fence: %+v, want %d finished and as many cut", f, each)
	}
	wg.Wait()
	if s := r.Stats(); s.Finished != each || s.Fenced != each {
		t.Errorf("stats %+v", s)
	}
}

func TestFenceReturnsWhenNoneIsLeft(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{})
	client, host := r.pair(hosts)
	time.AfterFunc(100*time.Millisecond, func() { client.Close(); host.Close() })
	r.Hold()
	begin := time.Now()
	if f := r.Fence(t.Context(), 2, time.Hour); f != (Fenced{Finished: 1}) {
		t.Errorf("Fence: %+v, want one finished", f)
	}
	if took := time.Since(begin); took > patience {
		t.Errorf("Fence took %s", took)
	}
	r.open(2, hosts.Addr().String())
	r.pair(hosts)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if f := r.Fence(ctx, 3, time.Hour); f.Reset != 0 {
		t.Errorf("Fence whose context ended: %+v, want nothing cut", f)
	}
	if f := r.Fence(t.Context(), 2, 0); f != (Fenced{}) {
		t.Errorf("Fence of earlier epochs: %+v, the connection is not of one", f)
	}
}

// Over some connections nothing has passed when their host's epoch ends. Their
// clients go to the next host with all they have sent.
func TestMovedClients(t *testing.T) {
	t.Parallel()
	data := randomBytes(300 << 10)
	record := func(got chan<- []byte) func(c *net.TCPConn) {
		return func(c *net.TCPConn) {
			b, err := io.ReadAll(c)
			if err != nil {
				b = append(b, err.Error()...)
			}
			io.WriteString(c, "done")
			got <- b
		}
	}
	for _, tt := range []struct {
		name  string
		first func(tb testing.TB) string
		send  []byte // before the switch
	}{
		{"connecting, and the client has sent much", stuffed, data},
		{"connecting, and the client has ended", stuffed, nil},
		{"refused", closed, data},
		{"connected, and nothing was sent", func(tb testing.TB) string {
			tb.Helper()
			return newHost(tb, func(c *net.TCPConn) { io.Copy(io.Discard, c); io.Copy(io.Discard, c) }).addr
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := make(chan []byte, 1)
			second := newHost(t, record(got))
			r := start(t, Config{})
			r.open(1, tt.first(t))
			c := r.dial()
			c.Write(tt.send)
			if tt.name != "connected, and nothing was sent" {
				c.CloseWrite()
			}
			waitFor(t, "the client to be accepted", func() bool { return r.Stats().Live == 1 })
			time.Sleep(50 * time.Millisecond)
			r.Hold()
			if f := r.Fence(t.Context(), 2, 0); f.Reset != 0 || f.Moved+r.Waiting().Held == 0 {
				t.Errorf("Fence: %+v, want the client to wait", f)
			}
			if s := r.Stats(); s.Live != 1 {
				t.Fatalf("stats %+v, want the client to be there", s)
			}
			r.open(2, second.addr)
			c.CloseWrite()
			if b := <-got; !bytes.Equal(b, tt.send) {
				t.Errorf("the second host got %d bytes, want the %d that the client had sent", len(b), len(tt.send))
			}
			wantAll(t, "the client", c, []byte("done"))
		})
	}
}

// A client that half-closed before a byte had passed waits as any other.
func TestMovedAfterHalfClose(t *testing.T) {
	t.Parallel()
	sawEnd := make(chan struct{}, 1)
	release := make(chan struct{})
	first := newHost(t, func(c *net.TCPConn) {
		io.Copy(io.Discard, c)
		sawEnd <- struct{}{}
		<-release
	})
	defer close(release)
	second := newHost(t, func(c *net.TCPConn) {
		io.Copy(io.Discard, c)
		io.WriteString(c, "two")
	})
	r := start(t, Config{})
	r.open(1, first.addr)
	c := r.dial()
	c.CloseWrite()
	<-sawEnd
	r.Hold()
	if f := r.Fence(t.Context(), 2, 0); f != (Fenced{Moved: 1}) {
		t.Errorf("Fence: %+v, want one moved", f)
	}
	r.open(2, second.addr)
	wantAll(t, "the client", c, []byte("two"))
}

// A monitor connects and closes, or resets, and says nothing. That is nobody's
// fault.
func TestMonitors(t *testing.T) {
	t.Parallel()
	const times = 1000
	for _, tt := range []struct {
		name  string
		serve func(c *net.TCPConn)
	}{
		{"a host that waits for the end", func(c *net.TCPConn) { io.Copy(io.Discard, c) }},
		{"a host that speaks first", func(c *net.TCPConn) { greet("hello")(c) }},
		{"a host that resets when the client ends", func(c *net.TCPConn) {
			io.Copy(io.Discard, c)
			reset(c)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var s suspicions
			r := start(t, Config{Suspect: s.add})
			h := newHost(t, tt.serve)
			r.open(1, h.addr)
			for k := range times {
				c := r.dial()
				if k%2 == 0 {
					reset(c)
				} else {
					c.Close()
				}
			}
			waitFor(t, "all to be over", func() bool { return r.Stats().Accepted == times && r.Stats().Live == 0 })
			s.none(t)
			if n := h.accepted.Load(); n > times {
				t.Errorf("%d connections to the host for %d clients", n, times)
			}
		})
	}
}

// A host that resets every connection it accepts: the client waits for what
// comes of it, no longer than Hold, and never sees a clean end.
func TestHostResetsOnAccept(t *testing.T) {
	t.Parallel()
	for _, speaks := range []bool{false, true} {
		t.Run(fmt.Sprintf("client speaks first %t", speaks), func(t *testing.T) {
			t.Parallel()
			var s suspicions
			r := start(t, Config{Hold: time.Second, Suspect: s.add})
			h := newHost(t, reset)
			r.open(1, h.addr)
			for range 5 {
				c := r.dial()
				if speaks {
					io.WriteString(c, "hello")
				}
				wantReset(t, "the client", c, nil)
			}
			if n := h.accepted.Load(); n > 5*30 {
				t.Errorf("%d connects to the host for 5 clients", n)
			}
			if !speaks && len(s.list()) == 0 {
				t.Error("nobody was told")
			}
		})
	}
}

// And if the next host is better, the client never knew.
func TestHostResetsOnAcceptThenSwitch(t *testing.T) {
	t.Parallel()
	r := start(t, Config{})
	r.open(1, newHost(t, reset).addr)
	c := r.dial()
	time.Sleep(100 * time.Millisecond)
	r.Hold()
	r.Fence(t.Context(), 2, 0)
	r.open(2, newHost(t, greet("two")).addr)
	if got := readSome(t, c, 3); got != "two" {
		t.Errorf("got %q", got)
	}
}

// A host that does not answer connects is suspected before the connect timeout,
// and its clients go to the next one.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	var s suspicions
	r := start(t, Config{ConnectTimeout: 20 * time.Second, Suspect: s.add})
	r.open(1, stuffed(t))
	begin := time.Now()
	c := r.dial()
	waitFor(t, "a suspicion", func() bool { return s.last() != nil })
	if took := time.Since(begin); took < 100*time.Millisecond || took > 10*time.Second {
		t.Errorf("suspected after %s, want some 200ms", took)
	}
	r.Hold()
	r.Fence(t.Context(), 2, 0)
	r.open(2, newHost(t, greet("two")).addr)
	if got := readSome(t, c, 3); got != "two" {
		t.Errorf("got %q", got)
	}
	time.Sleep(300 * time.Millisecond)
	s.none(t)
}

func TestConnectTimeout(t *testing.T) {
	t.Parallel()
	var s suspicions
	r := start(t, Config{ConnectTimeout: 50 * time.Millisecond, Hold: 300 * time.Millisecond, Suspect: s.add})
	r.open(1, stuffed(t))
	c := r.dial()
	wantReset(t, "a client whose hold ended", c, nil)
	if err := s.last(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("suspected for %v, want a timeout", err)
	}
	waitFor(t, "the count", func() bool { return r.Stats().Expired == 1 })
}

// Clients that leave while they wait are counted as gone, and their connects
// are given up.
func TestClientLeavesDuringConnect(t *testing.T) {
	t.Parallel()
	r := start(t, Config{ConnectTimeout: time.Hour, Hold: time.Hour})
	r.open(1, stuffed(t))
	early, late := r.dial(), r.dial()
	reset(early) // perhaps before it is accepted
	waitFor(t, "it to be connecting", func() bool { return r.Stats().Live >= 1 })
	time.Sleep(50 * time.Millisecond)
	reset(late)
	begin := time.Now()
	waitFor(t, "both to be gone", func() bool { s := r.Stats(); return s.Gone == s.Accepted && s.Live == 0 })
	if took := time.Since(begin); took > 10*time.Second { // the kernel gives up the connect after 20
		t.Errorf("noticed after %s", took)
	}
}

func TestHoldNegative(t *testing.T) {
	t.Parallel()
	var s suspicions
	r := start(t, Config{Hold: -1, Suspect: s.add})
	r.open(1, closed(t))
	r.wantTurnedAway("a client that may not wait", "127.0.0.1")
	waitFor(t, "the count", func() bool { return r.Stats().Expired == 1 })
	if !errors.Is(s.last(), syscall.ECONNREFUSED) {
		t.Errorf("suspected for %v, want refused", s.last())
	}
}

// Names are looked up at each connect.
func TestResolve(t *testing.T) {
	t.Parallel()
	local := netip.MustParseAddr("127.0.0.1")
	h := newHost(t, greet("x"))
	_, port, _ := net.SplitHostPort(h.addr)
	name := net.JoinHostPort("db.example", port)
	type resolve = func(ctx context.Context, name string) ([]netip.Addr, error)
	fixed := func(addrs ...string) resolve {
		return func(context.Context, string) (all []netip.Addr, _ error) {
			for _, a := range addrs {
				all = append(all, netip.MustParseAddr(a))
			}
			return all, nil
		}
	}

	t.Run("the name as the operator wrote it", func(t *testing.T) {
		t.Parallel()
		var asked atomic.Value
		r := start(t, Config{Resolve: func(_ context.Context, name string) ([]netip.Addr, error) {
			asked.Store(name)
			return []netip.Addr{local}, nil
		}})
		r.open(1, name)
		readSome(t, r.dial(), 1)
		if got := asked.Load(); got != "db.example" {
			t.Errorf("asked for %v", got)
		}
	})
	t.Run("slow, and others are not delayed", func(t *testing.T) {
		t.Parallel()
		var s suspicions
		release := make(chan struct{})
		var first atomic.Bool
		r := start(t, Config{Loops: 1, Suspect: s.add, Resolve: func(context.Context, string) ([]netip.Addr, error) {
			if first.CompareAndSwap(false, true) {
				<-release
			}
			return []netip.Addr{local}, nil
		}})
		r.open(1, name)
		slow := r.dial()
		waitFor(t, "the first lookup", first.Load)
		readSome(t, r.dial(), 1)
		close(release)
		readSome(t, slow, 1)
		s.none(t)
	})
	t.Run("silent", func(t *testing.T) {
		t.Parallel()
		var s suspicions
		r := start(t, Config{ConnectTimeout: 50 * time.Millisecond, Hold: 200 * time.Millisecond, Suspect: s.add,
			Resolve: func(ctx context.Context, _ string) ([]netip.Addr, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}})
		r.open(1, name)
		wantReset(t, "the client", r.dial(), nil)
		if !errors.Is(s.last(), context.DeadlineExceeded) {
			t.Errorf("suspected for %v, want a timeout", s.last())
		}
	})
	t.Run("failing, then good", func(t *testing.T) {
		t.Parallel()
		var s suspicions
		fail := errors.New("no such host")
		var good atomic.Bool
		r := start(t, Config{Suspect: s.add, Resolve: func(context.Context, string) ([]netip.Addr, error) {
			if good.Load() {
				return []netip.Addr{local}, nil
			}
			return nil, fail
		}})
		r.open(1, name)
		c := r.dial()
		waitFor(t, "a suspicion", func() bool { return s.last() != nil })
		if !errors.Is(s.last(), fail) {
			t.Errorf("suspected for %v, want %v", s.last(), fail)
		}
		good.Store(true)
		readSome(t, c, 1)
	})
	t.Run("no addresses", func(t *testing.T) {
		t.Parallel()
		var s suspicions
		r := start(t, Config{Hold: 50 * time.Millisecond, Suspect: s.add, Resolve: fixed()})
		r.open(1, name)
		wantReset(t, "the client", r.dial(), nil)
		if s.last() == nil {
			t.Error("nobody was told")
		}
	})
	t.Run("the first address is dead", func(t *testing.T) {
		t.Parallel()
		var s suspicions
		r := start(t, Config{Suspect: s.add, Resolve: fixed("127.0.0.77", "::1", "127.0.0.1")})
		r.open(1, name)
		for range 3 {
			readSome(t, r.dial(), 1)
		}
		s.none(t)
	})
	t.Run("all addresses are dead", func(t *testing.T) {
		t.Parallel()
		var s suspicions
		r := start(t, Config{Hold: 100 * time.Millisecond, Suspect: s.add, Resolve: fixed("127.0.0.77", "127.0.0.78")})
		r.open(1, name)
		wantReset(t, "the client", r.dial(), nil)
		if !errors.Is(s.last(), syscall.ECONNREFUSED) {
			t.Errorf("suspected for %v, want refused", s.last())
		}
	})
	t.Run("changed", func(t *testing.T) {
		t.Parallel()
		var to atomic.Value
		to.Store("127.0.0.1")
		r := start(t, Config{Resolve: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr(to.Load().(string))}, nil
		}})
		other := listenPort(t, "127.0.0.3", port)
		newHostOn(t, other, func(c net.Conn) { greet("y")(c.(*net.TCPConn)) })
		r.open(1, name)
		if got := readSome(t, r.dial(), 1); got != "x" {
			t.Errorf("got %q", got)
		}
		to.Store("127.0.0.3")
		if got := readSome(t, r.dial(), 1); got != "y" {
			t.Errorf("got %q after the name had changed", got)
		}
	})
	t.Run("looking up when the epoch ends", func(t *testing.T) {
		t.Parallel()
		release := make(chan struct{})
		var asked atomic.Bool
		r := start(t, Config{Resolve: func(context.Context, string) ([]netip.Addr, error) {
			asked.Store(true)
			<-release
			return []netip.Addr{local}, nil
		}})
		r.open(1, name)
		c := r.dial()
		waitFor(t, "the lookup", asked.Load)
		r.Hold()
		if f := r.Fence(t.Context(), 2, 0); f != (Fenced{Moved: 1}) {
			t.Errorf("Fence: %+v, want one moved", f)
		}
		close(release)
		r.open(2, newHost(t, greet("z")).addr)
		if got := readSome(t, c, 1); got != "z" {
			t.Errorf("got %q", got)
		}
	})
}

func listenPort(tb testing.TB, ip, port string) net.Listener {
	tb.Helper()
	ln, err := net.Listen("tcp4", net.JoinHostPort(ip, port))
	if err != nil {
		tb.Skipf("SKIP: needs all of 127.0.0.0/8 to be local: %v", err)
	}
	return ln
}

// After the context ends nobody comes in, and who is in may finish.
func TestDrain(t *testing.T) {
	t.Parallel()
	const many = 50
	r, hosts := startPairs(t, Config{Loops: 2, DrainTimeout: patience})
	data := randomBytes(256 << 10)
	var wg sync.WaitGroup
	for k := range many {
		client, host := r.pair(hosts)
		wg.Go(func() {
			for rest := data; len(rest) > 0; rest = rest[min(16<<10, len(rest)):] {
				host.Write(rest[:min(16<<10, len(rest))])
				time.Sleep(time.Duration(5+rand.IntN(20)) * time.Millisecond)
			}
			host.CloseWrite()
		})
		wg.Go(func() {
			wantAll(t, fmt.Sprint("transfer ", k), client, data)
			client.CloseWrite()
		})
	}
	r.stop()
	waitFor(t, "connects to be refused", func() bool {
		c, err := net.Dial("tcp", r.addr)
		if err == nil {
			reset(c.(*net.TCPConn)) // just before
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	select {
	case <-r.done:
		t.Error("Run returned before the transfers had ended")
	default:
	}
	wg.Wait()
	<-r.done
	if s := r.Stats(); s.Finished < many || s.Live != 0 {
		t.Errorf("stats %+v, want %d finished", s, many)
	}
	if _, err := r.Open(2, "127.0.0.1:1"); err == nil {
		t.Error("Open after the end of Run: no error")
	}
	r.Hold()
	r.Refuse()
	r.Fence(t.Context(), 9, 0)
}

func TestDrainEnds(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		timeout time.Duration
		cut     bool
	}{
		{"at its timeout", 300 * time.Millisecond, false},
		{"when it is cut", time.Hour, true},
		{"at once", -1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, hosts := startPairs(t, Config{DrainTimeout: tt.timeout})
			client, host := r.pair(hosts)
			begin := time.Now()
			r.stop()
			if tt.cut {
				time.Sleep(50 * time.Millisecond)
				select {
				case <-r.done:
					t.Error("Run did not wait")
				default:
				}
				r.Cut()
				r.Cut()
			}
			<-r.done
			if took := time.Since(begin); took < tt.timeout && !tt.cut {
				t.Errorf("Run returned after %s, want %s", took, tt.timeout)
			}
			wantReset(t, "client", client, nil)
			wantReset(t, "host", host, nil)
			if s := r.Stats(); s.Fenced != 1 {
				t.Errorf("stats %+v, want one fenced", s)
			}
		})
	}
}

// A relay that has ended does not touch descriptors that now are somebody
// else's.
func TestCallsAfterTheEnd(t *testing.T) {
	r, hosts := startPairs(t, Config{Loops: 2})
	r.pair(hosts)
	r.stop()
	<-r.done
	ln := listen(t, "127.0.0.1:0")
	defer ln.Close()
	var ends []net.Conn
	for range 20 { // these get the numbers that have become free
		a := dialTo(t, ln.Addr().String())
		b, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		ends = append(ends, a, b)
	}
	for range 20 {
		r.Hold()
		r.Refuse()
		r.Fence(t.Context(), 9, 0)
		r.Stats()
		r.Waiting()
		r.Cut()
	}
	for _, c := range ends {
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if n, err := c.Read(make([]byte, 64)); n != 0 || errors.Is(err, io.EOF) {
			t.Fatalf("a stranger's connection got %d bytes, %v", n, err)
		}
	}
}

// Under load of every kind, with the gate opened, shut and fenced all the
// time, the counts never go backwards and add up, also in the middle.
func TestCountingUnderLoad(t *testing.T) {
	t.Parallel()
	const clients, each = 24, 25
	r := start(t, Config{Loops: 2, Hold: 100 * time.Millisecond, ConnectTimeout: 100 * time.Millisecond})
	good := []*testHost{newHost(t, echo), newHost(t, greet("x")), newHost(t, reset)}
	hosts := []string{good[0].addr, good[1].addr, good[2].addr, closed(t), stuffed(t), good[0].addr}

	var over atomic.Bool
	var watching sync.WaitGroup
	watching.Go(func() { // the gate
		epoch := uint64(1)
		for !over.Load() {
			r.Open(epoch, hosts[epoch%uint64(len(hosts))])
			time.Sleep(time.Duration(rand.IntN(80)) * time.Millisecond)
			epoch++
			switch rand.IntN(4) {
			case 0:
				r.Refuse()
			case 1:
				r.Hold()
				r.Fence(t.Context(), epoch, 20*time.Millisecond)
			default:
				r.Hold()
				r.Fence(t.Context(), epoch, 0)
			}
		}
		r.Refuse()
	})
	watching.Go(func() { // the counts
		var last Stats
		for !over.Load() {
			s := r.Stats()
			if s.Accepted != s.Live+s.Finished+s.Reset+s.Fenced+s.Expired+s.Gone || s.Live > clients*each {
				t.Errorf("stats %+v do not add up", s)
				return
			}
			if s.Accepted < last.Accepted || s.Finished < last.Finished || s.Reset < last.Reset || s.Fenced < last.Fenced ||
				s.Expired < last.Expired || s.Gone < last.Gone || s.Sent < last.Sent || s.Received < last.Received {
				t.Errorf("stats went backwards, from %+v to %+v", last, s)
				return
			}
			last = s
			if w := r.Waiting(); w.Held < 0 || w.Queued < 0 {
				t.Errorf("waiting %+v", w)
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range each {
				conn, err := net.Dial("tcp", r.addr)
				if err != nil {
					time.Sleep(5 * time.Millisecond) // refused: part of the game
					continue
				}
				c := conn.(*net.TCPConn)
				c.SetDeadline(time.Now().Add(patience))
				switch rand.IntN(6) {
				case 0:
					reset(c)
				case 1:
				case 2:
					c.Write(make([]byte, 100_000))
					reset(c)
				case 3:
					c.Write(make([]byte, 1000))
					c.CloseWrite()
					io.Copy(io.Discard, c)
				case 4:
					io.Copy(io.Discard, io.LimitReader(c, 1))
				case 5:
					c.Write(make([]byte, 1000))
					time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond)
				}
				c.Close()
			}
		})
	}
	wg.Wait()
	over.Store(true)
	watching.Wait()
	r.Fence(t.Context(), 1<<40, 0)
	waitFor(t, "all to be over", func() bool { return r.Stats().Live == 0 && r.Waiting() == Waiting{} })
	t.Logf("%+v", r.Stats())
}
