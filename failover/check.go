package failover

import (
	"context"
	"slices"
	"time"

	"understudy/health"
	"understudy/hooks"
	"understudy/selector"
)

// goneGrace is how long an ended script is waited for after Run's context has
// ended: longer than the runner needs to kill it, and not for ever, because a
// process can be stuck in the kernel.
const goneGrace = 5 * time.Second

// job is one check of one host that the machine has asked for.
type job struct {
	id    uint64
	host  string
	check Check
	env   []string // of a script
}

// job reads what the check needs to know while the machine is at rest.
func (c *Conductor) job(a selector.StartCheck) job {
	j := job{id: a.ID, host: a.Host, check: c.cfg().Checks[a.Check]}
	if j.check.Script != "" {
		j.env = c.occasion(c.machine.Snapshot(), a.Host).Env()
	}
	return j
}

// occasion is what a check script is told: the election that would make its
// host primary.
func (c *Conductor) occasion(now selector.Snapshot, host string) hooks.Occasion {
	o := hooks.Occasion{
		Event:  hooks.EventFailover,
		Relay:  c.cfg().Name,
		Epoch:  now.Epoch,
		Old:    now.Elect,
		New:    host,
		Reason: "check",
	}
	switch now.Elect {
	case "":
		o.Event = hooks.EventStart
	case host:
		o.Event = hooks.EventReselect
	}
	return o
}

// check runs j and reports its result.
func (c *Conductor) check(ctx context.Context, j job) {
	if j.check.Script != "" {
		c.checkByScript(ctx, j)
		return
	}
	limited, cancel := context.WithTimeout(ctx, j.check.Timeout)
	defer cancel()
	c.checked(ctx, j, j.check.Run(limited, j.host), false)
}

// checkByScript runs j's script. The machine hears the outcome when it is
// known, and that the script is gone when it is.
func (c *Conductor) checkByScript(ctx context.Context, j job) {
	script := j.check.script(c.cfg().Name, j.host, j.env)
	free, err := c.turn(ctx, script)
	if err != nil {
		return // nobody listens any more
	}
	defer free()
	res := c.cfg().Scripts.Run(ctx, script)
	c.checked(ctx, j, resultOf(res), true)
	select {
	case <-res.Gone:
		c.report(ctx, selector.Ended{ID: j.id})
		return
	case <-ctx.Done():
	}
	grace := time.NewTimer(goneGrace)
	defer grace.Stop()
	select {
	case <-res.Gone:
	case <-grace.C:
	}
}

// script is what k runs for a host of a relay.
func (k Check) script(relay, host string, env []string) hooks.Script {
	return hooks.Script{
		Kind: hooks.Check, Path: k.Script, Args: append(slices.Clone(k.Args), host), Env: env, Timeout: k.Timeout,
		Fields: []any{"relay", relay, "host", host},
	}
}

// resultOf is what a script's end says about its host.
func resultOf(res hooks.Result) health.Result {
	return health.Result{OK: res.OK(), Local: res.Local, Phase: health.Script, Err: res.Err, Latency: res.Took}
}

// checked reports what j found.
func (c *Conductor) checked(ctx context.Context, j job, res health.Result, running bool) {
	if !res.OK {
		c.log.Debug("check failed", "host", j.host, "check", j.check.Name, "phase", string(res.Phase), "local", res.Local, "latency", res.Latency, "error", res.Err)
	}
	if !res.Local {
		c.evidence.note(j.host, j.check.Name, string(res.Phase), res.OK, res.Err)
	}
	c.report(ctx, selector.Result{
		ID: j.id, OK: res.OK, Local: res.Local, Running: running,
		Phase: string(res.Phase), Err: res.Err, Latency: res.Latency,
	})
}
