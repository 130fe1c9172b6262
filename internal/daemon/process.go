package daemon

import (
	"bytes"
	"cmp"
	"context"
	"io/fs"
	"math"
	"os"
	"os/signal"
	"path"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/threads"
)

// secondSignal is the time after the first TERM or INT from which another one requests an
// immediate end. An earlier one is the same request: timeout(1), "kill 0" and
// "tini -g" signal a process and its group, so the process gets the signal
// twice.
const secondSignal = time.Second

// Signals are the signals that a serving process handles: the first TERM or INT
// requests the end, one that comes a second later or more an immediate end, and
// each HUP, or several as one, a reload. If the reader of standard output or
// error closes it (PIPE), the process does not end.
//
// The signals are handled and not ignored, because scripts inherit the signals
// that a process ignores.
type Signals struct {
	finish, hurry context.Context //nolint:containedctx // they are what this is about
	ends          chan os.Signal
	hangups       <-chan os.Signal
	logger        atomic.Pointer[hclog.Logger] // nil until there is one
	terminal      bool                         // HUP can come from a terminal that is closed
	stop          func()
}

// HandleSignals handles the signals from now on, until [Signals.Release]. It
// must be called before everything that takes time: until then TERM and HUP end
// the process.
func HandleSignals(ctx context.Context) *Signals {
	finish, cancelFinish := context.WithCancel(ctx)
	hurry, cancelHurry := context.WithCancel(context.WithoutCancel(ctx))
	// There is a channel for each kind: a signal that does not fit is lost,
	// which merges several HUPs into one, and must not happen to an end because
	// of other signals. The channel of PIPE is never read.
	ends, hung, pipes := make(chan os.Signal, 2), make(chan os.Signal, 1), make(chan os.Signal, 1)
	// nohup(1) sets HUP to be ignored: the process must outlive its terminal.
	terminal := !signal.Ignored(syscall.SIGHUP) && hasTerminal()
	signal.Notify(ends, syscall.SIGTERM, syscall.SIGINT)
	signal.Notify(hung, syscall.SIGHUP)
	signal.Notify(pipes, syscall.SIGPIPE)
	e := &Signals{finish: finish, hurry: hurry, ends: ends, hangups: hung, terminal: terminal}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { e.handleEnds(ends, done, cancelFinish, cancelHurry) })
	e.stop = func() {
		for _, c := range []chan os.Signal{ends, hung, pipes} {
			signal.Stop(c)
		}
		close(done)
		wg.Wait()
		cancelFinish()
		cancelHurry()
	}
	return e
}

// handleEnds calls finish at the first of ends, and hurry at each that comes
// secondSignal after it, until done is closed.
func (e *Signals) handleEnds(ends <-chan os.Signal, done <-chan struct{}, finish, hurry func()) {
	var first time.Time
	for {
		select {
		case <-done:
			return
		case s := <-ends:
			switch {
			case first.IsZero():
				first = time.Now()
				e.log("ending: connections may finish", s)
				finish()
			case time.Since(first) >= secondSignal:
				e.log("ending at once", s)
				hurry()
			}
		}
	}
}

// terminalWait is the time after its HUP in which a closed terminal may still be
// the controlling terminal: a shell can pass the signal on before the kernel has
// taken the terminal away from every process.
const terminalWait = 200 * time.Millisecond

// lostTerminal reports whether the process had a controlling terminal at its
// start and has none any more: then a HUP comes from the terminal and not from
// an operator.
func (e *Signals) lostTerminal() bool {
	if !e.terminal {
		return false
	}
	begin := time.Now()
	for hasTerminal() {
		if time.Since(begin) > terminalWait {
			return false
		}
		<-time.After(terminalWait / 10)
	}
	return true
}

// hasTerminal reports whether the process has a controlling terminal; see
// tty(4).
func hasTerminal() bool {
	fd, err := syscall.Open("/dev/tty", syscall.O_RDONLY|syscall.O_NOCTTY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	_ = syscall.Close(fd) // nothing was written
	return true
}

// endAs requests the end of the process as a signal does.
func (e *Signals) endAs(s os.Signal) {
	select {
	case e.ends <- s:
	default: // it is requested already
	}
}

// Release undoes [HandleSignals].
func (e *Signals) Release() { e.stop() }

// Finish ends when the end of the process is requested.
func (e *Signals) Finish() context.Context { return e.finish }

// log logs the effect of a signal, if there is a log yet.
func (e *Signals) log(what string, s os.Signal) {
	if log := e.logger.Load(); log != nil {
		(*log).Info(what, "signal", s.String())
	}
}

// processors is the number of processors that this process may use, which the Go
// runtime determines from its affinity, its control group and GOMAXPROCS. It is read
// before [prepareProcess] raises the number.
var processors = runtime.GOMAXPROCS(0)

// mostLoops is the limit of event loops. When the settings leave it to the program,
// that is one for each processor that this process may use, 16 at most, since no
// link is faster than so many loops.
func mostLoops(setting int) int { return cmp.Or(setting, min(processors, 16)) }

// prepareProcess adapts the Go runtime to the most event loops that there may be,
// and to the limits of the process.
func prepareProcess(loops int, log hclog.Logger) {
	// Each event loop keeps a processor of the Go scheduler while it works;
	// checks, scripts and verdicts need some as well.
	if runtime.GOMAXPROCS(0) < loops+2 {
		runtime.GOMAXPROCS(loops + 2)
	}

	reserveThreads(loops, log)

	// A relay and its hosts are small beside what their checks allocate and drop:
	// with the runtime's 100 every relay would cost its memory twice. No byte of a
	// client passes through this heap.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}

	if os.Getenv("GOMEMLIMIT") == "" {
		if limit := cgroupMemory(os.DirFS("/")); limit < math.MaxInt64 {
			// A tenth is reserved for memory outside the Go heap.
			debug.SetMemoryLimit(limit / 10 * 9)
			log.Debug("memory limited by control group", "bytes", limit)
		}
	}

	// The runtime has raised the soft limit to the hard one, and restores the
	// original for scripts.
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil && limit.Cur < 4096 {
		log.Warn("descriptor limit is low", "limit", limit.Cur, "connections", (max(int64(limit.Cur), 64)-64)/2)
	}
}

// spareThreads is the number of threads that are made in addition to one for each
// processor of the scheduler and one for each event loop: for calls that wait
// for a disk or a process, and for the runtime itself.
const spareThreads = 32

// reserveThreads makes the threads that the process will need while that is
// possible: when no task is left, the runtime ends a process that needs one
// more thread. It leaves half of the available tasks to scripts.
func reserveThreads(loops int, log hclog.Logger) {
	want := runtime.GOMAXPROCS(0) + loops + spareThreads
	left := min(cgroupTasks(os.DirFS("/")), userTasks())
	if int64(want) > left/2 {
		log.Warn("task limit is low: another program that uses it up can end this one", "left", left, "wanted", 2*want)
		want = int(max(left/2, 0))
	}
	threads.Reserve(want)
}

// cgroupTasks returns how many tasks (processes and threads) the process's
// control group and those above it still allow, or [math.MaxInt64] when they do
// not limit them; see cgroups(7). Root is the file system's root.
func cgroupTasks(root fs.FS) int64 {
	left := int64(math.MaxInt64)
	groups, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return left
	}
	for line := range strings.Lines(string(groups)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		mount := "sys/fs/cgroup"
		switch {
		case len(fields) != 3:
			continue
		case slices.Contains(strings.Split(fields[1], ","), "pids"):
			mount += "/pids"
		case fields[0] != "0":
			continue
		}
		number := func(group, name string) (int64, bool) {
			text, err := fs.ReadFile(root, path.Join(mount, group, name))
			if err != nil {
				return 0, false
			}
			n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64) // "max" is no number and no limit
			return n, err == nil
		}
		for group := path.Clean("/" + fields[2]); ; group = path.Dir(group) {
			limit, limited := number(group, "pids.max")
			if now, ok := number(group, "pids.current"); limited && ok {
				left = min(left, max(limit-now, 0))
			}
			if group == "/" {
				break
			}
		}
	}
	return left
}

// cgroupMemory returns the smallest memory limit of the process's control
// group and those above it, in bytes, or [math.MaxInt64] when there is none.
// Only cgroup v2 is looked at; see cgroups(7). Root is the file system's root.
func cgroupMemory(root fs.FS) int64 {
	limit := int64(math.MaxInt64)
	groups, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return limit
	}
	group := "/"
	for line := range bytes.Lines(groups) {
		if rest, ok := bytes.CutPrefix(line, []byte("0::")); ok {
			group = path.Clean("/" + strings.TrimSpace(string(rest)))
		}
	}
	for ; ; group = path.Dir(group) {
		text, err := fs.ReadFile(root, path.Join("sys/fs/cgroup", group, "memory.max"))
		if err == nil {
			// "max" is no number and no limit.
			if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil {
				limit = min(limit, n)
			}
		}
		if group == "/" {
			return limit
		}
	}
}
