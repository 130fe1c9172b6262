package hooks

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy/internal/proctest"
)

func TestRunSaysHowAScriptEnded(t *testing.T) {
	runner, _ := newRunner(t, Config{})
	for _, tt := range []struct {
		name, body string
		end        End
		code       int
		signal     syscall.Signal
		words      string // in Err; empty when it passes
	}{
		{"passes", "exit 0", Exited, 0, 0, ""},
		{"fails", "exit 3", Exited, 3, 0, "exit status 3"},
		{"fails with the highest status", "exit 255", Exited, 255, 0, "exit status 255"},
		{"does not know", "exit 75", Exited, 75, 0, "exit status 75 (it could not find out)"},
		{"command not executable", "/etc/passwd", Exited, 126, 0, "exit status 126 (a command in it is not executable)"},
		{"command not found", "no-such-command-anywhere", Exited, 127, 0, "exit status 127 (a command in it was not found)"},
		{"crashes", "ulimit -c 0; kill -SEGV $$", Signalled, 0, syscall.SIGSEGV, "ended by signal 11 (segmentation fault)"},
		{"is killed", "kill -KILL $$", Signalled, 0, syscall.SIGKILL, "ended by signal 9 (killed)"},
		{"ends itself by TERM", "kill -TERM $$; sleep 100", Signalled, 0, syscall.SIGTERM, "ended by signal 15 (terminated)"},
	} {
		for _, kind := range []Kind{Trigger, Check} {
			t.Run(tt.name, func(t *testing.T) {
				path := script(t, tt.body)
				unknown := slices.Contains([]int{75, 126, 127}, tt.code)
				res := runner.Run(t.Context(), Script{Kind: kind, Path: path})
				if res.End != tt.end || res.Code != tt.code || res.Signal != tt.signal || res.Unknown != unknown {
					t.Errorf("Run = %+v, want %v, code %d, signal %d, unknown %v", res, tt.end, tt.code, tt.signal, unknown)
				}
				if res.OK() != (tt.words == "") {
					t.Errorf("OK = %v with error %v", res.OK(), res.Err)
				}
				if tt.words != "" && (!strings.Contains(res.Err.Error(), tt.words) || !strings.Contains(res.Err.Error(), path)) {
					t.Errorf("Err = %q, want %q and the path in it", res.Err, tt.words)
				}
				if res.Took <= 0 {
					t.Errorf("Took = %v", res.Took)
				}
				select {
				case <-res.Reaped:
				default:
					t.Error("Gone is open after a normal end")
				}
			})
		}
	}
}

func TestScriptThatCannotStart(t *testing.T) {
	runner, _ := newRunner(t, Config{})
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o755); err != nil {
		t.Fatal(err)
	}
	plain := write(t, "plain.sh", "#!/bin/sh\nexit 0\n")
	os.Chmod(plain, 0o644)
	open := write(t, "open.sh", "#!/bin/sh\nexit 0\n")
	os.Chmod(open, 0o757)
	dangling := filepath.Join(dir, "dangling")
	os.Symlink(filepath.Join(dir, "nothing"), dangling)

	for _, tt := range []struct {
		name, path string
		cause      error
		words      string
	}{
		{"missing", filepath.Join(dir, "nothing"), fs.ErrNotExist, "is missing"},
		{"link to nothing", dangling, fs.ErrNotExist, "is missing"},
		{"empty path", "", fs.ErrNotExist, "is missing"},
		{"below a file", filepath.Join(plain, "x"), syscall.ENOTDIR, "not a directory"},
		{"directory", dir, syscall.EISDIR, "is a directory"},
		{"pipe", fifo, nil, "is not a regular file"},
		{"not executable", plain, fs.ErrPermission, "chmod +x"},
		{"writable by all users", open, nil, "chmod o-w"},
		{"no #! line", write(t, "x", "exit 0\n"), syscall.ENOEXEC, "no #! line"},
		{"empty file", write(t, "x", ""), syscall.ENOEXEC, "is empty"},
		{"empty #! line", write(t, "x", "#!\nexit 0\n"), syscall.ENOEXEC, "names no interpreter"},
		{"no interpreter", write(t, "x", "#! /no/such/shell -e\n"), fs.ErrNotExist, "/no/such/shell"},
		{"interpreter is a directory", write(t, "x", "#!/\n"), fs.ErrPermission, "interpreter /,"},
		{"interpreter is not executable", write(t, "x", "#!"+plain+"\n"), fs.ErrPermission, "not executable"},
		{"Windows line ends", write(t, "x", "#!/bin/sh\r\nexit 0\r\n"), fs.ErrNotExist, "Windows line ends"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := Inspect(tt.path)
			if err == nil || !strings.Contains(err.Error(), tt.words) || !strings.Contains(err.Error(), tt.path) {
				t.Errorf("Inspect = %v, want %q and the path in it", err, tt.words)
			}
			res := runner.Run(t.Context(), Script{Path: tt.path})
			if res.OK() || res.End != NotStarted || !res.Unknown || res.Took != 0 {
				t.Errorf("Run = %+v, want not started, unknown", res)
			}
			for _, err := range []error{err, res.Err} {
				if tt.cause != nil && !errors.Is(err, tt.cause) {
					t.Errorf("error %v is not %v", err, tt.cause)
				}
				if strings.Count(err.Error(), tt.path) > 1 && tt.path != "" {
					t.Errorf("error %q names the path twice", err)
				}
			}
		})
	}
}

func TestDoubt(t *testing.T) {
	for _, tt := range []struct{ name, text, words string }{
		{"sh", "#!/bin/sh\nexit 0\n", ""},
		{"env with a program", "#!/usr/bin/env sh\nexit 0\n", ""},
		{"env with options", "#!/usr/bin/env -S no-such-program -e\n", ""},
		{"env with a variable", "#!/usr/bin/env A=b no-such-program\n", ""},
		{"env without the program", "#! /usr/bin/env  no-such-program\n", `needs "no-such-program", which is not in PATH`},
		{"env with two words", "#!/usr/bin/env sh -e\n", `needs "sh -e", which is not in PATH`},
		{"a binary", "\x7fELF", ""},
	} {
		path := write(t, "script", tt.text)
		switch err := Doubt(path); {
		case tt.words == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.words != "" && (err == nil || !strings.Contains(err.Error(), tt.words)):
			t.Errorf("%s: %v, want %q", tt.name, err, tt.words)
		}
	}
}

// What only execve can know is reported in the same way.
func TestProgramForAnotherMachine(t *testing.T) {
	runner, _ := newRunner(t, Config{})
	path := write(t, "program", "\x00\x01\x02\x03")
	if err := Inspect(path); err != nil {
		t.Errorf("Inspect = %v, want nil for a binary file", err)
	}
	res := runner.Run(t.Context(), Script{Path: path})
	if res.End != NotStarted || !errors.Is(res.Err, syscall.ENOEXEC) || !res.Unknown {
		t.Errorf("Run = %+v, want not started, exec format error", res)
	}
}

func TestScriptIsLookedAtBeforeEveryRun(t *testing.T) {
	runner, _ := newRunner(t, Config{})
	path := script(t, "exit 0")
	run := func() Result { return runner.Run(t.Context(), Script{Kind: Check, Path: path}) }
	if res := run(); !res.OK() {
		t.Fatalf("Run = %v", res.Err)
	}
	os.Chmod(path, 0o777)
	if res := run(); res.End != NotStarted || !strings.Contains(res.Err.Error(), "writable by all users") {
		t.Errorf("writable by all users: Run = %+v, want not started", res)
	}
	os.Chmod(path, 0o644)
	if res := run(); res.End != NotStarted || !errors.Is(res.Err, fs.ErrPermission) {
		t.Errorf("not executable any more: Run = %+v, want not started", res)
	}
	os.Remove(path)
	if res := run(); res.End != NotStarted || !errors.Is(res.Err, fs.ErrNotExist) {
		t.Errorf("removed: Run = %+v, want not started", res)
	}
	write(t, path, "#!/bin/sh\nexit 0\n")
	if res := run(); !res.OK() {
		t.Errorf("there again: Run = %v, want success", res.Err)
	}
}

func TestScriptRemovedWhileItRuns(t *testing.T) {
	runner, _ := newRunner(t, Config{})
	path := script(t, "rm -- \"$0\"; echo still here; exit 4")
	if res := runner.Run(t.Context(), Script{Path: path}); res.Code != 4 || res.Output != "still here" {
		t.Errorf("Run = %+v, want exit status 4 and output", res)
	}
}

func TestTimeoutEndsTheGroup(t *testing.T) {
	runner, _ := newRunner(t, Config{})
	file := filepath.Join(t.TempDir(), "pid")
	path := script(t, "sleep 1000 & echo $! >"+file+"; sleep 1000")
	begin := time.Now()
	res := runner.Run(t.Context(), Script{Path: path, Timeout: 300 * time.Millisecond})
	took := time.Since(begin)
	if res.End != TimedOut || res.OK() || !strings.Contains(res.Err.Error(), "timed out after 300ms") {
		t.Errorf("Run = %+v, want timed out", res)
	}
	if res.Took < 300*time.Millisecond {
		t.Errorf("Took = %v, less than the timeout", res.Took)
	}
	t.Logf("timeout 300ms: verdict after %v, returned after %v", res.Took, took)
	if took > termGrace {
		t.Errorf("returned after %v although SIGTERM ended everything at once", took)
	}
	if pid := readPid(t, file); alive(t, pid) {
		t.Error("a child of the script lives on")
	}
}

// The verdict on a check does not wait for a script that ignores SIGTERM.
func TestCheckThatIgnoresTERM(t *testing.T) {
	runner, _ := newRunner(t, Config{})
	file := filepath.Join(t.TempDir(), "pid")
	path := script(t, "trap '' TERM; echo $$ >"+file+"; while :; do sleep 1; done")
	begin := time.Now()
	res := runner.Run(t.Context(), Script{Kind: Check, Path: path, Timeout: 300 * time.Millisecond})
	if took := time.Since(begin); res.End != TimedOut || took > termGrace {
		t.Errorf("Run = %+v after %v, want timed out before SIGKILL is due", res, took)
	}
	select {
	case <-res.Reaped:
		t.Error("Gone is closed before the script can have ended")
	default:
	}
	<-res.Reaped
	took := time.Since(begin)
	t.Logf("timeout 300ms: verdict after %v, gone after %v", res.Took, took)
	if took < 300*time.Millisecond+termGrace {
		t.Errorf("gone after %v: SIGKILL came before its time", took)
	}
	if alive(t, readPid(t, file)) {
		t.Error("Gone is closed and the script lives")
	}
}

func TestTriggerThatIgnoresTERM(t *testing.T) {
	runner, _ := newRunner(t, Config{})
	path := script(t, "trap '' TERM; while :; do sleep 1; done")
	res := runner.Run(t.Context(), Script{Path: path, Timeout: 100 * time.Millisecond})
	if res.End != TimedOut {
		t.Errorf("Run = %+v, want timed out", res)
	}
	select {
	case <-res.Reaped:
	default:
		t.Error("Run returned while the trigger was there: the next one would run beside it")
	}
}

// SIGTERM kills a shell at once; what it had started may still clean up.
func TestGroupHasTimeToCleanUp(t *testing.T) {
	runner, _ := newRunner(t, Config{})
	done := filepath.Join(t.TempDir(), "done")
	path := script(t, `(trap 'sleep 0.4; echo yes >`+done+`; exit' TERM; echo ready; while :; do sleep 0.05; done) & wait`)
	res := runner.Run(t.Context(), Script{Path: path, Timeout: 500 * time.Millisecond})
	if res.End != TimedOut {
		t.Errorf("Run = %+v, want timed out", res)
	}
	if _, err := os.Stat(done); err != nil {
		t.Errorf("the child was killed while it cleaned up: %v", err)
	}
}

// Where another process may do the same work a moment later, there is no time to clean up.
func TestScriptEndsAtOnce(t *testing.T) {
	runner, _ := newRunner(t, Config{})
	dir := t.TempDir()
	begun, cleaned := filepath.Join(dir, "begun"), filepath.Join(dir, "cleaned")
	path := script(t, "trap 'echo yes >"+cleaned+"; exit' TERM; echo yes >"+begun+"; while :; do sleep 0.01; done")
	ctx, stop := context.WithCancelCause(t.Context())
	defer stop(nil)
	go func() {
		proctest.Until(t, "the script runs", func() bool { _, err := os.Stat(begun); return err == nil })
		stop(ErrAtOnce)
	}()
	res := runner.Run(ctx, Script{Kind: Trigger, Path: path, Timeout: time.Minute})
	if res.End != Cancelled {
		t.Errorf("Run = %+v, want cancelled", res)
	}
	<-res.Reaped
	if _, err := os.Stat(cleaned); err == nil {
		t.Error("the script had time to clean up")
	}
}

func TestChildThatHoldsTheOutput(t *testing.T) {
	runner, _ := newRunner(t, Config{})
	file := filepath.Join(t.TempDir(), "pid")
	path := script(t, "echo hello; sleep 600 & echo $! >"+file+"; exit 5")
	begin := time.Now()
	res := runner.Run(t.Context(), Script{Path: path})
	took := time.Since(begin)
	t.Logf("returned after %v", took)
	if res.Code != 5 || res.Output != "hello" || took > termGrace {
		t.Errorf("Run = %+v after %v, want exit status 5 at once", res, took)
	}
	if alive(t, readPid(t, file)) {
		t.Error("what was left of the group lives on")
	}
}

func TestChildThatLeftTheGroup(t *testing.T) {
	if _, err := exec.LookPath("setsid"); err != nil {
		t.Skip("SKIP: needs setsid (apt-get install util-linux)")
	}
	runner, _ := newRunner(t, Config{}) // sees that no descriptor is left
	file := filepath.Join(t.TempDir(), "pid")
	path := script(t, "setsid sh -c 'echo $$ >"+file+"; exec sleep 600' & while ! [ -s "+file+" ]; do sleep 0.01; done; echo bye; exit 6")
	begin := time.Now()
	res := runner.Run(t.Context(), Script{Path: path})
	t.Logf("returned after %v, exit counted after %v", time.Since(begin), res.Took)
	pid := readPid(t, file)
	defer syscall.Kill(pid, syscall.SIGKILL)
	if res.Code != 6 || res.Output != "bye" || time.Since(begin)-res.Took > termGrace {
		t.Errorf("Run = %+v after %v, want exit status 6 at once", res, time.Since(begin))
	}
	if !alive(t, pid) {
		t.Error("a process in a session of its own was killed; the documentation says it is not")
	}
}

func TestEndlessOutput(t *testing.T) {
	for _, tt := range []struct{ name, body string }{
		{"short lines", "exec yes"},
		{"long lines", "exec yes " + strings.Repeat("abc ", 1000)},
		{"no line end", "exec cat /dev/zero"},
		{"on standard error", "exec yes >&2"},
		{"empty lines", "exec yes ''"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			runner, book := newRunner(t, Config{})
			var before, after runtime.MemStats
			path := script(t, tt.body)
			runtime.GC()
			runtime.ReadMemStats(&before)
			res := runner.Run(t.Context(), Script{Path: path, Timeout: 500 * time.Millisecond})
			runtime.GC()
			runtime.ReadMemStats(&after)
			if res.End != TimedOut {
				t.Errorf("Run = %+v, want timed out", res)
			}
			runner.Close()
			var text, dropped int
			for _, rec := range book.records(t) {
				if line, ok := rec["line"].(string); ok {
					text += len(line)
				}
				if n, ok := rec["bytes"].(float64); ok && rec["@message"] == "script output dropped" {
					dropped += int(n)
				}
			}
			grown := int64(after.HeapAlloc) - int64(before.HeapAlloc) - int64(book.size())
			t.Logf("%d bytes of text logged, %d dropped, heap grew by %d", text, dropped, grown)
			if text > 64<<10 {
				t.Errorf("logged %d bytes of output, want at most 64 KiB", text)
			}
			if tt.name != "empty lines" && dropped < 1<<20 {
				t.Errorf("dropped %d bytes, want it said", dropped)
			}
			if grown > 1<<20 {
				t.Errorf("heap grew by %d bytes", grown)
			}
		})
	}
}

func TestMuchOutputDoesNotKill(t *testing.T) {
	runner, _ := newRunner(t, Config{})
	path := script(t, "set -e; head -c 50000000 /dev/zero; echo; echo the end; exit 7")
	res := runner.Run(t.Context(), Script{Path: path})
	if res.Code != 7 || !strings.HasSuffix(res.Output, "the end") {
		t.Errorf("Run = %v, output %q, want exit status 7 and the end", res.Err, res.Output)
	}
}

func TestOutputIsOneEscapedRecordForEachLine(t *testing.T) {
	runner, book := newRunner(t, Config{})
	path := script(t, `printf 'plain é ✓\nred \033[31m\r\n{"@level":"error"}\rfake\n\n nul \000 bad \377\302 tab\t\nc1 \302\205 bidi \342\200\256\nno end' >&2`)
	res := runner.Run(t.Context(), Script{Path: path, Args: []string{"db1:5432"}, Fields: []any{"host", "db1:5432"}})
	if !res.OK() {
		t.Fatal(res.Err)
	}
	runner.Close()
	want := []string{
		"plain é ✓",
		`red \x1b[31m`,
		`{"@level":"error"}\rfake`,
		` nul \x00 bad \xff\xc2 tab\t`,
		`c1 \u0085 bidi \u202e`,
		"no end",
	}
	if diff := cmp.Diff(want, book.lines(t, "info")); diff != "" {
		t.Errorf("logged lines (-want +got):\n%s", diff)
	}
	for _, rec := range book.records(t) {
		if rec["script"] != path || rec["host"] != "db1:5432" {
			t.Errorf("record %v, want the fields script and host", rec)
		}
	}
	if strings.ContainsAny(res.Output, "\n\r\x1b\x00") || !strings.HasSuffix(res.Output, `\nno end`) {
		t.Errorf("Output = %q, want one escaped line", res.Output)
	}
}

func TestOutputOfChecksIsLoggedWhenItIsNews(t *testing.T) {
	runner, book := newRunner(t, Config{})
	says := filepath.Join(t.TempDir(), "says")
	path := script(t, "cat "+says+"; exit $1")
	run := func(text, status string) {
		t.Helper()
		os.WriteFile(says, []byte(text+"\n"), 0o600)
		res := runner.Run(t.Context(), Script{Kind: Check, Path: path, Args: []string{status}})
		if strconv.Itoa(res.Code) != status || res.Output != text {
			t.Fatalf("Run = %+v", res)
		}
	}
	run("fine", "0")
	run("lagging", "1") // news
	run("lagging", "1")
	run("lagging more", "1") // news
	run("lagging", "2")      // another argument is another check: news
	runner.Close()
	if diff := cmp.Diff([]string{"lagging", "lagging more", "lagging"}, book.lines(t, "info")); diff != "" {
		t.Errorf("logged at info (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"fine", "lagging"}, book.lines(t, "debug")); diff != "" {
		t.Errorf("logged at debug (-want +got):\n%s", diff)
	}
}

func TestWhatAScriptInherits(t *testing.T) {
	runner, book := newRunner(t, Config{
		Environ: []string{"PATH=" + os.Getenv("PATH"), "TOKEN=secret", "KEPT=1", "WON=base", "UNDERSTUDY_DRY_RUN=1", "TOKEN2=kept"},
		Without: []string{"TOKEN"},
	})
	path := script(t, `printf '%s\n' "$#" "$1"; wc -c; env | grep -v -E '^(PATH|PWD|OLDPWD|SHLVL|_|UNDERSTUDY_SCRIPT)=' | sort; ps -o pgid= -p $$ | grep -qw $$ && echo leads its group`)
	host := "db1:5432; touch $(id) 'x' \"y\" *"
	env := ScriptEnv{Event: EventFailover, Relay: "orders", Epoch: 7, Old: "db0:5432", New: host, Reason: "db0 is\ndown"}
	res := runner.Run(t.Context(), Script{Path: path, Args: []string{host}, Env: append(env.Env(), "WON=script")})
	if !res.OK() {
		t.Fatal(res.Err)
	}
	runner.Close()
	want := []string{
		"1", host, "0",
		"KEPT=1", "TOKEN2=kept",
		"UNDERSTUDY_EPOCH=7", "UNDERSTUDY_EVENT=failover", "UNDERSTUDY_NEW=" + host, "UNDERSTUDY_OLD=db0:5432",
		`UNDERSTUDY_REASON=db0 is\ndown`, "UNDERSTUDY_RELAY=orders", "WON=script",
		"leads its group",
	}
	if diff := cmp.Diff(want, book.lines(t, "info")); diff != "" {
		t.Errorf("script saw (-want +got):\n%s", diff)
	}
}

func TestAtMostLimitAtOnce(t *testing.T) {
	runner, _ := newRunner(t, Config{limit: 2})
	journal := filepath.Join(t.TempDir(), "journal")
	path := script(t, "echo begin >>"+journal+"; sleep 0.2; echo end >>"+journal)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			// Eight such scripts take longer than this one after the other.
			res := runner.Run(t.Context(), Script{Kind: Check, Path: path, Timeout: 5 * time.Second})
			if !res.OK() {
				t.Errorf("Run = %+v", res)
			}
		})
	}
	all.Wait()
	text, _ := os.ReadFile(journal)
	var now, most int
	for line := range strings.Lines(string(text)) {
		if line == "begin\n" {
			now++
		} else {
			now--
		}
		most = max(most, now)
	}
	if most != 2 || strings.Count(string(text), "begin") != 8 {
		t.Errorf("%d ran at once, want 2; journal:\n%s", most, text)
	}
}

func TestWaitingForAPlaceIsNotRunning(t *testing.T) {
	runner, _ := newRunner(t, Config{limit: 1})
	ready, over := filepath.Join(t.TempDir(), "ready"), filepath.Join(t.TempDir(), "over")
	slow := script(t, "echo 1 >"+ready+"; while ! [ -e "+over+" ]; do sleep 0.01; done")
	fast := script(t, "exit 0")
	var first sync.WaitGroup
	first.Go(func() { runner.Run(t.Context(), Script{Path: slow}) })
	readPid(t, ready)

	requested := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if res := runner.Run(ctx, Script{Path: fast}); res.End != Cancelled || !res.Unknown || res.Took != 0 || time.Since(requested) < 40*time.Millisecond {
		t.Errorf("no place in time: Run = %+v after %s, want cancelled, local, never ran", res, time.Since(requested))
	}
	const timeout = time.Second
	requested = time.Now()
	time.AfterFunc(timeout*3/2, func() {
		if err := os.WriteFile(over, nil, 0o600); err != nil {
			t.Error(err)
		}
	})
	res := runner.Run(t.Context(), Script{Path: fast, Timeout: timeout})
	if wait := time.Since(requested) - res.Took; !res.OK() || wait < timeout {
		t.Errorf("Run = %+v after a wait of %s, want success after a wait that does not count", res, wait)
	}
	first.Wait()
}

func TestContextEndsAScript(t *testing.T) {
	runner, _ := newRunner(t, Config{})
	file := filepath.Join(t.TempDir(), "pid")
	path := script(t, "echo $$ >"+file+"; exec sleep 1000")

	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		proctest.Until(t, "script runs", func() bool { _, err := os.Stat(file); return err == nil })
		cancel()
	}()
	res := runner.Run(ctx, Script{Path: path})
	if res.End != Cancelled || !errors.Is(res.Err, context.Canceled) || res.Unknown {
		t.Errorf("Run = %+v, want cancelled", res)
	}
	if alive(t, readPid(t, file)) {
		t.Error("the script lives on")
	}

	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	res = runner.Run(ctx, Script{Kind: Check, Path: path})
	if res.End != TimedOut || !errors.Is(res.Err, context.DeadlineExceeded) {
		t.Errorf("Run = %+v, want timed out", res)
	}

	os.Remove(file)
	for range 20 { // a place is free, and must not win by chance
		if res := runner.Run(ctx, Script{Path: path}); res.End != Cancelled || !res.Unknown || res.Took != 0 {
			t.Fatalf("context over: Run = %+v, want cancelled before it started", res)
		}
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the script ran although the context was over")
	}
}

func TestCloseWaitsForWhatIsBeingEnded(t *testing.T) {
	runner, _ := newRunner(t, Config{})
	file := filepath.Join(t.TempDir(), "pid")
	path := script(t, "trap '' TERM; echo $$ >"+file+"; while :; do sleep 1; done")
	res := runner.Run(t.Context(), Script{Kind: Check, Path: path, Timeout: 300 * time.Millisecond})
	runner.Close()
	select {
	case <-res.Reaped:
	default:
		t.Error("Close returned before the script was gone")
	}
	runner.Close() // and again
	if res := runner.Run(t.Context(), Script{Path: path}); res.End != NotStarted || !res.Unknown {
		t.Errorf("Run after Close = %+v, want not started, local", res)
	}
}

func TestManyTimeoutsLeaveNothing(t *testing.T) {
	runner, _ := newRunner(t, Config{limit: 32})
	path := script(t, "sleep 1000 & sleep 1000")
	var all sync.WaitGroup
	for i := range 300 {
		all.Go(func() {
			res := runner.Run(t.Context(), Script{Kind: Kind(i % 2), Path: path, Timeout: time.Duration(1+i%20) * time.Millisecond})
			if res.End != TimedOut {
				t.Errorf("Run = %+v, want timed out", res)
			}
		})
	}
	all.Wait() // newRunner's cleanup looks for what is left
}

// A script that has exited is not called slow by chance.
func TestExitWinsOverTimeout(t *testing.T) {
	e := &execution{timeout: time.Nanosecond, proc: &process{started: time.Now(), exited: make(chan struct{})}}
	close(e.proc.exited)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		if res, decided := e.await(ctx); decided {
			t.Fatalf("await = %+v, want the exit", res)
		}
	}
}

// No script runs without a limit, and the runner has none of its own.
func TestScriptWithoutTimeout(t *testing.T) {
	runner, _ := newRunner(t, Config{})
	ran := filepath.Join(t.TempDir(), "ran")
	for _, timeout := range []time.Duration{0, -1} {
		res := runner.Runner.Run(t.Context(), Script{Path: script(t, "touch "+ran), Timeout: timeout})
		if res.OK() || res.End != NotStarted || !strings.Contains(res.Err.Error(), "timeout: "+timeout.String()) {
			t.Errorf("Run with timeout %v = %+v, want not started", timeout, res)
		}
		if _, err := os.Stat(ran); err == nil {
			t.Fatalf("the script ran with timeout %v", timeout)
		}
	}
}

// Time that this program was not given is not the script's.
func TestLateTimerIsNoEvidence(t *testing.T) {
	e := &execution{
		script:  Script{Path: "x"},
		timeout: time.Millisecond,
		proc:    &process{started: time.Now().Add(-10 * time.Second), exited: make(chan struct{})},
	}
	begin := time.Now()
	res, decided := e.await(t.Context())
	if !decided || res.End != TimedOut || !res.Unknown || time.Since(begin) < lateGrace {
		t.Errorf("await = %+v, %v after %v, want timed out, local, after a grace", res, decided, time.Since(begin))
	}
	time.AfterFunc(lateGrace/4, func() { close(e.proc.exited) })
	if res, decided := e.await(t.Context()); decided {
		t.Errorf("await = %+v, want the exit that was seen in the grace", res)
	}
}

func TestList(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"B", "a", "10-x", "9-y", "_z", ".hidden", "a~", "#a#", "#kept", "é"} {
		write(t, at(name), "#!/bin/sh\n")
	}
	write(t, at("plain"), "#!/bin/sh\n")
	os.Chmod(at("plain"), 0o644)
	write(t, at("open"), "#!/bin/sh\n")
	os.Chmod(at("open"), 0o777)
	os.Mkdir(at("sub"), 0o755)
	write(t, at("sub/c"), "#!/bin/sh\n")
	os.Symlink(at("sub/c"), at("link"))
	os.Symlink(at("sub"), at("linked-sub"))
	os.Symlink(at("nothing"), at("broken"))
	syscall.Mkfifo(at("fifo"), 0o755)

	scripts, warnings, err := List(dir)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, name := range []string{"#kept", "10-x", "9-y", "B", "_z", "a", "link", "é"} {
		want = append(want, at(name))
	}
	if diff := cmp.Diff(want, scripts); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
	if len(warnings) != 3 || !slices.ContainsFunc(warnings, func(err error) bool { return strings.Contains(err.Error(), at("plain")) }) {
		t.Errorf("warnings = %v, want broken, open and plain", warnings)
	}

	if scripts, warnings, err := List(at("a")); !slices.Equal(scripts, []string{at("a")}) || warnings != nil || err != nil {
		t.Errorf("List of a file = %q, %v, %v", scripts, warnings, err)
	}
	for _, name := range []string{"nothing", "fifo"} {
		if scripts, _, err := List(at(name)); err == nil || !strings.Contains(err.Error(), at(name)) {
			t.Errorf("List(%s) = %q, %v, want an error with the path", name, scripts, err)
		}
	}
	if scripts, warnings, err := List(t.TempDir()); scripts != nil || warnings != nil || err != nil {
		t.Errorf("List of an empty directory = %q, %v, %v", scripts, warnings, err)
	}
}

func TestScriptEnvInADrill(t *testing.T) {
	if env := (ScriptEnv{DryRun: true}).Env(); !slices.Contains(env, "UNDERSTUDY_DRY_RUN=1") || !slices.Contains(env, "UNDERSTUDY_OLD=") {
		t.Errorf("Env = %q, want a dry run and an empty OLD", env)
	}
	for _, entry := range (ScriptEnv{DryRun: true}).Env() {
		if name, _, _ := strings.Cut(entry, "="); !slices.Contains(scriptEnvNames, name) {
			t.Errorf("%s would not be taken out of an inherited environment", name)
		}
	}
}

// Why a script failed is, for a reader, the last line of its output.
func TestReason(t *testing.T) {
	runner, _ := newRunner(t, Config{})
	for _, tt := range []struct{ name, body, said, want string }{
		{"one line", "echo 'too many clients'; exit 75", "too many clients", "exit status 75 (it could not find out)"},
		{"two lines", "echo 'login refused'; echo 'password from a file'; exit 75", "password from a file", "exit status 75 (it could not find out)"},
		{"blank lines at the end", "echo 'login refused'; printf '  \\n\\r\\n'; exit 1", "login refused", "exit status 1"},
		{"no end of the line", "echo first; printf 'login refused'; exit 1", "login refused", "exit status 1"},
		{"of standard error as well", "echo broken >&2; exit 1", "broken", "exit status 1"},
		{"no output", "exit 1", "", "exit status 1"},
		{"it passes", "echo fine", "fine", ""},
		{"a long line", "echo a; printf '%01000d' 0; exit 1", strings.Repeat("0", reasonLimit-3) + "…", "exit status 1"},
		{"more than is kept", "echo a; printf '%05000d' 0; exit 1", strings.Repeat("0", reasonLimit-3) + "…", "exit status 1"},
		{"not printable", "printf 'a\\033[31m\\tb\\377\\n'; exit 1", `a\x1b[31m\tb\xff`, "exit status 1"},
		{"ended by a signal", "echo well; kill -KILL $$", "well", "ended by signal 9 (killed)"},
		{"out of time", "echo waiting for the lock; exec sleep 600", "waiting for the lock", "timed out after 2s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := script(t, tt.body)
			got, want := "", ""
			res := runner.Run(t.Context(), Script{Kind: Check, Path: path, Timeout: 2 * time.Second})
			if err := res.Reason(); err != nil {
				got = err.Error()
			}
			if tt.want != "" {
				want = "script " + path + ": " + tt.want
				if tt.said != "" {
					want = tt.said + " (" + want + ")"
				}
			}
			if got != want || res.LastLine != tt.said {
				t.Errorf("Reason = %q, want %q; LastLine = %q, want %q", got, want, res.LastLine, tt.said)
			}
		})
	}
}
