package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
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

// act returns a command that runs the named act in a copy of this program.
func act(t *testing.T, name string, env ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = slices.Concat(os.Environ(), []string{actVariable + "=" + name, "GORACE=atexit_sleep_ms=0"}, env)
	return cmd
}

// output runs cmd and returns what it printed to its standard output.
func outputOf(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd.Env[len(cmd.Env)-1], err, &stdout, &stderr)
	}
	return stdout.String()
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

// newRunner returns a runner that logs to the logbook. After the test it is
// closed, and neither a child nor a descriptor is left.
func newRunner(t *testing.T, cfg Config) (*Runner, *logbook) {
	t.Helper()
	book := &logbook{}
	if cfg.Logger == nil {
		cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: book, JSONFormat: true, Level: hclog.Debug})
	}
	runner := New(cfg)
	// What Go's poller opens for the first pipe stays.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	before := descriptors(t)
	t.Cleanup(func() {
		runner.Close()
		nobodyLeft(t)
		eventually(t, "descriptors as before", func() bool { return descriptors(t) <= before })
	})
	return runner, book
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

// nobodyLeft fails the test if this process has a child, dead or alive.
func nobodyLeft(t *testing.T) {
	t.Helper()
	pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
	if err != syscall.ECHILD {
		t.Errorf("wait4(-1) = %d, %v, want ECHILD: a child is left", pid, err)
	}
}

// eventually waits until ok, and fails the test after a time that only a bug
// can take.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// alive reports whether the process pid runs; a zombie does not.
func alive(t *testing.T, pid int) bool {
	t.Helper()
	state, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && !strings.HasPrefix(string(state), "Z")
}

// readPid waits until a script has written a pid to file.
func readPid(t *testing.T, file string) int {
	t.Helper()
	var pid int
	eventually(t, "a pid in "+file, func() bool {
		text, _ := os.ReadFile(file)
		var err error
		pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err == nil && strings.HasSuffix(string(text), "\n")
	})
	return pid
}

// write writes an executable file and returns its path. No process is forked
// meanwhile, because the child would hold the file open for writing until its
// execve, and nobody can execute it then (ETXTBSY).
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

// script writes a shell script.
func script(tb testing.TB, body string) string {
	tb.Helper()
	return write(tb, "script.sh", "#!/bin/sh\n"+body+"\n")
}
