package failover

import (
	"fmt"
	"slices"
	"time"

	"understudy/relay"
	"understudy/selector"
)

// Status is the current state of a relay.
type Status struct {
	selector.Snapshot

	Relay     string
	Reason    string    // why the host of the last election was elected
	Event     string    // the kind of that election
	Elected   time.Time // when it was
	Locks     []Lock
	GoodDrill time.Time // when the last successful drill was; zero for never
	Save      SaveState // whether it is kept on disk

	Silence relay.Silence // of the primary towards its clients
	Hang    relay.Hang    // of the primary

	Canary *CanaryStatus // nil without a canary; must not be changed

	// NoStandby is since when no other host could become primary. Zero while
	// one could, while there is no primary, and for a relay of one host.
	NoStandby time.Time

	Scheduled *Scheduled // nil when no switch is scheduled; must not be changed

	Cluster *ClusterStatus // nil where the relay decides alone; must not be changed
}

// Status returns the current state. Callers must not change it.
func (c *Conductor) Status() Status {
	s := *c.status.Load()
	s.Locks = locks(s.Locks).onWall(time.Now())
	s.Save = c.cfg().StateFile.State() // saving goes on after the status was published
	if c.cfg().Silence != nil {
		if now := c.cfg().Silence(); now.Epoch == s.Epoch {
			s.Silence = now
		}
	}
	s.Hang = c.hang(s.Snapshot, s.Primary)
	if canary, ok := c.Canary(); ok {
		s.Canary = &canary
	}
	return s
}

// Prediction returns the [Prediction] for the settings, with warnings from the
// behaviour of the hosts so far.
func (c *Conductor) Prediction() Prediction {
	p := c.settings.Load().prediction
	p.Warnings = slices.Clone(p.Warnings)
	if usual := c.cfg().Usual; usual != nil {
		if n := usual(); n > 0 { // it is computed for 0
			p.Waits = c.cfg().waits(n)
		}
	}
	p.Loss = c.Status().PredictedLoss()
	for _, k := range c.cfg().Checks {
		for _, h := range c.Snapshot().Hosts {
			for _, r := range h.Checks {
				if took := r.Last.Latency; r.Name == k.Name && k.Script != "" && took > k.Interval {
					p.Warnings = append(p.Warnings, fmt.Sprintf("check-interval %v is shorter than the run time of check %s for %s (%v): it runs all the time",
						k.Interval, k.Name, h.Name, took.Round(time.Millisecond)))
				}
			}
		}
	}
	return p
}

// PredictedCases returns the cases of the [Prediction]. Callers must not change them.
func (c *Conductor) PredictedCases() []Case { return c.settings.Load().prediction.Cases }

// Name is the relay's name.
func (c *Conductor) Name() string { return c.cfg().Name }

// Thresholds returns how many results in a row change the state of a check.
func (c *Conductor) Thresholds() (rise, fall int) { return c.cfg().Rise, c.cfg().Fall }

// Lock returns the lock of a kind and host; nil when there is none.
func (s Status) Lock(kind LockKind, host string) *Lock { return locks(s.Locks).find(kind, host) }

// Why explains, in one sentence, why this host is primary, or why none is.
func (s Status) Why(now time.Time) string {
	text := s.why(now)
	if c := s.Cluster; c != nil {
		text += "; cluster " + c.Cluster + ": " + c.String()
	}
	return text
}

func (s Status) why(now time.Time) string {
	frozen := s.Lock(Freeze, "")
	switch {
	case s.Primary != "":
		text := fmt.Sprintf("%s has been primary for %s", s.Primary, ago(now.Sub(s.Elected)))
		if s.Event != "" {
			text += fmt.Sprintf(" (%s: %s)", s.Event, s.Reason)
		}
		if h, ok := s.host(s.Primary); ok && h.State == selector.Down {
			text += ", is down, and no failover happens because the relay is frozen"
		}
		if s.Silence.Remarkable() {
			text += fmt.Sprintf("; it ended the last %d client connections at once, without a byte", s.Silence.InARow)
		}
		if s.Hang.Hangs() {
			text += "; it passes its checks, " + s.Hang.String()
		}
		if unserved := s.CanaryText(now); unserved != "" {
			text += "; " + unserved
		}
		if len(s.Writers) > 0 {
			text += "; " + writersText(s.Writers)
		}
		if loss := s.PredictedLoss(); loss != nil {
			text += "; if it failed now, " + loss.String()
		}
		if !s.NoStandby.IsZero() {
			text += "; for " + ago(now.Sub(s.NoStandby)) + " no other host could take over"
		}
		return text + s.unknown(s.Primary, "; ") + by(frozen, "; frozen")
	case s.Phase == selector.Switching && s.Cluster != nil && s.Cluster.Record.Open:
		return fmt.Sprintf("%s is the primary of the cluster, and this instance may not connect clients to it", s.Elect)
	case s.Phase == selector.Switching:
		until := "earlier connections are fenced and the triggers have run"
		if s.Verifying {
			until = "it says that it is primary"
		}
		return fmt.Sprintf("%s was elected %s ago and clients wait until %s (%s: %s)", s.Elect, ago(now.Sub(s.Since)), until, s.Event, s.Reason)
	case s.Elect != "" && s.Phase == selector.Serving:
		return s.Elect + " is elected, and the relay cannot open: see the log"
	default:
		text := fmt.Sprintf("there has been no primary for %s: ", ago(now.Sub(s.Since)))
		if s.Awaited != "" {
			return text + "another host is usable; waiting for the last primary, " + s.Awaited + by(frozen, "; frozen")
		}
		switch {
		case s.Cluster != nil && s.Proposal.Host != "":
			text += "this instance proposes " + s.Proposal.Host + " (" + s.Proposal.Reason + ")"
		case s.Cluster != nil && !s.Cluster.Known:
			text += "this instance does not know what the others have agreed on"
		default:
			text += "no host is usable"
		}
		if len(s.Writers) > 0 {
			text += "; " + writersText(s.Writers)
		}
		if !s.RetryAt.IsZero() && s.RetryAt.After(now) {
			text += "; the first one that passes its checks is elected"
		}
		if s.Elect != "" {
			text += "; earlier connections stay open until another host is elected"
		}
		return text + by(frozen, "; frozen")
	}
}

// CanaryText says that the canary is not served although there is a primary; empty while it
// is, and without one.
func (s Status) CanaryText(now time.Time) string {
	if s.Primary == "" || s.Canary == nil || s.Canary.Since.IsZero() {
		return ""
	}
	text := "its canary has not been served for " + ago(now.Sub(s.Canary.Since))
	if s.Canary.Error != nil {
		text += " (" + s.Canary.Error.Error() + ")"
	}
	return text
}

// WhyHost explains, in one sentence, why a host is primary or is not.
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
	case h.Rejected:
		return name + " was rejected: " + h.Rejection
	}
	if h.State != selector.Down {
		if text := s.unknown(name, name+" is not elected: "); text != "" {
			return text
		}
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
	case h.Unfit:
		return name + " is down for too many other instances: before another host it is not chosen"
	case s.Frozen:
		return name + " is a standby: nothing changes while the relay is frozen" + by(s.Lock(Freeze, ""), "")
	case h.State == selector.Unknown:
		return name + " is not known yet: too few checks have ended"
	case s.Primary != "":
		return fmt.Sprintf("%s is a usable standby: %s is primary and up, and a primary stays", name, s.Primary)
	}
	return name + " is usable"
}

// unknown returns which check of a host could not determine its state, and why,
// after prefix; empty when there is none.
func (s Status) unknown(name, prefix string) string {
	h, _ := s.host(name)
	for _, k := range h.Checks {
		if !k.Last.Unknown {
			continue
		}
		text := prefix + k.Name + " is unknown"
		if k.Last.Err != nil {
			text += " (" + k.Last.Err.Error() + ")"
		}
		if name == s.Primary {
			text += ", which never takes a primary down"
		}
		return text
	}
	return ""
}

func (s Status) host(name string) (selector.Host, bool) {
	i := slices.IndexFunc(s.Hosts, func(h selector.Host) bool { return h.Name == name })
	if i < 0 {
		return selector.Host{}, false
	}
	return s.Hosts[i], true
}

// by returns who set a lock, after prefix; empty for none.
func by(k *Lock, prefix string) string {
	if k == nil {
		return ""
	}
	text := prefix
	if k.By != "" {
		text += " by " + k.By
	}
	// A sentence for people, also on the wall: with a zone, without parts of a second.
	const clock = "2006-01-02 15:04:05 -0700"
	text += " since " + k.Since.Local().Format(clock)
	if !k.Until.IsZero() {
		text += " until " + k.Until.Local().Format(clock)
	}
	if k.Reason != "" {
		text += " (" + k.Reason + ")"
	}
	return text
}

// ago formats a duration for people.
func ago(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return d.Round(time.Minute).String()
}
