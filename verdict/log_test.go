package verdict

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"

	"understudy/internal/proctest"
)

// 39 probes a minute, and a health check every five seconds, are a record a minute;
// a change is one at once.
func TestWhichVerdictsAreRecorded(t *testing.T) {
	good := verdict{ok: true, status: 200}
	bad := verdict{status: 500, replies: []reply{{port: 3000, status: 500, err: errors.New("refused")}}}
	worse := verdict{status: 500, replies: []reply{{port: 3000, status: 500, err: errors.New("refused")}, {port: 3001, status: 500, err: errors.New("refused")}}}
	for _, tt := range []struct {
		which     Which
		good, bad int // records
	}{{All, 11 * 51, 51}, {Bad, 0, 51}, {Changes, 10 + 1, 2}, {None, 0, 0}} {
		synctest.Test(t, func(t *testing.T) {
			log := NewLog(io.Discard, io.Discard, false, nil)
			log.Record(tt.which)
			var route recorded
			taken := map[bool]int{}
			give := func(agent string, v verdict) {
				r := httptest.NewRequest(http.MethodGet, "/ping", http.NoBody)
				r.RemoteAddr = "127.0.0.1:1"
				r.Header.Set("User-Agent", agent)
				if _, take := log.takes(&route, r, v, time.Now()); take {
					taken[v.ok]++
				}
			}
			minute := func(v verdict) {
				for range 39 {
					give("Cloudflare", v)
				}
				for range 12 {
					give(ownAgent, v)
					time.Sleep(5 * time.Second)
				}
			}
			for range 10 {
				minute(good)
			}
			for range 25 {
				give("Cloudflare", bad)
			}
			for range 26 {
				give("Cloudflare", worse)
			}
			minute(good)
			if taken[true] != tt.good || taken[false] != tt.bad {
				t.Errorf("%d: %d good and %d bad records, want %d and %d", tt.which, taken[true], taken[false], tt.good, tt.bad)
			}
		})
	}
}

// A health check of the container alone is one record, until it changes.
func TestOwnHealthChecksAreNoNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := NewLog(io.Discard, io.Discard, false, nil)
		log.Record(Changes)
		var route recorded
		r := httptest.NewRequest(http.MethodGet, "/ping", http.NoBody)
		r.RemoteAddr = "127.0.0.1:1"
		r.Header.Set("User-Agent", ownAgent)
		records := 0
		for range 17_280 {
			if _, take := log.takes(&route, r, verdict{ok: true, status: 200}, time.Now()); take {
				records++
			}
			time.Sleep(5 * time.Second)
		}
		r.RemoteAddr = "192.0.2.1:1" // another machine's understudy
		alike, take := log.takes(&route, r, verdict{ok: true, status: 200}, time.Now())
		if records != 1 || alike != 17_279 || !take {
			t.Errorf("%d records in a day, and then %v with %d alike, want 1, and one with 17279", records, take, alike)
		}
	})
}

func TestVerdictText(t *testing.T) {
	when := time.Date(2025, 10, 29, 14, 56, 59, 7e6, time.FixedZone("", 3600))
	pong := []reply{
		{port: 3000, status: 200, body: []byte("pong"), took: 8 * time.Millisecond},
		{port: 3001, status: 200, body: []byte("pong"), took: 12 * time.Millisecond},
	}
	for _, tt := range []struct {
		name    string
		request string
		v       verdict
		want    string
	}{
		{"good", "GET /ping HTTP/1.1", verdict{ok: true, status: 200, replies: pong}, `127.0.0.1 - - [2025-10-29T14:56:59.007+0100] "GET /ping HTTP/1.1" 200
- Port 3000 → Status: 200, Body: pong.., Time: 0.008s
- Port 3001 → Status: 200, Body: pong.., Time: 0.012s
`},
		{"shared", "GET /ping HTTP/1.1", verdict{ok: true, status: 200, replies: pong, shared: true}, `127.0.0.1 - - [2025-10-29T14:56:59.007+0100] "GET /ping HTTP/1.1" 200 shared
`},
		{"a reason", "HEAD /ping HTTP/1.0", verdict{status: 500, replies: []reply{
			{port: 1, status: 500, body: []byte("error"), took: 2 * time.Second, err: errors.New("not answered within 2s")},
		}}, `127.0.0.1 - - [2025-10-29T14:56:59.007+0100] "HEAD /ping HTTP/1.0" 500
- Port 1 → Status: 500, Body: error.., Time: 2.000s, Reason: not answered within 2s
`},
		{"no primary", "GET /ping HTTP/1.1", verdict{status: 503, members: []memberState{
			{Member{Name: "orders", Kind: "relay"}, ErrNoPrimary}, {Member{Name: "c\nd", Kind: "relay"}, ErrNoPrimary},
			{Member{Name: "well", Kind: "relay"}, nil}, {Member{Name: "elastic", Kind: "probe", Ignore: true}, errors.New("status\n503")},
		}}, `127.0.0.1 - - [2025-10-29T14:56:59.007+0100] "GET /ping HTTP/1.1" 503
- Relay orders → no primary
- Relay c\nd → no primary
- Probe elastic → status\n503 (ignored)
`},
		{"F65 nothing breaks its line", "GET /ping?\"\x1b[2J HTTP/1.1", verdict{status: 502, replies: []reply{
			{port: 1, status: 200, body: []byte("a\r\n127.0.0.1 - - [")},
			{port: 2, status: 200, body: []byte("ééééééééééé")},
			{port: 3, status: 200, body: []byte("\xff\x00\u202e\x7f\u2028\\\U000e0001")},
			{port: 4, status: 200, body: nil},
			{port: 5, status: 500, body: []byte("error"), err: errors.New("bad\n\x07 thing")},
		}}, `127.0.0.1 - - [2025-10-29T14:56:59.007+0100] "GET /ping?\"\x1b[2J HTTP/1.1" 502
- Port 1 → Status: 200, Body: a\r\n127.0.0.., Time: 0.000s
- Port 2 → Status: 200, Body: éééééééééé.., Time: 0.000s
- Port 3 → Status: 200, Body: \xff\x00\u202e\x7f\u2028\\U000e0001.., Time: 0.000s
- Port 4 → Status: 200, Body: .., Time: 0.000s
- Port 5 → Status: 500, Body: error.., Time: 0.000s, Reason: bad\n\a thing
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, string(verdictText(when, "127.0.0.1", tt.request, 0, tt.v))); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
		})
	}
}

func TestVerdictJSON(t *testing.T) {
	text := verdictJSON(time.Now(), "::1", "GET /ping?\x1b HTTP/1.1", 0, verdict{status: 500, members: []memberState{
		{Member{Name: "orders", Kind: "relay"}, ErrNoPrimary}, {Member{Name: "well"}, nil},
		{Member{Name: "elastic", Kind: "probe"}, errors.New("status 503")}, {Member{Name: "spare", Kind: "relay", Ignore: true}, ErrNoPrimary},
		{Member{Name: "mail", Kind: "relay"}, fmt.Errorf("%w: all hosts stopped", ErrNoPrimary)},
	}, replies: []reply{
		{port: 3000, status: 200, body: []byte("pong\nand more"), took: 8 * time.Millisecond},
		{port: 3001, status: 500, body: []byte("error"), took: 2 * time.Second, err: errors.New("refused")},
	}})
	if strings.Count(string(text), "\n") != 1 || text[len(text)-1] != '\n' {
		t.Fatalf("record %q, want one line", text)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	delete(got, "time")
	want := map[string]any{
		"client": "::1", "request": "GET /ping?\x1b HTTP/1.1", "status": 500.0, "ok": false, "no_primary": []any{"orders", "mail"},
		"failing": []any{
			map[string]any{"name": "elastic", "kind": "probe", "reason": "status 503"},
			map[string]any{"name": "spare", "kind": "relay", "ignored": true, "reason": "no primary"},
			map[string]any{"name": "mail", "kind": "relay", "reason": "no primary: all hosts stopped"},
		},
		"ports": []any{
			map[string]any{"port": 3000.0, "status": 200.0, "body": "pong\nand m", "seconds": 0.008},
			map[string]any{"port": 3001.0, "status": 500.0, "body": "error", "seconds": 2.0, "reason": "refused"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
}

// CF 26 to 29: the whole record on the right stream, in one write.
func TestPingLog(t *testing.T) {
	ok, refused := saying(t, 200, "pong"), unreachablePort(t)
	const stamp = `^127\.0\.0\.1 - - \[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d{4})\] `

	t.Run("good", func(t *testing.T) {
		p := servePing(t, PingConfig{Ports: []int{ok, ok}})
		p.want(t, 200, "pong")
		want := regexp.MustCompile(stamp + fmt.Sprintf(`"GET /ping HTTP/1\.1" 200\n(- Port %d → Status: 200, Body: pong\.\., Time: 0\.\d{3}s\n){2}$`, ok))
		proctest.Until(t, "the record is written", func() bool { return want.MatchString(p.good.String()) })
		if p.good.writes != 1 || p.bad.String() != "" {
			t.Errorf("%d writes to standard output, %q to standard error, want one and none", p.good.writes, p.bad.String())
		}
	})
	t.Run("bad", func(t *testing.T) {
		p := servePing(t, PingConfig{Ports: []int{ok, refused}})
		p.want(t, 500, "error")
		want := regexp.MustCompile(stamp + fmt.Sprintf(`"GET /ping HTTP/1\.1" 500\n- Port %d → Status: 200, Body: pong\.\., Time: 0\.\d{3}s\n`+
			`- Port %d → Status: 500, Body: error\.\., Time: 0\.\d{3}s, Reason: .*connection refused\n$`, ok, refused))
		proctest.Until(t, "the record is written", func() bool { return want.MatchString(p.bad.String()) })
		if p.bad.writes != 1 || p.good.String() != "" {
			t.Errorf("%d writes to standard error, %q to standard output, want one and none", p.bad.writes, p.good.String())
		}
	})
	t.Run("escaped query", func(t *testing.T) {
		p := servePing(t, PingConfig{Ports: []int{ok}})
		p.request(t, "GET /ping?%0d%0a\"\xff HTTP/1.1")
		proctest.Until(t, "the record is written", func() bool {
			return strings.Contains(p.good.String(), `"GET /ping?%0d%0a\"\xff HTTP/1.1" 200`)
		})
	})
}

// stuckWriter takes nothing until it is released.
type stuckWriter struct{ release chan struct{} }

func (w stuckWriter) Write(p []byte) (int, error) {
	<-w.release
	return len(p), nil
}

// F46: standard output has no reader. Answers and standard error go on.
func TestVerdictLogStuck(t *testing.T) {
	proctest.NoLeaks(t)
	stuck := stuckWriter{make(chan struct{})}
	var bad, warnings lockedBuffer
	log := NewLog(stuck, &bad, false, hclog.New(&hclog.LoggerOptions{Output: &warnings}))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- log.Run(ctx) }()

	r := httptest.NewRequest(http.MethodGet, "/ping", http.NoBody)
	began := time.Now()
	for range verdictBacklog + 101 {
		log.record(new(recorded), r, verdict{ok: true, status: 200})
	}
	log.record(new(recorded), r, verdict{status: 503})
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("recording took %s, want no wait", took)
	}
	proctest.Until(t, "the bad verdict is written", func() bool { return strings.Contains(bad.String(), " 503\n") })
	if lost := log.good.lost.Load() + log.bad.lost.Load(); lost < 100 || lost > 101 { // one may be in the writer's hands
		t.Errorf("%d records lost, want 100 or 101", lost)
	}

	stop()
	select {
	case <-ended:
	case <-time.After(10 * time.Second): // a deadline
		t.Fatal("Run did not leave a stuck stream behind")
	}
	close(stuck.release)
	proctest.Until(t, "the loss is logged", func() bool { return strings.Contains(warnings.String(), "verdict records lost: stream=good lost=10") })
}

// At the end what is queued is still written.
func TestVerdictLogDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var good lockedBuffer
		log := NewLog(&good, io.Discard, true, nil)
		r := httptest.NewRequest(http.MethodGet, "/ping", http.NoBody)
		for range 50 {
			log.record(new(recorded), r, verdict{ok: true, status: 200})
		}
		ctx, stop := context.WithCancel(t.Context())
		stop()
		if err := log.Run(ctx); err != nil {
			t.Errorf("Run() = %v, want nil", err)
		}
		if n := strings.Count(good.String(), "\n"); n != 50 {
			t.Errorf("%d records written, want 50", n)
		}
	})
}

func TestClipText(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/ping?"+strings.Repeat("x", 16<<10), http.NoBody)
	var good lockedBuffer
	log := NewLog(&good, io.Discard, false, nil)
	log.record(new(recorded), r, verdict{ok: true, status: 200})
	ctx, stop := context.WithCancel(t.Context())
	stop()
	log.Run(ctx)
	if n := len(good.String()); n < maxLoggedText || n > maxLoggedText+200 {
		t.Errorf("record of a 16 KiB target has %d bytes, want about %d", n, maxLoggedText)
	}
}
