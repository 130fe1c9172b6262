//go:build linux

package control

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestDefaultDir(t *testing.T) {
	if os.Getuid() == 0 {
		if got := DefaultDir(); got != "/run/understudy" {
			t.Errorf("root's directory is %s", got)
		}
		return
	}
	dir := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", dir)
	if got := DefaultDir(); got != filepath.Join(dir, "understudy") {
		t.Errorf("directory is %s, want it below %s", got, dir)
	}
}

func TestBindAt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "control.sock")
	s, err := bindAt(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != fs.ModeSocket {
		t.Errorf("the socket has mode %v, %v, want a socket with 0600", info.Mode(), err)
	}
	if dir, err := os.Stat(filepath.Dir(path)); err != nil || dir.Mode().Perm() != 0o700 {
		t.Errorf("its directory has mode %v, %v, want 0700", dir.Mode(), err)
	}
	if _, err := bindAt(path); !errors.Is(err, ErrTaken) {
		t.Errorf("a second bind: %v, want ErrTaken", err)
	}
	if _, err := net.Dial("unix", path); err != nil {
		t.Errorf("the first one has lost it: %v", err)
	}
	s.close()
	if left, _ := filepath.Glob(filepath.Dir(path) + "/*"); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

// The socket of a process that was killed is replaced.
func TestBindAtAStaleSocket(t *testing.T) {
	if os.Getenv("UNDERSTUDY_BIND_AT") != "" {
		if _, err := bindAt(os.Getenv("UNDERSTUDY_BIND_AT")); err != nil {
			t.Fatal(err)
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	path := filepath.Join(t.TempDir(), "control.sock") // not in the process that is killed: it would stay
	cmd := exec.Command(os.Args[0], "-test.run=^TestBindAtAStaleSocket$")
	cmd.Env = append(os.Environ(), "UNDERSTUDY_BIND_AT="+path)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the process that is killed: %v\n%s", err, out)
	}
	for _, file := range []string{path, path + ".lock"} {
		if _, err := os.Lstat(file); err != nil {
			t.Fatalf("nothing stale to be tested with: %v", err)
		}
	}
	s, err := bindAt(path)
	if err != nil {
		t.Fatal(err)
	}
	s.close()
}

func TestBindAtTakesNothingFromOthers(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := bindAt(file); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("bind of a file: %v, want an error that says so", err)
	}
	if text, _ := os.ReadFile(file); string(text) != "precious" {
		t.Error("the file is gone")
	}

	foreign := filepath.Join(dir, "foreign.sock")
	l, err := net.Listen("unix", foreign)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := bindAt(foreign); !errors.Is(err, ErrTaken) {
		t.Errorf("bind of another program's socket: %v, want ErrTaken", err)
	}
	if c, err := net.Dial("unix", foreign); err != nil {
		t.Errorf("the other program has lost it: %v", err)
	} else {
		c.Close()
	}
}

// In a directory that all users can write to, another user may have created the
// path first.
func TestBindAtAmongTheTemporaryFiles(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	dir := filepath.Join(tmp, "understudy-0")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	if _, err := bindAt(filepath.Join(dir, "control.sock")); err == nil || !strings.Contains(err.Error(), "not a directory that only this user can write to") {
		t.Errorf("bind in a directory that others can write to: %v, want an error that says so", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := bindAt(filepath.Join(dir, "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	s.close()
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(t.TempDir(), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := bindAt(filepath.Join(dir, "control.sock")); err == nil {
		t.Error("bind behind another user's symbolic link is no error")
	}
}

// A server whose queue is full is busy, and not left behind.
func TestBindAtABusySocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "busy.sock")
	open := func() int {
		t.Helper()
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Close(fd) })
		return fd
	}
	server, at := open(), &syscall.SockaddrUnix{Name: path}
	if err := errors.Join(syscall.Bind(server, at), syscall.Listen(server, 0)); err != nil {
		t.Fatal(err)
	}
	for full := false; !full; {
		full = errors.Is(syscall.Connect(open(), at), syscall.EAGAIN)
	}
	if _, err := bindAt(path); !errors.Is(err, ErrTaken) {
		t.Errorf("bind = %v, want ErrTaken", err)
	}
}

// Where others can write, their links are not followed.
func TestBindAtFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(t.TempDir(), "victim")
	path := filepath.Join(dir, "control.sock")
	if err := os.Symlink(victim, path+".lock"); err != nil {
		t.Fatal(err)
	}
	if _, err := bindAt(path); err == nil {
		t.Error("bind through a link that another user made is no error")
	}
	if _, err := os.Lstat(victim); err == nil {
		t.Error("what the link led to was made")
	}
}
