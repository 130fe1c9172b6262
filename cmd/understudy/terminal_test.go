package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy/control"
	"understudy/failover"
	"understudy/internal/safetext"
	"understudy/selector"
)

var update = flag.Bool("update", false, "write the golden files anew")

// moment is the time of everything below, wherever the test runs.
var moment = time.Date(2026, 3, 14, 3, 12, 44, 0, time.Local)

func before(d time.Duration) time.Time { return moment.Add(-d) }

// renderings are the outputs for operators, each made from constant values.
func renderings() map[string]func(t *terminal) error {
	s := someStatus()
	one := s.Relays[0]
	one.Hosts = one.Hosts[2:3]
	return map[string]func(t *terminal) error{
		"status":        func(t *terminal) error { return t.status(s) },
		"status-probes": func(t *terminal) error { return t.status(answering()) },
		"status-no-standby": func(t *terminal) error {
			s := someStatus()
			s.Relays = s.Relays[:1]
			s.Relays[0].NoStandby = before(3 * time.Minute)
			return t.status(s)
		},
		"status-none":  func(t *terminal) error { return t.status(control.Status{}) },
		"why":          func(t *terminal) error { return t.why(s.Relays[0], moment, false) },
		"why-host":     func(t *terminal) error { return t.why(one, moment, true) },
		"why-warning":  func(t *terminal) error { return t.why(s.Relays[1], moment, false) },
		"drill-good":   func(t *terminal) error { return t.drill(goodDrill()) },
		"drill-bad":    func(t *terminal) error { return t.drill(badDrill()) },
		"predict":      func(t *terminal) error { return t.prediction(somePrediction()) },
		"events":       func(t *terminal) error { return t.incident(failedOver()) },
		"events-abort": func(t *terminal) error { return t.incident(abortedSwitchover()) },
		"events-order": func(t *terminal) error {
			return errors.Join(t.incident(remoteDrain()), t.incident(failedDrill()), t.incident(memberAdded()))
		},
	}
}

// answering is a process that only answers, and whose file has become invalid.
func answering() control.Status {
	return control.Status{Now: moment,
		Verdicts: []control.Verdict{
			{Route: "/ping", Status: 503, At: before(2 * time.Second), Since: before(11 * time.Minute), Why: "probe search is down", Requests: 39_000, Bad: 412},
			{Route: "/heartbeat", Status: 200, At: before(10 * time.Minute), Since: before(75 * time.Hour), Requests: 4000},
			{Route: "/new"},
		},
		Probes: []control.Probe{
			{Name: "elastic", State: "up", Since: before(75 * time.Hour)},
			{Name: "search", State: "down", Since: before(11 * time.Minute), Why: "down: criteria: body \"yellow\" does not match \"^green\""},
			{Name: "backup", State: "down", Stale: true, Since: before(4 * time.Second), Why: "stale: no result for 12s"},
			{Name: "new", State: "unknown", Why: "not known yet"},
		},
		Reload: &control.Reload{At: before(90 * time.Second), By: "anna",
			Error: "/etc/understudy/understudy.yaml:4: relays[0].hots: unknown key: did you mean hosts?\n/etc/understudy/understudy.yaml:9: probes.search.timeout: \"soon\" is not a duration"},
	}
}

func someStatus() control.Status {
	freeze := failover.Lock{Kind: failover.Freeze, By: "anna as root", Reason: "no change before the auditors have left the building", Since: before(2 * time.Hour), Until: moment.Add(3 * time.Hour)}
	drained := failover.Lock{Kind: failover.Drain, Host: "db3.example:5432", By: "root", Reason: "new disk", Since: before(26 * time.Hour)}
	ok := func(name string, streak int, took float64) control.Check {
		return control.Check{Name: name, State: "up", Streak: streak, Last: &control.Result{At: before(400 * time.Millisecond), OK: true, Seconds: took}}
	}
	return control.Status{Version: "v1", PID: 4711, Now: moment, Relays: []control.RelayStatus{
		{
			Name: "orders", Listen: []string{"[::]:5432", "/run/orders.sock"}, State: "serving", Since: before(75 * time.Hour), Primary: "db1.example:5432",
			Elect: "db1.example:5432", Elected: before(75 * time.Hour), Epoch: 7, Event: "failover", Reason: "db2.example:5432 is down: tcp: connection refused",
			Why:    "db1.example:5432 has been primary for 75h0m0s (failover: db2.example:5432 is down: tcp: connection refused)",
			Frozen: &freeze, GoodDrill: before(20 * 24 * time.Hour), Rise: 2, Fall: 3,
			Pacing:  &control.PacingProgress{Waited: 4000, Turns: 60, Rate: 100, Seconds: 1.1},
			Canary:  &control.Canary{Result: "good", At: before(300 * time.Millisecond), Seconds: 0.0014, Last: 0.412, Over: before(75 * time.Hour)},
			Clients: control.Clients{Queued: 1, Held: 2, Live: 120, Accepted: 1234567, Finished: 1234000, Reset: 400, Fenced: 40, Expired: 3, Aborted: 4},
			Hosts: []control.Host{
				{Name: "db1.example:5432", State: "up", Since: before(75 * time.Hour), Primary: true, Address: &control.Address{
					Address: "192.0.2.1", Confirmed: before(45 * time.Second), Source: "name server 192.0.2.53:53", Others: []string{"192.0.2.9"},
					Error: "lookup db1.example on 192.0.2.53:53: no such host",
				}, Checks: []control.Check{
					{Name: "tcp", State: "up", Streak: -1, Suspected: true, Last: &control.Result{At: before(30 * time.Millisecond), Phase: "connect", Error: "i/o timeout", Seconds: 1.0001}},
					ok("http:8008", 9000, 0.0123),
				}},
				{Name: "db2.example:5432", State: "down", Since: before(11 * time.Minute), Failures: 4, PenaltySeconds: 80, Guarded: true,
					Why: "db2.example:5432 is not usable: tcp: dial tcp 192.0.2.2:5432: connect: connection refused", Checks: []control.Check{
						{Name: "tcp", State: "down", Streak: -40, Last: &control.Result{At: before(time.Second), Phase: "connect", Error: "dial tcp 192.0.2.2:5432: connect: connection refused", Seconds: 0.00031}},
						{Name: "http:8008", State: "unknown"},
					}},
				{Name: "db3.example:5432", State: "up", Since: before(100 * time.Second), Drained: &drained,
					Why: "db3.example:5432 is not elected: it is drained by root since 2026-03-13 01:12:44 (new disk)", Checks: []control.Check{
						ok("tcp", 100, 0.0009),
						{Name: "http:8008", State: "down", Streak: 1, Last: &control.Result{At: before(time.Second), OK: false, Unknown: true, Phase: "connect", Error: "no descriptors left", Seconds: 0}},
					}},
			},
		},
		{
			SaveError: "open /var/lib/understudy/mail.json.new: no space left on device", SaveFails: before(7 * time.Minute),
			Name: "mail", Listen: []string{"192.0.2.7:25"}, State: "selecting", Since: before(3 * time.Second), RetryAt: moment.Add(2 * time.Second), Why: "there has been no primary for 3s: no host is usable",
			Warnings: []string{"all 4 hosts of 2 relays stopped answering within 0.4 s: this machine's network is the likely cause (link eth0 is down; there is no default route)"},
			Hosts:    []control.Host{{Name: "unix:/run/a/rather/long/path/of/a/socket/that/fills/the/line.sock", State: "unknown", Checks: []control.Check{{Name: "tcp", State: "unknown"}}}},
		},
	}}
}

func goodDrill() failover.DrillReport {
	return failover.DrillReport{
		At: moment, Host: "db1:5432", Candidate: "db2:5432", OK: true, Text: "db2:5432 would take over from db1:5432",
		Steps: []failover.Step{
			{Host: "db2:5432", Name: "tcp", OK: true, Seconds: 0.0004},
			{Host: "db2:5432", Name: "/etc/understudy/triggers.d/10-promote", OK: true, Seconds: 1.25, Detail: `would promote db2\nand tell the others\n`},
		},
		Candidates: []failover.Candidate{{Host: "db3:5432", Reason: "passes too, and comes later in order"}},
		Seconds:    1.2504, BoundSeconds: 32.8,
	}
}

func badDrill() failover.DrillReport {
	return failover.DrillReport{
		At: moment, Host: "db1:5432", Candidate: "db2:5432", Text: "the trigger 10-promote fails: exit status 1",
		Steps: []failover.Step{{Host: "db2:5432", Name: "10-promote", Seconds: 0.01, Phase: "script", Detail: `exit status 1: cannot reach the registry at registry.example\nand gave up after three attempts, so nothing was promoted`}}, Seconds: 0.01,
	}
}

func somePrediction() failover.Prediction {
	p := failover.Prediction{
		Warnings: []string{"3 × trigger-timeout 30s is longer than hold 10s: clients are refused while a slow trigger runs"},
		Waits:    []failover.Wait{{Clients: 100, Rate: 50, Seconds: 1.34}, {Clients: 1000, Rate: 133.3, Seconds: 3.02}},
		Notes:    []string{"a primary that is silent for less than 1.2s stays (timeout 1s + 2 × fast-interval 100ms); one that is silent for 1.1s longer is down"},
	}
	for _, f := range []failover.Failure{failover.Refused, failover.Hung} {
		for _, traffic := range []bool{true, false} {
			c := failover.Case{Failure: f, Traffic: traffic, DetectSeconds: 0.3, ElectSeconds: 1.5, TriggersSeconds: 90, TotalSeconds: 91.8,
				Formula: "detect: 3 × fast-interval 100ms; elect: timeout 1s + overhead 500ms; triggers: 3 × trigger-timeout 30s"}
			if !traffic {
				c.DetectSeconds, c.TotalSeconds, c.Formula = 1.3, 92.8, strings.Replace(c.Formula, "detect: ", "detect: interval 1s + ", 1)
			}
			if f == failover.Hung {
				c = failover.Case{Failure: f, Traffic: traffic, Never: true, Formula: "only the TCP connect is checked: add a pong port or a check script, or let check-tcp read the greeting"}
			}
			p.Cases = append(p.Cases, c)
		}
	}
	return p
}

func failedOver() failover.Incident {
	return failover.Incident{
		ID: 12, Relay: "orders", Event: selector.Failover, Epoch: 7, Old: "db2.example:5432", New: "db1.example:5432", Outcome: failover.Open, Done: true,
		Reason:    "db2.example:5432 is down: tcp: dial tcp 192.0.2.2:5432: connect: connection refused",
		FirstBad:  &failover.BadCheck{At: moment, Check: "tcp", Phase: "connect", Error: "dial tcp 192.0.2.2:5432: connect: connection refused"},
		Suspected: moment.Add(time.Millisecond), Lost: moment.Add(210 * time.Millisecond), Elected: moment.Add(214 * time.Millisecond),
		Fence:    &failover.FenceRun{Finished: 2, Reset: 117, Moved: 1, Seconds: 0.0031},
		Triggers: []failover.TriggerRun{{Script: "/etc/understudy/triggers.d/10-promote", Status: "exit status 0", Seconds: 0.41, Output: `waiting for db1\npromoted`}},
		Opened:   moment.Add(640 * time.Millisecond), FirstByte: moment.Add(652 * time.Millisecond), ClientsHeld: 31, ClientsLost: 0,
		Canary:        &failover.CanaryRun{Began: moment, Seconds: 0.645, Attempts: 2, Error: "connection refused"},
		Pacing:        &failover.Pacing{Turns: 33, FirstRate: 50, PeakRate: 100, Slowed: 2, Seconds: 0.41},
		DetectSeconds: 0.21, ElectSeconds: 0.004, SwitchSeconds: 0.426, TotalSeconds: 0.64, BoundSeconds: 0.5, OverBound: true,
	}
}

func remoteDrain() failover.Incident {
	return failover.Incident{
		ID: 14, Relay: "orders", Event: failover.OrderDrain, Epoch: 8, Outcome: failover.CarriedOut, Done: true, Reason: "drain by anna as root: new disk", By: "anna as root",
		Order: &failover.Ordered{At: moment, Host: "db3.example:5432", Until: moment.Add(2 * time.Hour), Remote: true},
	}
}

func failedDrill() failover.Incident {
	return failover.Incident{
		ID: 15, Relay: "orders", Event: failover.OrderDrill, Epoch: 8, Outcome: failover.DrillFailed, Done: true, Reason: "drill by root", By: "root",
		Failure: "no host would take over from db1.example:5432",
		Order:   &failover.Ordered{At: moment, Host: "db1.example:5432", Result: "no host would take over from db1.example:5432"},
	}
}

func memberAdded() failover.Incident {
	return failover.Incident{
		ID: 16, Relay: "orders", Event: failover.OrderAdd, Epoch: 8, Outcome: failover.CarriedOut, Done: true, Reason: "cluster-add by anna as root: third machine", By: "anna as root",
		Order: &failover.Ordered{At: moment, Member: "proxy-c", Remote: true},
	}
}

func abortedSwitchover() failover.Incident {
	return failover.Incident{
		ID: 13, Relay: "orders", Event: selector.Switchover, Epoch: 8, Old: "db1.example:5432", New: "db2.example:5432", Outcome: failover.Aborted, Done: true,
		Reason: "switch: kernel update", By: "anna as root", Failure: "the trigger 10-promote failed: timed out after 30s", Elected: moment,
		Fence:    &failover.FenceRun{},
		Triggers: []failover.TriggerRun{{Script: "10-promote", Status: "timed out after 30s", Failed: true, Seconds: 30}},
	}
}

// TestRenderings compares with testdata/terminal; -update rewrites it.
func TestRenderings(t *testing.T) {
	for name, write := range renderings() {
		for _, to := range []terminal{{}, {width: 80}, {width: 80, colour: true}} {
			file := name + ".pipe"
			switch {
			case to.colour:
				file = name + ".colour"
			case to.width > 0:
				file = fmt.Sprintf("%s.%d", name, to.width)
			}
			t.Run(file, func(t *testing.T) {
				var out bytes.Buffer
				to.w = &out
				if err := write(&to); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join("testdata", "terminal", file)
				if *update {
					if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(want), out.String()); diff != "" {
					t.Errorf("%s (-want +got):\n%s", path, diff)
				}
			})
		}
	}
}

// TestLinesFitEveryTerminal uses widths without a file in testdata.
func TestLinesFitEveryTerminal(t *testing.T) {
	for name, write := range renderings() {
		for width := leastWidth; width <= 200; width += 1 + width/20 {
			var out bytes.Buffer
			if err := write(&terminal{w: &out, width: width, colour: width%2 == 0}); err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(colours.ReplaceAllString(out.String(), "")) {
				line = strings.TrimSuffix(line, "\n")
				if n := runes(line); n > width {
					t.Errorf("%s: a line of %d columns on a terminal of %d: %q", name, n, width, line)
				}
				if strings.TrimRight(line, " ") != line {
					t.Errorf("%s: spaces at the end of %q", name, line)
				}
			}
		}
	}
}

// TestNothingIsLostOnNarrowTerminals compares the words of tables that break
// their sentences with those that a pipe gets.
func TestNothingIsLostOnNarrowTerminals(t *testing.T) {
	text := func(width int) string {
		var out bytes.Buffer
		if err := (&terminal{w: &out, width: width}).drill(badDrill()); err != nil {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(out.String()), "")
	}
	if diff := cmp.Diff(text(0), text(100)); diff != "" {
		t.Error(diff)
	}
}

// TestControlCharactersAreNotPrinted puts cursor movements and other control
// characters into every text that comes from a host, a script or another
// operator.
func TestControlCharactersAreNotPrinted(t *testing.T) {
	const evil = "a\x1b[2J\x1b]0;title\x07\r\n\tb\x7f\u009b31m\u202e\x9bc\x00"
	s := someStatus()
	for i := range s.Relays {
		r := &s.Relays[i]
		r.Name, r.Reason, r.Why, r.Elect, r.Event = evil, evil, evil, evil, evil
		r.Listen, r.Warnings = []string{evil}, []string{evil}
		r.Frozen = &failover.Lock{By: evil, Reason: evil}
		if r.Primary != "" {
			r.Primary = evil
		}
		for k := range r.Hosts {
			h := &r.Hosts[k]
			h.Name, h.Why, h.Drained = evil, evil, &failover.Lock{By: evil, Reason: evil}
			h.Checks = []control.Check{{Name: evil, State: "down", Streak: -1, Last: &control.Result{Phase: evil, Error: evil}}}
		}
	}
	one := s.Relays[0]
	one.Hosts = one.Hosts[:1]
	i := failedOver()
	i.Relay, i.Reason, i.By, i.Failure, i.Old, i.New, i.FirstBad.Error = evil, evil, evil+"x", evil, evil, evil, evil
	i.Triggers = []failover.TriggerRun{{Script: evil, Status: evil, Output: evil}}
	d := badDrill()
	d.Text, d.Steps[0].Name, d.Steps[0].Detail = evil, evil, evil
	d.Candidates = []failover.Candidate{{Host: evil, Reason: evil}}
	p := failover.Prediction{Warnings: []string{evil}, Notes: []string{evil}, Cases: []failover.Case{{Failure: evil, Formula: evil}}}

	forbidden := regexp.MustCompile(`[^\n\P{C}]`)
	for _, width := range []int{0, 80} {
		var out bytes.Buffer
		to := &terminal{w: &out, width: width}
		for _, err := range []error{to.status(s), to.why(s.Relays[0], moment, false), to.why(one, moment, true), to.incident(i), to.drill(d), to.prediction(p)} {
			if err != nil {
				t.Error(err)
			}
		}
		for _, bad := range forbidden.FindAllString(out.String(), -1) {
			t.Errorf("width %d: %q is printed", width, bad)
		}
	}
	if got, want := safetext.Terminal(evil), "a·[2J·]0;title·   b··31m·�c·"; got != want {
		t.Errorf("safetext.Terminal gives %q, want %q", got, want)
	}
}

func TestPageTakesTheScreen(t *testing.T) {
	text := []byte("1\n2\n3\n4\n")
	for _, c := range []struct {
		to   terminal
		want string
	}{
		{terminal{}, "1\n2\n3\n4\n"},
		{terminal{width: 80, height: 5}, "\x1b[H1\x1b[K\n2\x1b[K\n3\x1b[K\n4\x1b[K\n\x1b[J"},
		{terminal{width: 80, height: 4}, "\x1b[H1\x1b[K\n2\x1b[K\n…\x1b[K\n\x1b[J"},
		{terminal{width: 80}, "\x1b[H1\x1b[K\n2\x1b[K\n3\x1b[K\n4\x1b[K\n\x1b[J"},
	} {
		if got := string(c.to.page(text)); got != c.want {
			t.Errorf("height %d: %q, want %q", c.to.height, got, c.want)
		}
	}
}

func TestSpans(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 40 * time.Millisecond: "0s", 1234 * time.Millisecond: "1.2s", 75 * time.Second: "1m15s",
		time.Hour: "1h0m", 26*time.Hour + 3*time.Minute: "26h3m", 75 * time.Hour: "3d3h", 8765 * time.Hour: "365d5h",
	} {
		if got := span(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}

// What status says of a canary.
func TestCanaryText(t *testing.T) {
	for _, tt := range []struct {
		canary control.Canary
		want   string
	}{
		{control.Canary{}, "no attempt yet"},
		{control.Canary{Result: "good", Seconds: 0.0014}, "good in 1.4ms"},
		{control.Canary{Result: "failed", Seconds: 1, Error: "no pong", OutageAt: moment.Add(-5 * time.Second), OutageWhy: "no pong"}, "not served for 5s: no pong"},
		{control.Canary{Result: "good", OutageAt: moment.Add(-2 * time.Second)}, "not served for 2s"},
		{control.Canary{Result: "local", Error: "too many open files"}, "local in 0s: too many open files"},
	} {
		if got := canaryText(tt.canary, moment); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.canary, got, tt.want)
		}
	}
	if got := canarySaw(failover.CanaryRun{}); got != "was served all the time" {
		t.Errorf("an election without an outage: %q", got)
	}
}
