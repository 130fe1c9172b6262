//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// source is a host in this process that sends each client bytes for some time,
// and then their sum.
type source struct {
	addr string
}

// replayed is a connection whose first bytes were read before.
type replayed struct {
	net.Conn
	first []byte
}

func (r *replayed) Read(p []byte) (int, error) {
	if len(r.first) == 0 {
		return r.Conn.Read(p)
	}
	n := copy(p, r.first)
	r.first = r.first[n:]
	return n, nil
}

// F100: TERM lets transfers finish, and refuses new clients at once.
func TestTermLetsTransfersFinish(t *testing.T) {
	t.Parallel()
	a := newSource(t, time.Second)
	addr := freeAddr(t)
	u := start(t, "--bind", addr, "--hosts", a.addr)
	u.WaitLog("relay open")
	await := transfers(t, addr, 50)
	over := make(chan []error, 1)
	go func() { over <- await() }()
	u.Signal(syscall.SIGTERM)
	requested := time.Now()
	u.Until("no client is admitted", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	t.Logf("refused %v after TERM (goal: 50ms)", time.Since(requested))
	if len(over) > 0 {
		t.Error("clients were let in until the last transfer was over")
	}
	for i, err := range <-over {
		if err != nil {
			t.Errorf("transfer %d: %v", i, err)
		}
	}
	last := time.Now()
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	t.Logf("the end came %v after the last transfer (goal: 100ms)", time.Since(last))
	wantWithin(t, "the end after the last transfer", time.Since(last), 10*time.Second) // the drain timeout is 30s
	if n := counts(t, u); n["finished"] < 50 || n["fenced"] > 0 {
		t.Errorf("counts at the end: %v, want 50 finished and none fenced", n)
	}
}

// F100: connections that are open after the drain timeout are reset, and the
// exit status is 0 nevertheless.
func TestTermCutsAfterTheDrainTimeout(t *testing.T) {
	t.Parallel()
	s := open(t, "--drain-timeout", "1s")
	stays := dial(t, s.addr)
	stays.want("a\n")
	requested := time.Now() // before, because the program may be faster than this process
	s.Signal(syscall.SIGTERM)
	stays.wantReset()
	if took := time.Since(requested); took < time.Second {
		t.Errorf("it was cut after %v, the drain timeout is 1s", took)
	}
	if code := s.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	wantWithin(t, "the end", time.Since(requested), 15*time.Second) // the usual drain timeout is 30s
	counts(t, s.Understudy)
}

// Two signals at once, as timeout(1), "kill 0" and "tini -g" send them, are one:
// connections may finish.
func TestTwoSignalsAtOnce(t *testing.T) {
	t.Parallel()
	s := open(t)
	stays := dial(t, s.addr)
	stays.want("a\n")
	s.Signal(syscall.SIGTERM)
	s.Signal(syscall.SIGINT) // two of a kind might arrive as one
	s.Until("no client is admitted", func() bool {
		c, err := net.Dial("tcp", s.addr)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	stays.send("still here\n")
	stays.want("still here\n")
	stays.Close()
	if code := s.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	if n := counts(t, s.Understudy); n["fenced"] > 0 {
		t.Errorf("counts at the end: %v, want nothing cut", n)
	}
}

// F101: a second signal that comes a second later ends it at once.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	for _, signals := range [][2]syscall.Signal{
		{syscall.SIGTERM, syscall.SIGTERM}, {syscall.SIGTERM, syscall.SIGINT}, {syscall.SIGINT, syscall.SIGINT},
	} {
		s := open(t)
		stays := dial(t, s.addr)
		stays.want("a\n")
		s.Signal(signals[0])
		s.WaitLog("ending: connections may finish")
		requested := time.Now()
		code := s.EndAtOnce(signals[1])
		took := time.Since(requested)
		t.Logf("%v: ended %v after the first (goal: 1.2s)", signals, took)
		if code != 0 {
			t.Errorf("exit status %d, want 0", code)
		}
		wantWithin(t, "the end", took, 10*time.Second) // the drain timeout is 30s
		stays.wantReset()
		counts(t, s.Understudy)
	}
}

// F103: the program is killed and started again on the same port, while
// clients come.
func TestKilledProgramStartsAgain(t *testing.T) {
	t.Parallel()
	s := open(t)
	clients := s.load()
	s.Signal(syscall.SIGKILL)
	s.Exit()
	clients.Stop()
	begin := time.Now()
	s.Understudy = start(t, "--bind", s.addr, "--hosts", s.a.Addr()+","+s.b.Addr())
	s.awaitGreeting("a")
	t.Logf("serving %v after the start (goal: 100ms)", time.Since(begin))
	wantWithin(t, "serving after the start", time.Since(begin), 15*time.Second) // a TIME_WAIT is 60s
	s.first = s.look()
	report := finish(s.Understudy, s.load())
	wantNoLoss(t, report, time.Time{}, "a")
	s.lookAgain("a")
	s.end()
}

// F51: an address that cannot be bound ends the program before any script runs,
// and the error names it.
func TestAddressThatCannotBeHad(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	busy := freeAddr(t)
	listener, err := net.Listen("tcp", busy)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ran := filepath.Join(t.TempDir(), "ran")
	record := script(t, "echo >>"+ran+"\n")
	for _, addr := range []string{busy, "192.0.2.1:80"} { // no machine has the second (RFC 5737)
		begin := time.Now()
		u := start(t, "--bind", addr, "--hosts", a.Addr(), "--on-failover", record, "--check-host", record)
		code := u.Exit()
		t.Logf("%s: ended after %v (goal: 200ms)", addr, time.Since(begin))
		if code != 1 {
			t.Errorf("%s: exit status %d, want 1", addr, code)
		}
		wantWithin(t, "the end", time.Since(begin), 15*time.Second) // it tries no second time
		if !strings.Contains(u.Log(), addr) {
			t.Errorf("the message does not name %s:\n%s", addr, u.Log())
		}
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("a script ran")
	}
}

// F105: nothing can be written, there is no home, no terminal, and not even
// /dev/null.
func TestBareEnvironment(t *testing.T) {
	t.Parallel()
	if !isolate(t) {
		return
	}
	s := newShow(t)
	trigger := script(t, "exit 0\n")
	if err := syscall.Mount("", "/", "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""); err != nil {
		t.Skipf("SKIP: needs a root file system that can be made read-only: %v", err)
	}
	defer func() {
		if err := syscall.Mount("", "/", "", syscall.MS_REMOUNT|syscall.MS_BIND, ""); err != nil {
			t.Error(err)
		}
	}()
	for _, dev := range []string{"with /dev", "without /dev/null"} {
		t.Run(dev, func(t *testing.T) {
			if dev == "without /dev/null" {
				if err := syscall.Mount("none", "/dev", "tmpfs", 0, ""); err != nil {
					t.Fatal(err)
				}
				defer syscall.Unmount("/dev", syscall.MNT_DETACH)
			}
			addr, verdict := freeAddr(t), freeAddr(t)
			cmd := proctest.BinaryCommand(program(t), nil, "--bind", addr, "--hosts", s.a.Addr()+","+s.b.Addr(), "--http", verdict, "--on-failover", trigger, "--trigger-timeout", "5s")
			cmd.Env = []string{} // no HOME and no PATH
			cmd.Dir = "/"
			u := proctest.StartCommand(t, cmd)
			awaitGreeting(t, u, addr, "a")
			awaitPong(t, u, verdict)
			if dev == "without /dev/null" {
				u.Until("the log says what is missing", func() bool { return countLog(u, "trigger", "/dev/null") > 0 })
			}
			end(t, u)
			if dev == "with /dev" && (countLog(u, "[WARN]") != 1 || countLog(u, "[WARN]", "no control socket", "read-only file system") != 1) {
				t.Error("warnings in the log, or none about the control socket")
			}
		})
	}
}

// The counting line adds up, however the clients ended.
func TestCountsAddUp(t *testing.T) {
	t.Parallel()
	s := open(t, "--hold", "2s", "--connect-timeout", "1s", "--drain-timeout", "1s")
	clients := s.load()
	fenced := dial(t, s.addr)
	fenced.want("a\n")
	reset := dial(t, s.addr)
	reset.want("a\n")
	reset.SetLinger(0)
	reset.Close()
	s.a.Stop() // its kernel accepts: clients are connected and get no byte
	var leavers []client
	for range 20 {
		leavers = append(leavers, dial(t, s.addr))
	}
	time.Sleep(200 * time.Millisecond) // clients leave while the host is silent, however far each of them has come
	for _, c := range leavers {
		c.Close()
	}
	s.b.Kill()
	s.a.Kill()
	s.WaitLog("clients are refused")
	s.a.Restart()
	s.awaitGreeting("a")
	drained := dial(t, s.addr)
	drained.want("a\n")
	s.Signal(syscall.SIGTERM) // with clients still coming
	if code := s.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	t.Log(clients.Stop())
	n := counts(t, s.Understudy)
	t.Log(fmt.Sprint(n))
	if n["live"] != 0 {
		t.Errorf("%d live at the end, want none", n["live"])
	}
	for _, name := range []string{"accepted", "finished", "reset", "fenced"} {
		if n[name] == 0 {
			t.Errorf("%s=0, want some", name)
		}
	}
}
