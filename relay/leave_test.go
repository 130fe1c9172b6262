package relay

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// Settings that are prepared and then undone have no effect: addresses that
// they would have removed accept clients all the time.
func TestPreparedSettingsAreTakenBack(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "r.sock")
	r := start(t, Config{Listen: []string{"127.0.0.1:0", "unix:" + path}})
	r.open(1, newHost(t, echo).addr)
	addr, socket, fresh := r.at(0), socketAt(t, r.at(0)), closed(t)
	c, err := r.Prepare(complete(Config{Listen: []string{fresh}, MaxConnections: 1}))
	if err != nil {
		t.Fatal(err)
	}
	wantRefused(t, "the new address, before the change", "tcp", fresh)
	wantServed(t, "an address that is to go", "tcp", addr)
	wantServed(t, "a file that is to go", "unix", path)
	c.Undo()
	if socketAt(t, addr) != socket {
		t.Errorf("another socket listens at %s now", addr)
	}
	first, second := dialTo(t, addr), dialTo(t, addr) // the limit is as it was
	wantEcho(t, "afterwards", first)
	wantEcho(t, "afterwards", second)
	listen(t, fresh).Close()
	r.reconfigure(Config{Listen: []string{fresh}}) // nothing is locked
	wantServed(t, "the new address", "tcp", fresh)
}

// A relay that leaves gives its addresses up at once, and for good: the socket
// that the next relay creates there is not touched when the last connection
// ends.
func TestLeave(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "r.sock")
	h := newHost(t, echo)
	old := start(t, Config{Listen: []string{closed(t), "unix:" + path}, DrainTimeout: time.Hour})
	old.open(1, h.addr)
	addr := old.at(0)
	kept, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	kept.SetDeadline(time.Now().Add(patience))
	wantEcho(t, "before", kept)

	old.Leave()
	next := start(t, Config{Listen: []string{addr, "unix:" + path}})
	next.open(1, h.addr)
	wantEcho(t, "an earlier connection", kept)
	wantServed(t, "the next relay", "tcp", addr)
	wantServed(t, "the next relay's file", "unix", path)
	if _, err := old.Open(2, h.addr); err == nil {
		t.Error("a relay that left can be opened")
	}
	kept.Close()
	old.stop()
	<-old.done
	old.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket file of the next relay is gone: %v", err)
	}
	wantServed(t, "the next relay's file, at last", "unix", path)
}

// A call that changes the gate before Run waits for Run, and blocks no other
// call. It does not run in parallel, because it looks for a goroutine in Hold.
func TestOrderBeforeRun(t *testing.T) {
	r, err := New(complete(Config{Listen: []string{"127.0.0.1:0"}}))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Bind(); err != nil {
		t.Fatal(err)
	}
	held := make(chan struct{})
	go func() {
		defer close(held)
		r.Hold()
	}()
	proctest.Until(t, "Hold to wait", func() bool {
		stacks := make([]byte, 1<<20)
		return strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "relay.(*Relay).Hold(")
	})
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		r.Addrs()
		r.Waiting()
	}()
	select {
	case <-looked:
	case <-time.After(patience): // a deadline
		t.Error("Addrs and Waiting wait behind a Hold that waits for Run")
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	<-held
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}
