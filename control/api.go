package control

import (
	"fmt"
	"slices"
	"time"

	"understudy/correlate"
	"understudy/failover"
	"understudy/internal/role"
	"understudy/relay"
	"understudy/selector"
)

// The JSON of the API, of the flag --json of the commands, and of other outputs that
// show the same. docs/control.md describes it; tests compare the two.

// Schema is the version of this JSON, as in the path /v1. Keys are added without a new
// version. It grows when a key is removed or changes its meaning.
const Schema = 1

// Status is the answer to GET /v1/status.
type Status struct {
	Schema  int           `json:"schema"`  // version of this JSON: 1
	Version string        `json:"version"` // of the program
	PID     int           `json:"pid"`     // of the process
	Started time.Time     `json:"started"` // when the process did
	Now     time.Time     `json:"now"`     // the process's clock
	Relays  []RelayStatus `json:"relays"`  // all of them

	Unlogged uint64 `json:"connections_unlogged"` // connections that have no line in the log, because there were more than it takes; see docs/logs.md

	Outage        *correlate.Outage        `json:"outage,omitempty"`        // all hosts of all relays stopped answering at the same time
	Disagreements []correlate.Disagreement `json:"disagreements,omitempty"` // relays with the same machines that have different primaries

	Verdicts []Verdict `json:"verdicts,omitempty"` // routes of the HTTP listener whose status says whether all is well
	Probes   []Probe   `json:"probes,omitempty"`   // all of them
	Reload   *Reload   `json:"reload,omitempty"`   // the last time that the configuration was read again
}

// Event is one entry of the answer to GET /v1/events.
type Event struct {
	Schema int `json:"schema"` // version of this JSON: 1
	failover.Incident
}

// PredictAnswer is the answer to GET /v1/predict.
type PredictAnswer struct {
	Schema int `json:"schema"` // version of this JSON: 1
	failover.Prediction
}

// Verdict is what a route of the HTTP listener has answered.
type Verdict struct {
	Route    string    `json:"route"`          // its path
	Status   int       `json:"status"`         // of the last answer; 0 before the first request
	At       time.Time `json:"at,omitzero"`    // when that was
	Since    time.Time `json:"since,omitzero"` // since when all answers were good, or none
	Why      string    `json:"why,omitempty"`  // why the last answer was not good, where that is known
	Requests uint64    `json:"requests"`       // since the start of the process
	Bad      uint64    `json:"bad"`            // of those, answers that were not good
}

// Good reports whether the last answer was good.
func (v Verdict) Good() bool { return v.Status >= 200 && v.Status < 300 }

// Probe is the state of one probe.
type Probe struct {
	Name  string    `json:"name"`            // as in the configuration
	State string    `json:"state"`           // up, down or unknown
	Since time.Time `json:"since,omitzero"`  // when it came into that state
	Stale bool      `json:"stale,omitempty"` // down because no results arrive any more
	Why   string    `json:"why,omitempty"`   // why it is not up
	Last  *Result   `json:"last,omitempty"`  // the last answer
}

// Reload is the result of the last reload of the configuration.
type Reload struct {
	At    time.Time `json:"at"`              // when that was
	By    string    `json:"by,omitempty"`    // who ordered it; absent for a signal
	OK    bool      `json:"ok"`              // the configuration is in effect
	Error string    `json:"error,omitempty"` // why it does not: the previous one stays in effect
	Changes
}

// Changes are the differences to the configuration before a reload.
type Changes struct {
	Changed []string `json:"changed,omitempty"` // parts that have changed, and how
	Restart []string `json:"restart,omitempty"` // settings that need a restart, and are as before
}

// RelayStatus is the state of one relay.
type RelayStatus struct {
	Name    string    `json:"name"`              // of the relay
	Listen  []string  `json:"listen"`            // addresses that clients connect to
	State   string    `json:"state"`             // selecting, switching or serving
	Since   time.Time `json:"since"`             // when that began
	Primary string    `json:"primary,omitempty"` // only while clients pass to it
	Elect   string    `json:"elect,omitempty"`   // the host of the last election
	Elected time.Time `json:"elected,omitzero"`  // when that was
	Epoch   uint64    `json:"epoch"`             // grows by one with each election
	Event   string    `json:"event,omitempty"`   // what the last election was
	Reason  string    `json:"reason,omitempty"`  // and why
	Why     string    `json:"why"`               // one sentence

	NoStandby time.Time           `json:"no_standby_since,omitzero"`   // since when no other host could take over from the primary; absent while one could, without a primary, and of a relay of one host
	Warnings  []string            `json:"warnings,omitempty"`          // the outage and the disagreement that this relay is part of, and two writers, a sentence each
	Writers   []string            `json:"writers,omitempty"`           // hosts that say that they are primary, if several do
	Loss      *failover.Loss      `json:"predicted_loss,omitempty"`    // what the best candidate lacks now of the data of the primary; absent without a role check
	Frozen    *failover.Lock      `json:"frozen,omitempty"`            // the lock, if there is one
	Scheduled *failover.Scheduled `json:"scheduled,omitempty"`         // the switch that is scheduled, if there is one
	Planned   string              `json:"planned,omitempty"`           // the host that a planned change checks at present
	Progress  *failover.Progress  `json:"progress,omitempty"`          // of a change of primary that is under way
	RetryAt   time.Time           `json:"retry_at,omitzero"`           // when hosts whose triggers failed are tried again; absent unless no host was usable
	GoodDrill time.Time           `json:"good_drill,omitzero"`         // when a drill last went well
	Kept      bool                `json:"kept"`                        // it is on the disk, and remembered across restarts; false while saving fails
	SaveError string              `json:"save_error,omitempty"`        // why the last save failed; absent when it went well
	SaveFails time.Time           `json:"save_failing_since,omitzero"` // since when no save went well; absent when the last one did
	Rise      int                 `json:"rise"`                        // results in a row until a check is up
	Fall      int                 `json:"fall"`                        // and until it is down

	Cluster *Cluster `json:"cluster,omitempty"` // the agreement with other instances; absent where this one decides alone

	Canary *Canary `json:"canary,omitempty"` // a client of the program's own; absent without one

	Clients Clients         `json:"clients"`          // counted since the start of the process
	Pacing  *PacingProgress `json:"pacing,omitempty"` // of clients that wait although there is a primary; absent when they are connected at once
	Hosts   []Host          `json:"hosts"`            // in order of preference
}

// Cluster is the agreement of several instances on one primary, as one of them sees it.
type Cluster struct {
	Name   string `json:"name"`   // of the cluster
	Member string `json:"member"` // name of this instance in it
	Text   string `json:"text"`   // the state in one line

	Host   string `json:"host,omitempty"`   // that was agreed on; absent before the first election
	Open   bool   `json:"open"`             // clients may be connected to it; false while earlier connections are fenced and triggers run
	Epoch  uint64 `json:"epoch"`            // of that election
	Driver string `json:"driver,omitempty"` // the instance that made it

	LeaseSeconds   float64    `json:"lease_seconds"`                // for how much longer this instance may move bytes; not positive: it may not
	Fenced         uint64     `json:"fenced"`                       // the highest epoch below which it has no connection
	Down           int        `json:"down"`                         // how many instances see the primary down
	Heard          int        `json:"heard"`                        // of how many that are heard of, this one included
	Isolated       bool       `json:"isolated,omitempty"`           // this one does, and they are not enough
	Trouble        string     `json:"trouble,omitempty"`            // why this instance does not take part
	Rival          string     `json:"rival,omitempty"`              // where another process runs that has the name of this one; one of the two is refused
	Clocks         string     `json:"clocks,omitempty"`             // whose clocks run wrong, by more than 1 %
	Settings       string     `json:"settings"`                     // of this instance, of those that all must have alike
	AgreedSettings string     `json:"agreed_settings,omitempty"`    // those of the cluster
	StoreSeconds   float64    `json:"store_seconds"`                // how long the last answer of the store took
	StoreError     string     `json:"store_error,omitempty"`        // why it does not answer
	StoreFails     time.Time  `json:"store_failing_since,omitzero"` // since when; absent while it answers
	Waiting        []Waited   `json:"waiting,omitempty"`            // for whom this instance, which changes the primary, waits
	Change         string     `json:"change,omitempty"`             // of the list of members, that is not effective yet
	Members        []Instance `json:"members"`                      // all, this instance first
}

// Waited is an instance that has not confirmed yet that it has no connection to an earlier
// primary.
type Waited struct {
	Member      string  `json:"member"`                 // its name
	Seconds     float64 `json:"seconds"`                // how long it was waited for
	MostSeconds float64 `json:"most_seconds,omitempty"` // for how long at most; absent: until it confirms
}

// Instance is a member of a cluster.
type Instance struct {
	Name          string   `json:"name"`              // of the member
	Known         bool     `json:"known"`             // it was heard of
	Leaving       bool     `json:"leaving,omitempty"` // it has ended in order
	SilentSeconds float64  `json:"silent_seconds"`    // since its last heartbeat
	Fenced        uint64   `json:"fenced"`            // the highest epoch below which it has no connection
	Down          []string `json:"down,omitempty"`    // hosts that it sees down
	Life          string   `json:"life,omitempty"`    // differs from one start of it to the next
	Address       string   `json:"address,omitempty"` // where it answers others
	Version       string   `json:"version,omitempty"` // of its program
	Error         string   `json:"error,omitempty"`   // why it does not answer the questions of this instance; of this one, why the others refuse its certificate
}

// Canary is the state of a canary.
type Canary struct {
	Result    string    `json:"result,omitempty"`          // of its last attempt: good, slow, failed, or local (a failure of this machine); absent before the first
	At        time.Time `json:"at,omitzero"`               // when that ended
	Seconds   float64   `json:"seconds"`                   // how long it took
	Error     string    `json:"error,omitempty"`           // why it failed
	OutageAt  time.Time `json:"outage_since,omitzero"`     // since when it has not been served, or slowly; absent while it is served
	OutageWhy string    `json:"outage_error,omitempty"`    // why the last attempt since then failed; absent if it only waits
	Last      float64   `json:"last_outage_seconds"`       // how long the last outage lasted that is over; zero for none
	Over      time.Time `json:"last_outage_over,omitzero"` // when that was over
}

// PacingProgress is how the clients that waited for the relay to open are being connected.
type PacingProgress struct {
	Waited  int     `json:"waited"`  // when the relay opened
	Turns   int     `json:"turns"`   // connects that have begun since then
	Rate    float64 `json:"rate"`    // clients a second, now
	Seconds float64 `json:"seconds"` // since the relay opened
}

// Clients counts a relay's clients since the start of the process.
type Clients struct {
	Queued   int    `json:"queued"`   // wait to be accepted
	Held     int    `json:"held"`     // were accepted, and wait because a connect failed
	Live     uint64 `json:"live"`     // open now, those held included
	Accepted uint64 `json:"accepted"` // let in
	Finished uint64 `json:"finished"` // both directions ended cleanly
	Reset    uint64 `json:"reset"`    // either side failed
	Fenced   uint64 `json:"fenced"`   // cut because their epoch was over, or at shutdown
	Expired  uint64 `json:"expired"`  // waited longer than the hold time
	Replayed uint64 `json:"replayed"` // how often a client's first bytes were sent again to another host

	// Unanswered counts clients that were reset before a host had answered what they
	// had sent. They are in Reset, Fenced or Expired, too.
	Unanswered uint64 `json:"unanswered"`

	Aborted  uint64 `json:"aborted"`         // left while they waited
	Denied   uint64 `json:"denied"`          // not let in; not in accepted
	Silent   uint64 `json:"silent"`          // ended by the host within a second, without a byte to the client; in finished or reset, too
	InARow   int    `json:"silent_in_a_row"` // of those, since a client last got a byte, or since the last election
	Sent     uint64 `json:"sent_bytes"`      // from clients to hosts
	Received uint64 `json:"received_bytes"`  // from hosts to clients
}

// Host is the state of one host.
type Host struct {
	Name     string         `json:"name"`               // as the settings have it
	State    string         `json:"state"`              // up, down or unknown
	Since    time.Time      `json:"since,omitzero"`     // when it came into that state
	Primary  bool           `json:"primary"`            // clients pass to it
	Why      string         `json:"why"`                // one sentence
	Drained  *failover.Lock `json:"drained,omitempty"`  // the lock, if there is one
	Rejected bool           `json:"rejected,omitempty"` // a trigger failed for it in this election
	Address  *Address       `json:"address,omitempty"`  // to which its name resolves; absent if it is not a name
	Role     *Role          `json:"role,omitempty"`     // what it says of itself; absent without a role check

	Sessions uint64 `json:"sessions"`       // clients that got a byte from it, since the start of the process
	Live     uint64 `json:"live"`           // of those, open now
	Sent     uint64 `json:"sent_bytes"`     // from clients to it
	Received uint64 `json:"received_bytes"` // from it to clients

	Failures       int     `json:"failures"`                  // in ten minutes
	PenaltySeconds float64 `json:"penalty_seconds,omitempty"` // how long it must have been up because of those
	Guarded        bool    `json:"guarded,omitempty"`         // the flap guard holds it back

	Checks []Check `json:"checks"` // in the order in which they run
}

// Role is what a host says of itself to its role check.
type Role struct {
	Role     string    `json:"role"`                  // now: primary, replica, starting or unknown
	At       time.Time `json:"at,omitzero"`           // when it was asked for what follows, which may be older
	Term     uint64    `json:"term,omitempty"`        // grows with each promotion; absent where the protocol has none
	Identity string    `json:"identity,omitempty"`    // of its cluster; absent where it is not known
	Position uint64    `json:"position,omitempty"`    // how far its data goes; absent where it is not known
	Bytes    *uint64   `json:"lag_bytes,omitempty"`   // of a replica: how much it is behind the primary; absent where it is not known
	Seconds  *float64  `json:"lag_seconds,omitempty"` // of a replica: since when it has been behind the primary; absent where it is not known
	Detail   string    `json:"detail,omitempty"`      // in words
}

// Address is the address to which the name of a host resolves.
type Address struct {
	Address   string    `json:"address,omitempty"`  // where its checks are run, and clients go while it is primary; absent before one passed
	Confirmed time.Time `json:"confirmed,omitzero"` // when an answer of the name servers last contained it; absent if none did in ten minutes of answers
	Source    string    `json:"source,omitempty"`   // source of the last good answer: a name server, or the hosts file
	Others    []string  `json:"others,omitempty"`   // the other addresses of that answer
	Error     string    `json:"error,omitempty"`    // why the last query had no good answer
}

// Check is the state of one check of one host.
type Check struct {
	Name      string  `json:"name"`                // tcp, http:PORT or check-host
	State     string  `json:"state"`               // up, down or unknown, by rise and fall
	Streak    int     `json:"streak"`              // successes in a row, or failures as a negative number
	Suspected bool    `json:"suspected,omitempty"` // run at the fast interval
	InFlight  int     `json:"in_flight,omitempty"` // number that are running
	Last      *Result `json:"last,omitempty"`      // the last result
}

// Result is the result of one check.
type Result struct {
	At      time.Time `json:"at"`                // when it ended
	OK      bool      `json:"ok"`                // it passed
	Unknown bool      `json:"unknown,omitempty"` // failed without a result: it does not count
	Phase   string    `json:"phase,omitempty"`   // resolve, connect, tls, write, read, criteria, script, login or role
	Error   string    `json:"error,omitempty"`   // why it did not
	Seconds float64   `json:"seconds"`           // how long it took
}

// Order is the body of a POST.
type Order struct {
	// Relay is the relay's name; it may be left out if there is only one.
	Relay string `json:"relay,omitempty"`

	// Host is the host of switch, drain, ready and drill.
	Host string `json:"host,omitempty"`

	// Without is the host that a drill takes for failed; the primary if it is
	// left out. A drill with Host checks whether that host could take over.
	Without string `json:"without,omitempty"`

	// Reason is kept and shown.
	Reason string `json:"reason,omitempty"`

	// By is the name of the user for whom root gives the order. For any other
	// caller it is the connected user.
	By string `json:"by,omitempty"`

	// DrainSeconds is the longest time that earlier connections may finish in a
	// switch; the fence policy if it is left out.
	DrainSeconds *float64 `json:"drain_seconds,omitempty"`

	// ForSeconds is the time for which a lock holds; without limit if it is left out.
	ForSeconds float64 `json:"for_seconds,omitempty"`

	// At schedules a switch for that time. The answer is a Scheduled.
	At time.Time `json:"at,omitzero"`

	// Cancel cancels a scheduled switch. The answer is that Scheduled.
	Cancel bool `json:"cancel,omitempty"`

	// Member is the instance of cluster-add and cluster-forget.
	Member string `json:"member,omitempty"`

	// Triggers makes a drill run the triggers, with UNDERSTUDY_DRY_RUN=1.
	Triggers bool `json:"triggers,omitempty"`
}

// Answered names the relay that carried out an order, and its process. The
// answer to each order begins with it.
type Answered struct {
	Relay  string   `json:"relay"`  // its name
	Listen []string `json:"listen"` // addresses that its clients connect to
	PID    int      `json:"pid"`    // of the process
}

// The answers to orders.
type (
	SwitchAnswer struct {
		Answered
		failover.Switched
	}
	ScheduleAnswer struct {
		Answered
		failover.Scheduled
	}
	LockAnswer struct {
		Answered
		failover.Lock
	}
	DrillAnswer struct {
		Answered
		failover.DrillReport
	}
	ClusterAnswer struct {
		Answered
		Member string `json:"member,omitempty"` // that was added or forgotten
	}
	ReloadAnswer struct {
		PID int `json:"pid"` // of the process
		Changes
	}
)

// failure is the body of every answer that is not a success.
type failure struct {
	Error string `json:"error"`
}

// warnings returns the texts of the outage and the disagreements that concern relay.
func (s Status) warnings(relay string) (all []string) {
	if s.Outage != nil {
		all = append(all, s.Outage.Text)
	}
	for _, d := range s.Disagreements {
		if slices.ContainsFunc(d.Primaries, func(p correlate.PrimaryOfRelay) bool { return p.Relay == relay }) {
			all = append(all, d.Text)
		}
	}
	return all
}

// describe returns the status of one relay of s.
func (s Status) describe(r Relay) RelayStatus {
	d := describe(r, s.Now)
	d.Warnings = append(d.Warnings, s.warnings(d.Name)...)
	return d
}

// describe returns the status of a relay, without warnings about others.
func describe(r Relay, now time.Time) RelayStatus {
	s := r.Conductor.Status()
	out := RelayStatus{
		Name: s.Relay, State: s.Phase.String(), Since: s.Since, Primary: s.Primary, Elect: s.Elect, Elected: s.Elected,
		Epoch: s.Epoch, Event: s.Event, Reason: s.Reason, Why: s.Why(now), Frozen: s.Lock(failover.Freeze, ""),
		Planned: s.Planned, RetryAt: s.RetryAt, GoodDrill: s.GoodDrill, Kept: s.Save.Kept, SaveFails: s.Save.Since,
		NoStandby: s.NoStandby, Scheduled: s.Scheduled, Writers: s.Writers, Loss: s.PredictedLoss(),
		Clients: count(r.Relay.Stats(), r.Relay.Waiting(), s.Silence),
	}
	if text := s.WritersText(); text != "" {
		out.Warnings = []string{text}
	}
	if err := s.Save.Error; err != nil {
		out.SaveError = err.Error()
	}
	if p := r.Conductor.Progress(); p != nil {
		now := *p
		if now.Step == failover.StageDraining {
			now.Connections = out.Clients.Live - min(out.Clients.Live, uint64(max(out.Clients.Held, 0)))
		}
		out.Progress = &now
	}
	if p, ok := r.Relay.Pacing(); ok && !p.Over {
		out.Pacing = &PacingProgress{Waited: p.Waited, Turns: p.Turns, Rate: p.Rate, Seconds: p.For.Seconds()}
	}
	out.Rise, out.Fall = r.Conductor.Thresholds()
	out.Listen = r.listen()
	if out.Cluster = clusterOf(s); out.Cluster != nil && (out.Cluster.Trouble != "" || out.Cluster.Isolated || out.Cluster.LeaseSeconds <= 0 || out.Cluster.Clocks != "") {
		out.Warnings = append(out.Warnings, "cluster "+out.Cluster.Name+": "+out.Cluster.Text)
	}
	out.Canary = canaryOf(s.Canary)
	if text := s.CanaryText(now); text != "" {
		out.Warnings = append(out.Warnings, text)
	}
	passed := map[string]relay.HostStats{}
	for at, n := range r.Relay.HostStats() {
		sum := passed[r.Conductor.HostAt(at)]
		sum.Sessions, sum.Live, sum.Sent, sum.Received = sum.Sessions+n.Sessions, sum.Live+n.Live, sum.Sent+n.Sent, sum.Received+n.Received
		passed[r.Conductor.HostAt(at)] = sum
	}
	for _, h := range s.Hosts {
		n := passed[h.Name]
		out.Hosts = append(out.Hosts, Host{
			Sessions: n.Sessions, Live: n.Live, Sent: n.Sent, Received: n.Received,
			Name: h.Name, State: stateOf(h), Since: h.Since, Primary: h.Name == s.Primary, Why: s.WhyHost(h.Name, now),
			Drained: s.Lock(failover.Drain, h.Name), Rejected: h.Rejected,
			Failures: h.Failures, PenaltySeconds: h.Penalty.Seconds(), Guarded: h.Guarded,
			Address: addressOf(r.Conductor, h.Name), Role: roleOf(h), Checks: checksOf(h),
		})
	}
	return out
}

// clusterOf returns the state of the agreement; nil where the relay decides alone.
func clusterOf(s failover.Status) *Cluster {
	c := s.Cluster
	if c == nil {
		return nil
	}
	r := &c.Record
	out := &Cluster{
		Name: c.Cluster, Member: c.Member, Text: c.String(),
		Host: r.Host, Open: r.Open, Epoch: r.Epoch, Driver: r.Driver,
		LeaseSeconds: max(c.Lease, 0).Seconds(), Fenced: c.Fenced, Down: c.Down, Heard: c.Fresh, Isolated: c.Isolated,
		Trouble: c.Trouble, Rival: c.Rival, Clocks: c.Clocks, Settings: c.Settings, AgreedSettings: r.Settings,
		StoreSeconds: c.Latency.Seconds(), StoreError: c.Error, StoreFails: c.Failing,
	}
	if r.Change.Name != "" {
		out.Change = "add " + r.Change.Name
		if r.Change.Forget {
			out.Change = "forget " + r.Change.Name
		}
	}
	for _, w := range c.Waiting {
		out.Waiting = append(out.Waiting, Waited{w.Member, w.For.Seconds(), w.Most.Seconds()})
	}
	var down []string
	for _, h := range s.Hosts {
		if h.State == selector.Down {
			down = append(down, h.Name)
		}
	}
	out.Members = append(out.Members, Instance{
		Name: c.Member, Known: true, SilentSeconds: max(c.Confirmed, 0).Seconds(), Fenced: c.Fenced, Down: down, Life: fmt.Sprintf("%08x", uint32(c.Boot>>32)), Error: c.Unanswered[c.Member],
	})
	for _, o := range c.Members {
		i := Instance{
			Name: o.Name, Known: o.Known, Leaving: o.Member.Leaving, SilentSeconds: o.Silent.Seconds(), Fenced: o.Member.Fenced,
			Down: o.Member.Down, Address: o.Member.Address, Version: o.Member.Version, Error: c.Unanswered[o.Name],
		}
		if o.Known {
			i.Life = fmt.Sprintf("%08x", uint32(o.Member.Boot>>32))
		}
		out.Members = append(out.Members, i)
	}
	return out
}

func canaryOf(s *failover.CanaryStatus) *Canary {
	if s == nil {
		return nil
	}
	k := &Canary{Result: string(s.Last), At: s.LastAt, Seconds: s.Took.Seconds(), OutageAt: s.Since, Last: s.Outage.Seconds(), Over: s.Over}
	if s.LastError != nil {
		k.Error = s.LastError.Error()
	}
	if s.Error != nil {
		k.OutageWhy = s.Error.Error()
	}
	return k
}

// listen returns the addresses that clients connect to.
func (r Relay) listen() (all []string) {
	for _, a := range r.Relay.Addrs() {
		all = append(all, a.String())
	}
	return all
}

// stateOf returns the state of a host to show: unknown while it is up and the last
// result of one of its checks is unknown.
func stateOf(h selector.Host) string {
	if h.State == selector.Up && slices.ContainsFunc(h.Checks, func(k selector.Record) bool { return k.Last.Unknown }) {
		return selector.Unknown.String()
	}
	return h.State.String()
}

func addressOf(c *failover.Conductor, host string) *Address {
	a, ok := c.Address(host)
	if !ok {
		return nil
	}
	out := &Address{Confirmed: a.Confirmed, Source: a.Source}
	if a.Addr.IsValid() {
		out.Address = a.Addr.String()
	}
	for _, o := range a.Others {
		out.Others = append(out.Others, o.String())
	}
	if a.Err != nil {
		out.Error = a.Err.Error()
	}
	return out
}

// roleOf returns what h says of itself; nil without a role check.
func roleOf(h selector.Host) *Role {
	f := h.Fact
	if f == nil {
		return nil
	}
	out := &Role{Role: h.Says.String(), At: h.At, Term: f.Term, Identity: f.Identity, Position: f.Position, Detail: f.Detail}
	if h.Says == role.Replica && h.Lag.BytesKnown {
		out.Bytes = &h.Lag.Bytes
	}
	if h.Says == role.Replica && h.Lag.TimeKnown {
		seconds := h.Lag.Time.Seconds()
		out.Seconds = &seconds
	}
	return out
}

func checksOf(h selector.Host) []Check {
	var all []Check
	for _, k := range h.Checks {
		c := Check{Name: k.Name, State: k.State.String(), Streak: k.Streak, Suspected: k.Suspected, InFlight: k.InFlight}
		if last := k.Last; !last.At.IsZero() {
			c.Last = &Result{At: last.At, OK: last.OK, Unknown: last.Unknown, Phase: last.Phase, Seconds: last.Latency.Seconds()}
			if last.Err != nil {
				c.Last.Error = last.Err.Error()
			}
		}
		all = append(all, c)
	}
	return all
}

func count(s relay.Stats, w relay.Waiting, q relay.Silence) Clients {
	return Clients{
		Queued: w.Queued, Held: w.Held, Live: s.Live, Accepted: s.Accepted, Finished: s.Finished, Reset: s.Reset,
		Fenced: s.Fenced, Expired: s.Expired, Aborted: s.Aborted, Denied: s.Denied, Replayed: s.Replayed, Unanswered: s.Unanswered, Sent: s.Sent, Received: s.Received,
		Silent: s.Silent, InARow: q.InARow,
	}
}
