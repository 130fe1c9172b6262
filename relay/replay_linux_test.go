//go:build !portable

package relay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

// opener is a host that records what clients say first. Each begins with a
// number of 8 bytes.
type opener struct {
	mu   sync.Mutex
	said map[uint64][]string // by client, one for each connection
}

func (o *opener) note(id uint64, said []byte) (again bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.said == nil {
		o.said = map[uint64][]string{}
	}
	o.said[id] = append(o.said[id], string(said))
	return len(o.said[id]) > 1
}

func (o *opener) of(id uint64) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.said[id]
}

// opens is an opening of n bytes, 8 at least, of a client with a number.
func opens(id uint64, n int) []byte {
	b := binary.BigEndian.AppendUint64(nil, id)
	for k := range n - 8 {
		b = append(b, byte(k*7+int(id)))
	}
	return b
}

// How the first host ends a connection.
const (
	endReset  = iota
	endFIN    // without an answer
	endNever  // the relay is fenced
	endChoice // their number
)

// A client whose host has not answered when it fails, or is fenced, is served by
// the next one, which gets the opening once and whole. A host that has answered
// even one byte is never left. Openings are cut at random, hosts end at any byte.
func TestReplayProperty(t *testing.T) {
	t.Parallel()
	const rounds, clients = 6, 40
	for round := range rounds {
		rnd := rand.New(rand.NewPCG(uint64(round), 3))
		type plan struct {
			opening       []byte
			pieces        []int
			reads, answer int // of the first host
			end           int
		}
		var plans []plan
		for id := range uint64(clients) {
			p := plan{opening: opens(id, 8+rnd.IntN(200)), answer: rnd.IntN(4) / 3, end: rnd.IntN(endChoice)}
			switch rnd.IntN(6) {
			case 0:
				p.opening = opens(id, 8+rnd.IntN(openingMost-8+1))
			case 1:
				p.opening = opens(id, openingMost+1+rnd.IntN(4<<10))
			}
			p.reads = 8 + rnd.IntN(len(p.opening)-8+1)
			for left := len(p.opening); left > 0; {
				n := 1 + rnd.IntN(left)
				p.pieces, left = append(p.pieces, n), left-n
			}
			plans = append(plans, p)
		}
		var first, second opener
		one := newHost(t, func(c *net.TCPConn) {
			head := make([]byte, 8)
			if _, err := io.ReadFull(c, head); err != nil {
				return
			}
			id := binary.BigEndian.Uint64(head)
			p := plans[id]
			rest := make([]byte, p.reads-8)
			if _, err := io.ReadFull(c, rest); err != nil {
				return
			}
			if first.note(id, append(head, rest...)) {
				io.Copy(io.Discard, c) // it hangs from now on
				return
			}
			c.Write([]byte("1")[:p.answer])
			switch p.end {
			case endReset:
				c.SetLinger(0)
			case endFIN:
			default:
				io.Copy(io.Discard, c)
			}
		})
		two := newHost(t, func(c *net.TCPConn) {
			head := make([]byte, 8)
			if _, err := io.ReadFull(c, head); err != nil {
				return
			}
			id := binary.BigEndian.Uint64(head)
			rest := make([]byte, len(plans[id].opening)-8)
			n, _ := io.ReadFull(c, rest)
			second.note(id, append(head, rest[:n]...))
			io.WriteString(c, "2")
			io.Copy(io.Discard, c)
		})
		r := start(t, Config{Engine: engine(2), Replay: func([]byte) bool { return true }})
		r.open(1, one.addr)
		var all sync.WaitGroup
		answers := make([]string, clients)
		for id, p := range plans {
			c := r.dial()
			all.Go(func() {
				b := p.opening
				for _, n := range p.pieces {
					if _, err := c.Write(b[:n]); err != nil {
						break
					}
					b = b[n:]
					time.Sleep(time.Duration(len(b)%3) * time.Millisecond) // so that pieces arrive apart
				}
				got := make([]byte, 1)
				n, _ := c.Read(got)
				answers[id] = string(got[:n])
			})
		}
		proctest.Until(t, "the first host has heard all", func() bool {
			first.mu.Lock()
			defer first.mu.Unlock()
			return len(first.said) == clients
		})
		r.Hold()
		r.Fence(t.Context(), 2, "", FencePolicy{})
		r.open(2, two.addr)
		all.Wait()
		for id, p := range plans {
			id := uint64(id)
			got, what := second.of(id), fmt.Sprintf("round %d, %d bytes of which the first host read %d, answered %d and ended as %d", round, len(p.opening), p.reads, p.answer, p.end)
			switch {
			case p.answer > 0:
				if len(got) != 0 || answers[id] == "2" {
					t.Errorf("%s: a host that had answered was left", what)
				}
			case len(p.opening) > openingMost && len(got) == 0:
				if answers[id] != "" {
					t.Errorf("%s: %q came back", what, answers[id])
				}
			default:
				if len(got) != 1 || !bytes.Equal([]byte(got[0]), p.opening) || answers[id] != "2" {
					t.Errorf("%s: the second host was told it %d times, %q came back", what, len(got), answers[id])
				}
			}
		}
	}
}

// What is replayed is for the settings to decide.
func TestReplayIsAllowed(t *testing.T) {
	t.Parallel()
	const said = "GET / HTTP/1.1\r\n\r\n"
	for name, replay := range map[string]func([]byte) bool{
		"no": func([]byte) bool { return false }, "off": nil,
		"yes": func(b []byte) bool { return string(b) == said },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			heard, over := make(chan string, 8), make(chan struct{})
			one := newHost(t, func(c *net.TCPConn) {
				b := make([]byte, len(said))
				io.ReadFull(c, b)
				heard <- string(b)
				<-over // it hangs
			})
			t.Cleanup(func() { close(over) })
			two := newHost(t, func(c *net.TCPConn) {
				b := make([]byte, len(said))
				if _, err := io.ReadFull(c, b); err != nil {
					return
				}
				heard <- string(b)
				io.WriteString(c, "two")
			})
			r := start(t, Config{Replay: replay})
			r.open(1, one.addr)
			c := r.dial()
			io.WriteString(c, said)
			c.CloseWrite()
			<-heard
			r.Hold()
			f := r.Fence(t.Context(), 2, "", FencePolicy{})
			r.open(2, two.addr)
			if name != "yes" {
				wantReset(t, "a client whose opening may not be repeated", c, nil)
				if s := r.Stats(); f.Reset != 1 || s.Unanswered != 1 || s.Replayed != 0 {
					t.Errorf("%+v, %+v, want one reset and counted as unanswered", f, s)
				}
				return
			}
			if got, err := io.ReadAll(c); string(got) != "two" || err != nil {
				t.Errorf("%q, %v came back", got, err)
			}
			if got := <-heard; got != said {
				t.Errorf("the second host was told %q", got)
			}
			if s := r.Stats(); f.Moved != 1 || s.Replayed != 1 || s.Unanswered != 0 {
				t.Errorf("%+v, %+v, want one moved and replayed", f, s)
			}
		})
	}
}

// PROXY headers are sent anew, in front of the opening.
func TestReplayWithProxyHeader(t *testing.T) {
	t.Parallel()
	one := newHost(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	heard := make(chan string, 1)
	two := newHost(t, func(c *net.TCPConn) {
		b := make([]byte, 4<<10)
		var got []byte
		for !bytes.HasSuffix(got, []byte("PING\r\n")) {
			n, err := c.Read(b)
			if err != nil {
				break
			}
			got = append(got, b[:n]...)
		}
		heard <- string(got)
		io.WriteString(c, "+PONG\r\n")
	})
	r := start(t, Config{SendProxy: 1, Replay: func(b []byte) bool { return string(b) == "PING\r\n" }})
	r.open(1, one.addr)
	c := r.dial()
	io.WriteString(c, "PING\r\n")
	proctest.Until(t, "it was passed on", func() bool { return r.Stats().Sent == 6 })
	r.Hold()
	r.Fence(t.Context(), 2, "", FencePolicy{})
	r.open(2, two.addr)
	if got := readSome(t, c, 7); got != "+PONG\r\n" {
		t.Errorf("%q came back", got)
	}
	want := fmt.Sprintf("PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\nPING\r\n", c.LocalAddr().(*net.TCPAddr).Port, c.RemoteAddr().(*net.TCPAddr).Port)
	if got := <-heard; got != want {
		t.Errorf("the second host was told %q, want %q", got, want)
	}
}

// An established connection keeps nothing of its opening, and neither does one
// whose client goes on for too long.
func TestOpeningsAreForgotten(t *testing.T) {
	s := newStage(t)
	s.replaying()
	kept := func() (n int) {
		for _, b := range s.openings.all {
			if b.data != nil {
				n++
			}
		}
		return n
	}
	r := s.relayed()
	s.remember(r.c, []byte("hello"))
	s.remember(r.c, bytes.Repeat([]byte("x"), 3<<10))
	if n := len(s.openings.all[r.c.opening-1].rest); kept() != 1 || n != 5+(3<<10) {
		t.Errorf("%d openings, %d bytes", kept(), n)
	}
	s.count(r.c, host, 1)
	if kept() != 0 || r.c.opening != 0 {
		t.Error("an opening is kept after the host has answered")
	}
	s.remember(r.c, []byte("more"))
	if kept() != 0 {
		t.Error("what comes after an answer is kept")
	}
	r = s.relayed()
	s.remember(r.c, bytes.Repeat([]byte("x"), openingMost))
	s.remember(r.c, []byte("x"))
	s.remember(r.c, []byte("x"))
	if kept() != 0 || r.c.opening != 0 {
		t.Error("an opening that is too long is kept")
	}
	r.c.moved[client] = openingMost + 2
	if s.canMove(r.c) {
		t.Error("the rest of a long opening would be replayed")
	}
	r = s.relayed()
	s.remember(r.c, []byte("hello"))
	s.end(r.i, r.c, clientReset)
	if kept() != 0 {
		t.Error("the opening of a connection that has ended is kept")
	}
}

// replaying lets the relay of a stage repeat any opening.
func (s stage) replaying() {
	cfg := s.tenants[0].cfg().Config
	cfg.Replay = func([]byte) bool { return true }
	s.tenants[0].relay.cfg.Store(newSettings(cfg))
}

// A client that has been connected for long when its host fails has all of Hold to get
// another host, whether it waits for an answer or has sent nothing yet.
func TestHoldBeginsWhenTheHostFails(t *testing.T) {
	for _, opening := range []string{"", "hello"} {
		s := newStage(t)
		s.replaying()
		s.batch.open = false
		r := s.relayed()
		r.c.since, r.c.began = s.now, s.now
		if opening != "" {
			s.says(r, client, []byte(opening), unix.EPOLLIN)
			s.want(r, host, opening)
		}
		hold := int64(s.tenants[0].cfg().Hold)
		s.now += 2 * hold
		_ = unix.Shutdown(int(r.ends[host]), unix.SHUT_RDWR)
		s.hears(r, host, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP)
		if r.c.state != waiting {
			t.Fatalf("after %q the client is in state %d, want waiting", opening, r.c.state)
		}
		s.now += hold - 1
		s.overdue(r.i, r.c)
		if r.c.state != waiting {
			t.Errorf("after %q the client was given up before it had waited for Hold", opening)
			continue
		}
		s.now++
		s.overdue(r.i, r.c)
		if r.c.state != free || s.tenants[0].counts.Expired != 1 {
			t.Errorf("after %q the client is kept for longer than Hold", opening)
		}
	}
}

// The beginning of bulk is no opening, even if the host takes less of it at first than
// an opening may have, and a pipe carries the rest.
func TestBeginningOfBulkIsNoOpening(t *testing.T) {
	s := newStage(t)
	s.replaying()
	s.batch.open = false
	r := s.relayed()
	_ = unix.SetsockoptInt(int(r.c.fd[host]), unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<10)
	limit := s.pipes.limit
	s.pipes.limit = 0 // bytes are only peeked at
	s.says(r, client, make([]byte, 2*chunk), unix.EPOLLIN)
	if n := r.c.moved[client]; n == 0 || n > openingMost {
		t.Fatalf("the host took %d bytes at first, want 1 to %d", n, openingMost)
	}
	s.pipes.limit = limit
	for r.c.moved[client] <= openingMost {
		if s.got(r, host) == "" {
			t.Fatal("the rest does not arrive")
		}
		s.hears(r, host, unix.EPOLLOUT)
		s.oneTurn()
	}
	if s.canMove(r.c) {
		t.Errorf("of %d bytes that the host has, an opening would be replayed", r.c.moved[client])
	}
}

// The longest opening takes no more memory than it has bytes.
func TestLongestOpeningTakesItsOwnSize(t *testing.T) {
	s := newStage(t)
	cfg := s.tenants[0].cfg().Config
	cfg.Replay = func([]byte) bool { return true }
	s.tenants[0].relay.cfg.Store(newSettings(cfg))
	r := s.relayed()
	s.remember(r.c, bytes.Repeat([]byte("x"), openingMost/2+1))
	s.remember(r.c, bytes.Repeat([]byte("x"), openingMost/2-1))
	if b := s.openings.all[r.c.opening-1]; len(b.rest) != openingMost || len(b.data) != openingMost {
		t.Errorf("an opening of %d bytes is kept in %d", len(b.rest), len(b.data))
	}
}

// A client whose opening is kept for another host counts as replayed when that has
// got it, and as unanswered when it was reset before.
func TestReplayIsCountedWhenItHappens(t *testing.T) {
	t.Parallel()
	for name, hold := range map[string]time.Duration{"no hold": zero, "hold expires": 100 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			over := make(chan struct{})
			one := newHost(t, func(*net.TCPConn) { <-over })
			t.Cleanup(func() { close(over) })
			r := start(t, Config{Hold: hold, Replay: func([]byte) bool { return true }})
			r.open(1, one.addr)
			c := r.dial()
			io.WriteString(c, "PING\r\n")
			proctest.Until(t, "it was passed on", func() bool { return r.Stats().Sent == 6 })
			r.Hold()
			r.Fence(t.Context(), 2, "", FencePolicy{})
			wantReset(t, "a client without a second host", c, nil)
			proctest.Until(t, "it has ended", func() bool { return r.Stats().Live == 0 })
			if s := r.Stats(); s.Replayed != 0 || s.Unanswered != 1 || s.Expired != 1 {
				t.Errorf("%+v, want it expired and unanswered, and nothing replayed", s)
			}
		})
	}
}
