package relay

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// switchedLease is a lease that the test ends.
type switchedLease struct{ over atomic.Bool }

func (l *switchedLease) Holds(time.Duration) bool { return !l.over.Load() }

// When the lease is over no byte passes any more, and all connections are reset, whatever
// the gate says; when it holds again, clients are served.
func TestLeaseOver(t *testing.T) {
	t.Parallel()
	lease := new(switchedLease)
	ends := make(chan Ending, 10)
	r, hosts := startPairs(t, Config{Lease: lease, Hold: time.Minute, Ended: func(e Ending) { ends <- e }})
	client, host := r.pair(hosts)
	idle, idleHost := r.pair(hosts)

	lease.over.Store(true)
	if _, err := client.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	wantReset(t, "the host of a client that sent a byte", host, nil)
	wantReset(t, "the client", client, nil)
	wantReset(t, "an idle client", idle, nil)
	wantReset(t, "its host", idleHost, nil)
	for range 2 {
		if e := <-ends; e.Why != "lease over" || e.Outcome != "fenced" {
			t.Errorf("it ended as %s, %s", e.Outcome, e.Why)
		}
	}

	// The gate is still open, but leads nowhere.
	waits := r.dial()
	if _, err := io.WriteString(waits, "x"); err != nil {
		t.Fatal(err)
	}
	proctest.Until(t, "the client is held", func() bool { return r.Waiting().Held == 1 })
	if err := hosts.(*net.TCPListener).SetDeadline(time.Now().Add(3 * leaseRetry)); err != nil {
		t.Fatal(err)
	}
	if c, err := hosts.Accept(); err == nil {
		c.Close()
		t.Fatal("a client was connected without a lease")
	}
	if err := hosts.(*net.TCPListener).SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}

	lease.over.Store(false)
	c, err := hosts.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	readSome(t, c, 1)
}

// The lease ends while connections are busy: what the host has got then is a beginning of
// what was sent, and the connection ends for both.
func TestLeaseOverUnderLoad(t *testing.T) {
	t.Parallel()
	lease := new(switchedLease)
	r, hosts := startPairs(t, Config{Lease: lease})
	client, host := r.pair(hosts)
	go func() {
		block := make([]byte, 64<<10)
		for {
			if _, err := client.Write(block); err != nil {
				return
			}
		}
	}()
	readSome(t, host, 4<<20)
	lease.over.Store(true)
	if _, err := io.Copy(io.Discard, host); err == nil {
		t.Error("the host got a clean end")
	}
	proctest.Until(t, "the connection has ended", func() bool { return r.Stats().Live == 0 })
	if s := r.Stats(); s.Fenced != 1 {
		t.Errorf("stats %+v: want it fenced", s)
	}
}

// A connection that ends cleanly is delivered to its end with a lease too, although
// the end of the process would throw away what is on the way to the host.
func TestLeaseDeliversCleanEnds(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{Lease: new(switchedLease)})
	client, host := r.pair(hosts)
	if err := host.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	const size = 300_000
	if _, err := client.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	proctest.Until(t, "the connection has ended", func() bool { return r.Stats().Live == 0 })
	if n, err := io.Copy(io.Discard, host); err != nil || n != size {
		t.Errorf("the host got %d of %d bytes, %v", n, size, err)
	}
}
