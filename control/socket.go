package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// ErrTaken is wrapped by the error of [Server.Bind] when somebody else serves
// the socket.
var ErrTaken = errors.New("another process serves it")

// DefaultPath is where the control socket is when nobody chose a place: in
// /run/understudy for root, else in the user's run directory, or, where there
// is none, in a directory of the user's own among the temporary files.
func DefaultPath() string {
	const name = "understudy/control.sock"
	uid := os.Getuid()
	if uid == 0 {
		return "/run/" + name
	}
	for _, dir := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/run/user/" + strconv.Itoa(uid)} {
		if info, err := os.Stat(dir); err == nil && info.IsDir() && filepath.IsAbs(dir) { //nolint:gosec // the user's own variable
			return filepath.Join(dir, name)
		}
	}
	return filepath.Join(os.TempDir(), "understudy-"+strconv.Itoa(uid), "control.sock")
}

// socket is the claimed control socket.
type socket struct {
	listener net.Listener
	lock     *os.File
}

// claim makes the socket at path. Whoever holds a lock on the file beside it
// serves it; the lock ends with the process, so a socket without one was left
// behind.
func claim(path string) (*socket, error) {
	if err := ownDirectory(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	s := &socket{lock: lock}
	if err := removeStale(path); err != nil {
		s.close()
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	// The mode is set before there is a name: nobody else ever can connect.
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), 0o600) })
	}}
	s.listener, err = private.Listen(context.Background(), "unix", path)
	if err == nil {
		err = os.Chmod(path, 0o600) //nolint:gosec // the operator chose the path; for systems where the mode is the file's only
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return s, nil
}

// ownDirectory makes dir if it is missing.
func ownDirectory(dir string) error {
	err := os.MkdirAll(filepath.Dir(dir), 0o755) //nolint:gosec // like /run itself
	if err == nil {
		err = os.Mkdir(dir, 0o700) //nolint:gosec // the operator chose the path
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return trusted(dir)
}

// trusted says what is wrong with a directory among those of everybody:
// somebody else could have made it, with a socket of theirs in it.
func trusted(dir string) error {
	if filepath.Dir(dir) != filepath.Clean(os.TempDir()) {
		return nil
	}
	info, err := os.Lstat(dir) //nolint:gosec // the operator chose the path
	if err != nil {
		return err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || ok && int(owner.Uid) != os.Getuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is not a directory that only this user can write to", dir)
	}
	return nil
}

// lockFile takes the lock on a file, which it makes; see flock(2).
func lockFile(path string) (*os.File, error) {
	for range 100 {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600) //nolint:gosec // the operator chose the path
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			_ = f.Close()
			if errors.Is(err, syscall.EWOULDBLOCK) {
				err = ErrTaken
			}
			return nil, err
		}
		// Whoever had it may have removed the file in between; then it is not
		// the lock that the next one finds.
		mine, err1 := f.Stat()
		there, err2 := os.Stat(path) //nolint:gosec // the operator chose the path
		if err1 == nil && err2 == nil && os.SameFile(mine, there) {
			return f, nil
		}
		_ = f.Close()
	}
	return nil, fmt.Errorf("%s is removed again and again", path)
}

// removeStale removes a socket that was left behind. What is not a socket, or is
// served by another program, stays.
func removeStale(path string) error {
	info, err := os.Lstat(path) //nolint:gosec // the operator chose the path
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file that is not a socket: remove it, or choose another path")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		_ = c.Close()
	}
	// Whoever has no time for us, or too full a queue, is alive.
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return ErrTaken
	}
	return os.Remove(path) //nolint:gosec // the operator chose the path
}

// close removes the socket and gives up the lock.
func (s *socket) close() {
	if s.listener != nil {
		_ = s.listener.Close() // removes the file
	}
	_ = os.Remove(s.lock.Name())
	_ = s.lock.Close()
}
