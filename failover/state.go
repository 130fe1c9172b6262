package failover

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/noblock"
)

const (
	// stateVersion is the version of the state file. A file with a greater one
	// was written by a newer program and is moved aside.
	stateVersion = 1

	// stateLimit limits the bytes of a state file that are read.
	stateLimit = 16 << 20

	// saveTimeout is the time for which a switch waits until its epoch is on the disk. A
	// disk that hangs must not stop a failover.
	saveTimeout = time.Second

	// saveRetry is the time after which a failed save is retried, unless a
	// newer state is saved before.
	saveRetry = 5 * time.Second
)

// state is the state of a relay that is kept across restarts. Its JSON is the
// state file.
type state struct {
	Version   int        `json:"version"`
	Relay     string     `json:"relay"`
	Primary   string     `json:"primary,omitempty"`  // the host of the last election
	Address   netip.Addr `json:"address,omitzero"`   // its address then, if it is a name
	Term      uint64     `json:"term,omitempty"`     // of Primary, by its role check
	Identity  string     `json:"identity,omitempty"` // of its cluster, likewise
	Epoch     uint64     `json:"epoch"`
	Cluster   string     `json:"cluster,omitempty"` // that counts the epochs
	Clock     clock      `json:"clock,omitzero"`    // when it was saved; zero in files of earlier versions
	Locks     locks      `json:"locks,omitempty"`
	Scheduled *Scheduled `json:"scheduled,omitempty"`
	GoodDrill time.Time  `json:"good_drill,omitzero"` // when the last successful drill was
	Incidents []Incident `json:"incidents,omitempty"` // the elections
	Orders    []Incident `json:"orders,omitempty"`    // apart from them, because earlier programs keep a hundred of both together
}

// record returns the elections and the orders together, in the order of their IDs.
func (s state) record() []Incident {
	return slices.SortedStableFunc(slices.Values(slices.Concat(s.Incidents, s.Orders)), func(a, b Incident) int { return cmp.Compare(a.ID, b.ID) })
}

// StateFile keeps the state of a relay in a file of a directory. It belongs to
// the caller of OpenStateFile.
type StateFile struct {
	path string
	lock *os.File
	log  hclog.Logger

	loaded state

	mu     sync.Mutex    // guards the following
	next   *state        // to be written; nil when there is nothing
	saving *saving       // the save of next
	writer chan struct{} // closed when the writing goroutine ends; nil when there is none
	began  time.Time     // when the write in progress began; zero when there is none
	failed string        // the error of the last write; empty when it succeeded
	since  time.Time     // since when every write has failed; zero when the last one succeeded
	retry  *time.Timer   // retries a failed save; nil before the first failure
	closed bool
}

// SaveState is whether the state of a relay is on the disk.
type SaveState struct {
	// Kept is false when there is no state directory, or it is not usable.
	Kept bool

	// Error is why the last save failed, or that it has not ended; nil when it
	// succeeded.
	Error error

	// Since is the time of the first failure after the last success, or of the
	// start of a save that does not end; zero without Error.
	Since time.Time
}

// State reports whether the state of the relay is on the disk. A nil StateFile
// keeps nothing.
func (k *StateFile) State() SaveState {
	if k == nil {
		return SaveState{}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.failed != "":
		return SaveState{Error: errors.New(k.failed), Since: k.since}
	case !k.began.IsZero() && time.Since(k.began) > saveTimeout:
		return SaveState{Error: errors.New("the disk does not answer"), Since: k.began}
	}
	return SaveState{Kept: true}
}

// OpenStateFile reads the state of the named relay in dir, which it creates if
// only the last element is missing, and locks it against other processes. A
// file that is not valid, or was written by a newer program, is moved aside
// with a warning. The error says why no state can be kept.
func OpenStateFile(dir, relay string, log hclog.Logger) (*StateFile, error) {
	if log == nil {
		log = hclog.NewNullLogger()
	}
	// Only the last element: a mistyped path must not become a directory.
	switch err := os.Mkdir(dir, 0o750); {
	case err == nil:
		log.Info("state directory created", "directory", dir)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("state directory: %w: create %s if that is the place", err, filepath.Dir(filepath.Clean(dir)))
	case !errors.Is(err, fs.ErrExist):
		return nil, fmt.Errorf("state directory: %w", err)
	}
	k := &StateFile{path: filepath.Join(dir, relay+".json"), log: log}
	lock, err := noblock.Open(filepath.Join(dir, relay+".lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	// The lock ends with the process in every case; see flock(2).
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("state of relay %s in %s: another process keeps it: %w", relay, dir, err)
	}
	k.lock = lock
	k.loaded, err = readState(k.path)
	if err != nil {
		aside := k.path + ".aside-" + time.Now().UTC().Format("20060102T150405")
		log.Warn("state file cannot be read, starting without it", "file", k.path, "aside", aside, "error", err)
		if err := os.Rename(k.path, aside); err != nil {
			log.Warn("state file not renamed", "file", k.path, "error", err)
		}
		k.loaded = state{}
	}
	if err := writeFile(k.path, nil); err != nil { // a probe: is there space and permission
		_ = lock.Close()
		return nil, fmt.Errorf("state directory: %w", err)
	}
	return k, nil
}

// TakeOver renames the state of one relay in dir to that of another which has
// none yet: programs up to 0.9 named that of a relay without a name "main".
// Nothing is done while another process uses the state, or when its primary is
// none of hosts: then it belongs to another relay. The error says why it
// failed.
func TakeOver(dir, from, to string, hosts []string) (took bool, err error) {
	old, path := filepath.Join(dir, from+".json"), filepath.Join(dir, to+".json")
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return false, nil //nolint:nilerr // an existing state stays
	}
	if _, err := os.Lstat(old); err != nil {
		return false, nil //nolint:nilerr // there is nothing to take over
	}
	lock, err := noblock.Open(filepath.Join(dir, from+".lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return false, err
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return false, nil //nolint:nilerr // another process uses it
	}
	m, err := readState(old)
	if err != nil {
		return false, err
	}
	if m.Primary != "" && !slices.Contains(hosts, m.Primary) {
		return false, nil
	}
	// Link fails if another process has created the path meanwhile.
	if err := os.Link(old, path); err != nil {
		return false, err
	}
	return true, errors.Join(os.Remove(old), os.Remove(filepath.Join(dir, from+".lock")))
}

// readState reads a state file; a missing one is the zero state.
func readState(path string) (state, error) {
	f, err := noblock.Open(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, nil
	}
	if err != nil {
		return state{}, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, stateLimit+1))
	if err != nil {
		return state{}, err
	}
	return parseState(text)
}

// parseState parses the text of a state file.
func parseState(text []byte) (state, error) {
	if len(text) > stateLimit {
		return state{}, fmt.Errorf("more than %d bytes", stateLimit)
	}
	var m state
	if err := json.Unmarshal(text, &m); err != nil {
		return state{}, err
	}
	if m.Version < 1 || m.Version > stateVersion {
		return state{}, fmt.Errorf("version %d, this program knows 1 to %d", m.Version, stateVersion)
	}
	return m, nil
}

// Close waits at most a second for pending writes.
func (k *StateFile) Close() {
	if k == nil {
		return
	}
	k.mu.Lock()
	writer := k.writer
	k.closed = true
	if k.retry != nil {
		k.retry.Stop()
	}
	k.mu.Unlock()
	if writer != nil {
		wait(writer, saveTimeout)
	}
	_ = k.lock.Close()
}

// saving is one write of the state file.
type saving struct {
	done chan struct{} // closed when it has ended
	err  error         // why it failed; valid once done is closed
}

// wait waits until the write has ended, at most for limit. The error says that
// the state may be lost at a restart. A nil saving has ended.
func (s *saving) wait(limit time.Duration) error {
	if s == nil {
		return nil
	}
	if !wait(s.done, limit) {
		return errors.New("done, but not on the disk yet, which does not answer: a restart may not know of it")
	}
	if s.err != nil {
		return fmt.Errorf("done, but a restart will lose it: %w", s.err)
	}
	return nil
}

// save queues m for writing; a newer state replaces it.
func (k *StateFile) save(m state) *saving {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.saveLocked(m)
}

// saveLocked is save with k.mu held.
func (k *StateFile) saveLocked(m state) *saving {
	m.Version = stateVersion
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

// write writes until there is nothing newer.
func (k *StateFile) write() {
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
		k.began = time.Now()
		k.mu.Unlock()
		text, err := json.MarshalIndent(m, "", " ")
		if err == nil {
			err = writeFile(k.path, append(text, '\n'))
		}
		k.complain(*m, err)
		s.err = err
		close(s.done)
	}
}

// complain records the result of writing m, logs an error that differs from the
// one before, and schedules a retry.
func (k *StateFile) complain(m state, err error) {
	said := ""
	if err != nil {
		said = err.Error()
	}
	k.mu.Lock()
	news := said != k.failed
	k.failed, k.began = said, time.Time{}
	switch {
	case err == nil:
		k.since = time.Time{}
	case k.since.IsZero():
		k.since = time.Now()
	}
	if k.retry != nil {
		k.retry.Stop()
	}
	if err != nil && !k.closed {
		k.retry = time.AfterFunc(saveRetry, func() { k.saveAgain(m) })
	}
	k.mu.Unlock()
	switch {
	case !news:
	case err != nil:
		k.log.Error("state not saved, a restart will lose it", "file", k.path, "error", err)
	default:
		k.log.Info("state saved again", "file", k.path)
	}
}

// saveAgain retries a failed save, unless a newer state was saved or is queued.
func (k *StateFile) saveAgain(m state) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failed != "" && k.writer == nil && !k.closed {
		k.saveLocked(m)
	}
}

// writeFile replaces the content of a file atomically; see rename(2). With nil
// it only tests whether it could.
func writeFile(path string, text []byte) error {
	// The name is always the same, so that a killed process leaves at most one
	// such file behind, which the next one overwrites.
	temp := path + ".new"
	const flag = os.O_WRONLY | os.O_CREATE | os.O_TRUNC | syscall.O_NOFOLLOW
	f, err := noblock.Open(temp, flag, 0o600)
	if errors.Is(err, noblock.ErrNotRegular) { // the name is ours: other kinds of files are removed
		if err = os.Remove(temp); err == nil {
			f, err = noblock.Open(temp, flag, 0o600)
		}
	}
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

// wait waits until done is closed, at most for limit, and reports whether it
// was.
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
