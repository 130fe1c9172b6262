package failover

import (
	"context"
	"fmt"
	"slices"
	"time"

	"understudy/hooks"
	"understudy/selector"
)

const (
	// EventSwitchRefused is the event of a scheduled switch that was not made.
	EventSwitchRefused hooks.Event = "switch-refused"

	// scheduleGrace limits the delay of a scheduled switch after a restart, an
	// election or a change of the wall clock. A later one is refused, because the
	// operator chose a time.
	scheduleGrace = 5 * time.Minute

	// scheduleLook is the time between two looks at the wall clock while a switch
	// is scheduled: the clock can be set.
	scheduleLook = time.Second
)

// Scheduled is a switch that is made at a time by the wall clock.
type Scheduled struct {
	Host   string    `json:"host"`             // becomes primary
	At     time.Time `json:"at"`               // by the wall clock, with the requested offset
	By     string    `json:"by,omitempty"`     // who ordered it
	Reason string    `json:"reason,omitempty"` // why it was ordered
	Since  time.Time `json:"since"`            // when it was ordered

	DrainSeconds *float64 `json:"drain_seconds,omitempty"` // how long earlier connections may finish; absent: the fence policy
}

// request returns the switch to make.
func (s Scheduled) request() SwitchRequest {
	r := SwitchRequest{Host: s.Host, By: s.By, Reason: s.Reason}
	if s.DrainSeconds != nil {
		r.Drain = new(time.Duration(*s.DrainSeconds * float64(time.Second)))
	}
	return r
}

// Schedule schedules a switch, which replaces one that was scheduled before.
// When it returns nil the order is on the disk, if there is a state directory.
// The error is a [RefusedError] when the host is not one of the relay's, or the
// time has passed.
func (c *Conductor) Schedule(ctx context.Context, s Scheduled) (Scheduled, error) {
	if !slices.Contains(c.cfg().Hosts, s.Host) {
		return s, c.unknownHost(s.Host)
	}
	s.Since = time.Now().Round(0)
	if !s.At.Round(0).After(s.Since) {
		return s, RefusedError{"at: " + s.At.Format(time.RFC3339) + " is over"}
	}
	return s, c.reschedule(ctx, &s, Incident{
		Event: OrderSchedule, Reason: orderText("switch scheduled", s.By, s.Reason), By: s.By, Order: &Ordered{At: s.Since, Host: s.Host, Until: s.At},
	})
}

// CancelScheduled cancels a scheduled switch and returns it. The error is a
// [RefusedError] when there is none.
func (c *Conductor) CancelScheduled(ctx context.Context, by string) (Scheduled, error) {
	was := c.Status().Scheduled
	if was == nil {
		return Scheduled{}, RefusedError{"no switch is scheduled"}
	}
	err := c.reschedule(ctx, nil, Incident{
		Event: OrderCancel, Reason: orderText("scheduled switch cancelled", by, ""), By: by, Order: &Ordered{At: time.Now(), Host: was.Host, Until: was.At},
	})
	if err != nil {
		return *was, err
	}
	c.log.Info("scheduled switch cancelled", "host", was.Host, "at", was.At.Format(time.RFC3339), "by", by)
	return *was, nil
}

func (c *Conductor) reschedule(ctx context.Context, to *Scheduled, order Incident) error {
	var saved *saving
	err := c.request(ctx, func() selector.Event {
		c.scheduled = to
		if to != nil {
			c.log.Info("switch scheduled", "host", to.Host, "at", to.At.Format(time.RFC3339), "by", to.By, "reason", to.Reason)
		}
		c.noteOrder(order)
		saved = c.save()
		return selector.Tick{}
	})
	if err != nil {
		return err
	}
	return saved.wait(saveTimeout)
}

// runScheduled starts the scheduled switch when its time has come, and returns
// when it must be called again at the latest; zero for never.
func (c *Conductor) runScheduled(ctx context.Context, now time.Time) (next time.Time) {
	s := c.scheduled
	if s == nil {
		return time.Time{}
	}
	left := s.At.Round(0).Sub(now.Round(0)) // by the wall clock, which may have been set
	if left > 0 {
		return now.Add(min(left, scheduleLook))
	}
	if -left <= scheduleGrace && (c.machine.Snapshot().Phase != selector.Serving || c.opening != nil) {
		return now.Add(scheduleLook) // an election is in progress, as after a start
	}
	c.scheduled = nil
	c.save()
	switch {
	case -left > scheduleGrace:
		c.scheduledRefused(ctx, *s, fmt.Sprintf("%v late: there was no primary then, the program did not run, or the clock was set", -left.Round(time.Second)))
		return time.Time{}
	case c.requested != nil:
		c.scheduledRefused(ctx, *s, "another switchover is under way")
		return time.Time{}
	}
	c.log.Info("scheduled switch begins", "host", s.Host, "at", s.At.Format(time.RFC3339))
	c.requested = &switchover{SwitchRequest: s.request(), then: func() {}, reply: make(chan switchResult, 1), refused: func(err error) { c.scheduledRefused(ctx, *s, err.Error()) }}
	c.step(ctx, selector.Move{Host: s.Host, Reason: orderText("scheduled switch", s.By, s.Reason), Drain: c.requested.fence(c.cfg().Fence).Drain})
	return now
}

// scheduledRefused records that a scheduled switch was not made.
func (c *Conductor) scheduledRefused(ctx context.Context, s Scheduled, reason string) {
	c.log.Error("scheduled switch refused", "host", s.Host, "at", s.At.Format(time.RFC3339), "reason", reason)
	c.notice(ctx, EventSwitchRefused, s.Host, reason)
	if c.requested != nil && c.requested.epoch != 0 && c.requested.refused != nil {
		return // its election has a record of its own
	}
	now := c.machine.Snapshot()
	c.history.put(Incident{
		ID: c.recorder.nextID, Relay: c.cfg().Name, Event: selector.Switchover, Epoch: now.Epoch, Old: now.Primary, New: s.Host,
		Reason: orderText("scheduled switch", s.By, s.Reason), By: s.By, Outcome: SwitchRefused, Failure: reason, Done: true, Elected: time.Now(),
	})
	c.measure.election(ElectionOf{selector.Switchover, SwitchRefused})
	c.recorder.nextID++
	c.save()
}
