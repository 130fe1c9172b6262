package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"understudy/internal/proctest"
)

// zombies counts the children of pid that have ended and were not reaped.
func zombies(t *testing.T, pid int) int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		// "pid (comm) state ppid …"; comm may contain anything but ends at the
		// last ")".
		_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')'):]), " ")
		if strings.HasPrefix(rest, fmt.Sprintf("Z %d ", pid)) {
			n++
		}
	}
	return n
}

func TestOrphansAreReapedByProcessOne(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root, for a name space of process ids")
	}
	a := (&proctest.Host{Name: "a"}).Start(t)
	addr := proctest.FreeAddr(t)
	// Each orphan has a session of its own, so the end of the script's group
	// does not end it; it ends by itself, later, as a child of process 1.
	trigger := script(t, "for i in 1 2 3 4 5 6 7 8 9 10; do (setsid sleep 0.3 >/dev/null 2>&1 &) ; done\n")
	cmd := proctest.Command(t, nil, "-b", addr, "-H", a.Addr(), "-f", trigger)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	u := proctest.StartCommand(t, cmd)
	proctest.AwaitGreeting(t, addr, "a")
	u.WaitLog("pid=1 ")
	children := func() int {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", u.PID(), u.PID()))
		return len(strings.Fields(string(text)))
	}
	u.Until("all orphans have ended and none is left", func() bool { return children() == 0 && zombies(t, u.PID()) == 0 })
	u.Terminate()
}
