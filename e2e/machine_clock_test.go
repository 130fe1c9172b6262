//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"regexp"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// F48: the wall clock is set forward and back while operators query, drill and
// lock. No host is elected, no lock ends early, no duration is negative. The
// test sets the clock of the whole machine and sets it right again, so it runs
// only on request, and then alone.
func TestClockJumps(t *testing.T) {
	if os.Getenv("UNDERSTUDY_CLOCK") == "" {
		t.Skip("SKIPPED: it sets the clock of the whole machine; UNDERSTUDY_CLOCK=1 go test ./e2e -run ClockJumps")
	}
	begin := time.Now()
	wall := begin.Round(0) // without the monotonic reading
	set := func(offset time.Duration) {
		t.Helper()
		tv := unix.NsecToTimeval(wall.Add(time.Since(begin) + offset).UnixNano())
		if err := unix.Settimeofday(&tv); err != nil {
			t.Skipf("SKIPPED: the clock cannot be set here: %v", err)
		}
	}
	defer set(0)

	o := operate(t)
	load := o.load()
	o.want(0, append(words("drain --for 30m --reason clock"), o.b.Addr()))
	for _, jump := range []time.Duration{time.Hour, -time.Hour, 10 * 365 * 24 * time.Hour, 0} {
		set(jump)
		served := load.Served()
		o.Until("clients are served", func() bool { return load.Served() > served+200 })
		o.want(0, words("status"))
		o.want(0, words("why"))
		o.want(1, words("drill"), `no host would take over`) // b is drained
		if now := o.now(); len(now.Hosts) != 2 || now.Hosts[1].Drained == nil {
			t.Errorf("%v: the lock of half an hour has ended", jump)
		} else if left := now.Hosts[1].Drained.Until.Sub(wall.Add(time.Since(begin) + jump)); left > 31*time.Minute || left < 20*time.Minute {
			t.Errorf("%v: the status says that the lock of half an hour ends in %v", jump, left)
		}
		// A recent check is recent by this clock, too.
		if last := o.now().Hosts[0].Checks[0].Last; last.Seconds < 0 || time.Since(begin) < 0 {
			t.Errorf("%v: the last check took %v s", jump, last.Seconds)
		}
	}
	o.wantPrimary(o.a, 1)
	o.want(0, append(words("ready"), o.b.Addr()))
	set(-time.Hour)
	o.want(0, append(words("switch"), o.b.Addr()))
	set(0)
	o.wantPrimary(o.b, 2)

	list, err := o.client.Events(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	negative := regexp.MustCompile(`seconds":-|[=" ]-[0-9.]+(ms|µs|s|h)\b`)
	if bad := negative.FindString(string(text)); bad != "" {
		t.Errorf("the record has something negative: %s in %s", bad, text)
	}
	if bad := negative.FindString(o.Log()); bad != "" {
		t.Errorf("the log has something negative: %q", bad)
	}
	report := finish(o.Understudy, load)
	t.Log(report)
	wantNoneLost(t, report)
	o.end()
}
