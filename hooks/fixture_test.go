package hooks

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/proctest"
)

// testRunner sets a default timeout of 30 seconds for scripts.
type testRunner struct{ *Runner }

func (r testRunner) Run(ctx context.Context, s Script) Result {
	s.Timeout = cmp.Or(s.Timeout, 30*time.Second)
	return r.Runner.Run(ctx, s)
}

// act returns a command that runs the named act in a copy of this program.
func act(t *testing.T, name string, env ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = slices.Concat(os.Environ(), []string{actVariable + "=" + name, "GORACE=atexit_sleep_ms=0"}, env)
	return cmd
}

// acting ends an act that waits in vain, with an exit status that outputOf
// reports.
type acting struct{}

func (acting) Fatalf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(1)
}

// outputOf runs cmd and returns what it printed to its standard output.
func outputOf(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd.Env[len(cmd.Env)-1], err, &stdout, &stderr)
	}
	return stdout.String()
}

// newRunner returns a runner that logs to the logbook. After the test it is
// closed, and neither a child nor a descriptor is left.
func newRunner(t *testing.T, cfg Config) (testRunner, *logbook) {
	t.Helper()
	book := &logbook{}
	if cfg.Logger == nil {
		cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: book, JSONFormat: true, Level: hclog.Debug})
	}
	runner := testRunner{New(cfg)}
	// What Go's poller opens for the first pipe stays.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	before := descriptors(t)
	t.Cleanup(func() {
		runner.Close()
		noChildLeft(t)
		proctest.Until(t, "descriptors as before", func() bool { return descriptors(t) <= before })
	})
	return runner, book
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
	proctest.Until(t, "a pid in "+file, func() bool {
		text, _ := os.ReadFile(file)
		var err error
		pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err == nil && strings.HasSuffix(string(text), "\n")
	})
	return pid
}

// script writes a shell script.
func script(tb testing.TB, body string) string {
	tb.Helper()
	return write(tb, "script.sh", "#!/bin/sh\n"+body+"\n")
}
