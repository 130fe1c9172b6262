package failover

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/relay"
)

// Times are virtual, and so is each sleep: the tests run in a bubble of
// testing/synctest; see conduct.

func TestReconfigure(t *testing.T) {
	dir := triggers(t, "10-dns")
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		conduct(t, s, Config{Hosts: []string{"a", "b"}}, func(c *Conductor) {
			time.Sleep(500 * time.Millisecond)
			if err := c.Lock(t.Context(), Lock{Kind: Drain, Host: "b"}); err != nil {
				t.Fatal(err)
			}
			next := *c.cfg()
			next.Hosts, next.Fence, next.Triggers.Path = []string{"c", "b", "a"}, relay.FencePolicy{Drain: time.Second}, dir
			next.Rise, next.Name = 7, "impostor"
			if err := c.Reconfigure(t.Context(), next); err != nil {
				t.Fatal(err)
			}
			now := c.Status()
			if now.Primary != "a" || now.Epoch != 1 || len(now.Hosts) != 3 || now.Lock(Drain, "b") == nil || !now.Hosts[1].Drained {
				t.Errorf("status = %+v, want a as primary of epoch 1, three hosts and b drained", now)
			}
			if rise, _ := c.Thresholds(); rise != 7 || c.Name() != "orders" {
				t.Errorf("rise %d, name %s, want the new rise and the old name", rise, c.Name())
			}

			// A lock is kept when its host is removed.
			for _, hosts := range [][]string{{"a"}, {"a", "b"}} {
				next.Hosts = hosts
				if err := c.Reconfigure(t.Context(), next); err != nil {
					t.Fatal(err)
				}
			}
			if now := c.Status(); !now.Hosts[1].Drained {
				t.Errorf("status = %+v, want b still drained", now)
			}

			// The primary is no longer a host; the fence and triggers are the
			// new ones.
			next.Hosts = []string{"c"}
			if err := c.Reconfigure(t.Context(), next); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			if now := c.Status(); now.Primary != "c" || now.Reason != "a is no host any more" {
				t.Errorf("primary %s because %q, want c", now.Primary, now.Reason)
			}
		})
		wantStory(t, s,
			"1ms fence <1 but a grace 0s",
			"1ms open 1 a",
			"500ms hold",
			"501ms fence <2 but c grace 1s",
			"501ms fenced",
			"501ms 10-dns c (UNDERSTUDY_EVENT=failover UNDERSTUDY_RELAY=orders UNDERSTUDY_EPOCH=2 UNDERSTUDY_OLD=a UNDERSTUDY_NEW=c UNDERSTUDY_REASON=a is no host any more)",
			"501ms open 2 c",
		)
	})
}

func TestReconfigureThatIsWrongChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		conduct(t, s, Config{Hosts: []string{"a", "b"}}, func(c *Conductor) {
			time.Sleep(500 * time.Millisecond)
			for _, tt := range []struct {
				change func(*Config)
				want   string
			}{
				{func(n *Config) { n.Hosts = nil }, "hosts: at least one is required"},
				{func(n *Config) { n.Fence = relay.FencePolicy{Keep: true, Drain: 1} }, "fence: keep and drain exclude each other"},
			} {
				next := *c.cfg()
				tt.change(&next)
				if err := c.Reconfigure(t.Context(), next); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %v, want %q", err, tt.want)
				}
				if err := c.Accepts(next); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("accepts: error %v, want %q", err, tt.want)
				}
			}
			time.Sleep(time.Second)
			if now := c.Status(); now.Primary != "a" || len(now.Hosts) != 2 {
				t.Errorf("status = %+v, want nothing changed", now)
			}
		})
	})
}

// An election is carried out with one set of settings.
func TestReconfigureWaitsForTheSwitch(t *testing.T) {
	dir := triggers(t, "10-dns")
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.pause["10-dns b"] = 3 * time.Second
		conduct(t, s, Config{Hosts: []string{"a", "b"}, Triggers: Triggers{Path: dir}}, func(c *Conductor) {
			time.Sleep(500 * time.Millisecond)
			go c.Switch(t.Context(), SwitchRequest{Host: "b", Drain: new(time.Duration(0))})
			time.Sleep(500 * time.Millisecond) // the trigger runs
			next := *c.cfg()
			next.Hosts = []string{"a", "b", "c"}
			short, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := c.Reconfigure(short, next); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v while a trigger runs, want to wait for it", err)
			}
			next.Hosts = []string{"b", "a"}
			if err := c.Reconfigure(t.Context(), next); err != nil {
				t.Fatal(err)
			}
			if now := c.Status(); now.Primary != "b" || len(now.Hosts) != 2 || now.Hosts[0].Name != "b" {
				t.Errorf("status = %+v, want b as primary and the last settings", now)
			}
		})
	})
}
