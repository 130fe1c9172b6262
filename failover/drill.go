package failover

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy/health"
	"understudy/hooks"
	"understudy/selector"
)

// DrillReport says what would happen if a host failed now.
type DrillReport struct {
	Relay string    `json:"relay"`
	At    time.Time `json:"at"`
	Host  string    `json:"host"`             // that is thought to have failed
	Heir  string    `json:"heir,omitempty"`   // who would take over; empty when nobody would
	OK    bool      `json:"ok"`               // the failover would work
	Text  string    `json:"text"`             // the verdict in one sentence
	Steps []Step    `json:"steps,omitempty"`  // what was tried, in order
	Heirs []Heir    `json:"others,omitempty"` // why it would not be somebody else

	Seconds      float64 `json:"seconds"`       // that the heir's checks and the triggers took
	BoundSeconds float64 `json:"bound_seconds"` // worst case for a primary that refuses, without traffic
}

// Step is one check or trigger of a drill.
type Step struct {
	Name    string  `json:"name"`
	OK      bool    `json:"ok"`
	Seconds float64 `json:"seconds"`
	Phase   string  `json:"phase,omitempty"`
	Detail  string  `json:"detail,omitempty"` // why it failed, or what it said
}

// Heir is a host that would not take over.
type Heir struct {
	Host   string `json:"host"`
	Reason string `json:"reason"`
}

// Drill rehearses the failure of host, or of the primary when it is empty:
// everybody who could take over is checked now, and with triggers the triggers
// run for the heir with UNDERSTUDY_DRY_RUN=1. Nothing changes for clients. There
// is one drill at a time, and a real election ends it.
func (c *Conductor) Drill(ctx context.Context, host string, triggers bool) (DrillReport, error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	mine := &rehearsal{end: end, over: make(chan struct{})}
	if !c.drill.CompareAndSwap(nil, mine) {
		return DrillReport{}, RefusedError{"another drill is under way"}
	}
	defer close(mine.over)
	defer c.drill.Store(nil)
	now := c.Status()
	if triggers && now.Phase != selector.Serving {
		return DrillReport{}, RefusedError{"an election is under way, and triggers may run"}
	}
	if host == "" {
		if host = now.Elect; host == "" {
			host = c.cfg().Hosts[0]
		}
	} else if !slices.Contains(c.cfg().Hosts, host) {
		return DrillReport{}, c.unknownHost(host)
	}
	r := DrillReport{Relay: c.cfg().Name, At: time.Now(), Host: host}
	for _, k := range c.rules.Load().prediction.Cases {
		if k.Failure == Refused && !k.Traffic {
			r.BoundSeconds = k.TotalSeconds
		}
	}
	if now.Frozen && host == now.Elect {
		r.Text = "nobody would take over: the relay is frozen"
		return r, nil
	}
	if now.Elect != "" && host != now.Elect {
		return c.drillStandby(ctx, r, now)
	}
	c.findHeir(ctx, &r, now)
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	if r.Heir == "" {
		r.Text = "nobody would take over from " + host
		return r, nil
	}
	r.OK, r.Text = true, r.Heir+" would take over from "+host
	if triggers {
		c.rehearse(ctx, &r)
	}
	if r.OK {
		err := c.request(ctx, func() selector.Event {
			c.goodDrill = r.At
			c.remember()
			return selector.Tick{}
		})
		if ctx.Err() != nil {
			return r, context.Cause(ctx)
		}
		if err != nil {
			return r, err
		}
	}
	c.log.Info("drill", "host", host, "heir", r.Heir, "good", r.OK, "reason", r.Text)
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	return r, nil
}

// What ends a drill.
var (
	errElection = RefusedError{"an election began, so the drill was given up"}
	errSettings = RefusedError{"the settings changed, so the drill was given up"}
)

// rehearsal is a drill that is under way.
type rehearsal struct {
	end  context.CancelCauseFunc
	over chan struct{} // closed when nothing of it runs any more
}

// giveUpDrill has the drill under way end, which may be running a check script
// that an election waits for.
func (c *Conductor) giveUpDrill(reason error) {
	if d := c.drill.Load(); d != nil {
		d.end(reason)
	}
}

// endDrill ends the drill under way, whose triggers must not run beside real
// ones. It returns when nothing of it is left, or when it takes too long: a real
// failover does not wait for ever for a rehearsed one.
func (c *Conductor) endDrill() {
	if d := c.drill.Load(); d != nil {
		d.end(errElection)
		wait(d.over, goneGrace)
	}
}

// drillStandby rehearses the failure of a host that is not primary: nobody
// takes over, but the primary has to be well. It does not count as a good drill.
func (c *Conductor) drillStandby(ctx context.Context, r DrillReport, now Status) (DrillReport, error) {
	var bad string
	r.Heir = now.Elect
	r.Steps, bad = c.tryHost(ctx, now.Elect)
	for _, s := range r.Steps {
		r.Seconds += s.Seconds
	}
	r.OK, r.Text = bad == "", r.Host+" is not primary: nothing would change, "+now.Elect+" stays"
	if !r.OK {
		r.Text += ", and is not well: " + bad
	}
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	return r, nil
}

// findHeir asks all candidates at once and takes the first in order that
// passes, one that the flap guard holds back last.
func (c *Conductor) findHeir(ctx context.Context, r *DrillReport, now Status) {
	type answer struct {
		steps []Step
		bad   string
	}
	asked := make([]chan answer, len(now.Hosts))
	for i, h := range now.Hosts {
		if h.Name == r.Host || h.Drained {
			continue
		}
		asked[i] = make(chan answer, 1)
		go func() {
			steps, bad := c.tryHost(ctx, h.Name)
			asked[i] <- answer{steps, bad}
		}()
	}
	spare := -1
	var answers = make([]answer, len(now.Hosts))
	for i, h := range now.Hosts {
		switch {
		case h.Name == r.Host:
			continue
		case h.Drained:
			r.Heirs = append(r.Heirs, Heir{h.Name, "drained"})
			continue
		}
		answers[i] = <-asked[i]
		switch {
		case answers[i].bad != "":
			r.Heirs = append(r.Heirs, Heir{h.Name, answers[i].bad})
		case r.Heir != "":
			r.Heirs = append(r.Heirs, Heir{h.Name, "passes too, and comes later in order"})
		case h.Guarded && spare < 0:
			spare = i
		case h.Guarded:
			r.Heirs = append(r.Heirs, Heir{h.Name, "passes, and failed too often lately"})
		default:
			r.Heir, r.Steps = h.Name, answers[i].steps
		}
	}
	if spare >= 0 {
		if r.Heir == "" {
			r.Heir, r.Steps = now.Hosts[spare].Name, answers[spare].steps
		} else {
			r.Heirs = append(r.Heirs, Heir{now.Hosts[spare].Name, "passes, and failed too often lately"})
		}
	}
	for _, s := range r.Steps {
		r.Seconds += s.Seconds
	}
}

// Try asks a host every check of cfg once, now, one after the other, until one
// fails. It needs no relay and no conductor.
func Try(ctx context.Context, cfg Config, host string) []Step {
	cfg = cfg.withDefaults()
	return cfg.try(ctx, host, hooks.Occasion{Event: hooks.EventStart, Relay: cfg.Name, New: host, Reason: "check"})
}

// inTurn runs check scripts for a drill, never one that the machine has running
// for the same host.
type inTurn struct{ *Conductor }

func (t inTurn) Run(ctx context.Context, s hooks.Script) hooks.Result {
	free, err := t.turn(ctx, s)
	if err != nil {
		return hooks.Result{End: hooks.Cancelled, Local: true, Err: err}
	}
	defer free()
	res := t.cfg().Scripts.Run(ctx, s)
	if res.Gone != nil {
		<-res.Gone
	}
	return res
}

// turn waits until the check script runs for no other asker with the same
// arguments.
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

// tryHost does so for a drill. Bad says which check failed and why; nothing when
// all passed.
func (c *Conductor) tryHost(ctx context.Context, host string) (steps []Step, bad string) {
	rules := *c.cfg()
	rules.Scripts = inTurn{c}
	steps = rules.try(ctx, host, c.occasion(c.Snapshot(), host))
	if last := steps[len(steps)-1]; !last.OK {
		bad = last.Name + ": " + last.Detail
	}
	return steps, bad
}

func (cfg Config) try(ctx context.Context, host string, o hooks.Occasion) (steps []Step) {
	for _, k := range cfg.Checks {
		res := cfg.ask(ctx, k, host, o)
		s := Step{Name: k.Name, OK: res.OK, Seconds: res.Latency.Seconds()}
		if !res.OK {
			s.Phase = string(res.Phase)
			if res.Err != nil {
				s.Detail = res.Err.Error()
			}
		}
		steps = append(steps, s)
		if !res.OK {
			break
		}
	}
	return steps
}

// ask asks one question of one host, outside of the machine, which hears
// nothing of it.
func (cfg Config) ask(ctx context.Context, k Check, host string, o hooks.Occasion) health.Result {
	if k.Script == "" {
		limited, cancel := context.WithTimeout(ctx, k.Timeout)
		defer cancel()
		return k.Run(limited, host)
	}
	return resultOf(cfg.Scripts.Run(ctx, k.script(cfg.Name, host, o.Env())))
}

// rehearse runs the triggers for the heir, dry.
func (c *Conductor) rehearse(ctx context.Context, r *DrillReport) {
	if c.cfg().Triggers.Path == "" {
		r.Text += "; there are no triggers"
		return
	}
	scripts, warnings, err := hooks.List(c.cfg().Triggers.Path)
	for _, w := range warnings {
		r.Steps = append(r.Steps, Step{Name: "trigger", Detail: w.Error()})
	}
	if err != nil {
		r.OK, r.Text = false, "the triggers cannot be run: "+err.Error()
		return
	}
	o := c.occasion(c.Snapshot(), r.Heir)
	o.Old, o.Epoch, o.Reason, o.DryRun = r.Host, o.Epoch+1, "drill", true
	for _, script := range scripts {
		res := c.cfg().Scripts.Run(ctx, hooks.Script{
			Kind: hooks.Trigger, Path: script, Args: []string{r.Heir}, Env: o.Env(), Timeout: c.cfg().Triggers.Timeout,
			Fields: []any{"relay", c.cfg().Name, "host", r.Heir, "dry-run", true},
		})
		s := Step{Name: script, OK: res.OK(), Seconds: res.Took.Seconds(), Detail: res.Output}
		r.Seconds += s.Seconds
		if !s.OK {
			s.Detail = res.Err.Error() + reasonSuffix(res.Output)
			r.OK, r.Text = false, fmt.Sprintf("the trigger %s fails: %v", script, res.Err)
		}
		r.Steps = append(r.Steps, s)
	}
}
