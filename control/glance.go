package control

import (
	"time"

	"understudy/failover"
	"understudy/relay"
)

// Glance is the part of a relay's status that changes all the time, and whether the rest of
// it has changed since the glance before. It costs little: who looks every second asks for
// the rest only when there is something new.
type Glance struct {
	Name    string
	Live    uint64          // clients
	Waiting int             // of them, and in the kernel's queue
	Took    []time.Duration // the last result of each check, host by host; none for one that has not run

	Changed  bool   // in more than durations, lags and what is counted
	Counted  bool   // what is counted has changed
	Recorded uint64 // grows with each change of its records

	relay   Relay
	seen    failover.Status
	stats   relay.Stats
	waiting relay.Waiting
}

// Glances looks at all relays, in the order of [Server.Status]. Before is what it returned the
// last time, which it changes; nil at first.
func (s *Server) Glances(before []Glance) []Glance {
	relays := s.cfg.Relays()
	if len(relays) != len(before) {
		before = make([]Glance, len(relays))
	}
	for i, r := range relays {
		before[i].look(r)
	}
	return before
}

// look brings g up to date.
func (g *Glance) look(r Relay) {
	now, stats, waiting := r.Conductor.Status(), r.Relay.Stats(), r.Relay.Waiting()
	g.Changed = r != g.relay || r.Conductor.Progress() != nil || !failover.Alike(&now, &g.seen)
	g.Counted = stats != g.stats || waiting != g.waiting || now.Roles // which have lags
	g.relay, g.seen, g.stats, g.waiting = r, now, stats, waiting
	g.Name, g.Live, g.Waiting, g.Recorded = now.Relay, stats.Live, waiting.Queued+waiting.Held, r.Conductor.Recorded()
	g.Took = g.Took[:0]
	for _, h := range now.Hosts {
		for _, k := range h.Checks {
			if !k.Last.At.IsZero() {
				g.Took = append(g.Took, k.Last.Latency)
			}
		}
	}
}

// Describe returns the whole status of the relay; process is that of the process.
func (s *Server) Describe(g *Glance, process *Status) RelayStatus { return process.describe(g.relay) }
