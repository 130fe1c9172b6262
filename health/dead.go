package health

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
)

const (
	// deadMark begins every file that this program writes. A file without it
	// is an operator's.
	deadMark = "written by understudy: "

	// deadPause is how often the files are made true.
	deadPause = time.Second
)

// DeadFilesConfig says for which probes files are kept, and where.
type DeadFilesConfig struct {
	// Dir is the directory. It is opened anew each time, so it may be replaced,
	// and it may come later than this program, which does not make it. Required.
	Dir string

	// Members are the probes. Those that are ignored have files as well.
	Members []Member

	// Logger is told when files cannot be kept, once until they can be again.
	// Defaults to none.
	Logger hclog.Logger
}

// DeadFiles keeps a file NAME.dead for every probe that is down, so that other
// tools can see it, and none for one that is up. While a probe is not known
// yet its file stays as it is. The files outlive this program.
//
// A file of that name that this program has not written, an empty one or a
// link to nothing for example, is an operator's and is never touched: the
// heartbeat takes the probe for dead until the operator removes it. The files
// of this program say so in their first line, and why the probe was down.
type DeadFiles struct {
	cfg DeadFilesConfig
	log hclog.Logger
}

// NewDeadFiles returns the keeper of the files of cfg, or an error naming
// every invalid field. It looks at nothing before [DeadFiles.Run].
func NewDeadFiles(cfg DeadFilesConfig) (*DeadFiles, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
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

// Run makes the files true at once and then every second, until ctx ends. It
// returns nil.
func (d *DeadFiles) Run(ctx context.Context) error {
	tick := time.NewTicker(deadPause)
	defer tick.Stop()
	failed := ""
	for {
		switch err := d.sync(); {
		case err != nil && err.Error() != failed:
			failed = err.Error()
			d.log.Warn("dead files not kept, verdicts do not depend on them", "error", err)
		case err == nil && failed != "":
			failed = ""
			d.log.Info("dead files kept again")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// sync makes the files true once.
func (d *DeadFiles) sync() error {
	root, err := os.OpenRoot(d.cfg.Dir)
	if err != nil {
		return err // already "open DIR: cause"
	}
	defer func() { _ = root.Close() }()
	var errs []error
	for _, m := range d.cfg.Members {
		why := m.State()
		if errors.Is(why, ErrUnknown) {
			continue
		}
		name := deadName(m.Name)
		there, err := lookDead(root, name)
		switch {
		case err != nil:
		case there == deadNone && why != nil:
			err = writeDead(root, name, m.Name, why)
		case there == deadOurs && why == nil:
			// An operator who replaces the file at this very moment loses it;
			// no file system can remove a file only if it is still the same.
			err = root.Remove(name)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// writeDead makes the file of a probe, whole or not at all, unless somebody
// else has just made it.
func writeDead(root *os.Root, name, probe string, why error) error {
	// A name of its own, which no tool takes for a probe's.
	temp := ".understudy-" + rand.Text()
	file, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = root.Remove(temp) }() // gone already when it was renamed
	reason := clipText(why.Error())
	_, err = fmt.Fprintf(file, "%sprobe %s is %s\n", deadMark, escapeText(probe, 0), escapeText(reason, 0))
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

// deadFile is what is found under the name of a dead file.
type deadFile int

const (
	deadNone   deadFile = iota // nothing
	deadOurs                   // a file of this program
	deadTheirs                 // anything else: an operator's
)

// deadDir reads a directory of dead files.
type deadDir struct {
	path string

	mu     sync.Mutex      // guards everything below
	theirs map[string]bool // what was last read to be an operator's
}

func newDeadDir(path string) *deadDir {
	return &deadDir{path: path, theirs: make(map[string]bool)}
}

// overridden reports of each name whether an operator's file is there. While
// that cannot be read the last answer stands: a probe that is kept dead does
// not come alive because this program is out of descriptors. A directory that
// is not there has no files.
func (d *deadDir) overridden(names []string) []bool {
	dead := make([]bool, len(names))
	root, err := os.OpenRoot(d.path)
	if err == nil {
		defer func() { _ = root.Close() }()
	}
	for i, name := range names {
		there, lookErr := deadNone, err
		if err == nil {
			there, lookErr = lookDead(root, name)
		}
		d.mu.Lock()
		if lookErr == nil || errors.Is(lookErr, fs.ErrNotExist) {
			d.theirs[name] = there == deadTheirs
		}
		dead[i] = d.theirs[name]
		d.mu.Unlock()
	}
	return dead
}

// lookDead says what is under name.
func lookDead(root *os.Root, name string) (deadFile, error) {
	info, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return deadNone, nil
	case err != nil:
		return deadNone, err
	case !info.Mode().IsRegular():
		return deadTheirs, nil
	}
	// Whatever has come under this name meanwhile, a pipe for one: do not wait.
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return deadNone, nil
	case errors.Is(err, fs.ErrPermission):
		return deadTheirs, nil // ours can be read
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
	return deadTheirs, nil
}

// deadName is the name of the file of a probe.
func deadName(probe string) string { return probe + ".dead" }

// checkDeadNames names every member that can have no file.
func checkDeadNames(members []Member) error {
	var errs []error
	for i, m := range members {
		if why := badFlagName(deadName(m.Name)); why != "" {
			errs = append(errs, fmt.Errorf("members[%d]: %q cannot be the name of a file: it %s", i, deadName(m.Name), why))
		}
	}
	return errors.Join(errs...)
}
