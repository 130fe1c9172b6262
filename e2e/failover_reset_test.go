//go:build linux

package e2e

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// resetter is a host in this process that greets until the test has it reset
// every connection that it accepts.
type resetter struct {
	addr   string
	broken atomic.Bool
}

func newResetter(t *testing.T) *resetter {
	t.Helper()
	listener := listen(t)
	r := &resetter{addr: listener.Addr().String()}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if r.broken.Load() {
				conn.(*net.TCPConn).SetLinger(0)
			} else {
				conn.Write([]byte("a\n"))
			}
			conn.Close()
		}
	}()
	return r
}

// F04: the primary accepts and resets. The check notices, there is one switch,
// and no client sees a clean end.
func TestPrimaryThatResets(t *testing.T) {
	t.Parallel()
	a, b := newResetter(t), newWitness(t, "b")
	addr := freeAddr(t)
	u := start(t, "--bind", addr, "--hosts", a.addr+","+b.addr)
	awaitGreeting(t, u, addr, "a")
	clients := load(t, u, addr)
	a.broken.Store(true)
	broken := time.Now()
	awaitGreeting(t, u, addr, "b")
	report := finish(u, clients)
	t.Logf("%v; b answered %v after the fault", report, time.Since(broken))
	for _, c := range report.Lost() {
		if !errors.Is(c.Err, syscall.ECONNRESET) {
			t.Errorf("a client of a host that resets saw %v, want a reset", c.Err)
			break
		}
	}
	wantElections(t, u, 2)
	end(t, u)
}

// F04: something in between answers for the primary with resets.
func TestRejectedConnects(t *testing.T) {
	t.Parallel()
	if !isolate(t, "nft") {
		return
	}
	a, b := newWitness(t, "a"), newWitness(t, "b")
	addr := freeAddr(t)
	u := start(t, "--bind", addr, "--hosts", a.addr+","+b.addr)
	awaitGreeting(t, u, addr, "a")
	first := lookAt(t, u.PID())
	clients := load(t, u, addr)
	run(t, "nft add table inet fault")
	run(t, "nft", "add chain inet fault input { type filter hook input priority 0; }")
	run(t, "nft add rule inet fault input tcp dport", a.port(), "reject with tcp reset")
	broken := time.Now()
	awaitGreeting(t, u, addr, "b")
	report := finish(u, clients)
	t.Log(report)
	for _, c := range report.Lost() {
		// Clients that a had accepted before may be reset; later ones may not.
		if c.Start.After(broken) {
			t.Errorf("a client that came %v after the fault saw %v", c.Start.Sub(broken), c.Err)
		}
	}
	lookAgain(t, u, first, addr, "b")
	end(t, u)
}
