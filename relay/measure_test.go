package relay

import (
	"io"
	"net"

	"sync"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// lawful fails unless the connections that were accepted are those that have ended and
// those that are open, as they are counted where they change what they do.
func lawful(t *testing.T, m Measured) {
	t.Helper()
	closed := m.Finished + m.Reset + m.Fenced + m.Expired + m.Aborted
	if m.Accepted != closed+uint64(m.Open.Total()) || m.Open.Connecting < 0 || m.Open.Held < 0 || m.Open.Relaying < 0 {
		t.Errorf("accepted %d, closed %d, open %+v", m.Accepted, closed, m.Open)
	}
}

// The law holds at every look under load, with connections that finish, are reset,
// fenced, held, expire and leave.
func TestMeasureIsConsistentUnderLoad(t *testing.T) {
	t.Parallel()
	r, one := startPairs(t, Config{Hold: 50 * time.Millisecond})
	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() { // the host ends every connection in its own way
		for n := 0; ; n++ {
			c, err := one.Accept()
			if err != nil {
				return
			}
			if n%3 == 0 {
				c.(*net.TCPConn).SetLinger(0)
			}
			c.Close()
		}
	})
	for n := range 4 {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.DialTimeout("tcp", r.addr, 5*time.Second)
				if err != nil {
					time.Sleep(time.Millisecond) // refused at this moment
					continue
				}
				if n > 0 {
					c.SetDeadline(time.Now().Add(5 * time.Second))
					io.Copy(io.Discard, c)
				}
				c.Close()
			}
		})
	}
	changed := make(chan struct{})
	all.Go(func() {
		defer close(changed)
		for epoch := uint64(2); epoch < 40; epoch++ {
			time.Sleep(5 * time.Millisecond)
			r.Hold()
			if epoch%4 == 0 {
				r.Refuse()
			}
			r.Fence(t.Context(), epoch, "", FencePolicy{})
			r.open(epoch, one.Addr().String())
		}
	})
	looks := 0
	for over := false; !over; looks++ {
		select {
		case <-changed:
			over = true
		default:
		}
		lawful(t, r.Measure())
		time.Sleep(time.Millisecond)
	}
	close(stop)
	one.Close()
	all.Wait()
	proctest.Until(t, "all have ended", func() bool { return r.Measure().Open.Total() == 0 })
	m := r.Measure()
	lawful(t, m)
	if m.Accepted < 50 || looks < 20 {
		t.Errorf("%d connections and %d looks: too few to show anything", m.Accepted, looks)
	}
}

// A connect is counted for its host with its duration, and a client's first bytes with
// the time until the host's first byte.
func TestMeasureOfHosts(t *testing.T) {
	t.Parallel()
	r, one := startPairs(t, Config{Hold: time.Minute})
	c, s := r.pair(one)
	if _, err := io.WriteString(c, "ask"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	io.WriteString(s, "answer")
	if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	name := one.Addr().String()
	proctest.Until(t, "the answer is counted", func() bool { return r.Measure().Hosts[name].Received == 7 }) // pair has passed one byte
	m := r.Measure()
	h := m.Hosts[name]
	if h.Made != 1 || h.Connect.Count() != 1 || m.Open != (Open{Relaying: 1}) {
		t.Errorf("%d connects, %d durations, %+v, want one of each", h.Made, h.Connect.Count(), m.Open)
	}
	if !portablePlane && h.FirstByte.Count() != 1 {
		t.Errorf("%d first bytes, want 1", h.FirstByte.Count())
	}
	one.Close()
	waits := r.dial()
	proctest.Until(t, "a refused connect is counted", func() bool { return r.Measure().Hosts[name].Refused > 0 })
	proctest.Until(t, "its client is held", func() bool { return r.Measure().Open.Held == 1 })
	waits.SetLinger(0) // a FIN alone does not say that it has left
	waits.Close()
	proctest.Until(t, "it has left", func() bool { m := r.Measure(); return m.HoldGone.Count() == 1 && m.Open.Held == 0 })
}

// A client that waited in the kernel's queue until the gate opened has been held, too.
func TestMeasureOfHolds(t *testing.T) {
	t.Parallel()
	r, one := startPairs(t, Config{Hold: time.Minute})
	r.Hold()
	c := r.dial()
	defer c.Close()
	proctest.Until(t, "the client is in the queue", func() bool { return r.Measure().Queued == 1 })
	const wait = 100 * time.Millisecond
	time.Sleep(wait)
	r.open(2, one.Addr().String())
	s, err := one.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if portablePlane {
		return // it does not know the queue
	}
	proctest.Until(t, "the wait is counted", func() bool { m := r.Measure(); return m.HoldServed.Count() == 1 })
	if m := r.Measure(); m.HoldServed.Sum() < wait/2 {
		t.Errorf("it waited for %v, want at least %v", m.HoldServed.Sum(), wait/2)
	}

	r.Hold()
	d := r.dial()
	defer d.Close()
	proctest.Until(t, "another client is in the queue", func() bool { return r.Measure().Queued == 1 })
	r.Refuse()
	if n := r.Measure().TurnedAway; n != 1 {
		t.Errorf("%d clients were turned away, want 1", n)
	}
}
