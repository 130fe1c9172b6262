//go:build linux

// Package e2e holds the whole-program tests: the program as it is built,
// hosts that are processes, real sockets, real scripts, and clients that come
// at a steady rate while something breaks. Each test breaks one thing, reports
// what its clients saw, and ends with the same check of the process: it leaks
// nothing and serves a new client.
//
// Figures are printed (go test -v). The bounds that tests fail on are those of
// a busy machine with two processors, and wider than what is promised.
// UNDERSTUDY_RUNS=20 sets the number of repetitions of those tests that repeat,
// UNDERSTUDY_OUTAGE=1m the length of the long outage, and UNDERSTUDY_CUTS=all has every cut
// tried and not only some. UNDERSTUDY_SEED repeats the
// random faults of a run that has printed it.
package e2e

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

const (
	// perSecond is the number of clients that come each second.
	perSecond = 200

	// patience is the time for which a client waits for its greeting. A client that
	// is not served by then, or is refused or reset before, is lost.
	patience = 20 * time.Second
)

func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.parallel").Value.String() == flag.Lookup("test.parallel").DefValue {
		// Most of the time is waiting, so tests need not wait for each other.
		_ = flag.Set("test.parallel", "6")
	}
	os.Exit(proctest.Main(m, nil))
}

// runs is the number of repetitions of a test.
func runs(t *testing.T, usual int) int {
	t.Helper()
	if text := os.Getenv("UNDERSTUDY_RUNS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("UNDERSTUDY_RUNS=%q is not a number of runs", text)
		}
		return n
	}
	if testing.Short() {
		return 1
	}
	return usual
}

// program is the path of the program under test.
func program(t *testing.T) string {
	t.Helper()
	if path := os.Getenv(programVariable); path != "" {
		return path
	}
	return proctest.Build(t)
}

// programVariable names the program that was built already, for a test that
// runs again in a namespace of its own.
const programVariable = "UNDERSTUDY_PROGRAM"

// start starts the program.
func start(t *testing.T, args ...string) *proctest.Understudy {
	t.Helper()
	return proctest.StartCommand(t, proctest.BinaryCommand(program(t), nil, args...))
}

// freeAddr is a loopback address without a listener.
func freeAddr(t *testing.T) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(proctest.FreePort(t, "127.0.0.1")))
}

// script writes an executable shell script and returns its path.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script.sh")
	writeScript(t, path, text)
	return path
}

// writeScript puts a script at path in one step, so that no process sees half
// of it or a file that is open for writing.
func writeScript(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+"~", []byte("#!/bin/bash\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+"~", path); err != nil {
		t.Fatal(err)
	}
}

// lines returns the lines of a file; none if it does not exist.
func lines(path string) []string {
	text, _ := os.ReadFile(path)
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")[:strings.Count(string(text), "\n")]
}

// show is the program in front of two hosts, a and b, with a trigger that
// records its runs.
type show struct {
	*proctest.Understudy
	t      *testing.T
	a, b   *proctest.Host
	c      *proctest.Host // only of openThree
	addr   string
	record string // a line for each run of the trigger
	first  look
}

// recording is a trigger that appends its arguments and variables to path.
func recording(path string) string {
	return `echo "$UNDERSTUDY_EVENT relay=$UNDERSTUDY_RELAY epoch=$UNDERSTUDY_EPOCH old=$UNDERSTUDY_OLD new=$UNDERSTUDY_NEW args=$#:$1" >>` + path + "\n"
}

// open starts hosts a and b, and the program in front of them with args, and
// waits until a answers.
func open(t *testing.T, args ...string) *show {
	t.Helper()
	s := newShow(t)
	s.begin(args...)
	return s
}

// openThree is open with a third host, c, and a trigger that goes on with more.
func openThree(t *testing.T, more string, args ...string) *show {
	t.Helper()
	s := newShow(t)
	s.c = (&proctest.Host{Name: "c"}).Start(t)
	s.begin(append(args, "--hosts", s.c.Addr(), "--on-failover", script(t, recording(s.record)+more))...)
	return s
}

// newShow starts hosts a and b.
func newShow(t *testing.T) *show {
	t.Helper()
	return &show{
		t:      t,
		a:      (&proctest.Host{Name: "a"}).Start(t),
		b:      (&proctest.Host{Name: "b"}).Start(t),
		addr:   freeAddr(t),
		record: filepath.Join(t.TempDir(), "record"),
	}
}

// begin starts the program in front of a and b, and waits until a answers.
func (s *show) begin(args ...string) {
	s.t.Helper()
	s.run(append([]string{
		"--bind", s.addr, "--hosts", s.a.Addr() + "," + s.b.Addr(), "--on-failover", script(s.t, recording(s.record)),
	}, args...)...)
}

// run starts the program with settings that have a and b at addr, and waits until a
// answers.
func (s *show) run(args ...string) {
	s.t.Helper()
	s.Understudy = start(s.t, args...)
	s.awaitGreeting("a")
	s.first = s.look()
}

// awaitGreeting waits until a host answers through the relay.
func (s *show) awaitGreeting(host string) {
	s.t.Helper()
	awaitGreeting(s.t, s.Understudy, s.addr, host)
}

func awaitGreeting(t *testing.T, u *proctest.Understudy, addr, host string) {
	t.Helper()
	u.Until(host+" answers", func() bool {
		who, err := proctest.Greeting(addr, patience)
		return err == nil && who == host
	})
}

// load starts the clients and waits until some are served.
func (s *show) load() *proctest.Load {
	s.t.Helper()
	return load(s.t, s.Understudy, s.addr)
}

func load(t *testing.T, u *proctest.Understudy, addr string) *proctest.Load {
	t.Helper()
	l := proctest.StartLoad(t, addr, perSecond, patience)
	u.Until("clients are served", func() bool { return l.Served() >= perSecond/4 })
	return l
}

// finish lets some more clients be served and reports on all.
func finish(u *proctest.Understudy, l *proctest.Load) proctest.Report {
	served := l.Served()
	u.Until("more clients are served", func() bool { return l.Served() >= served+perSecond/2 })
	return l.Stop()
}

// wantTriggers checks that the trigger ran for these elections, once each.
func (s *show) wantTriggers(want ...string) {
	s.t.Helper()
	if got := lines(s.record); strings.Join(got, "\n") != strings.Join(want, "\n") {
		s.t.Errorf("the trigger recorded:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// triggerLine is the line that the trigger records for an election.
func (s *show) triggerLine(event string, epoch int, before, elect string) string {
	return fmt.Sprintf("%s relay=%s epoch=%d old=%s new=%s args=1:%s", event, s.relay(), epoch, before, elect, elect)
}

// relay is the default name of the relay.
func (s *show) relay() string { return portOf(s.addr) }

// started and failedOver are the elections that most tests see.
func (s *show) started() string    { return s.triggerLine("start", 1, "", s.a.Addr()) }
func (s *show) failedOver() string { return s.triggerLine("failover", 2, s.a.Addr(), s.b.Addr()) }

// wantNoLoss checks that every client was served, and those that came after the
// fault by the new host.
//
// A client that came before the fault may have been greeted already, and is
// rightly reset with the connections of its epoch if it is still connected
// then. So resets of earlier clients do not count as losses if the machine gave
// the clients no time to leave. (Where the greeting's host has ended its stream
// before, a reset shows as EPIPE.)
func wantNoLoss(t *testing.T, r proctest.Report, fault time.Time, host string) {
	t.Helper()
	lost := slices.DeleteFunc(r.Lost(), func(c proctest.Conn) bool {
		reset := errors.Is(c.Err, syscall.ECONNRESET) || errors.Is(c.Err, syscall.EPIPE)
		return reset && c.Start.Before(fault) && r.Stall > 50*time.Millisecond
	})
	if len(lost) > 0 {
		t.Errorf("%d clients lost; the first came %v after the fault: %v", len(lost), lost[0].Start.Sub(fault), lost[0].Err)
	}
	for _, c := range r.Conns {
		if c.Err == nil && c.Start.After(fault) && c.Host != host {
			t.Errorf("a client that came %v after the fault was served by %s, want %s", c.Start.Sub(fault), c.Host, host)
			return
		}
	}
}

// wantWithin checks a time against a limit that only a wrong behaviour exceeds:
// one that waits unnecessarily. Figures are logged; bench measures speed.
func wantWithin(t *testing.T, what string, got, limit time.Duration) {
	t.Helper()
	if got > limit {
		t.Errorf("%s took %v, want %v at most", what, got, limit)
	}
}

// wantGap checks the longest time in which no client was served. The time for
// which the machine did not run the clients does not count.
func wantGap(t *testing.T, report proctest.Report, limit time.Duration) {
	t.Helper()
	wantWithin(t, "the longest gap", report.Gap(), limit+report.Stall)
}

// killPrimary kills host a under the load of clients, which it ends. It checks that
// none of them is lost, and that b serves them within 3s.
func (s *show) killPrimary(clients *proctest.Load) {
	s.t.Helper()
	s.a.Kill()
	killed := time.Now()
	s.awaitGreeting("b")
	report := finish(s.Understudy, clients)
	s.t.Log(report)
	wantNoLoss(s.t, report, killed, "b")
	wantGap(s.t, report, 3*time.Second)
}

// elections counts the elections in the log.
func elections(u *proctest.Understudy) int { return countLog(u, "host elected") }

// wantElections checks how many elections there were; see [wantLog].
func wantElections(t *testing.T, u *proctest.Understudy, n int) {
	t.Helper()
	wantLog(t, u, n, "host elected")
}

// end ends the program with TERM and checks how it went.
func (s *show) end() map[string]int {
	s.t.Helper()
	return end(s.t, s.Understudy)
}

// end ends the program with TERM, and checks that it logs that and that its
// counts add up.
func end(t *testing.T, u *proctest.Understudy) map[string]int {
	t.Helper()
	u.Terminate()
	return counts(t, u)
}

var count = regexp.MustCompile(`(\w+)=(\d+)`)

// counts reads the counting line at the end of the log, and checks that
// accepted is the sum of the others.
func counts(t *testing.T, u *proctest.Understudy) map[string]int {
	t.Helper()
	_, line, ok := strings.Cut(u.Log(), "understudy: ended: relay=")
	if !ok {
		t.Fatal("no counting line at the end of the log")
	}
	line, _, _ = strings.Cut(line, "\n")
	n := map[string]int{}
	for _, m := range count.FindAllStringSubmatch(line, -1) {
		n[m[1]], _ = strconv.Atoi(m[2])
	}
	if sum := n["live"] + n["finished"] + n["reset"] + n["fenced"] + n["expired"] + n["aborted"]; n["accepted"] != sum {
		t.Errorf("accepted=%d, and the others are %d together: %s", n["accepted"], sum, line)
	}
	return n
}
