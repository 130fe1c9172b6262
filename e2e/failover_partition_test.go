//go:build linux

package e2e

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// F03, F03b, F11: the network drops what is sent to the primary, or only its
// answers. New clients go to the standby, connections to the old primary end,
// and when the network is back not one byte of them gets there.
func TestSilentNetwork(t *testing.T) {
	t.Parallel()
	if !isolate(t, "nft") {
		return
	}
	run(t, "nft", "add table inet fault")
	run(t, "nft", "add chain inet fault input { type filter hook input priority 0; }")
	for _, tt := range []struct {
		name string
		drop []string
	}{
		{"both ways", []string{"tcp dport", "tcp sport"}},
		{"answers only", []string{"tcp sport"}},
		{"requests only", []string{"tcp dport"}},
	} {
		for i := range runs(t, 1) {
			t.Run(fmt.Sprint(tt.name, " ", i+1), func(t *testing.T) {
				a, b := newWitness(t, "a"), newWitness(t, "b")
				addr := freeAddr(t)
				u := start(t, "--bind", addr, "--hosts", a.addr+","+b.addr)
				awaitGreeting(t, u, addr, "a")
				first := lookAt(t, u.PID())

				old := dial(t, addr)
				old.want("a\n")
				old.send("before the fault;")
				u.Until("a has heard it", func() bool { return a.text() == "before the fault;" })
				idle := dial(t, addr)
				idle.want("a\n")
				clients := load(t, u, addr)

				for _, what := range tt.drop {
					run(t, "nft", "add rule inet fault input", what, a.port(), "drop")
				}
				broken := time.Now()
				old.send("into the void;") // it stays unacknowledged, or its acknowledgement is lost
				awaitGreeting(t, u, addr, "b")
				old.wantReset()
				idle.wantReset()
				healthy := dial(t, addr)
				healthy.want("b\n")
				healthy.send("to the new primary;")
				report := finish(u, clients)
				t.Logf("%v (goal: no gap of 3s)", report)
				wantNoLoss(t, report, broken, "b")
				wantGap(t, report, 6*time.Second)
				u.Until("b has heard its client", func() bool { return b.text() == "to the new primary;" })

				before := a.text()
				run(t, "nft", "flush chain inet fault input")
				u.Until("a is up again", func() bool {
					return countLog(u, "host changed state", "host="+a.addr, "to=up") == 2
				})
				time.Sleep(time.Second) // longer than a retransmission would take to come through
				if after := a.text(); after != before {
					t.Errorf("after the network healed the old primary heard %q", strings.TrimPrefix(after, before))
				}
				if strings.Contains(b.text(), "void") || strings.Contains(b.text(), "before") {
					t.Errorf("the new primary heard what was meant for the old one: %q", b.text())
				}
				wantElections(t, u, 2)
				healthy.Close()
				lookAgain(t, u, first, addr, "b")
				if n := end(t, u); n["fenced"] < 2 {
					t.Errorf("%d connections were fenced, want the two that stayed", n["fenced"])
				}
			})
		}
	}
}

// F03: without a standby, a connection whose data stays unacknowledged ends
// after the user timeout, and clients that come meanwhile wait and are refused.
func TestSilentNetworkWithoutAStandby(t *testing.T) {
	t.Parallel()
	if !isolate(t, "nft") {
		return
	}
	run(t, "nft", "add table inet fault")
	run(t, "nft", "add chain inet fault input { type filter hook input priority 0; }")
	a := newWitness(t, "a")
	addr := freeAddr(t)
	u := start(t, "--bind", addr, "--hosts", a.addr, "--user-timeout", "3s", "--hold", "2s")
	awaitGreeting(t, u, addr, "a")
	old := dial(t, addr)
	old.want("a\n")
	run(t, "nft", "add rule inet fault input tcp dport", a.port(), "drop")
	broken := time.Now()
	old.send("into the void")
	old.wantReset()
	t.Logf("a connection with unacknowledged data ended after %v (user timeout 3s)", time.Since(broken))
	wantWithin(t, "the end of a connection with unacknowledged data", time.Since(broken), 10*time.Second)
	u.Until("clients are refused", func() bool {
		_, err := proctest.Greeting(addr, patience)
		return err != nil
	})
	run(t, "nft", "flush chain inet fault input")
	healed := time.Now()
	awaitGreeting(t, u, addr, "a")
	t.Logf("served again %v after the network healed", time.Since(healed))
	end(t, u)
}

// F06: the primary's queue of connections is full, so that connects get no
// answer. Its clients wait, and go to the standby.
func TestFullBacklog(t *testing.T) {
	t.Parallel()
	if !isolate(t) {
		return
	}
	port := proctest.FreePort(t, "127.0.0.1")
	listenUnattended(t, "127.0.0.1", port)
	full := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	b := newWitness(t, "b")
	addr := freeAddr(t)
	u := start(t, "--bind", addr, "--hosts", full+","+b.addr)
	u.WaitLog("relay open") // on the full one, while there was room
	clients := proctest.StartLoad(t, addr, perSecond, patience)
	begin := time.Now()
	awaitGreeting(t, u, addr, "b")
	report := finish(u, clients)
	t.Logf("%v; b answers after %v", report, time.Since(begin))
	wantNoLoss(t, report, begin, "b")
	wantWithin(t, "the slowest client", report.Slowest(), 6*time.Second)
	end(t, u)
}
