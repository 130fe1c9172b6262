package proctest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Understudy is a running understudy whose output is captured.
type Understudy struct {
	tb     testing.TB
	cmd    *exec.Cmd
	stdin  *os.File
	exited chan struct{} // closed when the process has ended and its output is read

	stdout, stderr output
}

// Start starts the understudy that was given to [Main]. Env adds to an
// environment that holds PATH and HOME only. The process is killed at the end
// of the test if it still runs, and its log is shown when the test failed.
func Start(tb testing.TB, env []string, args ...string) *Understudy {
	tb.Helper()
	return StartCommand(tb, Command(tb, env, args...))
}

// Command is the command that [Start] starts, for a test that needs to change
// it: to replace an output, to pass descriptors, to set limits.
func Command(tb testing.TB, env []string, args ...string) *exec.Cmd {
	tb.Helper()
	cmd := exec.Command(self(tb), args...) //nolint:gosec,noctx // this very binary, ended in Cleanup
	cmd.Env = append(environment(env), roleVariable+"="+roleUnderstudy)
	return cmd
}

// BinaryCommand is an understudy at path, with the environment that [Start]
// gives it.
func BinaryCommand(path string, env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...) //nolint:gosec,noctx // what the test has built, ended in Cleanup
	cmd.Env = environment(env)
	return cmd
}

// environment is the environment of the program. Tests run at the same time, so
// there is no control socket unless more names one.
func environment(more []string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "CONTROL=off"}, more...)
}

var build struct {
	sync.Once
	path, failed string
}

// Build builds the program once for this process and returns the binary's
// path. [Main] removes it.
func Build(tb testing.TB) string {
	tb.Helper()
	build.Do(func() {
		dir, err := os.MkdirTemp("", "understudy")
		if err != nil {
			build.failed = err.Error()
			return
		}
		build.path = filepath.Join(dir, "understudy")
		_, file, _, _ := runtime.Caller(0)
		cmd := exec.Command("go", "build", "-o", build.path, "./cmd/understudy") //nolint:gosec,noctx // constant but for the directory, and ends by itself
		cmd.Dir = filepath.Join(filepath.Dir(file), "..", "..")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			build.failed = err.Error() + "\n" + string(out)
		}
	})
	if build.failed != "" {
		tb.Fatal("build: ", build.failed)
	}
	return build.path
}

func removeBuild() {
	if build.path != "" {
		_ = os.RemoveAll(filepath.Dir(build.path)) // a temporary directory
	}
}

// StartCommand starts cmd, whose outputs are captured unless they are set.
// Standard input, unless it is set, is a pipe that stays open until the end of
// the test.
func StartCommand(tb testing.TB, cmd *exec.Cmd) *Understudy {
	tb.Helper()
	u := &Understudy{tb: tb, cmd: cmd, exited: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &u.stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &u.stderr
	}
	leash(cmd)
	cmd.WaitDelay = 5 * time.Second // a script left behind must not hang the test
	r, w, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	if u.stdin = w; cmd.Stdin == nil {
		cmd.Stdin = r
	}
	err = cmd.Start()
	r.Close()
	if err != nil {
		w.Close()
		tb.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // the status is in ProcessState
		close(u.exited)
	}()
	tb.Cleanup(func() {
		u.Signal(syscall.SIGKILL)
		<-u.exited
		w.Close()
		if tb.Failed() {
			tb.Logf("output of understudy %q:\n%s%s", cmd.Args[1:], u.Stdout(), u.Log())
		}
	})
	return u
}

// Enter writes a line to its standard input.
func (u *Understudy) Enter(line string) {
	u.tb.Helper()
	if _, err := u.stdin.WriteString(line + "\n"); err != nil {
		u.tb.Fatal(err)
	}
}

// PID is the process's id.
func (u *Understudy) PID() int { return u.cmd.Process.Pid }

// Log is its standard error so far.
func (u *Understudy) Log() string { return u.stderr.String() }

// Stdout is its standard output so far.
func (u *Understudy) Stdout() string { return u.stdout.String() }

// WaitLog waits until the log contains text.
func (u *Understudy) WaitLog(text string) {
	u.tb.Helper()
	u.Until("log has "+text, func() bool { return strings.Contains(u.Log(), text) })
}

// Until waits until condition holds; it fails the test if the process ends
// first.
func (u *Understudy) Until(what string, condition func() bool) {
	u.tb.Helper()
	Until(u.tb, what, func() bool {
		if condition() {
			return true
		}
		select {
		case <-u.exited:
			if !condition() {
				u.tb.Fatalf("understudy ended (%v) before: %s", u.cmd.ProcessState, what)
			}
			return true
		default:
			return false
		}
	})
}

// Signal sends a signal; it does nothing when the process has ended.
func (u *Understudy) Signal(s syscall.Signal) { _ = u.cmd.Process.Signal(s) }

// EndAtOnce ends the process at once, after a first signal has requested an
// orderly end: it signals again until the process has ended, because a further
// signal counts only a second after the first. It returns the exit status.
func (u *Understudy) EndAtOnce(s syscall.Signal) int {
	u.tb.Helper()
	u.Until("the second signal ends the process", func() bool {
		u.Signal(s)
		select {
		case <-u.exited:
			return true
		default:
			return false
		}
	})
	return u.Exit()
}

// Exit waits until the process ends by itself and returns its exit status, -1
// after a signal. It fails the test after 60s, with the stacks of all goroutines
// of the process in its output.
func (u *Understudy) Exit() int {
	u.tb.Helper()
	select {
	case <-u.exited:
	case <-time.After(60 * time.Second):
		u.Signal(syscall.SIGQUIT)
		select {
		case <-u.exited:
		case <-time.After(5 * time.Second): // it ignores the signal, or is stopped
		}
		u.tb.Fatal("understudy did not end within 60s")
	}
	return u.cmd.ProcessState.ExitCode()
}

// Terminate sends SIGTERM, waits until the process has ended, and checks that its
// exit status is 0.
func (u *Understudy) Terminate() {
	u.tb.Helper()
	u.Signal(syscall.SIGTERM)
	if code := u.Exit(); code != 0 {
		u.tb.Errorf("exit status %d, want 0", code)
	}
}

// output is a buffer that is written while it is read.
type output struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
