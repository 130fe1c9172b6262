package failover

import (
	"fmt"
	"strings"
	"time"

	"understudy/hooks"
)

const (
	// passThrough is what a failover takes beside the waiting that the settings
	// ask for: connects, processes, system calls, on a busy machine.
	passThrough = 500 * time.Millisecond

	// slowConnect is when the relay reports a client's connect that has had no
	// answer; see the package relay.
	slowConnect = 200 * time.Millisecond

	// impatient is how long the clients of databases and HTTP wait for a
	// connection, often, before they give up.
	impatient = 30 * time.Second
)

// Failure is a way in which a primary fails.
type Failure string

// The ways: its port refuses, nothing comes back at all, or it accepts
// connections and does no more.
const (
	Refused Failure = "refused"
	Silent  Failure = "silent"
	Hung    Failure = "hung"
)

// Prediction is what the settings of a relay promise: for each way in which a
// primary can fail the longest time until clients pass to another host.
type Prediction struct {
	Cases    []Case   `json:"cases"`
	Warnings []string `json:"warnings,omitempty"`
}

// Case is one line of a [Prediction].
type Case struct {
	Failure Failure `json:"failure"`

	// Traffic says that clients connect all the time: a connect that fails is
	// noticed at once.
	Traffic bool `json:"traffic"`

	// Never says that this failure is not noticed at all, and Formula why. The
	// times are zero then.
	Never bool `json:"never,omitempty"`

	DetectSeconds   float64 `json:"detect_seconds"`
	ElectSeconds    float64 `json:"elect_seconds"`
	FenceSeconds    float64 `json:"fence_seconds"`
	TriggersSeconds float64 `json:"triggers_seconds"` // if each of them takes as long as it may
	TotalSeconds    float64 `json:"total_seconds"`

	Formula string `json:"formula"` // how the times come about

	total time.Duration
}

// Total is the longest time until clients pass; zero when Never.
func (c Case) Total() time.Duration { return c.total }

// sum is a time that is made of parts with names.
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

// Predict says what cfg promises. Where cfg.Triggers.Path is a directory, the
// scripts that are in it now count.
func Predict(cfg Config) Prediction {
	cfg = cfg.withDefaults()
	var p Prediction
	triggers := 0
	if cfg.Triggers.Path != "" {
		if scripts, _, err := hooks.List(cfg.Triggers.Path); err == nil {
			triggers = len(scripts)
		}
	}
	for _, f := range []Failure{Refused, Silent, Hung} {
		for _, traffic := range []bool{true, false} {
			p.Cases = append(p.Cases, cfg.predict(f, traffic, triggers))
		}
	}
	p.Warnings = cfg.contradictions(triggers)
	return p
}

// predict works out one case.
func (cfg Config) predict(f Failure, traffic bool, triggers int) Case {
	c := Case{Failure: f, Traffic: traffic}
	detect, ok := cfg.detection(f, traffic)
	if !ok {
		c.Never = true
		c.Formula = "no check looks further than the connect: give a pong port or a check script"
		return c
	}
	var elect, fence, run sum
	elect.add(cfg.Checks[0].Timeout, "timeout of the connect")
	pong := time.Duration(0) // they are asked at the same time
	for _, k := range cfg.Checks[1:] {
		if k.Script != "" {
			// One that runs has to end before it can be run anew.
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
	run.times(triggers, cfg.Triggers.Timeout, "trigger-timeout")

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

// detection is how long it takes until the primary is declared down; false when
// it never is.
func (cfg Config) detection(f Failure, traffic bool) (sum, bool) {
	var s sum
	tcp := cfg.Checks[0]
	if f == Hung {
		return cfg.hungDetection()
	}
	switch {
	case !traffic:
		s.add(tcp.Interval, "interval")
	case f == Silent:
		s.add(slowConnect, "slow connect")
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

// hungDetection is that of a primary that accepts connections and says nothing.
// Clients' connects succeed, so traffic makes no difference.
func (cfg Config) hungDetection() (best sum, ok bool) {
	for i, k := range cfg.Checks {
		var s sum
		switch {
		case k.Script != "":
			// It is run again at once, one after the other.
			s.add(k.Interval, "check-interval")
			s.times(cfg.Fall, k.Timeout, "check-timeout")
		case i > 0:
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

// boundFor is the longest time that a failover may take that began with a bad
// check: the case that it fits, the search for the first evidence excepted.
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

// contradictions are settings that work against each other.
func (cfg Config) contradictions(triggers int) []string {
	var all []string
	warn := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	hold := max(cfg.Hold, 0)
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
		warn("%d × trigger-timeout %v is longer than hold %v: clients are refused while a slow trigger runs", triggers, cfg.Triggers.Timeout, hold)
	}
	if cfg.Fence.Drain > hold {
		warn("fence drain=%v is longer than hold %v: clients are refused while earlier connections finish", cfg.Fence.Drain, hold)
	}
	if cfg.Fence.Keep {
		warn("fence keep: connections to the old primary live on, and it can be written to beside the new one")
	}
	if hold > impatient {
		warn("hold %v is longer than many clients wait for a connection (%v): they give up first", hold, impatient)
	}
	if cfg.Hold < 0 {
		warn("hold 0: clients are refused during every failover, however short")
	}
	if cfg.FastInterval > cfg.Checks[0].Interval {
		warn("fast-interval %v is longer than interval %v", cfg.FastInterval, cfg.Checks[0].Interval)
	}
	if len(cfg.Hosts) == 1 {
		warn("there is only one host: nobody can take over")
	}
	return all
}
