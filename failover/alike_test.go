package failover

import (
	"errors"
	"testing"
	"time"

	"understudy/internal/role"
	"understudy/relay"
	"understudy/selector"
)

// Two states of a relay are alike until something in them differs that people see at once.
func TestAlike(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 27, 9, 0, 0, 0, time.UTC)
	state := func() *Status {
		check := func() []selector.Record {
			return []selector.Record{{Name: "tcp", State: selector.Up, Last: selector.CheckResult{At: at, OK: true, Latency: time.Millisecond}}}
		}
		return &Status{
			Snapshot: selector.Snapshot{
				Phase: selector.Serving, Since: at, Epoch: 3, Primary: "a", Elect: "a",
				Hosts: []selector.Host{{Name: "a", State: selector.Up, Since: at, Checks: check()}, {Name: "b", State: selector.Up, Since: at, Checks: check()}},
			},
			Relay: "orders", Elected: at, Locks: []Lock{{Kind: Drain, Host: "c", Since: at}}, Save: SaveState{Kept: true},
			Canary: &CanaryStatus{Last: CanaryGood, LastAt: at, Took: time.Millisecond},
		}
	}
	last := func(s *Status) *selector.CheckResult { return &s.Hosts[1].Checks[0].Last }
	for name, change := range map[string]func(*Status){
		"nothing":                  func(*Status) {},
		"the time of a check":      func(s *Status) { last(s).At = at.Add(time.Second) },
		"how long it took":         func(s *Status) { last(s).Latency = time.Second },
		"the streak":               func(s *Status) { s.Hosts[1].Checks[0].Streak++ },
		"a check under way":        func(s *Status) { s.Hosts[1].Checks[0].InFlight++ },
		"how long an attempt took": func(s *Status) { s.Canary.Took, s.Canary.LastAt = time.Second, at.Add(time.Second) },
	} {
		s := state()
		if change(s); !Alike(state(), s) || !Alike(s, state()) {
			t.Errorf("%s: not alike", name)
		}
	}
	for name, change := range map[string]func(*Status){
		"phase":             func(s *Status) { s.Phase = selector.Switching },
		"since":             func(s *Status) { s.Since = at.Add(time.Second) },
		"epoch":             func(s *Status) { s.Epoch++ },
		"primary":           func(s *Status) { s.Primary = "" },
		"elect":             func(s *Status) { s.Elect = "b" },
		"elected":           func(s *Status) { s.Elected = at.Add(time.Second) },
		"retry":             func(s *Status) { s.RetryAt = at },
		"awaited":           func(s *Status) { s.Awaited = "b" },
		"planned":           func(s *Status) { s.Planned = "b" },
		"verifying":         func(s *Status) { s.Verifying = true },
		"writers":           func(s *Status) { s.Writers = []string{"a", "b"} },
		"frozen":            func(s *Status) { s.Frozen = true },
		"lock":              func(s *Status) { s.Locks = nil },
		"who set a lock":    func(s *Status) { s.Locks[0].By = "anna" },
		"end of a lock":     func(s *Status) { s.Locks[0].Until = at },
		"schedule":          func(s *Status) { s.Scheduled = &Scheduled{} },
		"drill":             func(s *Status) { s.GoodDrill = at },
		"standby":           func(s *Status) { s.NoStandby = at },
		"disk":              func(s *Status) { s.Save = SaveState{Error: errors.New("full"), Since: at} },
		"silence":           func(s *Status) { s.Silence = relay.Silence{InARow: 1000, Several: true, Since: at} },
		"cluster":           func(s *Status) { s.Cluster = &ClusterStatus{} },
		"canary":            func(s *Status) { s.Canary = nil },
		"canary fails":      func(s *Status) { s.Canary.Last, s.Canary.LastError = CanaryFailed, errors.New("refused") },
		"canary waits":      func(s *Status) { s.Canary.Since = at },
		"host":              func(s *Status) { s.Hosts = s.Hosts[:1] },
		"state of a host":   func(s *Status) { s.Hosts[1].State = selector.Down },
		"host since":        func(s *Status) { s.Hosts[1].Since = at.Add(time.Second) },
		"role":              func(s *Status) { s.Hosts[1].Says = role.Primary },
		"drained":           func(s *Status) { s.Hosts[1].Drained = true },
		"rejected":          func(s *Status) { s.Hosts[1].Rejected = true },
		"guarded":           func(s *Status) { s.Hosts[1].Guarded = true },
		"state of a check":  func(s *Status) { s.Hosts[1].Checks[0].State = selector.Unknown },
		"suspected":         func(s *Status) { s.Hosts[1].Checks[0].Suspected = true },
		"failed":            func(s *Status) { last(s).OK = false },
		"unknown":           func(s *Status) { last(s).Unknown = true },
		"how it failed":     func(s *Status) { last(s).Phase = "read" },
		"why it failed":     func(s *Status) { last(s).Err = errors.New("refused") },
		"no result":         func(s *Status) { last(s).At = time.Time{} },
		"canary has failed": func(s *Status) { s.Canary.Error = errors.New("refused") },
		"canary is back":    func(s *Status) { s.Canary.Over = at },
	} {
		s := state()
		if change(s); Alike(state(), s) || Alike(s, state()) {
			t.Errorf("%s: alike", name)
		}
	}
}
