package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/health"
	"understudy/internal/proctest"
)

// freeAddr is an address on loopback that nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(proctest.FreePort(t, "127.0.0.1")))
}

// script writes an executable script and returns its path.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script.sh")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// lines returns the lines of a file that may not exist.
func lines(path string) []string {
	text, _ := os.ReadFile(path)
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// checkCounts reads the counting line of the log and checks that it adds up.
func checkCounts(t *testing.T, log string) map[string]int {
	t.Helper()
	_, line, ok := strings.Cut(log, "ended: relay=")
	if !ok {
		t.Fatal("no counting line in the log")
	}
	line, _, _ = strings.Cut(line, "\n")
	n := map[string]int{}
	for _, m := range regexp.MustCompile(`(\w+)=(\d+)`).FindAllStringSubmatch(line, -1) {
		n[m[1]], _ = strconv.Atoi(m[2])
	}
	if sum := n["live"] + n["finished"] + n["reset"] + n["fenced"] + n["expired"] + n["gone"]; n["accepted"] != sum {
		t.Errorf("accepted=%d, but the others are %d together: %s", n["accepted"], sum, line)
	}
	return n
}

// awaitGreeting waits until host answers at addr.
func awaitGreeting(t *testing.T, addr, host string) {
	t.Helper()
	proctest.Until(t, host+" answers at "+addr, func() bool {
		who, err := proctest.Greeting(addr, 5*time.Second)
		return err == nil && who == host
	})
}

// awaitGone waits until a process of this machine is gone.
func awaitGone(t *testing.T, pid int) {
	t.Helper()
	proctest.Until(t, fmt.Sprintf("process %d is gone", pid), func() bool {
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
	})
}

func TestClientsAreRelayedAndTheEndIsClean(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	b := (&proctest.Host{Name: "b"}).Start(t)
	addr := freeAddr(t)
	u := proctest.Start(t, []string{"HOSTS=" + a.Addr() + "," + b.Addr(), "BIND=" + addr, "RISE="}, "--hold", "20")
	awaitGreeting(t, addr, "a")
	if _, err := proctest.Greeting(addr, 5*time.Second); err != nil {
		t.Error(err)
	}
	u.Signal(syscall.SIGHUP) // nothing to reload, and no end
	u.WaitLog("nothing to reload")
	if who, err := proctest.Greeting(addr, 5*time.Second); who != "a" || err != nil {
		t.Errorf("after HUP %q answers, %v, want a", who, err)
	}
	u.Signal(syscall.SIGTERM)
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	if n := checkCounts(t, u.Log()); n["accepted"] < 3 || n["finished"] != n["accepted"] {
		t.Errorf("counts %v, want at least 3 accepted and all finished", n)
	}
}

func TestKillingThePrimaryLosesNoClient(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	b := (&proctest.Host{Name: "b"}).Start(t)
	addr, ran := freeAddr(t), filepath.Join(t.TempDir(), "ran")
	trigger := script(t, `echo "$UNDERSTUDY_EVENT $1" >>`+ran+"\n")
	u := proctest.Start(t, nil, "-b", addr, "-H", a.Addr()+","+b.Addr(), "-f", trigger)
	awaitGreeting(t, addr, "a")

	load := proctest.StartLoad(t, addr, 100, 15*time.Second)
	proctest.Until(t, "100 clients are served", func() bool { return load.Served() >= 100 })
	a.Kill()
	u.WaitLog("epoch=2 queued=") // open again
	served := load.Served()
	proctest.Until(t, "100 more are served", func() bool { return load.Served() >= served+100 })
	report := load.Stop()
	t.Log(report)
	if lost := report.Lost(); len(lost) > 0 {
		t.Errorf("%d clients lost, first: %+v", len(lost), lost[0])
	}
	if gap := report.Gap(); gap > 3*time.Second { // 0.2s on a machine with nothing else to do
		t.Errorf("nobody was served for %v", gap)
	}
	want := []string{"start " + a.Addr(), "failover " + b.Addr()}
	if got := lines(ran); strings.Join(got, ",") != strings.Join(want, ",") {
		t.Errorf("triggers ran: %q, want %q", got, want)
	}
	u.Signal(syscall.SIGTERM)
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	checkCounts(t, u.Log())
}

func TestBusyPortEndsBeforeAnyScriptRuns(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	busy, err := net.Listen("tcp", freeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	_, port, _ := net.SplitHostPort(busy.Addr().String())
	ran := filepath.Join(t.TempDir(), "ran")
	trigger := script(t, "echo x >>"+ran+"\n")
	for _, args := range [][]string{
		{"--bind", busy.Addr().String()},
		{"--port", port},
		{"--bind", freeAddr(t), "--http", busy.Addr().String()},
	} {
		u := proctest.Start(t, nil, append(args, "-H", a.Addr(), "-f", trigger, "-c", trigger)...)
		if code := u.Exit(); code != 1 {
			t.Errorf("%q: exit status %d, want 1", args, code)
		}
		if log := u.Log(); !strings.Contains(log, port) || !strings.Contains(log, "address already in use") {
			t.Errorf("%q: the log does not name the port:\n%s", args, log)
		}
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("a script ran")
	}
}

func TestTermLetsConnectionsFinish(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	addr := freeAddr(t)
	u := proctest.Start(t, nil, "-b", addr, "-H", a.Addr())
	awaitGreeting(t, addr, "a")
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 2)); err != nil { // "a\n"
		t.Fatal(err)
	}
	u.Signal(syscall.SIGTERM)
	proctest.Until(t, "nobody is let in", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	// The host echoes what it gets: this connection goes on.
	if _, err := conn.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	conn.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(conn); string(got) != "still here" || err != nil {
		t.Errorf("read %q, %v, want still here", got, err)
	}
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
}

func TestSecondSignalEndsAtOnceAndLeavesNoScript(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	addr, pidFile := freeAddr(t), filepath.Join(t.TempDir(), "pid")
	// The trigger of the first election runs for ever and ignores TERM.
	trigger := script(t, "trap '' TERM\necho $$ >"+pidFile+"\nwhile :; do sleep 1; done\n")
	u := proctest.Start(t, nil, "-b", addr, "-H", a.Addr(), "-f", trigger)
	u.Until("the trigger runs", func() bool { return lines(pidFile)[0] != "" })
	pid, err := strconv.Atoi(lines(pidFile)[0])
	if err != nil {
		t.Fatal(err)
	}
	u.Signal(syscall.SIGTERM)
	u.WaitLog("ending: connections may finish")
	begin := time.Now()
	u.Signal(syscall.SIGINT)
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	// 200ms on an idle machine; a script that ignores TERM would take 2s.
	if took := time.Since(begin); took > 1500*time.Millisecond {
		t.Errorf("the end took %v after the second signal", took)
	}
	awaitGone(t, pid)
}

func TestSecondSignalCutsConnections(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	addr := freeAddr(t)
	u := proctest.Start(t, nil, "-b", addr, "-H", a.Addr())
	awaitGreeting(t, addr, "a")
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	u.Signal(syscall.SIGTERM)
	u.WaitLog("ending: connections may finish")
	u.Signal(syscall.SIGTERM)
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the open connection read %d bytes, %v, want a reset", n, err)
	}
	if n := checkCounts(t, u.Log()); n["live"] != 0 {
		t.Errorf("%d connections live at the end", n["live"])
	}
}

func TestPingSaysWhetherThereIsAPrimary(t *testing.T) {
	t.Parallel()
	a := &proctest.Host{Name: "a", Port: proctest.FreePort(t, "127.0.0.1")}
	addr, verdict := freeAddr(t), freeAddr(t)
	u := proctest.Start(t, nil, "-b", addr, "-H", "127.0.0.1:"+strconv.Itoa(a.Port), "--http", verdict, "-B", "1")
	ping := func() string {
		answer, err := health.Ask(t.Context(), "http://"+verdict+"/ping", nil)
		return fmt.Sprint(answer, " ", err == nil)
	}
	u.Until("503 no primary", func() bool { return ping() == "503 no primary false" })
	if _, err := proctest.Greeting(addr, time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("without a primary a connect gives %v, want refused", err)
	}
	a.Start(t)
	u.Until("200 pong", func() bool { return ping() == "200 pong true" })
	u.Until("good verdicts are on standard output, bad ones on standard error", func() bool {
		return strings.Contains(u.Stdout(), `"GET /ping HTTP/1.1" 200`) && strings.Contains(u.Log(), `"GET /ping HTTP/1.1" 503`)
	})
	if strings.Contains(u.Stdout(), " 503") || strings.Contains(u.Log(), " 200\n") {
		t.Error("verdicts are on both streams")
	}
}

func TestVerdictsWithoutARelay(t *testing.T) {
	t.Parallel()
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "pong\n") }))
	defer good.Close()
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ouch") }))
	defer bad.Close()
	port := func(s *httptest.Server) string { return s.URL[strings.LastIndexByte(s.URL, ':')+1:] }
	ask := func(verdict, want string) {
		t.Helper()
		proctest.Until(t, "the answer is "+want, func() bool {
			answer, _ := health.Ask(t.Context(), "http://"+verdict+"/up", nil)
			return answer == want
		})
	}
	first, second, third := freeAddr(t), freeAddr(t), freeAddr(t)
	proctest.Start(t, nil, "--http", first, "--lport", port(good), "--ping-path", "/up")
	ask(first, "200 pong")
	// A wrong body with the right status is no success, unless that is wanted.
	u := proctest.Start(t, []string{"LPORTS=" + port(good) + "," + port(bad)}, "--http", second, "--ping-path", "/up")
	ask(second, "502 ouch")
	proctest.Start(t, []string{"LPORTS=" + port(good) + "," + port(bad)}, "--http", third, "--ping-path", "/up", "--fail-status", "keep")
	ask(third, "200 ouch")
	u.Signal(syscall.SIGTERM)
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
}

func TestScriptsDirectoryIsUsed(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	b := (&proctest.Host{Name: "b"}).Start(t)
	dir, ran := t.TempDir(), filepath.Join(t.TempDir(), "ran")
	if err := os.Mkdir(filepath.Join(dir, "triggers.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"check-host.sh":     `[ "$1" = ` + b.Addr() + " ]\n",
		"triggers.d/10-one": "echo one $1 >>" + ran + "\n",
		"triggers.d/9-two":  "echo two $1 >>" + ran + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	addr := freeAddr(t)
	u := proctest.Start(t, []string{"SCRIPTS_DIR=" + dir}, "-b", addr, "-H", a.Addr()+","+b.Addr())
	awaitGreeting(t, addr, "b") // the check refuses a
	want := "one " + b.Addr() + ",two " + b.Addr()
	if got := strings.Join(lines(ran), ","); got != want {
		t.Errorf("triggers ran: %q, want %q", got, want)
	}
	u.Signal(syscall.SIGTERM)
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
}

func TestFullStandardErrorDelaysNobody(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// Nobody reads, and the pipe is full from the start.
	conn, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Write(func(fd uintptr) bool {
		for {
			if _, err := syscall.Write(int(fd), make([]byte, 1)); err != nil {
				return true // EAGAIN: os.Pipe does not block
			}
		}
	})
	addr := freeAddr(t)
	cmd := proctest.Command(t, nil, "-b", addr, "-H", a.Addr(), "--log-level", "trace")
	// A descriptor that the child shares must block, as a real one does.
	cmd.Stderr = os.NewFile(w.Fd(), "stderr")
	u := proctest.StartCommand(t, cmd)
	awaitGreeting(t, addr, "a")
	for range 300 {
		if _, err := proctest.Greeting(addr, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	u.Signal(syscall.SIGTERM)
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the end took %v with a stuck log", took)
	}
}

func TestClosedOutputsEndNothing(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	addr, verdict := freeAddr(t), freeAddr(t)
	cmd := proctest.Command(t, nil, "-b", addr, "-H", a.Addr(), "--http", verdict, "--log-level", "debug")
	cmd.Stdout, cmd.Stderr = w, w
	u := proctest.StartCommand(t, cmd)
	w.Close()
	awaitGreeting(t, addr, "a")
	u.Until("the verdict is good", func() bool {
		_, err := health.Ask(t.Context(), "http://"+verdict+"/ping", nil)
		return err == nil
	})
	r.Close() // from here on each write is EPIPE, and SIGPIPE
	for range 20 {
		if _, err := health.Ask(t.Context(), "http://"+verdict+"/ping", nil); err != nil {
			t.Fatal(err)
		}
		if _, err := proctest.Greeting(addr, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	u.Signal(syscall.SIGTERM)
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
}

func TestDescriptorLimitIsRaised(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	addr, seen := freeAddr(t), filepath.Join(t.TempDir(), "seen")
	trigger := script(t, "ulimit -Sn >"+seen+"\n")
	cmd := proctest.Command(t, nil, "-b", addr, "-H", a.Addr(), "-f", trigger)
	cmd.Args = append([]string{"sh", "-c", `ulimit -Sn 200; ulimit -Hn 1000; exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path, cmd.Err = "/bin/sh", nil
	u := proctest.StartCommand(t, cmd)
	awaitGreeting(t, addr, "a")
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", u.PID()))
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("SKIP: needs /proc")
	}
	// One below the hard limit is how the Go runtime marks what it has done.
	if !regexp.MustCompile(`Max open files +999 +1000`).Match(limits) {
		t.Errorf("the soft limit is not raised to the hard one:\n%s", limits)
	}
	if got := lines(seen)[0]; got != "200" {
		t.Errorf("scripts have a limit of %s descriptors, want the original 200", got)
	}
	u.WaitLog("descriptor limit is low")
}

func TestSocketsPassedBySystemd(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	l, err := net.Listen("tcp", freeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	cmd := proctest.Command(t, []string{"LISTEN_FDS=1"}, "-H", a.Addr())
	cmd.Args = append([]string{"sh", "-c", `export LISTEN_PID=$$; exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path, cmd.Err = "/bin/sh", nil
	cmd.ExtraFiles = []*os.File{file} // descriptor 3
	u := proctest.StartCommand(t, cmd)
	addr := l.Addr().String()
	file.Close()
	l.Close()
	awaitGreeting(t, addr, "a")
	u.Signal(syscall.SIGTERM)
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
}

func TestDemo(t *testing.T) {
	t.Parallel()
	binary := proctest.Build(t)
	port, verdict := strconv.Itoa(proctest.FreePort(t, "127.0.0.1")), freeAddr(t)
	u := proctest.StartCommand(t, proctest.BinaryCommand(binary, []string{"PORT=" + port, "HTTP=" + verdict}, "demo"))
	u.Until("host 1 answers", func() bool { return strings.Contains(u.Stdout(), "client: host 1 answers\n") })
	m := regexp.MustCompile(`kill -9 (\d+) \(host 1\) or kill -9 (\d+) \(host 2\)`).FindStringSubmatch(u.Stdout())
	if m == nil {
		t.Fatalf("the demo does not say how to kill its hosts:\n%s", u.Stdout())
	}
	one, _ := strconv.Atoi(m[1])
	two, _ := strconv.Atoi(m[2])

	// curl and nc see the same thing: an answer that is HTTP and says who.
	if who, err := exec.Command("curl", "-s", "-m", "10", "http://127.0.0.1:"+port+"/").Output(); errors.Is(err, exec.ErrNotFound) {
		t.Log("SKIP: a part needs curl (apt-get install curl)")
	} else if string(who) != "host 1 says hello\n" {
		t.Errorf("curl sees %q, %v", who, err)
	}
	u.Enter("1")
	u.Until("host 2 answers now", func() bool {
		return regexp.MustCompile(`client: host 2 answers now; the last answer was \d+ ms ago, from host 1\n`).MatchString(u.Stdout())
	})
	awaitGone(t, one)
	u.Enter("1")
	u.Until("host 1 is back", func() bool { return strings.Contains(u.Stdout(), "is back with pid") })
	if err := syscall.Kill(two, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	u.Until("host 1 answers again", func() bool { return strings.Contains(u.Stdout(), "client: host 1 answers now") })

	u.Signal(syscall.SIGINT)
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	m = regexp.MustCompile(`is back with pid (\d+)`).FindStringSubmatch(u.Stdout())
	again, _ := strconv.Atoi(m[1])
	awaitGone(t, again)
}

func TestDemoLeavesNothingWhenItIsKilled(t *testing.T) {
	t.Parallel()
	binary := proctest.Build(t)
	cmd := proctest.BinaryCommand(binary, nil, "demo", "--port", strconv.Itoa(proctest.FreePort(t, "127.0.0.1")), "--http", freeAddr(t))
	u := proctest.StartCommand(t, cmd)
	u.Until("host 1 answers", func() bool { return strings.Contains(u.Stdout(), "client: host 1 answers\n") })
	m := regexp.MustCompile(`kill -9 (\d+) \(host 1\) or kill -9 (\d+) \(host 2\)`).FindStringSubmatch(u.Stdout())
	u.Signal(syscall.SIGKILL)
	u.Exit()
	for _, text := range m[1:] {
		pid, _ := strconv.Atoi(text)
		awaitGone(t, pid)
	}
}

func TestDemoSaysWhatToDoAboutABusyPort(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", freeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	_, port, _ := net.SplitHostPort(busy.Addr().String())
	u := proctest.StartCommand(t, proctest.BinaryCommand(proctest.Build(t), nil, "demo", "-p", port, "--http", freeAddr(t)))
	if code := u.Exit(); code != 1 {
		t.Errorf("exit status %d, want 1", code)
	}
	if log := u.Log(); !strings.Contains(log, port) || !strings.Contains(log, "Choose another port") {
		t.Errorf("the demo says:\n%s", log)
	}
}

func TestAFailedPartEndsTheRest(t *testing.T) {
	t.Parallel()
	cause := errors.New("listener died")
	for _, tt := range []struct {
		name string
		part func(context.Context) error
		want error
	}{
		{"it fails", func(context.Context) error { return cause }, cause},
		{"it ends although nobody wants it to", func(context.Context) error { return nil }, nil},
	} {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var g group
		g.start(ctx, stop, func(ctx context.Context) error { <-ctx.Done(); return nil })
		g.start(ctx, stop, tt.part)
		if err := g.wait(); !errors.Is(err, tt.want) {
			t.Errorf("%s: wait returned %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestAPartThatIsToldToEndEndsAlone(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var g group
	wait := func(ctx context.Context) error { <-ctx.Done(); return nil }
	g.start(ctx, stop, wait)
	one := g.start(ctx, stop, wait)
	one.end()
	<-one.over
	if ctx.Err() != nil {
		t.Error("the rest ends with a part that was told to end")
	}
	stop()
	if err := g.wait(); err != nil {
		t.Error(err)
	}
}
