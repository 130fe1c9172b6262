//go:build linux

package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// F08: the primary goes down and comes back, again and again. Its clients are
// moved once. With failback they return once it has been up for long enough,
// which flap damping extends to ten seconds after the second failure.
func TestFlappingPrimary(t *testing.T) {
	t.Parallel()
	const half = time.Second // instead of 3s, with checks three times as often
	for _, tt := range []struct {
		name     string
		args     []string
		flaps    int
		failback bool
	}{
		{"sticky", nil, 4, false},
		{"failback", []string{"--failback", "5s"}, 2, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := open(t, append([]string{"--interval", "333ms"}, tt.args...)...)
			clients := s.load()
			start := strings.Count(s.Log(), "\n")
			for range tt.flaps {
				s.a.Kill()
				time.Sleep(half) // a flap is down for this long,
				s.a.Restart()
				time.Sleep(half) // and up
			}
			wantElections(t, s.Understudy, 2)
			if n := strings.Count(s.Log(), "\n") - start; n > 10*tt.flaps {
				t.Errorf("%d lines of log in %d flaps", n, tt.flaps)
			}
			want, at := []string{s.started(), s.failedOver()}, "b"
			if tt.failback {
				want, at = append(want, s.triggerLine("failback", 3, s.b.Addr(), s.a.Addr())), "a"
				s.awaitGreeting("a")
			}
			report := finish(s.Understudy, clients)
			t.Log(report)
			if lost := report.Lost(); len(lost) > 0 {
				t.Errorf("%d clients lost, first: %v", len(lost), lost[0].Err)
			}
			s.wantTriggers(want...)
			s.lookAgain(at)
			s.end()
		})
	}
}

// outage is the time for which all hosts are away.
func outage(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("UNDERSTUDY_OUTAGE")
	if text == "" {
		return 12 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("UNDERSTUDY_OUTAGE: %v", err)
	}
	return d
}

// F09: all hosts are away. The program uses little processor time, logs little,
// resets its clients in time, and serves as soon as a host is back.
func TestAllHostsAway(t *testing.T) {
	t.Parallel()
	away := outage(t)
	s := open(t, "--hold", "2s")
	// Clients that wait for longer than hold, or come after it, are lost.
	clients := proctest.StartLoad(t, s.addr, 50, patience)
	s.Until("clients are served", func() bool { return clients.Served() > 20 })
	before := strings.Count(s.Log(), "\n")
	s.b.Kill()
	killed := time.Now() // before, because the program may be faster than this process
	s.a.Kill()
	s.WaitLog("clients are refused: ")
	refused := time.Now()
	report := clients.Stop()
	t.Log(report)
	for _, c := range report.Conns {
		if c.Start.After(killed) && c.Latency > 10*time.Second {
			t.Errorf("a client waited for %v, hold is 2s", c.Latency)
			break
		}
	}
	if took := refused.Sub(killed); took < 2*time.Second || took > 10*time.Second {
		t.Errorf("clients were refused after %v, want 2s and little more", took)
	}

	used := processorTime(t, s.PID())
	begin := time.Now()
	time.Sleep(time.Until(killed.Add(away))) // the outage that is measured
	used = processorTime(t, s.PID()) - used
	t.Logf("in %v without a host: %v of processor time", time.Since(begin), used)
	if limit := time.Since(begin) / 10; used > limit { // a loop that does not wait uses all of it
		t.Errorf("%v of processor time in %v, want a tenth at most", used, time.Since(begin))
	}
	steps := 2 // one at once, and one for a check under way
	for wait, sum := time.Second, time.Duration(0); sum < away; wait *= 2 {
		steps, sum = steps+1, sum+min(wait, time.Minute)
	}
	if n := countLog(s.Understudy, "no host is usable"); n == 0 || n > steps {
		t.Errorf("%d records that no host is usable in %v, want one for each of %d steps at most", n, away, steps)
	}
	if n := strings.Count(s.Log(), "\n") - before; n > steps+10 {
		t.Errorf("%d lines of log in %v", n, away)
	}

	s.a.Restart()
	opened := time.Now()
	s.awaitGreeting("a")
	t.Logf("the first client was served %v after the port opened (rule: 500ms)", time.Since(opened))
	wantWithin(t, "the first client after the port opened", time.Since(opened), 2*time.Second) // some 3s are left of a back-off
	s.wantTriggers(s.started(), s.triggerLine("reselect", 2, s.a.Addr(), s.a.Addr()))
	s.b.Restart()
	s.lookAgain("a")
	s.end()
}
