package admin

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"understudy/control"
	"understudy/correlate"
	"understudy/failover"
)

// get returns the status, headers and body of a page.
func get(t *testing.T, address string) (int, http.Header, string) {
	t.Helper()
	res, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(body)
}

// The verdict, and the sentence beside it.
func TestVerdict(t *testing.T) {
	now := statusOf(1).Now
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, tt := range []struct {
		name   string
		relays int
		change func(*control.Status)
		want   string // level, word and headline
		first  string // of the problems
	}{
		{"one relay serves", 1, func(*control.Status) {}, "ok serving: db1.orders:5432 has been primary for 77h12m0s (start: first usable host at the start)", ""},
		{"one relay has failed over", 1, func(s *control.Status) { failOver(&s.Relays[0], now) },
			"ok serving: db2.orders:5432 has been primary for 3m33s (failover: db1.orders:5432 is down: tcp: connect: connection refused)", ""},
		{"one relay has no primary", 1, func(s *control.Status) { lose(&s.Relays[0], now) }, "bad no primary: there has been no primary for 8.2s: no host is usable", ""},
		{"one relay switches", 1, func(s *control.Status) { lose(&s.Relays[0], now); s.Relays[0].State = "switching" }, "warn switching: there has been no primary for 8.2s: no host is usable", ""},
		{"the primary is alone", 1, func(s *control.Status) { s.Relays[0].NoStandby = ago(time.Hour) }, "warn no standby: db1.orders:5432 has", ""},
		{"frozen", 1, func(s *control.Status) { s.Relays[0].Frozen = &failover.Lock{By: "anna", Since: ago(time.Hour)} }, "warn frozen: db1.orders:5432 has", ""},
		{"frozen with a primary that is down", 1, func(s *control.Status) {
			s.Relays[0].Frozen = &failover.Lock{By: "anna", Since: ago(time.Hour)}
			s.Relays[0].Hosts[0].State = "down"
		}, "bad primary down: db1.orders:5432 has", ""},
		{"the state is not saved", 1, func(s *control.Status) { s.Relays[0].SaveError = "disk full" }, "warn warning: db1.orders:5432 has", ""},
		{"a check of the primary has failed", 1, func(s *control.Status) { s.Relays[0].Hosts[0].Checks[0].Suspected = true }, "warn suspected: db1.orders:5432 has", ""},
		{"the canary is served", 1, func(s *control.Status) { s.Relays[0].Canary = &control.Canary{Result: "good"} }, "ok serving: db1.orders:5432 has", ""},
		{"the canary is not served", 1, func(s *control.Status) {
			s.Relays[0].Canary = &control.Canary{Result: "failed", OutageAt: ago(time.Minute)}
		}, "bad canary not served: db1.orders:5432 has", ""},
		{"the canary waits", 1, func(s *control.Status) {
			s.Relays[0].Canary = &control.Canary{Result: "good", OutageAt: ago(time.Second)}
		}, "warn canary waits: db1.orders:5432 has", ""},
		{"all of many serve", 60, func(*control.Status) {}, "ok serving: All 60 relays have a primary.", ""},
		{"some of many do not", 60, func(s *control.Status) {
			s.Relays[3].NoStandby = ago(time.Hour)
			lose(&s.Relays[7], now)
		}, "bad no primary: Of 60 relays: 1 without a primary, 1 without a standby.", "bad no primary in reports: there has been no primary for 8.2s: no host is usable"},
		{"no relay", 0, func(*control.Status) {}, "ok up: No relay: this process only answers over HTTP.", ""},
		{"a probe is down", 1, func(s *control.Status) {
			s.Probes = []control.Probe{{Name: "elastic", State: "down", Why: "status 503"}}
		},
			"warn probe down: db1.orders:5432 has", "warn probe down in : probe elastic is down: status 503"},
		{"the reason of a probe names its state", 1, func(s *control.Status) {
			s.Probes = []control.Probe{{Name: "elastic", State: "down", Why: "down: status 503"}}
		},
			"warn probe down: db1.orders:5432 has", "warn probe down in : probe elastic is down: status 503"},
		{"a probe is down, and there is nothing else", 0, func(s *control.Status) {
			s.Probes = []control.Probe{{Name: "elastic", State: "down", Why: "status 503"}}
		},
			"bad probe down: No relay", "bad probe down in : probe elastic is down: status 503"},
		{"the agreement with other instances is in trouble", 1, func(s *control.Status) {
			s.Relays[0].Cluster = &control.Cluster{Name: "main", Member: "p1", Text: "one line", StoreError: "connection refused"}
		},
			"warn cluster: db1.orders:5432 has", ""},
		{"the agreement is not", 1, func(s *control.Status) { s.Relays[0].Cluster = &control.Cluster{Name: "main", Member: "p1"} }, "ok serving: db1.orders:5432 has", ""},
		{"a probe is not known yet", 1, func(s *control.Status) { s.Probes = []control.Probe{{Name: "elastic", State: "unknown"}} }, "warn probe unknown: db1", "warn probe unknown in : probe elastic is unknown"},
		{"a verdict is bad", 1, func(s *control.Status) {
			s.Verdicts = []control.Verdict{{Route: "/ping", Status: 503, At: ago(time.Second), Since: ago(time.Minute), Why: "probe elastic is down"}}
		},
			"warn bad verdict: db1.orders:5432 has", "warn bad verdict in : /ping answers 503: probe elastic is down"},
		{"a verdict is good, one was not asked for, one was bad long ago", 1, func(s *control.Status) {
			s.Verdicts = []control.Verdict{{Route: "/ping", Status: 200, At: ago(time.Second)}, {Route: "/new"}, {Route: "/old", Status: 503, At: ago(unasked)}}
		},
			"ok serving: db1", ""},
		{"an outage", 2, func(s *control.Status) { s.Outage = &correlate.Outage{Text: "all hosts stopped answering"} }, "bad outage: All 2 relays have a primary.", "bad outage in : all hosts stopped"},
		{"two primaries", 2, func(s *control.Status) { s.Disagreements = []correlate.Disagreement{{Text: "one says a, two says b"}} }, "bad two primaries: All 2", "bad two primaries in : one says a"},
		{"a bad configuration", 1, func(s *control.Status) { s.Reload = &control.Reload{At: ago(3 * time.Minute), Error: "line 3: what?"} },
			"warn invalid configuration: db1", "warn invalid configuration in : the configuration was read again 3 min ago and is invalid"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := statusOf(tt.relays)
			tt.change(&s)
			v := newView(s, nil, false)
			if got := string(v.Level) + " " + v.Word + ": " + v.Headline; !strings.HasPrefix(got, tt.want) {
				t.Errorf("the page says %q, want %q", got, tt.want)
			}
			first := ""
			if len(v.Problems) > 0 {
				p := v.Problems[0]
				first = string(p.Level) + " " + p.Word + " in " + p.Relay + ": " + p.Text
			}
			if !strings.HasPrefix(first, tt.first) || tt.first == "" && first != "" {
				t.Errorf("the first problem is %q, want %q", first, tt.first)
			}
		})
	}
}

// What the canary saw is among the facts of its relay and the steps of an election.
func TestCanaryOnPage(t *testing.T) {
	s := statusOf(1)
	texts := func(facts []fact) string {
		var all []string
		for _, f := range facts {
			if strings.Contains(f.Name, "canary") || strings.Contains(f.Name, "outage") {
				all = append(all, f.Name+" "+f.Value+" ("+f.Note+")")
			}
		}
		return strings.Join(all, "; ")
	}
	if got := texts(newView(s, nil, false).Relays[0].Facts); got != "" {
		t.Errorf("without a canary the facts have %q", got)
	}
	s.Relays[0].Canary = &control.Canary{Result: "good", Seconds: 0.0012, Last: 0.412, Over: s.Now.Add(-time.Hour)}
	if got := texts(newView(s, nil, false).Relays[0].Facts); !strings.HasPrefix(got, "canary served in 1.20 ms (a client of the program's own, in no count); its last outage 412 ms (until ") {
		t.Errorf("the facts have %q", got)
	}
	s.Relays[0].Canary = &control.Canary{Result: "failed", Error: "refused", OutageAt: s.Now.Add(-5 * time.Second)}
	if got := texts(newView(s, nil, false).Relays[0].Facts); got != "canary not served for 5 s (refused)" {
		t.Errorf("the facts have %q", got)
	}
	e := failedOver(s.Relays[0], 2, begins, 0.4, 0, 2)
	e.Canary = &failover.CanaryRun{Seconds: 0.412, Attempts: 2, Error: "refused"}
	if got := texts(newElectionView(e, false).Steps); got != "canary 412 ms (attempts that failed or were slow: 2; refused)" {
		t.Errorf("the election has %q", got)
	}
	e.Canary = &failover.CanaryRun{}
	if got := texts(newElectionView(e, false).Steps); !strings.Contains(got, "served all the time") {
		t.Errorf("the election has %q", got)
	}
}

// The picture of an election is to scale, and shows what took longer than predicted.
func TestBars(t *testing.T) {
	r := statusOf(1).Relays[0]
	for _, tt := range []struct {
		name                   string
		detect, trigger, bound float64
		end, boundAt           int
		over                   bool
	}{
		{"half of the prediction", 0.473, 0.5, 2, 150, barBound, false},
		{"more than predicted", 1.473, 1, 2, 375, barBound, true},
		{"much more than predicted", 60, 60, 2, barWidth, barBound, true},
		{"without a prediction", 0.473, 0.5, 0, barBound, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := newElectionView(failedOver(r, 2, begins, tt.detect, tt.trigger, tt.bound), true)
			x := 0
			for _, b := range v.Bars {
				if b.X < x || b.W < 1 {
					t.Errorf("bar %+v begins before %d or is empty", b, x)
				}
				x = b.X + b.W
			}
			if x < tt.end-2 || x > tt.end+2 || v.BoundAt != tt.boundAt || v.Over != tt.over {
				t.Errorf("the bars end at %d, the prediction at %d, over %v; want about %d, %d, %v", x, v.BoundAt, v.Over, tt.end, tt.boundAt, tt.over)
			}
		})
	}
	want := "detect 473 ms, elect 21 ms, fence 4.00 ms, trigger 500 ms, open 2.00 ms"
	if got := newElectionView(failedOver(r, 2, begins, 0.473, 0.5, 2), true).Label; got != want {
		t.Errorf("the picture is described as %q, want %q", got, want)
	}
}

// The page has what the status says of databases, of the cluster, and of clients that are
// being connected; and who gave an order, and why, in its line.
func TestWhatElseIsShown(t *testing.T) {
	s := newStage(1, false)
	lag, secs := uint64(4711), 1.5
	r := &s.status.Relays[0]
	r.Hosts[0].Role = &control.Role{Role: "primary"}
	r.Hosts[1].Role = &control.Role{Role: "replica", Bytes: &lag, Seconds: &secs}
	r.Hosts[2].Role = &control.Role{Role: "primary"}
	r.Hosts[2].Drained = &failover.Lock{Since: begins, By: "anna"}
	r.Loss = &failover.Loss{Host: "db2.orders:5432", Bytes: &lag}
	r.Cluster = &control.Cluster{Name: "main", Member: "p1", Text: "db1.orders:5432 was agreed on", Isolated: true}
	r.Pacing = &control.PacingProgress{Waited: 90, Turns: 40, Rate: 50}
	s.elections = []control.Event{
		{Incident: failover.Incident{ID: 2, Relay: "orders", Event: failover.OrderDrain, Reason: "drain by anna (page, from 192.0.2.7): new disk", Outcome: failover.CarriedOut, Order: &failover.Ordered{At: begins, Host: "db3.orders:5432"}}},
		{Incident: failover.Incident{ID: 1, Relay: "orders", Event: "failover", New: "db1.orders:5432", Outcome: failover.Open, Loss: &failover.Loss{Host: "db1.orders:5432"}}},
	}
	_, _, page := get(t, s.serve(t)+"/")
	for _, want := range []string{
		`<td class="text"></td>`, // of the primary
		`<td class="text">says replica, 4711 bytes behind, for 1.50 s</td>`,
		` by anna; says primary</td>`,
		`<dt>a failover now</dt><dd>db2.orders:5432 lacks 4711 bytes</dd>`,
		`<dt>cluster main</dt><dd>db1.orders:5432 was agreed on</dd>`,
		`<b>cluster</b> isolated: 0 of 0 instances see the primary down`,
		`<b>connecting</b> 40 of 90 clients that waited, 50 a second`,
		`<span class="order">by anna (page, from 192.0.2.7): new disk</span>`,
		`<th scope="row">loss</th><td class="n"></td><td>db1.orders:5432 lacks nothing</td>`,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	if strings.Count(page, `class="bars"`) != 1 || strings.Count(page, `class="order"`) != 1 {
		t.Error("an order has a picture of phases, or an election has none")
	}
}

// A standby is a host that could take over: those that failed often, or of which one check
// has just failed, are counted, as in the metric host_usable.
func TestStandbys(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(h *control.Host)
		want   string
	}{
		{"up", func(*control.Host) {}, "2 of 2"},
		{"guarded", func(h *control.Host) { h.Guarded, h.Why = true, h.Name+" failed 5 times in ten minutes" }, "2 of 2"},
		{"suspected", func(h *control.Host) { h.Checks = []control.Check{{Name: "tcp", Suspected: true}} }, "2 of 2"},
		{"down", func(h *control.Host) { h.State = "down" }, "1 of 2"},
		{"unknown", func(h *control.Host) { h.State = "unknown" }, "1 of 2"},
		{"drained", func(h *control.Host) { h.Drained = &failover.Lock{} }, "1 of 2"},
		{"rejected", func(h *control.Host) { h.Rejected = true }, "1 of 2"},
	} {
		s := statusOf(1)
		tt.change(&s.Relays[0].Hosts[1])
		v := newView(s, nil, false).Relays[0]
		if v.Standbys != tt.want {
			t.Errorf("a host that is %s: %s standby, want %s", tt.name, v.Standbys, tt.want)
		}
		if tt.name == "guarded" && v.Hosts[1].Note != "failed 5 times in ten minutes" {
			t.Errorf("the note of a guarded host is %q", v.Hosts[1].Note)
		}
	}
}

func TestTook(t *testing.T) {
	for seconds, want := range map[float64]string{
		0.00004: "0.04 ms", 0.0123: "12 ms", 1.5: "1.50 s", 59.99: "59.99 s", 60: "1 min 0 s", 161.5: "2 min 41 s", 3599: "59 min 59 s", 4000: "1 h 6 min",
	} {
		if got := took(seconds); got != want {
			t.Errorf("took(%v) = %q, want %q", seconds, got, want)
		}
	}
}

// Names of hosts, reasons and the output of scripts come from elsewhere: nothing of them
// becomes a part of the page.
func TestHostileText(t *testing.T) {
	const evil = `"><script>document.title='owned'</script><img src=http://192.0.2.1/x onerror=alert(1)> {{.}} ' javascript:alert(1)` + "\r\nevent: html\r\ndata: x\n\n"
	s := newStage(2, true)
	hostile(&s.status, evil)
	s.elections = []control.Event{{Incident: failover.Incident{ID: 1, Relay: evil, Event: evil, Old: evil, New: evil, Reason: evil, By: evil, Failure: evil, Outcome: evil,
		FirstBad: &failover.BadCheck{Check: evil, Error: evil}, Triggers: []failover.TriggerRun{{Script: evil, Status: evil, Output: evil, Seconds: 1}}}}}
	base := s.serve(t)
	_, _, page := get(t, base+"/")
	w, _ := watch(t, base+"/stream", "")
	for _, e := range w.batch() {
		page += e.data
		if e.name != "html" && e.name != "tick" {
			t.Errorf("text of others made an event %q", e.name)
		}
	}
	for _, bad := range []string{"<script>document", "<img", `src="http`, `href="javascript`} {
		if strings.Contains(page, bad) {
			i := strings.Index(page, bad)
			t.Errorf("the page contains %q: …%s…", bad, page[max(0, i-80):i+80])
		}
	}
	if n := strings.Count(page, "<script"); n != 1 {
		t.Errorf("%d scripts, want the page's own", n)
	}
	if !strings.Contains(page, "&lt;script&gt;") {
		t.Error("the page does not show the text itself")
	}
}

// hostile puts text everywhere.
func hostile(s *control.Status, text string) {
	r := &s.Relays[0]
	r.Name, r.Why, r.Reason, r.Primary, r.Listen, r.Warnings, r.SaveError = text, text, text, text, []string{text}, []string{text}, text
	r.Frozen = &failover.Lock{By: text, Reason: text}
	r.Scheduled = &failover.Scheduled{Host: text, By: text, Reason: text}
	r.Progress = &failover.Progress{Host: text, Step: failover.StageTrigger, Script: text}
	for i := range r.Hosts {
		h := &r.Hosts[i]
		h.Name, h.Why, h.State, h.Address, h.Drained = text, text, text, &control.Address{Address: text}, &failover.Lock{By: text, Reason: text}
		h.Checks = []control.Check{{Name: text, State: "down", Last: &control.Result{Phase: text, Error: text}}}
	}
	s.Version = text
	s.Outage = &correlate.Outage{Text: text}
	s.Verdicts = []control.Verdict{{Route: text, Status: 503, At: s.Now, Why: text}}
	s.Probes = []control.Probe{{Name: text, State: text, Why: text, Last: &control.Result{Error: text}}}
	s.Reload = &control.Reload{Error: text}
}

// Every answer forbids what the page does not need.
func TestHeaders(t *testing.T) {
	s := newStage(1, false)
	base := s.serve(t)
	for path, kind := range map[string]string{
		"/": "text/html; charset=utf-8", "/page.css": "text/css; charset=utf-8", "/page.js": "text/javascript; charset=utf-8",
		"/icon.svg": "image/svg+xml", "/icon.svg?level=bad": "image/svg+xml", "/status.txt": "text/plain; charset=utf-8",
	} {
		status, h, body := get(t, base+path)
		if status != http.StatusOK || h.Get("Content-Type") != kind || body == "" {
			t.Errorf("%s: %d, %s, %d bytes", path, status, h.Get("Content-Type"), len(body))
		}
		csp := h.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"} {
			if !strings.Contains(csp, want) {
				t.Errorf("%s: the policy %q lacks %s", path, csp, want)
			}
		}
		if strings.Contains(csp, "unsafe") || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cache-Control") != "no-store" || h.Get("Set-Cookie") != "" {
			t.Errorf("%s: headers %v", path, h)
		}
	}
	if _, _, text := get(t, base+"/status.txt"); text != "1 relays\n" {
		t.Errorf("status.txt is %q", text)
	}
	// Without orders there is nothing to act with.
	_, _, page := get(t, base+"/")
	for _, path := range []string{"/act?verb=drill&relay=orders", "/nothing", "/page.html", "/act.html"} {
		if status, _, _ := get(t, base+path); status != http.StatusNotFound {
			t.Errorf("%s: status %d, want 404", path, status)
		}
	}
	if strings.Contains(page, "act?") {
		t.Error("the page has buttons")
	}
}
