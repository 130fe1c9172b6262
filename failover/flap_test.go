package failover

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A standby that flaps gets one line a minute; occasional changes get a line
// each.
func TestFlappingHostIsSummedUp(t *testing.T) {
	now := time.Now()
	var f flaps
	lines, summed := 0, 0
	for range 13_000 { // in a day
		if f.note(now) {
			lines++
		}
		if hidden := f.sumUp(now); hidden > 0 {
			lines++
			summed += hidden
		}
		now = now.Add(24 * time.Hour / 13_000)
	}
	if lines > 24*60+flapAfter {
		t.Errorf("%d lines in a day, want one a minute", lines)
	}
	if missed := 13_000 - summed - flapAfter; missed < 0 || missed > 20 {
		t.Errorf("%d changes are in no sum, want those of the last minute alone", missed)
	}
	for range 100 {
		now = now.Add(time.Hour)
		f.sumUp(now)
		if !f.note(now) {
			t.Fatal("a change an hour is not logged")
		}
	}
}

// A standby that flaps for an hour costs a line a minute, of every kind. The sum
// of the last minute is logged when the minute ends, although the host does not
// change any more, and a minute later it is a standby again.
func TestFlappingStandbyInTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		log := conduct(t, s, Config{Hosts: []string{"a", "b"}}, func(*Conductor) {
			for range 600 {
				time.Sleep(3 * time.Second)
				s.set(func() { s.refusing["b"] = true })
				time.Sleep(3 * time.Second)
				s.set(func() { s.refusing["b"] = false })
			}
			time.Sleep(3 * flapEvery)
		})
		lines, summed := 0, 0
		for line := range strings.Lines(log) {
			if strings.HasPrefix(line, "[INFO]") || strings.HasPrefix(line, "[WARN]") {
				lines++
			}
			if m := regexp.MustCompile(`host changes state often: relay=orders host=b changes=(\d+) `).FindStringSubmatch(line); m != nil {
				n, err := strconv.Atoi(m[1])
				if err != nil {
					t.Fatal(err)
				}
				summed += n
			}
		}
		logged := strings.Count(log, "host changed state: relay=orders host=b from=")
		if summed+logged != 1201 { // one of them at the start
			t.Errorf("%d changes are logged and %d summed up, want 1201", logged, summed)
		}
		if lines > 60+40 {
			t.Errorf("%d lines in an hour, want one a minute:\n%s", lines, log)
		}
		if n := strings.Count(log, "a standby is usable again"); n > 4 || strings.Count(log, "serving, without a standby") != n {
			t.Errorf("the standby is reported back %d times:\n%s", n, log)
		}
	})
}

// The sum of the last minute is logged when the minute ends, although checks have
// become so rare that none ends then.
func TestFlappingIsSummedUpBetweenChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		var rare time.Time
		log := conduct(t, s, Config{Hosts: []string{"a", "b"}}, func(c *Conductor) {
			for range 4 {
				time.Sleep(3 * time.Second)
				s.set(func() { s.refusing["b"] = true })
				time.Sleep(3 * time.Second)
				s.set(func() { s.refusing["b"] = false })
			}
			time.Sleep(3 * time.Second)
			s.set(func() { s.refusing["b"] = true })
			time.Sleep(3 * time.Second)
			next := *c.cfg()
			next.Checks = slices.Clone(next.Checks)
			for i := range next.Checks {
				next.Checks[i].Interval = 24 * time.Hour
			}
			next.FastInterval = 24 * time.Hour
			if err := c.Reconfigure(t.Context(), next); err != nil {
				t.Fatal(err)
			}
			rare = time.Now()
			time.Sleep(5 * time.Second) // checks that were due
			before := s.checks()
			time.Sleep(flapEvery)
			if n := s.checks() - before; n > 0 {
				t.Errorf("%d checks in the minute, want none", n)
			}
		})
		logged := strings.Count(log, "host changed state: relay=orders host=b from=")
		if want := fmt.Sprintf("host changes state often: relay=orders host=b changes=%d now=down", 10-logged); !strings.Contains(log, want) {
			t.Errorf("%v after the checks became rare there is no %q in:\n%s", time.Since(rare), want, log)
		}
	})
}
