//go:build linux

package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
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

const (
	sourceChunk = 8 << 10
	sourcePause = 100 * time.Millisecond
)

// newSource serves transfers that take from shortest to twice as long more.
func newSource(t *testing.T, shortest time.Duration) *source {
	t.Helper()
	listener := listen(t)
	s := &source{addr: listener.Addr().String()}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				sum := sha256.New()
				random := rand.NewChaCha8([32]byte{})
				chunk := make([]byte, sourceChunk)
				end := time.Now().Add(shortest + rand.N(2*shortest))
				for time.Now().Before(end) {
					random.Read(chunk)
					sum.Write(chunk)
					if _, err := conn.Write(chunk); err != nil {
						return
					}
					time.Sleep(sourcePause)
				}
				conn.Write(sum.Sum(nil))
			}()
		}
	}()
	return s
}

// errTorn is a transfer that ended as if it were whole, and was not.
var errTorn = errors.New("clean end of a stream that is not whole")

// receive reads a transfer to its end and checks its sum.
func receive(conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	all, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if len(all) < sha256.Size {
		return errTorn
	}
	body, sum := all[:len(all)-sha256.Size], all[len(all)-sha256.Size:]
	if sha256.Sum256(body) != [sha256.Size]byte(sum) {
		return errTorn
	}
	return nil
}

// transfers starts n transfers and returns a function that awaits their ends.
func transfers(t *testing.T, addr string, n int) (await func() []error) {
	t.Helper()
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		conn, err := net.DialTimeout("tcp", addr, patience)
		if err != nil {
			t.Fatal(err)
		}
		begun := make([]byte, 1)
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.ReadFull(conn, begun); err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			defer conn.Close()
			errs[i] = receive(&replayed{conn, begun})
		})
	}
	return func() []error { all.Wait(); return errs }
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
	u.Signal(syscall.SIGTERM)
	asked := time.Now()
	u.Until("nobody is let in", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	t.Logf("refused %v after TERM (goal: 50ms)", time.Since(asked))
	wantWithin(t, "refusing", time.Since(asked), time.Second)
	for i, err := range await() {
		if err != nil {
			t.Errorf("transfer %d: %v", i, err)
		}
	}
	last := time.Now()
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	t.Logf("the end came %v after the last transfer (goal: 100ms)", time.Since(last))
	wantWithin(t, "the end after the last transfer", time.Since(last), time.Second)
	if n := counts(t, u); n["finished"] < 50 || n["fenced"] > 0 {
		t.Errorf("counts at the end: %v, want 50 finished and none fenced", n)
	}
}

// F100: what is not finished after the drain timeout is reset, and the exit
// status is 0 all the same.
func TestTermCutsAfterTheDrainTimeout(t *testing.T) {
	t.Parallel()
	s := open(t, "--drain-timeout", "1s")
	stays := dial(t, s.addr)
	stays.want("a\n")
	s.Signal(syscall.SIGTERM)
	asked := time.Now()
	stays.wantReset()
	if took := time.Since(asked); took < time.Second {
		t.Errorf("it was cut after %v, the drain timeout is 1s", took)
	}
	if code := s.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	wantWithin(t, "the end", time.Since(asked), 4*time.Second)
	counts(t, s.Understudy)
}

// F101: the second signal ends it at once.
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
		s.Signal(signals[1])
		asked := time.Now()
		code := s.Exit()
		took := time.Since(asked)
		t.Logf("%v: ended %v after the second (goal: 200ms)", signals, took)
		if code != 0 {
			t.Errorf("exit status %d, want 0", code)
		}
		wantWithin(t, "the end", took, 1500*time.Millisecond)
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
	wantWithin(t, "serving after the start", time.Since(begin), 3*time.Second)
	s.first = s.look()
	report := finish(s.Understudy, s.load())
	wantNoLoss(t, report, time.Time{}, "a")
	s.lookAgain("a")
	s.end()
}

// F51: an address that cannot be had ends the program before any script runs,
// and is named.
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
	for _, addr := range []string{busy, "192.0.2.1:80"} { // nobody has the second (RFC 5737)
		begin := time.Now()
		u := start(t, "--bind", addr, "--hosts", a.Addr(), "--on-failover", record, "--check-host", record)
		code := u.Exit()
		t.Logf("%s: ended after %v (goal: 200ms)", addr, time.Since(begin))
		if code != 1 {
			t.Errorf("%s: exit status %d, want 1", addr, code)
		}
		wantWithin(t, "the end", time.Since(begin), 2*time.Second)
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
			cmd := proctest.BinaryCommand(program(t), nil, "--bind", addr, "--hosts", s.a.Addr()+","+s.b.Addr(), "--http", verdict, "--on-failover", trigger)
			cmd.Env = []string{} // no HOME and no PATH
			cmd.Dir = "/"
			u := proctest.StartCommand(t, cmd)
			awaitGreeting(t, u, addr, "a")
			if code, body := get(t, "http://"+verdict+"/ping"); code != 200 || body != "pong" {
				t.Errorf("/ping: %d %q", code, body)
			}
			if dev == "without /dev/null" {
				u.Until("the log says what is missing", func() bool { return countLog(u, "trigger", "/dev/null") > 0 })
			} else if countLog(u, "[WARN]") != 1 || countLog(u, "[WARN]", "no control socket", "read-only file system") != 1 {
				t.Error("warnings in the log, or none about the control socket")
			}
			end(t, u)
		})
	}
}

// The counting line adds up, whatever became of the clients.
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
	s.a.Stop() // its kernel accepts: clients are let in and hear nothing
	var leavers []client
	for range 20 {
		leavers = append(leavers, dial(t, s.addr))
	}
	time.Sleep(200 * time.Millisecond)
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
