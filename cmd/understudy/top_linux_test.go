package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/control"
	"understudy/internal/proctest"
	"understudy/internal/screen"
)

// tmux is a terminal with a shell in it, of which a test sees what a person would see.
type tmux struct {
	t      *testing.T
	socket string
}

// startTmux starts a terminal of that size. Its shell has the environment env.
func startTmux(t *testing.T, width, height int, env ...string) tmux {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Skip("SKIPPED: tmux is not installed (apt-get install tmux)")
	}
	m := tmux{t, filepath.Join(t.TempDir(), "tmux")}
	server := exec.Command("tmux", "-S", m.socket, "-u", "-f", "/dev/null", "-D")
	server.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LC_ALL=C.UTF-8"}, env...)
	proctest.StartCommand(t, server)
	proctest.Until(t, "tmux has a session", func() bool {
		return exec.Command("tmux", "-N", "-S", m.socket, "-u", "new-session", "-d", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height), "sh -i").Run() == nil
	})
	m.enter("PS1='READY>'; clear") // dash does not read it from the environment
	m.until("a prompt", `^READY>$`)
	return m
}

// do runs a command of tmux.
func (m tmux) do(args ...string) string {
	m.t.Helper()
	out, err := exec.Command("tmux", append([]string{"-N", "-S", m.socket, "-u"}, args...)...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("tmux %q: %v: %s", args, err, out)
	}
	return string(out)
}

// page returns what is on the terminal.
func (m tmux) page() string {
	m.t.Helper()
	return strings.TrimRight(m.do("capture-pane", "-p"), "\n")
}

// press presses keys, by their names in tmux.
func (m tmux) press(keys ...string) {
	m.t.Helper()
	m.do(append([]string{"send-keys"}, keys...)...)
}

// enter types a command.
func (m tmux) enter(command string) {
	m.t.Helper()
	m.do("send-keys", "-l", command)
	m.press("Enter")
}

// until waits until the page matches an expression.
func (m tmux) until(what, expression string) {
	m.t.Helper()
	want := regexp.MustCompile(expression)
	last := ""
	proctest.Until(fatalWith{m.t, &last}, what, func() bool {
		if last != "" {
			time.Sleep(50 * time.Millisecond) // each look is a process
		}
		last = m.page()
		return want.MatchString(last)
	})
}

// fatalWith adds the last page to the failure of a wait.
type fatalWith struct {
	*testing.T
	page *string
}

func (f fatalWith) Fatalf(format string, args ...any) {
	f.Helper()
	f.T.Fatalf("%s; the terminal shows:\n%s", fmt.Sprintf(format, args...), *f.page)
}

// restored checks that the terminal is as a shell needs it: echo and lines, the cursor
// and no page of a program.
func (m tmux) restored() {
	m.t.Helper()
	m.enter("clear; stty -a; echo DONE")
	m.until("the modes", `(?m)^DONE`)
	if modes := m.page(); regexp.MustCompile(`-(icanon|echo|isig|ixon)\b`).MatchString(modes) {
		m.t.Errorf("the terminal is not restored:\n%s", modes)
	}
	if got := strings.TrimSpace(m.do("display-message", "-p", "#{alternate_on} #{cursor_flag} #{wrap_flag}")); got != "0 1 1" {
		m.t.Errorf("alternate page, cursor, wrap = %s, want 0 1 1", got)
	}
	m.enter("clear")
}

// top returns the command of top, with the program that is tested.
func top(t *testing.T, o operated) []string {
	t.Helper()
	return append([]string{"UNDERSTUDY=" + proctest.Build(t)}, o.env...)
}

const startTop = `$UNDERSTUDY top --every 200ms; echo "status $?"`

// TestTop does with top what an operator does.
func TestTop(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	a, b := regexp.QuoteMeta(o.a.Addr()), regexp.QuoteMeta(o.b.Addr())
	m := startTmux(t, 100, 30, top(t, o)...)
	m.enter(startTop)
	m.until("a is primary", `(?m)^  \* 1 `+a+` +up `)
	m.until("the election", `election  #1 `)
	m.until("rates", `\d client.*, 0/s`)

	for _, size := range [][2]int{{80, 24}, {40, 12}, {20, 4}, {10, 3}, {132, 43}, {80, 24}} {
		width, height := size[0], size[1]
		m.do("resize-window", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height))
		want := `(?m)^\? help +q quit`
		if width < topLeastWidth {
			want = `^too small`
		}
		m.until(fmt.Sprintf("a page of %dx%d", width, height), want)
		for line := range strings.Lines(m.page()) {
			if n := screen.Width(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("%d columns on a terminal of %d: %q", n, width, line)
			}
		}
	}
	m.until("the hosts", `(?m)^    2 `+b+` +up `)

	m.press("Down", "Down", "s")
	m.until("the command", `(?m)^understudy switch `+b+`$`)
	m.press("n")
	m.until("it was not done", `not done: understudy switch`)
	m.press("s", "r")
	m.until("the question for a reason", `(?m)^reason:`)
	m.press("-l", "new disk")
	m.press("Enter")
	m.until("the command with the reason", `(?m)^understudy switch `+b+` --reason 'new disk'$`)
	m.press("y")
	m.until("b is primary", `(?m)^  \* 2 `+b+` +up `)
	m.until("the receipt", b+` is primary \(epoch 2\), after .*waited`)
	if r := o.status(t); r.Primary != o.b.Addr() || !strings.Contains(r.Reason, "new disk") {
		t.Errorf("after the switch %s is primary (%s), want %s", r.Primary, r.Reason, o.b.Addr())
	}
	m.press("Up", "d", "y")
	m.until("a is drained", `(?m)^    1 `+a+` +drained `)
	m.press("r", "y")
	m.until("a is ready", `(?m)^    1 `+a+` +up `)
	m.press("f", "y")
	m.until("the freeze", `done: understudy freeze`)
	m.press("f")
	m.until("the command", `(?m)^understudy unfreeze$`)
	m.press("y")
	m.until("the end of the freeze", `done: understudy unfreeze`)
	m.press("?")
	m.until("the help", `(?m)^any key: back`)
	m.press("x")
	m.until("the page", `(?m)^\? help`)

	o.b.Kill() // the primary
	m.until("a is primary again", `(?m)^  \* 1 `+a+` +up `)
	m.until("b is down", `(?m)^    2 `+b+` +down `)

	o.Signal(syscall.SIGTERM)
	m.until("there is no answer", `no answer for \d+s: no understudy is running here`)
	again := proctest.Start(t, o.env, "-b", o.addr, "-H", o.a.Addr()+","+o.b.Addr())
	again.WaitLog("relay open")
	m.until("the new process answers", `answers again, after`)
	m.until("its election", `(?m)^  \* 1 `+a+` +up `)
	m.press("q")
	m.until("the end", `(?m)^status 0`)
	m.restored()
}

// status returns the status of its relay.
func (o operated) status(t *testing.T) control.RelayStatus {
	t.Helper()
	code, stdout, stderr := o.verb(t, "status", "--json")
	var s control.Status
	if err := json.Unmarshal([]byte(stdout), &s); code != 0 || err != nil || len(s.Relays) != 1 {
		t.Fatalf("status %d, %v: %s%s", code, err, stdout, stderr)
	}
	return s.Relays[0]
}

// top gives the terminal back however it ends.
func TestTopRestoresTheTerminal(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	m := startTmux(t, 80, 24, append(top(t, o), "SELF="+self)...)
	shown := `(?m)^\? help +q quit`
	pid := func() int {
		t.Helper()
		var n int
		if _, err := fmt.Sscan(m.do("display-message", "-p", "#{pane_pid}"), &n); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("pgrep", "-P", fmt.Sprint(n), "understudy").Output()
		if err != nil {
			t.Fatalf("no understudy in the terminal: %v", err)
		}
		if _, err := fmt.Sscan(string(out), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, tt := range []struct {
		name   string
		end    func()
		status string
	}{
		{"q", func() { m.press("q") }, "status 0"},
		{"Ctrl-C", func() { m.press("C-c") }, ""}, // it ends the list of commands in sh, too
		{"TERM", func() { syscall.Kill(pid(), syscall.SIGTERM) }, "status 0"},
		{"HUP", func() { syscall.Kill(pid(), syscall.SIGHUP) }, "status 0"},
		{"QUIT", func() { m.press("C-\\") }, ""},
	} {
		m.enter(startTop)
		m.until("the page before "+tt.name, shown)
		tt.end()
		m.until("the prompt after "+tt.name, tt.status+`\s*READY>$`)
		m.restored()
	}

	for _, stop := range []string{"Ctrl-Z", "TSTP"} {
		m.enter(startTop)
		m.until("the page before "+stop, shown)
		if stop == "TSTP" {
			syscall.Kill(pid(), syscall.SIGTSTP)
		} else {
			m.press("C-z")
		}
		m.until("the prompt after "+stop, `READY>$`)
		m.restored()
		m.enter("fg")
		m.until("the page again", shown)
		m.press("q")
		m.until("the end", `READY>$`)
		m.restored()
	}

	for _, in := range []string{"the loop", "a goroutine"} {
		m.enter("CRASH_TOP='" + in + "' $SELF; echo \"status $?\"")
		m.until("the end of a panic in "+in, `goroutine \d[\s\S]*status 2`)
		m.restored()
	}
}

// top works with what ssh and consoles have, and says where it cannot.
func TestTopOnOtherTerminals(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	m := startTmux(t, 80, 24, top(t, o)...)
	for _, term := range []string{"screen", "xterm", "linux", "xterm-256color", "vt100"} {
		m.enter("export TERM=" + term)
		m.enter(startTop)
		m.until("the page on "+term, `(?m)^  \* 1 `+regexp.QuoteMeta(o.a.Addr())+` +up `)
		m.press("Down", "Home", "?")
		m.until("the help on "+term, `(?m)^any key: back`)
		m.press("Escape")
		m.until("the page on "+term, `(?m)^\? help`)
		m.press("q")
		m.until("the end on "+term, `status 0\s*READY>$`)
		m.enter("clear")
	}
	for _, tt := range []struct{ before, after, want string }{
		{"TERM=dumb ", "", `TERM is "dumb".*\n?.*understudy status`},
		{"TERM= ", "", `TERM is "".*\n?.*understudy status`},
		{"", " </dev/null | cat", `standard output is no terminal`},
		{"CONTROL=/nonexistent ", "", `no understudy is running here`},
		{"setsid --wait ", "", `/dev/tty`},
	} {
		m.enter("clear; " + tt.before + "$UNDERSTUDY top" + tt.after + "; echo \"ended\"")
		m.until("an error of "+tt.before+tt.after, tt.want+`[\s\S]*ended`)
	}
	m.restored()
}

// 60 relays, of which the terminal has room for a part.
func TestTopScrolls(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var config strings.Builder
	config.WriteString("log: {level: \"off\"}\nrelays:\n")
	for i := range 60 {
		fmt.Fprintf(&config, "  - {name: service-%02d, listen: [\"unix:%s/%02d\"], hosts: [\"unix:%s/none\"]}\n", i+1, dir, i+1, dir)
	}
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte(config.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	o := operated{env: []string{"CONTROL=" + filepath.Join(dir, "c.sock")}}
	o.Understudy = proctest.Start(t, o.env, "--config", file)
	m := startTmux(t, 80, 24, top(t, o)...)
	m.enter("until $UNDERSTUDY status >/dev/null 2>&1; do sleep 0.1; done; clear; " + startTop)
	m.until("the first relay", `(?m)^\+ service-01 +selecting`)
	m.press("End")
	m.until("the last relay", `(?m)^\+ service-60 +selecting`)
	m.press("Enter")
	m.until("its host", `(?m)^    1 unix:`)
	m.press("Home")
	m.until("the first relay", `(?m)^\+ service-01 +selecting`)
	m.press("NPage")
	m.until("the second page", `(?m)^\+ service-14 +selecting`)
	m.press("/")
	m.press("-l", "ice-42")
	m.press("Enter")
	m.until("only one relay", `ice-42.*\n.*\n[+-] service-42[\s\S]*service-42`)
	m.press("q")
	m.until("the end", `(?m)^status 0`)
	m.restored()
}
