// Package hooks runs the operator's scripts: those that check a host and those
// that are triggered by an election.
//
// A script is started by its path and arguments, with no shell in between, in
// a process group of its own. Its standard input is the null device, its two
// outputs are one pipe, and it has no other descriptor. On Linux it starts
// with an empty signal mask, without ambient capabilities and with
// no_new_privs set (prctl(2)), so that neither a set-user-ID program nor sudo
// gives it more rights than this program's user has; the program itself keeps
// its own. A script that root runs keeps root's capabilities. It has the soft
// limit on descriptors that the program was started with, because the Go
// runtime, which raised it, restores it, as long as the program does not call
// syscall.Setrlimit for RLIMIT_NOFILE. Working directory, umask and ignored
// signals (nohup) are inherited.
//
// A script that takes too long is ended with its whole group: SIGTERM, two
// seconds later SIGKILL. What is left of the group after a normal end is
// killed too. A process that left the group with setsid(2) is killed as well
// where the program has called [Adopt], unless it was started without the
// variable UNDERSTUDY_SCRIPT, which identifies it. Otherwise it continues to run:
// it delays nothing, and its output is lost.
//
// A script is inspected before every start, as [Inspect] does, and one that is
// missing, not executable or world-writable does not run: the result is unknown
// with the reason, and is never a pass.
//
// Exit status 75 (EX_TEMPFAIL of sysexits.h) means that the script could not
// determine a result. Exit status 126 or 127, which a shell uses for a command
// that cannot be executed or is missing, means that the script is broken. Both
// are unknown; see [Result.Unknown]. A script that timed out or was ended by a
// signal has failed.
//
// The caller decides which script runs when and what a result means. A [Runner]
// owns every goroutine, thread, descriptor and process it starts; when
// [Runner.Close] returns, all have ended.
package hooks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// defaultLimit limits the scripts that run at one time; others wait.
	defaultLimit = 8

	// termGrace is the longest time that a group may continue after SIGTERM.
	termGrace = 2 * time.Second

	// killGrace is the longest time that a process may take to die of SIGKILL before it
	// counts as stuck in the kernel, as on a dead network file system.
	killGrace = time.Second

	// A timer that fires later than lateTimer means that the machine is slow,
	// and not the script; the script then gets lateGrace more time.
	lateTimer = 500 * time.Millisecond
	lateGrace = 500 * time.Millisecond

	// drainGrace is the time to wait for a script's last output after its end,
	// while another process still holds the pipe.
	drainGrace = 40 * time.Millisecond

	// limitQuiet is the shortest time between two warnings that the limit of
	// tasks is reached.
	limitQuiet = 10 * time.Second

	// reasonLimit limits the bytes of the last line of a script's output in
	// [Result.Reason].
	reasonLimit = 300
)

// errClosed is the error of a script that does not start after Close.
var errClosed = errors.New("the script runner is closed")

// Config configures a [Runner].
type Config struct {
	// Logger gets the output of scripts. It must not block: a script's resultOf
	// may wait for it, so a slow log needs a queue. Nil discards the output.
	Logger hclog.Logger

	// Environ is the environment of every script, "NAME=value" each. Nil means
	// the environment of the program when New is called.
	Environ []string

	// Without names variables that are taken out of Environ, such as those
	// that hold a token. Those of [ScriptEnv] are always taken out.
	Without []string

	limit int // replaces defaultLimit in tests
}

// Kind is the purpose of a script.
type Kind int

const (
	// Trigger is a script of an election. Its output is logged at info as it
	// is written, and Run returns when all its processes have ended.
	Trigger Kind = iota

	// Check is a script that checks a host. Its output is logged when it has
	// ended: at info if it failed with another output than at its last failure,
	// at debug otherwise. Run returns as soon as the resultOf is known, and the
	// remaining processes are ended in the background; see [Result.Reaped].
	Check
)

// Script is one script to run.
type Script struct {
	// Kind is Trigger or Check.
	Kind Kind

	// Path is the file to run. Without a slash it is a file of the working
	// directory; PATH is not searched.
	Path string

	// Args holds the arguments, normally one: the host's connection string
	// exactly as the operator wrote it.
	Args []string

	// Env is added to the runner's environment, "NAME=value" each, and
	// overrides it.
	Env []string

	// Timeout is the longest time that the script may run from the moment its process has
	// started; waiting for a place does not count. Required: Run refuses a
	// script without one.
	Timeout time.Duration

	// Fields are pairs of key and value that are added to every record that
	// is logged for the script.
	Fields []any
}

// End is the way in which a script ended.
type End int

const (
	// NotStarted means that no process was started; Result.Err says why.
	NotStarted End = iota
	// Exited means that the script ended with the exit status Result.Code.
	Exited
	// Signalled means that Result.Signal ended the script, and that the Runner
	// did not send it.
	Signalled
	// TimedOut means that the script ran for longer than its timeout.
	TimedOut
	// Cancelled means that the caller's context ended first.
	Cancelled
)

// String returns the words for e.
func (e End) String() string {
	switch e {
	case NotStarted:
		return "could not start"
	case Exited:
		return "exit status"
	case Signalled:
		return "signal"
	case TimedOut:
		return "timeout"
	case Cancelled:
		return "cancelled"
	}
	return fmt.Sprintf("End(%d)", int(e))
}

// Result is the result of one run of a script.
type Result struct {
	// End is the kind of its end.
	End End

	// Code is the exit status when End is Exited.
	Code int

	// Signal is the signal that ended the script when End is Signalled.
	Signal syscall.Signal

	// Err is nil when the script exited with status 0. Otherwise it describes,
	// with the path, how the script ended. When End is NotStarted, errors.Is
	// finds the cause: fs.ErrNotExist, syscall.ENOEXEC and others.
	Err error

	// Unknown is true when the run has no result: the script exited with 75, 126
	// or 127, it could not be started, or this program or this machine is the
	// cause (no processor time; no place before the context ended). It matters
	// for a Check; a Trigger has failed in each of these cases.
	Unknown bool

	// Took is the time from the start of the process until the resultOf was
	// known; zero when it did not start.
	Took time.Duration

	// Output is the last KiB of the script's output, in one line, with control
	// characters escaped (a line's end is \n).
	Output string

	// LastLine is the last line of Output that is not blank, cut at 300 bytes.
	LastLine string

	// Reaped is closed when the script's group has been ended and its process
	// is reaped. For a Trigger it is closed when Run returns, unless the process
	// is blocked in the kernel. The caller waits for it before it runs a Check
	// again.
	Reaped <-chan struct{}
}

// OK reports whether the script exited with status 0.
func (r Result) OK() bool { return r.Err == nil }

// Reason returns Err, with the last line of the script's output in front, which
// usually is the reason; nil when Err is nil.
func (r Result) Reason() error {
	if r.Err == nil || r.LastLine == "" {
		return r.Err
	}
	return fmt.Errorf("%s (%w)", r.LastLine, r.Err)
}

// exitError is the error of a script that exited with a status other than 0.
type exitError struct{ text string }

func (e exitError) Error() string { return e.text }

// IsExit reports whether err is from a script that ran to its end and exited with
// a status other than 0.
func IsExit(err error) bool { return errors.As(err, new(exitError)) }

// Runner runs scripts. Its methods may be called from many goroutines.
type Runner struct {
	log     hclog.Logger
	environ []string
	places  chan struct{} // one element for each script that runs

	launcher launcher

	mu          sync.Mutex // guards everything below
	begun       bool
	closed      bool
	runs        sync.WaitGroup
	lastFailure map[string]uint64 // hash of the last output of each failing check

	full   bool      // the last start failed by the limit of tasks, and that was logged
	fullAt time.Time // when it was logged
}

// failureSeed is the seed of the hashes in Runner.lastFailure.
var failureSeed = maphash.MakeSeed()

// New returns a Runner. It starts nothing: the first Run starts one thread,
// from which scripts are started.
func New(cfg Config) *Runner {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Environ == nil {
		cfg.Environ = os.Environ()
	}
	return &Runner{
		log:         cfg.Logger,
		environ:     without(cfg.Environ, slices.Concat(scriptEnvNames, cfg.Without)),
		places:      make(chan struct{}, cmp.Or(cfg.limit, defaultLimit)),
		lastFailure: make(map[string]uint64),
	}
}

// Close waits until every script has ended, including those that are still being
// ended after Run has returned, and then for the runner's own thread. It ends no
// script: the contexts of the callers of Run do. It waits at most a second for a
// process that does not die of SIGKILL. A closed runner starts nothing.
func (r *Runner) Close() {
	r.mu.Lock()
	again, begun := r.closed, r.begun
	r.closed = true
	r.mu.Unlock()
	r.runs.Wait()
	if again || !begun {
		return
	}
	r.launcher.close()
}

// enter registers a run, or returns false after Close.
func (r *Runner) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	if !r.begun {
		r.begun = true
		r.launcher.begin()
	}
	r.runs.Add(1)
	return true
}

// ErrAtOnce is the cause of the end of a context that leaves a script no time to clean
// up; see [context.WithCancelCause].
var ErrAtOnce = errors.New("the script may not go on")

// Run runs s and returns its result. It waits for one of the runner's places
// first. When ctx ends, the script is ended as at its timeout, or with SIGKILL where
// the cause is [ErrAtOnce]; a deadline of ctx counts as the script's timeout. The exit
// of a script is noticed at once, even while its children still run.
func (r *Runner) Run(ctx context.Context, s Script) Result {
	reaped := make(chan struct{})
	refused := func(end End, err error) Result {
		close(reaped)
		return Result{End: end, Unknown: true, Err: fmt.Errorf("script %s: %w", s.Path, err), Reaped: reaped}
	}
	if s.Timeout <= 0 {
		return refused(NotStarted, fmt.Errorf("timeout: %v is not positive", s.Timeout))
	}
	if !r.enter() {
		return refused(NotStarted, errClosed)
	}
	if err := r.place(ctx); err != nil {
		r.runs.Done()
		return refused(Cancelled, fmt.Errorf("cancelled before it started: %w", err))
	}

	e := &execution{
		script:  s,
		mark:    newMark(),
		timeout: s.Timeout,
		verdict: make(chan Result, 1),
		over:    make(chan struct{}),
		reaped:  reaped,
	}
	err := r.start(e)
	r.noteLimit(err)
	if err != nil {
		<-r.places
		r.runs.Done()
		close(reaped)
		return Result{End: NotStarted, Err: fmt.Errorf("script %s: %w", s.Path, err), Unknown: true, Reaped: reaped}
	}
	go r.supervise(ctx, e)

	res := <-e.verdict
	res.Reaped = reaped
	if s.Kind == Trigger {
		<-e.over
		res.Output, res.LastLine = e.out.tail()
	}
	return res
}

// noteLimit logs when starts begin to fail by the limit of tasks, and when they
// succeed again.
func (r *Runner) noteLimit(err error) {
	full := errors.Is(err, syscall.EAGAIN)
	r.mu.Lock()
	was := r.full
	if full && !was && time.Since(r.fullAt) < limitQuiet {
		full = false // it comes and goes
	}
	if full && !was {
		r.fullAt = time.Now()
	}
	r.full = full
	r.mu.Unlock()
	switch {
	case full && !was:
		r.log.Warn("task limit reached, scripts cannot be started", "limit", "pids.max or RLIMIT_NPROC")
	case was && !full:
		r.log.Info("scripts can be started again")
	}
}

// place waits for a place or the end of ctx.
func (r *Runner) place(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err // select would choose at random
	}
	select {
	case r.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// execution is one run of a script whose process was started.
type execution struct {
	script  Script
	mark    string // in the environment of all its processes
	timeout time.Duration
	proc    *process
	out     *output

	verdict chan Result   // gets the result once
	over    chan struct{} // closed when the run no longer counts
	reaped  chan struct{} // closed when the process is reaped
}

// start inspects the script, opens its descriptors and starts its process.
func (r *Runner) start(e *execution) error {
	s := e.script
	if err := inspect(s.Path); err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	pr, pw, err := os.Pipe()
	if err != nil {
		return err
	}
	defer pw.Close()

	path := s.Path
	if !strings.Contains(path, "/") {
		path = "./" + path // otherwise an interpreter may search PATH for it, or read it as an option
	}
	// Fd makes the descriptor one that blocks: few programs expect EAGAIN from
	// their standard output.
	e.proc, err = r.launcher.start(path, append([]string{path}, s.Args...), environment(environment(r.environ, s.Env), []string{markVariable + "=" + e.mark}),
		[]uintptr{null.Fd(), pw.Fd(), pw.Fd()})
	if err != nil {
		_ = pr.Close()
		return startFailure(err)
	}
	e.out = newOutput(pr, nil)
	if s.Kind == Trigger {
		e.out.emit = func(line string) { r.logLine(e, hclog.Info, line) }
	}
	go e.out.copy()
	return nil
}

// supervise waits for the end of e's process, or ends it, sends the result as soon
// as it is known, and returns when all processes of e have ended.
func (r *Runner) supervise(ctx context.Context, e *execution) {
	defer r.runs.Done()
	p := e.proc

	res, decided := e.await(ctx)
	if decided {
		res.Output, res.LastLine = e.out.tail()
		e.verdict <- res
		if !errors.Is(context.Cause(ctx), ErrAtOnce) {
			p.signal(syscall.SIGTERM)
			e.awaitGroup(termGrace)
		}
	}
	// The process is not reaped yet, so no other process can have its number,
	// and the signal reaches this group or none.
	p.signal(syscall.SIGKILL)
	if !p.awaitExit(killGrace) {
		// It is blocked in the kernel and dies when the kernel returns. It uses
		// no processor time until then, so it needs no place.
		e.out.finish(0)
		r.report(e, res)
		<-r.places
		close(e.over)
		go func() {
			<-p.exited
			_, _ = p.reap()
			endDescendants(e.mark, killGrace)
			close(e.reaped)
		}()
		return
	}
	took := time.Since(p.started)
	status, err := p.reap()
	endDescendants(e.mark, killGrace)
	e.out.finish(drainGrace)
	if !decided {
		res = resultOf(e.script.Path, status, err)
		res.Took = took
		res.Output, res.LastLine = e.out.tail()
	}
	r.report(e, res)
	<-r.places
	close(e.reaped)
	close(e.over)
	if !decided {
		e.verdict <- res
	}
}

// await waits until the process has exited, its timeout has passed or ctx has
// ended. In the latter two cases it returns the result and true.
func (e *execution) await(ctx context.Context) (res Result, decided bool) {
	timer := time.NewTimer(e.timeout)
	defer timer.Stop()
	due, late := e.timeout, false
	for {
		var err error
		select {
		case <-e.proc.exited:
			return Result{}, false
		case <-ctx.Done():
			err = ctx.Err()
		case <-timer.C:
		}
		select {
		case <-e.proc.exited: // it was first, or at the same time
			return Result{}, false
		default:
		}
		took := time.Since(e.proc.started)
		if err == nil && !late && took > due+lateTimer {
			// This program was stopped or starved, so the script may have
			// been too, or its end is not yet known.
			late = true
			timer.Reset(lateGrace)
			continue
		}
		res = Result{End: TimedOut, Took: took, Unknown: late}
		switch {
		case err == nil:
			res.Err = fmt.Errorf("script %s: timed out after %v", e.script.Path, e.timeout)
		case errors.Is(err, context.DeadlineExceeded):
			// No grace here: the caller needs its answer now.
			deadline, _ := ctx.Deadline()
			res.Unknown = time.Since(deadline) > lateTimer
			res.Err = fmt.Errorf("script %s: timed out after %v: %w", e.script.Path, took.Round(time.Millisecond), err)
		default:
			res.End = Cancelled
			res.Err = fmt.Errorf("script %s: cancelled after %v: %w", e.script.Path, took.Round(time.Millisecond), err)
		}
		return res, true
	}
}

// awaitGroup waits until the process has exited and no process holds its output,
// which means that the whole group has ended, but not longer than limit.
func (e *execution) awaitGroup(limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-e.proc.exited:
	case <-timer.C:
		return
	}
	select {
	case <-e.out.done:
	case <-timer.C:
	}
}

// resultOf turns the wait status of the script at path into a result.
func resultOf(path string, status syscall.WaitStatus, err error) Result {
	switch {
	case err != nil:
		// Other code in this program has reaped our child.
		return Result{End: Exited, Code: -1, Unknown: true, Err: fmt.Errorf("script %s: exit status is lost: %w", path, err)}
	case status.Signaled():
		sig := status.Signal()
		core := ""
		if status.CoreDump() {
			core = ", core dumped"
		}
		return Result{End: Signalled, Signal: sig, Err: fmt.Errorf("script %s: ended by signal %d (%v%s)", path, int(sig), sig, core)}
	case status.ExitStatus() == 0:
		return Result{End: Exited}
	}
	code := status.ExitStatus()
	hint, unknown := "", true
	switch code {
	case 75: // EX_TEMPFAIL of sysexits.h
		hint = " (it could not find out)"
	case 126: // every shell and env(1) use this and the next status so
		hint = " (a command in it is not executable)"
	case 127:
		hint = " (a command in it was not found)"
	default:
		unknown = false
	}
	return Result{End: Exited, Code: code, Unknown: unknown, Err: exitError{fmt.Sprintf("script %s: exit status %d%s", path, code, hint)}}
}

// report logs the output of e that is not logged yet.
func (r *Runner) report(e *execution, res Result) {
	lines, dropped := e.out.rest()
	level := hclog.Info
	if e.script.Kind == Check && !r.failsAnew(e.script, res, lines) {
		level = hclog.Debug
	}
	for _, line := range lines {
		r.logLine(e, level, line)
	}
	if dropped > 0 {
		r.log.Log(level, "script output dropped", e.fields("bytes", dropped)...)
	}
}

// failsAnew reports whether a check failed in another way than at its last failure.
func (r *Runner) failsAnew(s Script, res Result, lines []string) bool {
	key := strings.Join(append([]string{s.Path}, s.Args...), "\x00")
	var h maphash.Hash
	h.SetSeed(failureSeed)
	fmt.Fprintln(&h, res.End, res.Code, res.Signal)
	for _, line := range lines {
		fmt.Fprintln(&h, line)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if res.OK() {
		delete(r.lastFailure, key)
		return false
	}
	last, known := r.lastFailure[key]
	r.lastFailure[key] = h.Sum64()
	return !known || last != h.Sum64()
}

func (r *Runner) logLine(e *execution, level hclog.Level, line string) {
	r.log.Log(level, "script output", e.fields("line", line)...)
}

// fields returns the fields of a record about e, with key and value at the end.
func (e *execution) fields(key string, value any) []any {
	return slices.Concat([]any{"script", e.script.Path}, e.script.Fields, []any{key, value})
}

// without returns environ without the variables called names.
func without(environ, names []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.Contains(names, name)
	})
}

// environment returns base and extra; extra overrides base.
func environment(base, extra []string) []string {
	names := make([]string, len(extra))
	for i, entry := range extra {
		names[i], _, _ = strings.Cut(entry, "=")
	}
	return append(without(base, names), extra...)
}

// startFailure adds an explanation to an error of fork(2) or execve(2) for a
// script that has passed Inspect just before.
func startFailure(err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("could not start, it or its interpreter is missing: %w", err)
	case errors.Is(err, syscall.ENOEXEC):
		return fmt.Errorf("could not start, it has no #! line or was built for another machine: %w", err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("could not start, it or its interpreter is not executable or lies on a file system without execution: %w", err)
	case errors.Is(err, syscall.ETXTBSY):
		return fmt.Errorf("could not start, it is open for writing: %w", err)
	case errors.Is(err, syscall.EAGAIN):
		return fmt.Errorf("could not start, the limit of tasks (pids.max or RLIMIT_NPROC) is reached: %w", err)
	}
	return fmt.Errorf("could not start: %w", err)
}
