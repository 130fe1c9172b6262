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

	"understudy/control"
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
// there. The next host takes over, no process of the script is left, and when
// the file is removed the host is up again.
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
			// Three runs, each 0.5s and 2s until it is killed, plus a margin.
			wantWithin(t, "the switch", took, 15*time.Second)
			s.wantTriggers(s.started(), s.failedOver())
			wantLog(t, s.Understudy, 1, "primary lost", tt.reason)
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

// A check script that fails quickly for 150ms is run again a fast interval
// later each time: no election. The fast interval is long enough for a busy
// machine.
func TestOneFailureOfAScriptElectsNoHost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	no, record := filepath.Join(dir, "no"), filepath.Join(dir, "record")
	s := open(t, "--fast-interval", "500ms", "--check-interval", "600ms", "--check-host", script(t, `
[ -e `+no+` ] || { echo yes >>`+record+`; exit 0; }
[ -s `+no+` ] || { date +%s%N >`+no+`; echo no >>`+record+`; exit 1; }
[ $(( $(date +%s%N) - $(cat `+no+`) )) -gt 150000000 ] && { echo yes >>`+record+`; exit 0; }
echo no >>`+record+`; exit 1
`))
	ran := func(word string) int {
		return len(slices.DeleteFunc(lines(record), func(line string) bool { return line != word }))
	}
	for range runs(t, 6) {
		said := ran("no")
		if err := os.WriteFile(no, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		s.Until("the script says no", func() bool { return ran("no") > said })
		agreed := ran("yes")
		s.Until("the script says yes again", func() bool { return ran("yes") > agreed+4 })
		if err := os.Remove(no); err != nil {
			t.Fatal(err)
		}
	}
	wantElections(t, s.Understudy, 1) // the start alone
	s.lookAgain("a")
	s.end()
}

// F24: a child of a script in a session of its own ends with the script: one
// that exits, one that times out, and one that runs when the program is ended
// at once. Processes of another program are left alone, and so is a child that
// was started without the variable.
func TestChildrenInTheirOwnSessions(t *testing.T) {
	t.Parallel()
	needs(t, "setsid")
	for _, tt := range []struct {
		name, does string
		hurry      bool
		stays      bool
	}{
		{name: "exits", does: "setsid %[1]s & %[2]s"},
		{name: "exits, and its child has a child", does: "setsid sh -c 'setsid %[1]s & exec sleep 600' & %[2]s"},
		{name: "times out", does: "setsid %[1]s & %[2]s; sleep 600"},
		{name: "runs when the program is ended at once", does: "setsid %[1]s & %[2]s; sleep 600", hurry: true},
		{name: "leaves a service", does: "env -u UNDERSTUDY_SCRIPT setsid %[1]s & %[2]s", stays: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newShow(t)
			mark := fmt.Sprintf("mark-%d-%d", os.Getpid(), time.Now().UnixNano())
			dir := t.TempDir()
			service, began := filepath.Join(dir, mark), filepath.Join(dir, "began")
			writeScript(t, service, "echo $$ >>"+began+"\nwhile :; do sleep 0.1; done\n")
			other, foreign := filepath.Join(dir, "other-"+mark), filepath.Join(dir, "pid")
			writeScript(t, other, "echo $$ >"+foreign+"\nexec sleep 600\n")
			trigger := script(t, fmt.Sprintf(tt.does, service+" >/dev/null 2>&1", "while ! [ -s "+began+" ]; do sleep 0.01; done")+"\n")
			timeout := "30s"
			if tt.name == "times out" {
				timeout = "500ms"
			}
			// The shell leaves a child to the program that it becomes.
			s.Understudy = proctest.StartCommand(t, proctest.BinaryCommand("/bin/sh", nil, "-c", other+` & exec "$@"`, "sh", program(t),
				"--bind", s.addr, "--hosts", s.a.Addr()+","+s.b.Addr(), "--on-failover", trigger, "--trigger-timeout", timeout))
			s.Until("the child has begun", func() bool { return len(lines(began)) == 1 && len(lines(foreign)) == 1 })
			kill := func(path string) {
				if pid, err := strconv.Atoi(lines(path)[0]); err == nil {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			defer kill(foreign)
			if tt.hurry {
				s.Signal(syscall.SIGTERM)
				s.EndAtOnce(syscall.SIGTERM)
			} else {
				s.awaitGreeting("a")
			}
			if tt.stays {
				if left := running(s.Understudy, service); len(left) == 0 {
					t.Error("a child without the variable was killed")
				}
				kill(began)
			} else {
				s.wantNone(service)
			}
			if pid := lines(foreign)[0]; !alive(pid) {
				t.Error("a child of another program was killed")
			}
			if !tt.hurry {
				s.end()
			}
		})
	}
}

// wantNone waits until no process has text in its command line.
func (s *show) wantNone(text string) {
	s.t.Helper()
	proctest.Until(s.t, "nothing of it is left", func() bool { return len(running(s.Understudy, text)) == 0 })
}

// alive reports whether a process exists and has not ended.
func alive(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// F28: an invalid script is an error before anything starts.
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
		{"writable by all users", func(path string) error {
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
// runs. That is logged as a warning, takes no primary down, and never makes a
// host usable.
func TestCheckScriptIsReplacedWhileRunning(t *testing.T) {
	t.Parallel()
	for reason, damage := range map[string]func(path string) error{
		"is missing":            os.Remove,
		"not executable":        func(path string) error { return os.Chmod(path, 0o600) },
		"writable by all users": func(path string) error { return os.Chmod(path, 0o777) },
		"is empty":              func(path string) error { return os.WriteFile(path, nil, 0o700) },
	} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			check := filepath.Join(t.TempDir(), "check.sh")
			writeScript(t, check, "exit 0\n")
			s := newShow(t)
			s.begin(append(unhurried, "--check-host", check, "--check-interval", "100ms", "--fall", "1", "--hold", "30s", "--max-backoff", "1s")...)
			if err := damage(check); err != nil {
				t.Fatal(err)
			}
			for _, h := range []*proctest.Host{s.a, s.b} {
				s.Until("it is warned of", func() bool {
					return countLog(s.Understudy, "[WARN]", "check is unknown", "host="+h.Addr(), reason) == 1
				})
			}
			s.wantNoSuspicion()
			s.lookAgain("a")
			s.a.Kill()
			s.Until("the primary is lost and b is not elected", func() bool {
				return countLog(s.Understudy, "no host is usable", s.b.Addr()+": check-host is unknown", reason) > 0
			})
			_ = os.Remove(check) // its mode would stay
			writeScript(t, check, "exit 0\n")
			s.awaitGreeting("b")
			s.wantTriggers(s.started(), s.failedOver())
			s.end()
		})
	}
}

// awaitUnknown waits until a primary is shown as unknown, with the reason.
func awaitUnknown(t *testing.T, socket, host, reason string) {
	t.Helper()
	var last string
	defer func() {
		if t.Failed() {
			t.Logf("the status of %s at last: %s", host, last)
		}
	}()
	proctest.Until(t, host+" is shown as unknown: "+reason, func() bool {
		now, err := control.NewClient(socket).Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r := now.Relays[0]
		n := slices.IndexFunc(r.Hosts, func(h control.Host) bool { return h.Name == host })
		h := r.Hosts[n]
		last = fmt.Sprintf("primary %v, %s: %s; why: %s", h.Primary, h.State, h.Why, r.Why)
		return h.Primary && h.State == "unknown" && strings.Contains(h.Why, reason) &&
			strings.Contains(r.Why, "check-host is unknown") && strings.Contains(r.Why, reason)
	})
}

// A check script that exits with unknown, or that is broken, takes no primary
// down; a host that refuses connections is taken down.
func TestUnknownCheckMovesNothing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ does, reason string }{
		{"echo too many clients; exit 75", "too many clients (script "},
		{"exit 126", "exit status 126"},
		{"exit 127", "exit status 127"},
		{"exec no-such-program", "exit status 127"},
	} {
		t.Run(tt.does, func(t *testing.T) {
			t.Parallel()
			s := newOperated(t)
			dir := t.TempDir()
			fault, runs := filepath.Join(dir, "fault"), filepath.Join(dir, "runs")
			check := script(t, `[ -e `+fault+` ] && [ "$1" = `+s.a.Addr()+" ] || exit 0\necho >>"+runs+"\n"+tt.does+"\n")
			s.begin(append(unhurried, "--check-host", check, "--check-interval", "100ms", "--fall", "2")...)
			clients := s.load()
			if err := os.WriteFile(fault, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			s.Until("the script did not know ten times", func() bool { return len(lines(runs)) >= 10 })
			report := finish(s.Understudy, clients)
			wantNoLoss(t, report, time.Time{}, "a")
			s.wantNoSuspicion()
			wantLog(t, s.Understudy, 1, "[WARN]", "check is unknown", "host="+s.a.Addr(), tt.reason)
			awaitUnknown(t, s.socket, s.a.Addr(), tt.reason)
			s.a.Kill()
			s.awaitGreeting("b")
			s.wantTriggers(s.started(), s.failedOver())
			s.end()
		})
	}
}

// F26: a trigger prints what could break a log. Each of its lines is one
// record, and each record is one line of valid JSON.
func TestScriptOutputCannotBreakTheLog(t *testing.T) {
	t.Parallel()
	s := newShow(t)
	talk := script(t, `printf 'plain\n\033[2J\033[31mred\r\n2026-01-01T00:00:00Z [ERROR] understudy: fake\n\377\376 bad\n{"@level":"error"}\nlast without end'`)
	s.begin("--log-format", "json", "--on-failover", talk)
	s.Until("all is logged", func() bool { return countLog(s.Understudy, "last without end") > 0 })
	s.lookAgain("a")
	s.Terminate()
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
	// The program passes on the signals that it ignores itself; here these are at
	// most those that glibc ignores in processes started by make: 32 and 33, its
	// own.
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

// A script of the same user finds no token, neither in its own environment nor
// in that of the program, which keeps using it, also after a reload.
func TestScriptsSeeNoToken(t *testing.T) {
	t.Parallel()
	s := newShow(t)
	dir, http := t.TempDir(), freeAddr(t)
	seen, config := filepath.Join(dir, "seen"), filepath.Join(dir, "understudy.yaml")
	look := script(t, "{ tr '\\0' '\\n' </proc/$PPID/environ; env; } >"+seen+".new; mv "+seen+".new "+seen+"\n")
	text := fmt.Sprintf("http: %q\nrelays: [{name: main, listen: [%q], hosts: [%q], on_failover: %s}]\nroutes:\n  /beat: {token_env: SECRET_TOKEN}\n", http, s.addr, s.a.Addr(), look)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Understudy = proctest.StartCommand(t, proctest.BinaryCommand(program(t),
		[]string{"FIRST=1", "SECRET_TOKEN=" + houseToken, "SECRET_TOKEN_NOT=kept"}, "--config", config))
	s.awaitGreeting("a")
	got := strings.Join(lines(seen), "\n")
	if strings.Contains(got, houseToken) {
		t.Errorf("a script reads the token:\n%s", got)
	}
	for _, kept := range []string{"FIRST=1", "SECRET_TOKEN_NOT=kept", "PATH=" + os.Getenv("PATH")} {
		if strings.Count(got, kept) != 2 { // of the program and of the script
			t.Errorf("%s is not there twice:\n%s", kept, got)
		}
	}
	if n := countLog(s.Understudy, "can read secrets"); n > 0 {
		t.Error("it warns of secrets that can be read")
	}
	s.Signal(syscall.SIGHUP)
	s.WaitLog("configuration reloaded")
	s.Until("the token opens", func() bool { code, _ := beat(t, http); return code == 200 })
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
	s.wantTriggers(s.started(), s.failedOver(), s.triggerLine("failover", 3, s.b.Addr(), s.c.Addr()))
	s.lookAgain("c")
	s.end()
}

// F30: a trigger that fails does not stop the switch by default; with abort the
// next host is tried.
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
				elections = append(elections, s.triggerLine("failover", 3, s.b.Addr(), s.c.Addr()))
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
