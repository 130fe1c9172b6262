package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

// screen is a terminal that keeps what is written to it.
type screen struct {
	tty *os.File

	mu   sync.Mutex // guards text
	text strings.Builder
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// newScreen makes a terminal; see pts(4).
func newScreen(t *testing.T, columns, rows uint16) *screen {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("SKIPPED: there is no terminal to be had: %v", err)
	}
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows})
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &screen{}
	s.tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf) // EIO when nobody has the other side open
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
		wg.Wait()
		master.Close()
	})
	return s
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

// TestWatchOnTerminal outlives the process that it looks at, and leaves colours
// out when it is asked to.
func TestWatchOnTerminal(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	watch := func(env ...string) (*proctest.Understudy, *screen) {
		s := newScreen(t, 80, 24)
		cmd := proctest.Command(t, append(env, o.env...), "status", "--watch")
		cmd.Stdout = s.tty
		return proctest.StartCommand(t, cmd), s
	}
	coloured, s1 := watch("TERM=xterm")
	plain, s2 := watch("TERM=xterm", "NO_COLOR=1")
	for _, s := range []*screen{s1, s2} {
		proctest.Until(t, "the page is written twice", func() bool {
			return strings.Count(s.String(), "\x1b[H") >= 2 && strings.Count(s.String(), "primary") >= 2
		})
	}
	o.Signal(syscall.SIGTERM)
	proctest.Until(t, "the page says that nobody runs", func() bool {
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
