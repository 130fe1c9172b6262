package failover

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/selector"
)

// Times are virtual, and so is each sleep: the tests run in a bubble of
// testing/synctest; see conduct.

// Predictions cover a failover to another usable host. An outage of the only
// host, or of every host, is not compared with them.
func TestNoBoundWhileNoHostIsUsable(t *testing.T) {
	for _, tt := range []struct {
		name  string
		hosts []string
		back  string
		want  selector.Kind
	}{
		{"the only host", []string{"a"}, "a", selector.Reselect},
		{"all hosts, the same comes back", []string{"a", "b"}, "a", selector.Reselect},
		{"all hosts, another comes back", []string{"a", "b"}, "b", selector.Failover},
	} {
		for _, away := range []time.Duration{3 * time.Second, 30 * time.Second} {
			t.Run(tt.name+" after "+away.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newStage()
					log := conduct(t, s, Config{Hosts: tt.hosts}, func(c *Conductor) {
						time.Sleep(5 * time.Second)
						s.set(func() { s.refusing["a"], s.refusing["b"] = true, true })
						time.Sleep(away)
						s.set(func() { s.refusing[tt.back] = false })
						time.Sleep(90 * time.Second)
						list, _ := c.Incidents()
						if i := list[len(list)-1]; i.Event != tt.want || i.New != tt.back || i.OverBound || i.BoundSeconds != 0 {
							t.Errorf("the record is %+v, want %s to %s without a bound", i, tt.want, tt.back)
						}
					})
					if strings.Contains(log, "longer than predicted") {
						t.Errorf("the log has a bound that no prediction gave:\n%s", log)
					}
				})
			})
		}
	}
}
