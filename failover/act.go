package failover

import (
	"context"
	"strings"
	"time"

	"understudy/selector"
)

// act carries out one action of the machine, or records one fact.
func (c *Conductor) act(ctx context.Context, a selector.Action) {
	switch a := a.(type) {
	case selector.StartCheck:
		job := c.job(a)
		c.tasks.Go(func() { c.check(ctx, job) })
	case selector.Hold:
		c.shut()
		c.cfg().Gate.Hold()
	case selector.Refuse:
		c.shut()
		waiting := c.cfg().Gate.Refuse()
		c.scribe.refused += uint64(max(waiting.Queued, 0))
		c.log.Warn("clients are refused", "queued", waiting.Queued, "held", waiting.Held, "after", since(c.shutAt))
	case selector.Switch:
		c.alarmed = false
		c.log.Info("host elected", "host", a.Host, "old", a.Old, "event", string(a.Kind), "epoch", a.Epoch, "reason", a.Reason)
		c.elected = Status{Reason: a.Reason, Event: string(a.Kind), Elected: time.Now()}
		grace := c.cfg().Fence.grace()
		if c.asked != nil && a.Kind == selector.Switchover {
			c.asked.epoch = a.Epoch
			grace = c.asked.grace(c.cfg().Fence)
		}
		saved := c.noteSwitch(a)
		c.publish() // a drill that begins now must see that it may not
		c.tasks.Go(func() {
			did := c.perform(ctx, a, grace, saved)
			c.reportRequest(ctx, func() selector.Event {
				c.notePerformed(did)
				return selector.Switched{Epoch: a.Epoch, Err: did.err}
			})
		})
	case selector.Open:
		c.opening, c.openAt = &a, time.Time{}
	case selector.HostChanged:
		if a.To == selector.Up {
			delete(c.scribe.doubted, a.Host)
		}
		c.hostChanged(a)
	case selector.Suspected:
		c.scribe.doubted[a.Host] = time.Now()
		c.log.Warn("host suspected", "host", a.Host, "check", a.Check, "error", a.Err)
	case selector.Cleared:
		delete(c.scribe.doubted, a.Host)
		c.log.Info("suspicion cleared", "host", a.Host, "check", a.Check)
	case selector.Lost:
		c.giveUpDrill(errElection)
		c.noteLost(a)
		c.log.Warn("primary lost", "host", a.Host, "epoch", a.Epoch, "after", a.After.Round(100*time.Microsecond), "reason", a.Reason)
	case selector.Stayed:
		c.scribe.stayed = true
		c.log.Error("primary is down and stays, because the relay is frozen", "host", a.Host, "reason", a.Reason)
	case selector.RoundFailed:
		c.roundFailed(a)
	case selector.Declined:
		c.log.Warn("planned change declined", "host", a.Host, "event", string(a.Kind), "reason", a.Reason)
		if c.asked != nil && a.Kind == selector.Switchover {
			c.answerSwitch(Switched{}, RefusedError{declined(a)})
		}
	case selector.Stalled:
		c.log.Warn("the program was stalled, all hosts are checked again", "delay", a.For.Round(time.Millisecond))
	}
}

// shut notes since when clients are kept out, and that the gate stays shut.
func (c *Conductor) shut() {
	if c.shutAt.IsZero() {
		c.shutAt = time.Now()
	}
	c.opening = nil
}

// reopen opens the gate if that is what is asked for. It is tried again when
// it fails, because the host is ready and only this side is not.
func (c *Conductor) reopen() {
	if c.opening == nil || time.Now().Before(c.openAt) {
		return
	}
	now := time.Now() // before: the first byte may pass while Open returns
	waiting, err := c.cfg().Gate.Open(c.opening.Epoch, c.opening.Host)
	if err != nil {
		c.openAt = time.Now().Add(openRetry)
		c.log.Error("relay does not open", "host", c.opening.Host, "epoch", c.opening.Epoch, "delay", openRetry, "error", err)
		return
	}
	fields := []any{"host", c.opening.Host, "epoch", c.opening.Epoch, "queued", waiting.Queued, "held", waiting.Held}
	if !c.shutAt.IsZero() {
		fields = append(fields, "shut-for", since(c.shutAt))
	}
	c.log.Info("relay open", fields...)
	var shut time.Duration
	if !c.shutAt.IsZero() {
		shut = now.Sub(c.shutAt)
	}
	c.noteOpen(now, shut, waiting)
	c.answerOpen(*c.opening)
	c.opening, c.shutAt, c.openAt = nil, time.Time{}, time.Time{}
}

// declined says why a planned change was not made.
func declined(a selector.Declined) string {
	if a.Host == "" {
		return a.Reason
	}
	return a.Host + ": " + a.Reason
}

// answerOpen tells the operator who waits for a switchover what came of it.
func (c *Conductor) answerOpen(o selector.Open) {
	switch {
	case c.asked == nil || c.asked.epoch == 0:
	case c.asked.epoch == o.Epoch:
		c.answerSwitch(Switched{Host: o.Host, Epoch: o.Epoch}, nil)
	default:
		c.answerSwitch(Switched{}, RefusedError{c.asked.why() + "; " + o.Host + " goes on"})
	}
}

// notePerformed adds what was done to the incident record.
func (c *Conductor) notePerformed(did performed) {
	if c.asked != nil && c.asked.epoch == did.epoch {
		c.asked.failed = did.err
	}
	i := c.scribe.current
	if i == nil || i.Epoch != did.epoch {
		return
	}
	i.Fence, i.Triggers = did.fence, did.triggers
	if did.err != nil {
		i.Failure = did.err.Error() // the machine decides what becomes of it
	}
	c.publishIncident()
}

func (c *Conductor) hostChanged(a selector.HostChanged) {
	fields := []any{"host", a.Host, "from", a.From.String(), "to", a.To.String(), "check", a.Check}
	if a.Err != nil {
		fields = append(fields, "error", a.Err)
	}
	if a.To == selector.Unknown {
		c.log.Debug("host changed state", fields...) // on its way up
		return
	}
	c.log.Info("host changed state", fields...)
}

func (c *Conductor) roundFailed(a selector.RoundFailed) {
	reasons := make([]string, len(a.Hosts))
	for i, h := range a.Hosts {
		reasons[i] = h.Host + ": " + h.Reason
	}
	if c.asked != nil && c.asked.epoch != 0 {
		c.answerSwitch(Switched{}, RefusedError{c.asked.why() + "; and no host is usable now: " + strings.Join(reasons, "; ")})
	}
	fields := []any{"delay", a.Wait, "reason", strings.Join(reasons, "; ")}
	if c.alarmed {
		c.log.Warn("still no host is usable", fields...)
		return
	}
	c.alarmed = true
	c.log.Error("no host is usable", fields...)
}

// since rounds to what a reader cares about.
func since(t time.Time) time.Duration { return time.Since(t).Round(100 * time.Microsecond) }
