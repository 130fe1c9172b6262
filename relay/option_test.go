package relay

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"understudy/internal/proctest"
)

// Each setting of Config, from outside.

func TestConfigErrorsAreAllNamed(t *testing.T) {
	_, err := New(Config{
		Name:           "orders",
		Listen:         []string{"nonsense", "127.0.0.1:99999", "unix:"},
		SendProxy:      3,
		ConnectTimeout: -1,
		Hold:           -1,
		IdleTimeout:    -1,
		UserTimeout:    -1,
		DrainTimeout:   -1,
		MaxConnections: -1,
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"orders", "nonsense", "99999", "unix:", "send-proxy", "connect-timeout", "hold", "idle-timeout", "user-timeout", "drain-timeout", "max-connections"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
	if _, err := New(complete(Config{})); err == nil {
		t.Error("no address to listen on: no error")
	}
}

func TestOpenErrors(t *testing.T) {
	r := start(t, Config{})
	for _, host := range []string{"", "db1", "db1:", ":80", "db1:0", "db1:x", "unix:", "unix:" + strings.Repeat("x", 200)} {
		if _, err := r.Open(1, host); err == nil || host != "" && !strings.Contains(err.Error(), host) {
			t.Errorf("Open(%q): %v, want an error that names it", host, err)
		}
	}
}

func TestMaxConnections(t *testing.T) {
	t.Parallel()
	r := start(t, Config{Engine: engine(2), MaxConnections: 2})
	r.open(1, newHost(t, echo).addr)
	a, b, c := r.dial(), r.dial(), r.dial()
	for _, conn := range []net.Conn{a, b, c} {
		io.WriteString(conn, "x")
	}
	readSome(t, a, 1)
	readSome(t, b, 1)
	proctest.Until(t, "the third to wait", func() bool { return r.Waiting().Queued == 1 })
	time.Sleep(50 * time.Millisecond) // time for a wrong behaviour to show
	if s := r.Stats(); s.Live != 2 {
		t.Errorf("%d are live, want 2", s.Live)
	}
	a.Close()
	readSome(t, c, 1)
}

func TestAllow(t *testing.T) {
	t.Parallel()
	r := start(t, Config{
		Listen: []string{"[::]:0"}, // IPv4 clients come as mapped addresses
		Allow:  []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32"), netip.MustParsePrefix("::1/128")},
	})
	r.open(1, newHost(t, greet("x")).addr)
	_, port, _ := net.SplitHostPort(r.addr)
	for _, tt := range []struct {
		from, to string
		in       bool
	}{
		{"127.0.0.1", "127.0.0.1", false},
		{"127.0.0.2", "127.0.0.1", true},
		{"::1", "::1", true},
	} {
		c, err := dialFrom(t, tt.from, net.JoinHostPort(tt.to, port))
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		if tt.in && err != nil {
			t.Errorf("from %s: %v, want to be let in", tt.from, err)
		}
		if !tt.in && !isReset(err) {
			t.Errorf("from %s: %v, want a reset", tt.from, err)
		}
	}
	if s := r.Stats(); s.Denied != 1 {
		t.Errorf("stats %+v, want one denied", s)
	}
}

func TestIdleTimeout(t *testing.T) {
	t.Parallel()
	const idle = time.Second
	begin := time.Now()
	r, hosts := startPairs(t, Config{IdleTimeout: idle})
	quiet, quietHost := r.pair(hosts)
	busy, busyHost := r.pair(hosts)
	never := r.dial() // nothing has ever passed over this one
	var wg sync.WaitGroup
	for name, c := range map[string]net.Conn{"client": quiet, "host": quietHost, "silent client": never} {
		wg.Go(func() {
			wantReset(t, name, c, nil)
			if took := time.Since(begin); took < idle/2 {
				t.Errorf("%s: ended after %s", name, took)
			}
		})
	}
	for time.Since(begin) < 3*idle { // one way only
		io.WriteString(busyHost, "x")
		readSome(t, busy, 1)
		time.Sleep(idle / 10) // the pace of a busy connection
	}
	wg.Wait()
}

func TestSource(t *testing.T) {
	t.Parallel()
	from := make(chan string, 100)
	h := newHost(t, func(c *net.TCPConn) {
		from <- c.RemoteAddr().(*net.TCPAddr).IP.String()
		io.Copy(io.Discard, c)
	})
	r := start(t, Config{Source: netip.MustParseAddr("127.0.0.9")})
	r.open(1, h.addr)
	r.dial()
	r.dial()
	for range 2 {
		if got := <-from; got != "127.0.0.9" {
			t.Errorf("the host was connected from %s", got)
		}
	}
}

func TestSeveralListenersAndLoops(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := start(t, Config{
		Engine: engine(2),
		Listen: []string{"127.0.0.1:0", "127.0.0.2:0", "unix:" + filepath.Join(dir, "a.sock"), ":0"},
	})
	for epoch := uint64(1); epoch < 4; epoch++ { // after a refusal all of them listen again
		r.open(epoch, newHost(t, echo).addr)
		for _, addr := range r.Addrs() {
			for range 5 {
				c, err := net.Dial(addr.Network(), addr.String())
				if err != nil {
					t.Fatalf("epoch %d: %v", epoch, err)
				}
				c.SetDeadline(time.Now().Add(patience))
				io.WriteString(c, "ping")
				if got := readSome(t, c, 4); got != "ping" {
					t.Errorf("%s: got %q", addr, got)
				}
				c.Close()
			}
		}
		r.Refuse()
		for _, addr := range r.Addrs() {
			if c, err := net.Dial(addr.Network(), addr.String()); err == nil {
				c.SetDeadline(time.Now().Add(patience))
				_, err := c.Read(make([]byte, 1))
				c.Close()
				if portablePlane && isReset(err) {
					continue // it cannot bind a given socket again, so it resets clients
				}
				t.Errorf("%s: a connect while refusing succeeded, then %v", addr, err)
			}
		}
	}
}

// Unix sockets on both sides. They have no reset, so a failure appears as an
// end of the stream.
func TestUnixSockets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "relay.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close() // a file that an earlier program left behind
	ln, err := net.Listen("unix", filepath.Join(dir, "host.sock"))
	if err != nil {
		t.Fatal(err)
	}
	h := newHostOn(t, ln, func(c net.Conn) {
		io.Copy(c, c)
		c.(*net.UnixConn).CloseWrite()
	})
	r := start(t, Config{Listen: []string{"unix:" + path}})
	r.open(1, h.addr)
	for _, size := range sizes {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		data := randomBytes(size)
		var sent sync.WaitGroup
		sent.Go(func() {
			c.Write(data)
			c.(*net.UnixConn).CloseWrite()
		})
		wantAll(t, fmt.Sprint("echo of ", size), c, data)
		sent.Wait()
		c.Close()
	}
	proctest.Until(t, "the count", func() bool { return r.Stats().Finished == uint64(len(sizes)) })
	if other, err := New(complete(Config{Name: "other", Listen: []string{"unix:" + path}})); err != nil {
		t.Fatal(err)
	} else if err := other.Bind(); err == nil {
		other.Close()
		t.Error("a path with a listener could be taken")
	}
	r.stop()
	<-r.done
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket file is still there: %v", err)
	}
}

func TestMissingUnixHost(t *testing.T) {
	t.Parallel()
	var s suspicions
	r := start(t, Config{Hold: 50 * time.Millisecond, Suspect: s.add})
	r.open(1, "unix:"+filepath.Join(t.TempDir(), "none.sock"))
	wantReset(t, "the client", r.dial(), nil)
	if len(s.list()) == 0 {
		t.Error("nothing was reported")
	}
}

func TestIPv6(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("SKIP: needs IPv6: ", err)
	}
	h := newHostOn(t, ln, func(c net.Conn) { echo(c.(*net.TCPConn)) })
	r := start(t, Config{Listen: []string{"[::1]:0", "[::]:0"}})
	r.open(1, h.addr)
	_, port, _ := net.SplitHostPort(r.Addrs()[1].String())
	for _, to := range []string{r.addr, "[::1]:" + port, "127.0.0.1:" + port} {
		c := dialTo(t, to)
		data := randomBytes(300 << 10)
		go sendAll(c, data)
		wantAll(t, to, c, data)
	}
}

// A Multipath TCP client is served as plain TCP.
func TestMultipathClient(t *testing.T) {
	t.Parallel()
	r := start(t, Config{})
	r.open(1, newHost(t, echo).addr)
	var d net.Dialer
	d.SetMultipathTCP(true)
	conn, err := d.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := conn.(*net.TCPConn)
	c.SetDeadline(time.Now().Add(patience))
	data := randomBytes(3 << 20)
	go sendAll(c, data)
	wantAll(t, "echo", c, data)
	if multi, err := c.MultipathTCP(); err == nil && multi {
		t.Error("the relay speaks Multipath TCP, which cannot be spliced")
	}
}

// The PROXY header that the host is sent, read by an independent parser.
func TestSendProxy(t *testing.T) {
	t.Parallel()
	type said struct {
		header *proxyproto.Header
		rest   []byte
	}
	for _, version := range []ProxyVersion{1, 2} {
		for _, listenOn := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0", "unix:" + filepath.Join(t.TempDir(), "relay.sock")} {
			t.Run(fmt.Sprintf("version %d on %s", version, filepath.Base(listenOn)), func(t *testing.T) {
				got := make(chan said, 1)
				h := newHost(t, func(c *net.TCPConn) {
					in := bufio.NewReader(c)
					header, err := proxyproto.Read(in)
					if err != nil {
						t.Errorf("the host got no header: %v", err)
					}
					rest, _ := io.ReadAll(in)
					io.WriteString(c, "bye")
					got <- said{header, rest}
				})
				r := start(t, Config{Listen: []string{listenOn}, SendProxy: version})
				r.open(1, closed(t)) // the header is for the host that is reached
				to := r.Addrs()[0]
				target := to.String()
				if listenOn == "[::]:0" {
					_, port, _ := net.SplitHostPort(target)
					target = "127.0.0.1:" + port
				}
				conn, err := net.Dial(to.Network(), target)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(patience))
				data := randomBytes(200 << 10)
				var sent sync.WaitGroup
				sent.Go(func() {
					conn.Write(data)
					conn.(interface{ CloseWrite() error }).CloseWrite()
				})
				time.Sleep(20 * time.Millisecond) // some of it is here before the host is
				r.open(2, h.addr)
				s := <-got
				sent.Wait()
				wantAll(t, "client", conn, []byte("bye"))
				if !bytes.Equal(s.rest, data) {
					t.Errorf("after the header %d bytes, want the %d of the client", len(s.rest), len(data))
				}
				if to.Network() == "unix" {
					if s.header.TransportProtocol != proxyproto.UNSPEC && !s.header.Command.IsLocal() {
						t.Errorf("of a unix client the header says %+v", s.header)
					}
					return
				}
				if int(s.header.Version) != int(version) {
					t.Errorf("version %d", s.header.Version)
				}
				if from, to, ok := s.header.TCPAddrs(); !ok || from.String() != conn.LocalAddr().String() || to.String() != conn.RemoteAddr().String() {
					t.Errorf("header %v to %v, want %v to %v", from, to, conn.LocalAddr(), conn.RemoteAddr())
				}
				if s := r.Stats(); s.Sent != uint64(len(data)) {
					t.Errorf("%d bytes sent, want the client's %d only", s.Sent, len(data))
				}
			})
		}
	}
}

// The addresses in a client's PROXY header are passed on.
func TestAcceptProxy(t *testing.T) {
	t.Parallel()
	type said struct {
		from string
		rest string
	}
	for _, send := range []ProxyVersion{0, 1, 2} {
		got := make(chan said, 1)
		h := newHost(t, func(c *net.TCPConn) {
			in := bufio.NewReader(c)
			s := said{}
			if send != 0 {
				header, err := proxyproto.Read(in)
				if err != nil {
					t.Errorf("the host got no header: %v", err)
					return
				}
				s.from = fmt.Sprint(header.SourceAddr)
			}
			rest, _ := io.ReadAll(in)
			s.rest = string(rest)
			got <- s
		})
		r := start(t, Config{AcceptProxy: true, SendProxy: send})
		r.open(1, h.addr)
		for _, version := range []byte{1, 2} {
			for _, src := range []string{"192.0.2.7:4711", "[2001:db8::7]:4711"} {
				for _, piece := range []int{1, 1000} {
					from := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(src))
					to := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(strings.Replace(src, "7]", "8]", 1)))
					header := proxyproto.HeaderProxyFromAddrs(version, from, to)
					if version == 2 {
						header.SetTLVs([]proxyproto.TLV{{Type: proxyproto.PP2_TYPE_UNIQUE_ID, Value: make([]byte, 100)}})
					}
					text, err := header.Format()
					if err != nil {
						t.Fatal(err)
					}
					text = append(text, "hello"...)
					c := r.dial()
					for rest := text; len(rest) > 0; rest = rest[min(piece, len(rest)):] {
						c.Write(rest[:min(piece, len(rest))])
					}
					c.CloseWrite()
					want := said{rest: "hello"}
					if send != 0 {
						want.from = src
					}
					if s := <-got; s != want {
						t.Errorf("version %d of %s in pieces of %d: the host got %+v, want %+v", version, src, piece, s, want)
					}
				}
			}
		}
	}
}

func TestAcceptProxyDenies(t *testing.T) {
	t.Parallel()
	h := newHost(t, greet("x"))
	r := start(t, Config{AcceptProxy: true, ConnectTimeout: 300 * time.Millisecond})
	r.open(1, h.addr)
	denied := uint64(0)
	for _, tt := range []struct{ name, send string }{
		{"garbage", "GET / HTTP/1.1\r\n\r\n"},
		{"a header that goes wrong late", "PROXY TCP4 192.0.2.1 192.0.2.2 1 99999\r\n"},
		{"a header without an end", "PROXY " + strings.Repeat("x", 200)},
		{"version 2 of another kind", "\r\n\r\n\x00\r\nQUIT\n\x31\x11\x00\x0c"},
		{"version 2 with a truncated unix address", "\r\n\r\n\x00\r\nQUIT\n\x21\x31\x00\xd7" + strings.Repeat("x", 215)},
		{"version 2 with a TLV that overruns the header", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x11abcdefghABCD\x04\x00\x03xx"},
		{"half a header, then silence", "PROXY TCP4 192.0"},
		{"silence", ""},
	} {
		c := r.dial()
		io.WriteString(c, tt.send)
		wantReset(t, tt.name, c, nil)
		denied++
	}
	c := r.dial()
	io.WriteString(c, "PROXY TCP4 192.0")
	c.CloseWrite()
	wantReset(t, "half a header, then the end", c, nil)
	proctest.Until(t, "all to be counted as denied", func() bool { return r.Stats().Denied == denied+1 })
	if s := r.Stats(); s.Accepted != 0 || s.Live != 0 || h.accepted.Load() != 0 {
		t.Errorf("stats %+v, %d connections to the host, want none of either", s, h.accepted.Load())
	}
}

// A counter that decreases looks like a restart to every metrics system.
func TestAcceptedNeverGoesDown(t *testing.T) {
	t.Parallel()
	r := start(t, Config{AcceptProxy: true, ConnectTimeout: 100 * time.Millisecond})
	r.open(1, newHost(t, greet("x")).addr)
	for range 5 {
		r.dial()
	}
	c := r.dial()
	io.WriteString(c, "PROXY UNKNOWN\r\n")
	readSome(t, c, 1)
	most := uint64(0)
	proctest.Until(t, "all to be denied", func() bool {
		s := r.Stats()
		if s.Accepted < most {
			t.Fatalf("accepted went from %d to %d", most, s.Accepted)
		}
		most = max(most, s.Accepted)
		return s.Denied == 5
	})
}

func TestFirstByte(t *testing.T) {
	t.Parallel()
	reported := make(chan uint64, 10)
	r := start(t, Config{Engine: engine(2), FirstByte: func(epoch uint64) { reported <- epoch }})
	for epoch := uint64(1); epoch < 4; epoch++ {
		r.Hold()
		r.Fence(t.Context(), epoch, "", FencePolicy{})
		r.open(epoch, newHost(t, echo).addr)
		for range 3 {
			c := r.dial()
			io.WriteString(c, "x")
			readSome(t, c, 1)
		}
		if got := <-reported; got != epoch {
			t.Errorf("epoch %d was reported, want %d", got, epoch)
		}
	}
	if len(reported) != 0 {
		t.Error("reported more than once")
	}
}

// A reset of a connection in use is reported, and so are several clean ends at
// about the same time; single clean ends and ends by clients are not.
func TestHostEnded(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		end   func(c *net.TCPConn) // the host's
		conns int
		want  bool
	}{
		{"a reset", func(c *net.TCPConn) { c.SetLinger(0); c.Close() }, 1, true},
		{"a clean end", func(c *net.TCPConn) { c.Close() }, 1, false},
		{"several clean ends", func(c *net.TCPConn) { c.Close() }, 10, true},
		{"clients end", nil, 10, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var reported atomic.Int64
			over := make(chan struct{})
			h := newHost(t, func(c *net.TCPConn) {
				io.WriteString(c, "x")
				<-over
				if tt.end != nil {
					tt.end(c)
					return
				}
				io.Copy(io.Discard, c)
			})
			r := start(t, Config{Engine: engine(2), HostEnded: func(epoch uint64) { reported.Store(int64(epoch)) }})
			r.open(1, h.addr)
			clients := make([]*net.TCPConn, tt.conns)
			for i := range clients {
				clients[i] = r.dial()
				readSome(t, clients[i], 1)
			}
			close(over)
			for _, c := range clients {
				if tt.end == nil {
					c.CloseWrite()
				}
				io.ReadAll(c) // to its end, of whatever kind
				c.Close()
			}
			proctest.Until(t, "all to be over", func() bool { return r.Stats().Live == 0 })
			if got := reported.Load() == 1; got != tt.want {
				t.Errorf("reported: %v, want %v", got, tt.want)
			}
		})
	}
}

// Sockets that another program has bound, some of them listening already.
func TestGivenSockets(t *testing.T) {
	t.Parallel()
	var fds []int
	var addrs []net.Addr
	for _, network := range []string{"tcp", "unix"} {
		at := closed(t) // a port by its number: one that the system picked is not held through a refusal
		if network == "unix" {
			at = filepath.Join(t.TempDir(), "given.sock")
		}
		ln, err := net.Listen(network, at)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		if u, ok := ln.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
		f, err := ln.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, dup(t, f))
		f.Close()
		addrs = append(addrs, ln.Addr())
	}
	r := start(t, Config{Listen: []string{"127.0.0.1:0"}, Sockets: fds})
	h := newHost(t, greet("x"))
	for epoch := uint64(1); epoch < 4; epoch++ {
		r.open(epoch, h.addr)
		for k, addr := range addrs {
			if got := r.Addrs()[k].String(); got != addr.String() {
				t.Errorf("the address of a given socket is %s, want %s", got, addr)
			}
			c, err := net.Dial(addr.Network(), addr.String())
			if err != nil {
				t.Fatalf("epoch %d: %v", epoch, err)
			}
			c.SetDeadline(time.Now().Add(patience))
			readSome(t, c, 1)
			c.Close()
		}
		if epoch == 1 {
			r.Hold()
			continue
		}
		r.Refuse()
		for _, addr := range addrs[:1] { // a given unix socket would not come back from a refusal: its clients wait
			if c, err := net.Dial(addr.Network(), addr.String()); err == nil {
				c.SetDeadline(time.Now().Add(patience))
				_, err := c.Read(make([]byte, 1))
				c.Close()
				if portablePlane && isReset(err) {
					continue // it cannot bind a given socket again, so it resets clients
				}
				t.Errorf("%s: a connect while refusing succeeded, then %v", addr, err)
			}
		}
	}
}
