package failover

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/health"
	"understudy/hooks"
	"understudy/internal/role"
	"understudy/selector"
)

// cast is what the hosts of a stage say of themselves.
type cast map[string]role.Fact

// play has a host say something else from now on.
func (s *stage) play(c cast, host string, f role.Fact) { s.set(func() { c[host] = f }) }

// roles returns the settings of a relay whose hosts have a role check.
func (s *stage) roles(c cast, rules selector.RoleRules) Config {
	return Config{Hosts: []string{"db1:1", "db2:1"}, Checks: []Check{{Name: "tcp", Run: s.connect}, s.roleCheck(c, rules)}}
}

func (s *stage) roleCheck(c cast, rules selector.RoleRules) Check {
	ask := func(_ context.Context, host string) health.Result {
		s.mu.Lock()
		f := c[host]
		s.mu.Unlock()
		return health.Result{OK: f.Role == role.Primary || f.Role == role.Replica, Unknown: f.Role == role.Unknown, Phase: health.Role, Fact: &f}
	}
	if rules.Verify == 0 {
		rules.Verify = 30 * time.Second
	}
	return Check{Name: "role", Run: ask, Role: &rules}
}

func fact(r role.Role, term, position uint64) role.Fact {
	return role.Fact{Role: r, Term: term, Identity: "ours", Position: position, Bytes: true}
}

// promoting is the stage whose triggers change what a host says, some time after they end.
type promoting struct {
	*stage
	does func(host string)
}

func (p promoting) Run(ctx context.Context, script hooks.Script) hooks.Result {
	res := p.stage.Run(ctx, script)
	if script.Kind == hooks.Trigger {
		p.does(script.Args[0])
	}
	return res
}

// perform conducts a relay with triggers until play has returned, and returns its log.
func perform(t *testing.T, s *stage, cfg Config, does func(host string), play func(c *Conductor)) string {
	t.Helper()
	cfg.Triggers.Path = triggers(t, "promote")
	cfg.Scripts = promoting{s, does}
	return conduct(t, s, cfg, play)
}

// A replica is promoted by the trigger, which gets the facts; clients are connected when it
// says that it is primary, and the record has what was predicted to be lost.
func TestPromotion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		said := cast{"db1:1": fact(role.Primary, 3, 4800), "db2:1": fact(role.Replica, 3, 4900)}
		cfg := s.roles(said, selector.RoleRules{Promote: true})
		log := perform(t, s, cfg, func(host string) {
			if host == "db2:1" {
				time.AfterFunc(time.Second, func() { s.play(said, host, fact(role.Primary, 4, 4950)) })
			}
		}, func(c *Conductor) {
			time.Sleep(5 * time.Second)
			s.play(said, "db1:1", fact(role.Primary, 3, 5000))
			time.Sleep(5 * time.Second)
			if why := c.Status().Why(time.Now()); !strings.Contains(why, "if it failed now, db2:1 lacks 100 bytes") {
				t.Errorf("why = %q, which does not say what would be lost", why)
			}
			s.set(func() { s.refusing["db1:1"] = true })
			// Checks begin at any moment of their interval, and so does the election.
			for range 100 {
				if p := c.Progress(); p != nil && p.Step == StageVerifying {
					break
				}
				time.Sleep(50 * time.Millisecond)
			}
			if why := c.Status().Why(time.Now()); !strings.Contains(why, "until it says that it is primary") {
				t.Errorf("why = %q during the verification", why)
			}
			if p := c.Progress(); p == nil || p.Step != StageVerifying || p.Until.IsZero() {
				t.Errorf("progress = %+v, want verifying", p)
			}
			time.Sleep(10 * time.Second)
			if got := c.Status(); got.Primary != "db2:1" || got.Term != 4 || got.Identity != "ours" {
				t.Errorf("primary %q in term %d of %q, want db2:1 in term 4 of ours", got.Primary, got.Term, got.Identity)
			}
			all, _ := c.Incidents()
			last := all[len(all)-1]
			if last.Loss == nil || last.Loss.Host != "db2:1" || last.Loss.Bytes == nil || *last.Loss.Bytes != 100 || last.Outcome != Open {
				t.Errorf("the incident is %+v with loss %v, want open and 100 bytes of db2:1", last, last.Loss)
			}
		})
		for _, want := range []string{"UNDERSTUDY_ROLE=replica", "UNDERSTUDY_TERM=3", "UNDERSTUDY_IDENTITY=ours", "UNDERSTUDY_POSITION=4900", "UNDERSTUDY_LAG_BYTES=100", "UNDERSTUDY_LAG_SECONDS="} {
			if story := strings.Join(s.events(), "\n"); !strings.Contains(story, want) {
				t.Errorf("the trigger does not get %s:\n%s", want, story)
			}
		}
		if !strings.Contains(log, "predicted loss of data") {
			t.Errorf("the log does not have the predicted loss:\n%s", log)
		}
	})
}

// A planned change loses nothing, though the replica lacks something when it begins.
func TestPlannedChangeLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		said := cast{"db1:1": fact(role.Primary, 3, 5000), "db2:1": fact(role.Replica, 3, 4900)}
		log := perform(t, s, s.roles(said, selector.RoleRules{Promote: true}), func(host string) {
			if host == "db2:1" {
				s.play(said, host, fact(role.Primary, 4, 5000))
				s.play(said, "db1:1", fact(role.Replica, 3, 5000))
			}
		}, func(c *Conductor) {
			time.Sleep(10 * time.Second)
			if _, err := c.Switch(t.Context(), SwitchRequest{Host: "db2:1"}); err != nil {
				t.Fatal(err)
			}
			all, _ := c.Incidents()
			if last := all[len(all)-1]; last.New != "db2:1" || last.Outcome != Open || last.Loss != nil {
				t.Errorf("the incident is %+v with loss %v, want open and no loss", last, last.Loss)
			}
		})
		if story := strings.Join(s.events(), "\n"); !strings.Contains(story, "UNDERSTUDY_LAG_BYTES=100") {
			t.Errorf("the trigger does not get what the host lacked:\n%s", story)
		}
		if strings.Contains(log, "predicted loss of data") {
			t.Errorf("the log predicts a loss:\n%s", log)
		}
	})
}

// A promote script that says 0 and has not promoted does not open the relay.
func TestPromotionThatWasNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		said := cast{"db1:1": fact(role.Primary, 3, 5000), "db2:1": fact(role.Replica, 3, 5000)}
		cfg := s.roles(said, selector.RoleRules{Promote: true, Verify: 5 * time.Second})
		log := perform(t, s, cfg, func(string) {}, func(c *Conductor) {
			time.Sleep(10 * time.Second)
			s.set(func() { s.refusing["db1:1"] = true })
			// Checks begin at any moment of their interval, and so does the election.
			got := c.Status()
			for range 100 {
				if strings.Contains(got.WhyHost("db2:1", time.Now()), "rejected") {
					break
				}
				time.Sleep(100 * time.Millisecond)
				got = c.Status()
			}
			if got.Phase == selector.Serving || !strings.Contains(got.WhyHost("db2:1", time.Now()), "rejected") {
				t.Errorf("phase %v, why %q, want db2:1 rejected", got.Phase, got.WhyHost("db2:1", time.Now()))
			}
			all, _ := c.Incidents()
			last := all[len(all)-1]
			if last.New != "db2:1" || last.Outcome != Aborted || !last.Done || !strings.Contains(last.Failure, "still says replica") {
				t.Errorf("the incident is %+v, want the failure of db2:1", last)
			}
		})
		if got := opened(s); got != "1 db1:1" {
			t.Errorf("opened: %q, want db1:1 only", got)
		}
		if !strings.Contains(log, "election aborted, the host is not primary after its triggers") {
			t.Errorf("the log does not say that the election was aborted:\n%s", log)
		}
	})
}

// Two hosts that say that they are primary are an alarm, once, and no change.
func TestTwoWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		said := cast{"db1:1": fact(role.Primary, 0, 0), "db2:1": fact(role.Replica, 0, 0)}
		log := conduct(t, s, s.roles(said, selector.RoleRules{}), func(c *Conductor) {
			time.Sleep(10 * time.Second)
			s.play(said, "db2:1", fact(role.Primary, 0, 0))
			time.Sleep(time.Minute)
			got := c.Status()
			if got.Primary != "db1:1" || len(got.Writers) != 2 {
				t.Errorf("primary %q, writers %v, want db1:1 and both", got.Primary, got.Writers)
			}
			if why := got.Why(time.Now()); !strings.Contains(why, "db1:1 and db2:1 both say that they are primary") {
				t.Errorf("why = %q", why)
			}
			s.play(said, "db2:1", fact(role.Replica, 0, 0))
			time.Sleep(10 * time.Second)
			if got := c.Status().Writers; got != nil {
				t.Errorf("writers %v, want none", got)
			}
		})
		if n := strings.Count(log, "[WARN]  failover: two hosts say that they are primary"); n != 1 {
			t.Errorf("%d warnings of two writers, want 1:\n%s", n, log)
		}
		if got := opened(s); got != "1 db1:1" {
			t.Errorf("opened: %q, want no change", got)
		}
	})
}

// The promotion of a person is followed within 0.2 s.
func TestFollowsAPromotion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		said := cast{"db1:1": fact(role.Primary, 1, 0), "db2:1": fact(role.Replica, 1, 0)}
		conduct(t, s, s.roles(said, selector.RoleRules{}), func(c *Conductor) {
			time.Sleep(10 * time.Second)
			s.set(func() { s.refusing["db1:1"] = true })
			time.Sleep(3333 * time.Millisecond)
			if got := c.Status().Primary; got != "" {
				t.Fatalf("%s is primary, and no host is", got)
			}
			s.play(said, "db2:1", fact(role.Primary, 2, 0))
			time.Sleep(200 * time.Millisecond)
			if got := c.Status().Primary; got != "db2:1" {
				t.Errorf("0.2s after its promotion %q is primary, want db2:1", got)
			}
		})
	})
}

// A login that is refused takes no primary down, and is said loudly.
func TestRefusedLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		said := cast{"db1:1": fact(role.Primary, 1, 0), "db2:1": fact(role.Replica, 1, 0)}
		log := conduct(t, s, s.roles(said, selector.RoleRules{Promote: true}), func(c *Conductor) {
			time.Sleep(10 * time.Second)
			s.play(said, "db1:1", role.Fact{Detail: "password authentication failed"})
			time.Sleep(time.Hour)
			if got := c.Status(); got.Primary != "db1:1" || !strings.Contains(got.Why(time.Now()), "role is unknown (password authentication failed)") {
				t.Errorf("primary %q: %s", got.Primary, got.Why(time.Now()))
			}
		})
		if !strings.Contains(log, "[WARN]  failover: check is unknown and is ignored") {
			t.Errorf("the log does not say that the role is unknown:\n%s", log)
		}
	})
}

// Term and identity outlive a restart: a primary of an earlier term, or of another cluster,
// does not come first because the last one is away.
func TestRolesOutliveARestart(t *testing.T) {
	dir := t.TempDir()
	run := func(said cast, refusing string, play func(c *Conductor)) {
		synctest.Test(t, func(t *testing.T) {
			file, err := OpenStateFile(dir, "orders", nil)
			if err != nil {
				t.Fatal(err)
			}
			s := newStage()
			s.refusing[refusing] = true
			cfg := s.roles(said, selector.RoleRules{})
			cfg.StateFile = file
			conduct(t, s, cfg, play)
			file.Close()
		})
	}
	run(cast{"db2:1": fact(role.Primary, 7, 0)}, "db1:1", func(c *Conductor) {
		time.Sleep(20 * time.Second)
		if got := c.Status().Primary; got != "db2:1" {
			t.Fatalf("%q is primary, want db2:1", got)
		}
	})
	for name, stale := range map[string]role.Fact{"an earlier term": fact(role.Primary, 6, 0), "another cluster": {Role: role.Primary, Term: 9, Identity: "theirs"}} {
		run(cast{"db1:1": stale}, "db2:1", func(c *Conductor) {
			time.Sleep(20 * time.Second)
			if got := c.Status().Primary; got != "" {
				t.Errorf("%s: %q is primary after the restart", name, got)
			}
		})
	}
}

// A drill knows who would be elected, and why another one would not.
func TestDrillWithRoles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct {
			name  string
			rules selector.RoleRules
			want  string
		}{
			{"promote", selector.RoleRules{Promote: true}, "db2:1 would take over from db1:1"},
			{"no promote", selector.RoleRules{}, "no host would take over from db1:1"},
			{"lag", selector.RoleRules{Promote: true, MaxLagBytes: 10}, "no host would take over from db1:1"},
		} {
			s := newStage()
			said := cast{"db1:1": fact(role.Primary, 1, 5000), "db2:1": fact(role.Replica, 1, 4900)}
			conduct(t, s, s.roles(said, tt.rules), func(c *Conductor) {
				time.Sleep(10 * time.Second)
				r, err := c.Drill(t.Context(), DrillRequest{})
				if err != nil || r.Text != tt.want {
					t.Errorf("%s: drill = %q, %v, want %q", tt.name, r.Text, err, tt.want)
				}
			})
		}
	})
}

// The states that say nothing about data are not shown as a loss.
func TestLossText(t *testing.T) {
	bytes, none, seconds := uint64(12), uint64(0), 3.25
	for _, tt := range []struct {
		loss Loss
		want string
	}{
		{Loss{Host: "b", Bytes: &bytes, Seconds: &seconds}, "b lacks 12 bytes, 3.3s"},
		{Loss{Host: "b", Bytes: &bytes}, "b lacks 12 bytes"},
		{Loss{Host: "b", Bytes: &none}, "b lacks nothing"},
	} {
		if got := tt.loss.String(); got != tt.want {
			t.Errorf("String = %q, want %q", got, tt.want)
		}
	}
	if got := lossOf(selector.Loss{Host: "b"}); got != nil {
		t.Errorf("a loss that is not known is %v, want nil", got)
	}
}
