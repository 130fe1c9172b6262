package failover

import (
	"context"
	"fmt"
	"time"

	"understudy/hooks"
	"understudy/selector"
)

// perform fences the earlier epochs and runs the triggers of s. The error
// means that the host must not become primary. It runs beside the machine,
// which goes on checking the hosts.
func (c *Conductor) perform(ctx context.Context, s selector.Switch) error {
	// Not With: it would sort the keys, and these records are read in a row
	// with the others.
	said := func(fields ...any) []any {
		return append([]any{"host", s.Host, "epoch", s.Epoch}, fields...)
	}
	grace := c.cfg.Fence.Drain
	if c.cfg.Fence.Keep {
		grace = -1
	}
	start := time.Now()
	ended := c.cfg.Gate.Fence(ctx, s.Epoch, grace)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if s.Kind != selector.Start { // nobody has been there yet
		c.log.Info("earlier connections fenced", said("finished", ended.Finished, "reset", ended.Reset, "moved", ended.Moved, "took", since(start))...)
	}
	if c.cfg.Triggers.Path == "" {
		return nil
	}
	scripts, warnings, err := hooks.List(c.cfg.Triggers.Path)
	for _, w := range warnings {
		c.log.Warn("trigger passed over", said("error", w)...)
	}
	if err != nil {
		c.log.Warn("triggers not found", said("error", err)...)
		if c.cfg.Triggers.Abort {
			return err
		}
	}
	env := hooks.Occasion{
		Event:  hooks.Event(s.Kind),
		Relay:  c.cfg.Name,
		Epoch:  s.Epoch,
		Old:    s.Old,
		New:    s.Host,
		Reason: s.Reason,
	}.Env()
	for _, script := range scripts {
		res := c.cfg.Scripts.Run(ctx, hooks.Script{
			Kind:    hooks.Trigger,
			Path:    script,
			Args:    []string{s.Host},
			Env:     env,
			Timeout: c.cfg.Triggers.Timeout,
			Fields:  []any{"relay", c.cfg.Name, "host", s.Host},
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		took := res.Took.Round(100 * time.Microsecond)
		if res.OK() {
			c.log.Info("trigger ended", said("script", script, "took", took)...)
			continue
		}
		c.log.Warn("trigger failed", said("script", script, "took", took, "error", res.Err)...)
		if c.cfg.Triggers.Abort {
			return fmt.Errorf("trigger failed: %w", res.Err)
		}
	}
	return nil
}
