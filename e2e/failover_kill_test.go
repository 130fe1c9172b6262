//go:build linux

package e2e

import (
	"fmt"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// F01: the primary is killed while clients come. Not one of them may notice
// more than a slow connect.
func TestKilledPrimary(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		args []string
		goal time.Duration // on a machine with nothing else to do
	}{
		{"defaults", nil, 500 * time.Millisecond},
		{"fall 1", []string{"--fall", "1"}, 50 * time.Millisecond},
		{"check script", []string{"--check-host", script(t, "sleep 0.1\n")}, 750 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for i := range runs(t, 3) {
				t.Run(fmt.Sprint(i+1), func(t *testing.T) {
					s := open(t, tt.args...)
					clients := s.load()
					s.a.Kill()
					killed := time.Now()
					s.awaitGreeting("b")
					report := finish(s.Understudy, clients)
					t.Logf("%v (goal: no gap of %v)", report, tt.goal)
					wantNoLoss(t, report, killed, "b")
					wantGap(t, report, tt.goal+2*time.Second)
					s.wantTriggers(s.started(), s.failedOver())
					s.lookAgain("b")
					if n := s.end(); n["expired"]+n["aborted"]+n["live"] > 0 {
						t.Errorf("counts at the end: %v", n)
					}
				})
			}
		})
	}
}

// F01: the primary is killed while it holds clients it has not greeted yet. The
// kernel ends their streams as if the host had ended them; the clients go to
// the next host nevertheless.
func TestKilledPrimaryThatHadNotGreetedYet(t *testing.T) {
	t.Parallel()
	for i := range runs(t, 2) {
		t.Run(fmt.Sprint(i+1), func(t *testing.T) {
			s := newShow(t)
			s.a.Kill()
			s.a = (&proctest.Host{Name: "a", Delay: 200 * time.Millisecond}).Start(t)
			s.begin()
			clients := s.load()
			s.a.Kill()
			killed := time.Now()
			s.awaitGreeting("b")
			report := finish(s.Understudy, clients)
			t.Log(report)
			wantNoLoss(t, report, killed, "b")
			s.wantTriggers(s.started(), s.failedOver())
			s.lookAgain("b")
			s.end()
		})
	}
}

// F10: the old primary comes back. No connected client notices, and there is no
// switch.
func TestOldPrimaryReturns(t *testing.T) {
	t.Parallel()
	s := open(t, "--interval", "100ms")
	s.a.Kill()
	s.awaitGreeting("b")
	stays := dial(t, s.addr)
	stays.want("b\n")
	s.a.Restart()
	s.Until("a is up", func() bool { return countLog(s.Understudy, "host changed state", "host="+s.a.Addr(), "to=up") == 2 })
	clients := s.load()
	report := finish(s.Understudy, clients)
	t.Log(report)
	wantNoLoss(t, report, time.Time{}, "b")
	stays.send("still here")
	stays.want("still here")
	s.wantTriggers(s.started(), s.failedOver())
	stays.Close()
	s.lookAgain("b")
	s.end()
}

// F12: the standby dies in the middle of the switch, while its trigger runs.
// The next host takes over, and the waiting clients go there.
func TestStandbyDiesInTheMiddle(t *testing.T) {
	t.Parallel()
	s := openThree(t, `[ "$UNDERSTUDY_EPOCH" != 2 ] || sleep 2`)
	clients := s.load()
	s.a.Kill()
	killed := time.Now()
	s.Until("the trigger of the first standby runs", func() bool { return len(lines(s.record)) == 2 })
	s.b.Kill()
	s.awaitGreeting("c")
	report := finish(s.Understudy, clients)
	t.Log(report)
	wantNoLoss(t, report, killed, "c")
	s.wantTriggers(s.started(), s.failedOver(), s.triggerLine("failover", 3, s.b.Addr(), s.c.Addr()))
	s.lookAgain("c")
	s.end()
}

// F12: primary and standby die together. No trigger runs for a host that was
// never primary.
func TestPrimaryAndStandbyDieTogether(t *testing.T) {
	t.Parallel()
	s := openThree(t, "")
	clients := s.load()
	s.b.Kill()
	s.a.Kill()
	killed := time.Now()
	s.awaitGreeting("c")
	report := finish(s.Understudy, clients)
	t.Log(report)
	wantNoLoss(t, report, killed, "c")
	wantGap(t, report, 4*time.Second)
	s.wantTriggers(s.started(), s.triggerLine("failover", 2, s.a.Addr(), s.c.Addr()))
	s.lookAgain("c")
	s.end()
}

// F01: the primary is killed while pools hold connections to it, and no client
// connects and no check is due for a long time. Its kernel ends them all, which
// has it checked at once.
func TestKilledPrimaryOfPools(t *testing.T) {
	t.Parallel()
	for i := range runs(t, 2) {
		t.Run(fmt.Sprint(i+1), func(t *testing.T) {
			s := open(t, "--interval", "60s", "--hold", "60s", "--stay", "0")
			gatherSessions(t, s.addr)
			s.a.Kill()
			killed := time.Now()
			s.WaitLog("event=failover")
			took := time.Since(killed)
			t.Logf("elected %v after the kill (goal: 0.25s)", took)
			if took > 20*time.Second { // without the ends: up to a minute
				t.Errorf("elected %v after the kill", took)
			}
			s.awaitGreeting("b")
		})
	}
}
