package health

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/proctest"
)

// newChecker returns a Checker that is closed at the end of the test.
func newChecker(tb testing.TB) *Checker {
	tb.Helper()
	proctest.NoLeaks(tb)
	c := NewChecker()
	tb.Cleanup(c.Close)
	return c
}

// plainQuery returns a query for a check of a host that only connects.
func plainQuery(tb testing.TB, host string) Query {
	tb.Helper()
	check, err := NewTCPCheck(TCPConfig{})
	if err != nil {
		tb.Fatal(err)
	}
	return Query{Check: check.Check, Connect: check, Key: "tcp", Host: host, Timeout: checkLimit}
}

// Callers that are due at the same time share a run, also when it has ended by the
// time they come. Whoever needs a later one gets another run, and so does one who has
// got the result already.
func TestEqualChecksRunOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewChecker()
		defer c.Close()
		var mu sync.Mutex // guards runs and results
		runs, results := map[string]int{}, 0
		query := func(key, host string, by int, since time.Time) Query {
			return Query{
				Key: key, Host: host, By: by, Since: since, Timeout: time.Second,
				Check: func(_ context.Context, host string) Result {
					mu.Lock()
					runs[key+" "+host]++
					mu.Unlock()
					time.Sleep(3 * time.Millisecond)
					return Result{OK: true}
				},
			}
		}
		start := func(q Query) {
			c.Start(q, func(Result) {
				mu.Lock()
				defer mu.Unlock()
				results++
			})
		}
		due := time.Now()
		for by := range 5 {
			start(query("http", "a", by, due))
			start(query("http", "b", by, due))
			time.Sleep(time.Millisecond) // the last two come when the run has ended
		}
		start(query("http, another path", "a", 0, due))
		start(query("http", "a", 0, due))                       // has it already
		start(query("http", "b", 5, due.Add(time.Millisecond))) // needs a later one
		start(query("", "a", 6, due))                           // is for one caller only
		start(query("", "a", 7, due))
		time.Sleep(time.Second)
		synctest.Wait()
		if results != 15 {
			t.Errorf("%d results of 15 queries", results)
		}
		want := map[string]int{"http a": 2, "http b": 2, "http, another path a": 1, " a": 2}
		for what, n := range want {
			if runs[what] != n {
				t.Errorf("%q was run %d times, want %d", what, runs[what], n)
			}
		}
		c.Start(query("last", "c", 0, due), func(Result) {})
		time.Sleep(time.Second)
		synctest.Wait()
		c.forget(time.Now())
		if len(c.kinds) != 0 || len(c.kept) != 0 || c.busy != 0 {
			t.Errorf("%d kinds, %d results and %d runs are kept for ever", len(c.kinds), len(c.kept), c.busy)
		}
	})
}

// From many checks in progress on, a host that has one gets no second one; others do.
func TestCrowdedChecker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewChecker()
		defer c.Close()
		hang := func(ctx context.Context, _ string) Result {
			<-ctx.Done()
			return NewResult(ctx, time.Now(), Connect, ctx.Err())
		}
		var unknown, failed, passed atomic.Int64
		done := func(r Result) {
			switch {
			case errors.Is(r.Err, errCrowded) && r.Unknown:
				unknown.Add(1)
			case !r.OK && !r.Unknown:
				failed.Add(1)
			case r.OK:
				passed.Add(1)
			}
		}
		for i := range 3 {
			for host := range 800 {
				c.Start(Query{Key: "k", Host: strconv.Itoa(host), By: i, Since: time.Now().Add(1), Check: hang, Timeout: time.Second}, done)
			}
			time.Sleep(time.Millisecond)
		}
		if n := unknown.Load(); n != 3*800-checksAtOnce {
			t.Errorf("%d checks were not run, want %d", n, 3*800-checksAtOnce)
		}
		ok := func(context.Context, string) Result { return Result{OK: true} }
		c.Start(Query{Key: "k", Host: "another", Check: ok, Timeout: time.Second}, done)
		synctest.Wait()
		if passed.Load() != 1 {
			t.Error("a host without a check in progress is not checked")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := failed.Load(); n != checksAtOnce {
			t.Errorf("%d checks failed at their timeout, want %d", n, checksAtOnce)
		}
	})
}

// A result of Start is that of the check itself.
func TestCheckerConnects(t *testing.T) {
	c := newChecker(t)
	open, refused := listenHost(t, "tcp", "127.0.0.1:0", serveNothing), refusedHost(t)
	for _, q := range []Query{
		plainQuery(t, open),
		plainQuery(t, refused),
		plainQuery(t, "no host"),
		plainQuery(t, "localhost:"+strconv.Itoa(portOf(t, open))),
	} {
		want := q.Check(checkContext(t, checkLimit), q.Host)
		got := c.Run(t.Context(), q)
		if got.OK != want.OK || got.Unknown != want.Unknown || got.Phase != want.Phase || text(got.Err) != text(want.Err) {
			t.Errorf("check of %s = %+v, want %+v", q.Host, got, want)
		}
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
