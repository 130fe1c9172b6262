package failover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy/selector"
)

// act carries out one action of the machine, or logs one fact.
func (c *Conductor) act(ctx context.Context, a selector.Action) {
	switch a := a.(type) {
	case selector.StartCheck:
		c.start(ctx, c.job(a))
	case selector.Hold:
		c.shut()
		c.cfg().Gate.Hold()
	case selector.Refuse:
		c.shut()
		waiting := c.cfg().Gate.Refuse()
		c.recorder.refused += uint64(max(waiting.Queued, 0))
		c.log.Warn("clients are refused", "queued", waiting.Queued, "held", waiting.Held, "after", since(c.shutAt))
	case selector.Switch:
		c.alarmed = false
		c.log.Info("host elected", "host", a.Host, "old", a.Old, "event", string(a.Kind), "epoch", a.Epoch, "reason", a.Reason)
		c.elected = Status{Reason: a.Reason, Event: string(a.Kind), Elected: time.Now()}
		fence := c.cfg().Fence
		if c.requested != nil && a.Kind == selector.Switchover && (c.requested.Host == "" || c.requested.Host == a.Host) {
			c.requested.epoch = a.Epoch
			fence = c.requested.fence(c.cfg().Fence)
		}
		saved := c.noteSwitch(a)
		c.publish() // a drill that begins now must see that it is not allowed
		if c.agree != nil {
			c.agree.elected, c.agree.saved = a, saved
			break // the fence and the triggers are ordered by the agreement
		}
		fenceCtx, stop := context.WithCancel(ctx)
		c.fencing = fencing{host: a.Host, stop: stop}
		c.tasks.Go(func() {
			defer stop()
			did := c.perform(ctx, fenceCtx, a, fence, saved)
			c.reach(Progress{Host: a.Host, Step: StageOpening})
			c.reportRequest(ctx, func() selector.Event {
				c.notePerformed(did)
				for _, failed := range did.failed {
					c.notice(ctx, EventScriptFailed, a.Host, failed.Error())
				}
				return selector.Switched{Epoch: a.Epoch, Err: did.err}
			})
		})
	case selector.Open:
		c.opening, c.openAt = &a, time.Time{}
	case selector.HostChanged:
		c.measure.change(ChangeOf{a.Host, a.To})
		if a.To == selector.Up {
			delete(c.recorder.doubted, a.Host)
		}
		if a.To == selector.Down && a.Host == c.fencing.host {
			c.fencing.stop()
		}
		c.hostChanged(a)
	case selector.Suspected:
		c.agree.doubt(a.Host, a.Err) //nolint:contextcheck // it outlives Run's context: the member leaves after that has ended
		c.recorder.doubted[a.Host] = time.Now()
		now := time.Now()
		if c.flapsUntil(a.Host, now).After(now) && a.Host != c.Snapshot().Primary {
			break // its changes are summed up
		}
		c.log.Warn("host suspected", "host", a.Host, "check", a.Check, "error", a.Err)
	case selector.Cleared:
		delete(c.recorder.doubted, a.Host)
		c.log.Info("suspicion cleared", "host", a.Host, "check", a.Check)
	case selector.CheckUnknown:
		c.log.Warn("check is unknown and is ignored", "host", a.Host, "check", a.Check, "error", a.Err)
		c.notice(ctx, EventScriptFailed, a.Host, fmt.Sprintf("%s: %v", a.Check, a.Err))
	case selector.CheckKnown:
		c.log.Info("check is known again", "host", a.Host, "check", a.Check)
	case selector.Lost:
		c.publish() // a drill that begins now must see that it is not allowed
		c.giveUpDrill(errElection)
		c.noteLost(a)
		c.log.Warn("primary lost", "host", a.Host, "epoch", a.Epoch, "after", a.After.Round(100*time.Microsecond), "reason", a.Reason)
		c.notice(ctx, EventPrimaryLost, a.Host, a.Reason)
	case selector.Stayed:
		c.recorder.unbounded = true
		c.log.Error("primary is down, no failover because the relay is frozen", "host", a.Host, "reason", a.Reason)
	case selector.RoundFailed:
		c.recorder.unbounded = true
		c.roundFailed(ctx, a)
	case selector.Awaited:
		c.recorder.unbounded = true
		c.log.Warn("another host is usable, waiting for the last primary", "host", a.Usable, "old", a.Host, "delay", a.For)
	case selector.Verifying:
		c.reach(Progress{Host: a.Host, Step: StageVerifying, Until: a.By})
	case selector.Unverified:
		c.log.Error("election aborted, the host is not primary after its triggers", "host", a.Host, "epoch", a.Epoch, "reason", a.Reason)
		c.notice(ctx, EventUnverified, a.Host, a.Reason)
		c.noteUnverified(a)
	case selector.TwoWriters:
		c.log.Warn("two hosts say that they are primary", "hosts", strings.Join(a.Hosts, ", "), "primary", c.Snapshot().Primary)
		c.notice(ctx, EventTwoWriters, c.Snapshot().Primary, writersText(a.Hosts))
	case selector.OneWriter:
		c.log.Info("no two hosts say that they are primary any more")
	case selector.Declined:
		if a.Reason == selector.NotAgreed {
			a.Reason += ", and may yet do so: " + c.agree.status().String()
		}
		c.log.Warn("planned change declined", "host", a.Host, "event", string(a.Kind), "reason", a.Reason)
		if c.requested != nil && a.Kind == selector.Switchover {
			c.answerSwitch(Switched{}, RefusedError{declined(a)})
		}
	case selector.Stalled:
		c.log.Warn("the program was stalled, all hosts are checked again", "delay", a.For.Round(time.Millisecond))
	}
}

// silenceQuiet is the time for which the warning that clients get no byte is not
// repeated.
const silenceQuiet = time.Minute

// warnOfSilence warns that clients get no byte from a primary that passes its
// checks. Each check must have passed since the number of such clients became
// suspicious: a primary that has just died is not reported this way.
func (c *Conductor) warnOfSilence(now selector.Snapshot) {
	if !c.silence.IsZero() && time.Since(c.silence) < silenceQuiet || c.cfg().Silence == nil {
		return
	}
	silence := c.cfg().Silence()
	if !silence.Remarkable() {
		return
	}
	primary := slices.IndexFunc(now.Hosts, func(h selector.Host) bool { return h.Name == now.Primary })
	if primary < 0 || now.Epoch != silence.Epoch {
		return
	}
	for _, k := range now.Hosts[primary].Checks {
		if !k.Last.OK || k.Last.At.Before(silence.Since) {
			return
		}
	}
	c.silence = time.Now()
	c.log.Warn("clients receive no data from a host that passes its checks", "host", now.Primary, "epoch", now.Epoch,
		"in-a-row", silence.InARow)
}

// shut records since when clients are kept out, and that the gate remains shut.
func (c *Conductor) shut() {
	if c.shutAt.IsZero() {
		c.shutAt = time.Now()
	}
	c.opening = nil
}

// reopen opens the gate if that is requested. A failure is retried, because the
// host is ready and only this machine is not.
func (c *Conductor) reopen(ctx context.Context) {
	if c.opening == nil || time.Now().Before(c.openAt) || !c.agree.permits(*c.opening) {
		return
	}
	now := time.Now() // read first: the first byte may pass while Open returns
	c.opened.Store(connectTo(c.opening.Host, c.opening.Addr), c.opening.Host)
	waiting, err := c.cfg().Gate.Open(c.opening.Epoch, connectTo(c.opening.Host, c.opening.Addr))
	if err != nil {
		c.openAt = time.Now().Add(openRetry)
		c.log.Error("relay cannot open", "host", c.opening.Host, "epoch", c.opening.Epoch, "delay", openRetry, "error", err)
		return
	}
	fields := []any{"host", c.opening.Host, "epoch", c.opening.Epoch, "queued", waiting.Queued, "held", waiting.Held}
	if c.opening.Addr.IsValid() {
		fields = append(fields, "address", c.opening.Addr)
	}
	if !c.shutAt.IsZero() {
		fields = append(fields, "shut-for", since(c.shutAt))
	}
	c.log.Info("relay open", fields...)
	var shut time.Duration
	if !c.shutAt.IsZero() {
		shut = now.Sub(c.shutAt)
	}
	if i := c.recorder.current; i != nil && i.Elected.IsZero() { // with a cluster: it was lost only here
		c.noteSwitch(selector.Switch{
			Epoch: c.opening.Epoch, Host: c.opening.Host, Old: c.opening.Host, Kind: selector.Reselect, Reason: "it passes its checks again",
		})
	}
	c.noteOpen(ctx, now, shut, waiting)
	c.answerOpen(*c.opening)
	c.opening, c.shutAt, c.openAt = nil, time.Time{}, time.Time{}
	c.progress.Store(nil)
}

// declined returns why a planned change was not made.
func declined(a selector.Declined) string {
	if a.Host == "" {
		return a.Reason
	}
	return a.Host + ": " + a.Reason
}

// answerOpen reports the result to the operator whose switchover is complete.
func (c *Conductor) answerOpen(o selector.Open) {
	switch {
	case c.requested == nil || c.requested.epoch == 0:
	case c.requested.epoch == o.Epoch:
		done := Switched{Host: o.Host, Epoch: o.Epoch, Seconds: time.Since(c.requested.began).Seconds()}
		if i := c.recorder.current; i != nil && i.Epoch == o.Epoch {
			done.Waited, done.Fence, done.Triggers = i.ClientsHeld, i.Fence, i.Triggers
		}
		c.answerSwitch(done, nil)
	default:
		c.answerSwitch(Switched{}, RefusedError{c.requested.why() + "; " + o.Host + " goes on"})
	}
}

// fencing is a fence that lets connections finish. It is pointless once the
// host that was elected is down.
type fencing struct {
	host string // the host that was elected
	stop context.CancelFunc
}

// noteUnverified closes the incident record: the host that was elected did not say that
// it is primary. The next election may be long in coming.
func (c *Conductor) noteUnverified(a selector.Unverified) {
	if c.requested != nil && c.requested.epoch == a.Epoch {
		c.requested.failed = errors.New(a.Reason)
	}
	if i := c.recorder.current; i != nil && i.Epoch == a.Epoch {
		c.finish(Aborted, a.Reason)
	}
}

// notePerformed adds the result of perform to the incident record.
func (c *Conductor) notePerformed(did performed) {
	c.measure.fence(did.fence)
	if c.requested != nil && c.requested.epoch == did.epoch {
		c.requested.failed = did.err
	}
	i := c.recorder.current
	if i == nil || i.Epoch != did.epoch {
		return
	}
	i.Fence, i.Triggers = did.fence, did.triggers
	if did.err != nil {
		i.Failure = did.err.Error() // the machine decides whether it is rejected
	}
	c.publishIncident()
}

func (c *Conductor) hostChanged(a selector.HostChanged) {
	fields := []any{"host", a.Host, "from", a.From.String(), "to", a.To.String(), "check", a.Check}
	if a.Err != nil {
		fields = append(fields, "error", a.Err)
	}
	if a.To == selector.Unknown {
		c.log.Debug("host changed state", fields...) // the host is coming up
		return
	}
	f := c.flaps[a.Host]
	if f == nil {
		f = &flaps{}
		c.flaps[a.Host] = f
	}
	if f.note(time.Now()) || a.Host == c.Snapshot().Primary {
		c.log.Info("host changed state", fields...)
	}
}

// sumUpFlaps logs the sums of the periods that have ended by then, and returns
// when the next one ends; zero for none.
func (c *Conductor) sumUpFlaps(at time.Time, now selector.Snapshot) (next time.Time) {
	for _, h := range now.Hosts {
		f := c.flaps[h.Name]
		if f == nil {
			continue
		}
		if changes := f.sumUp(at); changes > 0 {
			c.log.Info("host changes state often", "host", h.Name, "changes", changes, "now", h.State.String())
		}
		if end := f.end(); !end.IsZero() && (next.IsZero() || end.Before(next)) {
			next = end
		}
	}
	return next
}

// flapsUntil returns until when a host counts as flapping if it does not change
// any more; a time that is not after now if it does not flap.
func (c *Conductor) flapsUntil(host string, now time.Time) time.Time {
	if f := c.flaps[host]; f != nil && (f.often || f.changes > flapAfter) {
		return f.begin.Add(flapEvery)
	}
	return now
}

const (
	// flapEvery is the time between two summaries of the changes of a host that
	// flaps.
	flapEvery = time.Minute

	// flapAfter is the number of changes in that time that are logged one by one.
	flapAfter = 6
)

// flaps counts the changes of one host. The zero flaps has counted none.
type flaps struct {
	begin   time.Time // of the current period
	changes int       // in the current period
	hidden  int       // changes in the period that were not logged
	often   bool      // changes were frequent in the period before: none is logged one by one
}

// note counts a change, and reports whether to log it.
func (f *flaps) note(now time.Time) bool {
	if f.hidden == 0 && now.Sub(f.begin) >= flapEvery {
		*f = flaps{begin: now}
	}
	f.changes++
	if f.often || f.changes > flapAfter {
		f.hidden++
		return false
	}
	return true
}

// end returns when the changes of the current period are to be summed up; zero
// if all were logged.
func (f *flaps) end() time.Time {
	if f.hidden == 0 {
		return time.Time{}
	}
	return f.begin.Add(flapEvery)
}

// sumUp returns how many changes of a period that has ended were not logged,
// and begins the next one; zero while the period goes on.
func (f *flaps) sumUp(now time.Time) int {
	if end := f.end(); end.IsZero() || now.Before(end) {
		return 0
	}
	hidden := f.hidden
	*f = flaps{begin: now, often: f.changes > flapAfter && now.Sub(f.begin) < 2*flapEvery}
	return hidden
}

func (c *Conductor) roundFailed(ctx context.Context, a selector.RoundFailed) {
	c.progress.Store(nil)
	reasons := make([]string, len(a.Hosts))
	for i, h := range a.Hosts {
		reasons[i] = h.Host + ": " + h.Reason
	}
	if c.requested != nil && c.requested.epoch != 0 {
		c.answerSwitch(Switched{}, RefusedError{c.requested.why() + "; and no host is usable now: " + strings.Join(reasons, "; ")})
	}
	fields := []any{"delay", a.Wait, "reason", strings.Join(reasons, "; ")}
	if c.alarmed {
		c.log.Warn("still no host is usable", fields...)
		return
	}
	c.alarmed = true
	c.log.Error("no host is usable", fields...)
	c.notice(ctx, EventNobodyUsable, "", strings.Join(reasons, "; "))
}

// since rounds to the precision that a reader needs.
func since(t time.Time) time.Duration { return time.Since(t).Round(100 * time.Microsecond) }
