//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

// everyListener is a program with one listener of each kind, and a session through
// its relay.
type everyListener struct {
	*proctest.Understudy
	t                       *testing.T
	relay, http, agent, tcp string
	control                 string
	session                 net.Conn
	server                  *proctest.Host
}

func startEveryListener(t *testing.T, args ...string) *everyListener {
	t.Helper()
	a := &everyListener{
		t: t, relay: freeAddr(t), http: freeAddr(t), agent: freeAddr(t), tcp: freeAddr(t),
		control: filepath.Join(t.TempDir(), "control.sock"), server: (&proctest.Host{Name: "a"}).Start(t),
	}
	file := filepath.Join(t.TempDir(), "understudy.yaml")
	text := fmt.Sprintf("http: %q\nrelays:\n  - {name: r, listen: [%q], hosts: [%q]}\nroutes:\n  /ping: {agent: %q, tcp: %q}\n",
		a.http, a.relay, a.server.Addr(), a.agent, a.tcp)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a.Understudy = start(t, append([]string{"--config", file, "--control", a.control}, args...)...)
	a.WaitLog("verdict port open")
	var err error
	if a.session, err = net.Dial("tcp", a.relay); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.session.Close() })
	if a.greeting(a.session) != "a\n" {
		t.Fatal("the session is not served")
	}
	a.awaitAnswers()
	return a
}

func (a *everyListener) greeting(c net.Conn) string {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	var line [2]byte
	_, _ = io.ReadFull(c, line[:])
	return string(line[:])
}

// sessionLives checks that the session still works.
func (a *everyListener) sessionLives() {
	a.t.Helper()
	_ = a.session.SetDeadline(time.Now().Add(200 * time.Millisecond))
	if n, err := a.session.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		a.t.Errorf("the session is over: read %d, %v", n, err)
	}
	a.session.Close() // the end need not wait for it
}

// awaitAnswers waits until every listener answers.
func (a *everyListener) awaitAnswers() {
	a.t.Helper()
	a.Until("/ping is good", func() bool { return httpStatus("http://"+a.http+"/ping") == 200 })
	a.Until("the agent says up", func() bool { return strings.HasPrefix(spoken(a.agent), "up") })
	a.Until("the TCP responder accepts", func() bool {
		c, err := net.DialTimeout("tcp", a.tcp, time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	a.Until("the control socket answers", func() bool {
		return exec.Command(program(a.t), "status", "--control", a.control).Run() == nil
	})
	a.Until("the relay serves", func() bool { who, err := proctest.Greeting(a.relay, patience); return who == "a" && err == nil })
}

// httpStatus is the status of a response, 0 without one.
func httpStatus(url string) int {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// spoken returns the bytes that a port sends.
func spoken(addr string) string {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	text, _ := io.ReadAll(c)
	return string(text)
}

// Every listener retries after failures of accept(2): the process and its
// sessions live on, each listener logs the failure once and answers afterwards.
func TestAcceptErrorsEndNoListener(t *testing.T) {
	t.Parallel()
	tracer := needs(t, "strace")
	for _, fault := range []string{"ENOMEM", "ENOSPC", "EPERM"} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			a := startEveryListener(t)
			injector := exec.Command(tracer, "-f", "-qq", "-o", os.DevNull, "-e", "trace=accept4",
				"-e", "inject=accept4:error="+fault, "-p", fmt.Sprint(a.PID()))
			injector.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			var complaint strings.Builder
			injector.Stderr = &complaint
			if err := injector.Start(); err != nil {
				t.Fatal(err)
			}
			over := make(chan struct{})
			go func() { defer close(over); _ = injector.Wait() }()
			stop := func() { _ = injector.Process.Signal(syscall.SIGINT); <-over }
			defer stop()

			var waiting []net.Conn
			defer func() {
				for _, c := range waiting {
					c.Close()
				}
			}()
			failures := func() int { return strings.Count(a.Log(), "accept failed, retrying") }
			proctest.Until(t, "four listeners have failed", func() bool {
				select {
				case <-over:
					t.Skipf("SKIPPED: strace cannot look on here: %s", complaint.String())
				default:
				}
				for _, addr := range []string{a.http, a.agent, a.tcp, a.control} {
					network := "tcp"
					if addr == a.control {
						network = "unix"
					}
					if c, err := net.DialTimeout(network, addr, time.Second); err == nil {
						waiting = append(waiting, c)
					}
				}
				return failures() >= 4
			})
			time.Sleep(time.Second) // several more tries of each: they are not logged
			stop()
			a.awaitAnswers()
			if n := failures(); n != 4 {
				t.Errorf("%d failures logged, want one for each of 4 listeners", n)
			}
			a.sessionLives()
			a.Terminate()
		})
	}
}

// A listening socket that another process shuts down (as ss -K does) is opened
// again, and no session ends.
func TestListenerThatWasShutIsOpenedAgain(t *testing.T) {
	t.Parallel()
	a := startEveryListener(t)
	for _, addr := range []string{a.http, a.agent, a.tcp} {
		shutListener(t, a.PID(), addr)
	}
	a.WaitLog("verdict port ended, reopening it")
	a.WaitLog(`listener open: listener="http`)
	a.WaitLog(`listener open: listener="agent`)
	a.awaitAnswers()
	a.sessionLives()
	a.Terminate()
}

// shutListener calls shutdown(2) on a listening socket of a process.
func shutListener(t *testing.T, pid int, addr string) {
	t.Helper()
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Skipf("SKIPPED: pidfd_open: %v", err)
	}
	defer unix.Close(process)
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if link, _ := os.Readlink(filepath.Join(dir, e.Name())); !strings.HasPrefix(link, "socket:") {
			continue
		}
		number, _ := strconv.Atoi(e.Name())
		fd, err := unix.PidfdGetfd(process, number, 0)
		if err != nil {
			t.Skipf("SKIPPED: pidfd_getfd: %v", err)
		}
		listens, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		sa, _ := unix.Getsockname(fd)
		name := ""
		if sa, ok := sa.(*unix.SockaddrInet4); ok {
			name = net.JoinHostPort(net.IP(sa.Addr[:]).String(), strconv.Itoa(sa.Port))
		}
		if listens == 1 && name == addr {
			err = unix.Shutdown(fd, unix.SHUT_RDWR)
			unix.Close(fd)
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		unix.Close(fd)
	}
	t.Fatalf("no socket listens on %s", addr)
}
