package hooks

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/threads"
)

// launcher starts processes from one thread of its own.
//
// no_new_privs, ambient capabilities and the signal mask belong to a thread
// and are inherited from the one that forks, so this thread drops them and the
// rest of the program keeps them. The thread is created once and not for each
// script: at the limit of tasks, a script that does not start is a result, but a
// thread that cannot be created would end the program. It lives as long as the
// launcher because no_new_privs cannot be unset.
type launcher struct {
	requests chan launch
	done     sync.WaitGroup
}

// launch is one process to start.
type launch struct {
	path  string
	argv  []string
	attr  *syscall.ProcAttr
	reply chan launched
}

type launched struct {
	pid int
	err error
}

func (l *launcher) begin() {
	l.requests = make(chan launch)
	l.done.Go(l.serve)
	threads.Reserve(spareThreads)
}

// spareThreads is the number of threads that are created before the first script
// runs, so that scripts that use up all tasks of a container cannot end the program.
const spareThreads = 8

// close ends the thread. It must not be called while start may be.
func (l *launcher) close() {
	close(l.requests)
	l.done.Wait()
}

// serve starts the processes of requests until it is closed. It never unlocks its
// thread, so that the thread ends with it.
func (l *launcher) serve() {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread cannot end, and /proc would show its dropped rights as
		// those of the program. While it is locked here the other goroutine gets
		// another thread.
		defer runtime.UnlockOSThread()
		var elsewhere sync.WaitGroup
		elsewhere.Go(l.serve)
		elsewhere.Wait()
		return
	}
	err := dropPrivileges()
	for q := range l.requests {
		if err != nil {
			q.reply <- launched{err: err}
			continue
		}
		// Descriptors that the program itself inherited are not marked
		// close-on-exec yet.
		closeOnExec()
		pid, startErr := children.start(func() (int, error) {
			pid, _, err := syscall.StartProcess(q.path, q.argv, q.attr) //nolint:gosec // it starts the program that the operator chose
			return pid, err
		})
		q.reply <- launched{pid, startErr}
	}
}

// dropPrivileges drops the rights of the calling thread that scripts must not
// inherit.
func dropPrivileges() error {
	err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL before Linux 4.3, which has none
		return os.NewSyscallError("prctl(PR_CAP_AMBIENT)", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl(PR_SET_NO_NEW_PRIVS)", err)
	}
	// The program may have been started with blocked signals, and a fork
	// inherits the mask of this thread.
	return os.NewSyscallError("sigprocmask", unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil))
}

// closeOnExec marks every descriptor from 3 on; see close_range(2).
func closeOnExec() {
	if unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	// Before Linux 5.11. Descriptors that are opened meanwhile are marked
	// already, by Go.
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, entry := range entries {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
}

// process is a child that was started by a launcher.
type process struct {
	pid     int
	started time.Time
	exited  chan struct{} // closed when it can be reaped; its number is not reused before

	pidfd *os.File // nil before Linux 5.2
}

// start starts a process in a group of its own, with files as its descriptors
// from 0 on. The caller calls reap once after exited.
func (l *launcher) start(path string, argv, environ []string, files []uintptr) (*process, error) {
	pidfd := -1
	q := launch{
		path: path,
		argv: argv,
		attr: &syscall.ProcAttr{
			Env:   environ,
			Files: files,
			Sys:   &syscall.SysProcAttr{Setpgid: true, PidFD: &pidfd},
		},
		reply: make(chan launched, 1),
	}
	l.requests <- q
	done := <-q.reply
	if done.err != nil {
		return nil, done.err
	}
	p := &process{pid: done.pid, started: time.Now(), exited: make(chan struct{})}
	if pidfd >= 0 {
		// Go's poller accepts only non-blocking descriptors.
		_ = unix.SetNonblock(pidfd, true)
		p.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	}
	go p.watch()
	return p, nil
}

// watch closes exited when the process has ended, and does not reap it.
//
// It waits in Go's poller and not in waitid(2), which would block a thread for each
// script, and at the limit of tasks a thread cannot be created.
func (p *process) watch() {
	defer close(p.exited)
	for p.pidfd != nil {
		// The check every second costs nothing, and makes sure that one lost
		// wake-up does not make it wait for ever.
		if p.pidfd.SetReadDeadline(time.Now().Add(time.Second)) != nil {
			break
		}
		conn, err := p.pidfd.SyscallConn()
		if err != nil {
			break
		}
		ended := false
		err = conn.Read(func(uintptr) bool {
			ended = exitedYet(p.pid, unix.WNOHANG)
			return ended
		})
		if ended || (err != nil && exitedYet(p.pid, unix.WNOHANG)) {
			return
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			break // this kernel's pidfd cannot be polled
		}
	}
	exitedYet(p.pid, 0)
}

// exitedYet reports whether the child pid has ended, and leaves it unreaped.
// Without WNOHANG among options it waits for that.
func exitedYet(pid, options int) bool {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT|options, nil)
		if !errors.Is(err, unix.EINTR) {
			// An error is ECHILD: other code has taken the status, and reap
			// returns that error.
			return err != nil || info.Signo != 0
		}
	}
}

// reap takes the exit status of a process that has ended.
func (p *process) reap() (syscall.WaitStatus, error) {
	defer children.remove(p.pid)
	if p.pidfd != nil {
		defer p.pidfd.Close()
	}
	return wait4(p.pid)
}
