package failover

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy/internal/role"
	"understudy/selector"
)

// standbyTimeout is the longest time that it may be unknown whether a host other than the
// primary is usable. After that none counts as usable.
const standbyTimeout = 10 * time.Second

// standbyWatch records whether another host could become primary. It belongs to
// Run's goroutine.
type standbyWatch struct {
	missing time.Time // since when none could; zero while one can, or that is not known yet
	unsure  time.Time // since when that is not known; zero while it is
}

// standbyState is the combined state of the hosts other than the primary.
type standbyState int

const (
	standbyUnsure  standbyState = iota // too few checks have ended, or one could not determine the state
	standbyUsable                      // one of them would be elected
	standbyMissing                     // none of them would be elected
)

// standbyOf reports whether a host other than the primary would be elected in
// its place. A drained one would not.
//
// Where somebody else promotes replicas (follows), a replica is a standby.
func standbyOf(now selector.Snapshot, follows bool) standbyState {
	state := standbyMissing
	for _, h := range now.Hosts {
		switch {
		case h.Name == now.Primary || h.Drained:
		case h.State == selector.Down && follows && h.Says == role.Replica:
			return standbyUsable // somebody else promotes it
		case h.State == selector.Down:
		case h.State == selector.Up && !slices.ContainsFunc(h.Checks, func(k selector.Record) bool { return k.Last.Unknown }):
			return standbyUsable
		default:
			state = standbyUnsure
		}
	}
	return state
}

// watchStandby records whether another host could become primary, logs every
// change of that once, and returns when it must be called again at the latest;
// zero for never. A relay of one host has no standby by choice. The state is
// kept while there is no primary, and a standby that flaps is usable again only
// when it does not flap any more.
func (c *Conductor) watchStandby(ctx context.Context, at time.Time, now selector.Snapshot) (next time.Time) {
	w := &c.standby
	if len(now.Hosts) < 2 {
		*w = standbyWatch{}
		return time.Time{}
	}
	if now.Primary == "" || c.opening != nil {
		w.unsure = time.Time{}
		return time.Time{}
	}
	rules := c.cfg().roleCheck()
	state := standbyOf(now, rules != nil && !rules.Promote)
	if state != standbyUnsure {
		w.unsure = time.Time{}
	} else {
		if w.unsure.IsZero() {
			w.unsure = at
		}
		if next = w.unsure.Add(standbyTimeout); !at.Before(next) {
			state, next = standbyMissing, time.Time{}
		}
	}
	switch {
	case state == standbyMissing && w.missing.IsZero():
		w.missing = at
		reason := withoutStandby(now)
		c.log.Warn("serving, without a standby", "host", now.Primary, "epoch", now.Epoch, "reason", reason)
		c.notice(ctx, EventNoStandby, now.Primary, reason)
	case state == standbyUsable && !w.missing.IsZero():
		if stable := c.stableFrom(now, at); stable.After(at) {
			return stable
		}
		c.log.Info("a standby is usable again", "host", now.Primary, "epoch", now.Epoch, "after", at.Sub(w.missing).Round(time.Millisecond))
		c.notice(ctx, EventStandbyBack, now.Primary, "another host could take over again")
		w.missing = time.Time{}
	}
	return next
}

// stableFrom returns when the first of the usable standbys does not flap any
// more.
func (c *Conductor) stableFrom(now selector.Snapshot, at time.Time) (first time.Time) {
	for _, h := range now.Hosts {
		if h.Name == now.Primary || h.Drained || h.State != selector.Up {
			continue
		}
		if until := c.flapsUntil(h.Name, at); first.IsZero() || until.Before(first) {
			first = until
		}
	}
	return first
}

// withoutStandby returns, for each host other than the primary, why it would
// not be elected.
func withoutStandby(now selector.Snapshot) string {
	var reasons []string
	for _, h := range now.Hosts {
		if h.Name != now.Primary {
			reasons = append(reasons, h.Name+": "+unusable(h))
		}
	}
	return strings.Join(reasons, "; ")
}

// unusable returns why a host would not be elected.
func unusable(h selector.Host) string {
	if h.Drained {
		return "drained"
	}
	for _, k := range h.Checks {
		if k.State != selector.Down && !k.Last.Unknown {
			continue
		}
		err := k.Last.Err
		if k.State == selector.Down {
			err = k.Failure.Err
		}
		if err != nil {
			return k.Name + ": " + err.Error()
		}
		return k.Name + " has passed again, but not often enough yet"
	}
	return "not known yet: too few checks have ended"
}

// watchFlapping reports hosts that the flap guard begins to hold back.
func (c *Conductor) watchFlapping(ctx context.Context, now selector.Snapshot) {
	var guarded []string
	for _, h := range now.Hosts {
		if !h.Guarded {
			continue
		}
		guarded = append(guarded, h.Name)
		if !slices.Contains(c.guarded, h.Name) {
			c.notice(ctx, EventFlapping, h.Name, fmt.Sprintf("failed %d times in ten minutes", h.Failures))
		}
	}
	c.guarded = guarded
}
