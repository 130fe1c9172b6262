// Package flagfile manages flag files: a service is in service while the file
// of its name exists in a directory.
package flagfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"understudy/internal/noblock"
	"understudy/internal/safetext"
)

// ErrName is wrapped by errors about a name that is not valid for a flag.
var ErrName = errors.New("not the name of a flag")

// ErrLink is wrapped by errors about a flag that is a link to nothing in the
// directory: to a path outside, to a missing file, or to itself.
var ErrLink = errors.New("is a link to nothing in the directory")

// lookups has one element for each lookup that waits for a file system: each
// blocks a thread meanwhile, and the number of threads is limited.
var lookups = make(chan struct{}, 8)

// Dir is the path of a directory of flag files. It is opened anew each time, so
// the directory may be replaced, and may be created after the start of this
// program. Nothing outside of it is ever read, made or removed ([os.Root]).
type Dir string

// Present reports whether the flag of that name exists: a file, a directory, or
// a link to one in the directory. An error that wraps [ErrName] is about the
// name; one that wraps [ErrLink] means that the flag does not exist but a link
// does; with any other it is not known whether the flag exists.
func (d Dir) Present(name string) (bool, error) {
	lookups <- struct{}{}
	defer func() { <-lookups }()
	root, err := d.open(name)
	if err != nil {
		return false, err
	}
	defer func() { _ = root.Close() }()
	return present(root, name)
}

// present is [Dir.Present] in the directory root.
func present(root *os.Root, name string) (bool, error) {
	info, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	case info.Mode()&fs.ModeSymlink == 0:
		return true, nil
	}
	_, err = root.Stat(name)
	// os.Root returns an error of its own for a link that leads out, which has
	// no exported value, in place of an error of the system.
	errno, ofSystem := errors.AsType[syscall.Errno](err)
	if err == nil || ofSystem && errno != syscall.ENOENT && errno != syscall.ENOTDIR && errno != syscall.ELOOP {
		return err == nil, err
	}
	return false, fmt.Errorf("%q %w", name, ErrLink)
}

// Set creates the flag of that name, unless it exists. A link to nothing in the
// directory is kept, and is an error that wraps [ErrLink].
func (d Dir) Set(name string) error {
	root, err := d.open(name)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	file, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		_, err := present(root, name)
		return err
	}
	if err != nil {
		return err
	}
	return file.Close()
}

// Clear removes the flag of that name, if it exists. A directory is kept and is
// an error, because it is surely a mistake.
func (d Dir) Clear(name string) error {
	root, err := d.open(name)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	info, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("flag %s is a directory: remove it by hand", name)
	}
	if err := root.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// open checks the name of a flag and opens the directory.
func (d Dir) open(name string) (*os.Root, error) {
	if why := CheckName(name); why != nil {
		return nil, fmt.Errorf("%q is %w: it %w", name, ErrName, why)
	}
	return noblock.OpenRoot(string(d))
}

// CheckName returns nil when a name is valid for a flag, or what is wrong with
// it: "is empty".
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("is empty")
	case name == "." || name == "..":
		return errors.New("is a directory")
	case len(name) > 255: // NAME_MAX
		return errors.New("is longer than 255 bytes")
	case strings.ContainsRune(name, '/'):
		return errors.New("contains a slash")
	case safetext.HasControl(name):
		return errors.New("contains a control character")
	}
	return nil
}
