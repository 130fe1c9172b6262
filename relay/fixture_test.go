package relay

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/proctest"
)

// zero is a duration that complete makes 0: a setting that is 0 gets the test's
// value.
const zero time.Duration = -1

// complete sets the zero settings of cfg to the values that most tests use,
// and, for a loop that a test makes itself, to those that New would set.
func complete(cfg Config) Config {
	cfg.Hold = max(cmp.Or(cfg.Hold, 10*time.Second), 0)
	cfg.ConnectTimeout = cmp.Or(cfg.ConnectTimeout, 3*time.Second)
	cfg.UserTimeout = max(cmp.Or(cfg.UserTimeout, 20*time.Second), 0)
	cfg.DrainTimeout = max(cfg.DrainTimeout, 0)
	cfg.SocketFile.Mode = cmp.Or(cfg.SocketFile.Mode, 0o660)
	if cfg.Engine == nil {
		cfg.Engine = engine(runtime.GOMAXPROCS(0))
	}
	cfg.Together = cmp.Or(cfg.Together, new(atomic.Int64))
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return cfg
}

func dialFrom(tb testing.TB, from, to string) (*net.TCPConn, error) {
	tb.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	d.SetMultipathTCP(false)
	c, err := d.DialContext(tb.Context(), "tcp", to)
	if err != nil {
		return nil, err
	}
	tb.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn), nil
}

// wantTurnedAway fails unless a client from that address is reset, perhaps
// before its connect has returned.
func (tr *testRelay) wantTurnedAway(who, from string) {
	tr.tb.Helper()
	c, err := dialFrom(tr.tb, from, tr.addr)
	switch {
	case err == nil:
		wantReset(tr.tb, who, c, nil)
	case !isReset(err):
		tr.tb.Errorf("%s: %v, want a reset", who, err)
	}
}

// reconfigure gives the relay other settings.
func (tr *testRelay) reconfigure(cfg Config) {
	tr.tb.Helper()
	if err := tr.Reconfigure(complete(cfg)); err != nil {
		tr.tb.Fatalf("Reconfigure: %v", err)
	}
}

// at returns the k-th of the relay's addresses.
func (tr *testRelay) at(k int) string { return tr.Addrs()[k].String() }

// wantRefused fails unless connects to addr are refused.
func wantRefused(tb testing.TB, what, network, addr string) {
	tb.Helper()
	c, err := net.Dial(network, addr)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && (network != "unix" || !errors.Is(err, os.ErrNotExist)) {
		tb.Errorf("%s: %v, want refused", what, err)
	}
}

// wantEcho fails unless what is sent over c comes back.
func wantEcho(tb testing.TB, what string, c net.Conn) {
	tb.Helper()
	text := fmt.Sprintf("ping %d", rand.Int())
	io.WriteString(c, text)
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
		tb.Errorf("%s: %q, %v came back, want %q", what, b, err, text)
	}
}

// wantServed fails unless a new client is served at addr.
func wantServed(tb testing.TB, what, network, addr string) {
	tb.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		tb.Errorf("%s: %v", what, err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	wantEcho(tb, what, c)
}

// socketAt returns the kernel's identifier of the socket that listens at an
// IPv4 loopback address.
func socketAt(tb testing.TB, addr string) string {
	tb.Helper()
	if runtime.GOOS != "linux" {
		return ""
	}
	text, err := os.ReadFile("/proc/self/net/tcp")
	if err != nil {
		tb.Fatal(err)
	}
	ap := netip.MustParseAddrPort(addr)
	ip := ap.Addr().As4()
	local := fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], ap.Port())
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 9 && f[1] == local && f[3] == "0A" {
			return f[9]
		}
	}
	tb.Fatalf("no listener at %s", addr)
	return ""
}

// patience is the longest time that anything in these tests may take before it counts as
// hung. Working code takes far less.
const patience = 30 * time.Second

// testRelay is a running relay with one address.
type testRelay struct {
	*Relay
	tb   testing.TB
	addr string
	stop context.CancelFunc
	done chan struct{}
}

// start binds and runs a relay. Its gate is shut until the test opens it. At
// the end of the test it is stopped, and must have counted every connection.
func start(tb testing.TB, cfg Config) *testRelay {
	tb.Helper()
	if cfg.Listen == nil {
		cfg.Listen = []string{"127.0.0.1:0"}
	}
	if cfg.Logger == nil && testing.Verbose() {
		cfg.Logger = hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: tb.Output()})
	}
	cfg.Name = "test"
	r, err := New(complete(cfg))
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
		case <-time.After(patience): // a deadline
			tb.Fatal("Run did not return")
		}
		s := r.Stats()
		if sum := s.Live + s.Finished + s.Reset + s.Fenced + s.Expired + s.Aborted; sum != s.Accepted || s.Live != 0 {
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

// listen makes a plain TCP listener. The caller closes it.
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

// greet sends name and waits for the end of the stream.
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

// sizes are around the limits inside the relay: a read, a segment's worth of
// them, a pipe of either size, a turn.
var sizes = []int{
	0, 1, 64, 4095,
	32<<10 - 1, 32 << 10, 32<<10 + 1,
	64<<10 - 1, 64 << 10, 64<<10 + 1,
	512<<10 - 1, 512 << 10, 512<<10 + 1,
	3 << 20,
}

// pair returns the two ends of one relayed connection: the client's and the
// host's. A byte has passed each way.
func (tr *testRelay) pair(hosts net.Listener) (client, host *net.TCPConn) {
	tr.tb.Helper()
	client = tr.dial()
	c, err := hosts.Accept()
	if err != nil {
		tr.tb.Fatal(err)
	}
	tr.tb.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	host = c.(*net.TCPConn)
	for _, way := range [][2]*net.TCPConn{{client, host}, {host, client}} {
		if _, err := way[0].Write([]byte{'!'}); err != nil {
			tr.tb.Fatal(err)
		}
		readSome(tr.tb, way[1], 1)
	}
	return client, host
}

// startPairs starts a relay that is open to a listener of the test's own.
func startPairs(tb testing.TB, cfg Config) (*testRelay, net.Listener) {
	tb.Helper()
	tr := start(tb, cfg)
	ln := listen(tb, "127.0.0.1:0")
	tb.Cleanup(func() { ln.Close() })
	tr.open(1, ln.Addr().String())
	return tr, ln
}

// wantAll reads c to its end and fails unless that is data and a clean end.
func wantAll(tb testing.TB, who string, c io.Reader, data []byte) {
	tb.Helper()
	sum := sha256.New()
	n, err := io.Copy(sum, c)
	want := sha256.Sum256(data)
	if err != nil || n != int64(len(data)) {
		tb.Errorf("%s: read %d bytes, %v, want %d and a clean end", who, n, err, len(data))
	} else if !bytes.Equal(sum.Sum(nil), want[:]) {
		tb.Errorf("%s: %d bytes, but other ones than were sent", who, n)
	}
}

// wantReset reads c to its end and fails unless that is data and a reset.
func wantReset(tb testing.TB, who string, c io.Reader, data []byte) {
	tb.Helper()
	got, err := io.ReadAll(c)
	switch {
	case err == nil:
		tb.Errorf("%s: a clean end after %d of %d bytes, want a reset", who, len(got), len(data))
	case !isReset(err):
		tb.Errorf("%s: after %d of %d bytes %v, want a reset", who, len(got), len(data), err)
	case !bytes.Equal(got, data):
		tb.Errorf("%s: %d bytes before the reset, want %d, or other ones than were sent", who, len(got), len(data))
	}
}

func sendAll(c *net.TCPConn, data []byte) {
	c.Write(data)
	c.CloseWrite()
}

// suspicions collects the faults that a relay reports of its hosts.
type suspicions struct {
	mu  sync.Mutex
	all []string
	err error // the last one
}

// add is a Config.Suspect. A slow connect is normal on a busy machine, so it is
// recorded only as the last error.
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

// none fails if any host was suspected.
func (s *suspicions) none(tb testing.TB) {
	tb.Helper()
	if all := s.list(); len(all) != 0 {
		tb.Errorf("suspected a host that did nothing wrong: %q", all)
	}
}

// fullQueue is the address of a host whose accept queue is full: connects to it
// get no answer.
func fullQueue(tb testing.TB) string {
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
	for range 8 { // enough to fill the queue, plus one
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
	return proctest.FreeAddr(tb)
}
