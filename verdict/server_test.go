package verdict

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/proctest"
)

func TestServerRoutes(t *testing.T) {
	named := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, name) })
	}
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{
		"/ping": named("exact"), "/ping/": named("below"), "/ping/deep/": named("deep"), "/status": named("status"),
	}})
	for _, tt := range []struct{ target, want string }{
		{"/ping", "200 exact"},
		{"/ping?a=1&a=2", "200 exact"},
		{"/ping?next=/../x", "200 exact"},
		{"/ping/", "200 below"},
		{"/ping/a/b", "200 below"},
		{"/ping/deep/er", "200 deep"},
		{"/ping/deep", "200 below"},
		{"/status", "200 status"},
		{"/status/", "404 not found\n"},
		{"/", "404 not found\n"},
		{"//ping", "404 not found\n"}, // ServeMux would redirect
		{"/p%69ng", "404 not found\n"},
		{"/PING", "404 not found\n"},
		{"/ping/../admin", "400 bad request\n"},
		{"/ping/%2e%2e/admin", "400 bad request\n"},
		{"/ping/%252e%252e%252fadmin", "400 bad request\n"},
		{"/ping/..%2fadmin", "400 bad request\n"},
		{"/ping/..;v=1/admin", "400 bad request\n"},
		{`/ping/..\admin`, "400 bad request\n"},
		{"/ping/./x", "400 bad request\n"},
		{"/ping/..x/...", "200 below"},
		{"/ping/100%25", "200 below"},
		{"/ping/%25zz/%252e%252e/%252e%252e/admin", "400 bad request\n"},
		{"/ping/%25252525252525252e", "400 bad request\n"},
	} {
		t.Run(tt.target, func(t *testing.T) {
			answer := say(t, addr, "GET "+tt.target+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			resp := parseAnswer(t, answer, "GET")
			if got := fmt.Sprint(resp.StatusCode, " ", resp.body); got != tt.want {
				t.Errorf("GET %s = %q, want %q", tt.target, got, tt.want)
			}
			if resp.Header.Get("Location") != "" || resp.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("GET %s: headers %v, want no Location and Cache-Control: no-store", tt.target, resp.Header)
			}
		})
	}
}

// F67: every request that two servers could understand differently gets one
// refusal and the end of the connection, whatever follows it.
func TestServerRefusesAmbiguousRequests(t *testing.T) {
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": mirror}})
	const smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, tt := range []struct {
		name, raw string
		want      []int
	}{
		{"length and chunked", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled, []int{400}},
		{"chunked and length", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + smuggled, []int{400}},
		{"two lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 36\r\n\r\n" + smuggled, []int{400}},
		{"the same length twice", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na" + smuggled, []int{400}},
		{"list of lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\na" + smuggled, []int{400}},
		{"length abc", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n" + smuggled, []int{400}},
		{"negative length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n" + smuggled, []int{400}},
		{"length +1", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na" + smuggled, []int{400}},
		{"unknown coding", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n" + smuggled, []int{400, 501}},
		{"two codings", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + smuggled, []int{400, 501}},
		{"coding behind a tab", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\x0bchunked\r\n\r\n" + smuggled, []int{400, 501}},
		{"coding in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n" + smuggled, []int{400}},
		{"absolute form of another scheme", "GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{400}},
		{"absolute form without a host", "GET http:/// HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{400}},
		{"absolute form with a user", "GET http://ann@x/ HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{400}},
		{"absolute form with a backslash", `GET http://x\@y/ HTTP/1.1` + "\r\nHost: x\r\n\r\n" + smuggled, []int{400}},
		{"absolute form with a fragment", "GET http://x/#y HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{400}},
		{"absolute form with dot segments", "GET http://x/../y HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{400}},
		{"absolute form without the header Host", "GET http://x/ HTTP/1.1\r\n\r\n" + smuggled, []int{400}},
		{"absolute form with two headers Host", "GET http://x/ HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" + smuggled, []int{400}},
		{"fragment", "GET /a#/../b HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{400}},
		{"fragment behind a query", "GET /a?b#c HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{400}},
		{"encoded NUL", "GET /ping%00/x HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{400}},
		{"NUL encoded twice", "GET /ping%2500/x HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{400}},
		{"opaque target", "GET http:x/ HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{400}},
		{"asterisk of another method", "GET * HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{400}},
		{"connect", "CONNECT elsewhere:443 HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{405}},
		{"trace", "TRACE / HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{405}},
		{"unknown method", "BREW / HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{501}},
		{"lower-case method", "get / HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{501}},
		{"HTTP/0.9", "GET /\r\n\r\n" + smuggled, []int{400}},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + smuggled, []int{400, 505}},
		{"HTTP/3.1", "GET / HTTP/3.1\r\nHost: x\r\n\r\n" + smuggled, []int{400, 505}},
		{"line feeds alone", "GET / HTTP/1.1\nHost: x\n\n" + smuggled, []int{400}},
		{"one line feed alone", "GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n" + smuggled, []int{400}},
		{"carriage return in a line", "GET / HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n" + smuggled, []int{400}},
		{"folded header", "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n" + smuggled, []int{400}},
		{"folded first header", "GET / HTTP/1.1\r\n Host: x\r\n\r\n" + smuggled, []int{400}},
		{"space before colon", "GET / HTTP/1.1\r\nHost : x\r\n\r\n" + smuggled, []int{400}},
		{"no colon", "GET / HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n" + smuggled, []int{400}},
		{"no host", "GET / HTTP/1.1\r\n\r\n" + smuggled, []int{400}},
		{"two hosts", "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" + smuggled, []int{400}},
		{"NUL in a value", "GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n" + smuggled, []int{400}},
		{"control character in the target", "GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{400}},
		{"space in the target", "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{400}},
		{"undecodable target", "GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{400}},
		{"second request is the ambiguous one", "GET /\x7f HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, []int{400}},
		{"TLS hello", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n" + smuggled, []int{400}},
		{"unknown expectation", "POST / HTTP/1.1\r\nHost: x\r\nExpect: wonders\r\nContent-Length: 1\r\n\r\na" + smuggled, []int{417}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			raw := say(t, addr, tt.raw)
			got := parseAnswer(t, raw, "GET")
			if !slices.Contains(tt.want, got.StatusCode) {
				t.Errorf("status %d, want one of %v", got.StatusCode, tt.want)
			}
			if got.rest != "" || strings.Count(raw, "HTTP/1.") != 1 || strings.Contains(raw, "/smuggled") {
				t.Errorf("answered %q, want one answer", raw)
			}
			if !got.Close {
				t.Errorf("answered %q, want the connection to end by name", raw)
			}
		})
	}
}

// net/http accepts, without a trace in the request, what checkHead refuses, and
// refuses by itself what checkHead passes over. When a later version is stricter,
// checkHead can do less.
func TestNetHTTPForgives(t *testing.T) {
	srv := httptest.NewServer(mirror)
	t.Cleanup(srv.Close)
	for _, tt := range []struct {
		name, raw string
		want      int
	}{
		{"length and chunked", "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200},
		{"the same length twice", "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", 200},
		{"coding in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200},
		{"line feeds alone", "GET / HTTP/1.1\nHost: x\nConnection: close\n\n", 200},
		{"folded header", "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nA: b\r\n c\r\n\r\n", 200},

		{"two lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\na", 400},
		{"two codings", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501},
		{"carriage return in a value", "GET / HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n", 400},
		{"carriage return behind a value", "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\r\n\r\n", 400},
		{"carriage return in a name", "GET / HTTP/1.1\r\nHost: x\r\nA\rB: c\r\n\r\n", 400},
		{"carriage return in the first line", "GET /\r HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"carriage return behind the first line", "GET / HTTP/1.1\r\r\nHost: x\r\n\r\n", 400},
		{"NUL in a value", "GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n", 400},
		{"NUL in a name", "GET / HTTP/1.1\r\nHost: x\r\nA\x00: c\r\n\r\n", 400},
		{"NUL in the first line", "GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
	} {
		if got := parseAnswer(t, say(t, srv.Listener.Addr().String(), tt.raw), "GET"); got.StatusCode != tt.want {
			t.Errorf("%s: net/http answers %d, want %d", tt.name, got.StatusCode, tt.want)
		}
	}
}

// A target in absolute form is one in origin form whose authority is the Host,
// RFC 9112 §3.2.2. An asterisk is about the server, and reaches no route.
func TestServerRequestTargets(t *testing.T) {
	said := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %q %q", r.RequestURI, r.Host, r.URL.String(), r.URL.Path)
	})
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": said, "/ping": mirror}})
	for _, tt := range []struct{ target, want string }{
		{"/a?b", `/a?b x "/a?b" "/a"`},
		{"http://elsewhere/a?b", `/a?b elsewhere "/a?b" "/a"`},
		{"HTTP://Elsewhere:80/a%20b", `/a%20b Elsewhere:80 "/a%20b" "/a b"`},
		{"https://[2001:db8::1]:1/", `/ [2001:db8::1]:1 "/" "/"`},
		{"http://elsewhere", `/ elsewhere "/" "/"`},
		{"http://elsewhere?b", `/?b elsewhere "/?b" "/"`},
		{"http://elsewhere//other/a", `//other/a elsewhere "//other/a" "//other/a"`},
		{"//other/a", `//other/a x "//other/a" "//other/a"`},
		{"http://elsewhere/http://other/", `/http://other/ elsewhere "/http://other/" "/http://other/"`},
		{"/http://other/", `/http://other/ x "/http://other/" "/http://other/"`},
	} {
		raw := say(t, addr, "GET "+tt.target+" HTTP/1.1\r\nHost: x\r\n\r\nGET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		got := parseAnswer(t, raw, "GET")
		if got.StatusCode != http.StatusOK || got.body != tt.want || strings.Count(raw, "HTTP/1.1 200") != 2 {
			t.Errorf("GET %s: %d %s, with %d good answers on the connection, want 200 %s and two", tt.target, got.StatusCode, got.body, strings.Count(raw, "HTTP/1.1 200"), tt.want)
		}
	}
	for _, target := range []string{"*", "http://elsewhere"} {
		raw := say(t, addr, "OPTIONS "+target+" HTTP/1.1\r\nHost: x\r\n\r\nGET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		got := parseAnswer(t, raw, "OPTIONS")
		if got.StatusCode != http.StatusOK || got.body != "" || got.Header.Get("Allow") != methods || strings.Count(raw, "HTTP/1.1 200") != 2 {
			t.Errorf("OPTIONS %s: answered %q, want 200 without a body, the methods, and the next answer", target, raw)
		}
	}
}

// Ambiguity in a later request of a connection is seen too, however the bytes
// were cut into segments.
func TestServerChecksEveryHead(t *testing.T) {
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": mirror}})
	const good, folded = "GET /good HTTP/1.1\r\nHost: x\r\n\r\n", "GET /bad HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n"
	whole := good + "POST /empty HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" + good + folded + good
	for _, size := range []int{1, 7, 40, len(whole)} {
		t.Run(fmt.Sprintf("segment=%d", size), func(t *testing.T) {
			conn := dialHTTP(t, addr)
			conn.SetNoDelay(true)
			go func() {
				for part := range slices.Chunk([]byte(whole), size) {
					if _, err := conn.Write(part); err != nil {
						return
					}
					time.Sleep(50 * time.Microsecond) // each part comes by itself
				}
			}()
			raw, _ := io.ReadAll(conn)
			if n, bad := strings.Count(string(raw), "HTTP/1.1 200"), strings.Count(string(raw), "HTTP/1.1 400"); n != 3 || bad != 1 {
				t.Errorf("%d good answers and %d refusals, want 3 and 1: %q", n, bad, raw)
			}
		})
	}
}

// The time for an answer begins when the request is here as a whole.
func TestServerAnswersASlowBody(t *testing.T) {
	const limit = time.Second
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": mirror}, requestTimeout: time.Minute, answerTimeout: limit})
	conn := dialHTTP(t, addr)
	io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nsl")
	time.Sleep(limit + limit/4) // longer than there is for a response
	io.WriteString(conn, "ow")
	if got, err := io.ReadAll(conn); !strings.Contains(string(got), `"slow"`) || err != nil {
		t.Errorf("answered %q, %v, want what was asked", got, err)
	}
}

// Whatever follows a request with a body is never taken for another.
func TestServerEndsWithABody(t *testing.T) {
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": mirror}})
	const second = "GET /second HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, first := range []string{
		"POST /first HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi",
		"POST /first HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
	} {
		got := say(t, addr, first+second)
		if answer := parseAnswer(t, got, "POST"); answer.StatusCode != http.StatusOK || !answer.Close || answer.rest != "" || !strings.Contains(answer.body, `"hi"`) {
			t.Errorf("after %q answered %q, want one answer and the end", first, got)
		}
	}
}

func TestServerKeepsHonestConnections(t *testing.T) {
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": mirror}})
	conn := dialHTTP(t, addr)
	r := bufio.NewReader(conn)
	for i := range 5 {
		fmt.Fprintf(conn, "GET /%d HTTP/1.1\r\nHost: any.host.at.all\r\n\r\n", i)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if body, _ := io.ReadAll(resp.Body); !strings.Contains(string(body), fmt.Sprintf("GET /%d ", i)) {
			t.Errorf("request %d was answered %q", i, body)
		}
	}
}

// F62.
func TestServerLimitsHeads(t *testing.T) {
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": mirror}})
	head := func(size int) string {
		const start, end = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nA: ", "\r\n\r\n"
		return start + strings.Repeat("a", size-len(start)-len(end)) + end
	}
	for _, tt := range []struct {
		name, raw string
		want      int
	}{
		{"just under the limit", head(maxHead - 1), 200},
		{"over the limit", head(maxHead + 1), 431},
		{"1 MiB header", head(1 << 20), 431},
		{"10 000 headers", "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 10_000) + "\r\n", 431},
		{"100 KiB target", "GET /" + strings.Repeat("a", 100<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n", 431},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := dialHTTP(t, addr)
			go io.WriteString(conn, tt.raw) // the answer comes before the end
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.want {
				t.Errorf("status %d, want %d", resp.StatusCode, tt.want)
			}
		})
	}
}

func TestServerTimeouts(t *testing.T) {
	addr := serveRoutes(t, ServerConfig{
		Routes:      map[string]http.Handler{"/": mirror},
		headTimeout: time.Second, requestTimeout: 1500 * time.Millisecond, idleTimeout: 1200 * time.Millisecond,
	})
	for _, tt := range []struct{ name, raw, want string }{
		{"silence", "", ""},
		{"half a head", "GET / HTTP/1.1\r\nHost:", ""},
		{"half a body", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab", "i/o timeout"},
		{"idle after an answer", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET /"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			got := say(t, addr, tt.raw)
			if took := time.Since(began); took < 900*time.Millisecond || took > 15*time.Second {
				t.Errorf("closed after %s, want after its timeout", took)
			}
			if !strings.Contains(got, tt.want) || tt.want == "" && got != "" {
				t.Errorf("answered %q, want %q in it", got, tt.want)
			}
		})
	}
}

// F60: slow clients, more than the limit admits, do not keep honest ones out.
func TestServerSlowlorisDoesNotLockOut(t *testing.T) {
	const limit, slow = 64, 400
	// A client that is locked out waits until the slow ones time out.
	addr := serveRoutes(t, ServerConfig{
		Routes: map[string]http.Handler{"/": mirror}, MaxConnections: limit,
		headTimeout: time.Minute, requestTimeout: time.Minute, idleTimeout: time.Minute,
	})
	for i := range slow {
		conn := dialHTTP(t, addr)
		switch i % 3 {
		case 0:
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nA:")
		case 1:
			io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\na")
		case 2:
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") // then idle
		}
	}
	var took []time.Duration
	for range 100 {
		began := time.Now()
		if got := say(t, addr, "GET /honest HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); !strings.Contains(got, "GET /honest") {
			t.Fatalf("honest client was answered %q", got)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("honest requests beside %d slow ones: median %s, slowest %s", slow, took[50], took[99])
	if took[99] > 15*time.Second {
		t.Errorf("slowest honest request took %s, want no wait for the slow ones", took[99])
	}
}

// The limit holds, and a client that comes when all places are busy waits.
func TestServerConnectionLimit(t *testing.T) {
	const limit = 8
	var mu sync.Mutex
	busy, most := 0, 0
	release := make(chan struct{})
	hold := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		busy++
		most = max(most, busy)
		mu.Unlock()
		<-release
		mu.Lock()
		busy--
		mu.Unlock()
		io.WriteString(w, "held")
	})
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": hold}, MaxConnections: limit})
	answers := make(chan string, 3*limit)
	for range 3 * limit {
		go func() { answers <- say(t, addr, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") }()
	}
	proctest.Until(t, "the limit is reached", func() bool { mu.Lock(); defer mu.Unlock(); return busy == limit })
	time.Sleep(50 * time.Millisecond) // time for a mistake
	close(release)
	for range 3 * limit {
		if got := <-answers; !strings.HasSuffix(got, "held") {
			t.Errorf("answered %q, want held", got)
		}
	}
	if most != limit {
		t.Errorf("%d requests at one time, want %d", most, limit)
	}
}

// F51.
func TestServerBindNamesBusyAddress(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s, err := NewServer(ServerConfig{Listen: ln.Addr().String(), Routes: map[string]http.Handler{"/": mirror}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Bind(); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("Bind() = %v, want address in use, naming %s", err, ln.Addr())
	}
}

func TestServerStop(t *testing.T) {
	proctest.NoLeaks(t)
	requested, release := make(chan struct{}), make(chan struct{})
	s, err := NewServer(ServerConfig{Listen: "127.0.0.1:0", Routes: map[string]http.Handler{
		"/": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(requested)
			<-release
			io.WriteString(w, "in time")
		}),
		"/body": mirror,
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil {
		t.Error("Run() before Bind = nil, want an error")
	}
	if err := s.Bind(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()

	addr := s.Addr().String()
	silent, slow, honest := dialHTTP(t, addr), dialHTTP(t, addr), dialHTTP(t, addr)
	io.WriteString(slow, "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
	io.WriteString(honest, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	<-requested
	began := time.Now()
	stop()
	for _, conn := range []net.Conn{silent, slow} {
		if got, err := io.ReadAll(conn); bytes.Contains(got, []byte("200")) || os.IsTimeout(err) {
			t.Errorf("client without a whole request read %q, %v, want the end", got, err)
		}
	}
	if _, err := net.Dial("tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial after the end: %v, want connection refused", err)
	}
	select {
	case err := <-ended:
		t.Fatalf("Run() = %v while a request was under way", err)
	default:
	}
	close(release)
	if got, err := io.ReadAll(honest); !bytes.HasSuffix(got, []byte("in time")) || err != nil {
		t.Errorf("request under way was answered %q, %v", got, err)
	}
	if err := <-ended; err != nil {
		t.Errorf("Run() = %v, want nil", err)
	}
	if took := time.Since(began); took > 9*time.Second { // answerTimeout is 10s
		t.Errorf("stopping took %s, want as long as the request under way", took)
	}
}

// Run does not return while a handler runs, even one that is over its time.
func TestServerStopWaitsForHandlers(t *testing.T) {
	proctest.NoLeaks(t)
	requested, release := make(chan struct{}), make(chan struct{})
	s, err := NewServer(ServerConfig{Listen: "127.0.0.1:0", answerTimeout: 50 * time.Millisecond, Routes: map[string]http.Handler{
		"/": http.HandlerFunc(func(http.ResponseWriter, *http.Request) { close(requested); <-release }),
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Bind(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	conn := dialHTTP(t, s.Addr().String())
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	<-requested
	stop()
	io.ReadAll(conn) // the connection is cut
	select {
	case err := <-ended:
		t.Errorf("Run() = %v while a handler ran", err)
	case <-time.After(200 * time.Millisecond): // time for a mistake
	}
	close(release)
	if err := <-ended; err != nil {
		t.Errorf("Run() = %v, want nil", err)
	}
}

func TestNewServerNamesEveryMistake(t *testing.T) {
	_, err := NewServer(ServerConfig{
		Listen: "9001", Routes: map[string]http.Handler{"ping": mirror, "/a?b": mirror, "/a/../b": mirror},
	})
	for _, want := range []string{`"9001"`, `"ping"`, `"/a?b"`, `"/a/../b"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewServer() = %v, want %s named", err, want)
		}
	}
	if _, err := NewServer(ServerConfig{Listen: ":9001"}); err == nil {
		t.Error("NewServer without routes = nil, want an error")
	}
}

// F70.
func TestComplaintsAreRateLimited(t *testing.T) {
	var out lockedBuffer
	logger := hclog.New(&hclog.LoggerOptions{Output: &out, Level: hclog.Debug})
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{
		"/": mirror,
		"/panic": http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			panic("on purpose")
		}),
	}, Logger: logger})
	began := time.Now()
	for range 50 {
		say(t, addr, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n\x00garbage")
		say(t, addr, "\x00\xff garbage\r\n\r\n")
	}
	clientErrors := &clientErrorLog{log: logger}
	for range 1000 {
		io.WriteString(clientErrors, "http: TLS handshake error\n")
	}
	most := 3 + int(time.Since(began)/time.Second) // of two logs
	if n := strings.Count(out.String(), "http client refused"); n < 1 || n > most {
		t.Errorf("%d records about garbage, want one a second: %s", n, out.String())
	}
	say(t, addr, "GET /panic HTTP/1.1\r\nHost: x\r\n\r\n")
	proctest.Until(t, "the panic is in the log", func() bool { return strings.Contains(out.String(), "[ERROR]") })
	if got := say(t, addr, "GET / HTTP/1.0\r\n\r\n"); !strings.Contains(got, "200 OK") {
		t.Errorf("after a panic answered %q, want 200", got)
	}
}

func FuzzHasDotSegments(f *testing.F) {
	for _, seed := range []string{"/a", "/..", "/%2e%2e/", "/a/..;x/", `/\..\`, "/%25252e", "/a//b", "/%"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, below string) {
		raw := "/ping/" + below
		rt := route{path: "/ping/"}
		if !rt.takes(raw) {
			t.Fatalf("%q is not below /ping/", raw)
		}
		if hasDotSegments(raw) {
			return
		}
		if strings.ContainsRune(decodeOnce(raw), 0) {
			t.Fatalf("%q has a NUL in it, where some servers end it", raw)
		}
		// Whatever passes stays below, for a server that decodes and cleans.
		for _, seen := range []string{raw, decodeOnce(raw), decodeOnce(decodeOnce(raw)), strings.ReplaceAll(decodeOnce(raw), `\`, "/")} {
			depth := 0
			for segment := range strings.SplitSeq(strings.TrimPrefix(seen, "/ping/"), "/") {
				if segment == ".." {
					depth--
				} else if segment != "" && segment != "." {
					depth++
				}
				if depth < 0 {
					t.Fatalf("%q leaves /ping/ when read as %q", raw, seen)
				}
			}
		}
	})
}

// decodeOnce decodes the percent-encoding that it understands.
func decodeOnce(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func FuzzCheckHead(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.1\nHost: x\n\n", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
		"\r\n\r\n", "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		p := &peer{raw: raw}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		refused := p.nextHead(false)
		if err != nil || refused != nil {
			return
		}
		// A request that both accept has the same length for both.
		if len(r.TransferEncoding) > 0 && bytes.Contains(bytes.ToLower(raw[:headEnd(raw)]), []byte("content-length:")) {
			t.Fatalf("%q has two lengths", raw)
		}
		head := raw[:len(raw)-len(p.raw)]
		if bytes.Count(head, []byte("\n")) != bytes.Count(head, []byte("\r\n")) {
			t.Fatalf("%q has a bare line feed", head)
		}
	})
}

// F67: nothing that two servers could understand differently gets to a service
// or an endpoint.
func TestServerAmbiguousRequestsReachNoService(t *testing.T) {
	s := seeing(t)
	ping, err := NewPing(complete(PingConfig{Ports: []int{s.port}}))
	if err != nil {
		t.Fatal(err)
	}
	endpoints, err := NewEndpoints(completeEndpoints(EndpointsConfig{URLs: []string{at(s.port)}}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(endpoints.Close)
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/ping": ping, "/": endpoints}})
	const smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, path := range []string{"/ping", "/any"} {
		for _, raw := range []string{
			"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
			"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 36\r\n\r\n",
			"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
			"GET ftp://127.0.0.1%s HTTP/1.1\r\nHost: x\r\n\r\n",
			"GET http://ann@127.0.0.1%s HTTP/1.1\r\nHost: x\r\n\r\n",
			"CONNECT 127.0.0.1:80%s HTTP/1.1\r\nHost: x\r\n\r\n",
			"TRACE %s HTTP/1.1\r\nHost: x\r\n\r\n",
			"get %s HTTP/1.1\r\nHost: x\r\n\r\n",
			"GET %s\r\n\r\n",
			"GET %s HTTP/1.1\nHost: x\n\n",
			"GET %s HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
			"GET %s HTTP/1.1\r\nHost : x\r\n\r\n",
			"GET %s/../smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
			"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n%.0s",
			"GET * HTTP/1.1\r\nHost: x\r\n\r\n%.0s",
		} {
			raw := fmt.Sprintf(raw, path)
			if got := parseAnswer(t, say(t, addr, raw+smuggled), "GET"); got.StatusCode < 400 || !got.Close || got.rest != "" {
				t.Errorf("%q: answered %d, close %t, %q behind it, want a refusal and the end", raw, got.StatusCode, got.Close, got.rest)
			}
		}
	}
	if s.times() != 0 {
		t.Errorf("the service was asked %d times, first %s %s, want none", s.times(), s.got[0].Method, s.got[0].RequestURI)
	}
}

// F62: a head that is as long as it may be costs 64 KiB at most while it is
// waited for.
func TestServerHeadsAreCheap(t *testing.T) {
	const conns = 300
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": mirror}})
	inUse := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	say(t, addr, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	before := inUse()
	head := "GET /" + strings.Repeat("a", 8<<10) + " HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("b", 7<<10)
	var open []net.Conn
	for range conns {
		conn := dialHTTP(t, addr)
		if _, err := io.WriteString(conn, head); err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	time.Sleep(200 * time.Millisecond) // for the server to read: if it has not, it costs less
	each := (int64(inUse()) - int64(before)) / conns
	t.Logf("%d unfinished heads cost %d bytes each, clients included", conns, each)
	if each > 64<<10 {
		t.Errorf("an unfinished head costs %d bytes, want at most %d", each, 64<<10)
	}
	runtime.KeepAlive(open)
}

// F70: what is no HTTP at all is refused or hung up on, at most logged once a
// second, and honest requests beside it are answered.
func TestServerGarbage(t *testing.T) {
	var log lockedBuffer
	addr := serveRoutes(t, ServerConfig{
		Routes: map[string]http.Handler{"/": mirror}, Logger: hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Debug}),
		headTimeout: time.Second,
	})
	garbage := []string{
		"", "\x00", "\r\n\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("\xaa", 500),
		"SSH-2.0-scan\r\n", "\x80\x9e\x01\x03\x01", "HELP\r\n", "EHLO x\r\n", "\xff\xfb\x1f\xff\xfb\x20", "*1\r\n$4\r\nPING\r\n",
		strings.Repeat("\xff", 40_000), "GET " + strings.Repeat("/", 20_000), "\x03\x00\x00\x0b\x06\xe0\x00\x00\x00\x00\x00", "{}\n",
	}
	began := time.Now()
	var all sync.WaitGroup
	for i := range 20 * len(garbage) {
		all.Go(func() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			io.WriteString(conn, garbage[i%len(garbage)])
			switch i % 3 {
			case 0:
				conn.(*net.TCPConn).SetLinger(0) // a port scan's goodbye
			case 1:
				conn.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, conn)
			case 2:
				answer, err := io.ReadAll(conn)
				if bytes.Contains(answer, []byte(" 200 ")) || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%.20q was answered %q, %v, want a refusal or the end", garbage[i%len(garbage)], answer, err)
				}
			}
		})
	}
	if got := say(t, addr, "GET /honest HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); !strings.Contains(got, "GET /honest") {
		t.Errorf("an honest client was answered %q", got)
	}
	all.Wait()
	text, seconds := log.String(), int(time.Since(began)/time.Second)+1
	if n := strings.Count(text, "http client refused"); n > seconds || strings.Count(text, "\n") > seconds+2 || strings.Contains(text, "panic") {
		t.Errorf("%d complaints in %d seconds, want one in each at most:\n%.2000s", n, seconds, text)
	}
}
