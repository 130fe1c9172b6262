//go:build !portable

package relay

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
	"understudy/internal/rawsocket"
)

// stage is a loop without its thread: a test hands it events one by one.
type stage struct {
	*testing.T
	*loop
}

func newStage(t *testing.T) stage {
	t.Helper()
	l := idleLoops(t, newRelay(complete(Config{})), 1)[0]
	l.batch.open = true
	return stage{t, l}
}

// pairTCP is two ends of a TCP connection on loopback.
func pairTCP(t *testing.T) (near, far int32) {
	t.Helper()
	ln := listen(t, "127.0.0.1:0")
	defer ln.Close()
	addr := hostSockaddr(netip.MustParseAddr("127.0.0.1"), uint16(ln.Addr().(*net.TCPAddr).Port))
	far, e := socket(addr.Family())
	if e == 0 {
		e = rawsocket.Connect(int(far), &addr.Addr)
	}
	if e != 0 && e != unix.EINPROGRESS {
		t.Fatal(e)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	raw, err := accepted.(*net.TCPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			n, dupErr := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
			if dupErr != nil {
				t.Error(dupErr)
			}
			near = int32(n)
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	setNoDelay(near)
	return near, far
}

// relayed is a connection of a stage, with its two far ends.
type relayed struct {
	i    int32
	c    *conn
	ends [2]int32
}

func (s stage) relayed() relayed {
	s.Helper()
	i, c := s.alloc(0)
	r := relayed{i: i, c: c}
	for k := client; k <= host; k++ {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			s.Fatal(err)
		}
		c.fd[k], r.ends[k] = int32(fds[0]), int32(fds[1])
		c.ready[k] = writable
		s.Cleanup(func() { closeFd(r.ends[k]) })
	}
	c.state = relaying
	s.live.Add(1)
	s.tenants[0].relay.enter()
	return r
}

// says makes one end of r send p, and hands the loop the events.
func (s stage) says(r relayed, from side, p []byte, events uint32) {
	s.Helper()
	if n, e := send(r.ends[from], p, 0); n != len(p) || e != 0 {
		s.Fatalf("send %d bytes: %d, %v", len(p), n, e)
	}
	s.hears(r, from, events)
}

func (s stage) hears(r relayed, from side, events uint32) {
	t := r.c.tag(r.i, from)
	s.handle(&unix.EpollEvent{Events: events, Fd: t.slot, Pad: t.gen})
}

// got returns the bytes that have arrived at an end of r.
func (s stage) got(r relayed, at side) string {
	b := make([]byte, 64<<10)
	n, _ := recv(r.ends[at], b, 0)
	return string(b[:max(n, 0)])
}

func (s stage) want(r relayed, at side, want string) {
	s.Helper()
	if got := s.got(r, at); got != want {
		s.Errorf("at side %d arrived %.20q (%d bytes), want %.20q (%d)", at, got, len(got), want, len(want))
	}
}

// Small pieces are read first and sent together; nothing of another connection,
// and nothing twice.
func TestBatchIsReadThenSent(t *testing.T) {
	s := newStage(t)
	var all []relayed
	for k := range batchPieces {
		r := s.relayed()
		all = append(all, r)
		s.says(r, side(k%2), fmt.Appendf(nil, "piece %d", k), unix.EPOLLIN)
	}
	for k, r := range all {
		s.want(r, side(k%2).other(), "")
	}
	s.sendBatch()
	for k, r := range all {
		s.want(r, side(k%2).other(), fmt.Sprintf("piece %d", k))
	}
	s.sendBatch()
	for k, r := range all {
		s.want(r, side(k%2).other(), "")
		if n := r.c.moved[k%2]; n != uint64(len(fmt.Sprintf("piece %d", k))) {
			t.Errorf("connection %d has counted %d bytes", k, n)
		}
	}
}

// A batch that is full is sent before more is read, by pieces and by bytes.
func TestBatchIsBounded(t *testing.T) {
	for _, size := range []int{1, batchPiece} {
		s := newStage(t)
		p := bytes.Repeat([]byte{'p'}, size)
		fits := min(batchPieces, batchBytes/batchPiece*batchPiece/size)
		first := s.relayed()
		s.says(first, client, p, unix.EPOLLIN)
		for range fits - 1 {
			s.says(s.relayed(), client, p, unix.EPOLLIN)
		}
		s.want(first, host, "")
		s.says(s.relayed(), client, p, unix.EPOLLIN)
		s.want(first, host, string(p))
		for range 2 * (batchBytes + chunk) / batchPiece { // it begins anew each time
			s.says(first, client, p, unix.EPOLLIN)
			s.sendBatch()
			s.want(first, host, string(p))
		}
	}
}

// A connection that failed does not have the others' pieces sent twice, and one
// whose piece is sent keeps no batch from growing.
func TestBatchIsSentOnce(t *testing.T) {
	s := newStage(t)
	var all []relayed
	for range batchPieces {
		r := s.relayed()
		all = append(all, r)
		s.says(r, client, []byte("once"), unix.EPOLLIN)
	}
	failed := all[1]
	if e := shutdown(failed.ends[host], unix.SHUT_RDWR); e != 0 {
		t.Fatal(e)
	}
	s.sendBatch()
	for _, r := range all {
		if r != failed {
			s.want(r, host, "once")
		}
	}
	s.says(all[2], client, []byte("next"), unix.EPOLLIN)
	s.hears(all[3], client, unix.EPOLLOUT)
	s.want(all[2], host, "")
}

// A piece that is large, or whose connection must be served again at once, is
// sent at once.
func TestBatchIsForSmallPieces(t *testing.T) {
	s := newStage(t)
	large := bytes.Repeat([]byte{'l'}, batchPiece+1)
	r := s.relayed()
	s.says(r, client, large, unix.EPOLLIN)
	s.want(r, host, string(large))

	r = s.relayed()
	s.says(r, client, []byte("last words"), unix.EPOLLIN|unix.EPOLLRDHUP)
	s.want(r, host, "last words")

	r = s.relayed()
	r.c.ready[host] |= readable
	s.says(r, client, []byte("the other side is due as well"), unix.EPOLLIN)
	s.want(r, host, "the other side is due as well")

	s.batch.open = false
	r = s.relayed()
	s.says(r, client, []byte("no batch"), unix.EPOLLIN)
	s.want(r, host, "no batch")
}

// Before anything else happens to a connection its piece is sent: its
// descriptors may belong to another connection afterwards.
func TestBatchIsSentBeforeItsConnectionIsTouched(t *testing.T) {
	s := newStage(t)
	t.Run("the other side speaks", func(*testing.T) {
		r := s.relayed()
		s.says(r, client, []byte("request"), unix.EPOLLIN)
		s.says(r, host, []byte("answer"), unix.EPOLLIN)
		s.want(r, host, "request")
		s.sendBatch()
		s.want(r, client, "answer")
	})
	t.Run("both sides end", func(t *testing.T) {
		r := s.relayed()
		r.c.moved[host] = 1 // so that the end is passed on
		s.says(r, client, []byte("last"), unix.EPOLLIN)
		for k := client; k <= host; k++ {
			if e := shutdown(r.ends[k], unix.SHUT_WR); e != 0 {
				t.Fatal(e)
			}
			s.hears(r, k, unix.EPOLLIN|unix.EPOLLRDHUP)
		}
		if r.c.state != free {
			t.Fatalf("the connection is in state %d, want it over", r.c.state)
		}
		s.want(r, host, "last")
	})
	t.Run("a client connects", func(t *testing.T) {
		r := s.relayed()
		s.says(r, client, []byte("request"), unix.EPOLLIN)
		called := false
		s.post(func() {
			called = true
			s.want(r, host, "request")
		})
		s.handle(&unix.EpollEvent{Events: unix.EPOLLIN, Fd: slotWake})
		if !called {
			t.Error("the call was not made")
		}
	})
}

// A piece that the other side does not take is kept for it, or, when nothing was
// ever exchanged and the host has failed, for the next one.
func TestBatchThatIsNotTaken(t *testing.T) {
	s := newStage(t)
	r := s.relayed()
	filled := 0
	for e := unix.Errno(0); e == 0; {
		var n int
		n, e = send(r.c.fd[host], make([]byte, 4<<10), 0)
		filled += max(n, 0)
	}
	s.says(r, client, []byte("waits"), unix.EPOLLIN)
	s.sendBatch()
	if r.c.ready[host]&writable != 0 || !s.holds(r.c, client) {
		t.Fatal("the piece is not kept")
	}
	for got := 0; got < filled; {
		got += len(s.got(r, host))
	}
	s.hears(r, host, unix.EPOLLOUT)
	s.want(r, host, "waits")

	r = s.relayed()
	s.says(r, client, []byte("for the next host"), unix.EPOLLIN)
	if e := shutdown(r.ends[host], unix.SHUT_RDWR); e != 0 {
		t.Fatal(e)
	}
	s.sendBatch()
	if r.c.state != waiting || !s.holds(r.c, client) {
		t.Errorf("state %d, holds %v; want the client to wait with its bytes", r.c.state, s.holds(r.c, client))
	}
}

// The end of a stream that is known when its last bytes are sent leaves with
// them, so that the other side is woken once. Bytes that are not the last are
// not held back, nothing is lost or sent twice, and a reset does not count as
// an end.
func TestEndLeavesWithItsBytes(t *testing.T) {
	// The client's end is always TCP; the host's is TCP if the argument tcp is
	// true, otherwise a unix socket.
	begin := func(t *testing.T, tcp bool) (stage, relayed) {
		t.Helper()
		s := newStage(t)
		r := s.relayed()
		for k := client; k <= host; k++ {
			if k == client || tcp {
				closeFd(r.c.fd[k])
				closeFd(r.ends[k])
				r.c.fd[k], r.ends[k] = pairTCP(t)
			}
		}
		return s, r
	}
	arrived := func(t *testing.T, r relayed, n int) {
		t.Helper()
		proctest.Until(t, "the bytes", func() bool {
			got, _ := recv(r.ends[client], make([]byte, 64), unix.MSG_PEEK)
			return got == n
		})
	}
	over := func(t *testing.T, r relayed) (e unix.Errno) {
		t.Helper()
		proctest.Until(t, "the end", func() bool {
			var n int
			n, e = recv(r.ends[client], make([]byte, 64), 0)
			return n == 0 || e != errAgain && e != 0
		})
		return e
	}
	put := func(t *testing.T, r relayed, p string) {
		t.Helper()
		if n, e := send(r.ends[host], []byte(p), 0); n != len(p) || e != 0 {
			t.Fatal(n, e)
		}
	}
	for _, c := range []struct {
		name     string
		first    string // arrives separately, and a read stops behind it
		rest     string
		prepare  func(s stage)
		segments uint32 // that bytes and end come in; 0 is any number
	}{
		{name: "end", rest: "last words", segments: 1},
		{name: "more bytes", first: "last ", rest: "words"},
		{name: "looked at only", rest: "last words", prepare: func(s stage) { s.pipes.limit = 0 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, r := begin(t, false)
			if c.prepare != nil {
				c.prepare(s)
			}
			before := segmentsIn(t, r.ends[client])
			if c.first != "" {
				// A read stops behind bytes that come with a descriptor; see unix(7).
				rights := unix.UnixRights(int(r.ends[host]))
				if err := unix.Sendmsg(int(r.ends[host]), []byte(c.first), rights, nil, 0); err != nil {
					t.Fatal(err)
				}
			}
			put(t, r, c.rest)
			shutdown(r.ends[host], unix.SHUT_WR)
			s.hears(r, host, unix.EPOLLIN|unix.EPOLLRDHUP)
			s.sendBatch()
			arrived(t, r, len("last words"))
			s.want(r, client, "last words")
			if e := over(t, r); e != 0 {
				t.Errorf("instead of the end came %v", e)
			}
			if n := segmentsIn(t, r.ends[client]) - before; c.segments != 0 && n != c.segments {
				t.Errorf("bytes and end came in %d segments, want %d", n, c.segments)
			}
		})
	}
	t.Run("no end yet", func(t *testing.T) {
		s, r := begin(t, false)
		s.says(r, host, []byte("words"), unix.EPOLLIN|unix.EPOLLRDHUP)
		s.sendBatch()
		if n, err := unix.IoctlGetInt(int(r.c.fd[client]), unix.SIOCOUTQNSD); err != nil || n != 0 {
			t.Errorf("%d bytes are held back (%v)", n, err)
		}
		arrived(t, r, 5)
	})
	t.Run("reset", func(t *testing.T) {
		s, r := begin(t, true)
		put(t, r, "cut short")
		unix.SetsockoptLinger(int(r.ends[host]), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		closeFd(r.ends[host])
		r.ends[host] = -1
		proctest.Until(t, "the reset", func() bool {
			info, err := unix.GetsockoptTCPInfo(int(r.c.fd[host]), unix.IPPROTO_TCP, unix.TCP_INFO)
			return err == nil && info.State == 7 // TCP_CLOSE
		})
		s.hears(r, host, unix.EPOLLIN|unix.EPOLLRDHUP)
		s.sendBatch()
		arrived(t, r, 9)
		s.want(r, client, "cut short")
		s.now += int64(time.Second)
		s.passTime()
		if e := over(t, r); e != unix.ECONNRESET {
			t.Errorf("a stream that was cut short ended with %v, want a reset", e)
		}
	})
}

func segmentsIn(t *testing.T, fd int32) uint32 {
	t.Helper()
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		t.Fatal(err)
	}
	return info.Segs_in
}

// A direction that goes back to plain reads for an urgent byte returns its pipe
// to the pool, even if it keeps bytes in a buffer then.
func TestUrgentByteGivesPipeBack(t *testing.T) {
	s := newStage(t)
	r := s.relayed()
	pipe, ok := s.pipes.take(s.clock)
	if !ok {
		t.Skip("the system gives no pipes of a useful size")
	}
	r.c.half[client].flags |= splicing
	r.c.half[client].store = -pipe - 1
	for e := unix.Errno(0); e == 0; {
		_, e = send(r.c.fd[host], make([]byte, 4<<10), 0)
	}
	s.says(r, client, []byte("kept"), unix.EPOLLIN|unix.EPOLLPRI)
	s.oneTurn()
	s.sendBatch()
	if !s.holds(r.c, client) {
		t.Fatal("the bytes are not kept")
	}
	if free := len(s.pipes.free); free != s.pipes.open {
		t.Errorf("%d of %d pipes are in the pool", free, s.pipes.open)
	}
}

// A client that is denied takes no place under the limit.
func TestDeniedClientsTakeNoPlace(t *testing.T) {
	r := newRelay(complete(Config{
		Engine: engine(1), Listen: []string{"127.0.0.1:0"},
		MaxConnections: 1, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
	}))
	if err := r.Bind(); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l := idleLoops(t, r, 1)[0]
	to := listen(t, "127.0.0.1:0")
	defer to.Close()
	gate, err := newGate(1, to.Addr().String())
	if err == nil {
		err = r.listen(r.listeners[0])
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"127.0.0.2", "127.0.0.3", "127.0.0.1"} {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", r.listeners[0].Addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	r.gate.Store(gate)
	l.updateTime()
	l.acceptQueued(l.tenants[0], r.listeners[0])
	if denied := r.Stats().Denied; l.live.Load() != 1 || denied != 2 {
		t.Errorf("%d let in, %d denied, want 1 and 2", l.live.Load(), denied)
	}
}

// A burst of clients that one loop accepts is spread over all that are awake, when
// none of them has room.
func TestBurstIsSpread(t *testing.T) {
	r := newRelay(complete(Config{Engine: engine(3), Listen: []string{"127.0.0.1:0"}}))
	if err := r.Bind(); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	all := idleLoops(t, r, 3)
	for _, l := range all {
		l.load.awake.Store(true)
		l.load.busy.Store(1000)
	}
	to := listen(t, "127.0.0.1:0")
	defer to.Close()
	gate, err := newGate(1, to.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.listen(r.listeners[0]); err != nil {
		t.Fatal(err)
	}
	for range 48 {
		c, err := net.Dial("tcp", r.listeners[0].Addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	r.gate.Store(gate)
	all[0].updateTime()
	all[0].acceptQueued(all[0].tenants[0], r.listeners[0])
	for k, l := range all {
		if n := l.live.Load(); n < 16-9 || n > 16+9 {
			t.Errorf("loop %d has %d of 48 connections", k, n)
		}
		if k > 0 {
			l.woken() // takes the clients that were assigned to it
		}
		l.each(nil, func(i int32, c *conn) { l.drop(i, c, true) })
		if n := l.live.Load(); n != 0 {
			t.Errorf("loop %d counts %d connections after the end of all", k, n)
		}
	}
	if n := r.live.Load(); n != 0 {
		t.Errorf("the relay counts %d connections after the end of all", n)
	}
}

// A batch counts as use of its connections.
func TestBatchKeepsConnectionsFromIdling(t *testing.T) {
	s := newStage(t)
	r := s.relayed()
	s.now += int64(time.Minute)
	s.says(r, client, []byte("awake"), unix.EPOLLIN)
	s.sendBatch()
	if r.c.since != s.now {
		t.Errorf("last used at %d, want %d", r.c.since, s.now)
	}
}
