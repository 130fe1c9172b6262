package metrics

import (
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"
)

// Metric describes one metric.
type Metric struct {
	Name   string   // with the prefix
	Type   string   // gauge, counter or histogram
	Labels []string // names
	Help   string   // one line
}

// Table returns every metric of the program itself, in the order of the documentation.
func Table() []Metric {
	all := make([]Metric, 0, len(table))
	for _, m := range table {
		all = append(all, m.Metric)
	}
	return all
}

// metric is a Metric that a [sheet] has rows of.
type metric struct {
	Metric
	kind  dto.MetricType
	index int // in table

	sorted []labelName // of its labels
}

// table is filled by the declarations below.
var table []*metric

func declare(kind dto.MetricType, name, help string, labels []string) *metric {
	m := &metric{Metric: Metric{Name: "understudy_" + name, Type: strings.ToLower(kind.String()), Labels: slices.Clone(labels), Help: help}, kind: kind, index: len(table), sorted: labelNames(labels)}
	table = append(table, m)
	return m
}

func gauge(name, help string, labels ...string) *metric {
	return declare(dto.MetricType_GAUGE, name, help, labels)
}

func counter(name, help string, labels ...string) *metric {
	return declare(dto.MetricType_COUNTER, name, help, labels)
}

func durations(name, help string, labels ...string) *metric {
	return declare(dto.MetricType_HISTOGRAM, name, help, labels)
}

// The metrics, in the order of the documentation.
var (
	buildInfo = gauge("build_info", "The version of the program, and what it was built from. Always 1.", "version", "revision", "goversion")

	relayState       = gauge("relay_state", "Exactly one state is 1: serving, selecting and switching (clients wait), refusing (clients are refused).", "relay", "state")
	relayEpoch       = gauge("relay_epoch", "The epoch of the last election.", "relay")
	relayFrozen      = gauge("relay_frozen", "Whether automatic failovers are forbidden.", "relay")
	relayDisagrees   = gauge("relay_disagrees", "Whether another relay has another primary although its hosts are the same machines: two primaries are written to.", "relay")
	hostPrimary      = gauge("host_primary", "Whether clients are connected to the host.", "relay", "host")
	hostUp           = gauge("host_up", "Whether the host passes its checks.", "relay", "host")
	hostDrained      = gauge("host_drained", "Whether the host is excluded from elections by an operator.", "relay", "host")
	hostGuarded      = gauge("host_guarded", "Whether the host is held back because it failed often.", "relay", "host")
	hostUsable       = gauge("host_usable", "Number of hosts that could be primary, the primary included: with 1 the next failure is an outage.", "relay")
	hosts            = gauge("hosts", "Number of hosts in the settings.", "relay")
	hostPenalty      = gauge("host_penalty_seconds", "How long the host must have been up before it can be elected, because it failed often.", "relay", "host")
	hostStateChanges = counter("host_state_changes_total", "Changes of the state of the host, by the state that it came into.", "relay", "host", "state")

	hostRole     = gauge("host_role", "What the host says of itself to the role check: one of primary, replica, starting and unknown is 1. Relays without a role check have no metric of roles, lags and writers.", "relay", "host", "role")
	hostWriters  = gauge("host_writers", "Number of hosts that say that they are primary. It is above 1 only if each of them was asked again after the other one was noticed; those that take writes together by design count as one.", "relay")
	hostLagBytes = gauge("host_lag_bytes", "How much data of the primary the replica lacks. Absent where it is not known, and of other hosts.", "relay", "host")
	hostLag      = gauge("host_lag_seconds", "For how long the replica has lacked data of the primary. Absent where it is not known, and of other hosts.", "relay", "host")
	lossBytes    = gauge("failover_predicted_loss_bytes", "How much data of the primary the best candidate lacks: what a failover now would lose. Absent where it is not known.", "relay")
	lossTime     = gauge("failover_predicted_loss_seconds", "For how long the best candidate has lacked data of the primary. Absent where it is not known.", "relay")

	checks        = counter("checks_total", "Runs of a check, by outcome: passed, failed, or unknown (without a result; a failure of this machine, for example).", "relay", "host", "check", "outcome")
	checkUp       = gauge("check_up", "Whether the check is up, by rise and fall.", "relay", "host", "check")
	checkDuration = durations("check_duration_seconds", "How long runs of a check took.", "relay", "host", "check")

	connections         = gauge("connections", "Clients now: queued (by the kernel, not accepted), held (accepted, wait for a host), connecting, relaying.", "relay", "state")
	connectionsLimit    = gauge("connections_limit", "Most connections that may be open.", "relay")
	connectionsAccepted = counter("connections_accepted_total", "Clients accepted: always the sum of all connections_closed_total and of those held, connecting and relaying.", "relay")
	connectionsClosed   = counter("connections_closed_total", "Connections that have ended: finished (cleanly), reset (a side failed), fenced (their epoch was over, or the program ended), expired (waited longer than hold), gone (left while they waited).", "relay", "outcome")
	connectionsDenied   = counter("connections_denied_total", "Clients that were not accepted: network (not allowed), header (no PROXY header), hold (in the kernel's queue when the hold time was over).", "relay", "reason")
	unansweredClosed    = counter("connections_unanswered_total", "Clients whose connection was reset before a host had answered what they had sent. They are in connections_closed_total, too.", "relay")
	replayed            = counter("replayed_openings_total", "How often the first bytes of a client were sent again to another host.", "relay")
	relayedBytes        = counter("relayed_bytes_total", "Bytes relayed, to_host or from_host.", "relay", "host", "direction")

	hostConnects  = counter("host_connects_total", "Connects to the host for clients, by outcome: made, refused, timeout, failed, local (a failure of this machine).", "relay", "host", "outcome")
	hostConnect   = durations("host_connect_duration_seconds", "How long connects to the host for clients took.", "relay", "host")
	firstByte     = durations("first_byte_duration_seconds", "Time from a client's first bytes to the first byte of the host.", "relay", "host")
	unansweredNow = gauge("unanswered_connections", "Clients that wait for an answer of the host for longer than is usual for it.", "relay", "host")
	hostSessions  = gauge("host_connections", "Open connections whose client got a byte from the host.", "relay", "host")
	holdDuration  = durations("hold_duration_seconds", "How long clients waited for a host: served, expired (waited longer than hold), gone (left). Clients that were connected at once are not counted.", "relay", "outcome")
	fencedTotal   = counter("fenced_connections_total", "Connections of earlier epochs, by what fences did: finished (ended by themselves in time), reset, moved (no byte had passed: their clients got the next host).", "relay", "how")
	elections     = counter("elections_total", "Elections, by event and outcome.", "relay", "event", "outcome")
	phaseDuration = durations("election_phase_duration_seconds", "How long the phases of completed elections took; all is their sum. Events other than failover and switchover appear with the first one.", "relay", "event", "phase")
	electionLast  = gauge("election_last_timestamp_seconds", "When the last election was; 0 before the first.", "relay")
	predicted     = gauge("failover_predicted_seconds", "The longest time that a failover can take, by fault: refused, silent, hung. +Inf for one that no check notices.", "relay", "fault")
	overBound     = counter("failover_over_bound_total", "Failovers that took longer than predicted.", "relay")
	triggerRuns   = counter("trigger_runs_total", "Runs of a trigger, by outcome: passed or failed.", "relay", "trigger", "outcome")
	triggerTook   = durations("trigger_duration_seconds", "How long runs of a trigger took.", "relay", "trigger")
	drillSuccess  = gauge("drill_last_success_timestamp_seconds", "When a drill last went well; 0 for never.", "relay")
	canaryTries   = counter("canary_attempts_total", "Attempts of the canary, by outcome: good, slow, failed, or local (a failure of this machine). Only with --canary, as the two that follow.", "relay", "outcome")
	canaryTook    = durations("canary_duration_seconds", "How long attempts of the canary took that were served.", "relay")
	canaryOutage  = counter("canary_outage_seconds_total", "Time in which the canary was not served, or slowly: from the first such attempt to the first good one.", "relay")
	localFailures = counter("local_failures_total", "Failures of this machine that were held against no host: accept, connect (no descriptor, port or memory), watch (epoll).", "relay", "operation")

	clusterLease    = gauge("cluster_lease_seconds", "For how much longer this instance may move bytes; 0 while it may not. Absent without a cluster, as all that follow.", "relay")
	clusterHeard    = gauge("cluster_instances_heard", "Number of instances with a recent heartbeat, this one included.", "relay")
	clusterMembers  = gauge("cluster_instances", "Number of instances of the cluster.", "relay")
	clusterRefusing = gauge("cluster_instances_refusing", "Number of instances that do not answer the questions of this one, as for want of the same secret or a valid certificate; they cannot go on together while the store is away.", "relay")
	clusterDown     = gauge("cluster_instances_down", "Number of instances that see the primary down.", "relay")
	clusterIsolated = gauge("cluster_isolated", "Whether this instance sees the primary down, and not enough of the others do.", "relay")
	clusterTrouble  = gauge("cluster_trouble", "Whether this instance does not take part: a name used twice, settings that differ, a store that has gone back in time.", "relay")
	clusterTwice    = gauge("cluster_name_twice", "Whether another process has the name of this instance: one of them is refused, and understudy cluster says where the other is.", "relay")
	clusterClocks   = gauge("cluster_clock_wrong", "Whether the clock of an instance runs wrong, by more than 1 %; understudy cluster names it.", "relay")
	clusterStoreUp  = gauge("cluster_store_up", "Whether the last request to the store was answered.", "relay")
	clusterStore    = gauge("cluster_store_latency_seconds", "How long the last answer of the store took.", "relay")

	verdictReqs  = counter("verdict_requests_total", "Requests to a route of the HTTP listener, by the class of the status.", "route", "code")
	verdictUp    = gauge("verdict_up", "Whether the last answer of the verdict was good. Absent before the first request.", "route")
	verdictTook  = durations("verdict_duration_seconds", "How long answers of the route took.", "route")
	probeUp      = gauge("probe_up", "Whether the probe is up.", "probe")
	probeStale   = gauge("probe_stale", "Whether the probe is down because no results arrive any more.", "probe")
	reloadOK     = gauge("config_last_reload_successful", "Whether the last reload of the configuration was successful. 1 before the first.")
	reloadAt     = gauge("config_last_reload_success_timestamp_seconds", "When the configuration was last loaded successfully.")
	logDropped   = counter("log_dropped_total", "Lines that were dropped because their reader was slow: of the log, of verdicts, of connections.", "sink")
	loopBusy     = counter("loop_busy_seconds_total", "Time that an event loop was busy.", "loop")
	commonOutage = gauge("common_outage", "Whether all hosts of all relays stopped answering at the same time: look at the network of this machine.")
)
