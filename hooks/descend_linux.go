package hooks

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A process can leave its script's process group (setsid(2)). It is then found by
// descent: this process adopts it when its parent ends (see [Adopt]), and the mark
// in its environment identifies its script. A process of another origin, such as
// one that was started before this program in a container, has no mark and is not
// touched.

// Adopt makes this process adopt the orphans of its scripts, as process 1 does; see
// PR_SET_CHILD_SUBREAPER in prctl(2). The program must call [Reap] then.
func Adopt() error {
	return os.NewSyscallError("prctl(PR_SET_CHILD_SUBREAPER)", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}

// endDescendants kills and reaps every child of this process that has mark in
// its environment, and their orphans, which become its children, but not for longer
// than limit. Only adopted children are considered.
func endDescendants(mark string, limit time.Duration) {
	if !procIsOurs() {
		return
	}
	for deadline := time.Now().Add(limit); ; {
		left := 0
		for _, pid := range adopted() {
			if !marked(pid, mark) {
				continue
			}
			left++
			_ = syscall.Kill(pid, syscall.SIGKILL)
			for !reapNow(pid) && time.Now().Before(deadline) {
				time.Sleep(time.Millisecond) //nolint:forbidigo // a process that was killed ends in a moment
			}
		}
		if left == 0 || !time.Now().Before(deadline) {
			return
		}
	}
}

// KillAll kills every script that runs and all their descendants, and waits for
// their end, but not for longer than limit. It is for a program that exits at once.
func KillAll(limit time.Duration) {
	if !procIsOurs() {
		return
	}
	for deadline := time.Now().Add(limit); ; {
		left := 0
		lists, _ := filepath.Glob("/proc/self/task/*/children") // the pattern is right
		for _, list := range lists {
			for _, pid := range childrenIn(list) {
				switch {
				case children.contains(pid) && !exitedYet(pid, unix.WNOHANG):
					_ = syscall.Kill(-pid, syscall.SIGKILL)
				case !children.contains(pid) && marked(pid, markPrefix):
					_ = syscall.Kill(pid, syscall.SIGKILL)
					reapNow(pid)
				default:
					continue
				}
				left++
			}
		}
		if left == 0 || !time.Now().Before(deadline) {
			return
		}
		time.Sleep(time.Millisecond) //nolint:forbidigo // processes that were killed end in a moment
	}
}

// procIsOurs reports whether /proc uses the numbers of this process's own PID
// namespace. It can be the /proc of an outer namespace.
func procIsOurs() bool {
	self, err := os.Readlink("/proc/self")
	return err == nil && self == strconv.Itoa(os.Getpid())
}

// adopted returns the children of the main thread: the kernel makes it the parent of
// adopted processes, and it never ends before the process.
func adopted() []int {
	self := os.Getpid()
	list := fmt.Sprintf("/proc/self/task/%d/children", self)
	if _, err := os.Stat(list); err == nil {
		return childrenIn(list)
	}
	// A kernel without CONFIG_PROC_CHILDREN; see proc(5).
	var found []int
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is right
	for _, path := range stats {
		text, err := os.ReadFile(path) //nolint:gosec // a file of the kernel
		if err != nil {
			continue // it has ended
		}
		// "pid (name) state parent …", and the name may contain any character.
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(self) {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
				found = append(found, pid)
			}
		}
	}
	return found
}

// childrenIn reads a list of children; see proc(5).
func childrenIn(list string) []int {
	text, err := os.ReadFile(list) //nolint:gosec // a file of the kernel
	if err != nil {
		return nil // the thread has ended
	}
	var found []int
	for field := range strings.FieldsSeq(string(text)) {
		if pid, err := strconv.Atoi(field); err == nil {
			found = append(found, pid)
		}
	}
	return found
}

// marked reports whether a process has a mark that begins with mark in the
// environment that it was started with.
func marked(pid int, mark string) bool {
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false
	}
	want := []byte(markVariable + "=" + mark)
	return bytes.HasPrefix(environ, want) || bytes.Contains(environ, append([]byte{0}, want...))
}

// reapNow reaps a child that has ended, and reports whether it is reaped.
func reapNow(pid int) bool {
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
		if !errors.Is(err, syscall.EINTR) {
			return got == pid || err != nil // ECHILD: Reap was faster
		}
	}
}
