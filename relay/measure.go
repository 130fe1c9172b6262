package relay

import (
	"errors"
	"sync/atomic"
	"syscall"

	"understudy/internal/fault"
	"understudy/internal/histogram"
)

// Measured is what a relay has counted since the start, at one moment: Accepted is the
// sum of Finished, Reset, Fenced, Expired, Aborted and Open.
type Measured struct {
	Stats
	Open Open

	Queued int   // clients in the kernel's queue, which are not accepted
	Limit  int64 // of Open

	Refuses bool // clients are refused, and not only let wait

	NoHeader   uint64 // of Denied: those that sent no PROXY header
	TurnedAway uint64 // reset in the kernel's queue because Hold was over; not in Accepted

	// Local counts failures of this machine.
	Local LocalFailures

	// The time that clients waited for a host: those that got one, those that waited
	// longer than Hold, and those that left. A client that is connected without a wait
	// is in none of them. On Linux the time in the kernel's queue counts.
	HoldServed, HoldExpired, HoldGone histogram.Snapshot

	Hosts map[string]MeasuredHost // keyed by the host as given to [Relay.Open]
}

// Open counts the open connections that are admitted, by what they do. They are counted
// where connections change what they do, and not derived from the other counts.
type Open struct {
	Connecting int64 // a connect to a host is under way
	Held       int64 // they wait for a host
	Relaying   int64
}

// Total returns their number.
func (o Open) Total() int64 { return o.Connecting + o.Held + o.Relaying }

// LocalFailures counts failures of this machine by the call that failed.
type LocalFailures struct {
	Accept, Connect, Watch uint64
}

// MeasuredHost is what a relay has counted of one host.
type MeasuredHost struct {
	HostStats

	// Connects for clients, by how they ended. Failed is neither refused nor without an
	// answer in time; Local is a failure of this machine.
	Made, Refused, TimedOut, Failed, Local uint64

	Connect   histogram.Snapshot // how long those that were made took
	FirstByte histogram.Snapshot // from a client's first bytes to the first byte of the host; Linux only

	Unanswered int // clients that wait for an answer for longer than is usual; Linux only
}

// Add adds what is counted at another address of the host.
func (h *MeasuredHost) Add(n *MeasuredHost) {
	h.Sessions, h.Live, h.Sent, h.Received = h.Sessions+n.Sessions, h.Live+n.Live, h.Sent+n.Sent, h.Received+n.Received
	h.Made, h.Refused, h.TimedOut, h.Failed, h.Local = h.Made+n.Made, h.Refused+n.Refused, h.TimedOut+n.TimedOut, h.Failed+n.Failed, h.Local+n.Local
	h.Connect.Merge(&n.Connect)
	h.FirstByte.Merge(&n.FirstByte)
	h.Unanswered += n.Unanswered
}

// Measure returns what the relay has counted.
func (r *Relay) Measure() (m Measured) {
	r.MeasureTo(&m)
	return m
}

// MeasureTo is Measure into what it has returned before, also for another relay.
func (r *Relay) MeasureTo(m *Measured) {
	*m = Measured{Hosts: m.Hosts}
	counts, hosts := r.plane.measure(m)
	m.Stats = counts
	m.Silent = r.silents.Load()
	m.Live = m.Accepted - m.Finished - m.Reset - m.Fenced - m.Expired - m.Aborted
	m.Limit = r.cfg.Load().limit
	m.TurnedAway = r.turnedAway.Load()
	m.Local = LocalFailures{r.localAccept.Load(), r.localConnect.Load(), r.localWatch.Load()}
	for _, h := range hosts {
		m.Sent, m.Received = m.Sent+h.Sent, m.Received+h.Received
	}
	r.gating.Lock()
	m.Refuses, m.Queued = !r.listens, r.queuedLocked()
	r.gating.Unlock()
	m.Hosts = byHost(r, hosts, m.Hosts)
}

// byHost returns what is counted by the number of a host by its name. It uses the room of
// all, which may be nil.
func byHost[T any](r *Relay, counts []T, all map[string]T) map[string]T {
	r.homes.mu.Lock()
	defer r.homes.mu.Unlock()
	if all == nil {
		all = make(map[string]T, len(counts))
	}
	clear(all)
	for k, name := range r.homes.all {
		if k+1 < len(counts) {
			all[name] = counts[k+1]
		}
	}
	return all
}

// dials counts the connects to one host.
type dials struct {
	made, refused, timedOut, failed, local atomic.Uint64

	took      histogram.Histogram
	firstByte histogram.Histogram
}

// failure counts a connect that failed.
func (c *dials) failure(err error) {
	switch {
	case fault.Local(err):
		c.local.Add(1)
	case errors.Is(err, syscall.ECONNREFUSED):
		c.refused.Add(1)
	case errors.Is(err, errTimeout), errors.Is(err, syscall.ETIMEDOUT):
		c.timedOut.Add(1)
	default:
		c.failed.Add(1)
	}
}

// addTo adds what is counted to m.
func (c *dials) addTo(m *MeasuredHost) {
	m.Made += c.made.Load()
	m.Refused += c.refused.Load()
	m.TimedOut += c.timedOut.Load()
	m.Failed += c.failed.Load()
	m.Local += c.local.Load()
	m.Connect.Add(&c.took)
	m.FirstByte.Add(&c.firstByte)
}

// measureTallies adds up what several data planes, or loops, have counted of each host.
func measureTallies(all []*tallies) []MeasuredHost {
	sums := sumTallies(all)
	hosts := make([]MeasuredHost, len(sums))
	for k := range sums {
		hosts[k].HostStats = sums[k]
	}
	for _, t := range all {
		if counts := t.all.Load(); counts != nil {
			for k, from := range (*counts)[:min(len(*counts), len(hosts))] {
				from.dials.addTo(&hosts[k])
			}
		}
	}
	return hosts
}

// holds counts the time that clients waited for a host.
type holds struct {
	served, expired, gone histogram.Histogram
}

// addTo adds what is counted to m.
func (h *holds) addTo(m *Measured) {
	m.HoldServed.Add(&h.served)
	m.HoldExpired.Add(&h.expired)
	m.HoldGone.Add(&h.gone)
}

// of returns the histogram of those that ended without a host; nil for an outcome that
// says nothing about their wait.
func (h *holds) of(o outcome) *histogram.Histogram {
	switch o {
	case outcomeExpired:
		return &h.expired
	case outcomeAborted:
		return &h.gone
	case outcomeFinished, outcomeReset, outcomeFenced:
	}
	return nil
}
