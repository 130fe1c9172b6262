package daemon

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"understudy/control"
	"understudy/correlate"
	"understudy/metrics"
)

// verdictsNow returns what the verdicts of the HTTP listener have answered.
func (a *answers) verdictsNow() (all []control.Verdict) {
	for _, r := range a.settings.Routes {
		if r.Verdict == nil && r.Heartbeat == nil {
			continue
		}
		v := a.counted[r.Path].Verdict()
		if ping := a.pings[r.Path]; ping != nil && v.Status != 0 && !v.Good() {
			v.Why = ping.Why()
		}
		all = append(all, v)
	}
	return all
}

// newMetrics makes the metrics of a service.
func newMetrics(s *service) http.Handler {
	version, _, _ := strings.Cut(s.version, " ") // what it was built from and with has labels of its own
	return metrics.NewHandler(metrics.Config{
		Version:  version,
		Relays:   s.controlled,
		Findings: func() correlate.Findings { return *s.findings.Load() },
		Routes: func() (all []*metrics.Route) {
			counted := s.answers.Load().counted
			for _, path := range slices.Sorted(maps.Keys(counted)) { // in the same order each time
				all = append(all, counted[path])
			}
			return all
		},
		Dropped: func() map[string]uint64 {
			return map[string]uint64{"log": s.journal.Dropped(), "verdicts": s.verdicts.Dropped(), "connections": s.connections.dropped.Load()}
		},
		Busy:       s.engine.Busy,
		Started:    time.Now(),
		LastReload: s.reloaded.Load,
		Probes:     func() []control.Probe { return s.answers.Load().probesNow() },
		Logger:     s.log,
	})
}
