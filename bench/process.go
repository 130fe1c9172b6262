//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"understudy/bench/program"

	"golang.org/x/sys/unix"
)

// process is a program that is measured, with what it forks.
type process struct{ *program.Process }

// startProcess runs argv as the user of cred, nil for our own, with its output
// in a file in dir. The caller must call stop.
func startProcess(ctx context.Context, name, dir string, cred *syscall.Credential, argv ...string) (*process, error) {
	p, err := program.Start(ctx, program.Settings{Name: name, Dir: dir, Credential: cred, Leash: syscall.SIGTERM}, argv...)
	if err != nil {
		return nil, err
	}
	return &process{p}, nil
}

// stop ends the whole group, with TERM first, and returns when it has ended.
func (p *process) stop() { p.Stop(syscall.SIGTERM, syscall.SIGKILL) }

// pids lists p and its descendants.
func (p *process) pids() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "stat"))
		if err != nil {
			continue // it has ended
		}
		// The name, in parentheses, may hold anything; state and parent follow.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 {
			continue
		}
		if parent, err := strconv.Atoi(fields[1]); err == nil {
			children[parent] = append(children[parent], pid)
		}
	}
	tree := []int{p.PID()}
	for i := 0; i < len(tree); i++ {
		tree = append(tree, children[tree[i]]...)
	}
	return tree, nil
}

// busy returns a function that reads the processor time that p and its
// descendants of now, all their threads, have used so far.
func (p *process) busy() (func() (time.Duration, error), error) {
	pids, err := p.pids()
	if err != nil {
		return nil, err
	}
	return func() (time.Duration, error) {
		var sum time.Duration
		for _, pid := range pids {
			var ts unix.Timespec
			// The processor clock of another process, to the nanosecond; the
			// number is made as in clock_getcpuclockid(3).
			if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil { //nolint:gosec // G115: a pid has 22 bits
				return 0, fmt.Errorf("processor time of %s: %w", p, err)
			}
			sum += time.Duration(ts.Nano())
		}
		return sum, nil
	}, nil
}

// usage is the memory, threads and descriptors that processes hold.
type usage struct {
	resident    int64 // bytes, summed over processes
	threads     int64
	descriptors int
}

// usage sums over p and its descendants.
func (p *process) usage() (usage, error) {
	pids, err := p.pids()
	if err != nil {
		return usage{}, err
	}
	var sum usage
	for _, pid := range pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		status, err := readFields(filepath.Join(dir, "status"), "VmRSS:", "Threads:")
		if err != nil {
			return usage{}, err
		}
		fds, err := countDescriptors(pid)
		if err != nil {
			return usage{}, err
		}
		sum.resident += status[0] << 10
		sum.threads += status[1]
		sum.descriptors += fds
	}
	return sum, nil
}

// countDescriptors counts the open descriptors of a process.
func countDescriptors(pid int) (int, error) {
	dir, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	return len(names), err
}

// readFields returns the number behind each key in a file of "key number"
// lines, like /proc/meminfo.
func readFields(path string, keys ...string) ([]int64, error) {
	content, err := os.ReadFile(path) //nolint:gosec // G304: files below /proc
	if err != nil {
		return nil, err
	}
	values := make([]int64, len(keys))
	for i, key := range keys {
		_, rest, found := strings.Cut("\n"+string(content), "\n"+key)
		fields := strings.Fields(rest)
		if !found || len(fields) == 0 {
			return nil, fmt.Errorf("%s: no %s", path, key)
		}
		if values[i], err = strconv.ParseInt(fields[0], 10, 64); err != nil {
			return nil, fmt.Errorf("%s: %s %w", path, key, err)
		}
	}
	return values, nil
}

// confine lets every thread of the processes run on the given processors
// only; threads they start later inherit it.
func confine(pids []int, processors *unix.CPUSet) error {
	for _, pid := range pids {
		threads, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
		if err != nil {
			return err
		}
		for _, thread := range threads {
			id, err := strconv.Atoi(thread.Name())
			if err != nil {
				return err
			}
			if err := unix.SchedSetaffinity(id, processors); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("thread %d: %w", id, os.NewSyscallError("sched_setaffinity", err))
			}
		}
	}
	return nil
}
