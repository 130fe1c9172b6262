package failover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"understudy/health"
	"understudy/internal/proctest"
	"understudy/relay"
	"understudy/selector"
)

// Times are virtual, and so is each sleep: the tests run in a bubble of
// testing/synctest; see conduct.

// refused returns the reason of a RefusedError.
func refused(t *testing.T, err error) string {
	t.Helper()
	var r RefusedError
	if !errors.As(err, &r) {
		t.Fatalf("error %v, want a RefusedError", err)
	}
	return r.Reason
}

func TestSwitchover(t *testing.T) {
	dir := triggers(t, "10-dns")
	for _, tt := range []struct {
		name  string
		fence relay.FencePolicy
		drain *time.Duration
		grace string
	}{
		{"the policy is to reset at once, so requests under way may finish", relay.FencePolicy{}, nil, "250ms"},
		{"asked to reset at once", relay.FencePolicy{Drain: time.Minute}, new(time.Duration(0)), "0s"},
		{"asked to drain", relay.FencePolicy{}, new(2 * time.Second), "2s"},
		{"the policy is to drain", relay.FencePolicy{Drain: 5 * time.Second}, nil, "5s"},
		{"the policy is to keep", relay.FencePolicy{Keep: true}, nil, "keep"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage()
				conduct(t, s, Config{Hosts: []string{"a", "b"}, Fence: tt.fence, Triggers: Triggers{Path: dir}}, func(c *Conductor) {
					time.Sleep(500 * time.Millisecond)
					done, err := c.Switch(t.Context(), SwitchRequest{Host: "b", Drain: tt.drain, By: "ann", Reason: "new disk"})
					if err != nil || done.Host != "b" || done.Epoch != 2 || done.Fence == nil || done.Fence.Reset != 2 || len(done.Triggers) != 1 {
						t.Errorf("Switch = %+v, %v, want b in epoch 2, 2 reset and a trigger", done, err)
					}
					if p := c.Progress(); p != nil {
						t.Errorf("afterwards the progress is %+v", p)
					}
					if now := c.Status(); now.Primary != "b" || now.Event != "switchover" || now.Reason != "switch by ann: new disk" {
						t.Errorf("status = %+v, want b as primary by ann's order", now)
					}
				})
				wantStory(t, s,
					"1ms fence <1 but a grace "+firstGrace(tt.fence),
					"1ms 10-dns a (UNDERSTUDY_EVENT=start UNDERSTUDY_RELAY=orders UNDERSTUDY_EPOCH=1 UNDERSTUDY_OLD= UNDERSTUDY_NEW=a UNDERSTUDY_REASON=first usable host at the start)",
					"1ms open 1 a",
					"501ms hold",
					"501ms fence <2 but b grace "+tt.grace,
					"501ms fenced",
					"501ms 10-dns b (UNDERSTUDY_EVENT=switchover UNDERSTUDY_RELAY=orders UNDERSTUDY_EPOCH=2 UNDERSTUDY_OLD=a UNDERSTUDY_NEW=b UNDERSTUDY_REASON=switch by ann: new disk)",
					"501ms open 2 b",
				)
			})
		})
	}
}

// Each step of a switchover is shown while it lasts.
func TestProgress(t *testing.T) {
	dir := triggers(t, "10-dns")
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		connect := func(ctx context.Context, host string) health.Result {
			time.Sleep(200 * time.Millisecond)
			return s.connect(ctx, host)
		}
		cfg := Config{Hosts: []string{"a", "b"}, Checks: []Check{{Name: "tcp", Run: connect}}, Triggers: Triggers{Path: dir}}
		conduct(t, s, cfg, func(c *Conductor) {
			time.Sleep(10 * time.Second)
			s.set(func() { s.fence, s.pause["10-dns b"], s.openErr = 2*time.Second, 3*time.Second, errors.New("busy") })
			begin := time.Now()
			time.AfterFunc(7*time.Second, func() { s.set(func() { s.openErr = nil }) })
			over := make(chan struct{})
			go func() {
				defer close(over)
				if _, err := c.Switch(t.Context(), SwitchRequest{Host: "b", Drain: new(5 * time.Second)}); err != nil {
					t.Error(err)
				}
			}()
			var got []string
			for running := true; running; {
				synctest.Wait()
				select {
				case <-over:
					running = false
				default:
					time.Sleep(10 * time.Millisecond)
				}
				text := "none"
				if p := c.Progress(); p != nil {
					text = fmt.Sprintf("%s of %s since %v", p.Step, p.Host, p.Since.Sub(begin).Round(100*time.Millisecond))
					if !p.Until.IsZero() {
						text += fmt.Sprintf(" until %v", p.Until.Sub(begin).Round(100*time.Millisecond))
					}
					if p.Script != "" {
						text += " by " + filepath.Base(p.Script)
					}
				}
				if len(got) == 0 || got[len(got)-1] != text {
					got = append(got, text)
				}
			}
			want := []string{
				"checking of b since 0s",
				"draining of b since 200ms until 5.2s",
				"trigger of b since 2.2s by 10-dns",
				"opening of b since 5.2s",
				"none",
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("progress (-want +got):\n%s", diff)
			}
		})
	})
}

// firstGrace returns the grace time of a policy at the start.
func firstGrace(f relay.FencePolicy) string {
	if f.Keep {
		return "keep"
	}
	return f.Drain.String()
}

func TestSwitchoverIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.refusing["b"] = true
		conduct(t, s, Config{Hosts: []string{"a", "b"}}, func(c *Conductor) {
			time.Sleep(500 * time.Millisecond)
			_, err := c.Switch(t.Context(), SwitchRequest{Host: "b"})
			if got := refused(t, err); got != "b: tcp: connection refused" {
				t.Errorf("refused because %q, want the reason of the check", got)
			}
			_, err = c.Switch(t.Context(), SwitchRequest{Host: "z"})
			if got := refused(t, err); got != "z: there is no such host" {
				t.Errorf("refused because %q", got)
			}
		})
		wantStory(t, s, "1ms fence <1 but a grace 0s", "1ms open 1 a") // and no hold
	})
}

func TestSwitchoverWhoseTriggerFailsGoesBack(t *testing.T) {
	dir := triggers(t, "10-dns")
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.fails["10-dns c"] = true
		conduct(t, s, Config{Hosts: []string{"a", "b", "c"}, Triggers: Triggers{Path: dir, Abort: true}}, func(c *Conductor) {
			time.Sleep(500 * time.Millisecond)
			if _, err := c.Switch(t.Context(), SwitchRequest{Host: "b"}); err != nil {
				t.Fatal(err)
			}
			_, err := c.Switch(t.Context(), SwitchRequest{Host: "c"})
			if got := refused(t, err); got != "trigger failed: exit status 1; b goes on" {
				t.Errorf("refused because %q, want the trigger and who goes on", got)
			}
			if now := c.Snapshot(); now.Primary != "b" || now.Epoch != 4 {
				t.Errorf("primary %s in epoch %d, want b again in epoch 4", now.Primary, now.Epoch)
			}
			list, _ := c.Incidents()
			if i := list[len(list)-2]; i.New != "c" || i.Outcome != Aborted || i.Failure != "trigger failed: exit status 1" || !i.Triggers[0].Failed || !i.Done {
				t.Errorf("the record of the switch to c is %+v, want it aborted by its trigger", i)
			}
		})
	})
}

func TestOneSwitchoverAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.fence = time.Second
		conduct(t, s, Config{Hosts: []string{"a", "b", "c"}}, func(c *Conductor) {
			time.Sleep(500 * time.Millisecond)
			first := make(chan error, 1)
			go func() {
				_, err := c.Switch(t.Context(), SwitchRequest{Host: "b"})
				first <- err
			}()
			synctest.Wait()
			_, err := c.Switch(t.Context(), SwitchRequest{Host: "c"})
			if got := refused(t, err); got != "another switchover is under way" {
				t.Errorf("refused because %q", got)
			}
			if err := <-first; err != nil {
				t.Errorf("the first switchover: %v", err)
			}
		})
	})
}

func TestLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		conduct(t, s, Config{Hosts: []string{"a", "b", "c"}}, func(c *Conductor) {
			time.Sleep(500 * time.Millisecond)
			set := func(k Lock) {
				t.Helper()
				k.Since = time.Now()
				if err := c.Lock(t.Context(), k); err != nil {
					t.Fatal(err)
				}
			}
			set(Lock{Kind: Drain, Host: "b", By: "ann", Reason: "memory", Until: time.Now().Add(time.Minute)})
			if now := c.Status(); !now.Hosts[1].Drained || !strings.HasPrefix(now.WhyHost("b", time.Now()), "b is not elected: it is drained by ann since ") {
				t.Errorf("b drained %v, why: %s", now.Hosts[1].Drained, now.WhyHost("b", time.Now()))
			}

			// A switchover comes before the primary is drained.
			set(Lock{Kind: Drain, Host: "a", By: "ann"})
			if now := c.Snapshot(); now.Primary != "c" || !now.Hosts[0].Drained {
				t.Errorf("primary %s, a drained %v, want c, because b is drained too", now.Primary, now.Hosts[0].Drained)
			}
			if got := refused(t, c.Lock(t.Context(), Lock{Kind: Drain, Host: "c"})); got != "every other host is down or drained" {
				t.Errorf("drain of the last host is refused because %q", got)
			}
			if c.Snapshot().Hosts[2].Drained {
				t.Error("c is drained although that was refused")
			}

			time.Sleep(time.Minute)
			if now := c.Status(); now.Hosts[1].Drained || !now.Hosts[0].Drained || len(now.Locks) != 1 {
				t.Errorf("locks after a minute: %+v, want only the one that does not end", now.Locks)
			}
			if err := c.Unlock(t.Context(), Lock{Kind: Drain, Host: "a"}); err != nil || c.Snapshot().Hosts[0].Drained {
				t.Errorf("a is still drained; %v", err)
			}

			set(Lock{Kind: Freeze, By: "bob", Reason: "audit"})
			s.set(func() { s.refusing["c"] = true })
			time.Sleep(5 * time.Second)
			now := c.Status()
			if why := now.Why(time.Now()); now.Primary != "c" || !strings.Contains(why, "is down, and no failover happens because the relay is frozen") || !strings.Contains(why, "by bob") || !strings.Contains(why, "(audit)") {
				t.Errorf("primary %s, why: %s", now.Primary, why)
			}
			if err := c.Unlock(t.Context(), Lock{Kind: Freeze}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
			if now := c.Snapshot(); now.Primary != "a" {
				t.Errorf("primary %s after the freeze ended, want a", now.Primary)
			}
			for _, err := range []error{c.Lock(t.Context(), Lock{Kind: Drain, Host: "z"}), c.Unlock(t.Context(), Lock{Kind: Drain, Host: "z"})} {
				if got := refused(t, err); got != `relay orders has no host "z": its hosts are [a b c]` {
					t.Errorf("refused because %q", got)
				}
			}
		})
	})
}

func TestOrdersAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		var c *Conductor
		conduct(t, s, Config{Hosts: []string{"a", "b"}}, func(it *Conductor) { c = it; time.Sleep(time.Second) })
		if _, err := c.Switch(t.Context(), SwitchRequest{Host: "b"}); !errors.Is(err, ErrOver) {
			t.Errorf("Switch = %v, want ErrOver", err)
		}
	})
}

func TestIncidentOfAFailover(t *testing.T) {
	dir := triggers(t, "10-dns")
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.pause["10-dns b"] = 300 * time.Millisecond
		s.fence = 50 * time.Millisecond
		expired := uint64(0)
		cfg := Config{
			Hosts: []string{"a", "b"}, Triggers: Triggers{Path: dir},
			Stats: func() relay.Stats { return relay.Stats{Expired: expired} },
		}
		log := conduct(t, s, cfg, func(c *Conductor) {
			time.Sleep(500 * time.Millisecond)
			s.set(func() { s.refusing["a"] = true })
			c.Suspect(1, errRefused)
			time.Sleep(400 * time.Millisecond)
			s.set(func() { expired = 3 })
			time.Sleep(600 * time.Millisecond)
			list, news := c.Incidents()
			if i := list[len(list)-1]; i.Done {
				t.Errorf("the record is done before the first byte: %+v", i)
			}
			c.FirstByte(2)
			<-news
			list, _ = c.Incidents()
			got := list[len(list)-1]
			if got.FirstBad == nil || got.FirstBad.Check != "tcp" || got.FirstBad.Phase != "connect" || got.FirstBad.Error != "connection refused" {
				t.Errorf("first bad check = %+v", got.FirstBad)
			}
			since := func(at time.Time) time.Duration { return at.Sub(s.begin) }
			for name, want := range map[string][2]time.Duration{
				"first bad": {since(got.FirstBad.At), 501 * time.Millisecond},
				"suspected": {since(got.Suspected), 500 * time.Millisecond},
				"lost":      {since(got.Lost), 701 * time.Millisecond},
				"elected":   {since(got.Elected), 702 * time.Millisecond},
				"opened":    {since(got.Opened), 1052 * time.Millisecond},
				"firstbyte": {since(got.FirstByte), 1500 * time.Millisecond},
			} {
				if want[0] != want[1] {
					t.Errorf("%s at %v, want %v", name, want[0], want[1])
				}
			}
			got.FirstBad, got.Suspected, got.Lost, got.Elected, got.Opened, got.FirstByte = nil, time.Time{}, time.Time{}, time.Time{}, time.Time{}, time.Time{}
			want := Incident{
				ID: 2, Relay: "orders", Event: selector.Failover, Epoch: 2, Old: "a", New: "b",
				Reason: "a is down: tcp: connection refused", Outcome: Open, Done: true,
				Fence:       &FenceRun{Reset: 2, Seconds: 0.05},
				Triggers:    []TriggerRun{{Script: filepath.Join(dir, "10-dns"), Status: "exit status 0", Seconds: 0.3}},
				ClientsHeld: 4, ClientsLost: 3,
				DetectSeconds: 0.2, ElectSeconds: 0.001, SwitchSeconds: 0.35, ShutSeconds: 0.351, TotalSeconds: 0.551,
				BoundSeconds: 32.8,
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the record (-want +got):\n%s", diff)
			}
		})
		if !strings.Contains(log, "worst case of a failover: relay=orders refused=32.8s silent=33.8s hung=\"never noticed\"") {
			t.Errorf("the prediction is not logged at the start:\n%s", log)
		}
	})
}

// A record is complete when the first byte has passed and the clients that waited are
// connected.
func TestIncidentWithPacing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.paced = true
		conduct(t, s, Config{Hosts: []string{"a", "b"}, Hold: 10 * time.Second}, func(c *Conductor) {
			last := func() Incident {
				synctest.Wait()
				list, _ := c.Incidents()
				return list[len(list)-1]
			}
			pacing := func(epoch uint64) relay.Pacing {
				return relay.Pacing{Epoch: epoch, Waited: 5000, Turns: 5002, First: 50, Peak: 400, Slowed: 1, For: 17 * time.Second}
			}
			time.Sleep(500 * time.Millisecond)
			c.FirstByte(1)
			c.Paced(pacing(1))
			s.set(func() { s.refusing["a"] = true })
			time.Sleep(2 * time.Second)
			c.Paced(pacing(1)) // it comes late
			c.FirstByte(2)
			if i := last(); i.Epoch != 2 || i.FirstByte.IsZero() || i.Pacing != nil || i.Done {
				t.Errorf("after the first byte: %+v", i)
			}
			time.Sleep(14 * time.Second)
			c.Paced(pacing(2))
			want := &Pacing{Turns: 5002, FirstRate: 50, PeakRate: 400, Slowed: 1, Seconds: 17}
			if i := last(); !i.Done || !cmp.Equal(i.Pacing, want) {
				t.Errorf("after the pacing: %+v, want it complete, with %+v", i, want)
			}
			s.set(func() { s.refusing["a"], s.refusing["b"] = false, true })
			time.Sleep(2 * time.Second)
			c.FirstByte(3)
			time.Sleep(firstByteWait + 10*time.Second)
			if i := last(); i.Epoch != 3 || !i.Done || i.Pacing != nil {
				t.Errorf("after a pacing that lasts longer than hold: %+v, want it closed", i)
			}
		})
	})
}

// The prediction says how long clients wait for their turn.
func TestPredictWaits(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		rate  relay.OpenRate
		hold  time.Duration
		usual float64
		want  []Wait // seconds rounded to tenths
	}{
		{"off", relay.OpenAll, 10 * time.Second, 0, nil},
		{"no hold", relay.OpenAuto, 0, 0, nil},
		{"auto", relay.OpenAuto, 10 * time.Second, 0, []Wait{{100, 50, 1.3}, {1000, 133.3, 3.1}, {5000, 666.7, 3.1}}},
		{"auto, long hold", relay.OpenAuto, 10 * time.Minute, 0, []Wait{{100, 50, 1.3}, {1000, 50, 4.3}, {5000, 50, 6.6}}},
		{"busy", relay.OpenAuto, 10 * time.Minute, 500, []Wait{{100, 1000, 0}, {1000, 1000, 1}, {5000, 1000, 2.5}}},
		{"fixed", 1000, 10 * time.Second, 0, []Wait{{100, 1000, 0.1}, {1000, 1000, 1}, {5000, 1000, 5}}},
	} {
		got := Config{OpenRate: tt.rate, Hold: tt.hold}.waits(tt.usual)
		if diff := cmp.Diff(tt.want, got, cmpopts.EquateApprox(0, 0.11)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// A failover that takes longer than predicted is a warning.
func TestIncidentOverItsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.fence = 5 * time.Second // the policy allows for none
		log := conduct(t, s, Config{Hosts: []string{"a", "b"}}, func(c *Conductor) {
			time.Sleep(500 * time.Millisecond)
			s.set(func() { s.refusing["a"] = true })
			time.Sleep(20 * time.Second)
			list, _ := c.Incidents()
			if i := list[len(list)-1]; !i.OverBound || i.BoundSeconds >= i.TotalSeconds || !i.Done || !i.FirstByte.IsZero() {
				t.Errorf("the record is %+v, want it over its bound, and closed without a first byte", i)
			}
		})
		if !strings.Contains(log, "the failover took longer than predicted") {
			t.Errorf("no warning:\n%s", log)
		}
	})
}

// Clients that are refused in the kernel's queue count as lost, too.
func TestIncidentCountsTheRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		conduct(t, s, Config{Hosts: []string{"a"}, Hold: 2 * time.Second, Stats: func() relay.Stats { return relay.Stats{} }}, func(c *Conductor) {
			time.Sleep(500 * time.Millisecond)
			s.set(func() { s.refusing["a"] = true })
			time.Sleep(10 * time.Second)
			s.set(func() { s.refusing["a"] = false })
			time.Sleep(time.Minute)
			list, _ := c.Incidents()
			if i := list[len(list)-1]; i.Event != selector.Reselect || i.ClientsLost != 3 || !i.Done {
				t.Errorf("the record is %+v, want the three clients that were refused", i)
			}
		})
	})
}

// An incident that an earlier process left in progress is interrupted.
func TestIncidentOfAProcessThatWasKilled(t *testing.T) {
	k := &StateFile{loaded: state{Epoch: 7, Incidents: []Incident{{ID: 4, Outcome: UnderWay}, {ID: 5, Outcome: Open}}}}
	c, err := idle(k, "a")
	if err != nil {
		t.Fatal(err)
	}
	list, _ := c.Incidents()
	if !list[0].Done || list[0].Outcome != Interrupted || !list[1].Done || list[1].Outcome != Open || c.recorder.nextID != 6 {
		t.Errorf("incidents %+v, next %d, want the first interrupted, both done, and 6", list, c.recorder.nextID)
	}
}

func TestIncidentsAreBounded(t *testing.T) {
	var r history
	for i := range uint64(3 * incidentsKept) {
		r.put(Incident{ID: i})
		r.put(Incident{ID: i, Done: true})
	}
	list, _ := r.all()
	if len(list) != incidentsKept || list[0].ID != 2*incidentsKept || !list[0].Done {
		t.Errorf("%d incidents from %d on, want the last %d", len(list), list[0].ID, incidentsKept)
	}
}

func TestDrill(t *testing.T) {
	dir := triggers(t, "10-dns")
	for _, tt := range []struct {
		name      string
		request   DrillRequest
		set       func(ctx context.Context, s *stage, c *Conductor)
		ok        bool
		counts    bool // it is saved as the last successful drill
		candidate string
		text      string
		steps     string
	}{
		{"the primary, whose candidate passes", DrillRequest{}, nil, true, true, "b", "b would take over from a", "tcp"},
		{"without a standby", DrillRequest{Without: "b"}, nil, true, false, "a", "b is not primary: nothing would change, a stays", "tcp"},
		{"with triggers, dry", DrillRequest{Triggers: true}, nil, true, true, "b", "b would take over from a", "tcp 10-dns"},
		{"a host that is named", DrillRequest{Host: "b"}, nil, true, true, "b", "b would take over from a", "tcp"},
		{"with its triggers", DrillRequest{Host: "c", Triggers: true}, nil, true, false, "c", "c could take over from a, but b would: it comes first in order", "tcp 10-dns"},
		{
			"a host that is named and down", DrillRequest{Host: "b"},
			func(_ context.Context, s *stage, _ *Conductor) { s.set(func() { s.refusing["b"] = true }) },
			false, false, "", "refused", "tcp",
		},
		{
			"a host that is named and drained", DrillRequest{Host: "b"},
			func(ctx context.Context, _ *stage, c *Conductor) { _ = c.Lock(ctx, Lock{Kind: Drain, Host: "b"}) },
			false, false, "", "b would not take over from a: drained", "",
		},
		{
			"without a host that is down", DrillRequest{Without: "b"},
			func(_ context.Context, s *stage, _ *Conductor) { s.set(func() { s.refusing["b"] = true }) },
			true, false, "a", "b is not primary: nothing would change, a stays", "tcp",
		},
		{
			"the first candidate is dead and no check has noticed", DrillRequest{},
			func(_ context.Context, s *stage, _ *Conductor) { s.set(func() { s.refusing["b"] = true }) },
			true, true, "c", "c would take over from a", "tcp",
		},
		{
			"no host is up", DrillRequest{},
			func(_ context.Context, s *stage, _ *Conductor) {
				s.set(func() { s.refusing["b"], s.refusing["c"] = true, true })
			},
			false, false, "", "no host would take over from a", "",
		},
		{
			"a drained candidate is none", DrillRequest{},
			func(ctx context.Context, _ *stage, c *Conductor) { _ = c.Lock(ctx, Lock{Kind: Drain, Host: "b"}) },
			true, true, "c", "c would take over from a", "tcp",
		},
		{
			"a trigger fails", DrillRequest{Triggers: true},
			func(_ context.Context, s *stage, _ *Conductor) { s.set(func() { s.fails["10-dns b"] = true }) },
			false, false, "b", "fails: exit status 1", "tcp 10-dns",
		},
		{
			"frozen", DrillRequest{},
			func(ctx context.Context, _ *stage, c *Conductor) { _ = c.Lock(ctx, Lock{Kind: Freeze}) },
			false, false, "", "no host would take over: the relay is frozen", "",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage()
				conduct(t, s, Config{Hosts: []string{"a", "b", "c"}, Triggers: Triggers{Path: dir}}, func(c *Conductor) {
					time.Sleep(500 * time.Millisecond)
					if tt.set != nil {
						tt.set(t.Context(), s, c)
					}
					before := len(s.events())
					r, err := c.Drill(t.Context(), tt.request)
					if err != nil {
						t.Fatal(err)
					}
					var steps []string
					for _, step := range r.Steps {
						steps = append(steps, filepath.Base(step.Name))
						if step.Host != tt.candidate && step.Host != tt.request.Host {
							t.Errorf("step %s is of host %q, want %q", step.Name, step.Host, tt.candidate+tt.request.Host)
						}
					}
					if r.OK != tt.ok || r.Candidate != tt.candidate || !strings.HasSuffix(r.Text, tt.text) || strings.Join(steps, " ") != tt.steps {
						t.Errorf("drill = %+v\nwant ok %v, candidate %q, text %q, steps %q", r, tt.ok, tt.candidate, tt.text, tt.steps)
					}
					if got := c.Status().GoodDrill; !got.IsZero() != tt.counts {
						t.Errorf("last good drill at %v, want one: %v", got, tt.counts)
					}
					for _, what := range s.events()[before:] {
						if !strings.Contains(what, "UNDERSTUDY_DRY_RUN=1") {
							t.Errorf("the drill did something real: %s", what)
						}
					}
				})
			})
		})
	}
}

// A request that makes no sense is refused.
func TestDrillThatIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conduct(t, newStage(), Config{Hosts: []string{"a", "b"}}, func(c *Conductor) {
			time.Sleep(500 * time.Millisecond)
			for _, q := range []DrillRequest{{Host: "a"}, {Host: "b", Without: "a"}, {Host: "x"}, {Without: "x"}} {
				_, err := c.Drill(t.Context(), q)
				refused(t, err)
			}
		})
	})
}

// A drain is complete even if the operator does not wait for its end.
func TestDrainWithoutAWaitingCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.fence = 5 * time.Second
		conduct(t, s, Config{Hosts: []string{"a", "b"}, Fence: relay.FencePolicy{Drain: 5 * time.Second}}, func(c *Conductor) {
			time.Sleep(500 * time.Millisecond)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := c.Lock(ctx, Lock{Kind: Drain, Host: "a"}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Lock = %v, want the end of its context", err)
			}
			time.Sleep(10 * time.Second)
			if now := c.Status(); now.Primary != "b" || len(now.Locks) != 1 || !now.Hosts[0].Drained {
				t.Errorf("primary %s, locks %+v, want b, and a drained", now.Primary, now.Locks)
			}
		})
	})
}

// A drill never delays a real election.
func TestDrillGivesWay(t *testing.T) {
	dir := triggers(t, "10-dns")
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.pause["10-dns b"], s.pause["check b"] = 8*time.Second, time.Second
		checks := []Check{{Name: "tcp", Run: s.connect}, {Name: "check", Script: "/x/check"}}
		conduct(t, s, Config{Hosts: []string{"a", "b"}, Checks: checks, Triggers: Triggers{Path: dir}}, func(c *Conductor) {
			time.Sleep(5500 * time.Millisecond)
			for range 3 {
				if _, err := c.Drill(t.Context(), DrillRequest{}); err != nil {
					t.Error(err)
				}
			}
			s.set(func() {
				if s.overlap {
					t.Error("a check script ran twice at once")
				}
			})
			drilled := make(chan error, 1)
			go func() {
				_, err := c.Drill(t.Context(), DrillRequest{Triggers: true})
				drilled <- err
			}()
			time.Sleep(1500 * time.Millisecond)
			if _, err := c.Drill(t.Context(), DrillRequest{}); refused(t, err) != "another drill is under way" {
				t.Errorf("a second drill: %v", err)
			}
			s.set(func() { s.refusing["a"] = true })
			if err := <-drilled; refused(t, err) != "an election began, the drill was stopped" {
				t.Errorf("the drill: %v", err)
			}
			_, err := c.Drill(t.Context(), DrillRequest{Triggers: true})
			if refused(t, err) != "an election is under way, and triggers may run" {
				t.Errorf("a drill with triggers during an election: %v", err)
			}
			time.Sleep(20 * time.Second)
			s.set(func() {
				if s.overlap {
					t.Error("a trigger ran beside its rehearsal")
				}
			})
		})
	})
}

// The time for which a frozen primary was down is not compared with a
// prediction.
func TestAFreezeIsNotOverTheBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		conduct(t, s, Config{Hosts: []string{"a", "b"}}, func(c *Conductor) {
			time.Sleep(500 * time.Millisecond)
			if err := c.Lock(t.Context(), Lock{Kind: Freeze}); err != nil {
				t.Fatal(err)
			}
			s.set(func() { s.refusing["a"] = true })
			time.Sleep(time.Hour)
			if err := c.Unlock(t.Context(), Lock{Kind: Freeze}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			list, _ := c.Incidents()
			if i := list[len(list)-1]; i.New != "b" || i.OverBound || i.BoundSeconds != 0 {
				t.Errorf("the record is %+v, want no bound", i)
			}
		})
	})
}

// A lock is not reported as set when it would be lost at a restart.
func TestLockOnADiskThatIsGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	k, err := OpenStateFile(dir, "orders", nil)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		defer k.Close() // here, since its timer is of this bubble
		conduct(t, newStage(), Config{Hosts: []string{"a", "b"}, StateFile: k}, func(c *Conductor) {
			time.Sleep(500 * time.Millisecond)
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			err := c.Lock(t.Context(), Lock{Kind: Freeze})
			if err == nil || !strings.Contains(err.Error(), "a restart will lose it") || !c.Snapshot().Frozen {
				t.Errorf("Lock = %v, frozen %v, want it done and not saved", err, c.Snapshot().Frozen)
			}
		})
	})
}

func TestPredict(t *testing.T) {
	s := newStage()
	dir := triggers(t, "10-dns", "20-mail")
	tcp := Check{Name: "tcp", Run: s.connect}
	pong := Check{Name: "http:80", Run: s.connect}
	script := Check{Name: "check-host", Script: "/x"}
	totals := func(p Prediction) string {
		var all []string
		for _, k := range p.Cases {
			if k.Never {
				all = append(all, string(k.Failure)+" never")
				continue
			}
			all = append(all, string(k.Failure)+" "+k.total.String())
		}
		return strings.Join(all, ", ")
	}
	for _, tt := range []struct {
		name     string
		cfg      Config
		want     string // with and without traffic
		warnings []string
		notes    []string // the beginning of each of them; nil is not compared
	}{
		{
			name: "usual settings", cfg: Config{Checks: []Check{tcp}},
			notes: []string{
				"a lost SYN is repeated after 1s (RFC 6298), so with timeout 1s a check that loses one fails, and a primary that loses fall 3 in a row is down",
				"a primary that is silent for less than 1.2s stays (timeout 1s + 2 × fast-interval 100ms); one that is silent for 1.1s longer is down",
			},
			want: "refused 1.8s, refused 2.8s, silent 2.9s, silent 3.8s, hung never, hung never",
		},
		{
			name: "a timeout beyond the second SYN", cfg: Config{Checks: []Check{{Name: "tcp", Run: s.connect, Timeout: 1500 * time.Millisecond}}, Fall: 1},
			want: "refused 2.1s, refused 3.1s, silent 3.7s, silent 4.6s, hung never, hung never",
			notes: []string{
				"a lost SYN is repeated after 1s (RFC 6298), so with timeout 1.5s a check that loses one is late, and passes",
				"a primary that is silent for less than 1.5s stays",
			},
		},
		{
			name: "a pong port finds out who is hung", cfg: Config{Checks: []Check{tcp, pong}},
			want: "refused 2.8s, refused 3.8s, silent 3.9s, silent 4.8s, hung 4.8s, hung 4.8s",
		},
		{
			name: "a script too, later", cfg: Config{Checks: []Check{tcp, script}, Scripts: s},
			want: "refused 11.8s, refused 12.8s, silent 12.9s, silent 13.8s, hung 28.5s, hung 28.5s",
			warnings: []string{
				"fall 3 × check-timeout 5s is longer than hold 10s: clients of a primary whose script hangs are refused before the failover",
			},
		},
		{
			name: "triggers and fence take their time",
			cfg:  Config{Checks: []Check{tcp}, Fence: relay.FencePolicy{Drain: 20 * time.Second}, Triggers: Triggers{Path: dir, Timeout: 4 * time.Second}},
			want: "refused 29.8s, refused 30.8s, silent 30.9s, silent 31.8s, hung never, hung never",
			warnings: []string{
				"fence drain=20s is longer than hold 10s: clients are refused while earlier connections finish",
			},
		},
		{
			name:     "what contradicts itself",
			cfg:      Config{Checks: []Check{{Name: "tcp", Run: s.connect, Timeout: time.Minute}}, Fall: 1, Hold: 45 * time.Second, FastInterval: 2 * time.Second, Fence: relay.FencePolicy{Keep: true}, Hosts: []string{"a"}},
			warnings: []string{"timeout 1m0s of check tcp", "fence keep", "hold 45s is longer than the connect timeout of many clients", "fast-interval 2s", "only one host"},
			want:     "refused 1m2.5s, refused 1m3.5s, silent 2m0.7s, silent 2m3.5s, hung never, hung never",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := Predict(complete(tt.cfg))
			if got := totals(p); got != tt.want {
				t.Errorf("predicted %s\nwant %s", got, tt.want)
			}
			if !slices.EqualFunc(p.Warnings, tt.warnings, strings.HasPrefix) {
				t.Errorf("warnings %q, want %q", p.Warnings, tt.warnings)
			}
			if tt.notes != nil && !slices.EqualFunc(p.Notes, tt.notes, strings.HasPrefix) {
				t.Errorf("notes %q, want %q", p.Notes, tt.notes)
			}
			for _, k := range p.Cases {
				if k.Formula == "" {
					t.Errorf("no formula for %+v", k)
				}
			}
		})
	}
}

func TestPredictionKnowsHowLongScriptsTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.pause["x a"], s.pause["x b"] = time.Second, 3*time.Second
		cfg := Config{Hosts: []string{"a", "b"}, Checks: []Check{{Name: "tcp", Run: s.connect}, {Name: "check-host", Script: "/x"}}}
		conduct(t, s, cfg, func(c *Conductor) {
			before := len(c.Prediction().Warnings)
			time.Sleep(10 * time.Second)
			p := c.Prediction()
			if len(p.Warnings) != before+1 || p.Warnings[before] != "check-interval 2s is shorter than the run time of check check-host for b (3s): it runs all the time" {
				t.Errorf("warnings %q, want one more, about b", p.Warnings)
			}
		})
	})
}

func TestMemory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	keep := func() *StateFile {
		t.Helper()
		k, err := OpenStateFile(dir, "orders", nil)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	k := keep()
	if _, err := OpenStateFile(dir, "orders", nil); err == nil || !strings.Contains(err.Error(), "another process keeps it") {
		t.Errorf("a second StateFile for the same state: %v, want an error that says so", err)
	}
	s := newStage()
	cfg := Config{Hosts: []string{"a", "b"}, StateFile: k}
	conduct(t, s, cfg, func(c *Conductor) {
		proctest.Until(t, "a is primary", func() bool { return c.Snapshot().Primary == "a" })
		if _, err := c.Switch(t.Context(), SwitchRequest{Host: "b", Drain: new(time.Duration(0)), By: "ann"}); err != nil {
			t.Fatal(err)
		}
		if r, err := c.Drill(t.Context(), DrillRequest{}); err != nil || !r.OK {
			t.Fatal(r, err)
		}
		for _, l := range []Lock{
			{Kind: Drain, Host: "a", Reason: "disk", Since: time.Now()},
			{Kind: Freeze, Since: time.Now(), Until: time.Now().Add(time.Millisecond)},
		} {
			if err := c.Lock(t.Context(), l); err != nil {
				t.Fatal(err)
			}
		}
	})
	k.Close()
	if left, _ := filepath.Glob(dir + "/*"); len(left) != 2 {
		t.Errorf("left behind: %q, want the state and its lock", left)
	}

	k = keep()
	cfg.StateFile = k
	conduct(t, newStage(), cfg, func(c *Conductor) {
		proctest.Until(t, "b is primary", func() bool { return c.Snapshot().Primary == "b" })
		now := c.Status()
		if now.Epoch != 3 || len(now.Locks) != 1 || now.Locks[0].Reason != "disk" || !now.Hosts[0].Drained || now.GoodDrill.IsZero() || !now.Save.Kept {
			t.Errorf("after the restart: %+v, want epoch 3 and the lock that has not ended", now)
		}
		list, _ := c.Incidents()
		if len(list) != 6 || list[1].Event != selector.Switchover || list[1].By != "ann" || list[5].ID != 6 {
			t.Errorf("after the restart: %+v, want the incidents from before and one more", list)
		}
	})
	k.Close()

	for name, text := range map[string]string{
		"garbage": "\x00garbage", "torn": `{"version": 1, "epo`, "newer": `{"version": 99, "epoch": 7}`, "empty": "",
		"another type": `{"version": 1, "epoch": "seven"}`, "negative": `{"version": 1, "epoch": -1}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "orders.json")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			k, err := OpenStateFile(dir, "orders", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			if k.loaded.Epoch != 0 {
				t.Errorf("epoch %d was read from it", k.loaded.Epoch)
			}
			aside, _ := filepath.Glob(path + ".aside-*")
			if len(aside) != 1 {
				t.Fatalf("set aside: %q, want one file", aside)
			}
			if got, _ := os.ReadFile(aside[0]); string(got) != text {
				t.Errorf("what was set aside is %q, want %q", got, text)
			}
			if left, _ := filepath.Glob(path + ".new"); len(left) != 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStateFile(file, "orders", nil); err == nil {
		t.Error("a file as state directory is no error")
	}
}

func FuzzMemory(f *testing.F) {
	f.Add([]byte(`{"version": 1, "relay": "main", "primary": "a", "epoch": 3, "locks": [{"kind": "drain", "host": "a"}], "incidents": [{"id": 1}]}`))
	f.Add([]byte(`{"version": 1, "clock": {"wall": "0001-01-02T00:00:00Z", "boot": "x", "seconds": -1e308}, "locks": [{"kind": "freeze", "until": "9999-01-01T00:00:00Z"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parseState(text)
		if err != nil {
			return
		}
		// A conductor can start from it, whatever it contains.
		k := &StateFile{loaded: m}
		if _, err := idle(k, "a", "b"); err != nil {
			t.Error(err)
		}
	})
}

// why says what the trigger of a rejected host said last.
func TestRejectedHostHasTheLastWords(t *testing.T) {
	dir := triggers(t, "10-dns")
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.fails["10-dns a"], s.fails["10-dns b"] = true, true
		conduct(t, s, Config{Hosts: []string{"a", "b"}, Triggers: Triggers{Path: dir, Abort: true}}, func(c *Conductor) {
			time.Sleep(500 * time.Millisecond)
			if got, want := c.Status().WhyHost("a", time.Now()), "a was rejected: trigger failed: exit status 1"; got != want {
				t.Errorf("why = %q, want %q", got, want)
			}
		})
	})
}
