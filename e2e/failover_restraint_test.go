//go:build linux

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// F09: while no host is usable, each gets two connects a second at most, and
// the one that comes back is noticed soon nevertheless.
func TestRestraintWithoutAHost(t *testing.T) {
	t.Parallel()
	if !isolate(t, "nft") {
		return
	}
	s := open(t)
	run(t, "nft", "add table inet count")
	run(t, "nft", "add chain inet count input { type filter hook input priority 0; }")
	run(t, "nft", "add rule inet count input tcp flags & (syn|ack) == syn tcp dport", strconv.Itoa(s.a.Port), "counter")
	packets := regexp.MustCompile(`packets (\d+)`)
	connects := func() int {
		out, err := exec.Command("nft", "list", "table", "inet", "count").Output()
		m := packets.FindSubmatch(out)
		if err != nil || m == nil {
			t.Fatalf("nft: %v\n%s", err, out)
		}
		n, err := strconv.Atoi(string(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	s.b.Kill()
	s.a.Kill()
	s.WaitLog("no host is usable")
	quick, begin := connects(), time.Now()
	s.Until("more is checked in the first seconds", func() bool { return connects() >= quick+15 })
	t.Logf("%d connects in the first %v", connects()-quick, time.Since(begin))
	time.Sleep(time.Until(begin.Add(7 * time.Second))) // the first seconds are over then
	before, begin := connects(), time.Now()
	time.Sleep(6 * time.Second) // the period in which connects are counted
	n, took := connects()-before, time.Since(begin)
	t.Logf("%d connects in %v", n, took)
	if limit := int(2*took.Seconds()) + 2; n > limit {
		t.Errorf("%d connects to a host in %v without a primary, want %d at most", n, took, limit)
	}
	s.a.Restart()
	opened := time.Now()
	s.awaitGreeting("a")
	t.Logf("served %v after the port opened (rule: 500ms)", time.Since(opened))
	wantWithin(t, "the first client after the port opened", time.Since(opened), 3*time.Second)
	s.b.Restart()
	s.lookAgain("a")
	s.end()
}

// F09: a dependency of all check scripts is away for a while. When the scripts
// pass again, the wait is one of their intervals, not the rest of a back-off.
func TestScriptThatSaysYesAgainEndsTheOutage(t *testing.T) {
	t.Parallel()
	away := filepath.Join(t.TempDir(), "away")
	s := open(t, "--check-host", script(t, "! [ -e "+away+" ]\n"), "--check-interval", "500ms", "--hold", "1m")
	if err := os.WriteFile(away, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.WaitLog("no host is usable")
	time.Sleep(8 * time.Second) // within a back-off of 8s that began a second ago
	if err := os.Remove(away); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	s.Until("a host is elected", func() bool { return elections(s.Understudy) == 2 })
	t.Logf("elected %v after the script said yes again (rule: 500ms and a run)", time.Since(back))
	wantWithin(t, "the election after the script said yes again", time.Since(back), 4*time.Second)
	s.end()
}
