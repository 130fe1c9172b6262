//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// inject makes a system call of the program fail, by strace, until the function
// that it returns is called. That returns how often it did.
func inject(t *testing.T, u *proctest.Understudy, call, errno string) (stop func() int) {
	t.Helper()
	tracer := needs(t, "strace")
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(tracer, "-f", "-qq", "-o", trace, "-e", "trace="+call, "-e", "inject="+call+":error="+errno, "-p", fmt.Sprint(u.PID()))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var complaint strings.Builder
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() { defer close(over); _ = cmd.Wait() }()
	end := func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		<-over
	}
	t.Cleanup(end)
	injected := func() int {
		text, _ := os.ReadFile(trace)
		return strings.Count(string(text), "(INJECTED)")
	}
	u.Until(call+" fails with "+errno, func() bool {
		select {
		case <-over:
			t.Skipf("SKIPPED: strace cannot look on here: %s", complaint.String())
		default:
		}
		return injected() > 0
	})
	return func() int {
		end()
		return injected()
	}
}

// echoing opens connections through the relay. The function that it returns
// checks that each of them still works.
func echoing(t *testing.T, addr, host string, n int) (work func()) {
	t.Helper()
	var all []client
	for range n {
		c := dial(t, addr)
		c.SetDeadline(time.Now().Add(2 * time.Minute))
		c.want(host + "\n")
		all = append(all, c)
	}
	return func() {
		t.Helper()
		for _, c := range all {
			c.send("echo")
			c.want("echo")
		}
	}
}

// F52, F53: a lack of resources on this machine for 5s counts against no host,
// and when its own firewall refuses every host, the sessions live on and still
// belong to the host afterwards.
func TestFaultsOfThisMachineCutNoClient(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		call, errno string
		firewall    bool
	}{
		{"socket", "EMFILE", false},
		{"socket", "ENFILE", false},
		{"socket", "ENOMEM", false},
		{"socket", "ENOBUFS", false},
		{"epoll_ctl", "ENOSPC", false},
		{"connect", "EAGAIN", false},
		{"connect", "EADDRNOTAVAIL", false},
		{"connect", "EPERM", true},
		{"connect", "EACCES", true},
	} {
		t.Run(tt.errno, func(t *testing.T) {
			t.Parallel()
			// A connect over loopback is never waited for, but an answer is.
			port := 0
			var args []string
			if tt.call == "epoll_ctl" {
				port = proctest.FreePort(t, "127.0.0.1")
				args = []string{"--pong-port", fmt.Sprint(port)}
			}
			a := (&proctest.Host{Name: "a", PingPort: port}).Start(t)
			hosts := a.Addr()
			if !tt.firewall { // a host that is well would be another way out
				hosts += "," + (&proctest.Host{Name: "b", IP: "127.0.0.2", PingPort: port}).Start(t).Addr()
			}
			addr := freeAddr(t)
			// With a source address EADDRNOTAVAIL has one meaning only.
			u := start(t, append(args, "--bind", addr, "--hosts", hosts, "--source", "127.0.0.1", "--drain-timeout", "0")...)
			awaitGreeting(t, u, addr, "a")
			work := echoing(t, addr, "a", 10)

			began := time.Now()
			stop := inject(t, u, tt.call, tt.errno)
			u.Until("5s have passed", func() bool { return time.Since(began) > 5*time.Second })
			work()
			if n := stop(); n < 5 { // a check a second
				t.Errorf("%s failed %d times in 5s, want 5 at least", tt.call, n)
			}

			awaitGreeting(t, u, addr, "a")
			work()
			down, named := countLog(u, "host changed state", "to=down"), countLog(u, "host changed state", "to=down", "this machine's firewall")
			if !tt.firewall && down != 0 || tt.firewall && (down == 0 || named != down) {
				t.Errorf("%d hosts were taken down, %d of them for this machine's firewall", down, named)
			}
			if !tt.firewall {
				wantElections(t, u, 1)
			}
			u.Terminate()
		})
	}
}

// F53: a host to which this machine itself refuses connections is down, and the
// reason names this machine's firewall.
func TestOwnFirewallIsNamed(t *testing.T) {
	t.Parallel()
	if !isolate(t) {
		return
	}
	run(t, "ip addr add 192.0.2.1/32 dev lo")
	a := (&proctest.Host{Name: "a", IP: "192.0.2.1"}).Start(t)
	b := (&proctest.Host{Name: "b"}).Start(t)
	addr := freeAddr(t)
	u := start(t, "--bind", addr, "--hosts", a.Addr()+","+b.Addr())
	awaitGreeting(t, u, addr, "a")
	// Addresses of this machine are looked up first, unless another rule is before.
	run(t, "ip rule add pref 100 lookup local")
	run(t, "ip rule add pref 10 to 192.0.2.1 prohibit")
	run(t, "ip rule del pref 0")
	awaitGreeting(t, u, addr, "b")
	wantLog(t, u, 1, "host changed state", "host="+a.Addr(), "to=down", "this machine's firewall")
	end(t, u)
}
