package failover

import (
	"fmt"
	"slices"
	"time"

	"understudy/selector"
)

// Status is what is known of a relay now.
type Status struct {
	selector.Snapshot

	Relay     string
	Reason    string    // why the host of the last election was elected
	Event     string    // what that election was
	Elected   time.Time // when it was
	Locks     []Lock
	GoodDrill time.Time // when a drill last went well; zero for never
	Kept      bool      // it is kept on disk
}

// Status returns what is known now. Nobody may change it.
func (c *Conductor) Status() Status { return *c.status.Load() }

// Prediction returns what the settings promise, with warnings about what the
// hosts have shown since.
func (c *Conductor) Prediction() Prediction {
	p := c.rules.Load().prediction
	p.Warnings = slices.Clone(p.Warnings)
	for _, k := range c.cfg().Checks {
		for _, h := range c.Snapshot().Hosts {
			for _, r := range h.Checks {
				if took := r.Last.Latency; r.Name == k.Name && k.Script != "" && took > k.Interval {
					p.Warnings = append(p.Warnings, fmt.Sprintf("check-interval %v is shorter than check %s takes for %s (%v): it runs all the time",
						k.Interval, k.Name, h.Name, took.Round(time.Millisecond)))
				}
			}
		}
	}
	return p
}

// Name is the relay's name.
func (c *Conductor) Name() string { return c.cfg().Name }

// Rules are the thresholds that the results of checks are counted against.
func (c *Conductor) Rules() (rise, fall int) { return c.cfg().Rise, c.cfg().Fall }

// Lock returns the lock of a kind and host; nil when there is none.
func (s Status) Lock(kind LockKind, host string) *Lock { return locks(s.Locks).find(kind, host) }

// Why answers, in one sentence, why this host is primary, or why nobody is.
func (s Status) Why(now time.Time) string {
	frozen := s.Lock(Freeze, "")
	switch {
	case s.Primary != "":
		text := fmt.Sprintf("%s has been primary for %s", s.Primary, ago(now.Sub(s.Elected)))
		if s.Event != "" {
			text += fmt.Sprintf(" (%s: %s)", s.Event, s.Reason)
		}
		if h, ok := s.host(s.Primary); ok && h.State == selector.Down {
			text += ", is down, and stays because the relay is frozen"
		}
		return text + by(frozen, "; frozen")
	case s.Phase == selector.Switching:
		return fmt.Sprintf("%s was elected %s ago and clients wait until earlier connections are fenced and the triggers have run (%s: %s)",
			s.Elect, ago(now.Sub(s.Since)), s.Event, s.Reason)
	case s.Elect != "" && s.Phase == selector.Serving:
		return s.Elect + " is elected, and the relay does not open: see the log"
	default:
		text := fmt.Sprintf("there has been no primary for %s: no host is usable", ago(now.Sub(s.Since)))
		if !s.RetryAt.IsZero() && s.RetryAt.After(now) {
			text += fmt.Sprintf("; all are asked again in %s, and at once when a port opens", ago(s.RetryAt.Sub(now)))
		}
		return text + by(frozen, "; frozen")
	}
}

// WhyHost answers, in one sentence, why a host is primary or is not.
func (s Status) WhyHost(name string, now time.Time) string {
	h, ok := s.host(name)
	if !ok {
		return "there is no such host"
	}
	switch {
	case name == s.Primary:
		return s.Why(now)
	case h.Drained:
		return name + " is not elected: it is drained" + by(s.Lock(Drain, name), "")
	case h.Aside:
		return name + " was put aside, because a trigger failed for it"
	}
	for _, k := range h.Checks {
		if k.State == selector.Down || !k.Last.OK && !k.Last.At.IsZero() {
			text := fmt.Sprintf("%s is not usable: %s", name, k.Name)
			if k.Last.Err != nil {
				text += ": " + k.Last.Err.Error()
			}
			return text
		}
	}
	switch {
	case name == s.Elect && s.Phase == selector.Switching:
		return s.Why(now)
	case h.Guarded:
		return fmt.Sprintf("%s failed %d times in ten minutes: before another host it is chosen only after %s without a failure", name, h.Failures, ago(h.Penalty))
	case s.Frozen:
		return name + " is a standby: nothing changes while the relay is frozen" + by(s.Lock(Freeze, ""), "")
	case h.State == selector.Unknown:
		return name + " is not known yet: too few checks have ended"
	case s.Primary != "":
		return fmt.Sprintf("%s is usable and stands by: %s is primary and up, and a primary stays", name, s.Primary)
	}
	return name + " is usable"
}

func (s Status) host(name string) (selector.Host, bool) {
	i := slices.IndexFunc(s.Hosts, func(h selector.Host) bool { return h.Name == name })
	if i < 0 {
		return selector.Host{}, false
	}
	return s.Hosts[i], true
}

// by says whose a lock is, behind prefix; nothing for none.
func by(k *Lock, prefix string) string {
	if k == nil {
		return ""
	}
	text := prefix
	if k.By != "" {
		text += " by " + k.By
	}
	text += " since " + k.Since.Format(time.DateTime)
	if !k.Until.IsZero() {
		text += " until " + k.Until.Format(time.DateTime)
	}
	if k.Reason != "" {
		text += " (" + k.Reason + ")"
	}
	return text
}

// ago is a duration for people.
func ago(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return d.Round(time.Minute).String()
}
