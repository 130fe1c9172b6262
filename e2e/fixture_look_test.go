//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// look is the resources that a process holds at one moment.
type look struct {
	descriptors int
	threads     int
	memory      int // resident, in bytes
}

// lookAt looks at a process that runs.
func lookAt(t *testing.T, pid int) look {
	t.Helper()
	var l look
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	l.descriptors = len(entries)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		n, _ := strconv.Atoi(strings.Fields(value + " 0")[0])
		switch name {
		case "Threads":
			l.threads = n
		case "VmRSS":
			l.memory = n << 10
		}
	}
	return l
}

// look looks at the program now.
func (s *show) look() look {
	s.t.Helper()
	return lookAt(s.t, s.PID())
}

// lookAgain is the check at the end of every test: the program holds what it
// held when host a had answered for the first time, and host answers now.
func (s *show) lookAgain(host string) {
	s.t.Helper()
	lookAgain(s.t, s.Understudy, s.first, s.addr, host)
}

// keptByChecks is what checks of two hosts keep and may not have had at the first look: the
// epoll of the first connect that was not answered at once, and the socket of a second
// check that ran at the same time.
const keptByChecks = 2

func lookAgain(t *testing.T, u *proctest.Understudy, first look, addr, host string) {
	t.Helper()
	if who, err := proctest.Greeting(addr, patience); who != host || err != nil {
		t.Errorf("at the end a fresh client is answered by %q, %v, want %s", who, err, host)
	}
	var now look
	defer func() {
		if t.Failed() {
			t.Logf("at first the program held %+v, at the end %+v", first, now)
		}
	}()
	// A check may be under way at any moment; only children that stay count. Two
	// hosts' checks may take turns, so that there is never a moment without.
	left := childrenOf(u.PID())
	u.Until("no more descriptors than at first, and no child that stays", func() bool {
		now = lookAt(t, u.PID())
		there := childrenOf(u.PID())
		left = slices.DeleteFunc(left, func(pid string) bool { return !slices.Contains(there, pid) })
		return now.descriptors <= first.descriptors+keptByChecks && len(left) == 0
	})
	// The runtime keeps threads that once were blocked in a system call.
	if now.threads > first.threads+8 {
		t.Errorf("%d threads, %d at first", now.threads, first.threads)
	}
	if now.memory > first.memory+16<<20 {
		t.Errorf("%d KiB of memory, %d at first", now.memory>>10, first.memory>>10)
	}
	u.Until("an idle second costs no more than 30ms of processor time", func() bool {
		return busy(t, u.PID(), time.Second) <= 30*time.Millisecond
	})
	for _, trouble := range []string{"panic", "EXTRA_VALUE_AT_END", "DATA RACE"} {
		if strings.Contains(u.Log(), trouble) {
			t.Errorf("the log has %s", trouble)
		}
	}
}

// childrenOf is the process IDs of the children of a process, zombies included.
func childrenOf(pid int) []string {
	var children []string
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		if f := stat(path); f != nil && f[1] == strconv.Itoa(pid) {
			children = append(children, filepath.Base(filepath.Dir(path)))
		}
	}
	return children
}

// stat returns the fields of a /proc/PID/stat from the state on, or nil when
// the process has ended; see proc_pid_stat(5).
func stat(path string) []string {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	// The name before them is in parentheses and may hold anything.
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
}

// processorTime is the processor time of a process itself so far.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	f := stat(fmt.Sprintf("/proc/%d/stat", pid))
	if f == nil {
		t.Fatalf("process %d is gone", pid)
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * (time.Second / 100) // USER_HZ is 100 everywhere Go runs
}

// busy is the processor time that a process uses in a period.
func busy(t *testing.T, pid int, period time.Duration) time.Duration {
	t.Helper()
	before := processorTime(t, pid)
	time.Sleep(period) // the period that is measured
	return processorTime(t, pid) - before
}
