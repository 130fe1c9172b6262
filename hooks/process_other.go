//go:build unix && !linux

package hooks

import (
	"os"
	"strconv"
	"syscall"
	"time"
)

// launcher starts processes. On Linux, where rights belong to a thread, it does
// more; see process_linux.go.
type launcher struct{}

func (*launcher) begin() {}

func (*launcher) close() {}

// process is a child that was started by a launcher.
type process struct {
	pid     int
	started time.Time
	exited  chan struct{} // closed when it has ended and is reaped

	status syscall.WaitStatus // valid, as err is, once exited is closed
	err    error
}

// start starts a process in a group of its own, with files as its descriptors
// from 0 on. The caller calls reap once after exited.
func (*launcher) start(path string, argv, environ []string, files []uintptr) (*process, error) {
	closeOnExec()
	attr := &syscall.ProcAttr{Env: environ, Files: files, Sys: &syscall.SysProcAttr{Setpgid: true}}
	pid, err := children.start(func() (int, error) {
		pid, _, err := syscall.StartProcess(path, argv, attr) //nolint:gosec // it starts the program that the operator chose
		return pid, err
	})
	if err != nil {
		return nil, err
	}
	p := &process{pid: pid, started: time.Now(), exited: make(chan struct{})}
	go p.watch()
	return p, nil
}

// closeOnExec marks every descriptor from 3 on.
func closeOnExec() {
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		return
	}
	for _, entry := range entries {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
}

// watch reaps the process and closes exited. Its number may be given to
// another process from then on, but not as long as its group has members.
func (p *process) watch() {
	p.status, p.err = wait4(p.pid)
	close(p.exited)
}

// reap returns the exit status of a process that has ended.
func (p *process) reap() (syscall.WaitStatus, error) {
	children.remove(p.pid)
	return p.status, p.err
}
