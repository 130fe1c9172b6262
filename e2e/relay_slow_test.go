//go:build linux

package e2e

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

const (
	slowConns = 2000
	slowRate  = "1000" // new ones a second
	slowTime  = "5"    // seconds

	// listenerConns is the number of connections that the HTTP listener has at most.
	listenerConns = 512
)

// honest requests a verdict from addr every 50ms, over a connection of its own
// each time, until over is closed.
func honest(t *testing.T, addr string, over <-chan struct{}) (took []time.Duration) {
	t.Helper()
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		begin := time.Now()
		resp, err := client.Get("http://" + addr + "/ping")
		if err != nil {
			t.Errorf("an honest request: %v", err)
			return took
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		took = append(took, time.Since(begin))
		if resp.StatusCode != http.StatusOK || string(body) != "pong" || err != nil {
			t.Errorf("an honest request is answered %d %q, %v", resp.StatusCode, body, err)
		}
		select {
		case <-over:
			return took
		case <-tick.C:
		}
	}
}

// F60, F61: 2,000 connections that send their head, or their body, a few bytes
// at a time, or hardly read. Honest requests and the relay's clients notice
// nothing. It does not run beside other tests of this package: the answers are
// timed.
func TestSlowClients(t *testing.T) {
	tool := needs(t, "slowhttptest")
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Max < slowConns+200 {
		t.Skipf("SKIPPED: %d descriptors at most, and %d slow clients want one each (ulimit -n)", limit.Max, slowConns)
	}
	for _, mode := range []struct {
		name string
		args []string
	}{
		{"heads", []string{"-H", "-i", "1", "-x", "8"}},
		{"bodies", []string{"-B", "-i", "1", "-x", "8", "-s", "100000", "-t", "POST"}},
		{"reads", []string{"-X", "-n", "5", "-z", "1", "-w", "1", "-y", "2", "-k", "5"}},
	} {
		t.Run(mode.name, func(t *testing.T) {
			pong := newService(t, "pong")
			a := (&proctest.Host{Name: "a"}).Start(t)
			addr, verdict := freeAddr(t), freeAddr(t)
			cmd := proctest.BinaryCommand(program(t), nil, "--bind", addr, "--hosts", a.Addr(), "--http", verdict,
				"--lport", pong.port(), "--ping-timeout", "9s")
			stdout, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0) // not through this process
			if err != nil {
				t.Fatal(err)
			}
			defer stdout.Close()
			cmd.Stdout = stdout
			u := proctest.StartCommand(t, cmd)
			awaitGreeting(t, u, addr, "a")
			awaitPong(t, u, verdict)
			first := lookAt(t, u.PID())

			figures := filepath.Join(t.TempDir(), "figures")
			attack := exec.Command(tool, append(mode.args, "-c", strconv.Itoa(slowConns), "-r", slowRate, "-l", slowTime, "-p", "5",
				"-g", "-o", figures, "-u", "http://"+verdict+"/ping")...)
			attack.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			var out bytes.Buffer
			attack.Stdout, attack.Stderr = &out, &out
			if err := attack.Start(); err != nil {
				t.Fatal(err)
			}
			over := make(chan struct{})
			go func() {
				_ = attack.Wait() // its output has the result
				close(over)
			}()
			t.Cleanup(func() { _ = attack.Process.Kill(); <-over })
			clients := proctest.StartLoad(t, addr, 50, patience)
			worst := first
			watched := make(chan struct{})
			go func() {
				defer close(watched)
				for {
					now := lookAt(t, u.PID())
					worst.memory, worst.threads = max(worst.memory, now.memory), max(worst.threads, now.threads)
					worst.descriptors = max(worst.descriptors, now.descriptors)
					select {
					case <-over:
						return
					case <-time.After(50 * time.Millisecond): // between two looks
					}
				}
			}()
			took := honest(t, verdict, over)
			<-over
			<-watched
			report := clients.Stop()
			slices.Sort(took)
			t.Logf("%d honest requests: median %v, p99 %v, slowest %v (goal: 200ms); memory grew by %d KiB at most, %d descriptors at most (%d at first)",
				len(took), share(took, 0.5), share(took, 0.99), share(took, 1), (worst.memory-first.memory)>>10, worst.descriptors, first.descriptors)
			t.Log(report)

			made := wantSlowReport(t, figures+".csv", out.String())
			if lost := report.Lost(); len(lost) > 0 {
				t.Errorf("%d clients of the relay were lost", len(lost))
			}
			if grown := worst.memory - first.memory; grown > 64<<20 {
				t.Errorf("memory grew by %d KiB", grown>>10)
			}
			// Times at which the machine did not run the test are not compared.
			calm, bound := report.Stall < 100*time.Millisecond, 2*time.Second+5*report.Stall
			wantWithin(t, "the slowest honest request", share(took, 1), bound)
			wantWithin(t, "the slowest client of the relay", report.Slowest(), bound)
			if calm && (made <= listenerConns+64 || len(took) < 20) {
				t.Errorf("%d slow connections were made, want %d, and %d honest requests", made, slowConns, len(took))
			}
			// The relay has descriptors too.
			if more := worst.descriptors - first.descriptors; calm && more > listenerConns+64 {
				t.Errorf("%d more descriptors than at first, want %d and few", more, listenerConns)
			}
			first.memory, first.threads = worst.memory, worst.threads // the runtime gives them back when it likes
			lookAgain(t, u, first, addr, "a")
			if n := end(t, u); n["reset"]+n["fenced"]+n["expired"]+n["aborted"] > 0 {
				t.Errorf("connections of the relay were harmed: %v", n)
			}
		})
	}
}

// wantSlowReport checks the report of slowhttptest, second by second: the
// service was available all the time. It returns how many connections it has
// made.
func wantSlowReport(t *testing.T, path, out string) (made int) {
	t.Helper()
	rows := lines(path)
	if len(rows) < 2 || rows[0] != "Seconds,Closed,Pending,Connected,Service Available" {
		t.Errorf("slowhttptest reports %q and says %s", rows, out)
		return 0
	}
	t.Logf("slowhttptest: %s: %s", rows[0], strings.Join(rows[1:], " "))
	var n [5]int
	for _, row := range rows[1:] {
		for i, text := range strings.SplitN(row, ",", len(n)) {
			n[i], _ = strconv.Atoi(text)
		}
		if n[4] == 0 {
			t.Errorf("slowhttptest had no service after %ds", n[0])
		}
	}
	return n[1] + n[3]
}

// The same slowness, with one client at a time: the listener is not full, but
// the client's time is limited.
func TestSlowClientIsCutOff(t *testing.T) {
	t.Parallel()
	pong := newService(t, "pong")
	big := newService(t, strings.Repeat("x", 32<<20))
	verdict := freeAddr(t)
	u := start(t, "--http", verdict, "--lport", pong.port(), "--endpoints", "http://"+big.addr)
	u.WaitLog("http listener ready")
	for _, tt := range []struct {
		name  string
		begin string
		drip  string // every 200ms; the end of the connection shows in a write too
		limit time.Duration
	}{
		{"nothing", "", "", 5 * time.Second},
		{"head", "GET /ping HTTP/1.1\r\nHost: x\r\nX-Slow: ", "y", 5 * time.Second},
		{"head by lines", "GET /ping HTTP/1.1\r\nHost: x\r\n", "X-Slow: y\r\n", 5 * time.Second},
		{"body", "POST /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", "y", 10 * time.Second},
		{"chunks", "POST /ping HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\ny\r\n", 10 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			c := dial(t, verdict)
			c.send(tt.begin)
			var left atomic.Bool
			go func() {
				for !left.Load() && tt.drip != "" {
					time.Sleep(200 * time.Millisecond) // a client that sends slowly
					if _, err := io.WriteString(c.TCPConn, tt.drip); err != nil {
						return
					}
				}
			}()
			answer, err := io.ReadAll(c.TCPConn)
			took := time.Since(begin)
			left.Store(true)
			line, _, _ := strings.Cut(string(answer), "\r\n")
			t.Logf("cut off after %v (goal: %v) with %q, %v", took.Round(time.Millisecond), tt.limit, line, err)
			if isTimeout(err) || strings.Contains(line, " 200 ") {
				t.Errorf("%q, %v", line, err)
			}
			wantWithin(t, "the end of a client that sends slowly", took, tt.limit+10*time.Second)
			if took < tt.limit {
				t.Errorf("it was cut off after %v already", took)
			}
		})
	}
	t.Run("read", func(t *testing.T) {
		t.Parallel()
		c := dial(t, verdict)
		c.SetReadBuffer(4 << 10)
		begin := time.Now()
		c.send("GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
		// A byte now and then, like slowhttptest's; a whole answer would take
		// for ever.
		var err error
		n := 0
		for err == nil && time.Since(begin) < 25*time.Second {
			var got int
			got, err = c.Read(make([]byte, 16))
			n += got
			time.Sleep(100 * time.Millisecond) // a client that reads slowly
			if time.Since(begin) > 10*time.Second && err == nil {
				// Bytes that wait in the kernel are read to find the end of the stream.
				c.SetReadDeadline(time.Now().Add(10 * time.Second))
				var rest int64
				rest, err = io.Copy(io.Discard, io.LimitReader(c, 64<<20))
				n += int(rest)
				if err == nil {
					err = io.EOF
				}
			}
		}
		took := time.Since(begin)
		t.Logf("cut off after %v (goal: 10s) and %d bytes with %v", took.Round(time.Millisecond), n, err)
		if n >= 32<<20 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a client that hardly reads has had %d bytes, and then %v", n, err)
		}
		wantWithin(t, "the end of a client that reads slowly", took, 22*time.Second)
	})
}
