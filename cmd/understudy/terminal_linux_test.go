package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

// pty is a terminal that records what is written to it.
type pty struct {
	master, tty *os.File

	mu   sync.Mutex // guards text
	text strings.Builder
}

func (s *pty) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// newScreen makes a terminal; see pts(4).
func newScreen(t *testing.T, columns, rows uint16) *pty {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("SKIPPED: there is no terminal to be had: %v", err)
	}
	// Not by Fd, after which no Close would end a Read.
	raw, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	err2 := raw.Control(func(fd uintptr) {
		if number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN); err == nil {
			err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		}
		if err == nil {
			err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows})
		}
	})
	if err = errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	s := &pty{master: master}
	s.tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf) // EIO when the other side is not open; closed by hangUp
			if err != nil {
				return
			}
			s.mu.Lock()
			s.text.Write(buf[:n])
			s.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		s.tty.Close()
		master.Close()
		wg.Wait()
	})
	return s
}

// control starts cmd in a session of its own, with the terminal as its
// controlling one and its standard output.
func (s *pty) control(cmd *exec.Cmd) *exec.Cmd {
	cmd.Stdout = s.tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 1}
	return cmd
}

// enter types text.
func (s *pty) enter(t *testing.T, text string) {
	t.Helper()
	if _, err := s.master.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// until waits until the screen shows text.
func (s *pty) until(t *testing.T, text string) {
	t.Helper()
	proctest.Until(t, fmt.Sprintf("the terminal shows %q", text), func() bool { return strings.Contains(s.String(), text) })
}

// hangUp closes the terminal, as the end of its window or of an ssh session does.
func (s *pty) hangUp() {
	s.tty.Close()
	s.master.Close()
}

// A closed terminal ends a program that was started in it and has nothing to
// reload and no log file to reopen.
func TestClosedTerminal(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	dir := t.TempDir()
	config, log := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "log")
	if err := os.WriteFile(config, []byte("fall: 5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const nothing = "nothing to reload"
	for _, tt := range []struct {
		name    string
		before  string // run by the shell that becomes the program
		flags   string
		handled func(log string, hangups int) bool // with a terminal or without
		ends    bool
	}{
		{"nothing to reload", "", "", func(log string, n int) bool { return strings.Count(log, nothing) == n }, true},
		{"nohup", "trap '' HUP; ", "", func(log string, n int) bool { return strings.Count(log, nothing) == n }, false},
		{"configuration file", "", "--config " + config, func(log string, n int) bool { return strings.Count(log, "configuration reloaded") == n }, false},
		{"log file", "", "--log-output " + log, func(_ string, n int) bool {
			text, err := os.ReadFile(log)
			return err == nil && strings.Count(string(text), nothing) == n
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, addr := newScreen(t, 80, 24), proctest.FreeAddr(t)
			u := proctest.StartCommand(t, s.control(proctest.BinaryCommand("/bin/sh", nil, "-c",
				tt.before+"exec "+proctest.Build(t)+" --bind "+addr+" --hosts "+a.Addr()+" "+tt.flags)))
			proctest.AwaitGreeting(t, addr, "a")
			u.Signal(syscall.SIGHUP) // an operator's
			u.Until("a HUP is handled while there is a terminal", func() bool { return tt.handled(u.Log(), 1) })
			s.hangUp()
			if !tt.ends {
				u.Until("the HUP of the terminal is handled", func() bool { return tt.handled(u.Log(), 2) })
				proctest.AwaitGreeting(t, addr, "a")
				u.Signal(syscall.SIGTERM)
			}
			if code := u.Exit(); code != 0 {
				t.Errorf("exit status %d, want 0", code)
			}
		})
	}
}

// The hosts of a demo end with it when its terminal is closed.
func TestClosedTerminalEndsTheDemo(t *testing.T) {
	t.Parallel()
	s := newScreen(t, 80, 24)
	u := proctest.StartCommand(t, s.control(proctest.BinaryCommand(proctest.Build(t), nil, "demo", "--bind", proctest.FreeAddr(t), "--http", proctest.FreeAddr(t))))
	pids := regexp.MustCompile(`kill -9 (\d+) \(host \d\)`)
	u.Until("the demo names its hosts", func() bool { return len(pids.FindAllString(s.String(), -1)) == 2 })
	s.hangUp()
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	for _, found := range pids.FindAllStringSubmatch(s.String(), -1) {
		pid, err := strconv.Atoi(found[1])
		if err != nil {
			t.Fatal(err)
		}
		awaitEnd(t, pid)
	}
}

func TestTerminalIsFound(t *testing.T) {
	for _, c := range []struct {
		columns       uint16
		noColor, term string
		width         int
		colour        bool
	}{
		{100, "", "xterm", 100, true},
		{20, "", "", leastWidth, true},
		{0, "", "xterm", usualWidth, true},
		{80, "1", "xterm", 80, false},
		{80, "", "dumb", 80, false},
	} {
		t.Setenv("NO_COLOR", c.noColor)
		t.Setenv("TERM", c.term)
		got := newTerminal(newScreen(t, c.columns, 24).tty)
		if got.width != c.width || got.colour != c.colour || got.height != 24 {
			t.Errorf("%+v: width %d, height %d, colour %v", c, got.width, got.height, got.colour)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if got := newTerminal(w); got.width != 0 || got.colour {
		t.Errorf("a pipe is a terminal: %+v", got)
	}
}

// TestWatchOnTerminal checks that watch continues when its process ends, and
// leaves colours out on request.
func TestWatchOnTerminal(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	watch := func(env ...string) (*proctest.Understudy, *pty) {
		s := newScreen(t, 80, 24)
		cmd := proctest.Command(t, append(env, o.env...), "status", "--watch")
		cmd.Stdout = s.tty
		return proctest.StartCommand(t, cmd), s
	}
	coloured, s1 := watch("TERM=xterm")
	plain, s2 := watch("TERM=xterm", "NO_COLOR=1")
	for _, s := range []*pty{s1, s2} {
		proctest.Until(t, "the page is written twice", func() bool {
			return strings.Count(s.String(), "\x1b[H") >= 2 && strings.Count(s.String(), "primary") >= 2
		})
	}
	o.Signal(syscall.SIGTERM)
	proctest.Until(t, "the page says that no process runs", func() bool {
		return strings.Contains(s1.String(), "no understudy is running")
	})
	for _, u := range []*proctest.Understudy{coloured, plain} {
		u.Signal(syscall.SIGINT)
		if code := u.Exit(); code != 0 || u.Log() != "" {
			t.Errorf("exit status %d, want 0; standard error: %q", code, u.Log())
		}
	}
	if !strings.Contains(s1.String(), "\x1b[32mserving\x1b[0m") && !strings.Contains(s1.String(), "\x1b[32m●\x1b[0m") {
		t.Errorf("no colour: %q", s1.String())
	}
	if colours.MatchString(s2.String()) {
		t.Errorf("colours in spite of NO_COLOR: %q", s2.String())
	}
}

// init asks for what it was not given, asks again after an invalid answer, and
// writes nothing before it has all answers.
func TestInitAsks(t *testing.T) {
	t.Parallel()
	const hosts, port = "hosts in order of preference, like db1:5432,db2:5432: ", "port that clients connect to [5432]: "
	begin := func(t *testing.T, kind string) (*proctest.Understudy, *pty, string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "understudy.yaml")
		s := newScreen(t, 80, 24)
		cmd := s.control(proctest.BinaryCommand(proctest.Build(t), nil, "init", kind, "--config", file))
		cmd.Stdin = s.tty
		u := proctest.StartCommand(t, cmd)
		s.until(t, hosts)
		return u, s, file
	}
	written := func(t *testing.T, file string) string {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return string(text)
	}
	t.Run("answers", func(t *testing.T) {
		t.Parallel()
		u, s, file := begin(t, "postgres")
		s.enter(t, "\r")
		s.until(t, hosts+"\r\n"+hosts) // nothing is not an answer
		s.enter(t, "127.0.0.1\r")
		s.until(t, `--hosts: "127.0.0.1" has no port`)
		s.until(t, "\n"+hosts)
		s.enter(t, "127.0.0.1:1,127.0.0.1:2\r")
		s.until(t, port)
		s.enter(t, "70000\r")
		s.until(t, `--port: "70000"`)
		s.enter(t, "\r") // the usual one
		if code := u.Exit(); code != 0 {
			t.Errorf("exit status %d, want 0: %s", code, s)
		}
		for _, want := range []string{`hosts: ["127.0.0.1:1", "127.0.0.1:2"]`, `listen: [":5432"]`} {
			if text := written(t, file); !strings.Contains(text, want) {
				t.Errorf("the file has no %q:\n%s", want, text)
			}
		}
		again := newScreen(t, 80, 24)
		cmd := again.control(proctest.BinaryCommand(proctest.Build(t), nil, "init", "postgres", "--config", file))
		cmd.Stdin = again.tty
		u = proctest.StartCommand(t, cmd)
		if code := u.Exit(); code != 1 || again.String() != "" || !strings.Contains(u.Log(), file+": file already exists") {
			t.Errorf("exit status %d, want 1 and no question: %q, %q", code, again, u.Log())
		}
	})
	t.Run("end of input", func(t *testing.T) {
		t.Parallel()
		u, s, file := begin(t, "tcp")
		s.enter(t, "127.0.0.1:1\r")
		s.until(t, "port that clients connect to: ")
		s.enter(t, "\x04") // Ctrl-D
		if code := u.Exit(); code != 2 || !strings.Contains(u.Log(), "init: needs --port") {
			t.Errorf("exit status %d, want 2; standard error: %q", code, u.Log())
		}
		if text := written(t, file); text != "" {
			t.Errorf("written: %s", text)
		}
	})
	t.Run("Ctrl-C", func(t *testing.T) {
		t.Parallel()
		u, s, file := begin(t, "tcp")
		s.enter(t, "127.0.0.1:1\r")
		s.until(t, "port that clients connect to: ")
		s.enter(t, "\x03")
		if code := u.Exit(); code == 0 || u.Log() != "" {
			t.Errorf("exit status %d; standard error: %q", code, u.Log())
		}
		if text := written(t, file); text != "" {
			t.Errorf("written: %s", text)
		}
	})
}
