package health

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
)

// opinion is a verdict that a test sets.
type opinion struct{ atomic.Pointer[string] }

// be sets the verdict; "" is a good one.
func (o *opinion) be(reason string) { o.Store(&reason) }

func (o *opinion) judge(context.Context) error {
	if s := o.Load(); s != nil && *s != "" {
		return errors.New(*s)
	}
	return nil
}

// runner is what an Agent and a Lamp have in common.
type runner interface {
	Bind() error
	Addr() net.Addr
	Run(ctx context.Context) error
}

// run binds r and runs it until the test ends, or stop is called.
func run(tb testing.TB, r runner) (addr string, stop func()) {
	tb.Helper()
	noLeaks(tb)
	if err := r.Run(tb.Context()); err == nil {
		tb.Fatal("Run() before Bind = nil, want an error")
	}
	if err := r.Bind(); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	stop = func() {
		cancel()
		select {
		case err := <-ended:
			ended <- err
			if err != nil {
				tb.Errorf("Run() = %v, want nil", err)
			}
		case <-time.After(15 * time.Second):
			tb.Error("Run did not return after its context ended")
		}
	}
	tb.Cleanup(stop)
	return r.Addr().String(), stop
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
	addr, stop := run(t, newAgent(t, AgentConfig{Judge: o.judge, Draining: draining.Load}))
	if got := say(t, addr, ""); got != "down #no primary\n" {
		t.Errorf("told %q at first, want that there is no primary", got)
	}
	o.be("")
	waitUntil(t, "the verdict is good", func() bool { return say(t, addr, "") == "up ready\n" })
	draining.Store(true)
	if got := say(t, addr, ""); got != "drain\n" {
		t.Errorf("told %q, want drain at once", got)
	}
	draining.Store(false)
	if got := say(t, addr, "state\n"); got != "up ready\n" {
		t.Errorf("told %q, want up and the drain called off", got)
	}
	o.be("bad\r\nup ready\x00é" + strings.Repeat("x", 100))
	want := "down #bad??up ready??" + strings.Repeat("x", maxAgentWords-15) + "\n"
	waitUntil(t, "the verdict is bad", func() bool { return strings.HasPrefix(say(t, addr, ""), "down") })
	if got := say(t, addr, ""); got != want {
		t.Errorf("told %q, want %q", got, want)
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
		a := newAgent(t, AgentConfig{Judge: func(context.Context) error { return nil }, Draining: func() bool { return draining }})
		told := func(want string) {
			t.Helper()
			if got := a.line(); got != want+"\n" {
				t.Errorf("told %q, want %q", got, want)
			}
		}
		a.verdict = ErrNoPrimary
		told("down #no primary")
		time.Sleep(time.Hour)
		a.verdict = nil
		told("up ready")
		time.Sleep(readyFor - 1)
		told("up ready")
		time.Sleep(time.Nanosecond)
		told("up")
		a.verdict = ErrNoPrimary
		told("down #no primary")
		a.verdict = nil
		told("up")
		draining = true
		told("drain")
		a.verdict = ErrNoPrimary
		told("drain")
		draining = false
		told("down #no primary")
		a.verdict = nil
		told("up ready")
	})
}

// Who connects before the first verdict waits for it.
func TestAgentWaitsForVerdict(t *testing.T) {
	release := make(chan struct{})
	a := newAgent(t, AgentConfig{Judge: func(context.Context) error { <-release; return nil }})
	addr, _ := run(t, a)
	conn := dialHTTP(t, addr)
	conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // time for a mistake
	if n, err := conn.Read(make([]byte, 10)); !os.IsTimeout(err) {
		t.Errorf("told %d bytes, %v before there was a verdict", n, err)
	}
	close(release)
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if got, err := io.ReadAll(conn); string(got) != "up ready\n" || err != nil {
		t.Errorf("told %q, %v", got, err)
	}
}

// A verdict under way does not keep the program from ending, nor who waits
// for the first one from being told.
func TestVerdictPortsEndBesideHungJudge(t *testing.T) {
	release := make(chan struct{})
	asked := make(chan struct{}, 2)
	judge := func(context.Context) error { asked <- struct{}{}; <-release; return nil }
	for _, r := range []runner{newAgent(t, AgentConfig{Judge: judge}), newLamp(t, "127.0.0.1:0", judge)} {
		_, stop := run(t, r)
		<-asked
		stop() // fails the test after 15s
	}
	close(release)
}

// What a client has sent, however much, does not cost it its line.
func TestAgentReadsWhatIsSent(t *testing.T) {
	addr, _ := run(t, newAgent(t, AgentConfig{Judge: func(context.Context) error { return nil }}))
	for range 50 {
		conn := dialHTTP(t, addr)
		io.WriteString(conn, strings.Repeat("state\n", 1000))
		if got, err := io.ReadAll(conn); string(got) != "up ready\n" || err != nil {
			t.Fatalf("told %q, %v, want a line and the end", got, err)
		}
	}
}

// A client that sends behind its line is not answered with a reset, for a
// second.
func TestAgentHearsLateWords(t *testing.T) {
	addr, _ := run(t, newAgent(t, AgentConfig{Judge: func(context.Context) error { return nil }}))
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
	addr, _ := run(t, newAgent(t, AgentConfig{Judge: func(context.Context) error { return nil }}))
	var slow []*net.TCPConn
	for range 10 * maxAgentClients {
		slow = append(slow, dialHTTP(t, addr))
	}
	began := time.Now()
	if got := say(t, addr, ""); got != "up ready\n" {
		t.Errorf("told %q beside %d who stay", got, len(slow))
	}
	// Whoever waits for all of them to be out of time waits 10s.
	if took := time.Since(began); took > 7*time.Second {
		t.Errorf("told after %s beside %d who stay, want no wait for them", took, len(slow))
	}
	for _, conn := range slow {
		if got, err := io.ReadAll(conn); string(got) != "up ready\n" && err == nil {
			t.Errorf("one who stays was told %q, %v", got, err)
		}
	}
	// Our side is gone too: what they send is answered with a reset.
	waitUntil(t, "a client that stays is cut off", func() bool {
		_, err := slow[len(slow)-1].Write([]byte("x"))
		return err != nil && !os.IsTimeout(err)
	})
}

func TestVerdictPortMistakes(t *testing.T) {
	if _, err := NewAgent(AgentConfig{Listen: "9002"}); err == nil || !strings.Contains(err.Error(), `"9002"`) || !strings.Contains(err.Error(), "judge") {
		t.Errorf("NewAgent() = %v, want both mistakes", err)
	}
	if _, err := NewLamp(LampConfig{Listen: "9002"}); err == nil || !strings.Contains(err.Error(), `"9002"`) || !strings.Contains(err.Error(), "judge") {
		t.Errorf("NewLamp() = %v, want both mistakes", err)
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
	addr, _ := run(t, newAgent(t, AgentConfig{Judge: o.judge, Draining: draining.Load}))
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
		waitUntil(t, "HAProxy shows "+want, func() bool { return strings.HasPrefix(status(), want) })
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
