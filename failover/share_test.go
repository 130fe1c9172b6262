package failover

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy/health"
)

// fleet runs the conductors of many relays with one Checker.
type fleet struct {
	checker *health.Checker
	base    time.Time

	mu     sync.Mutex                 // guards starts and hangs
	starts map[string][]time.Duration // by check and host: when it was run, since base
	hangs  map[string]bool            // by host
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{checker: health.NewChecker(), base: time.Now(), starts: map[string][]time.Duration{}, hangs: map[string]bool{}}
	t.Cleanup(f.checker.Close)
	return f
}

// check returns a check that takes 1ms, or hangs.
func (f *fleet) check(spec string) Check {
	return Check{Name: "tcp", Spec: spec, Run: func(ctx context.Context, host string) health.Result {
		began := time.Now()
		f.mu.Lock()
		f.starts[spec+host] = append(f.starts[spec+host], began.Sub(f.base))
		hangs := f.hangs[host]
		f.mu.Unlock()
		if hangs {
			<-ctx.Done()
			return health.NewResult(ctx, began, health.Connect, ctx.Err())
		}
		time.Sleep(time.Millisecond)
		return health.Result{OK: true, Latency: time.Millisecond}
	}}
}

// conduct runs a relay until the function that it returns is called.
func (f *fleet) conduct(t *testing.T, spec string, hosts ...string) (c *Conductor, stop func()) {
	t.Helper()
	c, err := New(complete(Config{
		Name: hosts[0], Hosts: hosts, Gate: newStage(), Checks: []Check{f.check(spec)}, Checker: f.checker, Base: f.base,
	}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
	t.Cleanup(stop)
	return c, stop
}

// since returns when a check was run from a moment on.
func (f *fleet) since(from time.Duration, check string) (at []time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.starts[check] {
		if s >= from {
			at = append(at, s)
		}
	}
	return at
}

// Two relays with the same host and the same check have it run once a second, and with
// another check, twice. A relay that ends leaves the checks of the others as they are,
// also the run that it has begun.
func TestRelaysShareEqualChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		_, stop := f.conduct(t, "", "shared", "a")
		time.Sleep(333 * time.Millisecond)
		second, _ := f.conduct(t, "", "shared", "b")
		time.Sleep(333 * time.Millisecond)
		f.conduct(t, "another check", "shared", "c")
		time.Sleep(3 * time.Second)
		wantRuns := func(from time.Duration, check string, want int) {
			t.Helper()
			if got := f.since(from, check); len(got) != want {
				t.Errorf("%q was run at %v, want %d times", check, got, want)
			}
		}
		begin := time.Since(f.base)
		time.Sleep(10 * time.Second)
		wantRuns(begin, "shared", 10)
		wantRuns(begin, "another checkshared", 10)
		wantRuns(begin, "a", 10)
		last := second.Snapshot().Hosts[0].Checks[0].Last
		if !last.OK || time.Since(last.At) > time.Second {
			t.Errorf("the last result for the second relay is %+v", last)
		}

		// The first relay ends while a run of the shared check is in progress.
		f.mu.Lock()
		next := f.starts["shared"][len(f.starts["shared"])-1] + time.Second
		f.mu.Unlock()
		time.Sleep(next - time.Since(f.base) + 500*time.Microsecond)
		stop()
		time.Sleep(time.Millisecond)
		if at := second.Snapshot().Hosts[0].Checks[0].Last.At; time.Since(at) > time.Millisecond {
			t.Errorf("the second relay got no result of the run that the first one began: its last one is %v old", time.Since(at))
		}
		begin = time.Since(f.base)
		f.conduct(t, "", "new", "another")
		time.Sleep(10 * time.Second)
		wantRuns(begin, "shared", 10)
		wantRuns(begin, "b", 10)
		wantRuns(begin, "a", 0)
	})
}

// The checks of many relays are spread, and a host that hangs delays no other.
func TestManyRelays(t *testing.T) {
	const relays = 100 // the race detector does not bear many more in virtual time (golang.org/issue/78156)
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		for i := range relays {
			f.conduct(t, "", fmt.Sprintf("a%d", i), fmt.Sprintf("b%d", i))
		}
		time.Sleep(5*time.Second + 5*time.Millisecond) // so that no check is due at the end
		begin := time.Since(f.base)
		time.Sleep(5 * time.Second)
		const part = 200 * time.Millisecond
		parts := map[int]int{}
		all := 0
		for i := range relays {
			for _, host := range []string{"a", "b"} {
				for _, at := range f.since(begin, fmt.Sprint(host, i)) {
					parts[int(at/part)]++
					all++
				}
			}
		}
		if all != 5*2*relays {
			t.Errorf("%d checks in 5s, want %d", all, 5*2*relays)
		}
		for at, n := range parts {
			if n > 2*all/25 {
				t.Errorf("%d checks in the %v from %v on, want about %d", n, part, time.Duration(at)*part, all/25)
			}
		}

		f.mu.Lock()
		for i := range relays / 2 {
			f.hangs[fmt.Sprint("b", i)] = true
		}
		f.mu.Unlock()
		time.Sleep(5 * time.Second)
		begin = time.Since(f.base)
		time.Sleep(5 * time.Second)
		for i := range relays {
			if got := f.since(begin, fmt.Sprint("a", i)); len(got) != 5 || got[4]-got[0] != 4*time.Second {
				t.Fatalf("a%d was checked at %v while %d others hang, want each second", i, got, relays/2)
			}
		}
	})
}
