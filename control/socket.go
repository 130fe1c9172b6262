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
	"strings"
	"syscall"
	"time"

	"understudy/internal/noblock"
)

// ErrTaken is wrapped by the error of [Server.Bind] when another process serves the
// socket.
var ErrTaken = errors.New("another process serves it")

// DefaultDir is the directory of the control sockets of this user's processes
// when no path was chosen: /run/understudy for root, else understudy in the user's
// run directory, or, where there is none, understudy-UID among the temporary
// files.
func DefaultDir() string {
	const name = "understudy"
	uid := os.Getuid()
	if uid == 0 {
		return "/run/" + name
	}
	for _, dir := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/run/user/" + strconv.Itoa(uid)} {
		if info, err := os.Stat(dir); err == nil && info.IsDir() && filepath.IsAbs(dir) { //nolint:gosec // the user's own variable
			return filepath.Join(dir, name)
		}
	}
	return filepath.Join(os.TempDir(), name+"-"+strconv.Itoa(uid))
}

// socket is an open control socket with its lock.
type socket struct {
	listener net.Listener
	lock     *os.File
}

// bindAt creates the socket at path. The process that serves it holds a lock on the
// file beside it. The lock ends with the process, so a socket without a lock is
// stale.
func bindAt(path string) (*socket, error) {
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
	// The mode is set before the socket has a name, so that no other user can
	// connect at any time.
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

// maxSockets limits the names that are tried for the socket of one process. Processes
// of several namespaces that share a directory may have the same number.
const maxSockets = 10

// bindIn creates the socket PID.sock in a directory for several processes, and
// removes the stale sockets there. Other users may list the directory, so that they
// see which processes run and their users.
func bindIn(dir string) (s *socket, path string, err error) {
	if err := ownDirectory(dir); err != nil {
		return nil, "", fmt.Errorf("directory of control sockets %s: %w", dir, err)
	}
	_ = os.Chmod(dir, 0o755) //nolint:gosec // see above; fails if another user owns it
	removeStaleIn(dir)
	name := strconv.Itoa(os.Getpid())
	for n := range maxSockets {
		path = filepath.Join(dir, name+".sock")
		if n > 0 {
			path = filepath.Join(dir, fmt.Sprintf("%s-%d.sock", name, n+1))
		}
		if s, err = bindAt(path); !errors.Is(err, ErrTaken) {
			break
		}
	}
	return s, path, err
}

// removeStaleIn removes the sockets in dir whose process has ended, and their locks.
func removeStaleIn(dir string) {
	locks, _ := filepath.Glob(globQuoted.Replace(dir) + "/*.sock.lock") // the pattern is well-formed
	for _, path := range locks {
		lock, err := lockFile(path)
		if err != nil {
			continue // its process runs, or another user owns it
		}
		if removeStale(strings.TrimSuffix(path, ".lock")) == nil {
			_ = os.Remove(path)
		}
		_ = lock.Close()
	}
}

// globQuoted quotes the special characters of a pattern of [filepath.Match].
var globQuoted = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)

// ownDirectory creates dir if it is missing.
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

// trusted returns an error for a directory in the temporary directory that another
// user may have created, with a socket of that user in it.
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

// lockFile locks a file, which it creates if needed; see flock(2).
func lockFile(path string) (*os.File, error) {
	for range 100 {
		f, err := noblock.Open(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
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
		// The process that held the lock may have removed the file meanwhile.
		// Then the next process would lock another file.
		mine, err1 := f.Stat()
		there, err2 := os.Stat(path) //nolint:gosec // the operator chose the path
		if err1 == nil && err2 == nil && os.SameFile(mine, there) {
			return f, nil
		}
		_ = f.Close()
	}
	return nil, fmt.Errorf("%s is removed again and again", path)
}

// removeStale removes a stale socket. It returns an error for a file that is not a
// socket, and ErrTaken for a socket that a process serves.
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
	// A timeout or a full queue means that a process serves it.
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return ErrTaken
	}
	return os.Remove(path) //nolint:gosec // the operator chose the path
}

// close removes the socket and releases the lock.
func (s *socket) close() {
	if s.listener != nil {
		_ = s.listener.Close() // removes the file
	}
	_ = os.Remove(s.lock.Name())
	_ = s.lock.Close()
}
