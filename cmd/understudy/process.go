package main

import (
	"bytes"
	"context"
	"io/fs"
	"math"
	"os"
	"os/signal"
	"path"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"understudy/relay"
)

// endings returns two contexts: the first ends with the first TERM or INT and
// asks the program to finish, the second with the next one and asks it to end
// at once. Each HUP is handed on, or several as one; a reader of standard output
// or error who goes away does not end the program. Release stops all of it.
//
// The signals are handled and not ignored, because what a process ignores its
// scripts would ignore as well.
func endings(ctx context.Context, log hclog.Logger) (finish, hurry context.Context, hangups <-chan os.Signal, release func()) {
	finish, cancelFinish := context.WithCancel(ctx)
	hurry, cancelHurry := context.WithCancel(context.WithoutCancel(ctx))
	// A channel each: what finds no room is lost, which is how several HUPs become
	// one, and must not befall an end because of the others. Nobody reads of pipes.
	ends, hung, pipes := make(chan os.Signal, 2), make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGTERM, syscall.SIGINT)
	signal.Notify(hung, syscall.SIGHUP)
	signal.Notify(pipes, syscall.SIGPIPE)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case s := <-ends:
				if finish.Err() == nil {
					log.Info("ending: connections may finish", "signal", s.String())
					cancelFinish()
				} else {
					log.Info("ending at once", "signal", s.String())
					cancelHurry()
				}
			}
		}
	})
	return finish, hurry, hung, func() {
		for _, c := range []chan os.Signal{ends, hung, pipes} {
			signal.Stop(c)
		}
		close(done)
		wg.Wait()
		cancelFinish()
		cancelHurry()
	}
}

// prepareProcess fits the Go runtime to the relay and to the limits around the
// process. Loops is the number of event loops, zero for the relay's default.
func prepareProcess(loops int, log hclog.Logger) {
	if loops == 0 {
		loops = relay.DefaultLoops()
	}
	// Each event loop keeps a processor of the Go scheduler while it works;
	// checks, scripts and verdicts need some as well.
	if runtime.GOMAXPROCS(0) < loops+2 {
		runtime.GOMAXPROCS(loops + 2)
	}

	if os.Getenv("GOMEMLIMIT") == "" {
		if limit := cgroupMemory(os.DirFS("/")); limit < math.MaxInt64 {
			// A tenth stays for what the Go heap does not count.
			debug.SetMemoryLimit(limit / 10 * 9)
			log.Debug("memory limited by control group", "bytes", limit)
		}
	}

	// The runtime has raised the soft limit to the hard one, and gives scripts
	// the original back.
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil && limit.Cur < 4096 {
		log.Warn("descriptor limit is low", "limit", limit.Cur, "connections", (max(int64(limit.Cur), 64)-64)/2)
	}
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
