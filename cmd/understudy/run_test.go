package main

import (
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

	"understudy/internal/proctest"
	"understudy/verdict"
)

// checkCounts reads the line with the counts from the log and checks the sum.
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
	if sum := n["live"] + n["finished"] + n["reset"] + n["fenced"] + n["expired"] + n["aborted"]; n["accepted"] != sum {
		t.Errorf("accepted=%d, but the others are %d together: %s", n["accepted"], sum, line)
	}
	return n
}

func TestClientsAreRelayedAndTheEndIsClean(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	b := (&proctest.Host{Name: "b"}).Start(t)
	addr := proctest.FreeAddr(t)
	u := proctest.Start(t, []string{"HOSTS=" + a.Addr() + "," + b.Addr(), "BIND=" + addr, "RISE="}, "--hold", "20")
	proctest.AwaitGreeting(t, addr, "a")
	if _, err := proctest.Greeting(addr, 5*time.Second); err != nil {
		t.Error(err)
	}
	u.Signal(syscall.SIGHUP) // nothing to reload, and the process does not end
	u.WaitLog("nothing to reload")
	if who, err := proctest.Greeting(addr, 5*time.Second); who != "a" || err != nil {
		t.Errorf("after HUP %q answers, %v, want a", who, err)
	}
	u.Terminate()
	if n := checkCounts(t, u.Log()); n["accepted"] < 3 || n["finished"] != n["accepted"] {
		t.Errorf("counts %v, want at least 3 accepted and all finished", n)
	}
}

func TestKillingThePrimaryLosesNoClient(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	b := (&proctest.Host{Name: "b"}).Start(t)
	addr, ran := proctest.FreeAddr(t), filepath.Join(t.TempDir(), "ran")
	trigger := script(t, `echo "$UNDERSTUDY_EVENT $1" >>`+ran+"\n")
	u := proctest.Start(t, nil, "-b", addr, "-H", a.Addr()+","+b.Addr(), "-f", trigger)
	proctest.AwaitGreeting(t, addr, "a")

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
		t.Errorf("no client was served for %v", gap)
	}
	want := []string{"start " + a.Addr(), "failover " + b.Addr()}
	if got := lines(ran); strings.Join(got, ",") != strings.Join(want, ",") {
		t.Errorf("triggers ran: %q, want %q", got, want)
	}
	u.Terminate()
	checkCounts(t, u.Log())
}

func TestBusyPortEndsBeforeAnyScriptRuns(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	busy, err := net.Listen("tcp", proctest.FreeAddr(t))
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
		{"--bind", proctest.FreeAddr(t), "--http", busy.Addr().String()},
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

// greeted starts the program, and a client that its host has greeted.
func greeted(t *testing.T) (u *proctest.Understudy, addr string, conn net.Conn) {
	t.Helper()
	a := (&proctest.Host{Name: "a"}).Start(t)
	addr = proctest.FreeAddr(t)
	u = proctest.Start(t, nil, "-b", addr, "-H", a.Addr())
	proctest.AwaitGreeting(t, addr, "a")
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 2)); err != nil { // "a\n"
		t.Fatal(err)
	}
	return u, addr, conn
}

func TestTermLetsConnectionsFinish(t *testing.T) {
	t.Parallel()
	u, addr, conn := greeted(t)
	u.Signal(syscall.SIGTERM)
	proctest.Until(t, "no client is admitted", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	// The host echoes what it gets: this connection continues.
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
	addr, pidFile := proctest.FreeAddr(t), filepath.Join(t.TempDir(), "pid")
	// The trigger of the first election runs forever and ignores TERM.
	trigger := script(t, "trap '' TERM\necho $$ >"+pidFile+"\nwhile :; do sleep 1; done\n")
	u := proctest.Start(t, nil, "-b", addr, "-H", a.Addr(), "-f", trigger)
	u.Until("the trigger runs", func() bool { return lines(pidFile)[0] != "" })
	pid, err := strconv.Atoi(lines(pidFile)[0])
	if err != nil {
		t.Fatal(err)
	}
	u.Signal(syscall.SIGTERM)
	u.WaitLog("ending: connections may finish")
	if code := u.EndAtOnce(syscall.SIGINT); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	if log := u.Log(); !strings.Contains(log, "ending at once") {
		t.Errorf("it ended by itself before the second signal counted; log:\n%s", log)
	}
	awaitEnd(t, pid)
}

func TestSecondSignalCutsConnections(t *testing.T) {
	t.Parallel()
	u, _, conn := greeted(t)
	u.Signal(syscall.SIGTERM)
	u.WaitLog("ending: connections may finish")
	if code := u.EndAtOnce(syscall.SIGTERM); code != 0 {
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
	addr, httpAddr := proctest.FreeAddr(t), proctest.FreeAddr(t)
	u := proctest.Start(t, nil, "-b", addr, "-H", "127.0.0.1:"+strconv.Itoa(a.Port), "--http", httpAddr, "-B", "1")
	ping := func() string {
		answer, err := verdict.Check(t.Context(), "http://"+httpAddr+"/ping", nil)
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
	request := func(httpAddr, want string) {
		t.Helper()
		proctest.Until(t, "the answer is "+want, func() bool {
			answer, _ := verdict.Check(t.Context(), "http://"+httpAddr+"/up", nil)
			return answer == want
		})
	}
	first, second, third := proctest.FreeAddr(t), proctest.FreeAddr(t), proctest.FreeAddr(t)
	proctest.Start(t, nil, "--http", first, "--lport", port(good), "--ping-path", "/up")
	request(first, "200 pong")
	// A wrong body with the right status is no success, unless it is expected.
	u := proctest.Start(t, []string{"LPORTS=" + port(good) + "," + port(bad)}, "--http", second, "--ping-path", "/up")
	request(second, "502 ouch")
	proctest.Start(t, []string{"LPORTS=" + port(good) + "," + port(bad)}, "--http", third, "--ping-path", "/up", "--fail-status", "keep")
	request(third, "200 ouch")
	u.Terminate()
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
	addr := proctest.FreeAddr(t)
	u := proctest.Start(t, []string{"SCRIPTS_DIR=" + dir}, "-b", addr, "-H", a.Addr()+","+b.Addr())
	proctest.AwaitGreeting(t, addr, "b") // the check refuses a
	want := "one " + b.Addr() + ",two " + b.Addr()
	if got := strings.Join(lines(ran), ","); got != want {
		t.Errorf("triggers ran: %q, want %q", got, want)
	}
	u.Terminate()
}

func TestFullStandardErrorDelaysNoClient(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// The pipe is never read, and is full from the start.
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
	addr := proctest.FreeAddr(t)
	cmd := proctest.Command(t, nil, "-b", addr, "-H", a.Addr(), "--log-level", "trace")
	// A descriptor that the child shares must block, as a real one does.
	cmd.Stderr = os.NewFile(w.Fd(), "stderr")
	u := proctest.StartCommand(t, cmd)
	proctest.AwaitGreeting(t, addr, "a")
	for range 300 {
		if _, err := proctest.Greeting(addr, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	u.Terminate()
	if took := time.Since(begin); took > 20*time.Second { // else it hangs
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
	addr, httpAddr := proctest.FreeAddr(t), proctest.FreeAddr(t)
	cmd := proctest.Command(t, nil, "-b", addr, "-H", a.Addr(), "--http", httpAddr, "--log-level", "debug")
	cmd.Stdout, cmd.Stderr = w, w
	u := proctest.StartCommand(t, cmd)
	w.Close()
	proctest.AwaitGreeting(t, addr, "a")
	u.Until("the verdict is good", func() bool {
		_, err := verdict.Check(t.Context(), "http://"+httpAddr+"/ping", nil)
		return err == nil
	})
	r.Close() // from now on each write is EPIPE, and SIGPIPE
	for range 20 {
		if _, err := verdict.Check(t.Context(), "http://"+httpAddr+"/ping", nil); err != nil {
			t.Fatal(err)
		}
		if _, err := proctest.Greeting(addr, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	u.Terminate()
}

func TestDescriptorLimitIsRaised(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	addr, seen := proctest.FreeAddr(t), filepath.Join(t.TempDir(), "seen")
	trigger := script(t, "ulimit -Sn >"+seen+"\n")
	cmd := proctest.Command(t, nil, "-b", addr, "-H", a.Addr(), "-f", trigger)
	cmd.Args = append([]string{"sh", "-c", `ulimit -Sn 200; ulimit -Hn 1000; exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path, cmd.Err = "/bin/sh", nil
	u := proctest.StartCommand(t, cmd)
	proctest.AwaitGreeting(t, addr, "a")
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
	l, err := net.Listen("tcp", proctest.FreeAddr(t))
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
	proctest.AwaitGreeting(t, addr, "a")
	u.Terminate()
}

func TestDemo(t *testing.T) {
	t.Parallel()
	binary := proctest.Build(t)
	port, httpAddr := strconv.Itoa(proctest.FreePort(t, "127.0.0.1")), proctest.FreeAddr(t)
	u := proctest.StartCommand(t, proctest.BinaryCommand(binary, []string{"PORT=" + port, "HTTP=" + httpAddr}, "demo"))
	u.Until("host 1 answers", func() bool { return strings.Contains(u.Stdout(), "client: host 1 answers\n") })
	m := regexp.MustCompile(`kill -9 (\d+) \(host 1\) or kill -9 (\d+) \(host 2\)`).FindStringSubmatch(u.Stdout())
	if m == nil {
		t.Fatalf("the demo does not say how to kill its hosts:\n%s", u.Stdout())
	}
	one, _ := strconv.Atoi(m[1])
	two, _ := strconv.Atoi(m[2])

	// curl and nc get the same: an answer that is HTTP and names the host.
	if who, err := exec.Command("curl", "-s", "-m", "10", "http://127.0.0.1:"+port+"/").Output(); errors.Is(err, exec.ErrNotFound) {
		t.Log("SKIP: a part needs curl (apt-get install curl)")
	} else if string(who) != "host 1 says hello\n" {
		t.Errorf("curl sees %q, %v", who, err)
	}
	u.Enter("1")
	u.Until("host 2 answers now", func() bool {
		return regexp.MustCompile(`client: host 2 answers now; the last answer was \d+ ms ago, from host 1\n`).MatchString(u.Stdout())
	})
	awaitEnd(t, one)
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
	awaitEnd(t, again)
}

func TestDemoLeavesNothingWhenItIsKilled(t *testing.T) {
	t.Parallel()
	binary := proctest.Build(t)
	cmd := proctest.BinaryCommand(binary, nil, "demo", "--port", strconv.Itoa(proctest.FreePort(t, "127.0.0.1")), "--http", proctest.FreeAddr(t))
	u := proctest.StartCommand(t, cmd)
	u.Until("host 1 answers", func() bool { return strings.Contains(u.Stdout(), "client: host 1 answers\n") })
	m := regexp.MustCompile(`kill -9 (\d+) \(host 1\) or kill -9 (\d+) \(host 2\)`).FindStringSubmatch(u.Stdout())
	u.Signal(syscall.SIGKILL)
	u.Exit()
	for _, text := range m[1:] {
		pid, _ := strconv.Atoi(text)
		awaitEnd(t, pid)
	}
}

func TestDemoSaysWhatToDoAboutABusyPort(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", proctest.FreeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	_, port, _ := net.SplitHostPort(busy.Addr().String())
	u := proctest.StartCommand(t, proctest.BinaryCommand(proctest.Build(t), nil, "demo", "-p", port, "--http", proctest.FreeAddr(t)))
	if code := u.Exit(); code != 1 {
		t.Errorf("exit status %d, want 1", code)
	}
	if log := u.Log(); !strings.Contains(log, port) || !strings.Contains(log, "Choose another port") {
		t.Errorf("the demo says:\n%s", log)
	}
}

// Scripts get the state directory in STATE_DIR, however it was set.
func TestScriptsGetTheStateDirectory(t *testing.T) {
	t.Parallel()
	seen := script(t, "echo \"$STATE_DIR\" >\"$0.seen\"\n")
	dir := t.TempDir()
	host := (&proctest.Host{Name: "a"}).Start(t)
	u := proctest.Start(t, []string{"STATE_DIR=/old"}, "-b", proctest.FreeAddr(t), "-H", host.Addr(), "--check-host", seen, "--state-dir", dir)
	u.WaitLog("relay open")
	if got := lines(seen + ".seen"); len(got) != 1 || got[0] != dir {
		t.Errorf("the check script got STATE_DIR=%q, want %q", got, dir)
	}
	u.Signal(syscall.SIGTERM) // it runs the script too
	u.Exit()
	checked := proctest.Start(t, nil, "check", "-b", proctest.FreeAddr(t), "-H", host.Addr(), "--check-host", seen, "--state-dir", t.TempDir())
	if code := checked.Exit(); code != 0 {
		t.Errorf("check: exit status %d: %s", code, checked.Stdout())
	}
	if got := lines(seen + ".seen"); len(got) != 1 || got[0] == dir || got[0] == "" {
		t.Errorf("check ran the script with STATE_DIR=%q, want its own", got)
	}
}
