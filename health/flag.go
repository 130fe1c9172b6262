package health

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// ErrFlagName is wrapped by errors about a name that no flag can have.
var ErrFlagName = errors.New("not the name of a flag")

// Flags is a directory of flag files: a service is in service while the file
// of its name is there. Whatever is asked for, nothing outside of the directory
// is looked at, made or removed ([os.Root]).
type Flags struct {
	// Dir is the directory. It is opened anew each time, so it may be replaced,
	// and it may come later than this program.
	Dir string
}

// Present says whether the flag of that name is there. What it is does not
// matter: a file, a link to nothing, a directory. An error that wraps
// [ErrFlagName] is about the name; any other says that nobody can tell.
func (f Flags) Present(name string) (bool, error) {
	root, err := f.open(name)
	if err != nil {
		return false, err
	}
	defer func() { _ = root.Close() }()
	_, err = root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Set makes the flag of that name, if it is not there already.
func (f Flags) Set(name string) error {
	root, err := f.open(name)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	file, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return file.Close()
}

// Clear removes the flag of that name, if it is there. A directory stays, and
// is an error: nobody means that.
func (f Flags) Clear(name string) error {
	root, err := f.open(name)
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

// open opens the directory for a flag that can have that name.
func (f Flags) open(name string) (*os.Root, error) {
	if why := badFlagName(name); why != "" {
		return nil, fmt.Errorf("%q is %w: it %s", name, ErrFlagName, why)
	}
	return os.OpenRoot(f.Dir)
}

// badFlagName says what is wrong with a name; nothing when it is right.
func badFlagName(name string) string {
	switch {
	case name == "":
		return "is empty"
	case name == "." || name == "..":
		return "is a directory"
	case len(name) > 255: // NAME_MAX
		return "is longer than 255 bytes"
	case strings.ContainsRune(name, '/'):
		return "contains a slash"
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "contains a control character"
	}
	return ""
}
