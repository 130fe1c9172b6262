package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// answer is one line that a host has answered.
type answer struct {
	host string
	at   time.Duration // when the host had read the line, on the machine's clock
}

// client is one connection of the load. Times are on the machine's clock.
type client struct {
	start, end time.Duration // from the connect to the answer or the failure
	host       string        // the host that greeted; empty if none did
	answers    []answer      // one, or many of a session that stays
	err        error         // why it was lost; nil otherwise
	opening    string        // the name of what it said first; empty if the host spoke first
}

// load is the result of all clients of a trial.
type load struct {
	begin, end time.Duration // of the time in which new clients came
	clients    []client      // each came, sent one line and left
	sessions   []client      // each came before the fault and stayed
	late       time.Duration // by how much a client came too late at most, since the machine had no time for it
}

// The names of the hosts: the one that is primary at first, and the other.
const (
	oldHost = "db1"
	newHost = "db2"
)

// outcome is the reported result of a trial.
type outcome struct {
	gap     time.Duration // longest time in which no new client was served
	never   bool          // the gap lasted until the load ended
	clients int
	lost    int            // of clients
	greeted int            // of lost: a host had begun to serve them
	lostBy  map[string]int // of lost: by the opening
	p999    time.Duration  // of the time that served clients took
	slowest time.Duration
	by      map[string]int // clients served by each host
	wrong   int            // clients and sessions that the old host answered after the new one had answered any
	left    int            // sessions with the old host that were open at the end
	late    time.Duration
	reasons map[string]int // of lost
}

// evaluate works out the outcome of a load.
func (l load) evaluate() outcome {
	o := outcome{clients: len(l.clients), by: map[string]int{}, lostBy: map[string]int{}, late: l.late, reasons: map[string]int{}}
	served := make([]client, 0, len(l.clients))
	for _, c := range l.clients {
		if c.err == nil {
			served = append(served, c)
			o.by[c.host]++
			continue
		}
		o.lost++
		o.reasons[reason(c.err)]++
		o.lostBy[c.opening]++
		if c.host != "" {
			o.greeted++
		}
	}
	o.gap, o.never = gap(served, l.begin, l.end)
	slices.SortFunc(served, func(a, b client) int { return cmp.Compare(a.end-a.start, b.end-b.start) })
	if n := len(served); n > 0 {
		o.slowest = served[n-1].end - served[n-1].start
		rank := (n*999 + 999) / 1000 // the nearest rank, from 1
		o.p999 = served[rank-1].end - served[rank-1].start
	}
	o.wrong = l.wrong()
	for _, s := range l.sessions {
		if s.err == nil && s.host == oldHost {
			o.left++
		}
	}
	return o
}

// outage is the time without a served client at the end of a load that is
// more than a pause of the machine: the service did not come back.
const outage = time.Second

// gap is the longest time between two clients that were served, and between the
// load's begin and end and the nearest of them. Never is true if it is the last
// one, long, and no client was served after it.
func gap(served []client, begin, end time.Duration) (longest time.Duration, never bool) {
	moments := make([]time.Duration, 0, len(served))
	for _, c := range served {
		moments = append(moments, c.end)
	}
	slices.Sort(moments)
	last := begin
	for _, m := range moments {
		longest = max(longest, m-last)
		last = m
	}
	if end-last > longest {
		return end - last, end-last >= outage
	}
	return longest, false
}

// wrong counts the clients that the old host answered after the new one had
// answered any: two primaries at the same time.
func (l load) wrong() int {
	everybody := slices.Concat(l.clients, l.sessions)
	var first time.Duration // of the new host; zero when it never answered
	for _, c := range everybody {
		for _, a := range c.answers {
			if a.host == newHost && (first == 0 || a.at < first) {
				first = a.at
			}
		}
	}
	if first == 0 {
		return 0
	}
	n := 0
	for _, c := range everybody {
		if slices.ContainsFunc(c.answers, func(a answer) bool { return a.host == oldHost && a.at > first }) {
			n++
		}
	}
	return n
}

// reason is why a client was lost, without what differs between two of them.
func reason(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}

// describeReasons is reasons in one line, the same for the same reasons.
func describeReasons(reasons map[string]int) string {
	var parts []string
	for _, r := range slices.Sorted(maps.Keys(reasons)) {
		parts = append(parts, fmt.Sprintf("%s ×%d", r, reasons[r]))
	}
	return strings.Join(parts, ", ")
}
