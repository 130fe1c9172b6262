//go:build linux

package e2e

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// acceptor is a host in this process whose connections the test handles itself.
type acceptor struct {
	addr  string
	conns chan *net.TCPConn
}

func newAcceptor(t *testing.T) *acceptor {
	t.Helper()
	listener := listen(t)
	a := &acceptor{addr: listener.Addr().String(), conns: make(chan *net.TCPConn)}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				// Checks connect as well, and close without sending a byte.
				select {
				case a.conns <- conn.(*net.TCPConn):
				case <-t.Context().Done():
					conn.Close()
				}
			}()
		}
	}()
	return a
}

// pair connects a client through the relay and returns both ends.
func (a *acceptor) pair(t *testing.T, addr string) (front, back client) {
	t.Helper()
	front = dial(t, addr)
	front.send("hello")
	for {
		select {
		case conn := <-a.conns:
			conn.SetDeadline(time.Now().Add(30 * time.Second))
			hello := make([]byte, 5)
			if _, err := io.ReadFull(conn, hello); err != nil {
				conn.Close() // a check
				continue
			}
			t.Cleanup(func() { conn.Close() })
			return front, client{conn, t}
		case <-time.After(patience): // a deadline
			t.Fatal("the host sees no client")
		}
	}
}

// F80, F81, F82: ends of streams are passed on unchanged, in each direction.
func TestEndsOfStreams(t *testing.T) {
	t.Parallel()
	a := newAcceptor(t)
	addr := freeAddr(t)
	u := start(t, "--bind", addr, "--hosts", a.addr)
	u.WaitLog("relay open")
	big := bytes.Repeat([]byte("0123456789abcdef"), 16<<10) // 256 KiB
	for _, way := range []string{"from client", "from host"} {
		ends := func() (from, to client) {
			front, back := a.pair(t, addr)
			if way == "from client" {
				return front, back
			}
			return back, front
		}
		t.Run("half-close "+way, func(t *testing.T) {
			from, to := ends()
			from.send("all said")
			from.CloseWrite()
			if got, err := io.ReadAll(to); string(got) != "all said" || err != nil {
				t.Errorf("read %q, %v", got, err)
			}
			to.send("an answer")
			to.CloseWrite()
			if got, err := io.ReadAll(from); string(got) != "an answer" || err != nil {
				t.Errorf("the answer is %q, %v", got, err)
			}
		})
		t.Run("reset of an idle connection "+way, func(t *testing.T) {
			from, to := ends()
			from.SetLinger(0)
			from.Close()
			begin := time.Now()
			to.wantReset()
			t.Logf("after %v (goal: 10ms)", time.Since(begin))
		})
		t.Run("data and then a reset "+way, func(t *testing.T) {
			dirty := 0
			for range 20 {
				from, to := ends()
				if _, err := from.Write(big); err != nil {
					t.Fatal(err)
				}
				// All of it must have arrived at the relay before the reset
				// overtakes it.
				u.Until("the data has left", func() bool { return unsent(t, from.TCPConn) == 0 })
				from.SetLinger(0)
				from.Close()
				time.Sleep(time.Millisecond) // for the reset to arrive while the data is read
				got, err := io.ReadAll(to)
				if err == nil {
					dirty++
				} else if !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the end is %v, want a reset", err)
				}
				if !bytes.HasPrefix(big, got) {
					t.Errorf("%d bytes that are not those sent", len(got))
				}
			}
			if dirty > 0 {
				t.Errorf("%d of 20 resets looked like a clean end", dirty)
			}
		})
	}
	if n := end(t, u); n["reset"] < 40 {
		t.Errorf("%d connections were reset, want 40 and more", n["reset"])
	}
}

// F93: a switch in the middle of transfers. Each of them ends with a reset;
// none is moved, and none looks whole.
func TestSwitchInTheMiddleOfTransfers(t *testing.T) {
	t.Parallel()
	a, b := newSource(t, time.Minute), newWitness(t, "b")
	addr := freeAddr(t)
	check := script(t, "exit 0\n")
	u := start(t, "--bind", addr, "--hosts", a.addr+","+b.addr, "--check-host", check, "--check-interval", "100ms")
	u.WaitLog("relay open")
	await := transfers(t, addr, 200)
	u.Until("b is up", func() bool { return countLog(u, "host changed state", "host="+b.addr, "to=up") == 1 })
	writeScript(t, check, `[ "$1" = `+b.addr+" ]\n")
	u.WaitLog("primary lost")
	decided := time.Now()
	errs := await()
	took := time.Since(decided)
	_, fenced, _ := strings.Cut(u.Log(), "earlier connections fenced: ")
	fenced, _, _ = strings.Cut(fenced, "\n")
	t.Logf("all had ended %v after the decision (goal: 100ms); the program says %s", took, fenced)
	wantWithin(t, "the end of all transfers", took, 20*time.Second) // by themselves they take a minute
	for i, err := range errs {
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("transfer %d ended with %v, want a reset", i, err)
			break
		}
	}
	awaitGreeting(t, u, addr, "b")
	if n := end(t, u); n["fenced"] != 200 {
		t.Errorf("%d connections were fenced, want 200", n["fenced"])
	}
}

// The same with drain: open connections may finish, and clients are let through
// to the new primary only then.
func TestSwitchWithDrain(t *testing.T) {
	t.Parallel()
	a, b := newSource(t, time.Second), newWitness(t, "b")
	addr := freeAddr(t)
	check := script(t, "exit 0\n")
	u := start(t, "--bind", addr, "--hosts", a.addr+","+b.addr, "--check-host", check, "--check-interval", "100ms", "--fence", "drain=20s")
	u.WaitLog("relay open")
	u.Until("b is up", func() bool { return countLog(u, "host changed state", "host="+b.addr, "to=up") == 1 })
	await := transfers(t, addr, 20)
	writeScript(t, check, `[ "$1" = `+b.addr+" ]\n")
	u.WaitLog("primary lost")
	if who, err := proctest.Greeting(addr, patience); who != "b" || err != nil {
		t.Errorf("a client that came during the drain is answered by %q, %v, want b", who, err)
	}
	for i, err := range await() {
		if err != nil {
			t.Errorf("transfer %d: %v", i, err)
		}
	}
	if n := end(t, u); n["fenced"] != 0 {
		t.Errorf("%d connections were fenced, want none", n["fenced"])
	}
}
