package hooks

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// actVariable names what a copy of the test program is to do instead of tests.
const actVariable = "HOOKS_TEST_ACT"

// acts are what a copy of the test program can do. An act prints what its test
// wants to know.
var acts = map[string]func() error{}

func TestMain(m *testing.M) {
	if name := os.Getenv(actVariable); name != "" {
		if err := acts[name](); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// logbook collects JSON log records.
type logbook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logbook) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Len()
}

// records returns the records so far, and fails the test on one that is not
// JSON or has a key without a value.
func (l *logbook) records(t *testing.T) []map[string]any {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var records []map[string]any
	for line := range strings.Lines(l.buf.String()) {
		var rec map[string]any
		if err := json.Unmarshal([]byte(line), &rec); err != nil {
			t.Fatalf("log record %q: %v", line, err)
		}
		if _, odd := rec["EXTRA_VALUE_AT_END"]; odd {
			t.Errorf("log record %q has a key without a value", line)
		}
		records = append(records, rec)
	}
	return records
}

// lines returns the output lines that were logged at level.
func (l *logbook) lines(t *testing.T, level string) []string {
	t.Helper()
	var lines []string
	for _, rec := range l.records(t) {
		if rec["@message"] == "script output" && rec["@level"] == level {
			lines = append(lines, rec["line"].(string))
		}
	}
	return lines
}

// descriptors counts the open descriptors of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// noChildLeft fails the test if this process has a child, dead or alive.
func noChildLeft(t *testing.T) {
	t.Helper()
	pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
	if err != syscall.ECHILD {
		t.Errorf("wait4(-1) = %d, %v, want ECHILD: a child is left", pid, err)
	}
}

// write writes an executable file and returns its path. No process is forked
// meanwhile, because the child would hold the file open for writing until its
// execve, and it cannot be executed then (ETXTBSY).
func write(tb testing.TB, name, text string) string {
	tb.Helper()
	path := name
	if !filepath.IsAbs(name) {
		path = filepath.Join(tb.TempDir(), name)
	}
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		tb.Fatal(err)
	}
	return path
}
