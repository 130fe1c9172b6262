//go:build linux && !portable

package relay

import (
	"net"
	"runtime"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// While there are no clients the scheduler has one processor. A client, and the end of the
// engine, gives it all of them back. Canaries are no clients.
//
// It is not parallel to other tests, which it would slow down.
func TestEngineRests(t *testing.T) {
	e := NewEngine(EngineConfig{Rest: true})
	if e.rester.after != restAfter {
		t.Fatalf("it rests after %v, want %v", e.rester.after, restAfter)
	}
	if NewEngine(EngineConfig{}).rester.after != 0 {
		t.Fatal("it rests without being told to")
	}
	if runtime.GOMAXPROCS(0) < 2 {
		runtime.GOMAXPROCS(2)
	}
	e.rester.after = 10 * time.Millisecond
	tr := tryable(t, Config{Engine: e}, newHost(t, echo).addr)
	has := func(procs int) func() bool { return func() bool { return runtime.GOMAXPROCS(0) == procs } }
	proctest.Until(t, "one processor without clients", has(1))
	e.rester.mu.Lock()
	all := e.rester.procs
	e.rester.mu.Unlock()
	if all < 2 {
		t.Fatalf("it had %d processors before", all)
	}
	for range 2 {
		if err := tr.outcome(tr.try(t.Context())); err != nil {
			t.Fatal(err)
		}
		if !has(1)() {
			t.Fatalf("%d processors for a canary", runtime.GOMAXPROCS(0))
		}
		c := tr.dial()
		proctest.Until(t, "all processors for a client", has(all))
		wantEcho(t, "a client", c)
		time.Sleep(3 * time.Second) // the loop considers it each second in which something happens
		wantEcho(t, "a client", c)
		if !has(all)() {
			t.Fatalf("%d processors while there is a client, want %d", runtime.GOMAXPROCS(0), all)
		}
		c.Close()
		proctest.Until(t, "one processor again", has(1))
	}

	// One whose host does not end its connection is none either.
	over := make(chan struct{})
	defer close(over)
	tr.open(2, newHost(t, func(*net.TCPConn) { <-over }).addr)
	if err := tr.outcome(tr.try(t.Context())); err != nil {
		t.Fatal(err)
	}
	c := tr.dial()
	proctest.Until(t, "all processors for a client", has(all))
	proctest.Until(t, "it is accepted", func() bool { return tr.live.Load() == 1 })
	c.SetLinger(0)
	c.Close()
	proctest.Until(t, "one processor beside a canary", has(1))
	if n := tr.canaries.twin.Load().live.Load(); n != 1 {
		t.Errorf("%d canaries, want one", n)
	}

	tr.stop()
	proctest.Until(t, "all processors at the end", has(all))
}
