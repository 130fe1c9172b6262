//go:build linux

package e2e

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// F49: the program does not run for a while, as on a paused virtual machine:
// checks that were in flight time out, but no host has failed. Every failed
// check counts here, and a check takes more than half of its timeout.
func TestPauseOfTheProgramElectsNoHost(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	b := (&proctest.Host{Name: "b"}).Start(t)
	type paused struct {
		*proctest.Understudy
		pause  time.Duration
		record string
	}
	var all []paused
	for i := range runs(t, 2) {
		for _, pause := range []int{1500, 2500, 3500, 6000} {
			record := filepath.Join(t.TempDir(), fmt.Sprint("record", i))
			all = append(all, paused{
				start(t, "--bind", freeAddr(t), "--hosts", a.Addr()+","+b.Addr(), "--fall", "1", "--check-host",
					script(t, "sleep 1.6; echo >>"+record+"\n"), "--check-interval", "500ms", "--check-timeout", "3s"), // and more than a second for a busy machine
				time.Duration(pause) * time.Millisecond, record,
			})
		}
	}
	for _, u := range all {
		u.WaitLog("relay open")
	}
	var wg sync.WaitGroup
	for _, u := range all {
		wg.Go(func() {
			time.Sleep(time.Duration(rand.IntN(4000)) * time.Millisecond) // at any moment of a check
			u.Signal(syscall.SIGSTOP)
			time.Sleep(u.pause) // the pause under test
			u.Signal(syscall.SIGCONT)
		})
	}
	wg.Wait()
	failed := 0
	for _, u := range all {
		ran := len(lines(u.record))
		u.Until("checks have run", func() bool { return len(lines(u.record)) >= ran+4 })
		if n := elections(u.Understudy); n != 1 || strings.Contains(u.Log(), "primary lost") {
			failed++
			t.Errorf("%d elections after a pause of %v, want the start alone", n, u.pause)
		}
	}
	t.Logf("%d of %d pauses ended in an election", failed, len(all))
}
