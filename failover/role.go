package failover

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy/internal/role"
	"understudy/selector"
)

// roleCheck returns the rules of the role check; nil when there is none.
func (cfg *Config) roleCheck() *selector.RoleRules {
	for _, k := range cfg.Checks {
		if k.Role != nil {
			return k.Role
		}
	}
	return nil
}

// lossOf returns what a candidate lacks; nil when nothing is known of that.
func lossOf(l selector.Loss) *Loss {
	if l.Host == "" || !l.Lag.BytesKnown && !l.Lag.TimeKnown {
		return nil
	}
	loss := &Loss{Host: l.Host}
	if l.Lag.BytesKnown {
		loss.Bytes = &l.Lag.Bytes
	}
	if l.Lag.TimeKnown {
		seconds := l.Lag.Time.Seconds()
		loss.Seconds = &seconds
	}
	return loss
}

// lostBy returns what is lost by an election, as predicted; nil when that is not known. In
// a planned change the old host has the data still, and the triggers wait for the new one
// to have it.
func lostBy(s selector.Switch) *Loss {
	if s.Kind == selector.Switchover || s.Kind == selector.Failback {
		return nil
	}
	return lossOf(s.Loss)
}

// PredictedLoss returns what the best candidate lacks now of the data of the primary; nil
// when that is not known, and without a role check.
func (s Status) PredictedLoss() *Loss { return lossOf(s.Loss) }

// String returns l in words: "db2 lacks 5242880 bytes, 3.2s".
func (l Loss) String() string {
	var parts []string
	if l.Bytes != nil {
		parts = append(parts, fmt.Sprintf("%d bytes", *l.Bytes))
	}
	if l.Seconds != nil {
		parts = append(parts, ago(time.Duration(*l.Seconds*float64(time.Second))))
	}
	if (l.Bytes == nil || *l.Bytes == 0) && (l.Seconds == nil || *l.Seconds == 0) {
		return l.Host + " lacks nothing"
	}
	return l.Host + " lacks " + strings.Join(parts, ", ")
}

// WritersText says that several hosts say that they are primary; empty when none or one does.
func (s Status) WritersText() string {
	if len(s.Writers) == 0 {
		return ""
	}
	return writersText(s.Writers)
}

// writersText says that several hosts say that they are primary.
func writersText(hosts []string) string {
	return strings.Join(hosts, " and ") + " both say that they are primary: writes may go to more than one"
}

// RoleText returns what a host says of itself, in a few words; empty without a role check.
func RoleText(h selector.Host) string {
	if h.Fact == nil && h.Says == role.Unknown {
		return ""
	}
	text := h.Says.String()
	if h.Fact != nil && h.Fact.Role == h.Says {
		text = h.Fact.String()
	}
	if h.Says == role.Replica {
		if h.Lag.BytesKnown {
			text += fmt.Sprintf(", lags by %d bytes", h.Lag.Bytes)
		}
		if h.Lag.TimeKnown {
			text += ", by " + ago(h.Lag.Time)
		}
	}
	return text
}

// refuses returns why a host that passed its role check with a fact would not be elected;
// empty when it would be.
func (s Status) refuses(rules *selector.RoleRules, host string, f *role.Fact) string {
	if rules == nil || f == nil {
		return ""
	}
	h, _ := s.host(host)
	want := rules.Foreign(f, s.Identity)
	switch {
	case want != "":
		return "it belongs to another cluster: its identity is " + f.Identity + ", not " + want
	case f.Role == role.Replica && !rules.Promote:
		return "it is a replica"
	case f.Role == role.Replica && f.Detached:
		return "it follows no primary: its data may not be that of the cluster"
	case f.Role == role.Replica:
		return rules.Refuses(h.Lag)
	case f.Role == role.Primary && !f.Shared && s.Primary != "" && host != s.Primary && f.Term <= s.Term:
		return "it says that it is primary beside " + s.Primary
	}
	return ""
}

// inPreference returns the hosts in the operator's order, but first the one that their roles
// make the best candidate now.
func inPreference(now Status) []selector.Host {
	hosts := slices.Clone(now.Hosts)
	best := slices.IndexFunc(hosts, func(h selector.Host) bool { return h.Name == now.Loss.Host })
	if best > 0 {
		h := hosts[best]
		hosts = slices.Insert(slices.Delete(hosts, best, best+1), 0, h)
	}
	return hosts
}
