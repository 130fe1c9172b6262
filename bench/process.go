//go:build linux

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a child of the benchmark with everything it forks, in a process
// group of its own.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    string // the file with its output
	exited chan struct{}
	err    error // of Wait, once exited is closed
}

// startProcess runs argv as the user of cred, nil for our own, with its output
// in a file in dir. The caller must call stop.
func startProcess(ctx context.Context, name, dir string, cred *syscall.Credential, argv ...string) (*process, error) {
	log, err := os.CreateTemp(dir, "log-*")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// The context does not end the process: stop does, with all its children.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...) //nolint:gosec // G204: the peers are programs that we choose
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:    true,            // so that stop reaches what it forks, and Ctrl-C does not
		Pdeathsig:  syscall.SIGTERM, // when this process is killed
		Credential: cred,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: log.Name(), exited: make(chan struct{})}
	go p.wait()
	return p, nil
}

func (p *process) wait() {
	p.err = p.cmd.Wait()
	close(p.exited)
}

// stop ends the whole group, with TERM first, and returns when it has ended.
func (p *process) stop() {
	group := -p.cmd.Process.Pid
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		_ = syscall.Kill(group, signal)
		for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); {
			if p.hasExited() && errors.Is(syscall.Kill(group, 0), syscall.ESRCH) {
				return
			}
			<-time.After(5 * time.Millisecond) // bounded: not even Ctrl-C makes us leave it behind
		}
	}
}

// hasExited reports whether the process itself has exited.
func (p *process) hasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// errExited is the cause when a process ends by itself without an error.
var errExited = errors.New("ended on its own, exit status 0")

// failure describes why p ended, with the end of what it printed.
func (p *process) failure() error {
	out, _ := os.ReadFile(p.log)
	return fmt.Errorf("%s: %w: %s", p.name, cmp.Or(p.err, errExited), lastBytes(out, 400))
}

func lastBytes(b []byte, n int) string {
	b = bytes.TrimSpace(b)
	return strings.ReplaceAll(string(b[max(0, len(b)-n):]), "\n", " / ")
}

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
	tree := []int{p.cmd.Process.Pid}
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
				return 0, fmt.Errorf("processor time of %s: %w", p.name, err)
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

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
