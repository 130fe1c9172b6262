//go:build linux

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// F15: all hosts fail together, after a failover, and the stale one comes back
// first. The primary is the same as before, and no trigger has run for another.
func TestSamePrimaryAfterAllFailed(t *testing.T) {
	t.Parallel()
	if !isolate(t, "nft") {
		return
	}
	for _, fault := range []string{"silent", "refused", "script"} {
		for _, away := range []time.Duration{time.Second, 3 * time.Second, 8 * time.Second, 20 * time.Second} {
			if away > 3*time.Second && (fault != "script" || away > 8*time.Second) && os.Getenv("UNDERSTUDY_RUNS") == "" {
				continue // covered by 3s; the rules are also tested in virtual time
			}
			t.Run(fmt.Sprint(fault, " for ", away), func(t *testing.T) {
				t.Parallel()
				same, of := 0, runs(t, 1)
				for range of {
					if allFailTogether(t, fault, away) {
						same++
					}
				}
				t.Logf("the same primary %d of %d", same, of)
			})
		}
	}
}

// allFailTogether reports whether the primary was the same after all hosts had
// failed for a time, and fails the test if not.
func allFailTogether(t *testing.T, fault string, away time.Duration) bool {
	t.Helper()
	dir := t.TempDir()
	s := newShow(t)
	s.begin("--hold", "1m", "--check-interval", "300ms", "--check-host", script(t, "! [ -e "+dir+"/${1##*:} ]\n"))
	s.a.Kill()
	s.awaitGreeting("b")
	s.a.Restart()
	s.Until("the former primary is up again", func() bool {
		return countLog(s.Understudy, "host changed state", "host="+s.a.Addr(), "to=up") == 2
	})
	time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond) // at any moment between two checks

	cut := func(h *proctest.Host) (heal func()) {
		port := strconv.Itoa(h.Port)
		if fault == "script" {
			path := filepath.Join(dir, port)
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.Remove(path) }
		}
		what := map[string]string{"silent": "drop", "refused": "reject with tcp reset"}[fault]
		run(t, "nft", "add table inet cut"+port)
		run(t, "nft", "add chain inet cut"+port, "input { type filter hook input priority 0; }")
		run(t, "nft", "add rule inet cut"+port, "input tcp dport", port, what)
		return func() { run(t, "nft", "delete table inet cut"+port) }
	}
	lost := countLog(s.Understudy, "primary lost")
	healA, healB := cut(s.a), cut(s.b)
	time.Sleep(away) // the period under test
	healA()
	if away > time.Second { // else it may be that the primary alone is seen to fail
		time.Sleep(300 * time.Millisecond) // the stale one comes back first
	}
	healB()
	s.Until("a primary is there", func() bool {
		return countLog(s.Understudy, "relay open") == 2+countLog(s.Understudy, "primary lost")-lost
	})
	s.awaitGreeting("b")
	moved := 0
	for _, line := range lines(s.record) {
		if strings.HasPrefix(line, "failover") {
			moved++
		}
	}
	who, err := proctest.Greeting(s.addr, patience)
	if err != nil || who != "b" || moved != 1 {
		t.Errorf("%q, %v is primary after %d failovers, want b after one:\n%s", who, err, moved, strings.Join(lines(s.record), "\n"))
		return false
	}
	s.end()
	return true
}
