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
	"strings"
	"syscall"
	"time"
)

// process is a child with everything it forks, in a process group of its own.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    string // the file with its output
	exited chan struct{}
	err    error // of Wait, once exited is closed
}

// startProcess runs argv with its output in a file in dir. Leash is the signal
// that it gets when this process is killed. The caller must call stop.
func startProcess(ctx context.Context, name, dir string, leash syscall.Signal, argv ...string) (*process, error) {
	log, err := os.CreateTemp(dir, "log-*")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// The context does not end the process: stop does, wholly.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...) //nolint:gosec // G204: the proxies are programs that we choose
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:   true, // so that stop reaches what it forks, and Ctrl-C does not
		Pdeathsig: leash,
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

// stop kills the whole group and returns when it has ended. A TERM first would
// be useless: no client is left, and a stopped host would not handle it.
func (p *process) stop() {
	group := -p.cmd.Process.Pid
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		_ = syscall.Kill(group, syscall.SIGKILL)
		if p.hasExited() && errors.Is(syscall.Kill(group, 0), syscall.ESRCH) {
			return
		}
		<-time.After(2 * time.Millisecond) // bounded: not even Ctrl-C makes us leave it behind
	}
}

// signal sends s to the process itself.
func (p *process) signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

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

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
