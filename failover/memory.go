package failover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// memoryVersion is the version of the state file. A file with a greater
	// one was written by a newer program and is set aside.
	memoryVersion = 1

	// memoryLimit is the most that is read of a state file.
	memoryLimit = 16 << 20

	// savePatience is how long a switch waits for its epoch to be on the disk.
	// A disk that hangs must not stop a failover.
	savePatience = time.Second
)

// memory is what a relay knows across restarts. Its JSON is the state file.
type memory struct {
	Version   int        `json:"version"`
	Relay     string     `json:"relay"`
	Primary   string     `json:"primary,omitempty"` // the host of the last election
	Epoch     uint64     `json:"epoch"`
	Locks     locks      `json:"locks,omitempty"`
	GoodDrill time.Time  `json:"good_drill,omitzero"` // when a drill last went well
	Incidents []Incident `json:"incidents,omitempty"`
}

// Keeper keeps what a relay remembers in a file of a directory. It belongs to
// whoever opened it.
type Keeper struct {
	path string
	lock *os.File
	log  hclog.Logger

	loaded memory

	mu     sync.Mutex    // guards the following
	next   *memory       // to be written; nil when there is nothing
	saving *saving       // of it
	writer chan struct{} // closed when the goroutine that writes ends; nil when there is none
	failed string        // the last error, so that it is logged once
}

// OpenKeeper reads what the relay of that name remembers in dir, which it makes
// if need be, and keeps other processes from doing the same. A file that cannot
// be understood, or that a newer program wrote, is set aside with a warning.
// The error says why nothing can be kept.
func OpenKeeper(dir, relay string, log hclog.Logger) (*Keeper, error) {
	if log == nil {
		log = hclog.NewNullLogger()
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	k := &Keeper{path: filepath.Join(dir, relay+".json"), log: log}
	lock, err := os.OpenFile(filepath.Join(dir, relay+".lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600) //nolint:gosec // the operator chose the directory
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	// The lock ends with the process, whatever ends it; see flock(2).
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("state of relay %s in %s: another process keeps it: %w", relay, dir, err)
	}
	k.lock = lock
	k.loaded, err = readMemory(k.path)
	if err != nil {
		aside := k.path + ".aside-" + time.Now().UTC().Format("20060102T150405")
		log.Warn("state file set aside, starting without it", "file", k.path, "aside", aside, "error", err)
		if err := os.Rename(k.path, aside); err != nil {
			log.Warn("state file not set aside", "file", k.path, "error", err)
		}
		k.loaded = memory{}
	}
	if err := writeFile(k.path, nil); err != nil { // a probe: is there room, may we write
		_ = lock.Close()
		return nil, fmt.Errorf("state directory: %w", err)
	}
	return k, nil
}

// readMemory reads a state file; one that is missing is an empty memory.
func readMemory(path string) (memory, error) {
	f, err := os.Open(path) //nolint:gosec // the operator chose the directory
	if errors.Is(err, fs.ErrNotExist) {
		return memory{}, nil
	}
	if err != nil {
		return memory{}, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, memoryLimit+1))
	if err != nil {
		return memory{}, err
	}
	return parseMemory(text)
}

// parseMemory understands the text of a state file.
func parseMemory(text []byte) (memory, error) {
	if len(text) > memoryLimit {
		return memory{}, fmt.Errorf("more than %d bytes", memoryLimit)
	}
	var m memory
	if err := json.Unmarshal(text, &m); err != nil {
		return memory{}, err
	}
	if m.Version < 1 || m.Version > memoryVersion {
		return memory{}, fmt.Errorf("version %d, this program knows 1 to %d", m.Version, memoryVersion)
	}
	return m, nil
}

// Close waits a second at most for what is still to be written.
func (k *Keeper) Close() {
	if k == nil {
		return
	}
	k.mu.Lock()
	writer := k.writer
	k.mu.Unlock()
	if writer != nil {
		wait(writer, savePatience)
	}
	_ = k.lock.Close()
}

// saving is one write of the state file.
type saving struct {
	done chan struct{} // closed when it is over
	err  error         // why it failed; not to be read before
}

// wait waits until it is over, for limit at most. The error says that a restart
// will not know what was to be written. A nil saving is over.
func (s *saving) wait(limit time.Duration) error {
	if s == nil {
		return nil
	}
	if !wait(s.done, limit) {
		return errors.New("done, but not on the disk yet, which does not answer: a restart may not know of it")
	}
	if s.err != nil {
		return fmt.Errorf("done, but a restart will not know of it: %w", s.err)
	}
	return nil
}

// save has m written soon, or what comes after it.
func (k *Keeper) save(m memory) *saving {
	m.Version = memoryVersion
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.next == nil {
		k.saving = &saving{done: make(chan struct{})}
	}
	k.next = &m
	if k.writer == nil {
		k.writer = make(chan struct{})
		go k.write()
	}
	return k.saving
}

// write writes until nothing newer is there.
func (k *Keeper) write() {
	for {
		k.mu.Lock()
		m, s := k.next, k.saving
		k.next, k.saving = nil, nil
		if m == nil {
			close(k.writer)
			k.writer = nil
			k.mu.Unlock()
			return
		}
		k.mu.Unlock()
		text, err := json.MarshalIndent(m, "", " ")
		if err == nil {
			err = writeFile(k.path, append(text, '\n'))
		}
		k.complain(err)
		s.err = err
		close(s.done)
	}
}

// complain logs an error when it is not the one before.
func (k *Keeper) complain(err error) {
	said := ""
	if err != nil {
		said = err.Error()
	}
	k.mu.Lock()
	news := said != k.failed
	k.failed = said
	k.mu.Unlock()
	switch {
	case !news:
	case err != nil:
		k.log.Error("state not saved, a restart will not know of it", "file", k.path, "error", err)
	default:
		k.log.Info("state saved again", "file", k.path)
	}
}

// writeFile puts text in the place of a file, wholly or not at all, whatever
// happens meanwhile; see rename(2). With nil it only tries whether it could.
func writeFile(path string, text []byte) error {
	// The name is always the same, so that a process that was killed leaves
	// one such file behind at most, and the next one takes it.
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600) //nolint:gosec // the operator chose the path
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil && text != nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil || text == nil {
		return errors.Join(err, os.Remove(temp))
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// wait waits until done is closed, for limit at most, and says whether it was.
func wait(done <-chan struct{}, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
