package failover

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

func TestScheduledSwitch(t *testing.T) {
	events := triggers(t, "10-mail")
	order := func(t *testing.T, c *Conductor, host string, in time.Duration) {
		t.Helper()
		if _, err := c.Schedule(t.Context(), Scheduled{Host: host, At: time.Now().Add(in), By: "ann", Reason: "kernel"}); err != nil {
			t.Errorf("Schedule = %v", err)
		}
	}
	for _, tt := range []struct {
		name    string
		play    func(t *testing.T, s *stage, c *Conductor)
		primary string
		refusal string // empty for none
	}{
		{"it is made", func(t *testing.T, _ *stage, c *Conductor) {
			t.Helper()
			order(t, c, "b", time.Hour)
			time.Sleep(time.Hour - time.Second)
			if now := c.Status(); now.Primary != "a" || now.Scheduled == nil || now.Scheduled.Host != "b" || now.Scheduled.By != "ann" {
				t.Errorf("a second before: primary %s, scheduled %+v", now.Primary, now.Scheduled)
			}
			time.Sleep(3 * time.Second)
			if now := c.Status(); now.Event != "switchover" || now.Reason != "scheduled switch by ann: kernel" || now.Scheduled != nil {
				t.Errorf("afterwards: %s, %s, scheduled %+v", now.Event, now.Reason, now.Scheduled)
			}
		}, "b", ""},
		{"it is cancelled", func(t *testing.T, _ *stage, c *Conductor) {
			t.Helper()
			order(t, c, "b", time.Hour)
			if was, err := c.CancelScheduled(t.Context(), "ann"); err != nil || was.Host != "b" {
				t.Errorf("CancelScheduled = %+v, %v", was, err)
			}
			if _, err := c.CancelScheduled(t.Context(), "ann"); refused(t, err) != "no switch is scheduled" {
				t.Error(err)
			}
			time.Sleep(2 * time.Hour)
		}, "a", ""},
		{"another one replaces it", func(t *testing.T, _ *stage, c *Conductor) {
			t.Helper()
			order(t, c, "b", time.Hour)
			order(t, c, "c", 2*time.Hour)
			time.Sleep(3 * time.Hour)
		}, "c", ""},
		{"its host is not usable then", func(t *testing.T, s *stage, c *Conductor) {
			t.Helper()
			order(t, c, "b", time.Hour)
			s.set(func() { s.refusing["b"] = true })
			time.Sleep(2 * time.Hour)
		}, "a", "tcp: connection refused"},
		{"it is primary already", func(t *testing.T, s *stage, c *Conductor) {
			t.Helper()
			order(t, c, "b", time.Hour)
			s.set(func() { s.refusing["a"] = true })
			time.Sleep(2 * time.Hour)
		}, "b", "it is primary already"},
		{"no host is primary then", func(t *testing.T, s *stage, c *Conductor) {
			t.Helper()
			order(t, c, "b", time.Hour)
			s.set(func() { s.refusing["a"], s.refusing["b"], s.refusing["c"] = true, true, true })
			time.Sleep(2 * time.Hour)
		}, "", "late: there was no primary then"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, l := newStage(), &listener{}
				conduct(t, s, Config{Hosts: []string{"a", "b", "c"}, Notices: Notices{Path: events}, Triggers: Triggers{Timeout: time.Minute}, NoticeScripts: l}, func(c *Conductor) {
					time.Sleep(10 * time.Second)
					tt.play(t, s, c)
					now := c.Status()
					if now.Primary != tt.primary || now.Scheduled != nil {
						t.Errorf("primary %q, scheduled %+v; want %q and nothing", now.Primary, now.Scheduled, tt.primary)
					}
					list, _ := c.Incidents()
					last := list[len(list)-1]
					was := last.Outcome == SwitchRefused && last.Done && last.By == "ann" && strings.Contains(last.Failure, tt.refusal)
					if was != (tt.refusal != "") {
						t.Errorf("the last record: %+v, want a refusal %q", last, tt.refusal)
					}
					heard := strings.Join(l.events(), " ")
					if strings.Contains(heard, string(EventSwitchRefused)) != (tt.refusal != "") {
						t.Errorf("heard %s", heard)
					}
				})
			})
		})
	}
}

func TestScheduleIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conduct(t, newStage(), Config{Hosts: []string{"a", "b"}}, func(c *Conductor) {
			time.Sleep(time.Second)
			_, err := c.Schedule(t.Context(), Scheduled{Host: "z", At: time.Now().Add(time.Hour)})
			if got := refused(t, err); !strings.Contains(got, `no host "z"`) {
				t.Error(got)
			}
			_, err = c.Schedule(t.Context(), Scheduled{Host: "b", At: time.Now()})
			if got := refused(t, err); !strings.HasSuffix(got, "is over") {
				t.Error(got)
			}
		})
	})
}

// A scheduled switch survives a restart. One that became due while the program
// was not running is made if that was a moment ago, and refused otherwise.
func TestScheduledSwitchSurvivesARestart(t *testing.T) {
	for _, tt := range []struct {
		name    string
		away    time.Duration
		primary string
		refused bool
	}{
		{"before", 30 * time.Minute, "b", false},
		{"a moment late", 62 * time.Minute, "b", false},
		{"much too late", 70 * time.Minute, "a", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				run := func(play func(c *Conductor)) {
					file, err := OpenStateFile(dir, "orders", hclog.NewNullLogger())
					if err != nil {
						t.Fatal(err)
					}
					defer file.Close()
					conduct(t, newStage(), Config{Hosts: []string{"a", "b"}, StateFile: file}, play)
				}
				run(func(c *Conductor) {
					time.Sleep(10 * time.Second)
					if _, err := c.Schedule(t.Context(), Scheduled{Host: "b", At: time.Now().Add(time.Hour)}); err != nil {
						t.Error(err)
					}
				})
				time.Sleep(tt.away)
				run(func(c *Conductor) {
					time.Sleep(40 * time.Minute)
					list, _ := c.Incidents()
					was := slices.ContainsFunc(list, func(i Incident) bool { return i.Outcome == SwitchRefused })
					if now := c.Status(); now.Primary != tt.primary || was != tt.refused || now.Scheduled != nil {
						t.Errorf("primary %s, refused %v, scheduled %+v; want %s, %v: %+v", now.Primary, was, now.Scheduled, tt.primary, tt.refused, list)
					}
				})
			})
		})
	}
}
