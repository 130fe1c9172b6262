//go:build !portable

package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// try begins an attempt once nothing is left of the last one, and returns where its outcome
// comes.
func (tr *testRelay) try(ctx context.Context) <-chan error {
	tr.tb.Helper()
	outcome := make(chan error, 2)
	proctest.Until(tr.tb, "an attempt to begin", func() bool { return tr.TryCanary(ctx, func(err error) { outcome <- err }) })
	return outcome
}

// outcome waits for the outcome of an attempt.
func (tr *testRelay) outcome(outcome <-chan error) error {
	tr.tb.Helper()
	select {
	case err := <-outcome:
		return err
	case <-time.After(patience):
		tr.tb.Fatal("an attempt has no outcome")
		return nil
	}
}

// tryable starts a relay that can make attempts that no goroutine waits for.
func tryable(tb testing.TB, cfg Config, host string) *testRelay {
	tb.Helper()
	tr := start(tb, cfg)
	if tr.TryCanary(tb.Context(), func(error) {}) {
		tb.Error("the first attempt makes the twin, and somebody has to wait for it")
	}
	tr.open(1, host)
	c := tr.canary()
	c.wantServed(tb)
	c.Close()
	return tr
}

func TestTryCanary(t *testing.T) {
	t.Parallel()
	host := newSingle(t, func(c *net.TCPConn) {
		io.WriteString(c, "hello") // which nobody reads
		io.Copy(io.Discard, c)
	})
	tr := tryable(t, Config{}, host.addr)
	before := tr.counted()
	for range 5 {
		if err := tr.outcome(tr.try(t.Context())); err != nil {
			t.Errorf("an attempt: %v", err)
		}
	}
	proctest.Until(t, "the attempt to end at its host", func() bool { return host.open.Load() == 0 })
	if n := host.most.Load(); n != 1 {
		t.Errorf("the host had %d canaries at a time", n)
	}
	// A host that leaves it open, one that is gone, and then one that is back.
	stays := newSingle(t, func(c *net.TCPConn) { time.Sleep(time.Second); io.Copy(io.Discard, c) })
	tr.open(2, stays.addr)
	if err := tr.outcome(tr.try(t.Context())); err != nil {
		t.Errorf("an attempt: %v", err)
	}
	if tr.TryCanary(t.Context(), func(error) {}) {
		t.Error("an attempt has begun while the host had the last one")
	}
	c := tr.canary()
	c.wantServed(t)
	c.Close()
	tr.open(3, closed(t))
	late := tr.try(t.Context())
	select {
	case err := <-late:
		t.Errorf("without a host: %v, want that it waits", err)
	case <-time.After(100 * time.Millisecond): // it is tried several times
	}
	tr.open(4, host.addr)
	if err := tr.outcome(late); err != nil {
		t.Errorf("an attempt that has waited: %v", err)
	}
	proctest.Until(t, "the attempt to end", func() bool { return tr.canaries.twin.Load().live.Load() == 0 })
	if after := tr.counted(); after != before {
		t.Errorf("with attempts\n%s\nbefore\n%s", after, before)
	}
}

func TestTryCanaryWaitsAsClientsDo(t *testing.T) {
	t.Parallel()
	host := newHost(t, echo)
	tr := tryable(t, Config{}, host.addr)
	tr.Hold()
	waits := tr.try(t.Context())
	if n := tr.Waiting().Queued; n != 0 {
		t.Errorf("%d clients are queued, and there is only a canary", n)
	}
	select {
	case err := <-waits:
		t.Fatalf("%v while the gate was shut, want that it waits", err)
	case <-time.After(100 * time.Millisecond): // time for a wrong behaviour to show
	}
	tr.open(2, host.addr)
	if err := tr.outcome(waits); err != nil {
		t.Errorf("after the gate has opened: %v", err)
	}
	// When the relay turns to refusing, those who wait are reset.
	tr.Hold()
	waits = tr.try(t.Context())
	tr.Refuse()
	if err := tr.outcome(waits); !isReset(err) {
		t.Errorf("in the queue of a relay that refuses: %v, want a reset", err)
	}
	if _, err := tr.DialCanary(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) { // and what was left is gone
		t.Fatalf("a relay that refuses: %v, want refused", err)
	}
	if err := tr.outcome(tr.try(t.Context())); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a relay that refuses: %v, want refused", err)
	}
	tr.open(3, host.addr)
	if err := tr.outcome(tr.try(t.Context())); err != nil {
		t.Errorf("after it has opened: %v", err)
	}
	// Given up, and the relay ends with one that waits.
	tr.Hold()
	ctx, stop := context.WithCancel(t.Context())
	given := tr.try(ctx)
	stop()
	proctest.Until(t, "the attempt to be given up", func() bool {
		tr.canaries.tries.mu.Lock()
		defer tr.canaries.tries.mu.Unlock()
		return tr.canaries.tries.now == nil
	})
	tr.open(4, host.addr)
	last := tr.try(t.Context())
	if err := tr.outcome(last); err != nil {
		t.Errorf("after one was given up: %v", err)
	}
	select {
	case err := <-given:
		t.Errorf("an attempt that was given up: %v, want nothing", err)
	default:
	}
	tr.Hold()
	last = tr.try(t.Context())
	tr.stop()
	if err := tr.outcome(last); err == nil {
		t.Error("an attempt was served by a relay that ended")
	}
	if s := tr.Stats(); s.Accepted != 0 {
		t.Errorf("stats %+v, and there were no clients", s)
	}
}

// It is reset where a client would be: when its wait is over, and where no client is allowed.
func TestTryCanaryIsReset(t *testing.T) {
	t.Parallel()
	tr := tryable(t, Config{Hold: 50 * time.Millisecond}, newHost(t, echo).addr)
	tr.open(2, closed(t))
	if err := tr.outcome(tr.try(t.Context())); !isReset(err) {
		t.Errorf("after the hold: %v, want a reset", err)
	}
	cfg := Config{Listen: []string{"127.0.0.1:0"}}
	tr = tryable(t, cfg, newHost(t, echo).addr)
	cfg.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	tr.reconfigure(cfg)
	if err := tr.outcome(tr.try(t.Context())); !isReset(err) {
		t.Errorf("where it is not allowed: %v, want a reset", err)
	}
	if s := tr.Stats(); s.Denied != 0 {
		t.Errorf("stats %+v, and there were no clients", s)
	}
}
