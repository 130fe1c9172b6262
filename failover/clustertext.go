package failover

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"understudy/cluster"
	"understudy/selector"
)

// String describes the state in one line.
func (s *ClusterStatus) String() string {
	var parts []string
	say := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	r := &s.Record
	switch {
	case s.Trouble != "":
		say("this instance does not take part: %s", s.Trouble)
	case !s.Known:
		say("the store has not answered yet")
	case r.Version == 0:
		say("nothing is agreed yet")
	case !r.Open:
		say("%s changes the primary to %s", r.Driver, r.Host)
	case s.Lease <= 0:
		say("the lease of this instance is over, so it connects no client: %s", s.overBecause())
	}
	if s.Rival != "" {
		say("another process has the name %s, too: %s", s.Member, s.Rival)
	}
	for _, w := range s.Waiting {
		text := fmt.Sprintf("waiting for %s, for %s", w.Member, ago(w.For))
		if w.Most > 0 {
			text += " of " + ago(w.Most) + " at most"
		}
		say("%s", text)
	}
	switch {
	case s.Isolated:
		say("isolated: %d of %d instances see %s down, this one too", s.Down, s.Fresh, r.Host)
	case s.Down > 0:
		say("%d of %d instances see %s down", s.Down, s.Fresh, r.Host)
	}
	for _, o := range s.Members {
		switch {
		case !o.Known:
			say("%s has never been heard of", o.Name)
		case o.Member.Leaving:
			say("%s has ended", o.Name)
		case r.Version > 0 && o.Member.Settings != r.Settings:
			theirs, agreed := cluster.Differences(o.Member.Settings, r.Settings)
			say("%s has other settings: %s, and the cluster has %s", o.Name, theirs, agreed)
		case o.Silent > silentAfter*s.Beat && s.Failing.IsZero(): // it is heard of through the store
			say("%s has been silent for %s", o.Name, ago(o.Silent))
		}
		if why := s.Unanswered[o.Name]; why != "" && !o.Member.Leaving {
			say("%s does not answer this instance: %s", o.Name, why)
		}
	}
	if why := s.Unanswered[s.Member]; why != "" {
		say("the others refuse the certificate of this instance, or will soon: %s", why)
	}
	if s.Clocks != "" {
		say("%s", s.Clocks)
	}
	if !s.Failing.IsZero() {
		say("the store has served no request for %s (%s)", ago(time.Since(s.Failing)), s.causes())
	}
	if len(parts) == 0 {
		say("%d instances agree on %s", len(s.Members)+1, r.Host)
	}
	return strings.Join(parts, "; ")
}

// silentAfter is after how many heartbeats a member without one counts as silent, for
// display.
const silentAfter = 3

// overBecause returns why the lease of this instance is over.
func (s *ClusterStatus) overBecause() string {
	switch {
	case s.Trouble != "":
		return s.Trouble
	case s.Failing.IsZero():
		return "this program did not run for that long, or the store answered too late"
	case s.OnStoreLoss == cluster.Fence:
		return "the store does not answer, and on-store-loss is fence"
	case s.LimitOver:
		return "the store has not answered for longer than failsafe-limit"
	case len(s.Missing) > 0:
		return "the store does not answer, and to go on without it is not confirmed by " + strings.Join(s.Missing, ", ")
	}
	return "the store does not answer"
}

// causes returns the lines of the error of the store in one. What others could not do
// either, for the same reason, is left out, and those who do not answer, who are named
// apart.
func (s *ClusterStatus) causes() string {
	said := slices.Collect(maps.Values(s.Unanswered))
	var all []string
	for line := range strings.Lines(s.Error) {
		line = strings.TrimSpace(line)
		_, why, passedOn := strings.Cut(line, ": status 502: ")
		if passedOn && slices.Contains(all, why) || slices.Contains(said, line) {
			continue
		}
		all = append(all, line)
	}
	return strings.Join(all, "; ")
}

// lost returns why the host that was elected did not become primary, although no
// trigger failed.
func (c *Conductor) lost(host string) (Outcome, string) {
	if c.agree != nil {
		now := c.machine.Snapshot()
		if i := slices.IndexFunc(now.Hosts, func(h selector.Host) bool { return h.Name == host }); i >= 0 && now.Hosts[i].State != selector.Down {
			return Interrupted, "the instance that made the change did not complete it"
		}
	}
	return HostLost, host + " went down while it was switched to"
}
