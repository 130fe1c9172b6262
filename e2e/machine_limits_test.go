//go:build linux

package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// crowd is clients that stay.
type crowd struct {
	greeted atomic.Int64
	lost    atomic.Int64
	reading sync.WaitGroup

	mu    sync.Mutex // guards conns
	conns []*net.TCPConn
}

// gather connects n clients to addrs in turn and lets them wait for their
// greeting. They leave at the end of the test.
func gather(t *testing.T, n int, addrs ...string) *crowd {
	t.Helper()
	c := &crowd{}
	t.Cleanup(c.leave)
	for i := range n {
		conn, err := net.DialTimeout("tcp", addrs[i%len(addrs)], patience)
		if err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
		c.reading.Go(func() {
			if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "a\n" {
				c.lost.Add(1)
				return
			}
			c.mu.Lock()
			c.conns = append(c.conns, conn.(*net.TCPConn))
			c.mu.Unlock()
			c.greeted.Add(1)
		})
		t.Cleanup(func() { conn.Close() })
	}
	return c
}

// served returns the clients that were greeted so far.
func (c *crowd) served() []*net.TCPConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*net.TCPConn(nil), c.conns...)
}

// leave closes the connections of the greeted clients.
func (c *crowd) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}

// settle waits until no client has been greeted for half a second.
func (c *crowd) settle(u *proctest.Understudy) {
	last, since := int64(-1), time.Now()
	u.Until("some are served and the others wait", func() bool {
		if n := c.greeted.Load(); n != last {
			last, since = n, time.Now()
		}
		return last > 0 && time.Since(since) > 500*time.Millisecond
	})
}

// wantIntact checks that the connections of the greeted clients work.
func (c *crowd) wantIntact(t *testing.T) {
	t.Helper()
	for _, conn := range c.served() {
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		client{conn, t}.send("well?")
		client{conn, t}.want("well?")
		if t.Failed() {
			return
		}
	}
}

// F40: a thousand clients and descriptors for a hundred. Connected clients go
// on undisturbed, the others wait; the program's own shortage is no reason to
// fail over, and checks, scripts and verdicts still work.
func TestOutOfDescriptors(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("prlimit"); err != nil {
		t.Skip("SKIP: needs prlimit (apt-get install util-linux)")
	}
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"limited by itself", nil},
		{"limit set too high", []string{"--max-connections", "5000"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newShow(t)
			s.record = t.TempDir() + "/checks"
			verdict := freeAddr(t)
			cmd := proctest.BinaryCommand("prlimit", nil, append([]string{"--nofile=256", program(t),
				"--bind", s.addr, "--hosts", s.a.Addr() + "," + s.b.Addr(), "--http", verdict, "--interval", "200ms",
				"--check-host", script(t, "echo >>"+s.record+"\n"), "--check-interval", "200ms"}, slices.Concat(unhurried, tt.args)...)...)
			s.Understudy = proctest.StartCommand(t, cmd)
			s.awaitGreeting("a")
			s.first = s.look()
			awaitPong(t, s.Understudy, verdict)

			c := gather(t, 1000, s.addr)
			c.settle(s.Understudy)
			t.Logf("%d of 1000 are served, the program holds %d descriptors of 256", c.greeted.Load(), s.look().descriptors)
			c.wantIntact(t)
			checks := len(lines(s.record))
			s.Until("checks go on", func() bool { return len(lines(s.record)) >= checks+6 })
			s.Until("a second in this state costs no more than 100ms of processor time", func() bool {
				return busy(t, s.PID(), time.Second) <= 100*time.Millisecond
			})
			if code, body := get(t, "http://"+verdict+"/ping"); code != http.StatusOK || body != "pong" {
				t.Errorf("/ping while descriptors are short: %d %q", code, body)
			}
			s.wantNoSuspicion()
			if n := countLog(s.Understudy, "[WARN]") + countLog(s.Understudy, "[ERROR]"); n > 12 {
				t.Errorf("%d warnings about it", n)
			}

			// As served clients leave, the others are admitted.
			s.Until("all are served in the end", func() bool {
				c.leave()
				return c.greeted.Load()+c.lost.Load() == 1000
			})
			if n := c.lost.Load(); n > 0 {
				t.Errorf("%d of those who waited were lost", n)
			}
			c.reading.Wait()
			c.leave()
			s.lookAgain("a")
			s.end()
		})
	}
}

// unhurried is for tests that suspect no host: a check is suspicious when it
// takes longer than the fast interval, and a busy machine may delay one for
// longer than the 100ms of the default.
var unhurried = []string{"--fast-interval", "2s", "--timeout", "5s"}

// wantNoSuspicion checks that the program, which runs [unhurried], suspects no
// host.
func (s *show) wantNoSuspicion() {
	s.t.Helper()
	wantElections(s.t, s.Understudy, 1)
	for _, text := range []string{"host suspected", "to=down"} {
		if n := countLog(s.Understudy, text); n > 0 {
			s.t.Errorf("%d records with %q, want none", n, text)
		}
	}
}

// awaitPong waits until /ping is good: a client can be served a moment before
// the verdict names the host.
func awaitPong(t *testing.T, u *proctest.Understudy, addr string) {
	t.Helper()
	u.Until("/ping is good", func() bool {
		code, body := get(t, "http://"+addr+"/ping")
		return code == http.StatusOK && body == "pong"
	})
}

// get requests a URL and returns status and body.
func get(t *testing.T, url string) (int, string) {
	t.Helper()
	c := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer resp.Body.Close()
	body := make([]byte, 100)
	n, _ := resp.Body.Read(body)
	return resp.StatusCode, strings.TrimSpace(string(body[:n]))
}

// F41: there are a hundred ports to connect from and three hundred clients.
func TestOutOfPorts(t *testing.T) {
	t.Parallel()
	if !isolate(t) {
		return
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40099"), 0); err != nil {
		t.Fatal(err)
	}
	s := newShow(t)
	port := proctest.FreePort(t, "127.0.0.1")
	s.Understudy = start(t, append(unhurried, "--port", strconv.Itoa(port), "--hosts", s.a.Addr()+","+s.b.Addr(), "--hold", "25s")...)
	s.addr = fmt.Sprintf("127.0.0.1:%d", port)
	s.awaitGreeting("a")
	s.first = s.look()
	var addrs []string // so that the clients have ports enough
	for i := range 5 {
		addrs = append(addrs, fmt.Sprintf("127.0.0.%d:%d", i+10, port))
	}
	c := gather(t, 300, addrs...)
	c.settle(s.Understudy)
	t.Logf("%d of 300 are served", c.greeted.Load())
	begin := time.Now()
	c.wantIntact(t)
	time.Sleep(3 * time.Second) // checks lack ports as well
	s.wantNoSuspicion()
	if used := busy(t, s.PID(), time.Second); used > 500*time.Millisecond { // a loop that does not wait uses all of it
		t.Errorf("a second without ports costs %v of processor time", used)
	}
	s.Until("all are served in the end", func() bool {
		c.leave()
		return c.greeted.Load()+c.lost.Load() == 300
	})
	t.Logf("all were served or lost %v later: %d lost", time.Since(begin), c.lost.Load())
	if n := c.lost.Load(); n > 0 {
		t.Errorf("%d of those who waited were lost", n)
	}
	c.reading.Wait()
	c.leave()
	s.wantNoSuspicion()
	if n := countLog(s.Understudy, "[WARN]") + countLog(s.Understudy, "[ERROR]"); n > 2+int(time.Since(begin)/(10*time.Second)) {
		t.Errorf("%d warnings in %v", n, time.Since(begin))
	}
	s.lookAgain("a")
	s.end()
}

// F46: the reader of the log stops reading.
func TestStuckLog(t *testing.T) {
	t.Parallel()
	s := newShow(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := proctest.BinaryCommand(program(t), nil, "--bind", s.addr, "--hosts", s.a.Addr()+","+s.b.Addr(), "--log-level", "trace")
	cmd.Stdout, cmd.Stderr = w, w
	s.Understudy = proctest.StartCommand(t, cmd)
	w.Close()
	s.awaitGreeting("a")
	clients := s.load()
	s.Until("more has been logged than a pipe holds", func() bool { return clients.Served() > 2*perSecond })
	s.killPrimary(clients)
	s.Terminate()
}

// F49: the program itself stops for a while. Its timers are stale then, and
// must not count against a host.
func TestStoppedProgram(t *testing.T) {
	t.Parallel()
	// One failure would be enough, and a check is under way at any moment.
	// It may take long, because all clients of the pause come at once after it.
	patient := strings.Replace(readingCheck, "-t 0.25", "-t 2.5", 1)
	s := open(t, "--fall", "1", "--check-host", script(t, "sleep 0.3\n"+patient), "--check-interval", "100ms", "--check-timeout", "3s")
	clients := s.load()
	s.Signal(syscall.SIGSTOP)
	time.Sleep(4 * time.Second) // the pause, longer than a check may take
	s.Signal(syscall.SIGCONT)
	went := time.Now()
	report := finish(s.Understudy, clients)
	time.Sleep(time.Until(went.Add(4 * time.Second))) // a check timeout and the burst
	t.Log(report)
	s.WaitLog("the program was stalled, all hosts are checked again")
	wantNoLoss(t, report, time.Time{}, "a")
	s.wantTriggers(s.started())
	s.lookAgain("a")
	s.end()
}
