//go:build linux

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// F07: hosts by name, and a name server that fails in all the usual ways.
func TestNames(t *testing.T) {
	t.Parallel()
	if !isolate(t, "nft") {
		return
	}
	run(t, "nft", "add table inet fault")
	run(t, "nft", "add chain inet fault input { type filter hook input priority 0; }")
	run(t, "nft add rule inet fault input ip daddr 127.0.0.99 drop")
	server := serveNames(t)
	port := proctest.FreePort(t, "127.0.0.1")
	a := (&proctest.Host{Name: "a", IP: "127.0.0.2", Port: port}).Start(t)
	b := (&proctest.Host{Name: "b", IP: "127.0.0.3", Port: port}).Start(t)
	(&proctest.Host{Name: "moved", IP: "127.0.0.4", Port: port}).Start(t)
	server.say("b.test", at(b.IP))
	for i, tt := range []struct {
		name      string
		before    answer // about a
		at        string // the host that serves then
		after     answer
		then      string
		elections int
	}{
		{"a name that does not exist at the start", noSuchName, "b", at(a.IP), "b", 1},
		{"a name server that fails at the start", failure, "b", at(a.IP), "b", 1},
		{"a name server that is silent at the start", silence, "b", at(a.IP), "b", 1},
		{"a name without an address at the start", at(), "b", at(a.IP), "b", 1},
		{"the name vanishes", at(a.IP), "a", noSuchName, "a", 1},
		{"the name loses its address", at(a.IP), "a", at(), "a", 1},
		{"the name server begins to fail", at(a.IP), "a", failure, "a", 1},
		{"the name server falls silent", at(a.IP), "a", silence, "a", 1},
		{"the address changes", at(a.IP), "a", at("127.0.0.4"), "moved", 2},
		{"two of three addresses are dead", at("127.0.0.98", "127.0.0.99", a.IP), "a", at(a.IP), "a", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			name := fmt.Sprintf("a%d.test", i)
			server.say(name, tt.before)
			addr := freeAddr(t)
			u := start(t, "--bind", addr, "--hosts", fmt.Sprintf("%s:%d,b.test:%d", name, port, port))
			begin := time.Now()
			awaitGreeting(t, u, addr, tt.at)
			served := time.Since(begin)
			wantWithin(t, "the first election", served, 5*time.Second)
			first := lookAt(t, u.PID())
			clients := proctest.StartLoad(t, addr, perSecond/4, patience)
			server.say(name, tt.after)
			awaitGreeting(t, u, addr, tt.then)
			changed := time.Now()
			if tt.at == "b" {
				u.Until("a is up", func() bool { return countLog(u, "host changed state", "host="+name, "to=up") == 1 })
			} else {
				time.Sleep(1500 * time.Millisecond) // a check and its timeout
			}
			report := finish(u, clients)
			t.Logf("served after %v; %v", served, report)
			wantNoLoss(t, report, changed, tt.then)
			wantElections(t, u, tt.elections)
			if n := strings.Count(u.Log(), "\n"); n > 20 {
				t.Errorf("%d lines of log", n)
			}
			if tt.then != "moved" {
				server.say(name, at(a.IP)) // no query stays under way
			}
			awaitGreeting(t, u, addr, tt.then)
			lookAgain(t, u, first, addr, tt.then)
			end(t, u)
		})
	}
}
