package hooks

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reap reaps orphans that have become children of this process, until ctx
// ends. A program that is process 1 of a container, or a subreaper (prctl(2)), must
// call it, since no other process can reap them. It does not reap processes that a
// [Runner] or [Start] has started.
func Reap(ctx context.Context) error {
	changed := make(chan os.Signal, 1) // one is enough: each signal only triggers a search
	signal.Notify(changed, syscall.SIGCHLD)
	defer signal.Stop(changed)
	for {
		var soon <-chan time.Time
		if reapOrphans() {
			soon = time.After(5 * time.Millisecond)
		}
		select {
		case <-changed:
		case <-soon:
		case <-ctx.Done():
			reapOrphans()
			return nil
		}
	}
}

// reapOrphans reaps every orphan that has ended. It returns true when it found a
// child that is not an orphan: the kernel returns that one first until it is reaped,
// so there may be orphans after it.
func reapOrphans() (again bool) {
	children.starting.Lock()
	defer children.starting.Unlock()
	for {
		pid := endedChild()
		if pid == 0 {
			return false
		}
		if children.contains(pid) {
			return true
		}
		_, _ = wait4(pid) // the exit status of an orphan is not used
	}
}

// endedChild returns a child that has ended, without reaping it, or 0.
func endedChild() int {
	// childInfo is the part of siginfo_t that waitid(2) fills in; the pointers
	// further down in its union align it on 64-bit machines.
	type childInfo struct {
		_   [3]int32
		_   [unsafe.Sizeof(uintptr(0))/4 - 1]int32
		pid int32
	}
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || info.Signo == 0 { // ECHILD, or all are alive
			return 0
		}
		return int((*childInfo)(unsafe.Pointer(&info)).pid) //nolint:gosec // x/sys names only the head of siginfo_t
	}
}
