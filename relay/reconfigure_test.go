package relay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// Other settings for a relay that runs.

// openFiles returns the number of descriptors that this process has.
func openFiles(tb testing.TB) int {
	tb.Helper()
	if runtime.GOOS != "linux" {
		return 0
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(entries)
}

// restingFiles is openFiles when nothing that began before is about to close any.
func restingFiles(tb testing.TB) int {
	tb.Helper()
	n, since := openFiles(tb), time.Now()
	proctest.Until(tb, "no descriptor to come or go for a while", func() bool {
		if now := openFiles(tb); now != n {
			n, since = now, time.Now()
		}
		return time.Since(since) > 100*time.Millisecond
	})
	return n
}

// echoBehindHeader is an echo that passes over a PROXY header.
func echoBehindHeader(c *net.TCPConn) {
	in := bufio.NewReader(c)
	first, err := in.Peek(1)
	switch {
	case err != nil:
		return
	case first[0] == 'P':
		_, err = in.ReadString('\n')
	case first[0] == '\r':
		var h [16]byte
		if _, err = io.ReadFull(in, h[:]); err == nil {
			_, err = in.Discard(int(h[14])<<8 | int(h[15]))
		}
	}
	if err == nil {
		if _, err = io.Copy(c, in); err == nil {
			c.CloseWrite()
		}
	}
}

// While all settings that can change are changed, one after the other, no
// connection is lost: neither open ones nor new ones.
func TestReconfigureUnderTraffic(t *testing.T) {
	const (
		rounds    = 20
		transfers = 8
		callers   = 4
	)
	dir := t.TempDir()
	base := Config{Listen: []string{"127.0.0.1:0"}, Engine: engine(2)}
	var s suspicions
	base.Suspect = s.add
	r := start(t, base)
	h := newHost(t, echoBehindHeader)
	r.open(7, h.addr)
	before, socket := restingFiles(t), socketAt(t, r.addr)

	var over atomic.Bool
	var moved, called atomic.Int64
	var wg sync.WaitGroup
	for range transfers {
		c := r.dial()
		wg.Go(func() { // bytes without an end, in pieces of all sizes
			defer c.Close()
			data := randomBytes(400 << 10)
			data[0] = 'x'
			for !over.Load() {
				piece := data[:1+rand.IntN(len(data))]
				c.SetDeadline(time.Now().Add(patience))
				var sent sync.WaitGroup
				sent.Go(func() { c.Write(piece) })
				got := make([]byte, len(piece))
				_, err := io.ReadFull(c, got)
				sent.Wait()
				if err != nil || !bytes.Equal(got, piece) {
					t.Errorf("a transfer was broken: %v", err)
					return
				}
				moved.Add(1)
			}
			c.CloseWrite()
			wantAll(t, "the end of a transfer", c, nil)
		})
	}
	for range callers {
		wg.Go(func() {
			for !over.Load() {
				conn, err := net.Dial("tcp", r.addr)
				if err != nil {
					t.Errorf("a client was lost: %v", err)
					return
				}
				c := conn.(*net.TCPConn)
				c.SetDeadline(time.Now().Add(patience))
				text := []byte("x" + fmt.Sprint(rand.Int()))
				sendAll(c, text)
				wantAll(t, "a short connection", c, text)
				c.Close()
				called.Add(1)
			}
		})
	}
	for k := range rounds {
		next := base
		switch k % 10 {
		case 0:
			next.Listen = append(next.Listen, "127.0.0.2:0")
		case 1:
			next.Listen = []string{"unix:" + filepath.Join(dir, "r.sock"), "127.0.0.1:0"}
		case 2:
			next.ConnectTimeout, next.Hold = time.Minute, time.Minute
		case 3:
			next.IdleTimeout = time.Minute
		case 4:
			next.UserTimeout = time.Duration(k%20-10) * time.Minute // at first off, then on
		case 5:
			next.MaxConnections, next.Reserve = 100, 10
		case 6:
			next.SendProxy = 1
		case 7:
			next.SendProxy = 2
		case 8:
			next.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		case 9:
			next.Source = netip.MustParseAddr("127.0.0.9")
		}
		m, c := moved.Load(), called.Load()
		r.reconfigure(next)
		proctest.Until(t, "traffic to go on", func() bool {
			return t.Failed() || moved.Load() >= m+transfers && called.Load() >= c+20
		})
	}
	r.reconfigure(base)
	over.Store(true)
	wg.Wait()
	t.Logf("%d pieces, %d connections", moved.Load(), called.Load())
	if now := socketAt(t, r.addr); now != socket {
		t.Errorf("another socket listens at %s now", r.addr)
	}
	proctest.Until(t, "all to be over", func() bool { return r.Stats().Live == 0 })
	if s := r.Stats(); s.Accepted != s.Finished || s.Accepted != uint64(transfers+called.Load()) || s.Denied != 0 {
		t.Errorf("stats %+v, want all %d accepted and finished", s, transfers+called.Load())
	}
	s.none(t)
	proctest.Until(t, "as many descriptors as before", func() bool { return openFiles(t) <= before })
}

// If one new address cannot be bound, nothing changes at all.
func TestReconfigureBusyAddress(t *testing.T) {
	ln := listen(t, "127.0.0.1:0")
	defer ln.Close()
	busy, free := ln.Addr().String(), closed(t)
	path := filepath.Join(t.TempDir(), "free.sock")
	r := start(t, Config{Listen: []string{"127.0.0.1:0", "127.0.0.2:0"}})
	h := newHost(t, echo)
	r.Hold() // returns when Run has opened what it needs
	for _, state := range []string{"refusing", "open", "holding"} {
		switch state {
		case "open":
			r.open(1, h.addr)
		case "holding":
			r.Hold()
		}
		proctest.Until(t, "earlier clients to be over", func() bool { return r.Stats().Live == 0 })
		addrs, files := r.Addrs(), restingFiles(t)
		err := r.Reconfigure(complete(Config{
			Listen:         []string{"127.0.0.2:0", free, "unix:" + path, busy},
			Allow:          []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
			MaxConnections: 1,
		}))
		if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), busy) {
			t.Errorf("%s: %v, want address in use, with the address", state, err)
		}
		if now := r.Addrs(); fmt.Sprint(now) != fmt.Sprint(addrs) {
			t.Errorf("%s: the addresses are %v, want %v", state, now, addrs)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s: the socket file is there: %v", state, err)
		}
		proctest.Until(t, "as many descriptors as before", func() bool { return openFiles(t) <= files })
		other := listen(t, free)
		other.Close()
		if state == "open" {
			wantServed(t, "the first address", "tcp", r.at(0))
			wantServed(t, "the second address", "tcp", r.at(1))
		}
	}
	r.open(2, h.addr)
	wantServed(t, "afterwards", "tcp", r.addr)
}

// Connects to an address that is given up are refused, and other programs can
// bind it. Connections that came over it live on.
func TestReconfigureRemovesAddress(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "r.sock")
	r := start(t, Config{Engine: engine(2), Listen: []string{"127.0.0.1:0", "unix:" + path, closed(t)}})
	r.open(1, newHost(t, echo).addr)
	first, last := r.at(0), r.at(2)
	kept := dialTo(t, last)
	wantEcho(t, "before", kept)
	over, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	over.SetDeadline(time.Now().Add(patience))
	wantEcho(t, "before, over the unix socket", over)

	r.reconfigure(Config{Listen: []string{"127.0.0.1:0"}})
	if got := r.Addrs(); len(got) != 1 || got[0].String() != first {
		t.Errorf("the addresses are %v, want %s", got, first)
	}
	wantRefused(t, "the address that was given up", "tcp", last)
	wantRefused(t, "the unix socket that was given up", "unix", path)
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket file is still there: %v", err)
	}
	wantEcho(t, "afterwards", kept)
	wantEcho(t, "afterwards, over the unix socket", over)
	wantServed(t, "the address that stays", "tcp", first)

	// Connections of ours still have that port.
	r.reconfigure(Config{Listen: []string{last, "127.0.0.1:0"}})
	if got := r.at(0); got != last {
		t.Errorf("the first address is %s, want %s: they are in the order of the settings", got, last)
	}
	wantServed(t, "the address that came back", "tcp", last)
	wantServed(t, "the address that stays", "tcp", first)
	wantEcho(t, "afterwards", kept)
}

// Clients in the queue of an address that is given up are admitted first, if
// there is room and a primary, otherwise reset. Clients in other queues are not
// affected.
func TestReconfigureServesTheQueue(t *testing.T) {
	t.Parallel()
	const many = 200 // more than one batch
	h := newHost(t, echo)
	r := start(t, Config{Engine: engine(2), MaxConnections: 1, Listen: []string{"127.0.0.1:0", "127.0.0.2:0"}})
	r.open(1, h.addr)
	full := r.dial()
	wantEcho(t, "the one there is room for", full)
	var queued []*net.TCPConn
	for range many {
		queued = append(queued, dialTo(t, r.at(1)))
	}
	r.reconfigure(Config{Listen: []string{"127.0.0.1:0"}})
	for _, c := range queued {
		wantEcho(t, "a client in the queue", c)
		c.Close()
	}
	wantEcho(t, "the one there was room for", full)

	r.reconfigure(Config{Listen: []string{"127.0.0.1:0", "127.0.0.2:0"}})
	r.Hold()
	stays, goes := r.dial(), dialTo(t, r.at(1))
	r.reconfigure(Config{Listen: []string{"127.0.0.1:0"}})
	wantReset(t, "a client in the queue while the gate is shut", goes, nil)
	r.open(2, h.addr)
	wantEcho(t, "a client in the queue of another address", stays)
}

// A new address is like the others: it refuses, serves or holds.
func TestReconfigureRespectsTheGate(t *testing.T) {
	t.Parallel()
	h := newHost(t, echo)
	path := filepath.Join(t.TempDir(), "r.sock")
	r := start(t, Config{Engine: engine(2)})
	listens := []string{"127.0.0.1:0"}
	add := func(addr string) {
		listens = append(listens, addr)
		r.reconfigure(Config{Listen: listens})
	}
	last := func() (network, addr string) {
		a := r.Addrs()[len(listens)-1]
		return a.Network(), a.String()
	}
	refused := func(what string) {
		t.Helper()
		network, addr := last()
		wantRefused(t, what, network, addr)
		if network == "tcp" {
			if ln, err := net.Listen(network, addr); err == nil {
				ln.Close()
				t.Errorf("%s: another program could take the address", what)
			}
		}
	}
	all := func(what string) {
		t.Helper()
		for _, a := range r.Addrs() {
			wantServed(t, what, a.Network(), a.String())
		}
	}
	epoch := uint64(0)
	for _, addr := range []string{"127.0.0.2:0", "127.0.0.3:0", "unix:" + path} {
		add(addr)
		refused("before Open, or while it refuses")
		epoch++
		r.open(epoch, h.addr)
		all("opened")
		add(fmt.Sprintf("127.0.0.%d:0", 100+epoch))
		all("added while open")
		r.Hold()
		proctest.Until(t, "those to be over", func() bool { return r.Stats().Live == 0 })
		add(fmt.Sprintf("127.0.0.%d:0", 200+epoch))
		network, addr := last()
		c, err := net.Dial(network, addr)
		if err != nil {
			t.Fatalf("added while it holds: %v", err)
		}
		c.SetDeadline(time.Now().Add(patience))
		if c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); r.Stats().Live > 0 {
			t.Errorf("a client was let in while the gate is shut")
		}
		c.SetDeadline(time.Now().Add(patience))
		epoch++
		r.open(epoch, h.addr)
		wantEcho(t, "a client that was held", c)
		c.Close()
		proctest.Until(t, "it to be over", func() bool { return r.Stats().Live == 0 })
		r.Refuse()
	}
	r.open(epoch+1, h.addr)
	all("at the end")
}

func TestReconfigureAllow(t *testing.T) {
	t.Parallel()
	r := start(t, Config{Engine: engine(2)})
	r.open(1, newHost(t, echo).addr)
	here := r.dial()
	wantEcho(t, "before", here)
	r.reconfigure(Config{Listen: []string{"127.0.0.1:0"}, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}})
	r.wantTurnedAway("one that is not allowed any more", "127.0.0.1")
	wantEcho(t, "one that was let in earlier", here)
	allowed, err := dialFrom(t, "127.0.0.2", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	wantEcho(t, "one that is allowed", allowed)
	r.reconfigure(Config{Listen: []string{"127.0.0.1:0"}})
	wantServed(t, "one that is allowed again", "tcp", r.addr)
	if s := r.Stats(); s.Denied != 1 {
		t.Errorf("stats %+v, want one denied", s)
	}
}

// A limit below the number of open connections ends none of them, and no client
// is admitted until enough have left.
func TestReconfigureMaxConnections(t *testing.T) {
	t.Parallel()
	r := start(t, Config{Engine: engine(2)})
	r.open(1, newHost(t, echo).addr)
	var open []*net.TCPConn
	for range 4 {
		c := r.dial()
		wantEcho(t, "before", c)
		open = append(open, c)
	}
	r.reconfigure(Config{Listen: []string{"127.0.0.1:0"}, MaxConnections: 2})
	next := r.dial()
	io.WriteString(next, "x")
	for left := 4; left >= 2; left-- {
		time.Sleep(50 * time.Millisecond) // time for a wrong behaviour to show
		for _, c := range open {
			wantEcho(t, "an open connection", c)
		}
		if s := r.Stats(); s.Live != uint64(left) {
			t.Fatalf("%d are live, want %d: no client may be admitted", s.Live, left)
		}
		open[0].Close()
		open = open[1:]
		proctest.Until(t, "it to leave", func() bool { return r.Stats().Finished+r.Stats().Reset >= uint64(5-left) })
	}
	readSome(t, next, 1)
	waits := r.dial()
	r.reconfigure(Config{Listen: []string{"127.0.0.1:0"}})
	wantEcho(t, "one that waited, when the limit is gone", waits)
}

// Each of the other settings, for the connections that it affects.
func TestReconfigureEachSetting(t *testing.T) {
	t.Parallel()
	at := []string{"127.0.0.1:0"}

	t.Run("IdleTimeout", func(t *testing.T) {
		t.Parallel()
		r, hosts := startPairs(t, Config{Engine: engine(2)})
		quiet, _ := r.pair(hosts)
		busy, busyHost := r.pair(hosts)
		const idle = time.Second
		keepBusy := func(d time.Duration) {
			for begin := time.Now(); time.Since(begin) < d; time.Sleep(idle / 10) { // the pace of a busy connection
				io.WriteString(busyHost, "x")
				readSome(t, busy, 1)
			}
		}
		keepBusy(idle + idle/2)
		r.reconfigure(Config{Listen: at, IdleTimeout: idle})
		time.Sleep(idle * 4 / 10) // its last byte came before the change, but not long ago
		keepBusy(idle + idle/2)
		wantReset(t, "an idle connection", quiet, nil)
		keepBusy(1)
	})

	t.Run("Hold", func(t *testing.T) {
		t.Parallel()
		r := start(t, Config{Hold: time.Hour})
		r.open(1, closed(t))
		r.reconfigure(Config{Listen: at, Hold: 50 * time.Millisecond})
		wantReset(t, "a client that waits", r.dial(), nil)
		r.reconfigure(Config{Listen: at, Hold: zero})
		r.wantTurnedAway("a client that may not wait", "127.0.0.1")
	})

	t.Run("ConnectTimeout", func(t *testing.T) {
		t.Parallel()
		var s suspicions
		r := start(t, Config{ConnectTimeout: time.Hour, Suspect: s.add})
		r.open(1, fullQueue(t))
		r.reconfigure(Config{Listen: at, ConnectTimeout: 50 * time.Millisecond, Hold: 300 * time.Millisecond})
		wantReset(t, "a client whose hold ended", r.dial(), nil)
		if err := s.last(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("suspected for %v, want a timeout", err)
		}
	})

	t.Run("Source", func(t *testing.T) {
		t.Parallel()
		h := newHost(t, func(c *net.TCPConn) { io.WriteString(c, c.RemoteAddr().(*net.TCPAddr).IP.String()) })
		r := start(t, Config{})
		r.open(1, h.addr)
		for _, from := range []string{"127.0.0.9", "127.0.0.8"} {
			r.reconfigure(Config{Listen: at, Source: netip.MustParseAddr(from)})
			wantAll(t, "the host's view", r.dial(), []byte(from))
		}
	})

	// A client that waits has shown its header already, though no host wanted one.
	t.Run("SendProxy and AcceptProxy", func(t *testing.T) {
		t.Parallel()
		r := start(t, Config{})
		seen := newHost(t, func(c *net.TCPConn) {
			all, _ := io.ReadAll(c)
			c.Write(all)
		})
		r.open(1, seen.addr)
		before := r.dial()
		before.CloseWrite()
		wantAll(t, "before", before, nil)
		r.open(2, closed(t))
		r.reconfigure(Config{Listen: at, AcceptProxy: true})
		const header = "PROXY TCP4 192.0.2.1 192.0.2.2 1234 80\r\n"
		c := r.dial()
		io.WriteString(c, header+"hello")
		c.CloseWrite()
		proctest.Until(t, "the client to be held", func() bool { return r.Waiting().Held == 1 })
		r.reconfigure(Config{Listen: at, SendProxy: 1})
		r.open(3, seen.addr)
		wantAll(t, "the host's view", c, []byte(header+"hello"))
		plain := r.dial()
		io.WriteString(plain, "x")
		plain.CloseWrite()
		from, to := plain.LocalAddr().(*net.TCPAddr), plain.RemoteAddr().(*net.TCPAddr)
		wantAll(t, "the host's view", plain, fmt.Appendf(nil, "PROXY TCP4 %s %s %d %d\r\nx", from.IP, to.IP, from.Port, to.Port))
	})

	t.Run("DrainTimeout", func(t *testing.T) {
		t.Parallel()
		r, hosts := startPairs(t, Config{})
		client, host := r.pair(hosts)
		r.reconfigure(Config{Listen: at, DrainTimeout: patience})
		r.stop()
		proctest.Until(t, "the end to begin", func() bool { _, err := r.Open(2, "127.0.0.1:1"); return err != nil })
		time.Sleep(50 * time.Millisecond) // time for a wrong behaviour to show
		io.WriteString(host, "x")
		if got := readSome(t, client, 1); got != "x" {
			t.Errorf("got %q", got)
		}
		client.CloseWrite()
		host.CloseWrite()
		<-r.done
		if s := r.Stats(); s.Finished != 1 {
			t.Errorf("stats %+v, want one finished", s)
		}
	})
}

// Before Bind, before Run and after its end.
func TestReconfigureAtAnyTime(t *testing.T) {
	first, second, third := closed(t), closed(t), closed(t)
	files := restingFiles(t)
	r, err := New(complete(Config{Name: "x", Listen: []string{first}}))
	if err != nil {
		t.Fatal(err)
	}
	must := func(listen ...string) {
		t.Helper()
		if err := r.Reconfigure(complete(Config{Listen: listen})); err != nil {
			t.Fatal(err)
		}
	}
	must(second)
	if n := openFiles(t); n != files {
		t.Errorf("%d descriptors before Bind, want %d", n, files)
	}
	if err := r.Bind(); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(r.Addrs()); got != "["+second+"]" {
		t.Errorf("bound to %s, want %s", got, second)
	}
	must(third, second)
	if got := fmt.Sprint(r.Addrs()); got != "["+third+" "+second+"]" {
		t.Errorf("bound to %s, want %s and %s", got, third, second)
	}
	must(third)
	for _, addr := range []string{first, second} {
		ln := listen(t, addr)
		ln.Close()
	}
	r.Close()
	if err := r.Reconfigure(complete(Config{Listen: []string{first}})); err == nil {
		t.Error("after the end: no error")
	}
	if n := openFiles(t); n != files {
		t.Errorf("%d descriptors at the end, want %d", n, files)
	}
}

func TestReconfigureErrors(t *testing.T) {
	t.Parallel()
	r := start(t, Config{Engine: engine(2)})
	r.open(1, newHost(t, echo).addr)
	err := r.Reconfigure(Config{Listen: []string{"nonsense", "unix:"}, SendProxy: 3, IdleTimeout: -1})
	for _, want := range []string{"relay test", "nonsense", "unix:", "send-proxy", "idle-timeout"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	if r.Reconfigure(complete(Config{})) == nil {
		t.Error("no address to listen on: no error")
	}
	_, port, _ := net.SplitHostPort(r.addr)
	err = r.Reconfigure(complete(Config{Listen: []string{":" + port}}))
	if runtime.GOOS == "linux" && (!errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "itself")) {
		t.Errorf("an address that overlaps: %v", err)
	}
	wantServed(t, "afterwards", "tcp", r.addr)
}

// The same port 0 twice is two addresses, and a socket file has many names.
func TestReconfigureSameAddresses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.sock")
	other := filepath.Dir(path) + "/./x/../r.sock"
	r := start(t, Config{Listen: []string{"127.0.0.1:0", "127.0.0.1:0", ":0", "unix:" + path}})
	r.Hold() // returns when Run has opened what it needs
	files, before := restingFiles(t), r.Addrs()
	for _, state := range []string{"refusing", "open"} {
		if state == "open" {
			r.open(1, newHost(t, echo).addr)
			files = restingFiles(t)
		}
		r.reconfigure(Config{Listen: []string{"unix:" + other, ":00", "127.0.0.1:0", "127.0.0.1:0"}})
		now := r.Addrs()
		if now[0] != before[3] || now[1] != before[2] || now[2] != before[0] || now[3] != before[1] {
			t.Errorf("%s: the addresses are %v, were %v", state, now, before)
		}
		if n := openFiles(t); n != files {
			t.Errorf("%s: %d descriptors, %d before", state, n, files)
		}
		r.reconfigure(Config{Listen: []string{"127.0.0.1:0", "127.0.0.1:0", ":0", "unix:" + path}})
	}
	for _, a := range r.Addrs() {
		wantServed(t, "afterwards", a.Network(), a.String())
	}
	r.reconfigure(Config{Listen: []string{"127.0.0.1:0"}})
	wantServed(t, "the first of two alike", "tcp", before[0].String())
	wantRefused(t, "the second of two alike", "tcp", before[1].String())
}

// A socket that another program created stays, whatever Listen contains.
func TestReconfigureKeepsGivenSockets(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", closed(t))
	if err != nil {
		t.Fatal(err)
	}
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	fd := dup(t, f)
	f.Close()
	ln.Close()
	r := start(t, Config{Sockets: []int{fd}})
	r.open(1, newHost(t, echo).addr)
	for range 3 {
		r.reconfigure(Config{})
		wantServed(t, "the given socket", "tcp", ln.Addr().String())
		r.reconfigure(Config{Listen: []string{"127.0.0.1:0"}, Sockets: []int{-1}})
		wantServed(t, "the given socket", "tcp", ln.Addr().String())
		wantServed(t, "the listed address", "tcp", r.at(1))
	}
}

// Descriptors are neither kept nor closed twice: numbers that have become free
// belong to other files.
func TestReconfigureDescriptors(t *testing.T) {
	dir := t.TempDir()
	h := newHost(t, echo)
	r := start(t, Config{Engine: engine(2)})
	files := 0
	for k := range 30 {
		r.reconfigure(Config{Listen: []string{"127.0.0.1:0", fmt.Sprintf("127.0.0.%d:0", 2+k), "unix:" + filepath.Join(dir, fmt.Sprint(k))}})
		switch k % 3 {
		case 0:
			r.open(uint64(k+1), h.addr)
			wantServed(t, "a new address", "tcp", r.at(1))
			proctest.Until(t, "it to be over", func() bool { return r.Stats().Live == 0 })
		case 1:
			r.Hold()
		case 2:
			r.Refuse()
		}
		r.reconfigure(Config{Listen: []string{"127.0.0.1:0"}})
		var strangers []*os.File // with the numbers that have become free
		for range 4 {
			a, b, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			strangers = append(strangers, a, b)
		}
		r.reconfigure(Config{Listen: []string{"127.0.0.1:0"}, Hold: time.Hour})
		for _, f := range strangers {
			if err := f.Close(); err != nil {
				t.Fatalf("round %d: a descriptor was closed under its owner: %v", k, err)
			}
		}
		if k == 2 { // every path was used once
			files = openFiles(t)
		}
	}
	r.Refuse()
	proctest.Until(t, "as many descriptors as in the beginning", func() bool { return openFiles(t) <= files })
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("socket files are left: %v", left)
	}
}

// Settings, gate and queries from many goroutines at once, up to the end of
// Run.
func TestReconfigureBesideAllElse(t *testing.T) {
	t.Parallel()
	h := newHost(t, echo)
	r := start(t, Config{Engine: engine(2), Hold: 100 * time.Millisecond})
	var over atomic.Bool
	var wg sync.WaitGroup
	again := func(f func(k int)) {
		wg.Go(func() {
			for k := 0; !over.Load(); k++ {
				f(k)
			}
		})
	}
	again(func(k int) {
		switch r.Open(uint64(k+1), h.addr); k % 3 {
		case 0:
			r.Hold()
		case 1:
			r.Refuse()
		}
		r.Fence(t.Context(), uint64(k), "", FencePolicy{})
		time.Sleep(time.Millisecond) // the others need the processor too
	})
	for n := range 2 {
		again(func(k int) {
			err := r.Reconfigure(complete(Config{
				Listen:         []string{"127.0.0.1:0", fmt.Sprintf("127.0.0.%d:0", 2+(k+n)%3)}[:1+k%2],
				MaxConnections: k % 5,
				UserTimeout:    time.Duration(k%3-1) * time.Second,
				IdleTimeout:    time.Duration(k%2) * 100 * time.Millisecond,
				Allow:          []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}[:k%2],
			}))
			if err != nil && !errors.Is(err, errClosed) {
				t.Error(err)
			}
			time.Sleep(time.Millisecond) // the others need the processor too
		})
	}
	again(func(int) {
		r.Addrs()
		r.Waiting()
		r.Stats()
		time.Sleep(time.Millisecond) // the others need the processor too
	})
	for range 4 {
		again(func(int) {
			if c, err := net.Dial("tcp", r.addr); err == nil {
				c.SetDeadline(time.Now().Add(100 * time.Millisecond))
				io.WriteString(c, "x")
				c.Read(make([]byte, 1))
				c.Close()
			}
		})
	}
	time.Sleep(2 * time.Second) // the period of all this
	r.stop()
	<-r.done
	over.Store(true)
	wg.Wait()
}
