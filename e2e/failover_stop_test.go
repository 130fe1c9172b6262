//go:build linux

package e2e

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// readingCheck is a check script that connects to the host and expects a line
// within 250ms.
const readingCheck = `exec 3<>"/dev/tcp/${1%:*}/${1##*:}" && read -r -t 0.25 line <&3
`

// F02: the primary stops, and its kernel goes on accepting connections. A
// check that expects an answer notices. When it continues, there is no switch
// back.
func TestStoppedPrimary(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		open func(t *testing.T) *show
	}{
		{"check script that reads", func(t *testing.T) *show {
			t.Helper()
			return open(t, "--check-host", script(t, readingCheck))
		}},
		{"pong port", func(t *testing.T) *show {
			t.Helper()
			s := newShow(t)
			s.a.Kill()
			s.b.Kill()
			port := proctest.FreePort(t, "127.0.0.1")
			s.a = (&proctest.Host{Name: "a", PingPort: port}).Start(t)
			s.b = (&proctest.Host{Name: "b", IP: "127.0.0.2", PingPort: port}).Start(t)
			s.begin("--pong-port", strconv.Itoa(port))
			return s
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for i := range runs(t, 2) {
				t.Run(fmt.Sprint(i+1), func(t *testing.T) {
					s := tt.open(t)
					old := dial(t, s.addr)
					old.want("a\n")
					clients := s.load()
					s.a.Stop()
					stopped := time.Now()
					s.awaitGreeting("b")
					old.wantReset()
					s.a.Continue()
					report := finish(s.Understudy, clients)
					t.Logf("%v (goal: no gap of 3s)", report)
					wantNoLoss(t, report, stopped, "b")
					wantGap(t, report, 6*time.Second)
					s.Until("the old primary is up again", func() bool {
						return countLog(s.Understudy, "host changed state", "host="+s.a.Addr(), "to=up") == 2
					})
					wantElections(t, s.Understudy, 2)
					s.wantTriggers(s.started(), s.failedOver())
					s.lookAgain("b")
					if n := s.end(); n["fenced"] < 1 {
						t.Errorf("%d connections were fenced, want the one that had been greeted and stayed", n["fenced"])
					}
				})
			}
		})
	}
}

// F05: a host that accepts and never answers is up unless a check expects an
// answer, as README.md explains.
func TestHostThatNeverAnswersIsUpWithoutACheck(t *testing.T) {
	t.Parallel()
	s := open(t, "--interval", "100ms")
	s.a.Stop()
	silent := dial(t, s.addr)
	if err := silent.SetReadDeadline(time.Now().Add(1500 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := silent.Read(make([]byte, 1)); n != 0 || !isTimeout(err) {
		t.Errorf("read %d bytes, %v, want silence", n, err)
	}
	s.a.Continue()
	s.awaitGreeting("a")
	s.wantTriggers(s.started())
	silent.Close()
	s.lookAgain("a")
	s.end()
}
