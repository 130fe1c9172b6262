//go:build !portable

package relay

import (
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

func TestUsualAnswer(t *testing.T) {
	var a latencies
	for range 99 {
		a.add(time.Millisecond)
	}
	if got := a.usual(); got != 0 {
		t.Errorf("after 99 answers the usual time is %v, want none", got)
	}
	a.add(time.Hour)
	if got := a.usual(); got < time.Millisecond || got > 2*time.Millisecond {
		t.Errorf("99 answers in 1ms and one in an hour: %v", got)
	}
	a.add(time.Hour)
	if got := a.usual(); got < time.Hour/2 {
		t.Errorf("99 answers in 1ms and two in an hour: %v", got)
	}
	last := 0
	for d := time.Microsecond; d < 2*time.Hour; d += d/7 + 1 {
		if s := step(d); s < last {
			t.Fatalf("%v is in step %d, after step %d", d, s, last)
		} else {
			last = s
		}
	}
	var longest latencies
	for range 100 {
		longest.add(time.Hour)
	}
	if got := longest.usual(); got < time.Hour/2 || got > 2*time.Hour { // 32 bits are too few for the steps
		t.Errorf("100 answers in an hour: %v", got)
	}
	for range 1 << 20 {
		a.add(time.Second) // the host has become slow
	}
	if got := a.usual(); got < time.Second/2 || got > 2*time.Second {
		t.Errorf("after a million answers in 1s: %v", got)
	}
}

// A host that accepts clients and answers none is reported; one that answers any client,
// or whose clients do not expect an answer, is not.
func TestHang(t *testing.T) {
	t.Parallel()
	hangs := func(c *net.TCPConn) { io.Copy(io.Discard, c) }
	// three answers three times and then not any more.
	three := func(c *net.TCPConn) {
		b := make([]byte, 16)
		for range 3 {
			if _, err := c.Read(b); err != nil {
				return
			}
			io.WriteString(c, "yes")
		}
		hangs(c)
	}
	for _, tt := range []struct {
		name    string
		host    func(*net.TCPConn)
		from    []string
		silent  bool // clients say nothing
		unknown bool // clients say what may not be sent again
		rounds  int  // of question and answer before
		others  bool // another client is answered all the time
		want    bool
	}{
		{name: "three of two addresses", host: hangs, from: []string{"127.0.0.1", "127.0.0.1", "127.0.0.2"}, want: true},
		{name: "two clients", host: hangs, from: []string{"127.0.0.1", "127.0.0.2"}},
		{name: "three of one address", host: hangs, from: slices.Repeat([]string{"127.0.0.1"}, 3)},
		{name: "ten of one address", host: hangs, from: slices.Repeat([]string{"127.0.0.1"}, 10), want: true},
		{name: "a host that never answers, of clients that are not known", host: hangs, from: slices.Repeat([]string{"127.0.0.1"}, 10), unknown: true},
		{name: "clients that say nothing", host: hangs, from: slices.Repeat([]string{"127.0.0.1"}, 10), silent: true},
		{name: "others are answered", host: func(c *net.TCPConn) {
			b := make([]byte, 4)
			for {
				if n, err := c.Read(b); err != nil {
					return
				} else if string(b[:n]) == "echo" {
					c.Write(b[:n])
				}
			}
		}, from: slices.Repeat([]string{"127.0.0.1"}, 10), others: true},
		{name: "after three answers", host: three, rounds: 3, from: slices.Repeat([]string{"127.0.0.1"}, 10), want: true},
		{name: "after one answer", host: func(c *net.TCPConn) {
			io.WriteString(c, "hello")
			hangs(c)
		}, rounds: -1, from: slices.Repeat([]string{"127.0.0.1"}, 10)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, tt.host)
			var s suspicions
			r := start(t, Config{Engine: engine(2), Suspect: s.add, Replay: func(b []byte) bool { return string(b) == "hello" }})
			r.open(7, h.addr)
			var all []*net.TCPConn
			for _, from := range tt.from {
				c, err := dialFrom(t, from, r.addr)
				if err != nil {
					t.Fatal(err)
				}
				if tt.rounds < 0 {
					readSome(t, c, 5)
				}
				for range tt.rounds {
					io.WriteString(c, "well?")
					readSome(t, c, 3)
				}
				all = append(all, c)
			}
			for _, c := range all { // no client is answered from now on
				switch {
				case tt.unknown:
					io.WriteString(c, "<34>1 a record")
				case !tt.silent:
					io.WriteString(c, "hello")
				}
			}
			if tt.others {
				over := make(chan struct{})
				t.Cleanup(func() { close(over) })
				c := r.dial()
				go func() {
					for {
						io.WriteString(c, "echo")
						c.Read(make([]byte, 4))
						select {
						case <-over:
							return
						case <-time.After(HangTick / 10): // the pace of a client
						}
					}
				}()
			}
			reported := func() bool {
				hang := r.Hang()
				return s.last() != nil && strings.Contains(s.last().Error(), "answered none of") && hang.Epoch == 7 && hang.Clients == len(tt.from) && hang.For >= HangAfter &&
					hang.Replayable == (tt.rounds == 0)
			}
			if tt.want {
				proctest.Until(t, "the host is reported", reported)
				return
			}
			time.Sleep(hangUnknown + 3*HangTick) // long enough to be noticed
			if h := r.Hang(); h.Hangs() || reported() {
				t.Errorf("the host is said to hang: %v", h)
			}
		})
	}
}

// When the program or the machine has stood still, that is no fault of the host: what
// it has sent could not be read, and the time does not count as one of its answers.
func TestHangAfterStall(t *testing.T) {
	s := newStage(t)
	s.batch.open = false
	s.tenants[0].relay.gate.Store(&gate{epoch: 1})
	var all []relayed
	for range hangAlone {
		r := s.relayed()
		r.c.epoch = 1
		s.says(r, client, []byte("hello"), unix.EPOLLIN)
		all = append(all, r)
	}
	if s.unanswered != hangAlone {
		t.Fatalf("%d clients wait for an answer, want %d", s.unanswered, hangAlone)
	}
	waited := func(d time.Duration) Hang {
		s.engine.start = s.engine.start.Add(-d)
		s.updateTime()
		s.passTime()
		return s.tenants[0].relay.Hang()
	}
	if h := waited(5 * time.Second); h.Hangs() {
		t.Errorf("after a stall: %v", h)
	}
	s.says(all[0], host, []byte("yes"), unix.EPOLLIN)
	slow := 0
	for k, n := range s.tenants[0].hosts.of(0).latencies.steps {
		if k >= step(time.Second) {
			slow += int(n)
		}
	}
	if slow != 0 {
		t.Error("the stall counts as an answer of the host")
	}
	s.says(all[0], client, []byte("?"), unix.EPOLLIN) // expects no answer, see hangTurns
	r := s.relayed()
	r.c.epoch = 1
	s.now++ // after the answer
	for _, r := range all[1:] {
		r.c.unansweredSince = s.now
	}
	s.says(r, client, []byte("hello"), unix.EPOLLIN)
	for range hangUnknown/HangTick - 1 {
		if h := waited(HangTick); h.Hangs() {
			t.Errorf("before clients have waited for %v: %v", hangUnknown, h)
		}
	}
	waited(HangTick)
	if h := waited(HangTick); h.Clients != hangAlone {
		t.Errorf("%d clients are found to wait after the stall, want %d", h.Clients, hangAlone)
	}
}

// A look for hangs visits each connection once, however many relays there are, and
// keeps the clients of each apart.
func TestFindHangsOfManyRelays(t *testing.T) {
	s := newStage(t)
	s.batch.open = false
	e := s.engine
	for slot := range int32(3) {
		if slot > 0 {
			r := newRelay(complete(Config{Engine: e}))
			p := r.plane.(*share)
			p.slot = slot
			s.addTenant(p.add())
		}
		s.tenants[slot].relay.gate.Store(&gate{epoch: uint64(slot) + 1})
		s.tenants[slot].answered.Store(1) // some client, once
	}
	s.tenants = append(s.tenants, nil) // a free slot
	for slot, n := range []int{hangAlone, hangAlone - 1, hangAlone + 1} {
		for range n {
			r := s.relayed()
			r.c.slot, r.c.epoch = int32(slot), uint64(slot)+1
			if slot > 0 { // the stage entered the first relay
				s.tenants[0].relay.leave()
				s.tenants[slot].relay.enter()
			}
			s.says(r, client, []byte("hello"), unix.EPOLLIN)
		}
	}
	for range hangUnknown/HangTick + 1 {
		e.start = e.start.Add(-HangTick)
		s.updateTime()
		s.passTime()
	}
	for slot, want := range []int{hangAlone, 0, hangAlone + 1} {
		if h := s.tenants[slot].relay.Hang(); h.Clients != want {
			t.Errorf("of the relay in slot %d %d clients wait, want %d", slot, h.Clients, want)
		}
	}
}

// BenchmarkFindHangs is a look of a loop with 10,000 connections of 100 relays.
func BenchmarkFindHangs(b *testing.B) {
	l := &loop{engine: NewEngine(EngineConfig{}), table: table{free: -1, first: -1, last: -1}}
	for slot := range int32(100) {
		p := newRelay(complete(Config{Engine: l.engine})).plane.(*share)
		p.slot = slot
		l.addTenant(p.add())
		p.relay.gate.Store(&gate{epoch: 1})
		for range 100 {
			_, c := l.alloc(slot)
			c.state, c.epoch = relaying, 1
		}
	}
	for b.Loop() {
		l.findHangs()
	}
}
