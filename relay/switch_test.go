package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// What happens to clients when the host fails, is changed, or misbehaves.

func TestSwitchInTheMiddleOfTransfers(t *testing.T) {
	t.Parallel()
	const many = 200
	r := start(t, Config{Engine: engine(2)})
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
					if isReset(err) { // a reset is reported once: to the reader or to the writer
						hostSaw[n].Store(true)
					}
					return
				}
				time.Sleep(20 * time.Millisecond) // the pace of an answer
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
	f := r.Fence(t.Context(), 2, "", FencePolicy{})
	if took := time.Since(begin); took > patience/3 { // by themselves the answers take much longer
		t.Errorf("Fence took %s", took)
	}
	if f.Reset != many || f.Moved != 0 || r.Stats().Fenced != many || r.Stats().Live != 0 {
		t.Errorf("Fence: %+v, stats %+v, want %d cut", f, r.Stats(), many)
	}
	wg.Wait()
	proctest.Until(t, "the old host to be rid of them", func() bool { return old.Load() == 0 })
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
	r, hosts := startPairs(t, Config{Engine: engine(2)})
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
				time.Sleep(100 * time.Millisecond) // the pace of a transfer
			}
			host.CloseWrite()
		})
		late, _ := r.pair(hosts)
		wg.Go(func() { wantReset(t, "a transfer that never ends", late, nil) })
	}
	r.Hold()
	const grace = 5 * time.Second
	begin := time.Now()
	f := r.Fence(t.Context(), 2, "", FencePolicy{Drain: grace})
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
	if f := r.Fence(t.Context(), 2, "", FencePolicy{Drain: time.Hour}); f != (Fenced{Finished: 1}) {
		t.Errorf("Fence: %+v, want one finished", f)
	}
	if took := time.Since(begin); took > patience {
		t.Errorf("Fence took %s", took)
	}
	r.open(2, hosts.Addr().String())
	r.pair(hosts)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if f := r.Fence(ctx, 3, "", FencePolicy{Drain: time.Hour}); f.Reset != 0 {
		t.Errorf("Fence whose context ended: %+v, want nothing cut", f)
	}
	if f := r.Fence(t.Context(), 2, "", FencePolicy{}); f != (Fenced{}) {
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
		{"connecting, and the client has sent much", fullQueue, data},
		{"connecting, and the client has ended", fullQueue, nil},
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
			proctest.Until(t, "the client to be accepted", func() bool { return r.Stats().Live == 1 })
			time.Sleep(50 * time.Millisecond) // until it makes no more progress
			r.Hold()
			if f := r.Fence(t.Context(), 2, "", FencePolicy{}); f.Reset != 0 || f.Moved+r.Waiting().Held == 0 {
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
	if f := r.Fence(t.Context(), 2, "", FencePolicy{}); f != (Fenced{Moved: 1}) {
		t.Errorf("Fence: %+v, want one moved", f)
	}
	r.open(2, second.addr)
	wantAll(t, "the client", c, []byte("two"))
}

// A monitor connects and closes, or resets, without sending a byte. No host is
// suspected for that.
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
			proctest.Until(t, "all to be over", func() bool { return r.Stats().Accepted == times && r.Stats().Live == 0 })
			s.none(t)
			if n := h.accepted.Load(); n > times {
				t.Errorf("%d connections to the host for %d clients", n, times)
			}
		})
	}
}

// A host that ends every connection it accepts before it has sent a byte: it has
// two tries, then the client's connection ends, long before Hold has passed.
func TestHostEndsOnAccept(t *testing.T) {
	t.Parallel()
	const clients = 5
	for _, tt := range []struct {
		name  string
		serve func(c *net.TCPConn)
		clean bool
	}{
		{"resets", reset, false},
		{"closes", func(*net.TCPConn) {}, true},
		{"ends its stream", func(c *net.TCPConn) {
			c.CloseWrite()
			io.Copy(io.Discard, c)
		}, true},
	} {
		for _, speaks := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, client speaks first %t", tt.name, speaks), func(t *testing.T) {
				t.Parallel()
				var s suspicions
				r := start(t, Config{Hold: patience, Suspect: s.add})
				h := newHost(t, tt.serve)
				r.open(1, h.addr)
				for range clients {
					begin := time.Now()
					c := r.dial()
					if speaks {
						io.WriteString(c, "hello")
					}
					switch rest, err := io.ReadAll(c); {
					case tt.clean && !speaks && (err != nil || len(rest) != 0):
						t.Errorf("the client read %q, %v, want a clean end", rest, err)
					case !tt.clean && !isReset(err):
						t.Errorf("the client read %q, %v, want a reset", rest, err)
					}
					c.Close()
					if took := time.Since(begin); took > patience/3 {
						t.Errorf("the client knew after %v, want less than a second", took)
					}
				}
				if n := h.accepted.Load(); n > 2*clients {
					t.Errorf("%d connects to the host for %d clients, want two each at most", n, clients)
				}
				if !speaks && len(s.list()) == 0 {
					t.Error("no suspicion was reported")
				}
				proctest.Until(t, "all to be over", func() bool { return r.Stats().Live == 0 })
				if n := r.Stats().Silent; !speaks && n != clients {
					t.Errorf("%d silent connections, want %d", n, clients)
				}
			})
		}
	}
}

// If the next host works, the client does not notice, although the first one
// has used its tries.
func TestHostResetsOnAcceptThenSwitch(t *testing.T) {
	t.Parallel()
	second := newHost(t, greet("two"))
	for range 50 {
		first := newHost(t, reset)
		r := start(t, Config{Hold: patience})
		r.open(1, first.addr)
		c := r.dial()
		proctest.Until(t, "the first try", func() bool { return first.accepted.Load() > 0 })
		begin := time.Now()
		proctest.Until(t, "the second try", func() bool { return first.accepted.Load() > 1 })
		time.Sleep(endWait / 4) // in the middle of the wait that follows the last try
		r.Hold()
		took := time.Since(begin)
		r.Fence(t.Context(), 2, "", FencePolicy{})
		r.open(2, second.addr)
		if took > endWait*3/4 {
			continue // on a busy machine the client's connection may have ended
		}
		if got := readSome(t, c, 3); got != "two" {
			t.Errorf("got %q", got)
		}
		return
	}
	t.Skip("SKIP: this machine is too busy to tell")
}

// The tries are those of one epoch: the next host has two as well.
func TestTriesAreThoseOfOneEpoch(t *testing.T) {
	t.Parallel()
	r := start(t, Config{Hold: patience})
	first, second := newHost(t, reset), newHost(t, reset)
	r.open(1, first.addr)
	c := r.dial()
	proctest.Until(t, "a try", func() bool { return first.accepted.Load() > 0 })
	r.Hold()
	r.Fence(t.Context(), 2, "", FencePolicy{})
	r.open(2, second.addr)
	if _, err := io.ReadAll(c); !isReset(err) {
		t.Errorf("the client read %v, want a reset", err)
	}
	if n := second.accepted.Load(); n != 2 {
		t.Errorf("%d tries at the next host, want 2", n)
	}
}

// Silent connections are those that the host ends at once and without a byte, be
// it to an end of the client's stream that it has not seen, or to a request.
func TestSilence(t *testing.T) {
	t.Parallel()
	closeAtOnce := func(*net.TCPConn) {}
	afterRequest := func(end func(c *net.TCPConn)) func(c *net.TCPConn) {
		return func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, len("hello")))
			end(c)
		}
	}
	monitor := func(*testing.T, *net.TCPConn) {}
	request := func(t *testing.T, c *net.TCPConn) {
		t.Helper()
		io.WriteString(c, "hello")
		io.Copy(io.Discard, c)
	}
	wait := func(t *testing.T, c *net.TCPConn) {
		t.Helper()
		io.Copy(io.Discard, c)
	}
	for _, tt := range []struct {
		name   string
		serve  func(c *net.TCPConn)
		client func(t *testing.T, c *net.TCPConn)
		silent uint64
	}{
		{"closes at once", closeAtOnce, wait, 1},
		{"resets at once", reset, wait, 1},
		{"closes after the request", afterRequest(func(*net.TCPConn) {}), request, 1},
		{"resets after the request", afterRequest(reset), request, 1},
		{"answers", afterRequest(func(c *net.TCPConn) { io.WriteString(c, "x") }), request, 0},
		{"answers and resets", greet("x"), request, 0},
		{"takes its time", afterRequest(func(*net.TCPConn) { time.Sleep(silentWithin + 200*time.Millisecond) }), request, 0}, // later than silentWithin
		{"a client that ends first", func(c *net.TCPConn) { io.Copy(io.Discard, c) }, monitor, 0},
		{"a client that ends first, and a host that resets", func(c *net.TCPConn) {
			io.Copy(io.Discard, c)
			reset(c)
		}, monitor, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := start(t, Config{})
			r.open(1, newHost(t, tt.serve).addr)
			c := r.dial()
			if tt.name == "answers and resets" {
				readSome(t, c, 1)
				reset(c)
			} else {
				tt.client(t, c)
			}
			c.Close()
			proctest.Until(t, "it to be over", func() bool { s := r.Stats(); return s.Accepted == 1 && s.Live == 0 })
			s, row := r.Stats(), r.Silence()
			if s.Silent != tt.silent || row.InARow != int(tt.silent) || row.Several || row.Remarkable() {
				t.Errorf("%d silent connections, %+v, want %d by one client", s.Silent, row, tt.silent)
			}
		})
	}
}

// Five in a row of two clients are remarkable. One that gets a byte ends the row,
// and so does the next epoch.
func TestSilenceInARow(t *testing.T) {
	t.Parallel()
	var answers atomic.Bool
	h := newHost(t, func(c *net.TCPConn) {
		if answers.Load() {
			io.WriteString(c, "x")
		}
	})
	var s suspicions
	r := start(t, Config{Suspect: s.add})
	r.open(1, h.addr)
	come := func(from string) {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		d.SetMultipathTCP(false)
		c, err := d.DialContext(t.Context(), "tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		io.Copy(io.Discard, c)
	}
	want := func(row int, several, remarkable bool) {
		t.Helper()
		if now := r.Silence(); now.InARow != row || now.Several != several || now.Remarkable() != remarkable {
			t.Errorf("silence %+v, want %d in a row, of several clients %t, remarkable %t", now, row, several, remarkable)
		}
	}
	suspected := func() bool { return errors.Is(s.last(), errSilent) }
	for range 2 * silentRow {
		come("127.0.0.1")
	}
	want(2*silentRow, false, false)
	if suspected() {
		t.Error("a host is suspected because of one client")
	}
	come(otherLoopback(t))
	want(2*silentRow+1, true, true)
	proctest.Until(t, "the host to be suspected", suspected)

	answers.Store(true)
	come("127.0.0.1")
	want(0, false, false)
	answers.Store(false)
	come("127.0.0.1")
	want(1, false, false)
	r.Hold()
	r.open(2, h.addr)
	come("127.0.0.1")
	want(1, false, false)
}

// otherLoopback is a local address beside 127.0.0.1. Systems other than Linux have
// only the one, unless others were added.
func otherLoopback(t *testing.T) string {
	t.Helper()
	const addr = "127.0.0.2"
	ln, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Skipf("SKIP: no second loopback address: %v", err)
	}
	ln.Close()
	return addr
}

// A host that does not answer connects is suspected before the connect timeout,
// and its clients go to the next one.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	var s suspicions
	r := start(t, Config{ConnectTimeout: 20 * time.Second, Suspect: s.add})
	r.open(1, fullQueue(t))
	begin := time.Now()
	c := r.dial()
	proctest.Until(t, "a suspicion", func() bool { return s.last() != nil })
	if took := time.Since(begin); took < 100*time.Millisecond || took > 10*time.Second {
		t.Errorf("suspected after %s, want some 200ms", took)
	}
	r.Hold()
	r.Fence(t.Context(), 2, "", FencePolicy{})
	r.open(2, newHost(t, greet("two")).addr)
	if got := readSome(t, c, 3); got != "two" {
		t.Errorf("got %q", got)
	}
	time.Sleep(300 * time.Millisecond) // time for a wrong behaviour to show
	s.none(t)
}

func TestConnectTimeout(t *testing.T) {
	t.Parallel()
	var s suspicions
	r := start(t, Config{ConnectTimeout: 50 * time.Millisecond, Hold: 300 * time.Millisecond, Suspect: s.add})
	r.open(1, fullQueue(t))
	c := r.dial()
	wantReset(t, "a client whose hold ended", c, nil)
	if err := s.last(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("suspected for %v, want a timeout", err)
	}
	proctest.Until(t, "the count", func() bool { return r.Stats().Expired == 1 })
}

// Clients that leave while they wait are counted as aborted, and their connects
// are ended.
func TestClientLeavesDuringConnect(t *testing.T) {
	t.Parallel()
	r := start(t, Config{ConnectTimeout: time.Hour, Hold: time.Hour})
	r.open(1, fullQueue(t))
	early, late := r.dial(), r.dial()
	reset(early) // perhaps before it is accepted
	proctest.Until(t, "it to be connecting", func() bool { return r.Stats().Live >= 1 })
	time.Sleep(50 * time.Millisecond) // for the other to be connecting too
	reset(late)
	begin := time.Now()
	proctest.Until(t, "both to be gone", func() bool { s := r.Stats(); return s.Aborted == s.Accepted && s.Live == 0 })
	if took := time.Since(begin); took > 10*time.Second { // the kernel gives up the connect after 20
		t.Errorf("noticed after %s", took)
	}
}

func TestHoldZero(t *testing.T) {
	t.Parallel()
	var s suspicions
	r := start(t, Config{Hold: zero, Suspect: s.add})
	r.open(1, closed(t))
	r.wantTurnedAway("a client that may not wait", "127.0.0.1")
	proctest.Until(t, "the count", func() bool { return r.Stats().Expired == 1 })
	if !errors.Is(s.last(), syscall.ECONNREFUSED) {
		t.Errorf("suspected for %v, want refused", s.last())
	}
}

// After the context ends no client is admitted, and open connections may
// finish.
func TestDrain(t *testing.T) {
	t.Parallel()
	const many = 50
	r, hosts := startPairs(t, Config{Engine: engine(2), DrainTimeout: patience})
	data := randomBytes(256 << 10)
	var wg sync.WaitGroup
	for k := range many {
		client, host := r.pair(hosts)
		wg.Go(func() {
			for rest := data; len(rest) > 0; rest = rest[min(16<<10, len(rest)):] {
				host.Write(rest[:min(16<<10, len(rest))])
				time.Sleep(time.Duration(5+rand.IntN(20)) * time.Millisecond) // the pace of a transfer
			}
			host.CloseWrite()
		})
		wg.Go(func() {
			wantAll(t, fmt.Sprint("transfer ", k), client, data)
			client.CloseWrite()
		})
	}
	r.stop()
	proctest.Until(t, "connects to be refused", func() bool {
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
	r.Fence(t.Context(), 9, "", FencePolicy{})
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
		{"at once", 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, hosts := startPairs(t, Config{DrainTimeout: tt.timeout})
			client, host := r.pair(hosts)
			begin := time.Now()
			r.stop()
			if tt.cut {
				time.Sleep(50 * time.Millisecond) // time for a wrong behaviour to show
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

// A relay that has ended does not touch descriptors whose numbers now belong to
// other files.
func TestCallsAfterTheEnd(t *testing.T) {
	r, hosts := startPairs(t, Config{Engine: engine(2)})
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
		r.Fence(t.Context(), 9, "", FencePolicy{})
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
	r := start(t, Config{Engine: engine(2), Hold: 100 * time.Millisecond, ConnectTimeout: 100 * time.Millisecond})
	good := []*testHost{newHost(t, echo), newHost(t, greet("x")), newHost(t, reset)}
	hosts := []string{good[0].addr, good[1].addr, good[2].addr, closed(t), fullQueue(t), good[0].addr}

	var over atomic.Bool
	var watching sync.WaitGroup
	watching.Go(func() { // the gate
		epoch := uint64(1)
		for !over.Load() {
			r.Open(epoch, hosts[epoch%uint64(len(hosts))])
			time.Sleep(time.Duration(rand.IntN(80)) * time.Millisecond) // until the next switch
			epoch++
			switch rand.IntN(4) {
			case 0:
				r.Refuse()
			case 1:
				r.Hold()
				r.Fence(t.Context(), epoch, "", FencePolicy{Drain: 20 * time.Millisecond})
			default:
				r.Hold()
				r.Fence(t.Context(), epoch, "", FencePolicy{})
			}
		}
		r.Refuse()
	})
	watching.Go(func() { // the counts
		var last Stats
		for !over.Load() {
			s := r.Stats()
			if s.Accepted != s.Live+s.Finished+s.Reset+s.Fenced+s.Expired+s.Aborted || s.Live > clients*each {
				t.Errorf("stats %+v do not add up", s)
				return
			}
			if s.Accepted < last.Accepted || s.Finished < last.Finished || s.Reset < last.Reset || s.Fenced < last.Fenced ||
				s.Expired < last.Expired || s.Aborted < last.Aborted || s.Sent < last.Sent || s.Received < last.Received {
				t.Errorf("stats went backwards, from %+v to %+v", last, s)
				return
			}
			last = s
			if w := r.Waiting(); w.Held < 0 || w.Queued < 0 {
				t.Errorf("waiting %+v", w)
				return
			}
			time.Sleep(time.Millisecond) // between two checks
		}
	})
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range each {
				conn, err := net.Dial("tcp", r.addr)
				if err != nil {
					time.Sleep(5 * time.Millisecond) // refused, as expected while the gate is shut
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
					time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond) // a client that sends nothing for a while
				}
				c.Close()
			}
		})
	}
	wg.Wait()
	over.Store(true)
	watching.Wait()
	r.Fence(t.Context(), 1<<40, "", FencePolicy{})
	proctest.Until(t, "all to be over", func() bool { return r.Stats().Live == 0 && r.Waiting() == Waiting{} })
	t.Logf("%+v", r.Stats())
}
