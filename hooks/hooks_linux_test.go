package hooks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

func init() {
	acts["run"] = actRun
	acts["reap"] = actReap
	acts["reap-behind"] = actReapBehind
	acts["no-processes"] = actNoProcesses
	acts["pids"] = actPids
	acts["no-descriptors"] = actNoDescriptors
}

// scriptVariable is the script that an act runs.
const scriptVariable = "HOOKS_TEST_SCRIPT"

// actRun runs a script, prints what it says, and then what the threads of the
// program itself have kept.
func actRun() error {
	runner := testRunner{New(Config{})}
	defer runner.Close()
	res := runner.Run(context.Background(), Script{Path: os.Getenv(scriptVariable)})
	if !res.OK() {
		return res.Err
	}
	fmt.Println(strings.NewReplacer(`\n`, "\n", `\t`, "\t").Replace(res.Output))
	status, err := os.ReadFile("/proc/self/status") // of the main thread
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "CapAmb") || strings.HasPrefix(line, "NoNewPrivs") {
			fmt.Print("program ", line)
		}
	}
	return nil
}

// publicCopy returns a copy of this test program, and a directory, that every
// user can use.
func publicCopy(t *testing.T) (program, dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "hooks")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	program = filepath.Join(dir, "hooks.test")
	syscall.ForkLock.RLock() // see write
	defer syscall.ForkLock.RUnlock()
	file, err := os.OpenFile(program, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := io.Copy(file, self); err != nil {
		t.Fatal(err)
	}
	return program, dir
}

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root, to start a copy of itself as another user")
	}
}

// another is a user that has no other processes, so that limits for each user
// mean only ours.
const another = 54321

func TestScriptHasNoRightsOfItsOwn(t *testing.T) {
	needsRoot(t)
	program, dir := publicCopy(t)
	cmd := act(t, "run", scriptVariable+"="+write(t, filepath.Join(dir, "script.sh"),
		"#!/bin/sh\nexec grep -E '^(CapInh|CapPrm|CapEff|CapAmb|NoNewPrivs)' /proc/self/status\n"))
	cmd.Path = program
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: another, Gid: another},
		AmbientCaps: []uintptr{unix.CAP_NET_BIND_SERVICE},
	}
	out := outputOf(t, cmd)
	for _, want := range []string{
		"CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n",
		"program CapAmb:\t0000000000000400\n", "program NoNewPrivs:\t0\n",
	} {
		if !strings.Contains("\n"+out, "\n"+want) {
			t.Errorf("status of script and program lacks %q:\n%s", want, out)
		}
	}
}

func TestScriptHasThreeDescriptors(t *testing.T) {
	leak, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	cmd := act(t, "run", scriptVariable+"="+script(t,
		"exec ls -l /proc/self/fd | sed -n 's/.* \\([0-9]* -> .*\\)/\\1/p'"))
	cmd.ExtraFiles = []*os.File{leak, leak} // what a careless parent leaves open
	var kept []string
	for line := range strings.Lines(outputOf(t, cmd)) {
		// ls itself has the directory open, and its output is a pipe to sed.
		if line = strings.TrimSpace(line); strings.Contains(line, "->") && !strings.Contains(line, "/proc/") {
			kept = append(kept, line)
		}
	}
	if len(kept) != 3 || kept[0] != "0 -> /dev/null" || !strings.HasPrefix(kept[1], "1 -> pipe:") || !strings.HasPrefix(kept[2], "2 -> pipe:") {
		t.Errorf("the script has the descriptors %q, want 0 -> /dev/null and pipes at 1 and 2", kept)
	}
}

// A script that finds its output full waits, as it would at a terminal.
func TestOutputOfScriptBlocks(t *testing.T) {
	runner, _ := newRunner(t, Config{})
	res := runner.Run(t.Context(), Script{Path: script(t, "grep flags: /proc/self/fdinfo/1")})
	flags, err := strconv.ParseInt(strings.TrimSpace(strings.TrimPrefix(res.Output, `flags:\t`)), 8, 64)
	if err != nil || flags&syscall.O_NONBLOCK != 0 {
		t.Errorf("flags of standard output are %q, %v, want them without O_NONBLOCK", res.Output, err)
	}
}

func TestScriptHasAnEmptySignalMask(t *testing.T) {
	cmd := act(t, "run", scriptVariable+"="+script(t, "exec grep SigBlk /proc/self/status"))
	// The copy starts with signals blocked, as by a careless parent.
	blocked := make(chan string)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its mask
		var mask unix.Sigset_t
		mask.Val[0] = 1<<(syscall.SIGTERM-1) | 1<<(syscall.SIGUSR1-1)
		unix.PthreadSigmask(unix.SIG_SETMASK, &mask, nil)
		out, err := cmd.Output()
		blocked <- fmt.Sprint(string(out), err)
	}()
	if out := <-blocked; !strings.HasPrefix(out, "SigBlk:\t0000000000000000\n") {
		t.Errorf("script has the mask %s", out)
	}
}

func TestScriptHasTheOriginalDescriptorLimit(t *testing.T) {
	cmd := act(t, "run", scriptVariable+"="+script(t, "ulimit -n"))
	cmd.Args = []string{"sh", "-c", "ulimit -S -n 321; exec " + cmd.Path}
	cmd.Path = "/bin/sh"
	if out := outputOf(t, cmd); !strings.HasPrefix(out, "321\n") {
		t.Errorf("ulimit -n in the script says %q, want 321", out)
	}
}

// Scripts outlive the thread that started them; nothing ties them to it.
func TestScriptsNeedFewThreads(t *testing.T) {
	runner, _ := newRunner(t, Config{limit: 64})
	path := script(t, "exec sleep 1000")
	ctx, cancel := context.WithCancel(t.Context())
	before := threadCount(t)
	var all sync.WaitGroup
	// One at a time: starts that overlap each need a thread for a moment, and
	// the Go runtime keeps every thread it once had.
	for i := range 64 {
		all.Go(func() { runner.Run(ctx, Script{Path: path, Timeout: time.Hour}) })
		proctest.Until(t, "the script runs", func() bool { return childCount(t) == i+1 })
	}
	if now := threadCount(t); now > before+16 {
		t.Errorf("%d threads with 64 scripts, %d without: each holds one", now, before)
	}
	cancel()
	all.Wait()
}

func threadCount(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// childCount counts the processes whose parent is this one.
func childCount(t *testing.T) int {
	t.Helper()
	return len(childrenOf(os.Getpid(), false))
}

// childrenOf returns the children of parent, all or the zombies only.
func childrenOf(parent int, zombies bool) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		// pid (name) state parent …, where the name may hold anything
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if fields[1] == strconv.Itoa(parent) && (!zombies || fields[0] == "Z") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// A process that does not even die of SIGKILL delays neither a trigger nor the
// place of others.
func TestProcessStuckInTheKernel(t *testing.T) {
	runner, _ := newRunner(t, Config{limit: 1})
	child := exec.Command("sleep", "1000")
	child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pw.Close() // held by the process that is stuck
	e := &execution{
		script:  Script{Path: "stuck"},
		timeout: 10 * time.Millisecond,
		// exited is not closed: the death is not seen yet.
		proc:    &process{pid: child.Process.Pid, started: time.Now(), exited: make(chan struct{})},
		out:     newOutput(pr, func(string) {}),
		verdict: make(chan Result, 1),
		over:    make(chan struct{}),
		reaped:  make(chan struct{}),
	}
	go e.out.copy()
	runner.enter()
	runner.places <- struct{}{}
	begin := time.Now()
	go runner.supervise(t.Context(), e)
	if res := <-e.verdict; res.End != TimedOut {
		t.Errorf("verdict %+v, want timed out", res)
	}
	<-e.over
	if took := time.Since(begin); took < termGrace+killGrace {
		t.Errorf("given up after %v", took)
	}
	if res := runner.Run(t.Context(), Script{Path: script(t, "exit 0")}); !res.OK() {
		t.Errorf("next script: %v", res.Err)
	}
	select {
	case <-e.reaped:
		t.Error("Gone is closed although the process is there")
	default:
	}
	close(e.proc.exited) // it came out of the kernel
	<-e.reaped
	child.Process.Release()
}

// actReap is a program like process 1: orphans become its children.
func actReap() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	reaped := make(chan error, 1)
	go func() { reaped <- Reap(ctx) }()

	runner := testRunner{New(Config{limit: 16})}
	defer runner.Close()
	wrong := make(chan string, 2000)
	var all sync.WaitGroup
	for i := range 1000 {
		all.Go(func() {
			code := i % 7
			res := runner.Run(ctx, Script{Path: os.Getenv(scriptVariable), Args: []string{strconv.Itoa(code)}})
			if res.End != Exited || res.Code != code {
				wrong <- fmt.Sprintf("script %d: %v %d %v", i, res.End, res.Code, res.Err)
			}
		})
	}
	// Other code that starts processes gets their exit status, too.
	for range 200 {
		all.Go(func() {
			wait, err := Start(exec.Command("/bin/sh", "-c", "exit 9"))
			if err == nil {
				err = wait()
			}
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 9 {
				wrong <- fmt.Sprintf("command: %v", err)
			}
		})
	}
	all.Wait()
	close(wrong)
	for line := range wrong {
		fmt.Println(line)
	}
	proctest.Until(acting{}, "no child is left", func() bool { return len(childrenOf(os.Getpid(), false)) == 0 })
	fmt.Println("pids remembered:", len(children.pids))
	cancel()
	return <-reaped
}

func TestReapLeavesNoZombies(t *testing.T) {
	if _, err := exec.LookPath("setsid"); err != nil {
		t.Skip("SKIP: needs setsid (apt-get install util-linux)")
	}
	// The grandchild leaves the group, its parent ends first: an orphan.
	path := script(t, `(setsid sleep 0.05 >/dev/null 2>&1 &) ; exit $1`)
	if out := outputOf(t, act(t, "reap", scriptVariable+"="+path)); out != "pids remembered: 0\n" {
		t.Errorf("1000 double-forking scripts and 200 commands:\n%s", out)
	}
}

// actReapBehind lets an orphan end while a child that is waited for is a
// zombie in front of it.
func actReapBehind() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	reaped := make(chan error, 1)
	go func() { reaped <- Reap(ctx) }()
	fifo := os.Getenv("HOOKS_TEST_FIFO")
	wait, err := Start(exec.Command("/bin/sh", "-c", "(cat "+fifo+" >/dev/null &) ; exit 9"))
	if err != nil {
		return err
	}
	self := os.Getpid()
	proctest.Until(acting{}, "the child has ended", func() bool { return len(childrenOf(self, true)) > 0 })
	end, err := os.OpenFile(fifo, os.O_WRONLY, 0) // the orphan reads it and ends
	if err != nil {
		return err
	}
	end.Close()
	// The kernel shows the two in either order, so the orphan is reaped now or
	// when the other is no longer in front of it.
	proctest.Until(acting{}, "all children are zombies", func() bool { return len(childrenOf(self, false)) == len(childrenOf(self, true)) })
	fmt.Println(wait())
	proctest.Until(acting{}, "no child is left", func() bool { return len(childrenOf(self, false)) == 0 })
	cancel()
	return <-reaped
}

func TestReapLooksBehindTheChildrenOfOthers(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := outputOf(t, act(t, "reap-behind", "HOOKS_TEST_FIFO="+fifo)); out != "exit status 9\n" {
		t.Errorf("orphan behind a zombie that is waited for:\n%s", out)
	}
}

func TestReapEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Reap(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Reap = %v", err)
	}
	signal.Reset(syscall.SIGCHLD)
}

// busy runs n scripts at once, so that the program has the threads it needs.
func busy(runner testRunner, n int) {
	var all sync.WaitGroup
	for range n {
		all.Go(func() { runner.Run(context.Background(), Script{Path: os.Getenv(scriptVariable)}) })
	}
	all.Wait()
}

// localThenWell prints how a script ends while something is short, and after
// that.
func localThenWell(runner testRunner, relieve func()) {
	for range 20 {
		res := runner.Run(context.Background(), Script{Kind: Check, Path: os.Getenv(scriptVariable)})
		fmt.Println(res.End, res.Unknown, res.Err)
	}
	relieve()
	res := runner.Run(context.Background(), Script{Kind: Check, Path: os.Getenv(scriptVariable)})
	fmt.Println("afterwards", res.OK(), res.Unknown, res.Err)
}

func actNoProcesses() error {
	runner := testRunner{New(Config{})}
	defer runner.Close()
	busy(runner, 8)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &limit); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: 1, Max: limit.Max}); err != nil {
		return err
	}
	localThenWell(runner, func() { _ = unix.Setrlimit(unix.RLIMIT_NPROC, &limit) })
	return nil
}

func actNoDescriptors() error {
	runner := testRunner{New(Config{})}
	defer runner.Close()
	busy(runner, 1)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 40, Max: limit.Max}); err != nil {
		return err
	}
	var files []*os.File
	for {
		file, err := os.Open("/dev/null")
		if err != nil {
			break
		}
		files = append(files, file)
	}
	// One more after each try, so that every step of a start meets the end.
	for range 7 {
		res := runner.Run(context.Background(), Script{Path: os.Getenv(scriptVariable)})
		if res.OK() {
			break
		}
		fmt.Println(res.End, res.Unknown, res.Err)
		files[0].Close()
		files = files[1:]
	}
	for _, file := range files {
		file.Close()
	}
	res := runner.Run(context.Background(), Script{Path: os.Getenv(scriptVariable)})
	fmt.Println("afterwards", res.OK(), res.Unknown, res.Err)
	return nil
}

func TestShortOfDescriptorsIsLocal(t *testing.T) {
	out := outputOf(t, act(t, "no-descriptors", scriptVariable+"="+script(t, "exit 0")))
	t.Log(out)
	shortage, afterwards, _ := strings.Cut(out, "afterwards ")
	if strings.Count(shortage, "could not start true") < 3 || strings.Contains(shortage, " false ") || !strings.Contains(shortage, "too many open files") {
		t.Error("want every start that failed to be local, with the reason")
	}
	if !strings.HasPrefix(afterwards, "true false") {
		t.Error("want success when there are descriptors again")
	}
}

func TestShortOfProcessesIsLocal(t *testing.T) {
	needsRoot(t)
	program, dir := publicCopy(t)
	cmd := act(t, "no-processes", scriptVariable+"="+write(t, filepath.Join(dir, "script.sh"), "#!/bin/sh\nexit 0\n"))
	cmd.Path = program
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: another, Gid: another}}
	out := outputOf(t, cmd)
	if strings.Count(out, "could not start true") != 20 || !strings.Contains(out, "the limit of tasks") {
		t.Errorf("with no process to be had:\n%s", out)
	}
	if !strings.HasSuffix(out, "afterwards true false <nil>\n") {
		t.Errorf("want success afterwards:\n%s", out)
	}
}

// actPids runs scripts that take all processes of its group of tasks.
func actPids() error {
	runner := testRunner{New(Config{})}
	defer runner.Close()
	busy(runner, 8)
	// Only now: it reads one byte when the group of tasks is in place.
	fmt.Println("ready")
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		return err
	}
	localOr := map[string]int{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 10 {
				res := runner.Run(context.Background(), Script{Kind: Check, Path: os.Getenv("HOOKS_TEST_BOMB"), Timeout: 200 * time.Millisecond})
				<-res.Reaped
				mu.Lock()
				localOr[fmt.Sprint(res.End, " ", res.Unknown)]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	fmt.Println(localOr)
	res := runner.Run(context.Background(), Script{Path: os.Getenv(scriptVariable)})
	fmt.Println("afterwards", res.OK(), res.Err)
	return nil
}

// Fork bombs as checks in a group of 40 tasks that they share with the
// program: it lives, and works when they are gone.
func TestForkBombInASmallPidsGroup(t *testing.T) {
	needsRoot(t)
	group, err := os.MkdirTemp("/sys/fs/cgroup/pids", "hooks")
	if err != nil {
		t.Skip("SKIP: needs the pids controller of cgroup v1 at /sys/fs/cgroup/pids")
	}
	t.Cleanup(func() {
		proctest.Until(t, "no process left in the group", func() bool { return os.Remove(group) == nil })
	})
	if err := os.WriteFile(filepath.Join(group, "pids.max"), []byte("40"), 0o600); err != nil {
		t.Fatal(err)
	}
	bomb := script(t, "f() { f & f & sleep 1; }\nf 2>/dev/null")
	cmd := act(t, "pids", scriptVariable+"="+script(t, "exit 0"), "HOOKS_TEST_BOMB="+bomb)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd.Stderr = &out
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	io.ReadFull(stdout, make([]byte, len("ready\n")))
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
		t.Fatal(err)
	}
	stdin.Write([]byte("\n"))
	text, _ := io.ReadAll(stdout)
	out.Write(text)
	if err := cmd.Wait(); err != nil {
		t.Errorf("the program ended: %v\n%.2000s", err, out.String())
	}
	if !strings.HasSuffix(out.String(), "afterwards true <nil>\n") {
		t.Errorf("want a script to run afterwards:\n%.2000s", out.String())
	}
	t.Log(out.String())
}
