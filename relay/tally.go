package relay

import (
	"sync"
	"sync/atomic"
)

// HostStats counts the connections to one host since the start.
type HostStats struct {
	Sessions uint64 // clients that got a byte from it
	Live     uint64 // of those, open now
	Sent     uint64 // bytes from clients to it
	Received uint64 // bytes from it to clients
}

// tally counts what a data plane, or one loop of it, does with one host.
type tally struct {
	bytes           [2]atomic.Uint64 // moved, by the side they came from
	sessions, ended atomic.Uint64
	latencies       latencies // of one loop
	connects        latencies // of one loop; how long connects took
	dials           dials
}

// tallies are by the number of the host; see homes. The zero value is empty.
type tallies struct {
	mu  sync.Mutex // held to add to all
	all atomic.Pointer[[]*tally]
}

// of returns the tally of a host. It takes a lock only for a new host.
func (t *tallies) of(home int32) *tally {
	if all := t.all.Load(); all != nil && int(home) < len(*all) {
		return (*all)[home]
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*tally
	if old := t.all.Load(); old != nil {
		all = append(all, *old...)
	}
	for int(home) >= len(all) {
		all = append(all, new(tally))
	}
	t.all.Store(&all)
	return all[home]
}

// sumTallies adds up what several data planes, or loops, have counted. A
// connection may begin in one and end in another, so the ends are read first:
// there are never more of them than beginnings.
func sumTallies(all []*tallies) (hosts []HostStats) {
	for _, add := range []func(*HostStats, *tally){
		func(to *HostStats, from *tally) { to.Live -= from.ended.Load() },
		func(to *HostStats, from *tally) {
			sessions := from.sessions.Load()
			to.Sessions += sessions
			to.Live += sessions
			to.Sent += from.bytes[client].Load()
			to.Received += from.bytes[host].Load()
		},
	} {
		for _, t := range all {
			counts := t.all.Load()
			if counts == nil {
				continue
			}
			for n, from := range *counts {
				if n == len(hosts) {
					hosts = append(hosts, HostStats{})
				}
				add(&hosts[n], from)
			}
		}
	}
	return hosts
}

// HostStats counts the connections to each host, keyed by the host as given to
// [Relay.Open].
func (r *Relay) HostStats() map[string]HostStats {
	return byHost(r, r.plane.hostStats(), nil)
}
