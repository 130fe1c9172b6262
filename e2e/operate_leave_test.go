//go:build linux

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// balancer is HAProxy with a configuration of the test.
type balancer struct {
	addr   string // of its frontend
	socket string // takes its commands
}

// newBalancer starts HAProxy with a backend "be" of these lines. It tries each
// client once: one that a server refuses is lost.
func newBalancer(t *testing.T, lines ...string) *balancer {
	t.Helper()
	path := needs(t, "haproxy")
	dir := t.TempDir()
	b := &balancer{addr: freeAddr(t), socket: filepath.Join(dir, "stats")}
	text := fmt.Sprintf("global\n    stats socket %s level admin\n"+
		"defaults\n    mode tcp\n    retries 0\n    timeout connect 5s\n    timeout check 5s\n    timeout client 30s\n    timeout server 30s\n"+
		"frontend fe\n    bind %s\n    default_backend be\nbackend be\n    %s\n", b.socket, b.addr, strings.Join(lines, "\n    "))
	config := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	proxy := exec.Command(path, "-db", "-f", config)
	proxy.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Process.Kill(); _ = proxy.Wait() })
	return b
}

// command gives HAProxy a command and returns its answer.
func (b *balancer) command(t *testing.T, text string) string {
	t.Helper()
	c, err := net.Dial("unix", b.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintln(c, text)
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}

// Behind a balancer that requests /ping every second and distributes clients in
// turn, one of two programs leaves and comes back. With a lame duck no client
// is lost; without one some are, which shows that the balancer would lose them.
func TestLeavingBehindABalancer(t *testing.T) {
	t.Parallel()
	for _, lame := range []bool{true, false} {
		t.Run(fmt.Sprintf("lame duck %v", lame), func(t *testing.T) {
			t.Parallel()
			host := (&proctest.Host{Name: "a"}).Start(t)
			lines := []string{"balance roundrobin", "option httpchk GET /ping", "http-check expect string pong"}
			var args [2][]string
			var both [2]*proctest.Understudy
			for i := range both {
				relay, http := freeAddr(t), freeAddr(t)
				args[i] = []string{"--bind", relay, "--hosts", host.Addr(), "--http", http}
				if lame {
					args[i] = append(args[i], "--lame-duck", "5s") // as docs/verdicts.md says
				}
				both[i] = start(t, args[i]...)
				awaitGreeting(t, both[i], relay, "a")
				lines = append(lines, fmt.Sprintf("server s%d %s check port %s inter 1s fall 2 rise 1", i, relay, portOf(http)))
			}
			b := newBalancer(t, lines...)
			awaitGreeting(t, both[0], b.addr, "a")
			clients := load(t, both[0], b.addr)
			both[0].Signal(syscall.SIGTERM)
			if code := both[0].Exit(); code != 0 {
				t.Errorf("exit status %d, want 0", code)
			}
			served := clients.Served()
			if lame {
				again := start(t, args[0]...) // it comes back
				again.WaitLog("relay open")
			}
			proctest.Until(t, "clients are served afterwards", func() bool { return clients.Served() > served+3*perSecond })
			report := clients.Stop()
			lost := len(report.Lost())
			t.Logf("lame duck %v: %d of %d clients lost", lame, lost, len(report.Conns))
			if lame && lost > 0 {
				t.Errorf("%d clients lost, want none; the first: %+v", lost, report.Lost()[0])
			}
			if !lame && lost == 0 {
				t.Error("no client lost without a lame duck: this balancer shows nothing")
			}
		})
	}
}

// While the program is a lame duck every verdict is bad and the relay goes on;
// a second signal ends it at once.
func TestLameDuck(t *testing.T) {
	t.Parallel()
	a := startEveryListener(t, "--lame-duck", "60s")
	begin := time.Now()
	a.Signal(syscall.SIGTERM)
	a.Until("/ping is bad", func() bool { return httpStatus("http://"+a.http+"/ping") == 503 })
	a.Until("the agent says down", func() bool { return spoken(a.agent) == "down #ending\n" })
	a.Until("the TCP responder refuses", func() bool {
		c, err := net.DialTimeout("tcp", a.tcp, time.Second)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("the verdicts took %v to turn", took)
	}
	for range 10 {
		if who, err := proctest.Greeting(a.relay, patience); who != "a" || err != nil {
			t.Fatalf("the relay answers %q, %v, want a", who, err)
		}
	}
	if code := a.EndAtOnce(syscall.SIGTERM); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	if took := time.Since(begin); took > 50*time.Second {
		t.Errorf("ended %v after the first signal, although there was a second", took)
	}
}

// After TERM the verdicts turn bad while clients are still accepted; when the lame
// duck's time is over no client is accepted any more, and those that are there may
// finish.
func TestLameDuckThenDrains(t *testing.T) {
	t.Parallel()
	host, relay, http, agent := echoHost(t, "a"), freeAddr(t), freeAddr(t), freeAddr(t)
	file := writeFile(t, "understudy.yaml", fmt.Sprintf("http: %q\nlame_duck: 10s\nrelays: [{name: r, listen: [%q], hosts: [%q], drain_timeout: 1h}]\nroutes: {/ping: {agent: %q}}\n",
		http, relay, host, agent))
	u := start(t, "--config", file)
	awaitGreeting(t, u, relay, "a")
	u.Until("the verdict is good", func() bool { return httpStatus("http://"+http+"/ping") == 200 })
	stays := greeted(t, "tcp", relay, "a")
	refused := func() bool {
		c, err := net.DialTimeout("tcp", relay, patience)
		if err == nil {
			c.Close()
		}
		return err != nil
	}
	begin := time.Now()
	u.Signal(syscall.SIGTERM)
	for bad := false; !bad; {
		closed := refused() // before the verdict is requested
		bad = httpStatus("http://"+http+"/ping") == 503 && spoken(agent) == "down #ending\n"
		if closed {
			t.Fatal("clients are refused before every verdict is bad")
		}
	}
	u.Until("no client is accepted any more", refused)
	if took := time.Since(begin); took < 10*time.Second {
		t.Errorf("clients were accepted for %v after TERM, want lame_duck, 10s", took)
	}
	if n := httpStatus("http://" + http + "/ping"); n != 503 {
		t.Errorf("/ping answers %d while connections finish, want 503", n)
	}
	_ = stays.SetDeadline(time.Now().Add(patience))
	fmt.Fprintln(stays, "still here")
	if got, err := bufio.NewReader(stays).ReadString('\n'); got != "still here\n" || err != nil {
		t.Errorf("the client that was there got %q, %v", got, err)
	}
	stays.Close()
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
}

// A state that an operator has set in HAProxy outlives a restart of the
// program, which answers only up and down. With agent_drain it answers ready,
// which resets that state.
func TestOperatorsWordInHAProxyOutlivesARestart(t *testing.T) {
	t.Parallel()
	needs(t, "haproxy")
	for _, drains := range []bool{false, true} {
		for _, state := range []string{"maint", "drain"} {
			t.Run(fmt.Sprintf("agent_drain %v %s", drains, state), func(t *testing.T) {
				t.Parallel()
				host := (&proctest.Host{Name: "a"}).Start(t)
				relay, agent := freeAddr(t), freeAddr(t)
				drain := ""
				if drains {
					drain = ", agent_drain: true"
				}
				file := writeFile(t, "understudy.yaml", fmt.Sprintf("http: %q\nrelays: [{name: r, listen: [%q], hosts: [%q]}]\nroutes: {/ping: {agent: %q%s}}\n",
					freeAddr(t), relay, host.Addr(), agent, drain))
				u := start(t, "--config", file)
				awaitGreeting(t, u, relay, "a")
				b := newBalancer(t, fmt.Sprintf("server web %s check agent-check agent-port %s agent-inter 100ms inter 100ms", relay, portOf(agent)))
				proctest.Until(t, "HAProxy says UP", func() bool { return serverState(b.socket) == "UP" })
				if drains { // its minute of ready would reset the operator's state
					u.Terminate()
				}
				b.command(t, "set server be/web state "+state)
				shown := strings.ToUpper(state)
				if !drains {
					proctest.Until(t, "HAProxy says "+shown, func() bool { return strings.HasPrefix(serverState(b.socket), shown) })
					u.Terminate()
				}
				u = start(t, "--config", file)
				awaitGreeting(t, u, relay, "a")
				if drains {
					proctest.Until(t, "HAProxy says UP", func() bool { return serverState(b.socket) == "UP" })
					return
				}
				proctest.Until(t, "the agent says up", func() bool { return strings.HasPrefix(spoken(agent), "up") })
				// The agent is queried ten times a second: the state would have been reset
				// by now.
				got := ""
				for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
					if got = serverState(b.socket); got == "UP" {
						break
					}
				}
				if !strings.HasPrefix(got, shown) {
					t.Errorf("HAProxy says %q after the restart, want %s", got, shown)
				}
			})
		}
	}
}
