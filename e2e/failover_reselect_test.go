//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

const sessions = 50

// gatherSessions connects clients that stay and have each had an answer from a.
func gatherSessions(t *testing.T, addr string) []client {
	t.Helper()
	all := make([]client, sessions)
	for i := range all {
		all[i] = dial(t, addr)
		all[i].want("a\n")
	}
	return all
}

// wantAllServed checks that every session still has its host.
func wantAllServed(t *testing.T, all []client, when string) {
	t.Helper()
	cut := 0
	for _, c := range all {
		got := make([]byte, len(when))
		if _, err := c.Write([]byte(when)); err != nil {
			cut++
		} else if _, err := c.Read(got); err != nil || string(got) != when {
			cut++
		}
	}
	if cut > 0 {
		t.Errorf("%s: %d of %d sessions were cut, want none", when, cut, len(all))
	}
}

// endSessions closes the connections of the clients.
func endSessions(all []client) {
	for _, c := range all {
		_ = c.Close()
	}
}

// wantAllReset checks that every session has been reset already.
func wantAllReset(t *testing.T, all []client, when string) {
	t.Helper()
	open := 0
	for _, c := range all {
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.Control(func(fd uintptr) {
			if _, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_DONTWAIT); !errors.Is(err, unix.ECONNRESET) {
				open++
			}
		})
	}
	if open > 0 {
		t.Errorf("%s: %d of %d earlier sessions are open, want none", when, open, len(all))
	}
}

// A host that is elected again keeps its connections. With two hosts, the other
// one is down meanwhile.
func TestReselectCutsNoClient(t *testing.T) {
	t.Parallel()
	outages := []struct {
		name  string
		args  func(s *show, says string) []string
		begin func(s *show, says string)
		end   func(s *show, says string)
	}{
		{"stopped",
			func(s *show, _ string) []string {
				return []string{"--pong-port", strconv.Itoa(s.a.PingPort), "--timeout", "500ms"}
			},
			func(s *show, _ string) { s.a.Stop() },
			func(s *show, _ string) { s.a.Continue() }},
		{"port closed",
			func(*show, string) []string { return nil },
			func(s *show, _ string) { s.a.StopListening() },
			func(s *show, _ string) { s.a.Listen() }},
		{"script says no",
			func(s *show, says string) []string {
				return []string{"--check-host", script(s.t, "test ! -e '"+says+"'\n"), "--check-interval", "200ms"}
			},
			func(s *show, says string) {
				if err := os.WriteFile(says, nil, 0o600); err != nil {
					s.t.Fatal(err)
				}
			},
			func(s *show, says string) {
				if err := os.Remove(says); err != nil {
					s.t.Fatal(err)
				}
			}},
	}
	for _, o := range outages {
		for _, hosts := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, one of %d", o.name, hosts), func(t *testing.T) {
				t.Parallel()
				s := newOperated(t)
				if o.name == "stopped" {
					s.a.Kill()
					s.a = (&proctest.Host{Name: "a", PingPort: proctest.FreePort(t, "127.0.0.1")}).Start(t)
				}
				names := s.a.Addr()
				if hosts == 2 {
					names += "," + s.b.Addr()
				}
				s.b.Kill()
				says := filepath.Join(t.TempDir(), "no")
				s.Understudy = start(t, append([]string{
					"--bind", s.addr, "--hosts", names, "--on-failover", script(t, recording(s.record)),
					"--control", s.socket, "--interval", "200ms", "--hold", "500ms", "--max-backoff", "1s",
				}, o.args(s.show, says)...)...)
				s.awaitGreeting("a")
				all := gatherSessions(t, s.addr)

				o.begin(s.show, says)
				s.Until("clients are refused", func() bool { return countLog(s.Understudy, "clients are refused: ") == 1 })
				if o.name != "stopped" {
					wantAllServed(t, all, "while no host is usable")
				}
				o.end(s.show, says)
				s.awaitGreeting("a")
				wantAllServed(t, all, "after the reselect")

				s.wantTriggers(s.started(), s.triggerLine("reselect", 2, s.a.Addr(), s.a.Addr()))
				wantLog(t, s.Understudy, 1, "earlier connections fenced", "reset=0 moved=0 kept=50")
				s.want(0, words("events"), "0 reset, 0 moved, 50 kept")
				endSessions(all)
				if n := s.end(); n["reset"] != 0 {
					t.Errorf("counts at the end: %v, want no reset", n)
				}
			})
		}
	}
}

// While no host is usable the sessions of the last primary go on, whatever the
// fence policy, because there is no second primary. They end before the first
// byte of another host, also when their host was elected again meanwhile.
func TestSessionsOutliveASpellWithoutPrimary(t *testing.T) {
	t.Parallel()
	for _, fence := range []string{"now", "drain=1s"} {
		t.Run(fence, func(t *testing.T) {
			t.Parallel()
			s := newShow(t)
			s.b.Kill()
			s.begin("--fence", fence, "--interval", "200ms", "--hold", "500ms", "--max-backoff", "1s")
			all := gatherSessions(t, s.addr)
			for n := 1; n <= 2; n++ {
				s.a.StopListening()
				s.Until("clients are refused", func() bool { return countLog(s.Understudy, "clients are refused: ") == n })
				wantAllServed(t, all, "while no host is usable")
				if n == 1 {
					s.a.Listen()
					s.awaitGreeting("a")
				}
			}
			s.b.Restart()
			s.awaitGreeting("b")
			wantAllReset(t, all, "after the first byte of b")
			wantLog(t, s.Understudy, 1, "earlier connections fenced", "epoch=3", "reset=50", "kept=0")
			s.wantTriggers(s.started(), s.triggerLine("reselect", 2, s.a.Addr(), s.a.Addr()), s.triggerLine("failover", 3, s.a.Addr(), s.b.Addr()))
			if n := s.end(); n["fenced"] != sessions {
				t.Errorf("counts at the end: %v, want %d fenced", n, sessions)
			}
		})
	}
}

// A switchover whose new host dies while connections to the old one may still
// finish goes back, and those that have not finished go on.
func TestSwitchoverThatDiesInTheDrainCutsNoClient(t *testing.T) {
	t.Parallel()
	o := operate(t, "--interval", "200ms")
	all := gatherSessions(t, o.addr)
	order := o.command("switch", o.b.Addr(), "--drain", "1h")
	o.Until("b is elected", func() bool { return countLog(o.Understudy, "host elected", "event=switchover") == 1 })
	o.b.Kill()
	o.awaitGreeting("a")
	wantAllServed(t, all, "after the way back")
	if code := order.Exit(); code == 0 {
		t.Errorf("switch says that b is primary:\n%s", order.Stdout())
	}
	for _, epoch := range []string{"epoch=2", "epoch=3"} {
		wantLog(t, o.Understudy, 1, "earlier connections fenced", epoch, "reset=0 moved=0 kept=50")
	}
	o.wantTriggers(o.started(), o.triggerLine("failover", 3, o.b.Addr(), o.a.Addr())) // none for b, which was down
	endSessions(all)
	o.end()
}
