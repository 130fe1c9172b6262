package hooks

import (
	"errors"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// signal sends sig to the whole group of p. An error is ignored: the group has
// ended, or nothing can be done about it.
func (p *process) signal(sig syscall.Signal) { _ = syscall.Kill(-p.pid, sig) }

// awaitExit waits until p has ended, but not longer than limit, and reports
// whether it has.
func (p *process) awaitExit(limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.exited:
		return true
	case <-timer.C:
		return false
	}
}

// wait4 waits for the child pid and reaps it; see wait4(2).
func wait4(pid int) (syscall.WaitStatus, error) {
	for {
		var status syscall.WaitStatus
		_, err := syscall.Wait4(pid, &status, 0, nil)
		if !errors.Is(err, syscall.EINTR) {
			return status, os.NewSyscallError("wait4", err)
		}
	}
}

// children holds the processes whose exit status other code of this program takes;
// [Reap] must not reap them.
var children = family{pids: make(map[int]int)}

type family struct {
	// starting is locked for reading from before a fork until the child is
	// registered, and for writing by Reap while it searches, so that Reap never
	// finds a child that is not registered yet.
	starting sync.RWMutex

	mu sync.Mutex // guards pids
	// pids counts, because a number can be given to the next child before the
	// last one's has been forgotten.
	pids map[int]int
}

// start calls fork and registers its child.
func (f *family) start(fork func() (pid int, err error)) (pid int, err error) {
	f.starting.RLock()
	defer f.starting.RUnlock()
	pid, err = fork()
	if err == nil {
		f.mu.Lock()
		f.pids[pid]++
		f.mu.Unlock()
	}
	return pid, err
}

// remove is called when the child pid has been reaped.
func (f *family) remove(pid int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pids[pid]--; f.pids[pid] <= 0 {
		delete(f.pids, pid)
	}
}

func (f *family) contains(pid int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pids[pid] > 0
}

// Start starts cmd so that [Reap] does not take its exit status. It returns wait,
// which the caller calls once, and soon, instead of cmd.Wait. A program that calls
// Reap starts by Start every process that no Runner starts.
func Start(cmd *exec.Cmd) (wait func() error, err error) {
	pid, err := children.start(func() (int, error) {
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		return cmd.Process.Pid, nil
	})
	if err != nil {
		return nil, err
	}
	return func() error {
		defer children.remove(pid)
		return cmd.Wait()
	}, nil
}
