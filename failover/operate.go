package failover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"understudy/selector"
)

// RefusedError says why the relay did not do what an operator asked for. The
// primary from before goes on, unless the reason says otherwise.
type RefusedError struct{ Reason string }

func (e RefusedError) Error() string { return e.Reason }

// ErrOver is the answer to an operator when the conductor's Run has returned.
var ErrOver = errors.New("the program is ending")

// switchGrace is what connections get to finish in when an operator switches
// over and the fence policy is to reset them at once. Nothing is wrong with the
// old primary then, so a request that is on its way need not be cut.
const switchGrace = 250 * time.Millisecond

// SwitchRequest asks for a planned switchover.
type SwitchRequest struct {
	// Host becomes primary. Empty means the first other one that is not
	// down.
	Host string

	// Drain is how long earlier connections may finish before they are reset;
	// zero resets them at once. Negative means the fence policy, and a quarter
	// of a second where that is to reset them at once.
	Drain time.Duration

	// By and Reason say who asked and why, for the log and the record.
	By, Reason string
}

// Switched is a planned change that was made.
type Switched struct {
	Host  string `json:"host"`
	Epoch uint64 `json:"epoch"`
}

// switchover is a SwitchRequest that is being carried out.
type switchover struct {
	SwitchRequest
	epoch  uint64 // zero until its host was elected
	failed error  // why its host did not become primary
	then   func() // done on Run's goroutine when clients pass to its host
	reply  chan switchResult
}

// grace is what earlier connections get: what was asked for, or the policy.
func (s *switchover) grace(policy Fence) time.Duration {
	switch {
	case s.Drain >= 0:
		return s.Drain
	case policy == Fence{}:
		return switchGrace
	}
	return policy.grace()
}

// why says why the host that was elected did not become primary.
func (s *switchover) why() string {
	if s.failed != nil {
		return s.failed.Error()
	}
	return "the host went down while it was switched to"
}

type switchResult struct {
	done Switched
	err  error
}

// Switch makes another host primary: it is checked now, clients wait, earlier
// connections are fenced, the triggers run, clients pass to it. It returns when
// they do, or a [RefusedError] when the old primary goes on. When ctx ends
// before, the switchover goes on all the same.
func (c *Conductor) Switch(ctx context.Context, r SwitchRequest) (Switched, error) {
	return c.switchThen(ctx, r, func() {})
}

// switchThen has something done when it is, whether anybody still waits or not.
func (c *Conductor) switchThen(ctx context.Context, r SwitchRequest, then func()) (Switched, error) {
	reply := make(chan switchResult, 1)
	err := c.request(ctx, func() selector.Event {
		if c.asked != nil {
			reply <- switchResult{err: RefusedError{"another switchover is under way"}}
			return selector.Tick{}
		}
		c.asked = &switchover{SwitchRequest: r, then: then, reply: reply}
		return selector.Move{Host: r.Host, Reason: orderText("switch", r.By, r.Reason), Drain: max(c.asked.grace(c.cfg().Fence), 0)}
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

// orderText is an operator's order in one line.
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

// answerSwitch answers the operator who waits for a switchover, once everybody
// can see what came of it.
func (c *Conductor) answerSwitch(done Switched, err error) {
	if err == nil {
		c.asked.then()
	}
	reply := c.asked.reply
	c.answers = append(c.answers, func() { reply <- switchResult{done, err} })
	c.asked = nil
}

// Lock sets a lock in place of one of the same kind and host. A primary that is
// to be drained is left first, for the first other host that passes; if there is
// none, the answer is a [RefusedError]. When it returns nil the lock is on the
// disk, if there is a state directory.
func (c *Conductor) Lock(ctx context.Context, k Lock) error {
	if k.Kind == Drain {
		if !slices.Contains(c.cfg().Hosts, k.Host) {
			return c.unknownHost(k.Host)
		}
		if now := c.Snapshot(); now.Elect == k.Host && now.Phase != selector.Selecting {
			// The lock goes with the switchover, so that an operator who does
			// not wait for the end of it leaves no half of it behind.
			var saved *saving
			r := SwitchRequest{Drain: -1, By: k.By, Reason: "drain of " + k.Host + reasonSuffix(k.Reason)}
			_, err := c.switchThen(ctx, r, func() { saved = c.setLocks("locked", k, c.locks.with(k)) })
			if err != nil {
				return err
			}
			return saved.wait(savePatience)
		}
	}
	return c.relock(ctx, "locked", k, func(l locks) locks { return l.with(k) })
}

func reasonSuffix(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// Unlock takes a lock back. To take back one that is not there does nothing.
func (c *Conductor) Unlock(ctx context.Context, k Lock) error {
	if k.Kind == Drain && !slices.Contains(c.cfg().Hosts, k.Host) {
		return c.unknownHost(k.Host)
	}
	return c.relock(ctx, "unlocked", k, func(l locks) locks { return l.without(k.Kind, k.Host) })
}

// relock changes the locks. It returns when they are on the disk, so that an
// operator who was told so can rely on it whatever ends the program; a disk that
// hangs is not waited for.
func (c *Conductor) relock(ctx context.Context, did string, k Lock, change func(locks) locks) error {
	var saved *saving
	err := c.request(ctx, func() selector.Event {
		saved = c.setLocks(did, k, change(c.locks))
		return selector.Tick{}
	})
	if err != nil {
		return err
	}
	return saved.wait(savePatience)
}

// setLocks takes new locks in, which differ in k, on Run's goroutine, which
// tells the machine.
func (c *Conductor) setLocks(did string, k Lock, to locks) *saving {
	c.locks, c.relocked = to, true
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
	return c.remember()
}

func (c *Conductor) unknownHost(host string) error {
	return RefusedError{fmt.Sprintf("relay %s has no host %q: its hosts are %v", c.cfg().Name, host, c.cfg().Hosts)}
}

// expire takes back the locks that have ended, and says when the next one does.
func (c *Conductor) expire(now time.Time) (next time.Time) {
	left, next := c.locks.at(now)
	if len(left) == len(c.locks) {
		return next
	}
	for _, k := range c.locks {
		if left.find(k.Kind, k.Host) == nil {
			c.log.Info("lock ended", "kind", string(k.Kind), "host", k.Host, "by", k.By, "until", k.Until.Format(time.RFC3339))
		}
	}
	c.locks, c.relocked = left, true
	c.remember()
	return next
}

// Alive returns nil once Run has taken note of it, so one that hangs can be
// told from one that has nothing to do.
func (c *Conductor) Alive(ctx context.Context) error {
	return c.request(ctx, func() selector.Event { return selector.Tick{} })
}

// request has f run on Run's goroutine, between two steps of the machine, and
// hands the machine what it returns. It returns when that is done.
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

// request is something to be done on Run's goroutine.
type request struct {
	do   func() selector.Event
	done chan struct{} // closed when the machine has taken it in; nil when nobody waits
}
