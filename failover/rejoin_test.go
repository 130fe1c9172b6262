package failover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/health"
	"understudy/internal/role"
	"understudy/selector"
)

// The script runs for a host that came back and fails one check, once at a time
// and with growing pauses, until the host is usable.
func TestRejoin(t *testing.T) {
	script := triggers(t, "rejoin")
	synctest.Test(t, func(t *testing.T) {
		s, l := newStage(), &listener{takes: 20 * time.Second}
		role := func(_ context.Context, host string) health.Result {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.fails["role "+host] {
				return health.Result{Phase: health.Criteria, Err: errors.New("timeline 1 has ended")}
			}
			return health.Result{OK: true}
		}
		runs := func() int {
			l.mu.Lock()
			defer l.mu.Unlock()
			return len(l.heard)
		}
		cfg := Config{
			Hosts: []string{"a", "b", "c"}, Checks: []Check{{Name: "tcp", Run: s.connect}, {Name: "role", Run: role}},
			Rejoin: Rejoin{Path: script, Timeout: time.Minute}, NoticeScripts: l,
		}
		conduct(t, s, cfg, func(c *Conductor) {
			time.Sleep(10 * time.Second)
			s.set(func() { s.refusing["b"] = true })
			time.Sleep(10 * time.Minute)
			if n := runs(); n != 0 {
				t.Errorf("%d runs at a host that accepts no connections", n)
			}
			s.set(func() { s.refusing["b"], s.fails["role b"], s.fails["role c"] = false, true, true })
			time.Sleep(time.Minute)
			if n := runs(); n < 2 || n > 3 {
				t.Errorf("%d runs in a minute at two hosts, want 2 or 3", n)
			}
			time.Sleep(2 * time.Hour)
			most := runs()
			if most < 16 || most > 40 {
				t.Errorf("%d runs in two hours, want one each 10 min and host", most)
			}
			if err := c.Lock(t.Context(), Lock{Kind: Freeze}); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Minute)
			most = runs()
			time.Sleep(time.Hour)
			if n := runs(); n != most {
				t.Errorf("%d runs while the relay is frozen", n-most)
			}
			s.set(func() { s.fails["role b"], s.fails["role c"] = false, false })
			time.Sleep(10 * time.Second)
			if err := c.Unlock(t.Context(), Lock{Kind: Freeze}); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Hour)
			if n := runs(); n != most {
				t.Errorf("%d runs at hosts that are usable", n-most)
			}
			s.set(func() { s.fails["role b"] = true })
			time.Sleep(15 * time.Second)
			if n := runs(); n != most+1 {
				t.Errorf("%d runs soon after it was usable and is not again, want 1", n-most)
			}
		})
		if l.most != 1 {
			t.Errorf("%d scripts ran at one time", l.most)
		}
		for _, host := range []string{"b", "c"} {
			if want := fmt.Sprintf("rejoin rejoin epoch=1 [%s]: role: timeline 1 has ended", host); !strings.Contains(strings.Join(l.heard, "\n"), want) {
				t.Errorf("no %q in %q", want, l.heard)
			}
		}
	})
}

// With a role check the script runs for a host that says primary, or is read-only and
// follows nobody; not for one that is a replica, belongs to another
// cluster, or says nothing.
func TestRejoinByRole(t *testing.T) {
	script := triggers(t, "rejoin")
	behind, detached, foreign := fact(role.Replica, 2, 10), fact(role.Replica, 1, 5000), fact(role.Primary, 2, 5000)
	detached.Detached, foreign.Identity = true, "theirs"
	for name, tt := range map[string]struct {
		says role.Fact
		want bool
	}{
		"an old primary":                   {fact(role.Primary, 1, 5000), true},
		"an old primary that is read-only": {detached, true},
		"a primary of another cluster":     {foreign, false},
		"a replica that lags":              {behind, false},
		"a replica":                        {fact(role.Replica, 2, 5000), false},
		"a host that starts":               {role.Fact{Role: role.Starting}, false},
		"a refused login":                  {role.Fact{}, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, l := newStage(), &listener{}
			cfg := s.roles(cast{"db1:1": fact(role.Primary, 2, 5000), "db2:1": tt.says}, selector.RoleRules{Promote: true, MaxLagBytes: 100})
			cfg.Rejoin, cfg.NoticeScripts = Rejoin{Path: script, Timeout: time.Minute}, l
			conduct(t, s, cfg, func(*Conductor) { time.Sleep(time.Minute) })
			if got := strings.Contains(strings.Join(l.heard, "\n"), "rejoin rejoin"); got != tt.want {
				t.Errorf("%s: the script has run: %v, want %v", name, got, tt.want)
			}
			if tt.want && !slices.Contains(l.env, "UNDERSTUDY_ROLE=primary") {
				t.Errorf("%s: the script has no facts of the primary: %q", name, l.env)
			}
		})
	}
}
