// Package noblock opens files and directories without ever waiting for them.
//
// Opening a named pipe waits for its other end, and reading a device may never
// end; only the end of the process can cancel that. So every path at which
// operators or other users can create a file is opened by this package, which
// accepts regular files only.
package noblock

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// ErrNotRegular is wrapped by the error for a path at which there is something
// that is not a regular file.
var ErrNotRegular = errors.New("is not a regular file")

// Open is [os.OpenFile], and returns an error that wraps [ErrNotRegular] for
// anything but a regular file. With [syscall.O_NOFOLLOW] in flag a symbolic
// link is not one either.
func Open(name string, flag int, perm fs.FileMode) (*os.File, error) {
	stat := os.Stat
	if flag&syscall.O_NOFOLLOW != 0 {
		stat = os.Lstat
	}
	// Opening a device can have an effect, so this comes first. It is checked
	// again below, since another file may have taken the name.
	if info, err := stat(name); err == nil {
		if err := regular(name, info); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(name, flag|syscall.O_NONBLOCK, perm) //nolint:gosec // the callers say which
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = regular(name, info)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// Read returns the content of a regular file, and no more of it than limit
// bytes.
func Read(name string, limit int64) ([]byte, error) {
	f, err := Open(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, limit))
}

// OpenRoot is [os.OpenRoot], and returns an error that wraps ENOTDIR for
// anything but a directory.
func OpenRoot(name string) (*os.Root, error) {
	info, err := os.Stat(name)
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "open", Path: name, Err: syscall.ENOTDIR}
	}
	if err != nil {
		return nil, err
	}
	return os.OpenRoot(name)
}

// regular returns an error unless there is a regular file at a path.
func regular(name string, info fs.FileInfo) error {
	what := ""
	switch t := info.Mode().Type(); {
	case t == 0:
		return nil
	case t&fs.ModeDir != 0:
		what = "a directory"
	case t&fs.ModeNamedPipe != 0:
		what = "a named pipe"
	case t&fs.ModeSocket != 0:
		what = "a socket"
	case t&fs.ModeDevice != 0:
		what = "a device"
	case t&fs.ModeSymlink != 0:
		what = "a symbolic link"
	default:
		what = t.String()
	}
	return fmt.Errorf("%q %w but %s", name, ErrNotRegular, what)
}
