//go:build linux

// Package program runs the programs that are measured beside understudy.
package program

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// Settings are how a program is started.
type Settings struct {
	Name string // in errors
	Dir  string // the working directory, which also gets a file with the output

	// Credential is the user to run as; nil is that of this process.
	Credential *syscall.Credential

	// Leash is the signal that the program gets when this process is killed.
	Leash syscall.Signal
}

// Process is a child with everything it forks, in a process group of its own.
type Process struct {
	name   string
	cmd    *exec.Cmd
	log    string // the file with its output
	exited chan struct{}
	err    error // of Wait, once exited is closed
}

// Start runs argv. The caller must call [Process.Stop]: the end of ctx does not end
// the process.
func Start(ctx context.Context, s Settings, argv ...string) (*Process, error) {
	log, err := os.CreateTemp(s.Dir, "log-*")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...) //nolint:gosec // G204: the programs are those that we choose
	cmd.Dir = s.Dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:    true, // so that Stop reaches what it forks, and Ctrl-C does not
		Pdeathsig:  s.Leash,
		Credential: s.Credential,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	p := &Process{name: s.Name, cmd: cmd, log: log.Name(), exited: make(chan struct{})}
	go p.wait()
	return p, nil
}

func (p *Process) wait() {
	p.err = p.cmd.Wait()
	close(p.exited)
}

// Stop sends the signals to the whole group, one after the other with 3 s for each,
// and returns when it has ended. The last one should be SIGKILL.
func (p *Process) Stop(signals ...syscall.Signal) {
	group := -p.PID()
	for _, s := range signals {
		_ = syscall.Kill(group, s)
		for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); {
			if p.Exited() && errors.Is(syscall.Kill(group, 0), syscall.ESRCH) {
				return
			}
			<-time.After(2 * time.Millisecond) // bounded: not even Ctrl-C makes us leave it behind
		}
	}
}

// PID returns the number of the process itself.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends s to the process itself.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Exited reports whether the process itself has exited.
func (p *Process) Exited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// errExited is the cause when a process ends by itself without an error.
var errExited = errors.New("ended on its own, exit status 0")

// Failure describes why p has exited, with the end of what it printed.
func (p *Process) Failure() error {
	out, _ := os.ReadFile(p.log)
	return fmt.Errorf("%s: %w: %s", p.name, cmp.Or(p.err, errExited), LastBytes(out, 400))
}

// String returns the name of p.
func (p *Process) String() string { return p.name }

// LastBytes returns the last n bytes of an output, in one line.
func LastBytes(output []byte, n int) string {
	output = bytes.TrimSpace(output)
	return strings.ReplaceAll(string(output[max(0, len(output)-n):]), "\n", " / ")
}

// Pause waits for d or until ctx ends.
func Pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// NginxModule returns the file of nginx's stream module, or "" when it is built in.
func NginxModule() string {
	out, _ := exec.Command("nginx", "-V").CombinedOutput() //nolint:noctx // prints and exits
	path := "/usr/lib/nginx/modules"
	if m := regexp.MustCompile(`--modules-path=(\S+)`).FindSubmatch(out); m != nil {
		path = string(m[1])
	}
	file := filepath.Join(path, "ngx_stream_module.so")
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	return file
}
