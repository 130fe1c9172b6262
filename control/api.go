package control

import (
	"time"

	"understudy/failover"
	"understudy/relay"
	"understudy/selector"
)

// The JSON of the API. docs/control.md describes it; a test compares the two.

// Status is the answer to GET /v1/status.
type Status struct {
	Version string        `json:"version"` // of the program
	PID     int           `json:"pid"`     // of the process
	Started time.Time     `json:"started"` // when the process did
	Now     time.Time     `json:"now"`     // the process's clock
	Relays  []RelayStatus `json:"relays"`  // all of them

	Probes []Probe `json:"probes,omitempty"` // all of them
	Reload *Reload `json:"reload,omitempty"` // the last time that the configuration was read again
}

// Probe is what is known of one probe.
type Probe struct {
	Name  string    `json:"name"`            // as the configuration has it
	State string    `json:"state"`           // up, down or unknown
	Since time.Time `json:"since,omitzero"`  // when it came into that state
	Stale bool      `json:"stale,omitempty"` // down because results do not come any more
	Why   string    `json:"why,omitempty"`   // why it is not up
	Last  *Result   `json:"last,omitempty"`  // the last answer
}

// Reload is what came of reading the configuration again.
type Reload struct {
	At    time.Time `json:"at"`              // when that was
	By    string    `json:"by,omitempty"`    // who wanted it; absent for a signal
	OK    bool      `json:"ok"`              // the configuration holds
	Error string    `json:"error,omitempty"` // why it does not: what held before goes on
	Changes
}

// Changes are what was different in a configuration that was read again.
type Changes struct {
	Changed []string `json:"changed,omitempty"` // parts that have changed, and how
	Restart []string `json:"restart,omitempty"` // settings that take a restart, and are as before
}

// RelayStatus is what is known of one relay.
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

	Frozen    *failover.Lock `json:"frozen,omitempty"`    // the lock, if there is one
	Planned   string         `json:"planned,omitempty"`   // the host that a planned change asks at present
	RetryAt   time.Time      `json:"retry_at,omitzero"`   // when all hosts are asked again; absent unless nobody was usable
	GoodDrill time.Time      `json:"good_drill,omitzero"` // when a drill last went well
	Kept      bool           `json:"kept"`                // it is remembered across restarts
	Rise      int            `json:"rise"`                // results in a row until a check is up
	Fall      int            `json:"fall"`                // and until it is down

	Clients Clients `json:"clients"` // counted since the start of the process
	Hosts   []Host  `json:"hosts"`   // in order of preference
}

// Clients counts a relay's clients since the start of the process.
type Clients struct {
	Queued   int    `json:"queued"`         // wait to be accepted
	Held     int    `json:"held"`           // were accepted, and wait because a connect failed
	Live     uint64 `json:"live"`           // open now, those held included
	Accepted uint64 `json:"accepted"`       // let in
	Finished uint64 `json:"finished"`       // both directions ended cleanly
	Reset    uint64 `json:"reset"`          // either side failed
	Fenced   uint64 `json:"fenced"`         // cut because their epoch was over, or at shutdown
	Expired  uint64 `json:"expired"`        // waited longer than hold
	Gone     uint64 `json:"gone"`           // left while they waited
	Denied   uint64 `json:"denied"`         // not let in; not in accepted
	Sent     uint64 `json:"sent_bytes"`     // from clients to hosts
	Received uint64 `json:"received_bytes"` // from hosts to clients
}

// Host is what is known of one host.
type Host struct {
	Name    string         `json:"name"`              // as the settings have it
	State   string         `json:"state"`             // up, down or unknown
	Since   time.Time      `json:"since,omitzero"`    // when it came into that state
	Primary bool           `json:"primary"`           // clients pass to it
	Why     string         `json:"why"`               // one sentence
	Drained *failover.Lock `json:"drained,omitempty"` // the lock, if there is one
	Aside   bool           `json:"aside,omitempty"`   // a trigger failed for it in this election

	Failures       int     `json:"failures"`                  // in ten minutes
	PenaltySeconds float64 `json:"penalty_seconds,omitempty"` // how long it must have been up because of those
	Guarded        bool    `json:"guarded,omitempty"`         // the flap guard holds it back

	Checks []Check `json:"checks"` // in the order they are asked
}

// Check is what is known of one check of one host.
type Check struct {
	Name      string  `json:"name"`                // tcp, http:PORT or check-host
	State     string  `json:"state"`               // up, down or unknown, by rise and fall
	Streak    int     `json:"streak"`              // successes in a row, or failures as a negative number
	Suspected bool    `json:"suspected,omitempty"` // asked at the fast interval
	InFlight  int     `json:"in_flight,omitempty"` // asked, and not answered yet
	Last      *Result `json:"last,omitempty"`      // the last answer
}

// Result is how one check ended.
type Result struct {
	At      time.Time `json:"at"`              // when it ended
	OK      bool      `json:"ok"`              // it passed
	Local   bool      `json:"local,omitempty"` // failed, and the host was not to blame
	Phase   string    `json:"phase,omitempty"` // resolve, connect, tls, write, read, criteria or script
	Error   string    `json:"error,omitempty"` // why it did not
	Seconds float64   `json:"seconds"`         // how long it took
}

// Order is the body of a POST.
type Order struct {
	// Relay is the relay's name; it may be left out where there is one only.
	Relay string `json:"relay,omitempty"`

	// Host is meant by switch, drain, ready and drill.
	Host string `json:"host,omitempty"`

	// Reason is kept and shown.
	Reason string `json:"reason,omitempty"`

	// By says on whose behalf root asks. Of others the user who is connected
	// counts.
	By string `json:"by,omitempty"`

	// DrainSeconds is how long earlier connections may finish in a switch; the
	// fence policy where it is left out.
	DrainSeconds *float64 `json:"drain_seconds,omitempty"`

	// ForSeconds is how long a lock holds; for ever where it is left out.
	ForSeconds float64 `json:"for_seconds,omitempty"`

	// Triggers has a drill run the triggers, dry.
	Triggers bool `json:"triggers,omitempty"`
}

// failure is the body of every answer that is not a success.
type failure struct {
	Error string `json:"error"`
}

// describe makes the status of one relay.
func describe(r Relay, now time.Time) RelayStatus {
	s := r.Conductor.Status()
	out := RelayStatus{
		Name: s.Relay, State: s.Phase.String(), Since: s.Since, Primary: s.Primary, Elect: s.Elect, Elected: s.Elected,
		Epoch: s.Epoch, Event: s.Event, Reason: s.Reason, Why: s.Why(now), Frozen: s.Lock(failover.Freeze, ""),
		Planned: s.Planned, RetryAt: s.RetryAt, GoodDrill: s.GoodDrill, Kept: s.Kept,
		Clients: count(r.Relay.Stats(), r.Relay.Waiting()),
	}
	out.Rise, out.Fall = r.Conductor.Rules()
	for _, a := range r.Relay.Addrs() {
		out.Listen = append(out.Listen, a.String())
	}
	for _, h := range s.Hosts {
		out.Hosts = append(out.Hosts, Host{
			Name: h.Name, State: h.State.String(), Since: h.Since, Primary: h.Name == s.Primary, Why: s.WhyHost(h.Name, now),
			Drained: s.Lock(failover.Drain, h.Name), Aside: h.Aside,
			Failures: h.Failures, PenaltySeconds: h.Penalty.Seconds(), Guarded: h.Guarded,
			Checks: checksOf(h),
		})
	}
	return out
}

func checksOf(h selector.Host) []Check {
	var all []Check
	for _, k := range h.Checks {
		c := Check{Name: k.Name, State: k.State.String(), Streak: k.Streak, Suspected: k.Suspected, InFlight: k.InFlight}
		if last := k.Last; !last.At.IsZero() {
			c.Last = &Result{At: last.At, OK: last.OK, Local: last.Local, Phase: last.Phase, Seconds: last.Latency.Seconds()}
			if last.Err != nil {
				c.Last.Error = last.Err.Error()
			}
		}
		all = append(all, c)
	}
	return all
}

func count(s relay.Stats, w relay.Waiting) Clients {
	return Clients{
		Queued: w.Queued, Held: w.Held, Live: s.Live, Accepted: s.Accepted, Finished: s.Finished, Reset: s.Reset,
		Fenced: s.Fenced, Expired: s.Expired, Gone: s.Gone, Denied: s.Denied, Sent: s.Sent, Received: s.Received,
	}
}
