package verdict

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/flagfile"
	"understudy/internal/noblock"
	"understudy/internal/safetext"
)

const (
	// deadMark begins every file that this program writes. A file without it
	// belongs to an operator.
	deadMark = "written by understudy: "

	// deadInterval is the time between two updates of the files.
	deadInterval = time.Second
)

// DeadFilesConfig configures DeadFiles.
type DeadFilesConfig struct {
	// Dir is the directory. It is opened anew each time, so it may be replaced,
	// and it may be created after the start. This program does not create it.
	// Required.
	Dir string

	// Members are the probes. Those that are ignored have files as well.
	Members []Member

	// Unknown reports whether an error returned by the State of a member only
	// means that the state is not known yet. Nil means that every error is a
	// failure.
	Unknown func(why error) bool

	// Logger gets a record when updates begin to fail and one when they succeed
	// again. Nil discards them.
	Logger hclog.Logger
}

// DeadFiles keeps a file NAME.dead for every probe that is down, for other tools,
// and no file for one that is up. While the state of a probe is not known yet its
// file is not changed. The files remain after this program ends.
//
// A file of that name that this program has not written, for example an empty one
// or a dangling link, belongs to an operator and is never changed: the heartbeat
// reports the probe as dead until the operator removes it. The files of this
// program are marked in their first line, with the reason why the probe was down.
type DeadFiles struct {
	cfg DeadFilesConfig
	log hclog.Logger
}

// NewDeadFiles returns a DeadFiles, or an error naming every invalid field of
// cfg. It does not read the directory.
func NewDeadFiles(cfg DeadFilesConfig) (*DeadFiles, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Unknown == nil {
		cfg.Unknown = func(error) bool { return false }
	}
	errs := []error{checkDeadNames(cfg.Members)}
	for i, m := range cfg.Members {
		if m.State == nil {
			errs = append(errs, fmt.Errorf("members[%d]: %q has no state", i, m.Name))
		}
	}
	if cfg.Dir == "" {
		errs = append(errs, errors.New("dir: it is empty"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("dead files: %w", err)
	}
	return &DeadFiles{cfg: cfg, log: cfg.Logger.Named("dead-files").With("dir", cfg.Dir)}, nil
}

// Run updates the files at once and then every second, until ctx ends. It returns
// nil.
func (d *DeadFiles) Run(ctx context.Context) error {
	tick := time.NewTicker(deadInterval)
	defer tick.Stop()
	failed := ""
	for {
		switch err := d.sync(); {
		case err != nil && err.Error() != failed:
			failed = err.Error()
			d.log.Warn("dead files not written, verdicts do not depend on them", "error", err)
		case err == nil && failed != "":
			failed = ""
			d.log.Info("dead files written again")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// sync updates the files once.
func (d *DeadFiles) sync() error {
	root, err := noblock.OpenRoot(d.cfg.Dir)
	if err != nil {
		return err // already "open DIR: cause"
	}
	defer func() { _ = root.Close() }()
	var errs []error
	for _, m := range d.cfg.Members {
		why := m.State()
		if d.cfg.Unknown(why) {
			continue
		}
		name := deadName(m.Name)
		there, err := readDead(root, name)
		switch {
		case err != nil:
		case there == deadNone && why != nil:
			err = writeDead(root, name, m.Name, why)
		case there == deadOurs && why == nil:
			// A file with which an operator replaces this one at this moment is
			// lost: no file system can remove a file only if it is unchanged.
			err = root.Remove(name)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// writeDead creates the file of a probe atomically, unless it exists by now.
func writeDead(root *os.Root, name, probe string, why error) error {
	// The name does not end in .dead, so that no tool reads the unfinished file.
	temp := ".understudy-" + rand.Text()
	file, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = root.Remove(temp) }() // it does not exist after a rename
	reason := clipText(why.Error())
	_, err = fmt.Fprintf(file, "%sprobe %s is %s\n", deadMark, safetext.Escape(probe), safetext.Escape(reason))
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	// Unlike a rename, a link replaces nothing.
	err = root.Link(temp, name)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	return root.Rename(temp, name) // a file system without links
}

// deadFile is the kind of the file with the name of a dead file.
type deadFile int

const (
	deadNone      deadFile = iota // nothing
	deadOurs                      // a file of this program
	deadOperators                 // any other file: it belongs to an operator
)

// deadDir reads a directory of dead files.
type deadDir struct {
	path string

	mu        sync.Mutex      // guards everything below
	operators map[string]bool // by name: whether the file was an operator's when last read
}

func newDeadDir(path string) *deadDir {
	return &deadDir{path: path, operators: make(map[string]bool)}
}

// overridden reports for each name whether an operator's file exists. While that
// cannot be read the last result is kept: a probe that an operator declared dead
// does not become alive because this program has no free descriptor. A missing
// directory has no files.
func (d *deadDir) overridden(names []string) []bool {
	dead := make([]bool, len(names))
	root, err := noblock.OpenRoot(d.path)
	if err == nil {
		defer func() { _ = root.Close() }()
	}
	for i, name := range names {
		there, lookErr := deadNone, err
		if err == nil {
			there, lookErr = readDead(root, name)
		}
		d.mu.Lock()
		if lookErr == nil || errors.Is(lookErr, fs.ErrNotExist) {
			d.operators[name] = there == deadOperators
		}
		dead[i] = d.operators[name]
		d.mu.Unlock()
	}
	return dead
}

// readDead returns the kind of the file name.
func readDead(root *os.Root, name string) (deadFile, error) {
	info, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return deadNone, nil
	case err != nil:
		return deadNone, err
	case !info.Mode().IsRegular():
		return deadOperators, nil
	}
	// The file may have been replaced by a pipe since Lstat: do not block.
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return deadNone, nil
	case errors.Is(err, fs.ErrPermission):
		return deadOperators, nil // this program's files are readable
	case err != nil:
		return deadNone, err
	}
	defer func() { _ = file.Close() }()
	head := make([]byte, len(deadMark))
	n, err := io.ReadFull(file, head)
	switch {
	case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return deadNone, err
	case bytes.Equal(head[:n], []byte(deadMark)):
		return deadOurs, nil
	}
	return deadOperators, nil
}

// deadName returns the name of the file of a probe.
func deadName(probe string) string { return probe + ".dead" }

// checkDeadNames returns an error for every member whose name cannot be a file
// name.
func checkDeadNames(members []Member) error {
	var errs []error
	for i, m := range members {
		if why := flagfile.CheckName(deadName(m.Name)); why != nil {
			errs = append(errs, fmt.Errorf("members[%d]: %q cannot be the name of a file: it %w", i, deadName(m.Name), why))
		}
	}
	return errors.Join(errs...)
}
