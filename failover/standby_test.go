package failover

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/health"
)

// A relay without a host that could follow its primary logs that once, and logs
// when that has ended.
func TestWithoutStandby(t *testing.T) {
	t.Parallel()
	const warning, over = "[WARN]  failover: serving, without a standby: relay=orders ", "[INFO]  failover: a standby is usable again: relay=orders "
	for _, tt := range []struct {
		name  string
		hosts string
		play  func(ctx context.Context, s *stage, c *Conductor)
		since time.Duration // of Status.NoStandby, since the start; zero for none
		want  string        // in the warning; empty for none
		over  bool
	}{
		{"a pair", "a b", func(context.Context, *stage, *Conductor) { time.Sleep(time.Minute) }, 0, "", false},
		{"one host by choice", "a", func(context.Context, *stage, *Conductor) { time.Sleep(time.Minute) }, 0, "", false},
		{"a standby that never passes", "a b", func(_ context.Context, s *stage, _ *Conductor) {
			s.set(func() { s.refusing["b"] = true })
			time.Sleep(time.Minute)
		}, time.Second, `host=a epoch=1 reason="b: tcp: connection refused"`, false},
		{"after a failover", "a b", func(_ context.Context, s *stage, _ *Conductor) {
			time.Sleep(10 * time.Second)
			s.set(func() { s.refusing["a"] = true })
			time.Sleep(time.Minute)
		}, 10 * time.Second, `host=b epoch=2 reason="a: tcp: connection refused"`, false},
		{"and the old primary is back", "a b", func(_ context.Context, s *stage, _ *Conductor) {
			time.Sleep(10 * time.Second)
			s.set(func() { s.refusing["a"] = true })
			time.Sleep(time.Minute)
			s.set(func() { s.refusing["a"] = false })
			time.Sleep(time.Minute)
		}, 0, `host=b epoch=2`, true},
		{"one of three is enough", "a b c", func(_ context.Context, s *stage, _ *Conductor) {
			s.set(func() { s.refusing["b"] = true })
			time.Sleep(time.Minute)
		}, 0, "", false},
		{"a drained one is none", "a b", func(ctx context.Context, _ *stage, c *Conductor) {
			time.Sleep(10 * time.Second)
			if err := c.Lock(ctx, Lock{Kind: Drain, Host: "b"}); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Minute)
		}, 10 * time.Second, `host=a epoch=1 reason="b: drained"`, false},
		{"a standby that never answers", "a b", func(_ context.Context, s *stage, _ *Conductor) {
			s.set(func() { s.hung["b"] = true })
			time.Sleep(time.Minute)
		}, 3 * time.Second, `host=a epoch=1 reason="b: tcp: `, false},
		{"it comes and goes while nothing is primary", "a b", func(_ context.Context, s *stage, _ *Conductor) {
			s.set(func() { s.refusing["b"] = true })
			time.Sleep(20 * time.Second)
			s.set(func() { s.refusing["a"] = true })
			time.Sleep(20 * time.Second)
			s.set(func() { s.refusing["a"] = false })
			time.Sleep(20 * time.Second)
		}, time.Second, `host=a epoch=1`, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage()
				begin := time.Now()
				log := conduct(t, s, Config{Hosts: strings.Fields(tt.hosts)}, func(c *Conductor) {
					tt.play(t.Context(), s, c)
					since := c.Status().NoStandby
					if since.IsZero() != (tt.since == 0) || c.WithoutStandby() == since.IsZero() {
						t.Errorf("NoStandby = %v, want since %v", since, tt.since)
					}
					if got := since.Sub(begin); tt.since != 0 && (got < tt.since-time.Second || got > tt.since+3*time.Second) {
						t.Errorf("NoStandby since %v, want about %v", got, tt.since)
					}
					if why := c.Status().Why(time.Now()); strings.Contains(why, "no other host could take over") != (tt.since != 0) {
						t.Errorf("why: %s", why)
					}
				})
				count := 0
				if tt.want != "" {
					count = 1
				}
				if n := strings.Count(log, warning); n != count || !strings.Contains(log, warning+tt.want) && count > 0 {
					t.Errorf("%d warnings, want %d with %q:\n%s", n, count, tt.want, log)
				}
				if n := strings.Count(log, over); n > 1 || (n == 1) != tt.over {
					t.Errorf("that it is over was logged %d times", n)
				}
			})
		})
	}
}

// When the check of a host cannot determine its state, the last result is kept
// for a while; after that the host is not a standby.
func TestWithoutStandbyWhileUnknown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		conduct(t, s, Config{Hosts: []string{"a", "b"}, Checks: []Check{
			{Name: "tcp", Run: s.connect}, {Name: "role", Run: unknownFor(s, "b"), Interval: time.Second},
		}}, func(c *Conductor) {
			time.Sleep(5 * time.Second)
			if c.WithoutStandby() {
				t.Error("without a standby, although one passes")
			}
			s.set(func() { s.fails["role"] = true })
			time.Sleep(standbyTimeout / 2)
			if c.WithoutStandby() {
				t.Error("without a standby at once")
			}
			time.Sleep(standbyTimeout)
			if !c.WithoutStandby() {
				t.Error("a host that could not be checked for long counts as a standby")
			}
			s.set(func() { s.fails["role"] = false })
			time.Sleep(3 * time.Second)
			if c.WithoutStandby() {
				t.Error("without a standby, although one passes again")
			}
		})
	})
}

// unknownFor is a check that cannot determine the state of a host while the
// stage has "role" fail.
func unknownFor(s *stage, host string) health.Check {
	return func(_ context.Context, h string) health.Result {
		s.mu.Lock()
		defer s.mu.Unlock()
		if h == host && s.fails["role"] {
			return health.Result{Unknown: true, Phase: health.Script, Err: errors.New("too many clients")}
		}
		return health.Result{OK: true}
	}
}
