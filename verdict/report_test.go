package verdict

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy/internal/token"
)

func TestWantsJSON(t *testing.T) {
	for _, tt := range []struct {
		accept []string
		want   bool
	}{
		{nil, false},
		{[]string{""}, false},
		{[]string{"application/json"}, true},
		{[]string{"Application/JSON; q=0.9"}, true},
		{[]string{"application/json, text/plain, */*"}, true},
		{[]string{"text/html, application/json"}, true},
		{[]string{"text/plain, application/json"}, false},
		{[]string{"*/*"}, false},
		{[]string{"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}, false},
		{[]string{"text/html", "application/json"}, true},
		{[]string{"application/jsonx"}, false},
		{[]string{"application/*"}, false},
		{[]string{",,;,application/json,"}, true},
	} {
		if got := wantsJSON(http.Header{"Accept": tt.accept}); got != tt.want {
			t.Errorf("Accept: %q wants JSON: %v, want %v", tt.accept, got, tt.want)
		}
	}
}

func FuzzWantsJSON(f *testing.F) {
	f.Add("application/json;q=1,*/*")
	f.Add("text/*;,APPLICATION/JSON")
	f.Fuzz(func(t *testing.T, accept string) {
		if wantsJSON(http.Header{"Accept": {accept}}) && !strings.Contains(strings.ToLower(accept), "application/json") {
			t.Errorf("Accept: %q wants JSON", accept)
		}
	})
}

func TestToken(t *testing.T) {
	for _, tt := range []struct {
		secret string
		sent   []string
		want   bool
	}{
		{"TOK", []string{"Bearer TOK"}, true},
		{"TOK", nil, false},
		{"TOK", []string{""}, false},
		{"TOK", []string{"TOK"}, false},
		{"TOK", []string{"bearer TOK"}, false},
		{"TOK", []string{"Bearer  TOK"}, false},
		{"TOK", []string{"Bearer TO"}, false},
		{"TOK", []string{"Bearer TOKK"}, false},
		{"TOK", []string{"Bearer tok"}, false},
		{"TOK", []string{"Basic TOK"}, false},
		{"TOK", []string{"Bearer TOK", "Bearer TOK"}, false},
		{"TOK", []string{"Bearer TOK, x"}, false},
		{"", nil, false},
		{"", []string{""}, false},
		{"", []string{"Bearer "}, false},
	} {
		r := &http.Request{Header: http.Header{"Authorization": tt.sent}}
		if tt.sent == nil {
			delete(r.Header, "Authorization")
		}
		if got := token.New(tt.secret).Shown(r); got != tt.want {
			t.Errorf("token %q shown by %q: %v, want %v", tt.secret, tt.sent, got, tt.want)
		}
	}
	if (token.Token{}).Shown(&http.Request{Header: http.Header{"Authorization": {"Bearer "}}}) {
		t.Error("the zero token was shown")
	}
}

func FuzzToken(f *testing.F) {
	f.Add("TOK", "Bearer TOK")
	f.Add("", "Bearer ")
	f.Fuzz(func(t *testing.T, secret, sent string) {
		r := &http.Request{Header: http.Header{"Authorization": {sent}}}
		if got, want := token.New(secret).Shown(r), secret != "" && sent == "Bearer "+secret; got != want {
			t.Errorf("token %q shown by %q: %v", secret, sent, got)
		}
	})
}

// decodeReport decodes a report and hides its times, which differ between runs.
func decodeReport(t *testing.T, text string) map[string]any {
	t.Helper()
	var got map[string]any
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	ports, _ := got["ports"].([]any)
	for _, p := range ports {
		if port := p.(map[string]any); port["millis"] != nil {
			port["millis"] = "some"
		}
	}
	return got
}

func TestPingJSON(t *testing.T) {
	ok, bad, refused := saying(t, 200, "pong"), saying(t, 413, "no"), unreachablePort(t)
	p := servePing(t, PingConfig{
		Ports: []int{ok, bad, refused}, Token: "TOK",
		Members: []Member{
			{Name: "orders", Kind: "relay", Must: true, State: func() error { return nil }},
			{Name: "search", Kind: "probe", Ignore: true, State: func() error { return errors.New("secret \"reason\"\tand more") }},
		},
	})
	stranger := p.request(t, "GET /ping HTTP/1.1\r\nAccept: application/json")
	if stranger.StatusCode != http.StatusRequestEntityTooLarge || stranger.Header.Get("Content-Type") != "application/json" || stranger.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("answered %d %v, want 413 and JSON", stranger.StatusCode, stranger.Header)
	}
	members := func(reason ...any) []any {
		search := map[string]any{"name": "search", "kind": "probe", "ok": false, "ignored": true}
		if len(reason) > 0 {
			search["reason"] = reason[0]
		}
		return []any{map[string]any{"name": "orders", "kind": "relay", "ok": true, "must": true}, search}
	}
	want := map[string]any{
		"verdict": "down", "status": 413.0, "members": members(),
		"ports": []any{map[string]any{"ok": true}, map[string]any{"ok": false}, map[string]any{"ok": false}},
	}
	if diff := cmp.Diff(want, decodeReport(t, stranger.body)); diff != "" {
		t.Errorf("a stranger got (-want +got):\n%s", diff)
	}
	for _, authorization := range []string{"Bearer NO", "bearer TOK", "Basic TOK"} {
		got := p.request(t, "GET /ping HTTP/1.1\r\nAccept: application/json\r\nAuthorization: "+authorization)
		if diff := cmp.Diff(want, decodeReport(t, got.body)); diff != "" {
			t.Errorf("%s got (-want +got):\n%s", authorization, diff)
		}
	}

	head := "GET /ping?x HTTP/1.1\r\nAccept: application/json\r\nAuthorization: Bearer TOK"
	trusted := p.request(t, head)
	got := decodeReport(t, trusted.body)
	reason := got["ports"].([]any)[2].(map[string]any)["reason"].(string)
	if !strings.Contains(reason, "refused") {
		t.Errorf("reason %q, want that the connect was refused", reason)
	}
	want = map[string]any{
		"verdict": "down", "status": 413.0, "members": members("secret \"reason\"\tand more"),
		"ports": []any{
			map[string]any{"ok": true, "port": float64(ok), "status": 200.0, "millis": "some"},
			map[string]any{"ok": false, "port": float64(bad), "status": 413.0, "millis": "some", "reason": "status 413, want 200"},
			map[string]any{"ok": false, "port": float64(refused), "status": 500.0, "millis": "some", "reason": reason},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("a client with the token got (-want +got):\n%s", diff)
	}

	// Text is what it always was, token or not.
	for _, extra := range []string{"", "\r\nAccept: */*", "\r\nAuthorization: Bearer TOK", "\r\nAccept: text/plain, application/json"} {
		got := p.request(t, "GET /ping HTTP/1.1"+extra)
		if got.StatusCode != http.StatusRequestEntityTooLarge || got.body != "no" || got.Header.Get("Content-Type") != "text/plain" {
			t.Errorf("with %q answered %d %q %v, want 413 no", extra, got.StatusCode, got.body, got.Header)
		}
	}
	if got := p.request(t, "HEAD /ping?x HTTP/1.1\r\nAccept: application/json"); got.StatusCode != http.StatusRequestEntityTooLarge || got.ContentLength < 50 || got.rest != "" {
		t.Errorf("HEAD answered %d, length %d, %q behind it", got.StatusCode, got.ContentLength, got.rest)
	}
}

// The members alone: no port is asked, and good news are short.
func TestPingJSONWithoutPorts(t *testing.T) {
	p := servePing(t, PingConfig{Members: []Member{member("orders", nil)}})
	got := p.request(t, "GET /ping HTTP/1.1\r\nAccept: application/json")
	const want = `{"verdict":"up","status":200,"members":[{"name":"orders","ok":true}]}` + "\n"
	if got.StatusCode != http.StatusOK || got.body != want || got.ContentLength != int64(len(want)) {
		t.Errorf("answered %d %q, want 200 %q", got.StatusCode, got.body, want)
	}
}

// No client has a token that was never set.
func TestPingWithoutToken(t *testing.T) {
	s := seeing(t)
	p := servePing(t, PingConfig{Ports: []int{s.port}, Members: []Member{{Name: "x", Ignore: true, State: func() error { return errors.New("secret") }}}})
	got := p.request(t, "GET /ping HTTP/1.1\r\nAccept: application/json\r\nAuthorization: Bearer ")
	if strings.Contains(got.body, "secret") || strings.Contains(got.body, fmt.Sprint(s.port)) {
		t.Errorf("a stranger got %q", got.body)
	}
}

// What was meant for us is not replayed, and does not keep a replay from being
// shared.
func TestPingConsumesTokenAndAccept(t *testing.T) {
	s := seeing(t)
	p := servePing(t, PingConfig{Ports: []int{s.port}, Token: "TOK"})
	const ours = "GET /ping HTTP/1.1\r\nAccept: application/json\r\nAuthorization: Bearer TOK"
	p.request(t, ours)
	for _, name := range []string{"Authorization", "Accept"} {
		if v, sent := s.got[0].Header[name]; sent {
			t.Errorf("the service saw %s: %q, want none", name, v)
		}
	}
	// Others' credentials and types are the services' business.
	p.request(t, "GET /ping HTTP/1.1\r\nAccept: application/xml\r\nAuthorization: Bearer other")
	if h := s.got[1].Header; h.Get("Authorization") != "Bearer other" || h.Get("Accept") != "application/xml" {
		t.Errorf("the service saw %v, want both headers", h)
	}

	// A replay that another request began says so.
	if got := p.request(t, ours); decodeReport(t, got.body)["shared"] != true && s.times() == 2 {
		t.Errorf("answered %q from a shared replay, want it said", got.body)
	}

	r := &http.Request{Method: http.MethodGet, Body: http.NoBody, Header: http.Header{"Authorization": {"Bearer TOK"}}}
	if shareable(r, false) || !shareable(r, true) {
		t.Error("an Authorization is shareable if it was for us, and only then")
	}
	r.Header.Set("Cookie", "a=b")
	if shareable(r, true) {
		t.Error("a cookie beside our token is shareable, want it kept apart")
	}

	var requested atomic.Int64
	slow := service(t, func(w http.ResponseWriter, _ *http.Request) {
		requested.Add(1)
		time.Sleep(20 * time.Millisecond) // all probes come meanwhile
		w.Write([]byte("pong"))
	})
	p = servePing(t, PingConfig{Ports: []int{slow}, Token: "TOK", Timeout: 9 * time.Second})
	var clients sync.WaitGroup
	for i := range 39 {
		head := "GET /ping HTTP/1.1"
		if i%2 == 0 {
			head = ours
		}
		clients.Go(func() {
			if got := p.request(t, head); got.StatusCode != http.StatusOK {
				t.Errorf("answered %d, want 200", got.StatusCode)
			}
		})
	}
	clients.Wait()
	if n := requested.Load(); n > 3 { // once, or once in each second of a slow machine
		t.Errorf("the service was asked %d times, want once", n)
	}
}
