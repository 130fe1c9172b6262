package failover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"understudy/relay"
	"understudy/selector"
)

// RefusedError is why the relay did not carry out an operator's request. The
// old primary continues, unless the reason says otherwise.
type RefusedError struct{ Reason string }

func (e RefusedError) Error() string { return e.Reason }

// ErrOver is returned to an operator when the conductor's Run has returned.
var ErrOver = errors.New("the program is ending")

// switchGrace is the longest time that connections may take to finish when an operator
// switches over and the fence policy is to reset them at once. The old primary
// still works then, so requests in progress need not be cut.
const switchGrace = 250 * time.Millisecond

// SwitchRequest requests a planned switchover.
type SwitchRequest struct {
	// Host becomes primary. Empty means the first other one that is not
	// down.
	Host string

	// Drain is the longest time that earlier connections may finish before they are
	// reset; zero resets them at once. Nil means the fence policy, and a quarter of a
	// second where that is to reset them at once.
	Drain *time.Duration

	// By and Reason name the operator who requested it and the reason, for the log and
	// the record.
	By, Reason string
}

// Switched is a planned change that was made.
type Switched struct {
	Host    string  `json:"host"`    // that is primary now
	Epoch   uint64  `json:"epoch"`   // of its election
	Seconds float64 `json:"seconds"` // its duration
	Waited  int     `json:"waited"`  // clients that waited when the gate opened

	Fence    *FenceRun    `json:"fence,omitempty"`    // how earlier connections were ended
	Triggers []TriggerRun `json:"triggers,omitempty"` // in order
}

// switchover is a SwitchRequest in progress.
type switchover struct {
	SwitchRequest
	began  time.Time
	epoch  uint64 // zero until its host was elected
	failed error  // why its host did not become primary
	then   func() // run on Run's goroutine when clients are connected to its host
	reply  chan switchResult

	refused func(error) // called when its host does not become primary; may be nil
}

// fence returns how the connections of earlier epochs are ended: as requested,
// or by the relay's policy.
func (s *switchover) fence(policy relay.FencePolicy) relay.FencePolicy {
	switch {
	case s.Drain != nil:
		return relay.FencePolicy{Drain: *s.Drain}
	case policy == relay.FencePolicy{}:
		return relay.FencePolicy{Drain: switchGrace}
	}
	return policy
}

// why returns why the host that was elected did not become primary.
func (s *switchover) why() string {
	if s.failed != nil {
		return s.failed.Error()
	}
	return "it went down while it was switched to, or another change came first"
}

type switchResult struct {
	done Switched
	err  error
}

// Switch makes another host primary: the host is checked now, clients wait,
// earlier connections are fenced, the triggers run, and clients are connected
// to the new host. It returns then, or with a [RefusedError] when the old
// primary continues. When ctx ends before, the switchover continues all the
// same.
func (c *Conductor) Switch(ctx context.Context, r SwitchRequest) (Switched, error) {
	return c.switchThen(ctx, r, func() {})
}

// switchThen is Switch and runs then when it succeeds, even if the caller no
// longer waits.
func (c *Conductor) switchThen(ctx context.Context, r SwitchRequest, then func()) (Switched, error) {
	reply := make(chan switchResult, 1)
	err := c.request(ctx, func() selector.Event {
		if c.requested != nil {
			reply <- switchResult{err: RefusedError{"another switchover is under way"}}
			return selector.Tick{}
		}
		c.requested = &switchover{SwitchRequest: r, began: time.Now(), then: then, reply: reply}
		c.reach(Progress{Host: r.Host, Step: StageChecking})
		return selector.Move{Host: r.Host, Reason: orderText("switch", r.By, r.Reason), Drain: c.requested.fence(c.cfg().Fence).Drain}
	})
	if err != nil {
		return Switched{}, err
	}
	select {
	case res := <-reply:
		return res.done, res.err
	case <-c.over:
		return Switched{}, ErrOver
	case <-ctx.Done():
		return Switched{}, ctx.Err()
	}
}

// orderText returns an operator's order in one line.
func orderText(order, by, reason string) string {
	text := order
	if by != "" {
		text += " by " + by
	}
	if reason != "" {
		text += ": " + reason
	}
	return text
}

// answerSwitch replies to the operator of a switchover, once the result is
// published.
func (c *Conductor) answerSwitch(done Switched, err error) {
	switch {
	case err == nil:
		c.requested.then()
	case c.requested.refused != nil:
		c.requested.refused(err)
	}
	c.progress.Store(nil)
	reply := c.requested.reply
	c.answers = append(c.answers, func() { reply <- switchResult{done, err} })
	c.requested = nil
}

// Lock sets a lock, which replaces one of the same kind and host. If the
// primary is to be drained, a switchover to the first other host that passes
// comes first; if there is none, the error is a [RefusedError]. When it returns
// nil the lock is on the disk, if there is a state directory.
func (c *Conductor) Lock(ctx context.Context, k Lock) error {
	if k.Kind == Drain {
		if !slices.Contains(c.cfg().Hosts, k.Host) {
			return c.unknownHost(k.Host)
		}
		if now := c.Snapshot(); now.Elect == k.Host && now.Phase != selector.Selecting {
			// The lock is set as part of the switchover, so that it is not
			// half done if the operator does not wait for the end.
			var saved *saving
			var shared <-chan struct{}
			r := SwitchRequest{By: k.By, Reason: "drain of " + k.Host + reasonSuffix(k.Reason)}
			_, err := c.switchThen(ctx, r, func() {
				saved = c.setLocks(k, c.locks.with(k))
				shared = c.agree.sharing()
			})
			if err != nil {
				return err
			}
			return errors.Join(saved.wait(saveTimeout), awaitShared(ctx, shared))
		}
	}
	return c.relock(ctx, k, func(l locks) locks { return l.with(k) })
}

func reasonSuffix(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// Unlock removes a lock. Removing one that does not exist does nothing.
func (c *Conductor) Unlock(ctx context.Context, k Lock) error {
	if k.Kind == Drain && !slices.Contains(c.cfg().Hosts, k.Host) {
		return c.unknownHost(k.Host)
	}
	return c.relock(ctx, k, func(l locks) locks { return l.without(k.Kind, k.Host) })
}

// relock changes the locks. It returns when they are on the disk, so that an
// operator can rely on the success even if the program is killed. It does not
// wait for a disk that hangs.
func (c *Conductor) relock(ctx context.Context, k Lock, change func(locks) locks) error {
	var saved *saving
	var shared <-chan struct{}
	err := c.request(ctx, func() selector.Event {
		saved = c.setLocks(k, change(c.locks))
		shared = c.agree.sharing()
		return selector.Tick{}
	})
	if err != nil {
		return err
	}
	return errors.Join(saved.wait(saveTimeout), awaitShared(ctx, shared))
}

// setLocks replaces the locks with new ones, which differ in k, on Run's
// goroutine, which passes them to the machine.
func (c *Conductor) setLocks(k Lock, to locks) *saving {
	now := time.Now()
	c.noteRemote(now)
	c.locks, c.recorded, c.relocked = to, to, true
	c.agree.share(to)
	did, order := "unlocked", k.removal(now)
	if to.find(k.Kind, k.Host) != nil {
		did, order = "locked", k.order()
	}
	c.noteOrder(order)
	fields := []any{"kind", string(k.Kind)}
	for _, f := range [][2]string{{"host", k.Host}, {"by", k.By}, {"reason", k.Reason}} {
		if f[1] != "" {
			fields = append(fields, f[0], f[1])
		}
	}
	if !k.Until.IsZero() {
		fields = append(fields, "until", k.Until.Format(time.RFC3339))
	}
	c.log.Info(did, fields...)
	return c.save()
}

func (c *Conductor) unknownHost(host string) error {
	return RefusedError{fmt.Sprintf("relay %s has no host %q: its hosts are %v", c.cfg().Name, host, c.cfg().Hosts)}
}

// expire removes the locks that have expired, and returns when the next one
// expires.
func (c *Conductor) expire(now time.Time) (next time.Time) {
	c.noteRemote(now)
	left, next := c.locks.at(now)
	if len(left) == len(c.locks) {
		return next
	}
	for _, k := range c.locks {
		if left.find(k.Kind, k.Host) == nil {
			c.log.Info("lock ended", "kind", string(k.Kind), "host", k.Host, "by", k.By, "until", k.Until.Format(time.RFC3339))
		}
	}
	c.locks, c.recorded, c.relocked = left, left, true
	c.save()
	return next
}

// noteRemote records what has changed in the locks because another instance of the
// cluster was ordered so. Who removed a lock, and why, only that instance knows.
func (c *Conductor) noteRemote(now time.Time) {
	orders := c.recorded.orders(c.locks, now)
	if len(orders) == 0 {
		return
	}
	for _, i := range orders {
		i.Order.Remote = true
		c.noteOrder(i)
	}
	c.recorded = c.locks
	c.save()
}

// Alive returns nil once Run has processed it. So a conductor that hangs can be
// distinguished from one that has nothing to do.
func (c *Conductor) Alive(ctx context.Context) error {
	return c.request(ctx, func() selector.Event { return selector.Tick{} })
}

// request runs f on Run's goroutine, between two steps of the machine, and
// passes the event that it returns to the machine. It returns when that is
// done.
func (c *Conductor) request(ctx context.Context, f func() selector.Event) error {
	done := make(chan struct{})
	select {
	case c.requests <- request{f, done}:
	case <-c.over:
		return ErrOver
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-c.over:
		return ErrOver
	}
}

// request is a function to be run on Run's goroutine.
type request struct {
	do   func() selector.Event
	done chan struct{} // closed when the machine has processed the event; nil when no caller waits
}
