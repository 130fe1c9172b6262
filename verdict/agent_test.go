package verdict

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/proctest"
)

// runner is what an Agent and a TCPResponder have in common.
type runner interface {
	Bind() error
	Addr() net.Addr
	Run(ctx context.Context) error
}

func newAgent(tb testing.TB, cfg AgentConfig) *Agent {
	tb.Helper()
	cfg.Listen = "127.0.0.1:0"
	a, err := NewAgent(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

func TestAgent(t *testing.T) {
	var o opinion
	var draining atomic.Bool
	o.be("no primary")
	addr, stop := run(t, newAgent(t, AgentConfig{Evaluate: o.evaluate, Draining: draining.Load, SendDrain: yes}))
	if got := say(t, addr, ""); got != "down #no primary\n" {
		t.Errorf("sent %q at first, want that there is no primary", got)
	}
	o.be("")
	proctest.Until(t, "the verdict is good", func() bool { return say(t, addr, "") == "up ready\n" })
	draining.Store(true)
	if got := say(t, addr, ""); got != "drain\n" {
		t.Errorf("sent %q, want drain at once", got)
	}
	draining.Store(false)
	if got := say(t, addr, "state\n"); got != "up ready\n" {
		t.Errorf("sent %q, want up and the drain called off", got)
	}
	o.be("bad\r\nup ready\x00é" + strings.Repeat("x", 100))
	want := "down #bad??up ready??" + strings.Repeat("x", maxAgentReason-15) + "\n"
	proctest.Until(t, "the verdict is bad", func() bool { return strings.HasPrefix(say(t, addr, ""), "down") })
	if got := say(t, addr, ""); got != want {
		t.Errorf("sent %q, want %q", got, want)
	}
	stop()
	if _, err := net.Dial("tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial after the end: %v, want connection refused", err)
	}
}

// A drain is called off for a minute, not for ever: a drain by HAProxy's own
// operator stays.
func TestAgentCallsDrainOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		draining := false
		a := newAgent(t, AgentConfig{Evaluate: func(context.Context) error { return nil }, Draining: func() bool { return draining }, SendDrain: yes})
		wantLine := func(want string) {
			t.Helper()
			if got := a.line(); got != want+"\n" {
				t.Errorf("sent %q, want %q", got, want)
			}
		}
		a.verdict = ErrNoPrimary
		wantLine("down #no primary")
		time.Sleep(time.Hour) // virtual
		a.verdict = nil
		wantLine("up ready")
		time.Sleep(readyFor - 1) // virtual
		wantLine("up ready")
		time.Sleep(time.Nanosecond) // virtual
		wantLine("up")
		a.verdict = ErrNoPrimary
		wantLine("down #no primary")
		a.verdict = nil
		wantLine("up")
		draining = true
		wantLine("drain")
		a.verdict = ErrNoPrimary
		wantLine("drain")
		draining = false
		wantLine("down #no primary")
		a.verdict = nil
		wantLine("up ready")
	})
}

// yes is an answer to what an agent asks.
func yes() bool { return true }

// An agent without SendDrain never sends a word that changes what an
// operator has set in HAProxy.
func TestAgentLeavesTheOperatorAlone(t *testing.T) {
	draining := false
	a := newAgent(t, AgentConfig{Evaluate: func(context.Context) error { return nil }, Draining: func() bool { return draining }})
	wantLine := func(want string) {
		t.Helper()
		if got := a.line(); got != want+"\n" {
			t.Errorf("sent %q, want %q", got, want)
		}
	}
	wantLine("up")
	a.verdict = ErrNoPrimary
	wantLine("down #no primary")
	a.verdict = nil
	draining = true
	wantLine("down #ending")
	draining = false
	wantLine("up")
}

// Who connects before the first verdict waits for it.
func TestAgentWaitsForVerdict(t *testing.T) {
	release := make(chan struct{})
	a := newAgent(t, AgentConfig{Evaluate: func(context.Context) error { <-release; return nil }})
	addr, _ := run(t, a)
	conn := dialHTTP(t, addr)
	conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // time for a mistake
	if n, err := conn.Read(make([]byte, 10)); !os.IsTimeout(err) {
		t.Errorf("sent %d bytes, %v before there was a verdict", n, err)
	}
	close(release)
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if got, err := io.ReadAll(conn); string(got) != "up\n" || err != nil {
		t.Errorf("sent %q, %v", got, err)
	}
}

// A verdict in progress does not keep the program from ending, nor a client that waits
// for the first one from getting it.
func TestVerdictPortsEndBesideHungEvaluation(t *testing.T) {
	release := make(chan struct{})
	requested := make(chan struct{}, 2)
	evaluate := func(context.Context) error { requested <- struct{}{}; <-release; return nil }
	for _, r := range []runner{newAgent(t, AgentConfig{Evaluate: evaluate}), newTCPResponder(t, "127.0.0.1:0", evaluate)} {
		_, stop := run(t, r)
		<-requested
		stop() // fails the test after 15s
	}
	close(release)
}

// What a client has sent, however much, does not cost it its line.
func TestAgentReadsWhatIsSent(t *testing.T) {
	addr, _ := run(t, newAgent(t, AgentConfig{Evaluate: func(context.Context) error { return nil }}))
	for range 50 {
		conn := dialHTTP(t, addr)
		io.WriteString(conn, strings.Repeat("state\n", 1000))
		if got, err := io.ReadAll(conn); string(got) != "up\n" || err != nil {
			t.Fatalf("sent %q, %v, want a line and the end", got, err)
		}
	}
}

// A client that sends behind its line is not answered with a reset, for a
// second.
func TestAgentHearsLateWords(t *testing.T) {
	addr, _ := run(t, newAgent(t, AgentConfig{Evaluate: func(context.Context) error { return nil }}))
	var err error
	for range 20 { // a busy machine may take longer than that second
		conn := dialHTTP(t, addr)
		if _, err = io.ReadAll(conn); err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "state\n")
		time.Sleep(20 * time.Millisecond) // time for a reset
		if _, err = io.WriteString(conn, "state\n"); err == nil {
			return
		}
	}
	t.Errorf("write behind the line: %v, want it taken", err)
}

// Clients that never leave do not keep others out, and are sent away.
func TestAgentSlowClients(t *testing.T) {
	addr, _ := run(t, newAgent(t, AgentConfig{Evaluate: func(context.Context) error { return nil }}))
	var slow []*net.TCPConn
	for range 10 * maxAgentClients {
		slow = append(slow, dialHTTP(t, addr))
	}
	began := time.Now()
	if got := say(t, addr, ""); got != "up\n" {
		t.Errorf("sent %q beside %d who stay", got, len(slow))
	}
	// To wait for the timeout of all of them takes 10s.
	if took := time.Since(began); took > 7*time.Second {
		t.Errorf("sent after %s beside %d who stay, want no wait for them", took, len(slow))
	}
	for _, conn := range slow {
		if got, err := io.ReadAll(conn); string(got) != "up\n" && err == nil {
			t.Errorf("one who stays got %q, %v", got, err)
		}
	}
	// Our side is gone too: what they send is answered with a reset.
	proctest.Until(t, "a client that stays is cut off", func() bool {
		_, err := slow[len(slow)-1].Write([]byte("x"))
		return err != nil && !os.IsTimeout(err)
	})
}

func TestVerdictPortMistakes(t *testing.T) {
	if _, err := NewAgent(AgentConfig{Listen: "9002"}); err == nil || !strings.Contains(err.Error(), `"9002"`) || !strings.Contains(err.Error(), "evaluate") {
		t.Errorf("NewAgent() = %v, want both mistakes", err)
	}
	if _, err := NewTCPResponder(TCPResponderConfig{Listen: "9002"}); err == nil || !strings.Contains(err.Error(), `"9002"`) || !strings.Contains(err.Error(), "evaluate") {
		t.Errorf("NewTCPResponder() = %v, want both mistakes", err)
	}
}

func FuzzAgentWords(f *testing.F) {
	for _, seed := range []string{"no primary", "a\nup", "\xff\x00", "é # x, y"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, reason string) {
		a := &Agent{verdict: errors.New(reason)}
		line := a.line()
		if !regexp.MustCompile(`^down #[ -~]{0,64}\n$`).MatchString(line) {
			t.Fatalf("%q becomes %q", reason, line)
		}
	})
}

// HAProxy itself understands every line.
func TestAgentWithHAProxy(t *testing.T) {
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		t.Skip("haproxy is not installed")
	}
	var o opinion
	var draining atomic.Bool
	addr, _ := run(t, newAgent(t, AgentConfig{Evaluate: o.evaluate, Draining: draining.Load, SendDrain: yes}))
	_, port, _ := net.SplitHostPort(addr)
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	go func() {
		for {
			conn, err := backend.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()

	dir := t.TempDir()
	socket := filepath.Join(dir, "stats")
	config := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(config, fmt.Appendf(nil, `global
  stats socket %s mode 600 level admin
defaults
  mode tcp
  timeout connect 5s
  timeout client 5s
  timeout server 5s
backend b
  server s %s check inter 100ms rise 1 fall 1 agent-check agent-port %s agent-inter 100ms agent-send "state\n"
`, socket, backend.Addr(), port), 0o600); err != nil {
		t.Fatal(err)
	}
	var out lockedBuffer
	cmd := exec.Command(haproxy, "-db", "-f", config)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("haproxy: %s", out.String())
		}
	}()
	command := func(line string) string {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return ""
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		io.WriteString(conn, line+"\n")
		answer, _ := io.ReadAll(conn)
		return string(answer)
	}
	status := func() string {
		for line := range strings.Lines(command("show stat")) {
			if strings.HasPrefix(line, "b,s,") {
				return strings.Split(line, ",")[17]
			}
		}
		return ""
	}
	until := func(want string) {
		t.Helper()
		proctest.Until(t, "HAProxy shows "+want, func() bool { return strings.HasPrefix(status(), want) })
	}
	until("UP")
	o.be("no primary")
	until("DOWN (agent)")
	o.be("")
	until("UP")
	draining.Store(true)
	until("DRAIN")
	draining.Store(false)
	until("UP")
}
