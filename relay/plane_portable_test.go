//go:build !linux || portable

package relay

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/bind"
	"understudy/internal/proctest"
)

// The behaviour that is specific to the portable plane. Everything else that a
// relay must do is tested for both planes alike.

// A client that resets while its host takes nothing is noticed, although
// nothing can be read from it: the connection to its host ends too.
func TestResetBehindBlockedHost(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	ends := make(chan error, 1)
	h := newHost(t, func(c *net.TCPConn) {
		io.WriteString(c, "x")
		<-release
		_, err := io.Copy(io.Discard, c)
		ends <- err
	})
	r := start(t, Config{UserTimeout: zero}) // which would end it as well, but later
	r.open(1, h.addr)
	c := r.dial()
	readSome(t, c, 1)
	c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	io.Copy(c, endlessZeros{}) // until all buffers are full
	reset(c)
	proctest.Until(t, "the connection to be given up", func() bool { return r.Stats().Reset == 1 })
	close(release)
	if err := <-ends; !isReset(err) {
		t.Errorf("the host saw %v, want a reset", err)
	}
}

type endlessZeros struct{}

func (endlessZeros) Read(b []byte) (int, error) { return len(b), nil }

// Bytes that a host did not take go to the next one, behind a new PROXY header
// with the addresses of the client's own header.
func TestKeptBytesBehindProxyHeader(t *testing.T) {
	t.Parallel()
	const header = "PROXY TCP4 192.0.2.1 192.0.2.2 1234 80\r\n"
	next := make(chan string, 1)
	second := newHost(t, func(c *net.TCPConn) {
		all, _ := io.ReadAll(c)
		next <- string(all)
	})
	r := start(t, Config{AcceptProxy: true, SendProxy: 1})
	r.open(1, closed(t))
	c := r.dial()
	for _, piece := range []string{header[:9], header[9:] + "he", "llo"} {
		io.WriteString(c, piece)
		time.Sleep(20 * time.Millisecond) // each piece arrives separately
	}
	proctest.Until(t, "the client to be held", func() bool { return r.Waiting().Held == 1 })
	c.CloseWrite()
	r.open(2, second.addr)
	if got := <-next; got != header+"hello" {
		t.Errorf("the next host got %q, want %q", got, header+"hello")
	}
	proctest.Until(t, "the count", func() bool { return r.Stats().Finished == 1 })
	if s := r.Stats(); s.Sent != uint64(len("hello")) {
		t.Errorf("%d bytes were counted, want those of the client only", s.Sent)
	}

	bad := r.dial()
	io.WriteString(bad, "GET / HTTP/1.1\r\n\r\n")
	if _, err := bad.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("a client without a header saw %v, want a reset", err)
	}
	proctest.Until(t, "the count", func() bool { s := r.Stats(); return s.Denied == 1 && s.Accepted == 1 })
}

// A socket that another program created cannot be created again: while the
// relay refuses, its clients are reset.
func TestAdoptedSocketRefuses(t *testing.T) {
	t.Parallel()
	c, err := bind.TCP(netip.MustParseAddrPort("127.0.0.1:0"), false)
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, Config{Listen: []string{}, Sockets: []int{c.FD}})
	if _, err := net.Dial("tcp", r.addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("before Open: %v, want refused", err)
	}
	h := newHost(t, greet("x"))
	for epoch := uint64(1); epoch < 4; epoch++ {
		r.open(epoch, h.addr)
		readSome(t, r.dial(), 1)
		r.Hold()
		waits := r.dial()
		r.Refuse()
		for _, c := range []*net.TCPConn{waits, nil} {
			if c == nil {
				again, err := net.Dial("tcp", r.addr)
				if isReset(err) {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				c = again.(*net.TCPConn)
				defer c.Close()
			}
			c.SetDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1)); !isReset(err) {
				t.Errorf("while refusing a client saw %v, want a reset", err)
			}
		}
	}
}

// An address that another program has bound while the relay refused is an error
// of Open, and can be bound again later.
func TestLostAddress(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	r := start(t, Config{Listen: []string{"unix:" + path}})
	h := newHost(t, greet("x"))
	serves := func() {
		t.Helper()
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		readSome(t, c, 1)
	}
	r.open(1, h.addr)
	serves()
	os.Remove(path)
	thief, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	r.Refuse()
	if _, err := r.Open(2, h.addr); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), path) {
		t.Errorf("Open: %v, want address in use, with the address", err)
	}
	thief.Close()
	r.open(3, h.addr)
	serves()
	r.Refuse()
	if _, err := net.Dial("unix", path); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("while refusing: %v, want refused", err)
	}
	r.open(4, h.addr)
	serves()
}

// The limit applies to all listeners together, and further clients wait in the
// queue.
func TestLimitOverListeners(t *testing.T) {
	t.Parallel()
	r := start(t, Config{Listen: []string{"127.0.0.1:0", "127.0.0.1:0"}, MaxConnections: 2})
	r.open(1, newHost(t, greet("x")).addr)
	var clients []*net.TCPConn
	for k := range 8 {
		clients = append(clients, dialTo(t, r.Addrs()[k%2].String()))
	}
	for len(clients) > 0 {
		proctest.Until(t, "two to be let in", func() bool { return r.Stats().Live == min(2, uint64(len(clients))) })
		if s := r.Stats(); s.Live > 2 {
			t.Fatalf("%d connections are open, want 2 at most", s.Live)
		}
		proctest.Until(t, "one of them to be served", func() bool {
			for k, c := range clients {
				c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
				if n, _ := c.Read(make([]byte, 1)); n == 1 {
					c.Close()
					clients = append(clients[:k], clients[k+1:]...)
					return true
				}
			}
			return false
		})
	}
	proctest.Until(t, "all to be over", func() bool { s := r.Stats(); return s.Accepted == 8 && s.Live == 0 })
}

// A client that resets after its own end is noticed although its host is silent.
func TestResetAfterOwnEnd(t *testing.T) {
	t.Parallel()
	sawEnd := make(chan struct{})
	ends := make(chan error, 1)
	r := start(t, Config{})
	r.open(1, newHost(t, func(c *net.TCPConn) {
		io.WriteString(c, "x")
		io.Copy(io.Discard, c)
		close(sawEnd)
		raw, _ := c.SyscallConn()
		ends <- raw.Read(func(fd uintptr) bool {
			e, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
			return e != 0
		})
	}).addr)
	c := r.dial()
	readSome(t, c, 1)
	c.CloseWrite()
	<-sawEnd
	reset(c)
	if err := <-ends; err != nil {
		t.Errorf("the host was not reset: %v", err)
	}
	proctest.Until(t, "the count", func() bool { return r.Stats().Reset == 1 })
}

// A waiting client is connected as soon as there is a host, not when its next
// try is due.
func TestOpenWakesWhoWaits(t *testing.T) {
	t.Parallel()
	r := start(t, Config{Hold: time.Hour})
	r.open(1, closed(t))
	c := r.dial()
	proctest.Until(t, "the client to be held", func() bool { return r.Waiting().Held == 1 })
	r.Hold()
	time.Sleep(2 * retryLong) // for its next connect to find the gate shut
	r.open(2, newHost(t, greet("x")).addr)
	readSome(t, c, 1)
}

// Clients in the queue when the relay is stopped are served.
func TestQueueIsServedAtTheEnd(t *testing.T) {
	t.Parallel()
	r := start(t, Config{DrainTimeout: patience})
	r.open(1, newHost(t, echo).addr)
	r.gating.Lock()
	r.plane.(*goroutines).rest(r.listeners[0]) // as if it had not accepted yet
	r.gating.Unlock()
	c := r.dial()
	r.stop()
	io.WriteString(c, "ping")
	if got := readSome(t, c, 4); got != "ping" {
		t.Errorf("got %q", got)
	}
	c.CloseWrite()
	<-r.done
}

// Bytes that were read from the client just when a fence took it away are kept
// for the next host.
func TestFencedFlowKeepsItsBytes(t *testing.T) {
	t.Parallel()
	p := newRelay(complete(Config{})).plane.(*goroutines)
	ln := listen(t, "127.0.0.1:0")
	defer ln.Close()
	end := func() (*net.TCPConn, *socket) {
		far := dialTo(t, ln.Addr().String())
		near, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { near.Close() })
		s, err := socketOf(near.(stream))
		if err != nil {
			t.Fatal(err)
		}
		return far, s
	}
	cl, near := end()
	_, h := end()
	c, err := newConn(p, near.stream)
	if err != nil {
		t.Fatal(err)
	}
	c.sock[host] = h
	c.state = relaying
	h.shut = true
	io.WriteString(cl, "hello")
	proctest.Until(t, "the flow to read and stop", func() bool {
		newFlow(c, client).run()
		return len(c.kept) > 0
	})
	if string(c.kept) != "hello" || h.written != 0 {
		t.Errorf("kept %q, and %d bytes went to the old host", c.kept, h.written)
	}
}
