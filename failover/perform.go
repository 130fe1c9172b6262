package failover

import (
	"context"
	"fmt"
	"time"

	"understudy/hooks"
	"understudy/selector"
)

// performed is what was done for one election.
type performed struct {
	epoch    uint64
	fence    *FenceRun
	triggers []TriggerRun
	err      error // the host must not become primary
}

// perform fences the earlier epochs, with what they get to finish in, and runs
// the triggers of s, once its epoch has been saved. It runs beside the machine,
// which goes on checking the hosts.
func (c *Conductor) perform(ctx context.Context, s selector.Switch, grace time.Duration, saved *saving) (did performed) {
	did.epoch = s.Epoch
	// Not With: it would sort the keys, and these records are read in a row
	// with the others.
	said := func(fields ...any) []any {
		return append([]any{"host", s.Host, "epoch", s.Epoch}, fields...)
	}
	start := time.Now()
	ended := c.cfg().Gate.Fence(ctx, s.Epoch, grace)
	did.fence = &FenceRun{Finished: ended.Finished, Reset: ended.Reset, Moved: ended.Moved, Seconds: time.Since(start).Seconds()}
	_ = saved.wait(savePatience) // the keeper has logged what went wrong
	if did.err = ctx.Err(); did.err != nil {
		return did
	}
	if s.Kind != selector.Start { // nobody has been there yet
		c.log.Info("earlier connections fenced", said("finished", ended.Finished, "reset", ended.Reset, "moved", ended.Moved, "took", since(start))...)
	}
	c.endDrill()
	if c.cfg().Triggers.Path == "" {
		return did
	}
	scripts, warnings, err := hooks.List(c.cfg().Triggers.Path)
	for _, w := range warnings {
		c.log.Warn("trigger passed over", said("error", w)...)
	}
	if err != nil {
		c.log.Warn("triggers not found", said("error", err)...)
		if c.cfg().Triggers.Abort {
			did.err = err
			return did
		}
	}
	env := hooks.Occasion{
		Event:  hooks.Event(s.Kind),
		Relay:  c.cfg().Name,
		Epoch:  s.Epoch,
		Old:    s.Old,
		New:    s.Host,
		Reason: s.Reason,
	}.Env()
	for _, script := range scripts {
		res := c.cfg().Scripts.Run(ctx, hooks.Script{
			Kind:    hooks.Trigger,
			Path:    script,
			Args:    []string{s.Host},
			Env:     env,
			Timeout: c.cfg().Triggers.Timeout,
			Fields:  []any{"relay", c.cfg().Name, "host", s.Host},
		})
		if did.err = ctx.Err(); did.err != nil {
			return did
		}
		if len(did.triggers) < triggersKept {
			did.triggers = append(did.triggers, TriggerRun{
				Script: script, Status: ending(res), Failed: !res.OK(), Seconds: res.Took.Seconds(), Output: res.Output,
			})
		}
		took := res.Took.Round(100 * time.Microsecond)
		if res.OK() {
			c.log.Info("trigger ended", said("script", script, "took", took)...)
			continue
		}
		c.log.Warn("trigger failed", said("script", script, "took", took, "error", res.Err)...)
		if c.cfg().Triggers.Abort {
			did.err = fmt.Errorf("trigger failed: %w", res.Err)
			return did
		}
	}
	return did
}

// ending says in a word or two how a script ended.
func ending(res hooks.Result) string {
	switch res.End {
	case hooks.Exited:
		return fmt.Sprintf("exit status %d", res.Code)
	case hooks.Signalled:
		return "signal " + res.Signal.String()
	case hooks.NotStarted, hooks.TimedOut, hooks.Cancelled:
	}
	return res.End.String()
}
