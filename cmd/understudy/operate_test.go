package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/control"
	"understudy/failover"
	"understudy/internal/proctest"
)

// operated is a running understudy with two hosts, a before b, and a control
// socket of its own.
type operated struct {
	*proctest.Understudy
	a, b *proctest.Host
	addr string
	env  []string // for the verbs
}

func startOperated(t *testing.T, args ...string) operated {
	t.Helper()
	o := operated{
		a: (&proctest.Host{Name: "a"}).Start(t), b: (&proctest.Host{Name: "b"}).Start(t), addr: freeAddr(t),
		env: []string{"CONTROL=" + filepath.Join(t.TempDir(), "c.sock")},
	}
	o.Understudy = proctest.Start(t, o.env, append([]string{"-b", o.addr, "-H", o.a.Addr() + "," + o.b.Addr()}, args...)...)
	o.WaitLog("relay open")
	return o
}

// verb runs a verb to its end.
func (o operated) verb(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	u := proctest.Start(t, o.env, args...)
	status = u.Exit()
	return status, u.Stdout(), u.Log()
}

func TestWatchGoesOnUntilCtrlC(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	tables := proctest.Start(t, o.env, "status", "--watch")
	values := proctest.Start(t, o.env, "status", "--watch", "--json")
	tables.Until("three tables", func() bool { return strings.Count(tables.Stdout(), "● main: serving") >= 3 })
	values.Until("three values", func() bool { return decoded[control.Status](values.Stdout()) >= 3 })
	for _, u := range []*proctest.Understudy{tables, values} {
		u.Signal(syscall.SIGINT)
		if code := u.Exit(); code != 0 || u.Log() != "" {
			t.Errorf("exit status %d, want 0; standard error: %q", code, u.Log())
		}
		if strings.Contains(u.Stdout(), "\x1b") {
			t.Errorf("a pipe gets control sequences: %q", u.Stdout())
		}
	}
	left := proctest.Start(t, o.env, "status", "--watch")
	left.Until("a table", func() bool { return strings.Contains(left.Stdout(), "● main") })
	o.Signal(syscall.SIGTERM)
	if code := left.Exit(); code != 1 || !strings.HasPrefix(left.Log(), "understudy: status: ") {
		t.Errorf("without a process: exit status %d, want 1; standard error: %q", code, left.Log())
	}
}

// decoded counts the values in a stream of JSON.
func decoded[T any](text string) int {
	n := 0
	for in := json.NewDecoder(strings.NewReader(text)); ; n++ {
		var v T
		if in.Decode(&v) != nil {
			return n
		}
	}
}

func TestFollowTellsWhatIsAndWhatComes(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	proctest.Until(t, "the first byte closes the record of the start", func() bool {
		_, err := proctest.Greeting(o.addr, 5*time.Second)
		return err == nil
	})
	lines := proctest.Start(t, o.env, "events", "--follow")
	values := proctest.Start(t, o.env, "events", "--follow", "--json")
	lines.Until("the start", func() bool { return strings.Contains(lines.Stdout(), "main: start, epoch 1, open") })
	o.a.Kill()
	proctest.Until(t, "b answers", func() bool {
		who, err := proctest.Greeting(o.addr, 5*time.Second)
		return err == nil && who == "b"
	})
	lines.Until("the failover", func() bool {
		return strings.Contains(lines.Stdout(), "first byte") && strings.Contains(lines.Stdout(), "main: failover, epoch 2, open")
	})
	values.Until("two values", func() bool { return decoded[failover.Incident](values.Stdout()) == 2 })
	lines.Signal(syscall.SIGINT)
	if code := lines.Exit(); code != 0 || lines.Log() != "" {
		t.Errorf("exit status %d, want 0; standard error: %q", code, lines.Log())
	}
	o.Signal(syscall.SIGTERM)
	if code := values.Exit(); code != 1 || !strings.Contains(values.Log(), "events: the process has ended") {
		t.Errorf("when the process ends: exit status %d, want 1; standard error: %q", code, values.Log())
	}
}

func TestSocketOfSomebodyElse(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	dir := filepath.Dir(strings.TrimPrefix(o.env[0], "CONTROL="))
	if err := os.Chmod(dir, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	u := proctest.StartCommand(t, unprivileged(t, proctest.Command(t, o.env, "status")))
	if code := u.Exit(); code != 1 || !strings.Contains(u.Log(), "status: not allowed to open") {
		t.Errorf("exit status %d, want 1; standard error: %q", code, u.Log())
	}
}

// unprivileged makes cmd obey the modes of files, for root too.
func unprivileged(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	if os.Getuid() != 0 {
		return cmd
	}
	path, err := exec.LookPath("setpriv")
	if err != nil {
		t.Skip("SKIPPED: root needs setpriv (package util-linux) to be kept out of anything")
	}
	return startedBy(cmd, path, "--bounding-set=-all", "--inh-caps=-all")
}

// startedBy has a program start cmd.
func startedBy(cmd *exec.Cmd, path string, args ...string) *exec.Cmd {
	cmd.Args = append(append([]string{path}, args...), append([]string{cmd.Path}, cmd.Args[1:]...)...)
	cmd.Path = path
	return cmd
}

// TestStrangeAnswers has verbs speak to something that is no understudy, or an
// evil one.
func TestStrangeAnswers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ answer, verb, want string }{
		{"", "status", "understudy: status: the answer of PATH cannot be understood: EOF\n"},
		{"{", "events", "understudy: events: the answer of PATH cannot be understood: unexpected EOF\n"},
		{"409", "freeze", "understudy: freeze: PATH answers 409 Conflict\n"},
		{"409" + `{"error":"evil \u001b[2J\u009b\nhost"}`, "drill", "understudy: drill: evil ·[2J· host\n"},
	} {
		path := filepath.Join(t.TempDir(), "c.sock")
		serveHTTP(t, path, func(w http.ResponseWriter, _ *http.Request) {
			body, failed := strings.CutPrefix(c.answer, "409")
			if failed {
				w.WriteHeader(http.StatusConflict)
			}
			_, _ = io.WriteString(w, body)
		})
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), []string{c.verb, "--control", path}, &stdout, &stderr)
		want := strings.ReplaceAll(c.want, "PATH", path)
		if code != 1 || stdout.Len() > 0 || stderr.String() != want {
			t.Errorf("%s: exit status %d, %q, %q, want 1, nothing, %q", c.verb, code, stdout.String(), stderr.String(), want)
		}
	}
}

func serveHTTP(t *testing.T, path string, f http.HandlerFunc) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: f, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Close()
		<-done
	})
}

// TestInterruptedVerb asks somebody who never answers.
func TestInterruptedVerb(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "c.sock")
	asked := make(chan struct{}, 1)
	serveHTTP(t, path, func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	})
	u := proctest.Start(t, []string{"CONTROL=" + path}, "switch", "b:1", "--drain", "1h")
	<-asked
	u.Signal(syscall.SIGINT)
	if code := u.Exit(); code != 1 || u.Log() != "understudy: switch: interrupted\n" {
		t.Errorf("exit status %d, want 1; standard error: %q", code, u.Log())
	}
}

// TestWatchInterruptedWhileItAsks has the second question go unanswered.
func TestWatchInterruptedWhileItAsks(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "c.sock")
	asked := make(chan struct{}, 2)
	serveHTTP(t, path, func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		if len(asked) == 2 {
			<-r.Context().Done()
		}
		_, _ = io.WriteString(w, "{}")
	})
	u := proctest.Start(t, []string{"CONTROL=" + path}, "status", "--watch")
	u.Until("it asks again", func() bool { return len(asked) == 2 })
	u.Signal(syscall.SIGINT)
	if code := u.Exit(); code != 0 || u.Log() != "" {
		t.Errorf("exit status %d, want 0; standard error: %q", code, u.Log())
	}
}

// TestStoppedProcess asks a process that stands still.
func TestStoppedProcess(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	o.Signal(syscall.SIGSTOP)
	var asked []*proctest.Understudy
	for _, verb := range []string{"status", "why", "predict", "events"} {
		asked = append(asked, proctest.Start(t, o.env, verb))
	}
	for _, u := range asked {
		if code := u.Exit(); code != 1 || !strings.Contains(u.Log(), "gave no answer within 5s") {
			t.Errorf("exit status %d, want 1; standard error: %q", code, u.Log())
		}
	}
}

// TestOrdersOfVerbs looks at what is sent, and at several relays.
func TestOrdersOfVerbs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	var sent []string
	serveHTTP(t, path, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_ = json.NewEncoder(w).Encode(control.Status{Relays: []control.RelayStatus{{Name: "mail"}, {Name: "orders"}}})
			return
		}
		body, _ := io.ReadAll(r.Body)
		sent = append(sent, r.URL.Path+" "+string(body))
		_, _ = io.WriteString(w, "{}")
	})
	t.Setenv("SUDO_USER", "anna")
	do := func(want int, args ...string) (stderr string) {
		t.Helper()
		var out, errs bytes.Buffer
		if code := run(t.Context(), append(args, "--control", path), &out, &errs); code != want {
			t.Errorf("%q: exit status %d, want %d: %s", args, code, want, errs.String())
		}
		return errs.String()
	}
	do(0, "switch", "db2:1", "--relay", "orders", "--drain", "0", "--reason", "a b")
	do(0, "switch", "db2:1")
	do(0, "drain", "db2:1", "--for", "90", "--relay=mail")
	do(0, "ready", "db2:1")
	do(0, "freeze", "--for=1h30m")
	do(0, "unfreeze")
	do(1, "drill", "db2:1", "--triggers") // the answer says that it did not go well
	want := []string{
		`/v1/switch {"relay":"orders","host":"db2:1","reason":"a b","by":"anna","drain_seconds":0}`,
		`/v1/switch {"host":"db2:1","by":"anna"}`,
		`/v1/drain {"relay":"mail","host":"db2:1","by":"anna","for_seconds":90}`,
		`/v1/ready {"host":"db2:1","by":"anna"}`,
		`/v1/freeze {"by":"anna","for_seconds":5400}`,
		`/v1/unfreeze {"by":"anna"}`,
		`/v1/drill {"host":"db2:1","by":"anna","triggers":true}`,
	}
	if got := strings.Join(sent, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("sent:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
	if got := do(2, "why"); !strings.Contains(got, "--relay: needed to say which is meant: mail, orders") {
		t.Errorf("why of one of two relays says %q", got)
	}
	do(0, "why", "--relay", "mail")
}

// TestOperatingTheDemo enters what the demo's invitation says.
func TestOperatingTheDemo(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "c.sock")
	u := proctest.StartCommand(t, proctest.BinaryCommand(proctest.Build(t), []string{"CONTROL=" + path}, "demo", "--bind", freeAddr(t), "--http", freeAddr(t)))
	u.Until("somebody answers", func() bool { return strings.Contains(u.Stdout(), "client: host 1 answers") })
	if want := " --control " + path + " status "; !strings.Contains(u.Stdout(), want) {
		t.Errorf("the invitation has no %q: %s", want, u.Stdout())
	}
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"--control", path, "status"}, &out, &errs); code != 0 || !strings.Contains(out.String(), "● main: serving") {
		t.Errorf("exit status %d, %q, %q", code, out.String(), errs.String())
	}
	u.Signal(syscall.SIGINT)
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control socket is left behind: %v", err)
	}
}

// TestSwitchLosesNobody is for the verb; e2e has the rest.
func TestSwitchLosesNobody(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	load := proctest.StartLoad(t, o.addr, 100, 15*time.Second)
	proctest.Until(t, "clients are served", func() bool { return load.Served() >= 50 })
	for _, h := range []*proctest.Host{o.b, o.a} {
		o.awaitState(t, h.Addr(), "up")
		if code, _, stderr := o.verb(t, "switch", h.Addr()); code != 0 {
			t.Errorf("switch: exit status %d: %s", code, stderr)
		}
		served := load.Served()
		proctest.Until(t, "more clients are served", func() bool { return load.Served() >= served+50 })
	}
	report := load.Stop()
	t.Log(report)
	if lost := report.Lost(); len(lost) > 0 || report.By()["b"] == 0 {
		t.Errorf("%d clients lost, want none, and some for both hosts: %v", len(lost), report)
	}
}

// awaitState waits until a host is up, down or unknown.
func (o operated) awaitState(t *testing.T, host, state string) {
	t.Helper()
	c := control.NewClient(strings.TrimPrefix(o.env[0], "CONTROL="))
	proctest.Until(t, host+" is "+state, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		s, err := c.Status(ctx)
		if err != nil {
			return false
		}
		for _, h := range s.Relays[0].Hosts {
			if h.Name == host && h.State == state {
				return true
			}
		}
		return false
	})
}
