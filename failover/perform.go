package failover

import (
	"context"
	"fmt"
	"time"

	"understudy/hooks"
	"understudy/relay"
	"understudy/selector"
)

// performed is the result of perform for one election.
type performed struct {
	epoch    uint64
	fence    *FenceRun
	triggers []TriggerRun
	failed   []error // triggers
	err      error   // the host must not become primary
}

// perform fences the earlier epochs and runs the triggers of s, once its epoch
// has been saved. It runs in parallel to the
// machine, which continues to check the hosts.
//
// Connections that lead to the host that was elected are not fenced, whichever
// election they are from: the primary is the same before and after. When
// fenceCtx ends because the host is down, connections that may still finish are
// kept, since their own host may be elected next, and no trigger runs.
func (c *Conductor) perform(ctx, fenceCtx context.Context, s selector.Switch, fence relay.FencePolicy, saved *saving) (did performed) {
	did.epoch = s.Epoch
	// With would sort the keys, but these records are read together with the
	// others and must have the same order.
	said := func(fields ...any) []any {
		return append([]any{"host", s.Host, "epoch", s.Epoch}, fields...)
	}
	start := time.Now()
	c.reach(Progress{Host: s.Host, Step: StageDraining, Until: start.Add(fence.Drain)})
	ended := c.cfg().Gate.Fence(fenceCtx, s.Epoch, connectTo(s.Host, s.Addr), fence)
	did.fence = &FenceRun{
		Finished: ended.Finished, Reset: ended.Reset, Moved: ended.Moved, Kept: ended.Kept, Seconds: time.Since(start).Seconds(),
	}
	_ = saved.wait(saveTimeout) // the StateFile has logged an error
	if did.err = ctx.Err(); did.err != nil {
		return did
	}
	if loss := lostBy(s); loss != nil {
		c.log.Info("predicted loss of data", said("loss", loss.String())...)
	}
	if s.Kind != selector.Start { // there are no connections yet
		c.log.Info("earlier connections fenced", said("finished", ended.Finished, "reset", ended.Reset, "moved", ended.Moved, "kept", ended.Kept, "took", since(start))...)
	}
	c.endDrill()
	if fenceCtx.Err() != nil {
		return did // the machine knows that the host is down
	}
	c.runTriggers(ctx, s, &did)
	return did
}

// runTriggers runs the triggers of s, and adds what became of them to did.
func (c *Conductor) runTriggers(ctx context.Context, s selector.Switch, did *performed) {
	said := func(fields ...any) []any {
		return append([]any{"host", s.Host, "epoch", s.Epoch}, fields...)
	}
	if c.cfg().Triggers.Path == "" {
		return
	}
	scripts, warnings, err := hooks.List(c.cfg().Triggers.Path)
	for _, w := range warnings {
		c.log.Warn("trigger skipped", said("error", w)...)
	}
	if err != nil {
		c.log.Warn("triggers not found", said("error", err)...)
		if c.cfg().Triggers.Abort {
			did.err = err
			return
		}
	}
	env := hooks.ScriptEnv{
		Event:  hooks.Event(s.Kind),
		Relay:  c.cfg().Name,
		Epoch:  s.Epoch,
		Old:    s.Old,
		New:    s.Host,
		Reason: s.Reason,

		Address: s.Addr, OldAddress: s.OldAddr, Fact: s.Fact, Lag: s.Loss.Lag,
	}.Env()
	for _, script := range scripts {
		c.reach(Progress{Host: s.Host, Step: StageTrigger, Script: script})
		res := c.cfg().Scripts.Run(ctx, hooks.Script{
			Kind:    hooks.Trigger,
			Path:    script,
			Args:    []string{s.Host},
			Env:     env,
			Timeout: c.cfg().Triggers.Timeout,
			Fields:  []any{"relay", c.cfg().Name, "host", s.Host},
		})
		if did.err = ctx.Err(); did.err != nil {
			return
		}
		if len(did.triggers) < triggersKept {
			did.triggers = append(did.triggers, TriggerRun{
				Script: script, Status: endText(res), Failed: !res.OK(), Seconds: res.Took.Seconds(), Output: res.Output,
			})
		}
		c.measure.trigger(script, res.OK(), res.Took)
		took := res.Took.Round(100 * time.Microsecond)
		if res.OK() {
			c.log.Info("trigger ended", said("script", script, "took", took)...)
			continue
		}
		did.failed = append(did.failed, res.Reason())
		c.log.Warn("trigger failed", said("script", script, "took", took, "error", res.Reason())...)
		if c.cfg().Triggers.Abort {
			did.err = fmt.Errorf("trigger failed: %w", res.Reason())
			return
		}
	}
}

// endText describes in a word or two how a script ended.
func endText(res hooks.Result) string {
	switch res.End {
	case hooks.Exited:
		return fmt.Sprintf("exit status %d", res.Code)
	case hooks.Signalled:
		return "signal " + res.Signal.String()
	case hooks.NotStarted, hooks.TimedOut, hooks.Cancelled:
	}
	return res.End.String()
}
