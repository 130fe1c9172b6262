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
)

// launcher starts processes from one thread of its own.
//
// no_new_privs, ambient capabilities and the signal mask belong to a thread
// and are inherited from the one that forks, so the thread gives them up and
// the rest of the program keeps them. The thread is made once and not for each
// script: when no more processes are allowed, a script that does not start is
// a result, but a thread that cannot be made would end the program. It lives
// as long as the launcher because no_new_privs cannot be taken back.
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
	reserveThreads(spareThreads)
}

// spareThreads is how many threads are made before the first script runs.
const spareThreads = 8

// reserveThreads makes n threads and leaves them to the runtime, which keeps
// and reuses them. It makes one more when too many are in system calls, and
// ends the program when it cannot: scripts that take all processes that a
// container is allowed would take the program with them.
func reserveThreads(n int) {
	var all, held sync.WaitGroup
	held.Add(n)
	for range n {
		all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			held.Done()
			held.Wait() // all of them hold one at the same time
		})
	}
	all.Wait()
}

// close ends the thread. It must not be called while start may be.
func (l *launcher) close() {
	close(l.requests)
	l.done.Wait()
}

// serve starts what is asked for until requests is closed. It never unlocks
// its thread, so that the thread ends with it.
func (l *launcher) serve() {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread cannot end, and what it gives up would show as the
		// program's in /proc. While it is held here the other goroutine gets
		// another thread.
		defer runtime.UnlockOSThread()
		var elsewhere sync.WaitGroup
		elsewhere.Go(l.serve)
		elsewhere.Wait()
		return
	}
	err := giveUpRights()
	for q := range l.requests {
		if err != nil {
			q.reply <- launched{err: &localError{err}}
			continue
		}
		// Descriptors that the program itself inherited are not marked
		// close-on-exec unless somebody does it.
		closeOnExec()
		pid, startErr := children.start(func() (int, error) {
			pid, _, err := syscall.StartProcess(q.path, q.argv, q.attr) //nolint:gosec // to start what the operator chose is its purpose
			return pid, err
		})
		q.reply <- launched{pid, startErr}
	}
}

// giveUpRights takes from the calling thread what scripts must not inherit.
func giveUpRights() error {
	err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL before Linux 4.3, which has none
		return os.NewSyscallError("prctl(PR_CAP_AMBIENT)", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl(PR_SET_NO_NEW_PRIVS)", err)
	}
	// The program may have been started with signals blocked; the fork passes
	// on the mask of this thread.
	return os.NewSyscallError("sigprocmask", unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil))
}

// closeOnExec marks every descriptor from 3 on; see close_range(2).
func closeOnExec() {
	if unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	// Before Linux 5.11. What is missed here is what was opened since, which
	// Go opens with the mark.
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
	exited  chan struct{} // closed when it can be reaped; its number is taken until then

	pidfd *os.File // nil where the kernel has none, before Linux 5.2
}

// start starts a process in a group of its own, with files as its descriptors
// from 0 on. Whoever receives it calls reap once after exited.
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
		// A descriptor that does not block is one that Go's poller takes.
		_ = unix.SetNonblock(pidfd, true)
		p.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	}
	go p.watch()
	return p, nil
}

// watch closes exited when the process has ended, and does not reap it.
//
// It waits in Go's poller and not in waitid(2), which would hold a thread for
// each script: making one is what fails first when processes are limited.
func (p *process) watch() {
	defer close(p.exited)
	for p.pidfd != nil {
		// Looking again every second costs nothing and makes sure that no
		// script is waited for for ever because of one lost wake-up.
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
			break // not a kind that can be polled
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
			// An error is ECHILD: somebody has taken the status, and reap
			// will say so.
			return err != nil || info.Signo != 0
		}
	}
}

// reap takes the exit status of a process that has ended.
func (p *process) reap() (syscall.WaitStatus, error) {
	defer children.forget(p.pid)
	if p.pidfd != nil {
		defer p.pidfd.Close()
	}
	return wait4(p.pid)
}
