package failover

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy/hooks"
	"understudy/relay"
)

const (
	// passThrough is the duration of a failover in addition to the waits in the
	// settings: connects, processes, system calls, on a busy machine.
	passThrough = 500 * time.Millisecond

	// impatient is the time for which clients of databases and HTTP often wait for a
	// connection before they give up.
	impatient = 30 * time.Second

	// storeElection is how long an etcd elects a leader of its own, with its defaults: its
	// election timeout is 1s, and each member waits for up to twice that.
	storeElection = 2 * time.Second

	// retransmission is the time after which TCP repeats a SYN that was not
	// answered; see RFC 6298, section 2.1.
	retransmission = time.Second
)

// Failure is a way in which a primary fails.
type Failure string

// The ways: its port refuses, nothing comes back at all, or it accepts
// connections and does not answer.
const (
	Refused Failure = "refused"
	Silent  Failure = "silent"
	Hung    Failure = "hung"
)

// Prediction is the longest time until clients are connected to another host, for
// each way in which a primary can fail, computed from the settings of a relay.
type Prediction struct {
	Cases    []Case   `json:"cases"`              // one for each kind of failure, with and without traffic
	Warnings []string `json:"warnings,omitempty"` // settings that conflict, a sentence each
	Waits    []Wait   `json:"waits,omitempty"`    // how soon clients that waited are connected after the opening, beyond these times; absent if all are connected at once
	Notes    []string `json:"notes,omitempty"`    // the effect of the settings on faults that end by themselves

	Cluster *ClusterWaits `json:"cluster,omitempty"` // what several instances wait for; absent without a cluster

	Loss *Loss `json:"predicted_loss,omitempty"` // what the best candidate lacks now of the data of the primary; absent without a role check
}

// ClusterWaits is what an election waits for in a cluster.
type ClusterWaits struct {
	InstanceSeconds float64 `json:"instance_seconds"` // for an instance that has died together with the primary or is silent; fence_seconds has it
	StoreSeconds    float64 `json:"store_seconds"`    // for a store that is back, or elects a leader of its own; no other time has it
}

// Case is one line of a [Prediction].
type Case struct {
	Failure Failure `json:"failure"`         // refused, silent or hung
	Traffic bool    `json:"traffic"`         // clients connect all the time: a failed connect is noticed at once
	Never   bool    `json:"never,omitempty"` // this failure is not noticed at all; formula says why, and the times are zero

	DetectSeconds   float64 `json:"detect_seconds"`   // until the primary is declared down
	ElectSeconds    float64 `json:"elect_seconds"`    // from there until a host is elected
	FenceSeconds    float64 `json:"fence_seconds"`    // from there until earlier connections have ended
	TriggersSeconds float64 `json:"triggers_seconds"` // if each of them runs until its timeout
	TotalSeconds    float64 `json:"total_seconds"`    // until clients are connected

	Formula string `json:"formula"` // how the times are computed

	total time.Duration // TotalSeconds
}

// Wait is the time that clients wait for their turn after an opening.
type Wait struct {
	Clients int     `json:"clients"` // that wait when the relay opens
	Rate    float64 `json:"rate"`    // clients a second, at first; it doubles each second while the host keeps up
	Seconds float64 `json:"seconds"` // until the last of them is connected, if the host keeps up
}

// waits computes the waits of a few, many and very many clients.
func (cfg Config) waits(usual float64) (all []Wait) {
	for _, n := range []int{100, 1000, 5000} {
		if rate, last := cfg.OpenRate.Expect(n, usual, cfg.Hold); rate > 0 {
			all = append(all, Wait{Clients: n, Rate: rate, Seconds: last.Seconds()})
		}
	}
	return all
}

// sum is a time made of named parts.
type sum struct {
	total time.Duration
	terms []string
}

func (s *sum) add(d time.Duration, what string) {
	if d > 0 {
		s.total += d
		s.terms = append(s.terms, fmt.Sprintf("%s %v", what, d))
	}
}

func (s *sum) times(n int, d time.Duration, what string) {
	if n > 0 && d > 0 {
		s.total += time.Duration(n) * d
		s.terms = append(s.terms, fmt.Sprintf("%d × %s %v", n, what, d))
	}
}

// Predict returns the [Prediction] for cfg. Where cfg.Triggers.Path is a directory,
// the scripts that are in it now count.
func Predict(cfg Config) Prediction {
	var p Prediction
	triggers := cfg.triggers()
	for _, f := range []Failure{Refused, Silent, Hung} {
		for _, traffic := range []bool{true, false} {
			p.Cases = append(p.Cases, cfg.predict(f, traffic, triggers))
		}
	}
	for _, w := range cfg.contradictions(triggers) {
		p.Warnings = append(p.Warnings, w.text)
	}
	p.Notes = cfg.passing()
	p.Waits = cfg.waits(0)
	if c := cfg.Cluster; c != nil {
		p.Cluster = &ClusterWaits{InstanceSeconds: c.wait(cfg.Fence.Drain).Seconds(), StoreSeconds: c.storeWait().Seconds()}
	}
	return p
}

// triggers returns how many scripts run after an election, as far as is known
// now.
func (cfg Config) triggers() int {
	if cfg.Triggers.Path == "" {
		return 0
	}
	scripts, _, err := hooks.List(cfg.Triggers.Path)
	if err != nil {
		return 0
	}
	return len(scripts)
}

// passing says which faults of the network cause no failover.
func (cfg Config) passing() []string {
	tcp := cfg.Checks[0]
	lost := fmt.Sprintf("a lost SYN is repeated after %v (RFC 6298), so with timeout %v ", retransmission, tcp.Timeout)
	if tcp.Timeout > retransmission {
		lost += "a check that loses one is late, and passes"
	} else {
		lost += fmt.Sprintf("a check that loses one fails, and a primary that loses fall %d in a row is down", cfg.Fall)
	}
	kept := tcp.Timeout + time.Duration(cfg.Fall-1)*cfg.FastInterval
	notes := []string{lost, fmt.Sprintf(
		"a primary that is silent for less than %v stays (timeout %v + %d × fast-interval %v); one that is silent for %v longer is down",
		kept, tcp.Timeout, cfg.Fall-1, cfg.FastInterval, tcp.Interval+min(cfg.FastInterval, tcp.Timeout))}
	if stay := cfg.stay(); len(cfg.Hosts) > 1 && stay > 0 {
		notes = append(notes, fmt.Sprintf("after a time in which no host was usable, and at a start with saved state, the election waits for the last primary, for %v at most (stay)", stay))
	}
	if c := cfg.Cluster; c != nil {
		notes = append(notes,
			"with the cluster: while all instances are alive nobody is waited for, and a change takes about four answers of the store longer",
			fmt.Sprintf("an instance that died together with the primary, or is silent, is waited for until its lease is over: %v (lease %v and 3%%, slack %v)",
				c.wait(cfg.Fence.Drain)+cfg.Fence.Drain, c.Machine.Lease, c.Machine.Slack),
			fmt.Sprintf("while the store has no leader of its own, or no majority, nothing is changed; when it can have one, it is waited for up to %v longer (%v for its election with the defaults of etcd, 2 × heartbeat %v)",
				c.storeWait(), storeElection, c.Machine.Heartbeat))
	}
	return notes
}

// wait is how much longer than the drain an election waits for an instance that is silent.
func (c *Cluster) wait(drain time.Duration) time.Duration {
	m := c.Machine
	m.Lease += drain
	return (m.Wait() - drain).Round(time.Millisecond)
}

// storeWait is how much longer an election takes where the store has to elect a leader of its
// own: the request that was not answered, and the next one, are heartbeats.
func (c *Cluster) storeWait() time.Duration { return storeElection + 2*c.Machine.Heartbeat }

// predict computes one case.
func (cfg Config) predict(f Failure, traffic bool, triggers int) Case {
	c := Case{Failure: f, Traffic: traffic}
	detect, ok := cfg.detection(f, traffic)
	if !ok {
		c.Never = true
		c.Formula = "only the TCP connect is checked: add a pong port or a check script, or let check-tcp read the greeting"
		return c
	}
	var elect, fence, run sum
	elect.add(cfg.Checks[0].Timeout, "timeout of the connect")
	pong := time.Duration(0) // these checks run at the same time
	for _, k := range cfg.Checks[1:] {
		if k.Script != "" {
			// A script that is running has to end before it can be run again.
			elect.times(2, k.Timeout, "check-timeout")
		} else {
			pong = max(pong, k.Timeout)
		}
	}
	elect.add(pong, "timeout of the pong")
	if len(cfg.Hosts) > 2 {
		elect.add(cfg.Checks[0].Timeout, "timeout of a preferred host")
	}
	elect.add(passThrough, "overhead")
	fence.add(cfg.Fence.Drain, "drain")
	if cfg.Cluster != nil {
		fence.add(cfg.Cluster.wait(cfg.Fence.Drain), "wait for an instance that has died too")
	}
	run.times(triggers, cfg.Triggers.Timeout, "trigger-timeout")
	if rules := cfg.roleCheck(); rules != nil && rules.Promote {
		run.add(rules.Verify, "until it says primary")
	}

	c.DetectSeconds, c.ElectSeconds = detect.total.Seconds(), elect.total.Seconds()
	c.FenceSeconds, c.TriggersSeconds = fence.total.Seconds(), run.total.Seconds()
	c.total = detect.total + elect.total + fence.total + run.total
	c.TotalSeconds = c.total.Seconds()
	parts := []string{"detect: " + strings.Join(detect.terms, " + "), "elect: " + strings.Join(elect.terms, " + ")}
	if fence.total > 0 {
		parts = append(parts, "fence: "+strings.Join(fence.terms, " + "))
	}
	if run.total > 0 {
		parts = append(parts, "triggers: "+strings.Join(run.terms, " + "))
	}
	c.Formula = strings.Join(parts, "; ")
	return c
}

// detection returns the time until the primary is declared down; false when it
// never is.
func (cfg Config) detection(f Failure, traffic bool) (sum, bool) {
	var s sum
	tcp := cfg.Checks[0]
	if f == Hung {
		return cfg.hungDetection(traffic)
	}
	switch {
	case !traffic:
		s.add(tcp.Interval, "interval")
	case f == Silent:
		s.add(relay.SlowConnect, "slow connect")
	}
	if f == Silent {
		if !traffic {
			s.add(min(cfg.FastInterval, tcp.Timeout), "late after")
		}
		s.times(cfg.Fall-1, cfg.FastInterval, "fast-interval")
		s.add(tcp.Timeout, "timeout")
		return s, true
	}
	s.times(cfg.Fall, cfg.FastInterval, "fast-interval")
	return s, true
}

// hungDetection is detection for a primary that accepts connections and does
// not answer.
func (cfg Config) hungDetection(traffic bool) (best sum, ok bool) {
	if traffic && cfg.OnHang != HangWarns && len(cfg.Hosts) > 1 {
		best.add(relay.HangAfter, "clients wait (or 20 × the usual answer)")
		best.add(relay.HangTick, "look")
		best.times(cfg.Fall, cfg.FastInterval, "fast-interval")
		ok = true
	}
	for i, k := range cfg.Checks {
		var s sum
		switch {
		case k.Script != "":
			// It is run again when it has ended, one run after the other.
			s.add(k.Interval, "check-interval")
			if k.Timeout >= cfg.FastInterval {
				s.times(cfg.Fall, k.Timeout, "check-timeout")
			} else {
				s.times(cfg.Fall-1, cfg.FastInterval, "fast-interval")
				s.add(k.Timeout, "check-timeout")
			}
		case i > 0 || k.Answers:
			s.add(k.Interval, "interval")
			s.add(min(cfg.FastInterval, k.Timeout), "late after")
			s.times(cfg.Fall-1, cfg.FastInterval, "fast-interval")
			s.add(k.Timeout, "timeout")
		default:
			continue
		}
		if !ok || s.total < best.total {
			best, ok = s, true
		}
	}
	return best, ok
}

// boundFor returns the longest time that a failover may take that began with a
// bad check: the time of the matching case, without the search for the first
// evidence.
func (p Prediction) boundFor(b *BadCheck) (time.Duration, bool) {
	f := Hung
	switch {
	case b == nil || b.Phase == "connect" && !strings.Contains(b.Error, "refused"):
		f = Silent
	case b.Phase == "connect":
		f = Refused
	}
	for _, c := range p.Cases {
		if c.Failure == f && !c.Traffic && !c.Never {
			return c.total, true
		}
	}
	return 0, false
}

// contradiction is one pair of settings that conflict.
type contradiction struct {
	text    string
	serious bool // worth a warning in the log
}

// withoutWork returns the longest time of a failover without scripts, triggers
// and fences, which have warnings of their own.
func (cfg Config) withoutWork() (longest time.Duration) {
	cfg.Checks = slices.DeleteFunc(slices.Clone(cfg.Checks), func(k Check) bool { return k.Script != "" })
	cfg.Fence = relay.FencePolicy{}
	for _, f := range []Failure{Refused, Silent} {
		longest = max(longest, cfg.predict(f, false, 0).total)
	}
	return longest
}

// contradictions returns settings that conflict.
//
// Only conflicts that the defaults never have are serious: the others may be
// intended.
func (cfg Config) contradictions(triggers int) []contradiction {
	var all []contradiction
	add := func(serious bool, format string, args ...any) {
		all = append(all, contradiction{fmt.Sprintf(format, args...), serious})
	}
	warn := func(format string, args ...any) { add(false, format, args...) }
	hold := cfg.Hold
	for _, k := range cfg.Checks {
		name := "timeout"
		if k.Script != "" {
			name = "check-timeout"
		}
		if k.Timeout > hold {
			warn("%s %v of check %s is longer than hold %v: one slow answer, and clients are refused", name, k.Timeout, k.Name, hold)
		}
		if k.Script != "" && time.Duration(cfg.Fall)*k.Timeout > hold && k.Timeout <= hold {
			warn("fall %d × check-timeout %v is longer than hold %v: clients of a primary whose script hangs are refused before the failover", cfg.Fall, k.Timeout, hold)
		}
	}
	if triggers > 0 && time.Duration(triggers)*cfg.Triggers.Timeout > hold {
		add(true, "%d × trigger-timeout %v is longer than hold %v: clients are refused while a slow trigger runs", triggers, cfg.Triggers.Timeout, hold)
	}
	if cfg.Fence.Drain > hold {
		warn("fence drain=%v is longer than hold %v: clients are refused while earlier connections finish", cfg.Fence.Drain, hold)
	}
	if cfg.Fence.Keep {
		warn("fence keep: connections to the old primary stay open, and clients can write to both primaries")
	}
	if stay := cfg.stay(); stay > hold && hold > 0 && len(cfg.Hosts) > 1 {
		warn("stay %v is longer than hold %v: clients are refused while the election waits for the last primary", stay, hold)
	}
	if hold > impatient {
		warn("hold %v is longer than the connect timeout of many clients (%v): they give up before", hold, impatient)
	}
	if hold == 0 {
		warn("hold 0: clients are refused during every failover, however short")
	}
	if cfg.FastInterval > cfg.Checks[0].Interval {
		warn("fast-interval %v is longer than interval %v", cfg.FastInterval, cfg.Checks[0].Interval)
	}
	if len(cfg.Hosts) == 1 {
		add(true, "only one host: failover is impossible")
	} else if longest := cfg.withoutWork(); hold > 0 && longest > hold {
		add(true, "hold %v is shorter than a failover can take (%v): clients are refused before the next primary is found", hold, longest)
	}
	return all
}
