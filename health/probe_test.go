package health

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// runProber runs a Prober in the bubble of the test until that ends.
func runProber(t *testing.T, cfg ProberConfig) *Prober {
	t.Helper()
	p, err := NewProber(complete(cfg))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
	return p
}

// In a script each letter is a result: + passed, - refused, l local.
func TestProberThresholds(t *testing.T) {
	results := map[byte]Result{'+': passed, '-': refused, 'l': local}
	for _, tt := range []struct {
		name       string
		rise, fall int
		script     string
		want       ProbeCondition
		changes    int
		err        string // part of Err; empty for nil
	}{
		{"one pass is below rise", 2, 3, "+", ProbeUnknown, 0, "not known yet"},
		{"rise", 2, 3, "++", ProbeUp, 1, ""},
		{"a failure resets the passes", 2, 3, "+-+", ProbeUnknown, 0, "not known yet"},
		{"two failures are below fall", 2, 3, "++--", ProbeUp, 1, ""},
		{"a pass resets the failures", 2, 3, "++--+--", ProbeUp, 1, ""},
		{"fall", 2, 3, "++---", ProbeDown, 2, "down: connection refused"},
		{"never was up", 2, 3, "---", ProbeDown, 1, "down: connection refused"},
		{"not yet down", 2, 3, "--", ProbeUnknown, 0, "not known yet: connection refused"},
		{"one pass does not bring it back", 2, 3, "---+", ProbeDown, 1, "down: connection refused"},
		{"two passes do", 2, 3, "---++", ProbeUp, 2, ""},
		{"a local failure counts for nothing", 1, 1, "+llll", ProbeUp, 1, ""},
		{"and resets nothing", 2, 3, "++-l-l-", ProbeDown, 2, "down: connection refused"},
		{"nor brings it up", 1, 1, "-lll", ProbeDown, 1, "down: connection refused"},
		{"nothing but local failures", 1, 1, "lll", ProbeUnknown, 0, "not known yet"},
		{"thresholds of one", 1, 1, "+-+-", ProbeDown, 4, "down: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var at atomic.Int32
				var log bytes.Buffer
				p := runProber(t, ProberConfig{
					Interval: 3 * time.Second, Rise: tt.rise, Fall: tt.fall,
					Check: func(context.Context) Result {
						return results[tt.script[int(at.Add(1))-1]]
					},
					Logger: hclog.New(&hclog.LoggerOptions{Output: &log}),
				})
				time.Sleep(time.Duration(len(tt.script)-1)*3*time.Second + time.Second) // virtual
				synctest.Wait()
				got, err := p.State(), p.Err()
				if got.Condition != tt.want || got.Stale {
					t.Errorf("after %q: %+v, want %s", tt.script, got, tt.want)
				}
				if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
					t.Errorf("after %q: Err = %v, want %q", tt.script, err, tt.err)
				}
				if errors.Is(err, ErrUnknown) != (tt.want == ProbeUnknown) {
					t.Errorf("after %q: Err = %v, want ErrUnknown only while not known", tt.script, err)
				}
				if age := time.Since(got.LastAt); age != time.Second {
					t.Errorf("after %q: last result is %v old, want 1s", tt.script, age)
				}
				if n := strings.Count(log.String(), "probe changed state"); n != tt.changes {
					t.Errorf("after %q: %d changes logged, want %d:\n%s", tt.script, n, tt.changes, &log)
				}
				if tt.want == ProbeDown && !strings.Contains(log.String(), "connection refused") {
					t.Errorf("after %q: the log does not say why:\n%s", tt.script, &log)
				}
			})
		})
	}
}

func TestProberBeforeRun(t *testing.T) {
	p, err := NewProber(complete(ProberConfig{Check: func(context.Context) Result { return passed }}))
	if err != nil {
		t.Fatal(err)
	}
	if got := p.State(); got.Condition != ProbeUnknown || got.Stale {
		t.Errorf("State before Run = %+v, want unknown", got)
	}
	if err := p.Err(); !errors.Is(err, ErrUnknown) {
		t.Errorf("Err before Run = %v, want %v", err, ErrUnknown)
	}
}

// A check ends with its context, and runs at once and on the interval.
func TestProberSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var starts []time.Duration
		var running atomic.Int32
		runProber(t, ProberConfig{
			Interval: 3 * time.Second, Timeout: 5 * time.Second,
			Check: func(ctx context.Context) Result {
				if running.Add(1) != 1 {
					t.Error("a check overlaps itself")
				}
				defer running.Add(-1)
				starts = append(starts, time.Since(began))
				if len(starts) != 3 {
					time.Sleep(time.Second) // virtual
					return passed
				}
				<-ctx.Done()
				return NewResult(ctx, time.Now(), Read, ctx.Err())
			},
		})
		time.Sleep(16 * time.Second) // virtual
		synctest.Wait()
		want := []time.Duration{0, 3 * time.Second, 6 * time.Second, 11 * time.Second, 14 * time.Second}
		if len(starts) != len(want) {
			t.Fatalf("checks began at %v, want %v", starts, want)
		}
		for i := range want {
			if starts[i] != want[i] {
				t.Fatalf("checks began at %v, want %v", starts, want)
			}
		}
	})
}

func TestProberJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var starts []time.Time
		runProber(t, ProberConfig{
			Interval: time.Second, Jitter: 500 * time.Millisecond,
			Check: func(context.Context) Result { starts = append(starts, time.Now()); return passed },
		})
		time.Sleep(100 * time.Second) // virtual
		synctest.Wait()
		shortest, longest := time.Hour, time.Duration(0)
		for i := 1; i < len(starts); i++ {
			pause := starts[i].Sub(starts[i-1])
			shortest, longest = min(shortest, pause), max(longest, pause)
		}
		// All of 66 pauses in one half of the jitter: once in 2^65.
		if shortest < time.Second || shortest > 1250*time.Millisecond || longest < 1250*time.Millisecond || longest >= 1500*time.Millisecond {
			t.Errorf("pauses are from %v to %v, want them spread from 1s to 1.5s", shortest, longest)
		}
	})
}

// A check that is stuck is failed at its timeout, turns the verdict red by
// growing stale, is not joined by another, and recovers.
func TestProberStuckCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var calls atomic.Int32
		var log bytes.Buffer
		p := runProber(t, ProberConfig{
			Interval: time.Second, Timeout: time.Second, Rise: 2, Fall: 3,
			Check: func(context.Context) Result {
				if calls.Add(1) == 3 {
					<-release
				}
				return passed
			},
			Logger: hclog.New(&hclog.LoggerOptions{Output: &log}),
		})
		time.Sleep(3400 * time.Millisecond) // virtual; the third call began at 2s
		synctest.Wait()
		if got := p.State(); got.Condition != ProbeUp || got.Streak != 2 {
			t.Fatalf("before its timeout: %+v, want up with two passes", got)
		}
		time.Sleep(200 * time.Millisecond) // virtual
		synctest.Wait()
		if got := p.State(); got.Condition != ProbeUp || got.Streak != -1 || got.Last.OK || got.Stale {
			t.Fatalf("behind its timeout: %+v, want one failure", got)
		}
		// The last result came at 1s; three intervals and a timeout are 4s.
		time.Sleep(1300 * time.Millisecond) // virtual; 4.9s
		synctest.Wait()
		if got := p.State(); got.Condition != ProbeUp {
			t.Fatalf("at 4.9s: %+v, want up", got)
		}
		time.Sleep(200 * time.Millisecond) // virtual; 5.1s
		synctest.Wait()
		if got := p.State(); got.Condition != ProbeDown || !got.Stale || strings.Count(log.String(), " to=down") != 1 {
			t.Fatalf("at 5.1s: %+v, want it stale, and one record of that:\n%s", got, &log)
		}
		time.Sleep(8 * time.Second) // virtual; 13.1s
		synctest.Wait()
		if err := p.Err(); err == nil || err.Error() != "stale: no result for 12s" {
			t.Errorf("Err = %v, want stale: no result for 12s", err)
		}
		if calls.Load() != 3 {
			t.Errorf("%d checks were begun, want none beside the one that is stuck", calls.Load())
		}

		close(release)
		synctest.Wait() // the next one runs at once
		if got := p.State(); got.Condition != ProbeDown || got.Stale || got.Streak != 1 {
			t.Errorf("behind it: %+v, want down with one pass", got)
		}
		if err := p.Err(); err == nil {
			t.Error("behind it: Err = nil, want down until rise is reached")
		}
		time.Sleep(1100 * time.Millisecond) // virtual
		synctest.Wait()
		if got := p.State(); got.Condition != ProbeUp || p.Err() != nil {
			t.Errorf("two passes behind it: %+v, %v, want up", got, p.Err())
		}
		if n := strings.Count(log.String(), "probe is stale"); n != 1 {
			t.Errorf("%d records of a stale probe, want 1:\n%s", n, &log)
		}
	})
}

// Every call goes on behind its end: that is stale once, and not once a call.
func TestProberStaleIsReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		t.Cleanup(func() { time.Sleep(3 * time.Second) }) // virtual; the last call is left behind
		p := runProber(t, ProberConfig{
			Interval: time.Second, Timeout: time.Second, Fall: 1000,
			Check:  func(context.Context) Result { time.Sleep(2 * time.Second); return passed }, // virtual
			Logger: hclog.New(&hclog.LoggerOptions{Output: &log}),
		})
		time.Sleep(time.Minute) // virtual
		synctest.Wait()
		if got := p.State(); !got.Stale || got.Condition != ProbeDown {
			t.Errorf("State = %+v, want it stale", got)
		}
		if n := strings.Count(log.String(), "probe is stale"); n != 1 {
			t.Errorf("%d records of a stale probe, want 1:\n%s", n, &log)
		}
	})
}

// Each silence is logged, and each end of one.
func TestProberTellsEachSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		var hangs atomic.Bool
		t.Cleanup(func() { time.Sleep(time.Hour) }) // virtual; the last call is left behind
		p := runProber(t, ProberConfig{
			Rise: 1, Fall: 1000,
			Check: func(context.Context) Result {
				for hangs.Load() {
					time.Sleep(time.Second) // virtual
				}
				return passed
			},
			Logger: hclog.New(&hclog.LoggerOptions{Output: &log}),
		})
		for round := 1; round <= 2; round++ {
			hangs.Store(false)
			time.Sleep(time.Minute) // virtual
			hangs.Store(true)
			time.Sleep(time.Minute) // virtual
			synctest.Wait()
			if n := strings.Count(log.String(), "probe is stale"); n != round || strings.Count(log.String(), " to=up") != round || !p.State().Stale {
				t.Errorf("%d records of %d silences, want as many, and as many of their ends:\n%s", n, round, &log)
			}
		}
		hangs.Store(false)
	})
}

// A program that was stopped does not blame its probes for that.
func TestProberAfterAStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := runProber(t, ProberConfig{Rise: 2, Check: func(context.Context) Result {
			time.Sleep(10 * time.Millisecond) // virtual
			return passed
		}})
		time.Sleep(1500 * time.Millisecond) // virtual
		synctest.Wait()
		p.mu.Lock()
		p.lastResult = p.lastResult.Add(-time.Minute)
		p.mu.Unlock()
		if got := p.State(); !got.Stale || got.Condition != ProbeDown {
			t.Errorf("a minute without a result: %+v, want it stale", got)
		}
		time.Sleep(time.Second) // virtual
		synctest.Wait()
		if got := p.State(); got.Stale || got.Condition != ProbeUp {
			t.Errorf("behind the next result: %+v, want it up as before", got)
		}
	})
}

// Run ends with its context, whatever the check does with it.
func TestProberEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var obeys, began atomic.Bool
		check := func(ctx context.Context) Result {
			began.Store(true)
			if obeys.Load() {
				<-ctx.Done()
				return NewResult(ctx, time.Now(), Read, ctx.Err())
			}
			<-release
			return passed
		}
		for _, want := range []time.Duration{0, lateness} {
			obeys.Store(want == 0)
			p, err := NewProber(complete(ProberConfig{Name: "a", Check: check, Fall: 1, Timeout: time.Minute}))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- p.Run(ctx) }()
			synctest.Wait()
			at := time.Now()
			cancel()
			if err := <-done; err != nil || time.Since(at) != want {
				t.Errorf("Run = %v after %v, want nil after %v", err, time.Since(at), want)
			}
			if got := p.State(); got.Condition != ProbeUnknown {
				t.Errorf("State = %+v, want the end to say nothing about the probe", got)
			}
		}
		close(release)
	})
}

func TestNewProberNamesEveryMistake(t *testing.T) {
	_, err := NewProber(ProberConfig{Interval: -1, Timeout: -1, Jitter: -1, Rise: -1, Fall: -1})
	if err == nil {
		t.Fatal("NewProber = nil, want an error")
	}
	for _, want := range []string{"name: ", "check: ", "interval: -1ns", "timeout: -1ns", "jitter: -1ns", "rise: -1", "fall: -1"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("NewProber = %v\nwant it to name %s", err, want)
		}
	}
	_, err = NewProber(ProberConfig{Name: "a", Check: func(context.Context) Result { return passed }})
	if err == nil {
		t.Fatal("NewProber without a setting = nil, want an error")
	}
	for _, want := range []string{"interval: 0s", "timeout: 0s", "rise: 0", "fall: 0"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("NewProber = %v\nwant it to name %s", err, want)
		}
	}
}

// What was found counts on when only the schedule or the thresholds change.
func TestProberFollowsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ill atomic.Bool
		cfg := ProberConfig{Rise: 2, Fall: 2, Check: func(context.Context) Result {
			if ill.Load() {
				return refused
			}
			return passed
		}}
		first := runProber(t, cfg)
		time.Sleep(90 * time.Second) // virtual
		cfg.Before, cfg.Rise, cfg.Interval = first, 5, time.Minute
		second := runProber(t, cfg)
		if err := second.Err(); err != nil {
			t.Errorf("at first: %v, want it up as before", err)
		}
		since := first.State().Since
		synctest.Wait()
		if got := second.State(); got.Condition != ProbeUp || !got.Since.Equal(since) || got.Streak <= 5 {
			t.Errorf("state %+v, want it up since %v", got, since)
		}
		ill.Store(true)
		time.Sleep(3 * time.Minute) // virtual
		cfg.Before = second
		if third := runProber(t, cfg); third.Err() == nil || third.Err().Error() != second.Err().Error() {
			t.Errorf("third: %v, want what the second says: %v", third.Err(), second.Err())
		}
	})
}
