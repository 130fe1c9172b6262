package metrics

import (
	"cmp"
	"maps"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"understudy/control"
	"understudy/correlate"
	"understudy/failover"
	"understudy/internal/role"
	"understudy/relay"
	"understudy/selector"
)

// collector reads everything anew for each scrape, always in the same order.
type collector struct {
	cfg      Config
	revision string
}

// collect writes the values of this moment.
func (c *collector) collect(to *sheet) {
	buildInfo.set(to, 1, c.cfg.Version, c.revision, runtime.Version())
	found := c.cfg.Findings()
	for _, r := range c.cfg.Relays() {
		collectRelay(to, r, found.Disagreements)
	}
	commonOutage.is(to, found.Outage != nil)
	for _, r := range c.cfg.Routes() {
		r.collect(to)
	}
	for _, p := range c.cfg.Probes() {
		probeUp.is(to, p.State == "up", p.Name)
		probeStale.is(to, p.Stale, p.Name)
	}
	good, at := true, c.cfg.Started
	if last := c.cfg.LastReload(); last != nil {
		if good = last.OK; good {
			at = last.At
		}
	}
	reloadOK.is(to, good)
	reloadAt.set(to, seconds(at))
	dropped := c.cfg.Dropped()
	for _, sink := range slices.Sorted(maps.Keys(dropped)) {
		logDropped.count(to, dropped[sink], sink)
	}
	for loop, busy := range c.cfg.Busy() {
		loopBusy.set(to, busy.Seconds(), strconv.Itoa(loop))
	}
}

// seconds is a time as Prometheus has it; 0 for none.
func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}

func collectRelay(to *sheet, r control.Relay, disagreements []correlate.Disagreement) {
	s, m, counts := r.Conductor.Status(), &to.relay, &to.conductor
	r.Relay.MeasureTo(m)
	r.Conductor.MeasureTo(counts)
	name := s.Relay
	state := s.Phase.String()
	if s.Primary == "" && s.Phase == selector.Serving { // the gate is not open yet
		state = selector.Switching.String()
	}
	if m.Refuses {
		state = "refusing"
	}
	for _, k := range []string{selector.Selecting.String(), selector.Switching.String(), selector.Serving.String(), "refusing"} {
		relayState.is(to, k == state, name, k)
	}
	relayEpoch.set(to, float64(s.Epoch), name)
	relayFrozen.is(to, s.Frozen, name)
	relayDisagrees.is(to, slices.ContainsFunc(disagreements, func(d correlate.Disagreement) bool {
		return slices.ContainsFunc(d.Primaries, func(p correlate.PrimaryOfRelay) bool { return p.Relay == name })
	}), name)
	electionLast.set(to, seconds(s.Elected), name)
	drillSuccess.set(to, seconds(s.GoodDrill), name)
	collectCluster(to, name, s.Cluster)
	collectClients(to, name, m)
	collectHosts(to, r, &s, m, counts)
	collectElections(to, name, counts)
	for _, k := range r.Conductor.PredictedCases() {
		if k.Traffic {
			continue // the other one is the worst case
		}
		longest := k.TotalSeconds
		if k.Never {
			longest = math.Inf(1)
		}
		predicted.set(to, longest, name, string(k.Failure))
	}
}

// collectCluster writes the state of the agreement with other instances; nothing for nil.
func collectCluster(to *sheet, name string, c *failover.ClusterStatus) {
	if c == nil {
		return
	}
	clusterLease.set(to, max(c.Lease, 0).Seconds(), name)
	clusterHeard.set(to, float64(c.Fresh), name)
	clusterMembers.set(to, float64(len(c.Record.Roster)), name)
	clusterRefusing.set(to, float64(len(c.Unanswered)), name)
	clusterDown.set(to, float64(c.Down), name)
	clusterIsolated.is(to, c.Isolated, name)
	clusterTrouble.is(to, c.Trouble != "", name)
	clusterTwice.is(to, c.Rival != "", name)
	clusterClocks.is(to, c.Clocks != "", name)
	clusterStoreUp.is(to, c.Failing.IsZero(), name)
	clusterStore.set(to, c.Latency.Seconds(), name)
}

func collectClients(to *sheet, name string, m *relay.Measured) {
	connections.set(to, float64(m.Queued), name, "queued")
	connections.set(to, float64(m.Open.Held), name, "held")
	connections.set(to, float64(m.Open.Connecting), name, "connecting")
	connections.set(to, float64(m.Open.Relaying), name, "relaying")
	connectionsLimit.set(to, float64(m.Limit), name)
	connectionsAccepted.count(to, m.Accepted, name)
	connectionsClosed.count(to, m.Finished, name, "finished")
	connectionsClosed.count(to, m.Reset, name, "reset")
	connectionsClosed.count(to, m.Fenced, name, "fenced")
	connectionsClosed.count(to, m.Expired, name, "expired")
	connectionsClosed.count(to, m.Aborted, name, "gone")
	connectionsDenied.count(to, m.Denied-m.NoHeader, name, "network")
	connectionsDenied.count(to, m.NoHeader, name, "header")
	connectionsDenied.count(to, m.TurnedAway, name, "hold")
	unansweredClosed.count(to, m.Unanswered, name)
	replayed.count(to, m.Replayed, name)
	holdDuration.observe(to, &m.HoldServed, name, "served")
	holdDuration.observe(to, &m.HoldExpired, name, "expired")
	holdDuration.observe(to, &m.HoldGone, name, "gone")
	localFailures.count(to, m.Local.Accept, name, "accept")
	localFailures.count(to, m.Local.Connect, name, "connect")
	localFailures.count(to, m.Local.Watch, name, "watch")
}

// collectHosts writes what is known of each host of the settings.
func collectHosts(to *sheet, r control.Relay, s *failover.Status, m *relay.Measured, counts *failover.Measured) {
	name := s.Relay
	clear(to.hosts)
	for address, h := range m.Hosts {
		host := cmp.Or(r.Conductor.HostAt(address), address)
		if sum, found := to.hosts[host]; found { // it has had several addresses
			h.Add(&sum)
		}
		to.hosts[host] = h
	}
	usable := 0
	for _, h := range s.Hosts {
		if h.State == selector.Up && !h.Drained && !h.Rejected {
			usable++
		}
		hostPrimary.is(to, h.Name == s.Primary, name, h.Name)
		hostUp.is(to, h.State == selector.Up, name, h.Name)
		hostDrained.is(to, h.Drained, name, h.Name)
		hostGuarded.is(to, h.Guarded, name, h.Name)
		hostPenalty.set(to, h.Penalty.Seconds(), name, h.Name)
		for _, state := range []selector.State{selector.Up, selector.Down, selector.Unknown} {
			hostStateChanges.count(to, counts.Changes[failover.ChangeOf{Host: h.Name, To: state}], name, h.Name, state.String())
		}
		for _, k := range h.Checks {
			checkUp.is(to, k.State == selector.Up, name, h.Name, k.Name)
			n := counts.Checks[failover.CheckOf{Host: h.Name, Check: k.Name}]
			checks.count(to, n.Passed, name, h.Name, k.Name, "passed")
			checks.count(to, n.Failed, name, h.Name, k.Name, "failed")
			checks.count(to, n.Unknown, name, h.Name, k.Name, "unknown")
			checkDuration.observe(to, &n.Took, name, h.Name, k.Name)
		}
		n := to.hosts[h.Name] // nothing if no client was connected to it yet
		hostConnects.count(to, n.Made, name, h.Name, "made")
		hostConnects.count(to, n.Refused, name, h.Name, "refused")
		hostConnects.count(to, n.TimedOut, name, h.Name, "timeout")
		hostConnects.count(to, n.Failed, name, h.Name, "failed")
		hostConnects.count(to, n.Local, name, h.Name, "local")
		hostConnect.observe(to, &n.Connect, name, h.Name)
		firstByte.observe(to, &n.FirstByte, name, h.Name)
		unansweredNow.set(to, float64(n.Unanswered), name, h.Name)
		hostSessions.set(to, float64(n.Live), name, h.Name)
		relayedBytes.count(to, n.Sent, name, h.Name, "to_host")
		relayedBytes.count(to, n.Received, name, h.Name, "from_host")
	}
	hostUsable.set(to, float64(usable), name)
	hosts.set(to, float64(len(s.Hosts)), name)
	if s.Roles {
		collectRoles(to, s)
	}
}

// collectRoles writes what the hosts say of themselves, of a relay that asks them.
func collectRoles(to *sheet, s *failover.Status) {
	writers := len(s.Writers) // empty unless each of several was asked again
	for _, h := range s.Hosts {
		for _, r := range []role.Role{role.Primary, role.Replica, role.Starting, role.Unknown} {
			hostRole.is(to, h.Says == r, s.Relay, h.Name, r.String())
		}
		if h.Says == role.Primary {
			writers = max(writers, 1)
		}
		if h.Says != role.Replica {
			continue
		}
		if h.Lag.BytesKnown {
			hostLagBytes.count(to, h.Lag.Bytes, s.Relay, h.Name)
		}
		if h.Lag.TimeKnown {
			hostLag.set(to, h.Lag.Time.Seconds(), s.Relay, h.Name)
		}
	}
	hostWriters.set(to, float64(writers), s.Relay)
	if loss := s.PredictedLoss(); loss != nil {
		if loss.Bytes != nil {
			lossBytes.count(to, *loss.Bytes, s.Relay)
		}
		if loss.Seconds != nil {
			lossTime.set(to, *loss.Seconds, s.Relay)
		}
	}
}

// outcome is an outcome of elections, with its label.
type outcome struct {
	failover.Outcome
	label string
}

// The events and outcomes of elections, the phases of each event, and the outcomes of a
// canary's attempts.
var (
	events   = failover.Kinds()
	outcomes = func() (all []outcome) {
		for _, o := range failover.Outcomes() {
			all = append(all, outcome{o, strings.ReplaceAll(string(o), " ", "_")})
		}
		return all
	}()
	phases = func() (all [][]failover.Phase) {
		for _, event := range events {
			all = append(all, failover.Phases(event))
		}
		return all
	}()
	canaryOutcomes = failover.CanaryOutcomes()
)

func collectElections(to *sheet, name string, counts *failover.Measured) {
	for k, event := range events {
		for _, o := range outcomes {
			elections.count(to, counts.Elections[failover.ElectionOf{Event: event, Outcome: o.Outcome}], name, string(event), o.label)
		}
		for _, phase := range phases[k] {
			s, known := counts.Phases[failover.PhaseOf{Event: event, Phase: phase}]
			if !known && event != selector.Failover && event != selector.Switchover {
				continue // these would be half of all lines, and nobody asks for them
			}
			phaseDuration.observe(to, &s, name, string(event), string(phase))
		}
	}
	overBound.count(to, counts.OverBound, name)
	if k := counts.Canary; k != nil {
		for _, outcome := range canaryOutcomes {
			canaryTries.count(to, k.Attempts[outcome], name, string(outcome))
		}
		canaryTook.observe(to, &k.Took, name)
		canaryOutage.set(to, k.Outage.Seconds(), name)
	}
	fencedTotal.count(to, counts.FencedFinished, name, "finished")
	fencedTotal.count(to, counts.FencedReset, name, "reset")
	fencedTotal.count(to, counts.FencedMoved, name, "moved")
	for _, script := range slices.Sorted(maps.Keys(counts.Triggers)) {
		n := counts.Triggers[script]
		triggerRuns.count(to, n.Passed, name, script, "passed")
		triggerRuns.count(to, n.Failed, name, script, "failed")
		triggerTook.observe(to, &n.Took, name, script)
	}
}
