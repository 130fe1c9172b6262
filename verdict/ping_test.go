package verdict

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"understudy/internal/criteria"
	"understudy/internal/proctest"
)

// pinged is a running /ping.
type pinged struct {
	addr      string
	good, bad *lockedBuffer
}

// request sends one request, "GET /ping" unless head says otherwise, and returns
// the answer.
func (p pinged) request(tb testing.TB, head string, body ...string) answer {
	tb.Helper()
	if head == "" {
		head = "GET /ping HTTP/1.1"
	}
	raw := head + "\r\nHost: any.host\r\nConnection: close\r\n\r\n" + strings.Join(body, "")
	method, _, _ := strings.Cut(head, " ")
	return parseAnswer(tb, say(tb, p.addr, raw), method)
}

// want asks for "GET /ping" and compares status and body.
func (p pinged) want(tb testing.TB, status int, body string) {
	tb.Helper()
	if got := p.request(tb, ""); got.StatusCode != status || got.body != body {
		tb.Errorf("GET /ping = %d %q, want %d %q", got.StatusCode, got.body, status, body)
	}
}

// Items CF 17 to 23: which response is the answer.
func TestPingAnswers(t *testing.T) {
	ok := saying(t, 200, "pong")
	newline := saying(t, 200, "pong\n")
	padded := saying(t, 200, " \r\n\tpong \n")
	large := saying(t, 413, "too large")
	down := saying(t, 503, "maintenance")
	upper := saying(t, 200, "PONG")
	wrong := saying(t, 200, "all is well")
	empty := saying(t, 204, "")
	moved := service(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "http://127.0.0.1:1/")
		w.WriteHeader(http.StatusFound)
		io.WriteString(w, "over there")
	})
	notUTF8 := saying(t, 200, "\xff\xfepong\x80")
	sorry := saying(t, 500, "pong")
	refused := unreachablePort(t)

	for _, tt := range []struct {
		name       string
		ports      []int
		failStatus string
		status     int
		body       string
	}{
		{"one passes", []int{ok}, "", 200, "pong"},
		{"CF20 all pass, the first is verbatim", []int{newline, ok}, "", 200, "pong\n"},
		{"CF20 order is the operator's", []int{ok, newline}, "", 200, "pong"},
		{"CF19 white space is trimmed to compare, not to answer", []int{padded, ok}, "", 200, " \r\n\tpong \n"},
		{"CF2 the same port twice", []int{ok, ok}, "", 200, "pong"},
		{"CF18 refused", []int{refused}, "", 500, "error"},
		{"CF21 refused, then 413", []int{refused, large}, "", 500, "error"},
		{"CF21 ok, 413, refused", []int{ok, large, refused}, "", 413, "too large"},
		{"CF21 two fail, the first in order", []int{ok, down, large}, "", 503, "maintenance"},
		{"D-CF2 200 with a wrong body is never 200", []int{wrong, ok}, "", 502, "all is well"},
		{"D-CF2 nor behind one that passes", []int{ok, wrong}, "", 502, "all is well"},
		{"CF19 upper case fails", []int{upper}, "", 502, "PONG"},
		{"204 is no pong", []int{empty}, "", 502, ""},
		{"CF17 a redirect is not followed, and reads as failure", []int{moved}, "", 502, "over there"},
		{"right word, wrong code", []int{sorry}, "", 500, "pong"},
		{"D-CF3 not UTF-8", []int{notUTF8, ok}, "", 502, "\xff\xfepong\x80"},
		{"CF22 keep: as it always was", []int{ok, wrong}, "keep", 200, "all is well"},
		{"keep: 204", []int{ok, empty}, "keep", 204, ""},
		{"keep: 302 without its target", []int{moved}, "keep", 302, "over there"},
		{"a number forces one", []int{ok, large}, "503", 503, "too large"},
		{"a number leaves success alone", []int{ok}, "503", 200, "pong"},
		{"a number for what could not be asked", []int{refused}, "599", 599, "error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := servePing(t, PingConfig{Ports: tt.ports, FailStatus: tt.failStatus})
			got := p.request(t, "")
			if got.StatusCode != tt.status || got.body != tt.body {
				t.Errorf("GET /ping = %d %q, want %d %q", got.StatusCode, got.body, tt.status, tt.body)
			}
			if got.Header.Get("Location") != "" {
				t.Errorf("headers %v, want no Location", got.Header)
			}
		})
	}
}

// The reasons of the last bad answer stay until a good one.
func TestPingWhy(t *testing.T) {
	var down error
	ping, err := NewPing(complete(PingConfig{Members: []Member{
		{Name: "orders", Kind: "relay", State: func() error { return down }}, member("quiet", nil),
		{Name: "other", Kind: "probe", Ignore: true, State: func() error { return down }},
	}}))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		down error
		want string
	}{{nil, ""}, {errDead, "relay orders: down: connection refused"}, {nil, ""}} {
		down = step.down
		ping.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/ping", nil))
		if got := ping.Why(); got != step.want {
			t.Errorf("%v: the reason is %q, want %q", down, got, step.want)
		}
	}
	ping, err = NewPing(complete(PingConfig{Ports: []int{unreachablePort(t)}}))
	if err != nil {
		t.Fatal(err)
	}
	ping.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/ping", nil))
	if got := ping.Why(); !strings.HasPrefix(got, "port ") || !strings.Contains(got, "refused") {
		t.Errorf("the reason is %q, want one that names the port", got)
	}
}

// Broken services (F63): whatever one sends, the verdict is 500 "error" in
// time, and the log says why.
func TestPingBrokenServices(t *testing.T) {
	const timeout = time.Second // for what is slow; what is broken shows at once
	headThen := func(head string, rest func(net.Conn)) func(net.Conn) {
		return func(c net.Conn) { io.WriteString(c, head); rest(c) }
	}
	flood := func(piece string, pause time.Duration) func(net.Conn) {
		return func(c net.Conn) {
			for {
				if _, err := io.WriteString(c, piece); err != nil {
					return
				}
				time.Sleep(pause) // the pace of a service
			}
		}
	}
	nothing := func(net.Conn) {}
	for _, tt := range []struct {
		name   string
		answer func(net.Conn)
		reason string
	}{
		{"says nothing", untilHungUp, "not answered within 1s"},
		{"hangs up", nothing, "without an answer"},
		{"resets", func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) }, "reset"},
		{"is not HTTP", headThen("SSH-2.0-OpenSSH_9.6\r\n\r\n", nothing), "malformed HTTP"},
		{"HTTP/0.9", headThen("pong", nothing), "malformed HTTP"},
		{"half a head", headThen("HTTP/1.1 200 OK\r\nContent-", untilHungUp), "not answered within"},
		{"broken header", headThen("HTTP/1.1 200 OK\r\nno colon\r\n\r\npong", nothing), "colon"},
		{"endless header", headThen("HTTP/1.1 200 OK\r\nA: ", flood(strings.Repeat("a", 1024), 0)), "exceed"},
		{"endless headers", headThen("HTTP/1.1 200 OK\r\n", flood("A: b\r\n", 0)), "exceed"},
		{"endless 1xx", flood("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", 0), "exceed"},
		{"slow 1xx", flood("HTTP/1.1 102 Processing\r\n\r\n", 10*time.Millisecond), "not answered within"},
		{"switches protocols", headThen("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\npong", nothing), "101"},
		{"status 000", headThen("HTTP/1.1 000 Zero\r\nContent-Length: 4\r\n\r\npong", nothing), "status 0 "},
		{"status 999", headThen("HTTP/1.1 999 Many\r\nContent-Length: 4\r\n\r\npong", nothing), "status 999"},
		{"length too large", headThen("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npong", nothing), "broke off after 4 bytes"},
		{"length too large, stays", headThen("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npong", untilHungUp), "not answered within"},
		{"two lengths", headThen("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\npong", nothing), "Content-Length"},
		{"length abc", headThen("HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\npong", nothing), "Content-Length"},
		{"broken chunk", headThen("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\npong", nothing), "chunk"},
		{"chunks break off", headThen("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npong\r\n", nothing), "broke off"},
		{"1 GiB", headThen("HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n", flood(strings.Repeat("pong\n", 1024), 0)), "longer than 65536 bytes"},
		{"endless", headThen("HTTP/1.1 200 OK\r\n\r\npong", flood(strings.Repeat(" ", 4096), 0)), "longer than 65536 bytes"},
		{"endless chunks", headThen("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npong\r\n", flood("400\r\n"+strings.Repeat(" ", 1024)+"\r\n", 0)), "longer than"},
		{"one byte at a time", headThen("HTTP/1.1 200 OK\r\n\r\npong", flood(" ", 10*time.Millisecond)), "not answered within"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			limit := maxReplayTimeout // a busy machine is slow to see what is broken
			if strings.HasPrefix(tt.reason, "not answered") {
				limit = timeout
			}
			ok := saying(t, 200, "pong")
			p := servePing(t, PingConfig{Ports: []int{ok, rawService(t, tt.answer)}, Timeout: limit})
			began := time.Now()
			p.want(t, 500, "error")
			if took := time.Since(began); took > limit+5*time.Second { // the service gives up after 20s
				t.Errorf("answered after %s, want by its timeout of %s", took, limit)
			}
			proctest.Until(t, "the verdict is in the log", func() bool { return strings.Contains(p.bad.String(), "Reason: ") })
			if got := p.bad.String(); !strings.Contains(got, tt.reason) || !strings.Contains(got, "Status: 500, Body: error..") {
				t.Errorf("log %q, want reason %q", got, tt.reason)
			}
		})
	}
	t.Run("length too small is what the service says", func(t *testing.T) {
		port := rawService(t, headThen("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong and more", nothing))
		servePing(t, PingConfig{Ports: []int{port}}).want(t, 200, "pong")
	})
	t.Run("a few interim answers are fine", func(t *testing.T) {
		port := rawService(t, headThen("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong", nothing))
		servePing(t, PingConfig{Ports: []int{port}}).want(t, 200, "pong")
	})
	t.Run("64 KiB are read", func(t *testing.T) {
		body := "pong" + strings.Repeat("\n", maxReplyBody-4)
		servePing(t, PingConfig{Ports: []int{saying(t, 200, body)}}).want(t, 200, body)
	})
}

// F63: 50 endless services cost little memory.
func TestPingMemoryIsBounded(t *testing.T) {
	endless := rawService(t, func(c net.Conn) {
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		piece := bytes.Repeat([]byte("x"), 32<<10)
		for {
			if _, err := c.Write(piece); err != nil {
				return
			}
		}
	})
	p := servePing(t, PingConfig{Ports: slices.Repeat([]int{endless}, 50)})
	allocated := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.TotalAlloc
	}
	before := allocated()
	p.want(t, 500, "error")
	// Everything ever allocated, here and by the services: an upper bound.
	if grown := allocated() - before; grown > 24<<20 {
		t.Errorf("one verdict over 50 endless services allocated %d KiB, want at most 24 MiB", grown>>10)
	}
}

// D-CF1, F64: ports are asked at the same time.
func TestPingHungServices(t *testing.T) {
	hung := rawService(t, untilHungUp)
	ok := saying(t, 200, "pong")
	p := servePing(t, PingConfig{Ports: append(slices.Repeat([]int{hung}, 99), ok), Timeout: 2 * time.Second})
	began := time.Now()
	p.want(t, 500, "error")
	if took := time.Since(began); took < 2*time.Second || took > 10*time.Second {
		t.Errorf("99 hung services of 100: answered after %s, want about 2s", took)
	}
	// The one behind them had its full time too.
	passed := fmt.Sprintf("- Port %d → Status: 200, Body: pong..", ok)
	proctest.Until(t, "the last service passes", func() bool { return strings.Contains(p.bad.String(), passed) })
}

// Items CF 10 to 13, D-CF4 to D-CF6: what the services are asked.
func TestPingReplay(t *testing.T) {
	for _, tt := range []struct {
		name, head, body string
		want             string // method, target and body at each service
	}{
		{"CF10 path and query", "GET /ping?b=2&a=1&&c HTTP/1.1", "", "GET /ping?b=2&a=1&&c "},
		{"as received, byte for byte", "GET /ping/a%2Fb%7e~'\"<>?x=%0d%0aSet-Cookie:y&{}|^` HTTP/1.1", "", "GET /ping/a%2Fb%7e~'\"<>?x=%0d%0aSet-Cookie:y&{}|^` "},
		{"empty query", "GET /ping? HTTP/1.1", "", "GET /ping? "},
		{"not UTF-8", "GET /ping?\xff\xfe HTTP/1.1", "", "GET /ping?\xff\xfe "},
		{"double slash below", "GET /ping//x HTTP/1.1", "", "GET /ping//x "},
		{"D-CF5 HEAD is asked as GET", "HEAD /ping HTTP/1.1", "", "GET /ping "},
		{"HTTP/1.0", "GET /ping HTTP/1.0", "", "GET /ping "},
		{"CF12 POST with a body", "POST /ping HTTP/1.1\r\nContent-Length: 5", "hello", "POST /ping hello"},
		{"POST without one", "POST /ping HTTP/1.1", "", "POST /ping "},
		{"D-CF4 chunked body", "POST /ping HTTP/1.1\r\nTransfer-Encoding: chunked", "5\r\nhello\r\n1\r\n!\r\n0\r\nTrailer: x\r\n\r\n", "POST /ping hello!"},
		{"100-continue", "POST /ping HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5", "hello", "POST /ping hello"},
		{"GET with a body", "GET /ping HTTP/1.1\r\nContent-Length: 2", "hi", "GET /ping hi"},
		{"CF11 PUT", "PUT /ping HTTP/1.1\r\nContent-Length: 2", "hi", "PUT /ping hi"},
		{"DELETE", "DELETE /ping HTTP/1.1", "", "DELETE /ping "},
		{"OPTIONS", "OPTIONS /ping HTTP/1.1", "", "OPTIONS /ping "},
		{"PATCH", "PATCH /ping HTTP/1.1\r\nContent-Length: 2", "hi", "PATCH /ping hi"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := seeing(t), seeing(t)
			p := servePing(t, PingConfig{Ports: []int{a.port, b.port}})
			raw := say(t, p.addr, tt.head+"\r\nHost: any.host\r\nConnection: close\r\n\r\n"+tt.body)
			raw = strings.TrimPrefix(raw, "HTTP/1.1 100 Continue\r\n\r\n")
			method, _, _ := strings.Cut(tt.head, " ")
			if got := parseAnswer(t, raw, method); got.StatusCode != http.StatusOK || method != "HEAD" && got.body != "pong" {
				t.Errorf("answered %d %q, want 200 pong", got.StatusCode, got.body)
			}
			for _, s := range []*seen{a, b} {
				if s.times() != 1 {
					t.Fatalf("a service was asked %d times, want once", s.times())
				}
				if got := s.got[0].Method + " " + s.got[0].RequestURI + " " + s.body[0]; got != tt.want {
					t.Errorf("a service was asked %q, want %q", got, tt.want)
				}
			}
		})
	}
}

// A path that begins with two slashes is not mistaken for a host.
func TestPingReplaysDoubleSlash(t *testing.T) {
	s := seeing(t)
	ping, err := NewPing(complete(PingConfig{Ports: []int{s.port}}))
	if err != nil {
		t.Fatal(err)
	}
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": ping}})
	if got := say(t, addr, "GET //other.host/a%20b?c HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); !strings.HasSuffix(got, "pong") {
		t.Fatalf("answered %q, want pong", got)
	}
	if got := s.got[0].RequestURI; got != "//other.host/a%20b?c" {
		t.Errorf("asked %q, want //other.host/a%%20b?c", got)
	}
}

// CF13, D-CF6.
func TestPingHeaders(t *testing.T) {
	s := seeing(t)
	p := servePing(t, PingConfig{Ports: []int{s.port}})
	const head = "GET /ping HTTP/1.1\r\n" +
		"User-Agent: Mozilla/5.0 (compatible; Cloudflare-Traffic-Manager/1.0)\r\n" +
		"X-App-ID: one\r\nX-App-Id: two\r\nAuthorization: Bearer secret\r\nX-Forwarded-For: 192.0.2.9\r\n" +
		"Accept-Encoding: gzip\r\nTE: trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nKeep-Alive: timeout=5\r\n" +
		"Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\nX-Hop: gone\r\nTrailer: Expires\r\n" +
		"Connection: X-Hop, upgrade"
	p.request(t, head)
	got := s.got[0]
	if got.Host != "any.host" {
		t.Errorf("Host = %q, want it as received", got.Host)
	}
	want := http.Header{
		"User-Agent":      {"Mozilla/5.0 (compatible; Cloudflare-Traffic-Manager/1.0)"},
		"X-App-Id":        {"one", "two"},
		"Authorization":   {"Bearer secret"},
		"X-Forwarded-For": {"192.0.2.9"},
		"Connection":      {"close"}, // ours
	}
	if fmt.Sprint(got.Header) != fmt.Sprint(want) {
		t.Errorf("a service saw %v, want %v", got.Header, want)
	}
	p.request(t, "GET /ping?bare HTTP/1.1")
	if agent, sent := s.got[1].Header["User-Agent"]; sent {
		t.Errorf("a service saw User-Agent %q, want none", agent)
	}
}

// CF24, F65: only the documented headers leave, whatever a service sends.
func TestPingAnswerHeaders(t *testing.T) {
	port := rawService(t, func(c net.Conn) {
		io.WriteString(c, "HTTP/1.1 500 Oops\r\nSet-Cookie: a=b\r\nLocation: /x\r\nContent-Type: text/html\r\nServer: internal/1.0\r\n"+
			"X-Secret: y\r\nContent-Length: 30\r\n\r\nHTTP/1.1 200 OK\r\nX: y\r\n\r\npong!")
	})
	p := servePing(t, PingConfig{Ports: []int{port}})
	got := p.request(t, "")
	if got.StatusCode != http.StatusInternalServerError || !strings.HasPrefix(got.body, "HTTP/1.1 200 OK") {
		t.Errorf("answered %d %q, want 500 and the body as it is", got.StatusCode, got.body)
	}
	got.Header.Del("Date")
	want := http.Header{
		"Cache-Control":          {"no-store"},
		"Content-Length":         {"30"},
		"Content-Type":           {"text/plain"},
		"X-Content-Type-Options": {"nosniff"},
	}
	if fmt.Sprint(got.Header) != fmt.Sprint(want) {
		t.Errorf("headers %v, want %v", got.Header, want)
	}
}

func TestPingHEAD(t *testing.T) {
	p := servePing(t, PingConfig{Ports: []int{saying(t, 200, "pong\n")}})
	got := p.request(t, "HEAD /ping HTTP/1.1")
	if got.StatusCode != http.StatusOK || got.ContentLength != 5 || got.rest != "" {
		t.Errorf("HEAD = %d, length %d, %q behind it, want 200, 5 and nothing", got.StatusCode, got.ContentLength, got.rest)
	}
	bad := servePing(t, PingConfig{Ports: []int{saying(t, 413, "no")}})
	if got := bad.request(t, "HEAD /ping HTTP/1.0"); got.StatusCode != http.StatusRequestEntityTooLarge || got.rest != "" {
		t.Errorf("HEAD = %d, %q behind it, want 413 and nothing", got.StatusCode, got.rest)
	}
}

// D-CF6: a service that would compress if asked is not asked to.
func TestPingNeverRequestsCompression(t *testing.T) {
	port := service(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			io.WriteString(w, "pong")
			return
		}
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		io.WriteString(z, "pong")
		z.Close()
	})
	p := servePing(t, PingConfig{Ports: []int{port}})
	if got := p.request(t, "GET /ping HTTP/1.1\r\nAccept-Encoding: gzip, br"); got.StatusCode != http.StatusOK || got.body != "pong" || got.Header.Get("Content-Encoding") != "" {
		t.Errorf("answered %d %q %v, want 200 pong, not compressed", got.StatusCode, got.body, got.Header)
	}
}

// A gzip bomb stays packed.
func TestPingGzipBomb(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write(make([]byte, 32<<20))
	z.Close()
	port := service(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Write(packed.Bytes())
	})
	p := servePing(t, PingConfig{Ports: []int{port}})
	if got := p.request(t, ""); got.StatusCode < 500 || len(got.body) > maxReplyBody {
		t.Errorf("answered %d with %d bytes, want a failure and at most %d", got.StatusCode, len(got.body), maxReplyBody)
	}
}

// D-CF4, D-CF8: bodies are limited, and a bad one is the client's fault alone.
func TestPingBodies(t *testing.T) {
	s := seeing(t)
	p := servePing(t, PingConfig{Ports: []int{s.port}})
	full := strings.Repeat("x", maxBody)
	chunk := fmt.Sprintf("%x\r\n%s\r\n", len(full), full)
	for _, tt := range []struct {
		name, head, body string
		want             int
	}{
		{"1 MiB", "POST /ping HTTP/1.1\r\nContent-Length: 1048576", full, 200},
		{"1 MiB in a chunk", "POST /ping HTTP/1.1\r\nTransfer-Encoding: chunked", chunk + "0\r\n\r\n", 200},
		{"1 MiB + 1", "POST /ping HTTP/1.1\r\nContent-Length: 1048577", full + "x", 413},
		{"1 MiB + 1, announced only", "POST /ping HTTP/1.1\r\nContent-Length: 1048577", "", 413},
		{"1 MiB + 1 in chunks", "POST /ping HTTP/1.1\r\nTransfer-Encoding: chunked", chunk + "1\r\nx\r\n0\r\n\r\n", 413},
		{"endless chunks", "POST /ping HTTP/1.1\r\nTransfer-Encoding: chunked", strings.Repeat(chunk, 8), 413},
		{"CF D-CF4 length abc", "POST /ping HTTP/1.1\r\nContent-Length: abc", "x", 400},
		{"negative length", "POST /ping HTTP/1.1\r\nContent-Length: -5", "hello", 400},
		{"broken chunk", "POST /ping HTTP/1.1\r\nTransfer-Encoding: chunked", "zz\r\nhello\r\n0\r\n\r\n", 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := s.times()
			conn := dialHTTP(t, p.addr)
			go io.WriteString(conn, tt.head+"\r\nHost: x\r\n\r\n"+tt.body)
			raw, _ := io.ReadAll(conn)
			if got := parseAnswer(t, string(raw), "POST"); got.StatusCode != tt.want {
				t.Errorf("answered %d %q, want %d", got.StatusCode, got.body, tt.want)
			}
			requested := s.times() - before
			if (requested == 1) != (tt.want == 200) || requested > 1 {
				t.Errorf("the service was asked %d times", requested)
			}
		})
	}
	t.Run("breaks off", func(t *testing.T) {
		before := s.times()
		conn := dialHTTP(t, p.addr)
		io.WriteString(conn, "POST /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
		conn.CloseWrite()
		raw, _ := io.ReadAll(conn)
		if got := parseAnswer(t, string(raw), "POST"); got.StatusCode != http.StatusBadRequest || s.times() != before {
			t.Errorf("answered %d and asked %d times, want 400 and none", got.StatusCode, s.times()-before)
		}
	})
	p.want(t, 200, "pong")
}

func TestPingBodiesAreBounded(t *testing.T) {
	s := seeing(t)
	ping, err := NewPing(complete(PingConfig{Ports: []int{s.port}}))
	if err != nil {
		t.Fatal(err)
	}
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/ping": ping}})
	ping.bodies.held.Store(maxBodies - 3)
	post := "POST /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
	if got := parseAnswer(t, say(t, addr, post), "POST"); got.StatusCode != http.StatusServiceUnavailable || s.times() != 0 {
		t.Errorf("with all room taken answered %d, asked %d times, want 503 and none", got.StatusCode, s.times())
	}
	ping.bodies.held.Store(maxBodies - 4)
	if got := parseAnswer(t, say(t, addr, post), "POST"); got.StatusCode != http.StatusOK {
		t.Errorf("with room answered %d, want 200", got.StatusCode)
	}
	if got := ping.bodies.held.Load(); got != maxBodies-4 {
		t.Errorf("%d bytes of bodies held afterwards, want as before", got-(maxBodies-4))
	}
}

// A client that half-closes after its request looks like one that left; it
// must get the verdict, above all never an empty 200.
func TestPingHalfClosedClient(t *testing.T) {
	port := service(t, func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(100 * time.Millisecond) // the end of the request comes first
		http.Error(w, "bad", http.StatusServiceUnavailable)
	})
	p := servePing(t, PingConfig{Ports: []int{port}})
	conn := dialHTTP(t, p.addr)
	io.WriteString(conn, "GET /ping HTTP/1.1\r\nHost: x\r\nAuthorization: x\r\n\r\n")
	conn.CloseWrite()
	raw, _ := io.ReadAll(conn)
	if got := parseAnswer(t, string(raw), "GET"); got.StatusCode != http.StatusServiceUnavailable || got.body != "bad\n" {
		t.Errorf("answered %d %q, want 503 bad", got.StatusCode, got.body)
	}
}

// Relays count beside the services.
func TestPingRelays(t *testing.T) {
	s := seeing(t)
	var down atomic.Bool
	relays := []Member{{Name: "orders", Kind: "relay", State: func() error {
		if down.Load() {
			return ErrNoPrimary
		}
		return nil
	}}}
	alone := servePing(t, PingConfig{Members: relays})
	both := servePing(t, PingConfig{Members: relays, Ports: []int{s.port}})

	alone.want(t, 200, "pong")
	both.want(t, 200, "pong")
	if s.times() != 1 {
		t.Fatalf("the service was asked %d times, want once", s.times())
	}

	down.Store(true)
	alone.want(t, 503, "no primary")
	both.want(t, 503, "no primary") // at once: replies are shared, relays are not
	if s.times() != 1 {
		t.Errorf("the service was asked %d times, want none without a primary", s.times()-1)
	}
	if got := both.request(t, "HEAD /ping HTTP/1.1"); got.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("HEAD = %d, want 503", got.StatusCode)
	}
	proctest.Until(t, "the relay is in the log", func() bool { return strings.Contains(alone.bad.String(), "- Relay orders → no primary\n") })

	down.Store(false)
	alone.want(t, 200, "pong")
	both.want(t, 200, "pong")

	forced := servePing(t, PingConfig{Members: []Member{member("x", ErrNoPrimary)}, FailStatus: "500"})
	forced.want(t, 500, "no primary")
}

// The 39 probes of "all regions", D-CF11, F68.
func TestPingCoalesces(t *testing.T) {
	const probes = 39
	for _, tt := range []struct {
		name, head string // %d is the probe
		requested  int
	}{
		{"identical GETs", "GET /ping HTTP/1.1\r\nUser-Agent: probe", 1},
		{"request ids do not matter", "GET /ping HTTP/1.1\r\nX-Request-Id: %d\r\nCF-Ray: %[1]d", 1},
		{"accepted encodings do not matter", "GET /ping HTTP/1.1\r\nAccept-Encoding: %d", 1},
		{"other queries are other requests", "GET /ping?%d HTTP/1.1", probes},
		{"an odd header makes another request", "GET /ping HTTP/1.1\r\nRange: bytes=0-%d", probes},
		{"credentials are never shared", "GET /ping HTTP/1.1\r\nAuthorization: Bearer x", probes},
		{"nor cookies", "GET /ping HTTP/1.1\r\nCookie: a=b", probes},
		{"nor proxy credentials", "GET /ping HTTP/1.1\r\nProxy-Authorization: x", probes},
		{"nor other methods", "POST /ping HTTP/1.1", probes},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var requested atomic.Int64
			port := service(t, func(w http.ResponseWriter, _ *http.Request) {
				requested.Add(1)
				time.Sleep(20 * time.Millisecond) // all probes come meanwhile
				io.WriteString(w, "pong")
			})
			p := servePing(t, PingConfig{Ports: []int{port, port}, Timeout: 9 * time.Second})
			var clients sync.WaitGroup
			for i := range probes {
				head := tt.head
				if strings.Contains(head, "%") {
					head = fmt.Sprintf(head, i)
				}
				if i%2 == 1 && !strings.HasPrefix(head, "POST") {
					head = "HEAD" + strings.TrimPrefix(head, "GET")
				}
				clients.Go(func() {
					if got := p.request(t, head); got.StatusCode != http.StatusOK || got.ContentLength != 4 {
						t.Errorf("a probe was answered %d, length %d, want 200 and 4", got.StatusCode, got.ContentLength)
					}
				})
			}
			clients.Wait()
			// Each service is asked by two ports here. A slow machine may
			// spread identical probes over more than a second.
			if got := int(requested.Load()); got != 2*tt.requested && (tt.requested != 1 || got > 6) {
				t.Errorf("%d probes: each service was asked %d times, want %d", probes, got/2, tt.requested)
			}
		})
	}
}

// A bad answer is shared for no longer than a good one.
func TestPingSharesForASecond(t *testing.T) {
	var healthy atomic.Bool
	port := service(t, func(w http.ResponseWriter, _ *http.Request) {
		if !healthy.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		io.WriteString(w, "pong")
	})
	p := servePing(t, PingConfig{Ports: []int{port}})
	began := time.Now()
	p.want(t, 503, "pong")
	healthy.Store(true)
	if got := p.request(t, ""); got.StatusCode != http.StatusServiceUnavailable && time.Since(began) < time.Second {
		t.Errorf("within a second answered %d, want the shared 503", got.StatusCode)
	}
	proctest.Until(t, "the service is asked again", func() bool { return p.request(t, "").StatusCode == http.StatusOK })
	if took := time.Since(began); took < time.Second {
		t.Errorf("asked again after %s, want after a second", took)
	}
}

// The client that began a replay leaves; the others get its replies.
func TestPingLeaderLeaves(t *testing.T) {
	requested, release := make(chan struct{}, 10), make(chan struct{})
	port := service(t, func(w http.ResponseWriter, _ *http.Request) {
		requested <- struct{}{}
		<-release
		io.WriteString(w, "pong")
	})
	p := servePing(t, PingConfig{Ports: []int{port}, Timeout: 9 * time.Second})
	leader := dialHTTP(t, p.addr)
	io.WriteString(leader, "GET /ping HTTP/1.1\r\nHost: any.host\r\n\r\n")
	<-requested
	follower := make(chan answer, 1)
	go func() { follower <- p.request(t, "") }()
	leader.SetLinger(0)
	leader.Close()
	time.Sleep(50 * time.Millisecond) // time for a mistake
	close(release)
	if got := <-follower; got.StatusCode != http.StatusOK || got.body != "pong" {
		t.Errorf("after the first client left the second got %d %q, want 200 pong", got.StatusCode, got.body)
	}
	if len(requested) != 0 {
		t.Errorf("the service was asked again, want once")
	}
}

// A flood of different requests does not flood the services.
func TestPingBoundsReplays(t *testing.T) {
	var mu sync.Mutex
	now, most := 0, 0
	port := service(t, func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		time.Sleep(5 * time.Millisecond) // for others to come at the same time
		mu.Lock()
		now--
		mu.Unlock()
		io.WriteString(w, "pong")
	})
	p := servePing(t, PingConfig{Ports: []int{port}, Timeout: 9 * time.Second})
	var clients sync.WaitGroup
	for i := range 200 {
		clients.Go(func() {
			if got := p.request(t, "GET /ping?"+strconv.Itoa(i)+" HTTP/1.1"); got.StatusCode != http.StatusOK {
				t.Errorf("answered %d, want 200", got.StatusCode)
			}
		})
	}
	clients.Wait()
	if most > maxReplays {
		t.Errorf("%d replays at one time, want at most %d", most, maxReplays)
	}
}

func TestPingBusy(t *testing.T) {
	hung := rawService(t, untilHungUp)
	ping, err := NewPing(complete(PingConfig{Ports: []int{hung}, Timeout: 100 * time.Millisecond}))
	if err != nil {
		t.Fatal(err)
	}
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/ping": ping}})
	for range maxReplays {
		ping.slots <- struct{}{}
	}
	got := parseAnswer(t, say(t, addr, "GET /ping HTTP/1.0\r\n\r\n"), "GET")
	if got.StatusCode != http.StatusServiceUnavailable || got.body != "busy" {
		t.Errorf("without a turn in time answered %d %q, want 503 busy", got.StatusCode, got.body)
	}
	for range maxReplays {
		<-ping.slots
	}
	// Not shared: it said nothing about the services.
	if got := parseAnswer(t, say(t, addr, "GET /ping HTTP/1.0\r\n\r\n"), "GET"); got.body != "error" {
		t.Errorf("with a turn answered %d %q, want 500 error", got.StatusCode, got.body)
	}
}

// A service that is restarted between two verdicts does not look dead: no
// connection is kept.
func TestPingKeepsNoConnection(t *testing.T) {
	var conns atomic.Int64
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "pong") }))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
		if s == http.StateClosed {
			conns.Add(-1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	p := servePing(t, PingConfig{Ports: []int{srv.Listener.Addr().(*net.TCPAddr).Port}})
	p.want(t, 200, "pong")
	proctest.Until(t, "the connection is closed", func() bool { return conns.Load() == 0 })
}

func TestNewPingNamesEveryMistake(t *testing.T) {
	_, err := NewPing(complete(PingConfig{Ports: []int{0, 65536, -1, 80}, Timeout: 10 * time.Second, FailStatus: "200"}))
	for _, want := range []string{" 0 ", "65536", "-1", "10s", "200"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewPing() = %v, want %s named", err, want)
		}
	}
	for _, s := range []string{"302", "600", "4e2", "yes", "-1"} {
		if _, err := NewPing(complete(PingConfig{Ports: []int{80}, FailStatus: s})); err == nil {
			t.Errorf("NewPing with fail status %q = nil, want an error", s)
		}
	}
	_, err = NewPing(PingConfig{Ports: []int{80}})
	for _, want := range []string{"empty url", "timeout: 0s", `fail status: ""`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewPing without settings = %v, want %s named", err, want)
		}
	}
	if _, err := NewPing(complete(PingConfig{})); err == nil {
		t.Error("NewPing with nothing to answer for = nil, want an error")
	}
}

func TestCheck(t *testing.T) {
	proctest.NoLeaks(t)
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		answer  string
		wantErr string
	}{
		{"pong", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "pong\nand more\n") }, "200 pong", ""},
		{"empty", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, "204", ""},
		{"no primary", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "no primary", http.StatusServiceUnavailable)
		}, "503 no primary", "answered 503 no primary"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }, "302", "answered 302"},
		{"escapes", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "\x1b[2Jpong") }, `200 \x1b[2Jpong`, ""},
		{"endless", func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := io.WriteString(w, strings.Repeat("x", 4096)); err != nil {
					return
				}
			}
		}, "200 xxx", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(tt.handler)
			defer srv.Close()
			got, err := Check(t.Context(), srv.URL, nil)
			if !strings.HasPrefix(got, tt.answer) || len(got) > 2<<10 {
				t.Errorf("Check() = %q, want %q", got, tt.answer)
			}
			if (err != nil) != (tt.wantErr != "") || err != nil && !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("Check() error %v, want %q in it", err, tt.wantErr)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	hung := rawService(t, untilHungUp)
	if _, err := Check(ctx, fmt.Sprintf("http://127.0.0.1:%d/", hung), nil); err == nil {
		t.Error("Ask of a hung server = nil, want an error")
	}
	if _, err := Check(t.Context(), fmt.Sprintf("http://127.0.0.1:%d/", unreachablePort(t)), nil); err == nil {
		t.Error("Check of a port without a listener = nil, want an error")
	}
}

func ExamplePing() {
	ping, err := NewPing(PingConfig{
		Path: "/ping", Timeout: 2 * time.Second, FailStatus: "auto",
		Members: []Member{{Name: "orders", Kind: "relay", State: func() error { return ErrNoPrimary }}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	answer := httptest.NewRecorder()
	ping.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/ping", http.NoBody))
	fmt.Println(answer.Code, answer.Body)
	// Output: 503 no primary
}

// What a service must answer is the operator's choice.
func TestPingExpect(t *testing.T) {
	pong, fine, gone, empty := saying(t, 200, "pong"), saying(t, 200, "status: green\n"), saying(t, 404, "gone"), saying(t, 204, "")
	for _, tt := range []struct {
		name   string
		port   int
		expect criteria.Expect
		want   string
	}{
		{"nothing said", pong, criteria.Expect{}, "200 pong"},
		{"nothing said, no pong", fine, criteria.Expect{}, "502 status: green\n"},
		{"another body", fine, criteria.Expect{Body: "status: green"}, "200 status: green\n"},
		{"another body needs 200", gone, criteria.Expect{Body: "gone"}, "404 gone"},
		{"part of a body", fine, criteria.Expect{BodyContains: "green"}, "200 status: green\n"},
		{"expression", fine, criteria.Expect{BodyRegex: "^status: (green|yellow)$"}, "502 status: green\n"},
		{"expression that fits", fine, criteria.Expect{BodyRegex: "^status: (green|yellow)\\s*$"}, "200 status: green\n"},
		{"status alone", fine, criteria.Expect{Status: []string{"2xx"}}, "200 status: green\n"},
		{"status alone fails", gone, criteria.Expect{Status: []string{"2xx"}}, "404 gone"},
		{"an empty answer", empty, criteria.Expect{Status: []string{"204"}}, "204 "},
		{"an odd success is still reported as one", gone, criteria.Expect{Status: []string{"404"}}, "200 gone"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := servePing(t, PingConfig{Ports: []int{tt.port}, Expect: tt.expect}).request(t, "")
			if got := fmt.Sprint(got.StatusCode, " ", got.body); got != tt.want {
				t.Errorf("answered %q, want %q", got, tt.want)
			}
		})
	}
}

// Members and ports vote together.
func TestPingQuorum(t *testing.T) {
	s := seeing(t)
	down := saying(t, 413, "no")
	err := errors.New("secret")
	must := func(m Member) Member { m.Must = true; return m }
	ignore := func(m Member) Member { m.Ignore = true; return m }
	for _, tt := range []struct {
		name      string
		members   []Member
		ports     []int
		quorum    int
		want      string
		requested int // s
	}{
		{"all", []Member{member("a", nil)}, []int{s.port}, 0, "200 pong", 1},
		{"a probe that is down decides alone", []Member{member("a", err)}, []int{s.port}, 0, "503 down", 0},
		{"two of three ports", nil, []int{down, s.port, s.port}, 2, "200 pong", 2},
		{"one of three ports", nil, []int{down, s.port, down}, 2, "413 no", 1},
		{"one member may be down", []Member{member("a", err), member("b", nil)}, []int{s.port}, 2, "200 pong", 1},
		{"members alone make it up", []Member{member("a", nil), member("b", nil)}, []int{down}, 2, "200 pong", 0},
		{"two members down decide alone", []Member{member("a", err), member("b", ErrNoPrimary)}, []int{s.port}, 2, "503 down", 0},
		{"required, whatever the quorum", []Member{must(member("a", ErrNoPrimary)), member("b", nil)}, []int{s.port}, 1, "503 no primary", 0},
		{"required is no vote", []Member{must(member("a", nil)), member("b", err)}, nil, 1, "503 down", 0},
		{"ignored", []Member{ignore(member("a", err))}, []int{s.port}, 0, "200 pong", 1},
		{"ignored is no vote", []Member{ignore(member("a", nil)), member("b", err)}, []int{s.port}, 1, "200 pong", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := s.times()
			p := servePing(t, PingConfig{Members: tt.members, Ports: tt.ports, Quorum: tt.quorum})
			got := p.request(t, "")
			if got := fmt.Sprint(got.StatusCode, " ", got.body); got != tt.want {
				t.Errorf("answered %q, want %q", got, tt.want)
			}
			if requested := s.times() - before; requested != tt.requested {
				t.Errorf("the service was asked %d times, want %d", requested, tt.requested)
			}
		})
	}
	for _, tt := range []struct {
		cfg  PingConfig
		want string
	}{
		{PingConfig{Ports: []int{80}, Quorum: 2}, "quorum: 2"},
		{PingConfig{Ports: []int{80}, Quorum: -1}, "quorum: -1"},
		{PingConfig{Members: []Member{must(member("a", nil))}, Quorum: 1}, "quorum: 1"},
		{PingConfig{Members: []Member{must(ignore(member("a", nil)))}}, `"a" cannot be both`},
		{PingConfig{Members: []Member{ignore(member("a", nil))}}, "at least one"},
		{PingConfig{Members: []Member{{Name: "a"}}}, `"a" has no state`},
		{PingConfig{Ports: []int{80}, Expect: criteria.Expect{BodyRegex: "("}}, "body_regex"},
		{PingConfig{Ports: []int{80}, Path: "ping"}, `"ping"`},
	} {
		if _, err := NewPing(complete(tt.cfg)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("NewPing() = %v, want %q in it", err, tt.want)
		}
	}
}

// A verdict without a request: the ports see one all the same.
func TestPingEvaluate(t *testing.T) {
	s := seeing(t)
	down := saying(t, 413, "secret")
	for _, tt := range []struct {
		name string
		cfg  PingConfig
		want string
	}{
		{"good", PingConfig{Ports: []int{s.port}, Path: "/up%2F"}, ""},
		{"a port", PingConfig{Ports: []int{down}}, "status 413"},
		{"a port, forced", PingConfig{Ports: []int{down}, FailStatus: "503"}, "status 503"},
		{"no primary", PingConfig{Members: []Member{member("a", ErrNoPrimary)}, Ports: []int{s.port}}, "no primary"},
		{"a probe", PingConfig{Members: []Member{member("a", errors.New("secret"))}}, "down"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			proctest.NoLeaks(t)
			p, err := NewPing(complete(tt.cfg))
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				err := p.Evaluate(t.Context())
				if (err == nil) != (tt.want == "") || err != nil && err.Error() != tt.want {
					t.Errorf("Evaluate() = %v, want %q", err, tt.want)
				}
			}
		})
	}
	if s.times() != 1 {
		t.Fatalf("the service was asked %d times, want once for three verdicts", s.times())
	}
	if got := s.got[0]; got.Method != http.MethodGet || got.RequestURI != "/up%2F" || got.UserAgent() != "understudy" || !strings.HasPrefix(got.Host, "127.0.0.1:") {
		t.Errorf("the service was asked %s %s of %s by %s", got.Method, got.RequestURI, got.Host, got.UserAgent())
	}
}

// F68: many verdicts a second cost each service one request a second. What it
// measures is one client after the other on connections that are kept; it does
// not measure the client's own cost apart.
func BenchmarkPing(b *testing.B) {
	var requested atomic.Int64
	port := service(b, func(w http.ResponseWriter, _ *http.Request) {
		requested.Add(1)
		io.WriteString(w, "pong")
	})
	p := servePing(b, PingConfig{Ports: []int{port}})
	var mu sync.Mutex
	var took []time.Duration
	began := time.Now()
	b.RunParallel(func(pb *testing.PB) {
		conn := dialHTTP(b, p.addr)
		conn.SetDeadline(time.Time{})
		r := bufio.NewReader(conn)
		var own []time.Duration
		for pb.Next() {
			sent := time.Now()
			io.WriteString(conn, "GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				b.Error(err)
				return
			}
			io.Copy(io.Discard, resp.Body)
			own = append(own, time.Since(sent))
		}
		mu.Lock()
		defer mu.Unlock()
		took = append(took, own...)
	})
	spent := time.Since(began)
	slices.Sort(took)
	b.ReportMetric(float64(len(took))/spent.Seconds(), "pings/s")
	b.ReportMetric(took[len(took)*99/100].Seconds()*1000, "p99-ms")
	b.ReportMetric(float64(requested.Load())/math.Ceil(spent.Seconds()), "asked/s")
}

// CF 16: every port is asked, whatever those before it said. CF 28: the time of
// each is its own.
func TestPingRequestsEveryPort(t *testing.T) {
	const slow = 400 * time.Millisecond
	first, last := unreachablePort(t), seeing(t)
	middle := service(t, func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(slow) // a service that is slow
		http.Error(w, "no", http.StatusTeapot)
	})
	p := servePing(t, PingConfig{Ports: []int{first, middle, last.port}, Timeout: 9 * time.Second})
	p.want(t, 500, "error")
	if last.times() != 1 {
		t.Errorf("the last service was asked %d times, want once", last.times())
	}
	record := regexp.MustCompile(fmt.Sprintf(`- Port %d → Status: 418, Body: no\\n\.\., Time: ([\d.]+)s\n- Port %d → Status: 200, Body: pong\.\., Time: ([\d.]+)s\n`, middle, last.port))
	proctest.Until(t, "the record is there", func() bool { return record.MatchString(p.bad.String()) })
	times := record.FindStringSubmatch(p.bad.String())
	took := func(i int) float64 {
		seconds, err := strconv.ParseFloat(times[i], 64)
		if err != nil {
			t.Fatal(err)
		}
		return seconds
	}
	if took(1) < slow.Seconds() || took(2) >= took(1) {
		t.Errorf("the slow service took %gs and the one behind it %gs, want %gs at least, and less", took(1), took(2), slow.Seconds())
	}
}
