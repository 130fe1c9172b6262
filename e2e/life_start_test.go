//go:build linux

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

// slowStart is a configuration whose start takes some hundred milliseconds: a
// relay that listens on addr, and many others.
func slowStart(t *testing.T, addr, host string) string {
	t.Helper()
	var text strings.Builder
	fmt.Fprintf(&text, "relays:\n  - {name: first, listen: [%q], hosts: [%q]}\n", addr, host)
	for i := range 300 {
		fmt.Fprintf(&text, "  - {name: r%d, listen: [\"unix:%s/%d\"], hosts: [%q]}\n", i, t.TempDir(), i, host)
	}
	return writeFile(t, "understudy.yaml", text.String())
}

// writeFile writes a file of its own directory and returns its path.
func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// startMain starts the program and waits until it opens its configuration. Before
// its main function a Go program is ended by TERM and HUP like any other.
func startMain(t *testing.T, file string) *proctest.Understudy {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, file, unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	u := start(t, "--config", file)
	events.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := events.Read(make([]byte, unix.SizeofInotifyEvent)); err != nil {
		t.Fatalf("the program does not open its configuration: %v", err)
	}
	return u
}

// TERM ends the program at any moment of its start, with status 0.
func TestTermAtAnyMomentOfTheStart(t *testing.T) {
	t.Parallel()
	host := (&proctest.Host{Name: "a"}).Start(t)
	file := slowStart(t, freeAddr(t), host.Addr())
	for range runs(t, 50) {
		u := startMain(t, file)
		after := rand.N(300 * time.Millisecond)
		time.Sleep(after) // any moment of the start
		u.Signal(syscall.SIGTERM)
		begin := time.Now()
		if code := u.Exit(); code != 0 {
			t.Fatalf("TERM %v after the beginning: exit status %d, want 0", after, code)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("TERM %v after the beginning: ended %v later", after, took)
		}
	}
}

// HUP does not end the program, at whatever moment of its start.
func TestHangupAtAnyMomentOfTheStart(t *testing.T) {
	t.Parallel()
	host := (&proctest.Host{Name: "a"}).Start(t)
	addr := freeAddr(t)
	file := slowStart(t, addr, host.Addr())
	for range runs(t, 20) {
		u := startMain(t, file)
		for range 3 {
			time.Sleep(rand.N(100 * time.Millisecond)) // any moment of the start
			u.Signal(syscall.SIGHUP)
		}
		awaitGreeting(t, u, addr, "a")
		u.WaitLog("configuration reloaded")
		u.Terminate()
	}
}

// A start that hangs in a file system that does not answer is ended by TERM
// nevertheless, and so is a reload. strace delays the open.
func TestTermEndsAStartThatHangs(t *testing.T) {
	t.Parallel()
	tracer := needs(t, "strace")
	host := (&proctest.Host{Name: "a"}).Start(t)
	file := writeFile(t, "understudy.yaml", fmt.Sprintf("relays: [{name: r, listen: [%q], hosts: [%q]}]\n", freeAddr(t), host.Addr()))
	delayed := []string{"-f", "-qq", "-o", os.DevNull, "-P", file, "-e", "trace=openat", "-e", "inject=openat:delay_enter=60s"}
	t.Run("start", func(t *testing.T) {
		t.Parallel()
		args := append(append([]string{"-D"}, delayed...), program(t), "--config", file)
		u := proctest.StartCommand(t, proctest.BinaryCommand(tracer, nil, args...))
		awaitOpen(t, u, file)
		tracer := tracerOf(u.PID())
		u.Signal(syscall.SIGTERM)
		awaitEnd(t, u)
		_ = syscall.Kill(tracer, syscall.SIGKILL)
		if code := u.Exit(); code != 0 {
			t.Errorf("exit status %d, want 0", code)
		}
	})
	t.Run("reload", func(t *testing.T) {
		t.Parallel()
		u := start(t, "--config", file, "--bind", freeAddr(t))
		u.WaitLog("relay open")
		looker := exec.Command(tracer, append(delayed, "-p", fmt.Sprint(u.PID()))...)
		looker.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := looker.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = looker.Process.Kill(); _ = looker.Wait() }()
		proctest.Until(t, "strace has every thread", func() bool {
			tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", u.PID()))
			return len(tasks) > 0 && !slices.ContainsFunc(tasks, func(task string) bool { return tracerAt(task) == 0 })
		})
		u.Signal(syscall.SIGHUP)
		awaitOpen(t, u, file)
		u.Signal(syscall.SIGTERM)
		awaitEnd(t, u)
		_ = looker.Process.Kill()
		if code := u.Exit(); code != 0 {
			t.Errorf("exit status %d, want 0", code)
		}
	})
}

// tracerOf is the process that traces another, 0 for none.
func tracerOf(pid int) int { return tracerAt(fmt.Sprintf("/proc/%d", pid)) }

// tracerAt is that of the process or thread whose directory in /proc is dir.
func tracerAt(dir string) (tracer int) {
	text, _ := os.ReadFile(filepath.Join(dir, "status"))
	_, text, _ = bytes.Cut(text, []byte("TracerPid:"))
	_, _ = fmt.Sscan(string(text), &tracer)
	return tracer
}

// awaitEnd waits until the program has ended, even if its tracer has yet to
// take note of it.
func awaitEnd(t *testing.T, u *proctest.Understudy) {
	t.Helper()
	proctest.Until(t, "the program has ended", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", u.PID()))
		return err != nil || strings.Contains(string(text), ") Z ")
	})
}

// awaitOpen waits until a thread of the program is stopped in openat(2) of a
// file. Its tracer stops it for a moment in every other call, too.
func awaitOpen(t *testing.T, u *proctest.Understudy, file string) {
	t.Helper()
	proctest.Until(t, "the open hangs", func() bool {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", u.PID()))
		for _, task := range tasks {
			text, _ := os.ReadFile(task)
			call, _ := os.ReadFile(filepath.Join(filepath.Dir(task), "syscall"))
			var number, dir, path uint64
			_, _ = fmt.Sscanf(string(call), "%d 0x%x 0x%x", &number, &dir, &path)
			if strings.Contains(string(text), ") t ") && number == unix.SYS_OPENAT && hasText(u.PID(), int64(path), file+"\x00") {
				return true
			}
		}
		return false
	})
}

// hasText reports whether the memory of a process has text at an address.
func hasText(pid int, addr int64, text string) bool {
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return false
	}
	defer memory.Close()
	got := make([]byte, len(text))
	_, err = memory.ReadAt(got, addr)
	return err == nil && string(got) == text
}

// Files that are not regular are refused with their name where they are read at
// the start; as the state file they are set aside.
func TestStartWithoutRegularFiles(t *testing.T) {
	t.Parallel()
	host := (&proctest.Host{Name: "a"}).Start(t)
	kinds := map[string]func(path string) error{
		"a named pipe": func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a directory":  func(path string) error { return os.Mkdir(path, 0o700) },
		"a socket": func(path string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err == nil {
				l.SetUnlinkOnClose(false)
				err = l.Close()
			}
			return err
		},
		"a device": func(path string) error { return syscall.Mknod(path, syscall.S_IFCHR|0o600, 1<<8|5) }, // zero
	}
	for what, make := range kinds {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			bad := filepath.Join(dir, "bad")
			if err := make(bad); errors.Is(err, syscall.EPERM) {
				t.Skipf("SKIPPED: cannot make %s here: %v", what, err)
			} else if err != nil {
				t.Fatal(err)
			}
			relay := fmt.Sprintf("relays: [{name: r, listen: [%q], hosts: [%q]}]\n", freeAddr(t), host.Addr())
			refused := map[string][]string{
				"the configuration": {"--config", bad},
				"a token":           {"--config", writeFile(t, "c.yaml", relay+"http: \""+freeAddr(t)+"\"\nroutes: {/ping: {token_file: "+bad+"}}\n")},
				"a certificate":     {"--http", freeAddr(t), "--lport", "80", "--http-cert", bad, "--http-key", bad},
				"an authority": {"--config", writeFile(t, "c.yaml", relay+"http: \""+freeAddr(t)+
					"\"\nprobes: {p: {http: {url: \"https://127.0.0.1:1/\", tls: {ca: "+bad+"}}}}\n")},
				"a check script": {"--bind", freeAddr(t), "--hosts", host.Addr(), "--check-host", bad},
			}
			for of, args := range refused {
				u := start(t, args...)
				if code := u.Exit(); code != 2 || !strings.Contains(u.Log(), bad) {
					t.Errorf("%s as %s: exit status %d, want 2 and its path in\n%s", what, of, code, u.Log())
				}
			}

			state := filepath.Join(dir, "state")
			addr := freeAddr(t)
			if err := os.Mkdir(state, 0o700); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{portOf(addr) + ".json", portOf(addr) + ".json.new"} {
				if err := make(filepath.Join(state, name)); err != nil {
					t.Fatal(err)
				}
			}
			u := start(t, "--bind", addr, "--hosts", host.Addr(), "--state-dir", state)
			u.WaitLog("state file cannot be read")
			awaitGreeting(t, u, addr, "a")
			u.Terminate()
			text, err := os.ReadFile(filepath.Join(state, portOf(addr)+".json"))
			if err != nil || !strings.Contains(string(text), host.Addr()) {
				t.Errorf("the state afterwards: %q, %v, want one that names %s", text, err, host.Addr())
			}
		})
	}
}

// A named pipe in place of the directory of flags delays neither an answer nor
// the end.
func TestFlagsFromANamedPipe(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "flags")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t)
	u := start(t, "--http", addr, "--status-dir", fifo)
	u.WaitLog("http listener ready")
	if code := httpStatus("http://" + addr + "/status?SERVICE=web"); code != 503 {
		t.Errorf("/status answers %d, want 503", code)
	}
	u.Terminate()
}
