package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
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

// relay returns the name of its relay, which was given none.
func (o operated) relay() string { return portOf(o.addr) }

func portOf(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

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
	tables.Until("three tables", func() bool { return strings.Count(tables.Stdout(), "● "+o.relay()+": serving") >= 3 })
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
	left.Until("a table", func() bool { return strings.Contains(left.Stdout(), "● "+o.relay()) })
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
	lines.Until("the start", func() bool { return strings.Contains(lines.Stdout(), o.relay()+": start, epoch 1, open") })
	o.a.Kill()
	proctest.Until(t, "b answers", func() bool {
		who, err := proctest.Greeting(o.addr, 5*time.Second)
		return err == nil && who == "b"
	})
	lines.Until("the failover", func() bool {
		return strings.Contains(lines.Stdout(), "first byte") && strings.Contains(lines.Stdout(), o.relay()+": failover, epoch 2, open")
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

// What an operator orders by verbs is in the record, with who and why.
func TestEventsHasOrders(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	env := append([]string{"SUDO_USER=anna"}, o.env...)
	do := func(args ...string) string {
		u := proctest.Start(t, env, args...)
		if code := u.Exit(); code != 0 {
			t.Errorf("%q: exit status %d: %s%s", args, code, u.Stdout(), u.Log())
		}
		return u.Stdout()
	}
	a, b := o.a.Addr(), o.b.Addr()
	o.Until("b is up", func() bool { return strings.Contains(do("why", b), "is a usable standby") })
	do("drill")
	do("drain", b, "--for", "1h", "--reason", "new disk")
	do("ready", b)
	do("freeze", "--reason", "audit")
	do("unfreeze")
	head := func(id int, event string) string {
		return fmt.Sprintf(`(?m)^#%d  \S+  %s: %s, done\n`, id, o.relay(), event)
	}
	text := do("events")
	for _, want := range []string{
		head(2, "drill") + ` +host  ` + a + `\n +why  drill by anna as .+\n +result  ` + b + ` would take over from ` + a + `$`,
		head(3, "drain") + ` +host  ` + b + `\n +why  drain by anna as .+: new disk\n +until  \d.*$`,
		head(4, "ready") + ` +host  ` + b + `\n +why  ready by anna as .+$`,
		head(5, "freeze") + ` +why  freeze by anna as .+: audit$`,
		head(6, "unfreeze") + ` +why  unfreeze by anna as .+$`,
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("events lacks %s:\n%s", want, text)
		}
	}
	var list []control.Event
	if err := json.Unmarshal([]byte(do("events", "--json", "--last", "1")), &list); err != nil || len(list) != 1 ||
		list[0].Event != failover.OrderUnfreeze || list[0].Order == nil || !strings.HasPrefix(list[0].By, "anna as ") {
		t.Errorf("events --json: %+v, %v", list, err)
	}
}

func TestSocketOfAnotherUser(t *testing.T) {
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

// TestStrangeAnswers runs verbs against servers that are not understudy, or
// malicious.
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

// TestInterruptedVerb sends a request to a process that never answers.
func TestInterruptedVerb(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "c.sock")
	requested := make(chan struct{}, 1)
	serveHTTP(t, path, func(_ http.ResponseWriter, r *http.Request) {
		requested <- struct{}{}
		<-r.Context().Done()
	})
	u := proctest.Start(t, []string{"CONTROL=" + path}, "switch", "b:1", "--drain", "1h")
	<-requested
	u.Signal(syscall.SIGINT)
	if code := u.Exit(); code != 1 || u.Log() != "understudy: switch: interrupted\n" {
		t.Errorf("exit status %d, want 1; standard error: %q", code, u.Log())
	}
}

// TestWatchInterruptedWhileItAsks leaves the second request unanswered.
func TestWatchInterruptedWhileItAsks(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "c.sock")
	requested := make(chan struct{}, 2)
	serveHTTP(t, path, func(w http.ResponseWriter, r *http.Request) {
		requested <- struct{}{}
		if len(requested) == 2 {
			<-r.Context().Done()
		}
		_, _ = io.WriteString(w, "{}")
	})
	u := proctest.Start(t, []string{"CONTROL=" + path}, "status", "--watch")
	u.Until("it asks again", func() bool { return len(requested) == 2 })
	u.Signal(syscall.SIGINT)
	if code := u.Exit(); code != 0 || u.Log() != "" {
		t.Errorf("exit status %d, want 0; standard error: %q", code, u.Log())
	}
}

// TestStoppedProcess sends a request to a stopped process.
func TestStoppedProcess(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	o.Signal(syscall.SIGSTOP)
	var requested []*proctest.Understudy
	for _, verb := range []string{"status", "why", "predict", "events"} {
		requested = append(requested, proctest.Start(t, o.env, verb))
	}
	for _, u := range requested {
		if code := u.Exit(); code != 1 || !strings.Contains(u.Log(), "gave no answer within 5s") {
			t.Errorf("exit status %d, want 1; standard error: %q", code, u.Log())
		}
	}
}

// TestOrdersOfVerbs checks the requests that are sent, and several relays.
func TestOrdersOfVerbs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	var sent []string
	hosts := []control.Host{{Name: "db1:1"}, {Name: "db2:1"}, {Name: "db22:1"}}
	serveHTTP(t, path, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_ = json.NewEncoder(w).Encode(control.Status{PID: 7, Relays: []control.RelayStatus{
				{Name: "mail", Listen: []string{"127.0.0.1:25"}, Hosts: hosts}, {Name: "orders", Listen: []string{"[::]:80", "/run/x"}, Hosts: hosts},
			}})
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
	do(0, "switch", "db2", "--relay", "80")
	do(0, "drain", "2", "--for", "90", "--relay=mail")
	do(0, "ready", "db22:", "--relay", ":25", "--pid", "7")
	do(0, "freeze", "--for=1h30m", "--relay", "[::]:80")
	do(0, "unfreeze", "--relay", "unix:/run/x")
	do(1, "drill", "db1", "--triggers", "--relay", "127.0.0.1:25") // the answer reports a failure
	want := []string{
		`/v1/switch {"relay":"orders","host":"db2:1","reason":"a b","by":"anna","drain_seconds":0}`,
		`/v1/switch {"relay":"orders","host":"db2:1","by":"anna"}`,
		`/v1/drain {"relay":"mail","host":"db2:1","by":"anna","for_seconds":90}`,
		`/v1/ready {"relay":"mail","host":"db22:1","by":"anna"}`,
		`/v1/freeze {"relay":"orders","by":"anna","for_seconds":5400}`,
		`/v1/unfreeze {"relay":"orders","by":"anna"}`,
		`/v1/drill {"relay":"mail","host":"db1:1","by":"anna","triggers":true}`,
	}
	if got := strings.Join(sent, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("sent:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
	const list = "--relay: needed, because there are several (or --pid, or --control):\n" +
		"understudy:   relay mail (127.0.0.1:25, pid 7)\nunderstudy:   relay orders ([::]:80 /run/x, pid 7)\n"
	for _, verb := range []string{"freeze", "unfreeze", "drill", "predict"} {
		if got := do(2, verb); !strings.Contains(got, list) {
			t.Errorf("%s of one of two relays says %q", verb, got)
		}
	}
	for arg, want := range map[string]string{
		"db":  `relay mail has several hosts that begin with "db": db1:1, db2:1, db22:1`,
		"4":   `relay mail has no host "4": its hosts are db1:1, db2:1, db22:1`,
		"db3": `relay mail has no host "db3"`,
	} {
		if got := do(1, "switch", arg, "--relay", "mail"); !strings.Contains(got, want) {
			t.Errorf("switch %s says %q, want %q", arg, got, want)
		}
	}
	if got := do(1, "freeze", "--pid", "8"); !strings.Contains(got, "no understudy has pid 8: there is 7") {
		t.Errorf("another pid: %q", got)
	}
	if len(sent) != len(want) {
		t.Errorf("orders that were refused were sent: %q", sent[len(want):])
	}
	do(0, "why")
	do(0, "why", "--relay", "mail")
}

// TestOperatingTheDemo enters the command that the demo prints.
func TestOperatingTheDemo(t *testing.T) {
	t.Parallel()
	path, addr := filepath.Join(t.TempDir(), "c.sock"), proctest.FreeAddr(t)
	u := proctest.StartCommand(t, proctest.BinaryCommand(proctest.Build(t), []string{"CONTROL=" + path}, "demo", "--bind", addr, "--http", proctest.FreeAddr(t)))
	u.Until("a host answers", func() bool { return strings.Contains(u.Stdout(), "client: host 1 answers") })
	if want := " --control " + path + " status "; !strings.Contains(u.Stdout(), want) {
		t.Errorf("the invitation has no %q: %s", want, u.Stdout())
	}
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"--control", path, "status"}, &out, &errs); code != 0 || !strings.Contains(out.String(), "● "+portOf(addr)+": serving") {
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

// TestSwitchLosesNoClient tests the verb; e2e has the rest.
func TestSwitchLosesNoClient(t *testing.T) {
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

// The last line of output of a check script or a trigger is shown before its
// exit status, in every place with a result.
func TestScriptsLastLineIsShown(t *testing.T) {
	t.Parallel()
	const said = "timeline 1 has ended, db2 went on in 2: make this a standby again (pg_rewind)"
	dir := t.TempDir()
	good := filepath.Join(dir, "good") // hosts that pass
	check := script(t, `grep -qsFx "$1" `+good+` || { echo 'looking at it'; echo '`+said+`'; exit 1; }`+"\n")
	trigger := script(t, `[ $UNDERSTUDY_EVENT = start ] && exit; echo 'first'; echo 'no such zone: example.net'; exit 3`+"\n")
	a := (&proctest.Host{Name: "a"}).Start(t)
	b := (&proctest.Host{Name: "b"}).Start(t)
	write(t, good, a.Addr()+"\n", 0o600)
	o := operated{a: a, b: b, addr: proctest.FreeAddr(t), env: []string{"CONTROL=" + filepath.Join(dir, "c.sock")}}
	settings := []string{"-b", o.addr, "-H", a.Addr() + "," + b.Addr(), "-c", check, "--check-interval", "100ms", "-f", trigger, "--trigger-policy", "abort"}
	o.Understudy = proctest.Start(t, o.env, settings...)
	o.WaitLog("relay open")
	o.awaitState(t, b.Addr(), "down")

	want := func(status int, text string, args ...string) {
		t.Helper()
		code, out, log := o.verb(t, args...)
		if all := strings.Join(strings.Fields(out+log), " "); code != status || !strings.Contains(all, text) {
			t.Errorf("%q: exit status %d, want %d and %q:\n%s%s", args, code, status, text, out, log)
		}
	}
	full := said + " (script " + check + ": exit status 1)"
	want(0, said+" (exit status 1)", "status")
	want(0, full, "status", "--json")
	want(0, full, "why")
	want(0, full, "why", b.Addr())
	want(1, full, "switch", b.Addr())
	want(1, full, "drill")
	want(0, full, append([]string{"check"}, settings...)...)

	write(t, good, a.Addr()+"\n"+b.Addr()+"\n", 0o600)
	o.awaitState(t, b.Addr(), "up")
	full = "no such zone: example.net (script " + trigger + ": exit status 3)"
	want(1, full, "drill", "--triggers")
	want(1, full, "switch", b.Addr())
	want(0, "no such zone: example.net (exit status 3)", "events")
	if !strings.Contains(o.Log(), full) {
		t.Errorf("not in the log: %s", full)
	}
}

// The JSON of the commands is that of the control socket, which docs/control.md
// describes.
func TestJSONIsThatOfTheSocket(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	for _, tt := range []struct {
		args   []string
		value  any
		schema func(any) int
	}{
		{[]string{"status", "--json"}, new(control.Status), func(v any) int { return v.(*control.Status).Schema }},
		{[]string{"events", "--json"}, new([]control.Event), func(v any) int { return (*v.(*[]control.Event))[0].Schema }},
		{[]string{"predict", "--json"}, new(control.PredictAnswer), func(v any) int { return v.(*control.PredictAnswer).Schema }},
		{[]string{"predict", "--json", "-b", o.addr, "-H", o.a.Addr()}, new(control.PredictAnswer), func(v any) int { return v.(*control.PredictAnswer).Schema }},
		{[]string{"why", "--json"}, new(control.RelayStatus), func(any) int { return control.Schema }},
	} {
		status, stdout, stderr := o.verb(t, tt.args...)
		in := json.NewDecoder(strings.NewReader(stdout))
		in.DisallowUnknownFields()
		if err := in.Decode(tt.value); status != 0 || err != nil || tt.schema(tt.value) != control.Schema {
			t.Errorf("%v: status %d, %v: %s%s", tt.args, status, err, stdout, stderr)
		}
	}
}
