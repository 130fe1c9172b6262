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
// runtime, which raised it, puts it back, as long as nobody calls
// syscall.Setrlimit for RLIMIT_NOFILE. Working directory, umask and the
// signals that the program was told to ignore (nohup) are inherited.
//
// A script that takes too long is ended with its whole group: SIGTERM, two
// seconds later SIGKILL. What is left of the group after a normal end is
// killed too. A process that left the group with setsid(2) is not followed: it
// delays nothing, it loses its output, and it lives on.
//
// A script is looked at before every start, as [Inspect] does, and one that is
// missing, not executable or writable by everybody does not run: the result
// says why and is a failure, never a pass.
//
// The package decides nothing about what a result means, nor which script runs
// when; its caller does. A [Runner] owns every goroutine, thread, descriptor
// and process it starts; when [Runner.Close] returns, they are gone.
package hooks

import (
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
	defaultLimit   = 8
	defaultTimeout = 30 * time.Second

	// termGrace is how long a group may go on after SIGTERM.
	termGrace = 2 * time.Second

	// stuckGrace is how long a process may take to die of SIGKILL before it
	// counts as stuck in the kernel, as on a dead network file system.
	stuckGrace = time.Second

	// lateTimer is how late a timer of ours may fire before the machine, and
	// not the script, is thought to be slow; lateGrace is what the script
	// gets then.
	lateTimer = 500 * time.Millisecond
	lateGrace = 500 * time.Millisecond

	// drainGrace is how long a script's last output is waited for after its
	// end, when somebody else still holds the pipe.
	drainGrace = 40 * time.Millisecond

	// logGrace is how long the outcome of a trigger waits for its output to
	// be logged, so that a failover reads in order.
	logGrace = 20 * time.Millisecond
)

// errClosed is why a script does not start after Close.
var errClosed = errors.New("the script runner is closed")

// Config says how a [Runner] runs scripts. Zero fields mean their defaults.
type Config struct {
	// Logger gets the output of scripts. Defaults to one that discards.
	Logger hclog.Logger

	// Limit is how many scripts run at one time; others wait for a place.
	// Defaults to 8.
	Limit int

	// Environ is the environment of every script, "NAME=value" each. Defaults
	// to that of the program when New is called.
	Environ []string

	// Without names variables that are taken out of Environ, such as those
	// that hold a token. Those of [Occasion] are always taken out.
	Without []string
}

// Kind is what a script is run for.
type Kind int

const (
	// Trigger is a script of an election. Its output is logged at info as it
	// comes, and Run returns when nothing of it is left.
	Trigger Kind = iota

	// Check is a script that checks a host. Its output is logged when it has
	// ended: at info if it failed and said something else than at its last
	// failure, at debug otherwise. Run returns as soon as the outcome is
	// known, and what has to be ended is ended behind it; see [Result.Gone].
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

	// Env is added to the runner's environment, "NAME=value" each, and wins
	// over it.
	Env []string

	// Timeout is how long the script may run from the moment its process has
	// started; waiting for a place does not count. Defaults to 30s.
	Timeout time.Duration

	// Fields are pairs of key and value that are added to every record that
	// is logged for the script.
	Fields []any
}

// End says how a script ended.
type End int

const (
	// NotStarted means that no process was started; Result.Err says why.
	NotStarted End = iota
	// Exited means that the script ended with the exit status Result.Code.
	Exited
	// Signalled means that Result.Signal ended the script, and that it was
	// somebody else who sent it.
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

// Result is how one run of a script ended.
type Result struct {
	// End is how it ended.
	End End

	// Code is the exit status when End is Exited.
	Code int

	// Signal is what ended the script when End is Signalled.
	Signal syscall.Signal

	// Err is nil when the script exited with status 0, and says otherwise, in
	// words and with the path, how it ended. When End is NotStarted, errors.Is
	// finds the cause: fs.ErrNotExist, syscall.ENOEXEC and others.
	Err error

	// Local is true when the failure lies in this program or this machine (no
	// more processes, memory or descriptors; not given processor time; no
	// place before the context ended): it tells nothing about the host.
	Local bool

	// Took is the time from the start of the process until the outcome was
	// known; zero when it did not start.
	Took time.Duration

	// Waited is how long the script waited for a place.
	Waited time.Duration

	// Output is the last KiB of what the script said, in one line, with
	// control characters escaped (a line's end is \n).
	Output string

	// Gone is closed when the script's group has been ended and its process
	// is reaped. For a Trigger that is so when Run returns, unless the process
	// is stuck in the kernel. Whoever runs a Check again waits for it first.
	Gone <-chan struct{}
}

// OK reports whether the script exited with status 0.
func (r Result) OK() bool { return r.Err == nil }

// Runner runs scripts. Its methods may be called from many goroutines.
type Runner struct {
	log     hclog.Logger
	environ []string
	places  chan struct{} // one element for each script that runs

	launcher launcher
	journal  journal

	mu     sync.Mutex // guards everything below
	begun  bool
	closed bool
	runs   sync.WaitGroup
	said   map[string]uint64 // hash of what each failing check said last
}

// saidSeed makes the hashes of Runner.said.
var saidSeed = maphash.MakeSeed()

// New returns a Runner. It starts nothing: the first Run starts one thread,
// from which scripts are started, and one goroutine that logs.
func New(cfg Config) *Runner {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Limit <= 0 {
		cfg.Limit = defaultLimit
	}
	if cfg.Environ == nil {
		cfg.Environ = os.Environ()
	}
	return &Runner{
		log:     cfg.Logger,
		environ: without(cfg.Environ, slices.Concat(occasionNames, cfg.Without)),
		places:  make(chan struct{}, cfg.Limit),
		said:    make(map[string]uint64),
	}
}

// Close waits until every script has ended, those that Run has left behind
// while they are being ended included, and then for the runner's own thread
// and goroutine. It ends no script: whoever called Run does, by its context. A
// process that does not die of SIGKILL and a log that does not accept records
// are waited for a second at most. A runner that was closed starts nothing.
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
	r.journal.close(time.Second)
}

// enter lets one run in, or reports false after Close.
func (r *Runner) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	if !r.begun {
		r.begun = true
		r.launcher.begin()
		r.journal.begin()
	}
	r.runs.Add(1)
	return true
}

// Run runs s and says how it ended. It waits for one of the runner's places
// first. When ctx ends, the script is ended as at its timeout; a deadline of
// ctx counts as the script's timeout. A script that exits is known to have
// done so at once, whatever its children do and however slow the log is.
func (r *Runner) Run(ctx context.Context, s Script) Result {
	gone := make(chan struct{})
	refused := func(end End, err error) Result {
		close(gone)
		return Result{End: end, Local: true, Err: fmt.Errorf("script %s: %w", s.Path, err), Gone: gone}
	}
	if !r.enter() {
		return refused(NotStarted, errClosed)
	}
	asked := time.Now()
	if err := r.place(ctx); err != nil {
		r.runs.Done()
		res := refused(Cancelled, fmt.Errorf("cancelled before it started: %w", err))
		res.Waited = time.Since(asked)
		return res
	}
	waited := time.Since(asked)

	e := &execution{
		script:  s,
		timeout: s.Timeout,
		verdict: make(chan Result, 1),
		over:    make(chan struct{}),
		gone:    gone,
	}
	if e.timeout <= 0 {
		e.timeout = defaultTimeout
	}
	if err := r.start(e); err != nil {
		<-r.places
		r.runs.Done()
		close(gone)
		return Result{End: NotStarted, Err: fmt.Errorf("script %s: %w", s.Path, err), Local: isLocal(err), Waited: waited, Gone: gone}
	}
	go r.supervise(ctx, e)

	res := <-e.verdict
	res.Waited, res.Gone = waited, gone
	if s.Kind == Trigger {
		<-e.over
		res.Output = e.out.tail()
		r.journal.flush(logGrace)
	}
	return res
}

// place waits for a place or the end of ctx.
func (r *Runner) place(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err // select would toss a coin
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
	timeout time.Duration
	proc    *process
	out     *output

	verdict chan Result   // gets the result once
	over    chan struct{} // closed when the run no longer counts
	gone    chan struct{} // closed when the process is reaped
}

// start looks at the script, makes its descriptors and starts its process.
func (r *Runner) start(e *execution) error {
	s := e.script
	if err := inspect(s.Path); err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return &localError{err}
	}
	defer null.Close()
	pr, pw, err := os.Pipe()
	if err != nil {
		return &localError{err}
	}
	defer pw.Close()

	path := s.Path
	if !strings.Contains(path, "/") {
		path = "./" + path // else an interpreter may search PATH for it, or take it for an option
	}
	// Fd makes the descriptor one that blocks: few programs expect EAGAIN from
	// their standard output.
	e.proc, err = r.launcher.start(path, append([]string{path}, s.Args...), environment(r.environ, s.Env),
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

// supervise waits for the end of e's process, or brings it about, gives the
// verdict as early as it is known, and returns when nothing of e is left.
func (r *Runner) supervise(ctx context.Context, e *execution) {
	defer r.runs.Done()
	p := e.proc

	res, decided := e.await(ctx)
	if decided {
		res.Output = e.out.tail()
		e.verdict <- res
		p.signal(syscall.SIGTERM)
		e.awaitGroup(termGrace)
	}
	// The process is not reaped yet, so nobody else can have its number and
	// the signal reaches this group or none.
	p.signal(syscall.SIGKILL)
	if !p.awaitExit(stuckGrace) {
		// It is in the kernel and will die when it comes out. It uses no
		// processor until then, so it needs no place.
		e.out.finish(0)
		r.report(e, res)
		<-r.places
		close(e.over)
		go func() {
			<-p.exited
			_, _ = p.reap()
			close(e.gone)
		}()
		return
	}
	took := time.Since(p.started)
	status, err := p.reap()
	e.out.finish(drainGrace)
	if !decided {
		res = outcome(e.script.Path, status, err)
		res.Took, res.Output = took, e.out.tail()
	}
	r.report(e, res)
	<-r.places
	close(e.gone)
	close(e.over)
	if !decided {
		e.verdict <- res
	}
}

// await waits until the process has exited, its time is over or ctx has ended.
// In the latter two cases it returns the verdict and true.
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
		res = Result{End: TimedOut, Took: took, Local: late}
		switch {
		case err == nil:
			res.Err = fmt.Errorf("script %s: timed out after %v", e.script.Path, e.timeout)
		case errors.Is(err, context.DeadlineExceeded):
			// Here nothing can be given; the caller wants its answer now.
			deadline, _ := ctx.Deadline()
			res.Local = time.Since(deadline) > lateTimer
			res.Err = fmt.Errorf("script %s: timed out after %v: %w", e.script.Path, took.Round(time.Millisecond), err)
		default:
			res.End = Cancelled
			res.Err = fmt.Errorf("script %s: cancelled after %v: %w", e.script.Path, took.Round(time.Millisecond), err)
		}
		return res, true
	}
}

// awaitGroup waits until the process has exited and nobody holds its output
// any more, which is how the end of the whole group shows, but not longer than
// limit.
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

// outcome turns the wait status of the script at path into a result.
func outcome(path string, status syscall.WaitStatus, err error) Result {
	switch {
	case err != nil:
		// Somebody else waited for our child.
		return Result{End: Exited, Code: -1, Local: true, Err: fmt.Errorf("script %s: exit status is lost: %w", path, err)}
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
	hint := ""
	switch code { // what every shell and env(1) mean by them
	case 126:
		hint = " (a command in it is not executable)"
	case 127:
		hint = " (a command in it was not found)"
	}
	return Result{End: Exited, Code: code, Err: fmt.Errorf("script %s: exit status %d%s", path, code, hint)}
}

// report logs what is left to log of e's output.
func (r *Runner) report(e *execution, res Result) {
	lines, dropped := e.out.rest()
	level := hclog.Info
	if e.script.Kind == Check && !r.news(e.script, res, lines) {
		level = hclog.Debug
	}
	for _, line := range lines {
		r.logLine(e, level, line)
	}
	if dropped > 0 {
		r.journal.add(r.log, level, "script output dropped", e.fields("bytes", dropped), 0)
	}
}

// news reports whether a check failed in another way than the last time.
func (r *Runner) news(s Script, res Result, lines []string) bool {
	key := strings.Join(append([]string{s.Path}, s.Args...), "\x00")
	var h maphash.Hash
	h.SetSeed(saidSeed)
	fmt.Fprintln(&h, res.End, res.Code, res.Signal)
	for _, line := range lines {
		fmt.Fprintln(&h, line)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if res.OK() {
		delete(r.said, key)
		return false
	}
	last, known := r.said[key]
	r.said[key] = h.Sum64()
	return !known || last != h.Sum64()
}

func (r *Runner) logLine(e *execution, level hclog.Level, line string) {
	r.journal.add(r.log, level, "script output", e.fields("line", line), len(line))
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

// environment returns base and extra, where extra wins.
func environment(base, extra []string) []string {
	names := make([]string, len(extra))
	for i, entry := range extra {
		names[i], _, _ = strings.Cut(entry, "=")
	}
	return append(without(base, names), extra...)
}

// localError is a failure that has nothing to do with the script.
type localError struct{ error }

func (e *localError) Unwrap() error { return e.error }

// isLocal reports whether err lies in this machine and not in the script.
func isLocal(err error) bool {
	if _, ok := errors.AsType[*localError](err); ok {
		return true
	}
	for _, errno := range []syscall.Errno{syscall.EAGAIN, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// startFailure adds to an error of fork(2) or execve(2) what it means for a
// script that Inspect has found in order a moment ago.
func startFailure(err error) error {
	switch {
	case errors.Is(err, errClosed):
		return &localError{err}
	case errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("could not start, it or its interpreter is missing: %w", err)
	case errors.Is(err, syscall.ENOEXEC):
		return fmt.Errorf("could not start, it has no #! line or was built for another machine: %w", err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("could not start, it or its interpreter is not executable or lies on a file system without execution: %w", err)
	case errors.Is(err, syscall.ETXTBSY):
		return fmt.Errorf("could not start, it is open for writing: %w", err)
	case errors.Is(err, syscall.EAGAIN):
		return fmt.Errorf("could not start, no more processes are allowed: %w", err)
	}
	return fmt.Errorf("could not start: %w", err)
}
