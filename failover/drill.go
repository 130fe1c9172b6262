package failover

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy/health"
	"understudy/hooks"
	"understudy/internal/role"
	"understudy/selector"
)

// DrillRequest requests a drill.
type DrillRequest struct {
	// Host is the host that replaces the primary. Empty means the one that
	// would be elected.
	Host string

	// Without is the host that is assumed to have failed. Empty means the
	// primary. It excludes Host.
	Without string

	// Triggers runs the triggers, with UNDERSTUDY_DRY_RUN=1.
	Triggers bool

	// By and Reason name the operator who ordered it and the reason, for the log and the
	// record.
	By, Reason string
}

// DrillReport predicts what would happen if a host failed now.
type DrillReport struct {
	At         time.Time   `json:"at"`                  // when it began
	Host       string      `json:"host"`                // that is assumed to have failed
	Candidate  string      `json:"candidate,omitempty"` // the host that would be elected; empty when none would be
	OK         bool        `json:"ok"`                  // the failover would work
	Text       string      `json:"text"`                // the verdict in one sentence
	Steps      []Step      `json:"steps,omitempty"`     // the checks and triggers that were run, in order
	Candidates []Candidate `json:"others,omitempty"`    // the other hosts, and why they would not be elected

	Seconds      float64 `json:"seconds"`       // duration of the candidate's checks and the triggers
	BoundSeconds float64 `json:"bound_seconds"` // worst case for a primary that refuses, without traffic

	counts bool // as a good drill: the host that would be elected has passed
}

// Step is one check or trigger of a drill.
type Step struct {
	Host    string  `json:"host"`             // that was checked, or that the trigger ran for
	Name    string  `json:"name"`             // of the check, or path of the trigger
	OK      bool    `json:"ok"`               // it passed
	Seconds float64 `json:"seconds"`          // its duration
	Phase   string  `json:"phase,omitempty"`  // how far a check got
	Detail  string  `json:"detail,omitempty"` // why it failed, or its output

	// Refused is set when the host answered and the answer was negative.
	// Otherwise a check that failed had no answer.
	Refused bool `json:"-"`

	// Fact is what a role check found out; nil for others.
	Fact *role.Fact `json:"-"`
}

// Candidate is a host that would not be elected.
type Candidate struct {
	Host   string `json:"host"`   // as the settings have it
	Reason string `json:"reason"` // one line
}

// Drill rehearses a failover: every host that could be elected is checked now,
// and with Triggers the triggers run for the candidate. Nothing changes for
// clients. There is one drill at a time, and a real election ends it.
func (c *Conductor) Drill(ctx context.Context, q DrillRequest) (DrillReport, error) {
	r, err := c.rehearseFailure(ctx, q)
	if err != nil {
		return r, err
	}
	c.log.Info("drill", "host", r.Host, "candidate", r.Candidate, "good", r.OK, "by", q.By, "reason", r.Text)
	i := Incident{
		Event: OrderDrill, Reason: orderText("drill", q.By, q.Reason), By: q.By, Order: &Ordered{At: r.At, Host: r.Host, Result: r.Text},
	}
	if !r.OK {
		i.Outcome, i.Failure = DrillFailed, r.Text
	}
	return r, c.request(ctx, func() selector.Event {
		c.noteOrder(i)
		if r.counts {
			c.goodDrill = r.At
		}
		c.save()
		return selector.Tick{}
	})
}

// rehearseFailure is a drill without its record.
func (c *Conductor) rehearseFailure(ctx context.Context, q DrillRequest) (DrillReport, error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	mine := &rehearsal{end: end, over: make(chan struct{})}
	if !c.drill.CompareAndSwap(nil, mine) {
		return DrillReport{}, RefusedError{"another drill is under way"}
	}
	defer close(mine.over)
	defer c.drill.Store(nil)
	now := c.Status()
	if q.Triggers && now.Phase != selector.Serving {
		return DrillReport{}, RefusedError{"an election is under way, and triggers may run"}
	}
	if q.Host != "" && q.Without != "" {
		return DrillReport{}, RefusedError{"host and without exclude each other: give one of them"}
	}
	for _, name := range []string{q.Host, q.Without} {
		if name != "" && !slices.Contains(c.cfg().Hosts, name) {
			return DrillReport{}, c.unknownHost(name)
		}
	}
	if q.Host != "" && q.Host == now.Elect {
		return DrillReport{}, RefusedError{q.Host + " is primary already: a drill without it (--without " + q.Host + ") says who would take over"}
	}
	host := cmp.Or(q.Without, now.Elect)
	if host == "" && q.Host == "" {
		host = c.cfg().Hosts[0]
	}
	r := DrillReport{At: time.Now(), Host: host}
	for _, k := range c.settings.Load().prediction.Cases {
		if k.Failure == Refused && !k.Traffic {
			r.BoundSeconds = k.TotalSeconds
		}
	}
	if now.Frozen && host == now.Elect {
		r.Text = "no host would take over: the relay is frozen"
		if q.Host != "" {
			r.Text = q.Host + " would not take over: the relay is frozen"
		}
		return r, nil
	}
	if now.Elect != "" && host != now.Elect {
		return c.drillStandby(ctx, r, now)
	}
	elected := c.findCandidate(ctx, &r, now, q.Host)
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	from := ""
	if host != "" {
		from = " from " + host
	}
	switch {
	case r.Candidate == "" && q.Host == "":
		r.Text = "no host would take over" + from
		return r, nil
	case r.Candidate == "":
		i := slices.IndexFunc(r.Candidates, func(o Candidate) bool { return o.Host == q.Host })
		r.Text = q.Host + " would not take over" + from + ": " + r.Candidates[i].Reason
		return r, nil
	case r.Candidate != elected:
		r.OK, r.Text = true, r.Candidate+" could take over"+from+", but "+elected+" would: it comes first in order"
	default:
		r.OK, r.Text = true, r.Candidate+" would take over"+from
	}
	if q.Triggers {
		c.rehearse(ctx, &r)
	}
	r.counts = r.OK && r.Candidate == elected
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	return r, nil
}

// The reasons for which a drill is ended.
var (
	errElection = RefusedError{"an election began, the drill was stopped"}
	errSettings = RefusedError{"the settings changed, the drill was stopped"}
)

// rehearsal is a drill in progress.
type rehearsal struct {
	end  context.CancelCauseFunc
	over chan struct{} // closed when everything that it started has ended
}

// giveUpDrill ends the drill in progress, which may be running a check script
// that an election waits for.
func (c *Conductor) giveUpDrill(reason error) {
	if d := c.drill.Load(); d != nil {
		d.end(reason)
	}
}

// endDrill ends the drill in progress, whose triggers must not run at the same
// time as real ones. It returns when everything that the drill started has
// ended, or when that takes too long: a real failover does not wait forever for
// a drill.
func (c *Conductor) endDrill() {
	if d := c.drill.Load(); d != nil {
		d.end(errElection)
		wait(d.over, exitGrace)
	}
}

// drillStandby rehearses the failure of a host that is not primary: no other
// host is elected, but the primary must pass its checks. It does not count as a
// successful drill.
func (c *Conductor) drillStandby(ctx context.Context, r DrillReport, now Status) (DrillReport, error) {
	var bad string
	r.Candidate = now.Elect
	r.Steps, bad = c.tryHost(ctx, now.Elect)
	for _, s := range r.Steps {
		r.Seconds += s.Seconds
	}
	r.OK, r.Text = bad == "", r.Host+" is not primary: nothing would change, "+now.Elect+" stays"
	if !r.OK {
		r.Text += ", and is not healthy: " + bad
	}
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	return r, nil
}

// findCandidate checks all candidates at the same time and returns the first in
// order that passes; one that the flap guard holds back comes last. The
// candidate of the report is host instead, if that is named, and none if host
// does not pass.
func (c *Conductor) findCandidate(ctx context.Context, r *DrillReport, now Status, host string) (elected string) {
	type answer struct {
		steps []Step
		bad   string
	}
	now.Hosts = inPreference(now)
	replies := make([]chan answer, len(now.Hosts))
	for i, h := range now.Hosts {
		if h.Name == r.Host || h.Drained {
			continue
		}
		replies[i] = make(chan answer, 1)
		go func() {
			steps, bad := c.tryHost(ctx, h.Name)
			replies[i] <- answer{steps, bad}
		}()
	}
	spare := -1
	var answers = make([]answer, len(now.Hosts))
	for i, h := range now.Hosts {
		switch {
		case h.Name == r.Host:
			continue
		case h.Drained:
			r.Candidates = append(r.Candidates, Candidate{h.Name, "drained"})
			continue
		}
		answers[i] = <-replies[i]
		switch {
		case answers[i].bad != "":
			r.Candidates = append(r.Candidates, Candidate{h.Name, answers[i].bad})
		case r.Candidate != "":
			r.Candidates = append(r.Candidates, Candidate{h.Name, "passes too, and comes later in order"})
		case (h.Guarded || h.Unfit) && spare < 0:
			spare = i
		case h.Guarded || h.Unfit:
			r.Candidates = append(r.Candidates, Candidate{h.Name, heldBack(&h)})
		default:
			r.Candidate, r.Steps = h.Name, answers[i].steps
		}
	}
	if spare >= 0 {
		if r.Candidate == "" {
			r.Candidate, r.Steps = now.Hosts[spare].Name, answers[spare].steps
		} else {
			r.Candidates = append(r.Candidates, Candidate{now.Hosts[spare].Name, heldBack(&now.Hosts[spare])})
		}
	}
	elected = r.Candidate
	if host != "" && host != elected {
		i := slices.IndexFunc(now.Hosts, func(h selector.Host) bool { return h.Name == host })
		r.Candidate, r.Steps = "", answers[i].steps
		if len(answers[i].steps) > 0 && answers[i].bad == "" {
			r.Candidate = host
			r.Candidates = slices.DeleteFunc(r.Candidates, func(o Candidate) bool { return o.Host == host })
		}
	}
	for _, s := range r.Steps {
		r.Seconds += s.Seconds
	}
	return elected
}

// Try runs every check of cfg once on a host, now, one after the other, until
// one fails. It needs no relay and no conductor.
func Try(ctx context.Context, cfg Config, host string) []Step {
	return cfg.try(ctx, host, hooks.ScriptEnv{Event: hooks.EventStart, Relay: cfg.Name, New: host, Reason: "check"})
}

// inTurn runs check scripts for a drill, never one that the machine is running
// for the same host.
type inTurn struct{ *Conductor }

func (t inTurn) Run(ctx context.Context, s hooks.Script) hooks.Result {
	free, err := t.turn(ctx, s)
	if err != nil {
		return hooks.Result{End: hooks.Cancelled, Unknown: true, Err: err}
	}
	defer free()
	res := t.cfg().Scripts.Run(ctx, s)
	if res.Reaped != nil {
		<-res.Reaped
	}
	return res
}

// turn waits until the check script is not running with the same arguments for
// another caller.
func (c *Conductor) turn(ctx context.Context, s hooks.Script) (free func(), err error) {
	mine, _ := c.turns.LoadOrStore(s.Path+"\x00"+strings.Join(s.Args, "\x00"), make(chan struct{}, 1))
	place := mine.(chan struct{})
	select {
	case place <- struct{}{}:
		return func() { <-place }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// tryHost does the same for a drill. Bad is which check failed and why; empty
// when all passed.
func (c *Conductor) tryHost(ctx context.Context, host string) (steps []Step, bad string) {
	steps = c.tryAddresses(ctx, c.Status(), host)
	if last := steps[len(steps)-1]; !last.OK {
		return steps, last.Name + ": " + last.Detail
	}
	for _, s := range steps {
		if why := c.Status().refuses(c.cfg().roleCheck(), host, s.Fact); why != "" {
			return steps, s.Name + ": " + why
		}
	}
	return steps, ""
}

func (cfg Config) try(ctx context.Context, host string, o hooks.ScriptEnv) (steps []Step) {
	for _, k := range cfg.Checks {
		res := cfg.check(ctx, k, host, o)
		s := Step{Host: host, Name: k.Name, OK: res.OK, Seconds: res.Latency.Seconds(), Fact: res.Fact}
		if res.Fact != nil && res.OK {
			s.Detail = res.Fact.String()
			if k.Role != nil && !k.Role.Promote && res.Fact.Role == role.Replica {
				s.OK, s.Refused, s.Phase = false, true, string(health.Role)
			}
		}
		if !res.OK {
			s.Phase, s.Refused = string(res.Phase), !res.Unknown && answeredNo(res)
			if res.Err != nil {
				s.Detail = res.Err.Error()
			}
		}
		steps = append(steps, s)
		if !s.OK {
			break
		}
	}
	return steps
}

// answeredNo reports whether a check that failed had a negative answer: from a
// script that exited, or over a connection.
func answeredNo(res health.Result) bool {
	switch res.Phase {
	case health.Criteria:
		return true
	case health.Script:
		return hooks.IsExit(res.Err)
	case health.Resolve, health.Connect, health.TLS, health.Write, health.Read, health.Login, health.SQL, health.Role:
	}
	return false
}

// check runs one check of one host without the machine, which gets no result.
func (cfg Config) check(ctx context.Context, k Check, host string, o hooks.ScriptEnv) health.Result {
	if k.Script == "" {
		limited, cancel := context.WithTimeout(ctx, k.Timeout)
		defer cancel()
		return k.Run(limited, host)
	}
	return resultOf(cfg.Scripts.Run(ctx, k.script(cfg.Name, host, o.Env())))
}

// rehearse runs the triggers for the candidate with UNDERSTUDY_DRY_RUN=1.
func (c *Conductor) rehearse(ctx context.Context, r *DrillReport) {
	if c.cfg().Triggers.Path == "" {
		r.Text += "; there are no triggers"
		return
	}
	scripts, warnings, err := hooks.List(c.cfg().Triggers.Path)
	for _, w := range warnings {
		r.Steps = append(r.Steps, Step{Host: r.Candidate, Name: "trigger", Detail: w.Error()})
	}
	if err != nil {
		r.OK, r.Text = false, "the triggers cannot be run: "+err.Error()
		return
	}
	o := c.scriptEnv(c.Snapshot(), r.Candidate, c.addressOf(r.Candidate))
	o.Old, o.Epoch, o.Reason, o.DryRun = r.Host, o.Epoch+1, "drill", true
	if h, ok := c.Status().host(r.Candidate); ok {
		o.Fact, o.Lag = h.Fact, h.Lag
	}
	for _, script := range scripts {
		res := c.cfg().Scripts.Run(ctx, hooks.Script{
			Kind: hooks.Trigger, Path: script, Args: []string{r.Candidate}, Env: o.Env(), Timeout: c.cfg().Triggers.Timeout,
			Fields: []any{"relay", c.cfg().Name, "host", r.Candidate, "dry-run", true},
		})
		s := Step{Host: r.Candidate, Name: script, OK: res.OK(), Seconds: res.Took.Seconds(), Detail: res.Output}
		r.Seconds += s.Seconds
		if !s.OK {
			s.Detail = res.Reason().Error()
			r.OK, r.Text = false, fmt.Sprintf("the trigger %s fails: %s", script, s.Detail)
		}
		r.Steps = append(r.Steps, s)
	}
}

// heldBack says why a host that passes is elected only where no other one is usable.
func heldBack(h *selector.Host) string {
	if h.Unfit {
		return "passes, and is down for too many other instances"
	}
	return "passes, and failed too often lately"
}
