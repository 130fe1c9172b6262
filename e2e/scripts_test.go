//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// running names the processes other than the program itself whose command
// line has text.
func running(u *proctest.Understudy, text string) []string {
	var found []string
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		argv, err := os.ReadFile(path)
		pid := filepath.Base(filepath.Dir(path))
		if err == nil && bytes.Contains(argv, []byte(text)) && pid != strconv.Itoa(u.PID()) {
			found = append(found, pid+" "+strings.ReplaceAll(string(argv), "\x00", " "))
		}
	}
	return found
}

// F20 to F25: the check script misbehaves for host a as soon as a file is
// there. The next host takes over, nothing of the script is left, and when the
// file is gone the host is well again.
func TestCheckScriptsThatMisbehave(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		does   string // %s is a mark for the processes that it leaves
		reason string // in the log
	}{
		{"sleeps for ever", "sleep 1000; : %s", "timed out"},
		{"ignores TERM", "trap '' TERM; while :; do sleep 0.1; done; : %s", "timed out"},
		{"hangs in a child that ignores TERM", "(trap '' TERM; while :; do sleep 0.1; done) & wait; : %s", "timed out"},
		{"leaves a child that holds its output", "(exec -a %s sleep 600) & exit 1", "exit status 1"},
		{"talks for ever", "yes %s", "timed out"},
		{"talks for ever, in one line", "tr '\\0' x </dev/zero; : %s", "timed out"},
		{"crashes", "kill -SEGV $$; : %s", "signal"},
		{"says 255", "exit 255; : %s", "exit status 255"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newShow(t)
			dir := t.TempDir()
			fault := filepath.Join(dir, "fault")
			check := filepath.Join(dir, "check.sh")
			mark := fmt.Sprintf("mark-%d-%d", os.Getpid(), time.Now().UnixNano())
			writeScript(t, check, `if [ -e `+fault+` ] && [ "$1" = `+s.a.Addr()+" ]; then\n"+fmt.Sprintf(tt.does, mark)+"\nfi\nexit 0\n")
			s.begin("--check-host", check, "--check-interval", "300ms", "--check-timeout", "500ms")
			if err := os.WriteFile(fault, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			s.awaitGreeting("b")
			took := time.Since(begin)
			t.Logf("b answered after %v", took)
			// Three runs, each 0.5s and 2s until it is killed, and then some.
			wantWithin(t, "the switch", took, 15*time.Second)
			s.wantTriggers(s.started(), s.failedOver())
			if countLog(s.Understudy, "primary lost", tt.reason) != 1 {
				t.Errorf("the log does not say %q of the lost primary", tt.reason)
			}
			if size := len(s.Log()); size > 512<<10 {
				t.Errorf("%d bytes of log", size)
			}
			if err := os.Remove(fault); err != nil {
				t.Fatal(err)
			}
			s.Until("a is well again", func() bool {
				return countLog(s.Understudy, "host changed state", "host="+s.a.Addr(), "to=up") == 2
			})
			var left []string
			s.Until("nothing of the script is left", func() bool {
				left = append(running(s.Understudy, mark), running(s.Understudy, check)...)
				return len(left) == 0
			})
			s.lookAgain("b")
			s.end()
			if left := append(running(s.Understudy, mark), running(s.Understudy, check)...); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// F23: a check that passes and leaves a child behind passes, and the child is
// killed.
func TestCheckThatLeavesAChildPasses(t *testing.T) {
	t.Parallel()
	mark := fmt.Sprintf("mark-%d-%d", os.Getpid(), time.Now().UnixNano())
	s := open(t, "--check-host", script(t, "(exec -a "+mark+" sleep 600) &\nexit 0\n"), "--check-interval", "100ms")
	report := finish(s.Understudy, s.load())
	t.Log(report)
	wantNoLoss(t, report, time.Time{}, "a")
	s.wantTriggers(s.started())
	s.Until("no more than the child of one run is there", func() bool { return len(running(s.Understudy, mark)) <= 2 })
	s.end()
	if left := running(s.Understudy, mark); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// F28: a script that cannot be meant is an error before anything starts.
func TestScriptsThatAreRefusedAtTheStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, tt := range []struct {
		name string
		make func(path string) error
	}{
		{"missing", func(string) error { return nil }},
		{"directory", func(path string) error { return os.Mkdir(path, 0o700) }},
		{"not executable", func(path string) error { return os.WriteFile(path, []byte("#!/bin/sh\n"), 0o600) }},
		{"no first line", func(path string) error { return os.WriteFile(path, []byte("exit 0\n"), 0o700) }},
		{"interpreter missing", func(path string) error { return os.WriteFile(path, []byte("#!/no/such/shell\n"), 0o700) }},
		{"writable by everybody", func(path string) error {
			if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o700); err != nil {
				return err
			}
			return os.Chmod(path, 0o777)
		}},
		{"pipe", func(path string) error { return syscall.Mkfifo(path, 0o700) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, strings.ReplaceAll(tt.name, " ", "-")+".sh")
			if err := tt.make(path); err != nil {
				t.Fatal(err)
			}
			for _, flag := range []string{"--check-host", "--on-failover"} {
				if flag == "--on-failover" && tt.name == "directory" {
					continue // a directory of triggers
				}
				u := start(t, "--bind", freeAddr(t), "--hosts", "127.0.0.1:1", flag, path)
				if code := u.Exit(); code != 2 {
					t.Errorf("%s: exit status %d, want 2", flag, code)
				}
				if !strings.Contains(u.Log(), path) {
					t.Errorf("%s: the message does not name %s:\n%s", flag, path, u.Log())
				}
			}
		})
	}
}

// F28: the check script is deleted, damaged and replaced while the program
// runs. Never does that make a host usable, and it is said what is wrong.
func TestCheckScriptIsReplacedWhileRunning(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	check := filepath.Join(dir, "check.sh")
	writeScript(t, check, "exit 0\n")
	s := newShow(t)
	s.b.Kill() // so that it is always the same host that is back first
	s.begin("--check-host", check, "--check-interval", "100ms", "--hold", "30s", "--max-backoff", "1s")
	for i, damage := range []struct {
		do     func() error
		reason string
	}{
		{func() error { return os.Remove(check) }, "is missing"},
		{func() error { return os.Chmod(check, 0o600) }, "not executable"},
		{func() error { return os.Chmod(check, 0o777) }, "writable by everybody"},
		{func() error { return os.WriteFile(check, nil, 0o700) }, "is empty"},
	} {
		if err := damage.do(); err != nil {
			t.Fatal(err)
		}
		s.Until("no host is usable: "+damage.reason, func() bool {
			return countLog(s.Understudy, "primary lost", damage.reason) == 1 && countLog(s.Understudy, "no host is usable") > i
		})
		writeScript(t, check, "exit 0\n")
		s.awaitGreeting("a")
	}
	s.lookAgain("a")
	s.end()
}

// F26: a trigger says what could break a log. Each of its lines is one record,
// and each record is one line of valid JSON.
func TestScriptOutputCannotBreakTheLog(t *testing.T) {
	t.Parallel()
	s := newShow(t)
	talk := script(t, `printf 'plain\n\033[2J\033[31mred\r\n2026-01-01T00:00:00Z [ERROR] understudy: fake\n\377\376 bad\n{"@level":"error"}\nlast without end'`)
	s.begin("--log-format", "json", "--on-failover", talk)
	s.Until("all is logged", func() bool { return countLog(s.Understudy, "last without end") > 0 })
	s.lookAgain("a")
	terminate(t, s.Understudy)
	said := 0
	for line := range strings.Lines(s.Log()) {
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		for _, value := range record {
			if text, ok := value.(string); ok && strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("control characters in %q", text)
			}
		}
		if record["output"] != nil || strings.Contains(line, "last without end") {
			said++
		}
	}
	if said == 0 {
		t.Error("nothing of what the trigger said is in the log")
	}
}

// F29: what a script inherits.
func TestWhatScriptsInherit(t *testing.T) {
	t.Parallel()
	s := newShow(t)
	seen := filepath.Join(t.TempDir(), "seen")
	if err := os.Mkdir(seen, 0o700); err != nil {
		t.Fatal(err)
	}
	look := `cd ` + seen + `
(exec ls /proc/self/fd) >fds
readlink /proc/self/fd/0 >stdin
grep -E '^(SigBlk|SigIgn|NoNewPrivs|CapAmb)' /proc/self/status >status
`
	s.begin("--on-failover", script(t, look))
	if got := strings.Join(lines(filepath.Join(seen, "fds")), " "); got != "0 1 2 3" { // 3 is ls's own
		t.Errorf("a script holds the descriptors %s, want 0 1 2 and that of ls", got)
	}
	if got := lines(filepath.Join(seen, "stdin")); len(got) != 1 || got[0] != "/dev/null" {
		t.Errorf("its standard input is %q, want /dev/null", got)
	}
	// What the program was itself told to ignore it passes on; here that is no
	// more than what glibc ignores in what make starts: 32 and 33, its own.
	ignored := "SigIgn:\t0000000000000000"
	if inherited := lines("/proc/self/status"); slices.Contains(inherited, "SigIgn:\t0000000080000000") {
		ignored = "SigIgn:\t0000000080000000"
	} else if slices.Contains(inherited, "SigIgn:\t0000000180000000") {
		ignored = "SigIgn:\t0000000180000000"
	}
	want := "CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSigBlk:\t0000000000000000\n" + ignored
	got := lines(filepath.Join(seen, "status"))
	for line := range strings.SplitSeq(want, "\n") {
		if !strings.Contains(strings.Join(got, "\n"), line) {
			t.Errorf("its status is %q, want %q in it", got, line)
		}
	}
	s.lookAgain("a")
	s.end()
}

// F30: the trigger of the new primary hangs and ignores TERM, and meanwhile
// the new primary dies.
func TestTriggerHangsWhileTheNewPrimaryDies(t *testing.T) {
	t.Parallel()
	s := openThree(t, `[ "$UNDERSTUDY_EPOCH" = 2 ] || exit 0; trap '' TERM; while :; do sleep 0.1; done`, "--trigger-timeout", "1s")
	clients := s.load()
	s.a.Kill()
	killed := time.Now()
	s.Until("the trigger hangs", func() bool { return len(lines(s.record)) == 2 })
	s.b.Kill()
	s.awaitGreeting("c")
	took := time.Since(killed)
	report := finish(s.Understudy, clients)
	t.Logf("%v; c answered after %v (goal: 3.2s)", report, took)
	wantNoLoss(t, report, killed, "c")
	wantWithin(t, "the switch", took, 8*time.Second)
	s.wantTriggers(s.started(), s.failedOver(), told("failover", 3, s.b.Addr(), s.c.Addr()))
	s.lookAgain("c")
	s.end()
}

// F30: a trigger that fails stops nothing by default; with abort the next host
// is tried.
func TestFailedTrigger(t *testing.T) {
	t.Parallel()
	for policy, want := range map[string]string{"continue": "b", "abort": "c"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			s := openThree(t, `[ "$UNDERSTUDY_EPOCH" != 2 ]`, "--trigger-policy", policy)
			clients := s.load()
			s.a.Kill()
			killed := time.Now()
			s.awaitGreeting(want)
			report := finish(s.Understudy, clients)
			t.Log(report)
			wantNoLoss(t, report, killed, want)
			elections := []string{s.started(), s.failedOver()}
			if policy == "abort" {
				elections = append(elections, told("failover", 3, s.b.Addr(), s.c.Addr()))
			}
			s.wantTriggers(elections...)
			s.lookAgain(want)
			s.end()
		})
	}
}

// F31: as process 1, with checks that leave orphans in sessions of their own.
func TestOrphansOfProcessOne(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root, for a namespace of process ids")
	}
	s := newShow(t)
	runs := filepath.Join(t.TempDir(), "runs")
	cmd := proctest.BinaryCommand(program(t), nil, "--bind", s.addr, "--hosts", s.a.Addr()+","+s.b.Addr(),
		"--check-host", script(t, "for i in 1 2 3 4 5; do (setsid sleep 0.2 >/dev/null 2>&1 &); done; echo >>"+runs+"\n"), "--check-interval", "50ms")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	s.Understudy = proctest.StartCommand(t, cmd)
	s.awaitGreeting("a")
	s.WaitLog("pid=1 ")
	zombies, most := 0, 0
	count := func() int {
		zombies = strings.Count(strings.Join(childrenOf(s.PID()), ","), " Z")
		most = max(most, zombies)
		return zombies
	}
	s.Until("a hundred checks have left five orphans each", func() bool { count(); return len(lines(runs)) >= 100 })
	s.Until("all that have ended are reaped", func() bool { return count() == 0 })
	t.Logf("%d checks, %d zombies at most at one time", len(lines(runs)), most)
	s.end()
}
