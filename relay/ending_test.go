package relay

import (
	"context"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// endings collects what a relay reports of connections that have ended.
type endings chan Ending

func (e endings) add(one Ending) { e <- one }

// next returns the next ending, which must have the given outcome and reason.
func (e endings) next(tb testing.TB, outcome, why string) (one Ending) {
	tb.Helper()
	select {
	case one = <-e:
	case <-time.After(patience): // a deadline
		tb.Fatal("no ending was reported")
	}
	if one.Outcome != outcome || one.Why != why {
		tb.Errorf("the connection ended %q: %q, want %q: %q", one.Outcome, one.Why, outcome, why)
	}
	return one
}

// none fails if another ending was reported. All connections are over.
func (e endings) none(tb testing.TB) {
	tb.Helper()
	select {
	case one := <-e:
		tb.Errorf("one more ending: %+v", one)
	default:
	}
}

// Each connection that was accepted is reported once, with how and why it ended.
func TestEndings(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	for _, tt := range []struct {
		name, outcome, why string
		change             Config
		end                func(r *testRelay, client, host *net.TCPConn)
		by                 uint64
	}{
		{name: "the client ends first", outcome: "finished", why: "client closed", end: func(_ *testRelay, client, host *net.TCPConn) {
			client.CloseWrite()
			io.Copy(io.Discard, host)
			host.Close()
		}},
		{name: "the host ends first", outcome: "finished", why: "host closed", end: func(_ *testRelay, client, host *net.TCPConn) {
			host.CloseWrite()
			io.Copy(io.Discard, client)
			client.Close()
		}},
		{name: "the client resets", outcome: "reset", why: "client reset", end: func(_ *testRelay, client, _ *net.TCPConn) { reset(client) }},
		{name: "the host resets", outcome: "reset", why: "host reset", end: func(_ *testRelay, _, host *net.TCPConn) { reset(host) }},
		{name: "idle", outcome: "reset", why: "idle timeout", end: func(r *testRelay, _, _ *net.TCPConn) {
			r.reconfigure(Config{Listen: []string{"127.0.0.1:0"}, IdleTimeout: 50 * time.Millisecond, Ended: r.cfg.Load().Ended})
		}},
		{name: "fenced", outcome: "fenced", why: "fenced", by: 7, end: func(r *testRelay, _, _ *net.TCPConn) {
			r.Hold()
			r.Fence(context.Background(), 7, "", FencePolicy{})
		}},
		{name: "the relay ends", outcome: "fenced", why: "drain timeout", end: func(r *testRelay, _, _ *net.TCPConn) { r.stop() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := make(endings, 10)
			r, hosts := startPairs(t, Config{Engine: engine(2), Ended: e.add})
			client, host := r.pair(hosts)
			io.WriteString(client, "hello")
			readSome(t, host, 5)
			tt.end(r, client, host)
			got := e.next(t, tt.outcome, tt.why)
			if got.Client.String() != client.LocalAddr().String() || got.Host != hosts.Addr().String() || got.Epoch != 1 || got.FencedBy != tt.by {
				t.Errorf("%+v, want the client %s at %s in epoch 1, fenced by %d", got, client.LocalAddr(), hosts.Addr(), tt.by)
			}
			if got.Sent != 6 || got.Received != 1 || got.Moved != 0 || got.Replayed != 0 {
				t.Errorf("%+v, want 6 and 1 bytes, and no move", got)
			}
			if ended := got.Started.Add(got.Duration); got.Started.Before(begin) || got.Duration <= 0 || ended.After(time.Now()) {
				t.Errorf("from %v for %v, want times within the test", got.Started, got.Duration)
			}
			proctest.Until(t, "it to be counted", func() bool { return r.Stats().Live == 0 })
			e.none(t)
		})
	}
}

// Clients that never had a host, or lost it, are reported, too; those that were
// denied are not.
func TestEndingsWithoutHost(t *testing.T) {
	t.Parallel()
	at := []string{"127.0.0.1:0"}

	t.Run("hold expired", func(t *testing.T) {
		t.Parallel()
		e := make(endings, 10)
		r := start(t, Config{Hold: 50 * time.Millisecond, Ended: e.add})
		to := closed(t)
		r.open(3, to)
		c := r.dial()
		got := e.next(t, "expired", "hold expired")
		if got.Host != to || got.Epoch != 3 || got.Client.String() != c.LocalAddr().String() || got.Duration < 50*time.Millisecond || got.Sent+got.Received != 0 {
			t.Errorf("%+v, want the host that was tried and the time of the wait", got)
		}
	})

	t.Run("refused, left, denied", func(t *testing.T) {
		t.Parallel()
		e := make(endings, 10)
		r := start(t, Config{Ended: e.add})
		r.open(1, closed(t))
		r.dial()
		gone := r.dial()
		proctest.Until(t, "both to be held", func() bool { return r.Waiting().Held == 2 })
		reset(gone)
		e.next(t, "aborted", "client left")
		r.Refuse()
		e.next(t, "expired", "relay refuses clients")
		r.reconfigure(Config{Listen: at, Ended: e.add, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
		r.open(2, newHost(t, echo).addr)
		r.wantTurnedAway("a client that is not allowed", "127.0.0.1")
		r.reconfigure(Config{Listen: at, Ended: e.add, AcceptProxy: true})
		c := r.dial()
		io.WriteString(c, "no header\r\n")
		wantReset(t, "a client without a header", c, nil)
		proctest.Until(t, "both to be denied", func() bool { return r.Stats().Denied == 2 })
		e.none(t)
	})

	t.Run("without a byte", func(t *testing.T) {
		t.Parallel()
		e := make(endings, 10)
		r := start(t, Config{Ended: e.add})
		r.open(1, newHost(t, reset).addr)
		wantReset(t, "a client", r.dial(), nil)
		if got := e.next(t, "reset", "host ended without a byte"); got.Received != 0 {
			t.Errorf("%+v, want no byte", got)
		}
	})

	t.Run("moved", func(t *testing.T) {
		t.Parallel()
		e := make(endings, 10)
		r, hosts := startPairs(t, Config{Ended: e.add})
		c := r.dial()
		first, err := hosts.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		proctest.Until(t, "the client to be connected", func() bool { return r.Waiting().Held == 0 && r.Stats().Live == 1 })
		r.Hold()
		r.Fence(t.Context(), 2, "", FencePolicy{})
		second := newHost(t, echo)
		r.open(2, second.addr)
		wantEcho(t, "the second host", c)
		c.CloseWrite()
		wantAll(t, "the client", c, nil)
		if got := e.next(t, "finished", "client closed"); got.Moved != 1 || got.Host != second.addr || got.Epoch != 2 {
			t.Errorf("%+v, want one move, to %s in epoch 2", got, second.addr)
		}
	})

	t.Run("off and on", func(t *testing.T) {
		t.Parallel()
		e := make(endings, 10)
		r, hosts := startPairs(t, Config{})
		client, host := r.pair(hosts)
		r.reconfigure(Config{Listen: at, Ended: e.add})
		client.CloseWrite()
		io.Copy(io.Discard, host)
		host.Close()
		if got := e.next(t, "finished", "client closed"); got.Client.String() != client.LocalAddr().String() {
			t.Errorf("%+v, want the client %s", got, client.LocalAddr())
		}
		client, host = r.pair(hosts)
		r.reconfigure(Config{Listen: at})
		reset(client)
		wantReset(t, "the host", host, nil)
		proctest.Until(t, "both to be counted", func() bool { return r.Stats().Live == 0 })
		e.none(t)
	})
}

// The client is the one of the PROXY header, also after it has reset its
// connection; a client of a unix socket has no address.
func TestEndingsName(t *testing.T) {
	t.Parallel()
	h := newHost(t, echo)
	e := make(endings, 10)
	r := start(t, Config{Ended: e.add, AcceptProxy: true})
	r.open(1, h.addr)
	for header, want := range map[string]string{
		"PROXY TCP4 192.0.2.1 192.0.2.2 1234 80\r\n": "192.0.2.1:1234",
		"PROXY UNKNOWN\r\n":                          "",
	} {
		c := r.dial()
		if want == "" {
			want = c.LocalAddr().String()
		}
		io.WriteString(c, header)
		wantEcho(t, "a client with a header", c)
		c.CloseWrite()
		wantAll(t, "the client", c, nil)
		if got := e.next(t, "finished", "client closed"); got.Client.String() != want {
			t.Errorf("%q: %+v, want the client %s", header, got, want)
		}
	}

	path := filepath.Join(t.TempDir(), "s")
	u := start(t, Config{Listen: []string{"unix:" + path}, Ended: e.add})
	u.open(1, h.addr)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	wantEcho(t, "a client of a unix socket", c)
	c.Close()
	if got := e.next(t, "finished", "client closed"); got.Client.IsValid() {
		t.Errorf("%+v, want no address", got)
	}
}

// A reset is told from a peer that the system has given up, and one side's from
// the other's.
func TestBrokenBy(t *testing.T) {
	for _, tt := range []struct {
		broken, timedOut [2]bool
		want             reason
	}{
		{broken: [2]bool{client: true}, want: clientReset},
		{broken: [2]bool{host: true}, want: hostReset},
		{broken: [2]bool{true, true}, want: bothReset},
		{broken: [2]bool{client: true}, timedOut: [2]bool{client: true}, want: clientTimeout},
		{broken: [2]bool{true, true}, timedOut: [2]bool{host: true}, want: hostTimeout},
	} {
		if got := brokenBy(tt.broken, tt.timedOut); got != tt.want {
			t.Errorf("broken %v, timed out %v: %q, want %q", tt.broken, tt.timedOut, got, tt.want)
		}
	}
}

// As many endings are reported as connections were accepted, whatever loops they
// were on.
func TestEndingsAreAll(t *testing.T) {
	t.Parallel()
	e := make(endings, 1000)
	r := start(t, Config{Engine: engine(runtime.GOMAXPROCS(0)), Ended: e.add})
	r.open(1, newHost(t, echo).addr)
	const clients = 300
	sent := map[string]uint64{}
	for k := 1; k <= clients; k++ { // one that has got a byte was accepted before its reset
		c := r.dial()
		c.Write(randomBytes(k))
		readSome(t, c, k)
		sent[c.LocalAddr().String()] = uint64(k)
		reset(c)
	}
	proctest.Until(t, "all to be over", func() bool { s := r.Stats(); return s.Accepted == clients && s.Live == 0 })
	for range clients {
		got := e.next(t, "reset", "client reset")
		if want, ok := sent[got.Client.String()]; !ok || got.Sent != want || got.Received != want {
			t.Errorf("%+v, want %d bytes each way", got, want)
		}
		delete(sent, got.Client.String())
	}
	e.none(t)
}
