package health

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
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pongExpect is what the selector's pong check asks for.
var pongExpect = Expect{Status: []string{"200"}, Body: "pong"}

// askHTTP makes one HTTP check of the port of host.
func askHTTP(ctx context.Context, tb testing.TB, cfg HTTPConfig, host string) Result {
	tb.Helper()
	cfg.Port = portOf(tb, host)
	check, err := HTTP(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	// The port of the connection string plays no part.
	return check(ctx, "127.0.0.1:1")
}

func TestHTTP(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, tt := range []struct {
		name    string
		raw     string // what the host answers,
		endless string // and then once and again
		expect  Expect
		phase   Phase
		want    string // part of the error; empty for a pass
		status  int
		body    string
	}{
		{"pong", ok + "Content-Length: 4\r\n\r\npong", "", pongExpect, "", "", 200, "pong"},
		{"pong without a length", ok + "\r\npong\n", "", pongExpect, "", "", 200, "pong\n"},
		{"pong over HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\npong", "", pongExpect, "", "", 200, "pong"},
		{"pong in chunks", ok + "Transfer-Encoding: chunked\r\n\r\n2\r\npo\r\n2\r\nng\r\n0\r\n\r\n", "", pongExpect, "", "", 200, "pong"},
		{"pong after interim answers", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok + "Content-Length: 4\r\n\r\npong", "", pongExpect, "", "", 200, "pong"},
		{"pong and an unasked rest", ok + "Content-Length: 4\r\n\r\npongpong", "", pongExpect, "", "", 200, "pong"},
		{"no body is asked for", ok + "Content-Length: 1000000\r\n\r\nhello", "", Expect{}, "", "", 200, "hello"},

		{"another status", "HTTP/1.1 503 Service Unavailable\r\n\r\nreplica lags", "", pongExpect, Criteria, "status 503, want 200", 503, "replica lags"},
		{"another body", ok + "\r\nerror", "", pongExpect, Criteria, `body "error", want "pong"`, 200, "error"},
		{"pong compressed", ok + "Content-Encoding: gzip\r\n\r\n\x1f\x8b\x08\x00", "", pongExpect, Criteria, `body "\x1f\x8b`, 200, "\x1f\x8b\x08\x00"},
		{"redirect", "HTTP/1.1 302 Found\r\nLocation: /ping\r\n\r\npong", "", pongExpect, Criteria, "status 302, want 200", 302, "pong"},
		{"protocol switch", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\npong", "", pongExpect, Criteria, "status 101, want 200", 101, ""},

		{"truncated", ok + "Content-Length: 10\r\n\r\npong", "", pongExpect, Read, "body: unexpected EOF", 200, "pong"},
		{"truncated chunk", ok + "Transfer-Encoding: chunked\r\n\r\n8\r\npong", "", pongExpect, Read, "body: unexpected EOF", 200, "pong"},
		{"two lengths", ok + "Content-Length: 4\r\nContent-Length: 5\r\n\r\npong", "", pongExpect, Read, "Content-Length", 0, ""},
		{"no answer", "", "", pongExpect, Read, "EOF", 0, ""},
		{"no HTTP", "SSH-2.0-OpenSSH_9.9\r\n", "", pongExpect, Read, "malformed HTTP", 0, ""},
		{"half a head", "HTTP/1.1 200 OK\r\nContent-Le", "", pongExpect, Read, "malformed MIME header", 0, ""},

		{"endless compressed body", ok + "Content-Encoding: gzip\r\n\r\n", strings.Repeat("\x00", 4096), pongExpect, Criteria, "want \"pong\"", 200, strings.Repeat("\x00", resultBodyLimit)},
		{"length that is a lie, and endless", ok + "Content-Length: 4\r\n\r\npong", strings.Repeat("a", 4096), pongExpect, "", "", 200, "pong"},
		{"length beyond all bounds", ok + "Content-Length: 9223372036854775807\r\n\r\n", strings.Repeat("a", 4096), pongExpect, Criteria, "want \"pong\"", 200, strings.Repeat("a", resultBodyLimit)},
		{"length below zero", ok + "Content-Length: -1\r\n\r\npong", "", pongExpect, Read, "bad Content-Length", 0, ""},
		{"chunk of a size beyond all bounds", ok + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", "", pongExpect, Read, "body: ", 200, ""},
		{"endless body", ok + "\r\n", strings.Repeat("a", 4096), pongExpect, Criteria, "want \"pong\"", 200, strings.Repeat("a", resultBodyLimit)},
		{"endless white space", ok + "\r\npong", strings.Repeat(" ", 4096), pongExpect, Criteria, "want \"pong\"", 200, "pong" + strings.Repeat(" ", resultBodyLimit-4)},
		{"endless chunks", ok + "Transfer-Encoding: chunked\r\n\r\n", "1\r\na\r\n", pongExpect, Criteria, "want \"pong\"", 200, strings.Repeat("a", resultBodyLimit)},
		{"endless headers", ok, "A: b\r\n", pongExpect, Read, "headers are longer than 16384 bytes", 0, ""},
		{"endless header", ok + "A: ", "b", pongExpect, Read, "headers are longer than 16384 bytes", 0, ""},
		{"endless status line", "HTTP/1.1 200 ", "OK", pongExpect, Read, "headers are longer than 16384 bytes", 0, ""},
		{"endless interim answers", "", "HTTP/1.1 100 Continue\r\n\r\n", pongExpect, Read, "headers are longer than 16384 bytes", 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := checkContext(t, checkLimit)
			host := listenHost(t, "tcp", "127.0.0.1:0", serveRaw(tt.raw, tt.endless))
			got := askHTTP(ctx, t, HTTPConfig{Expect: tt.expect}, host)
			if got.OK != (tt.want == "") || got.Phase != tt.phase || got.Local {
				t.Fatalf("HTTP = %+v, want phase %q", got, tt.phase)
			}
			if prefix := "get http://" + host + "/ping: "; got.Err != nil && (!strings.HasPrefix(got.Err.Error(), prefix) || !strings.Contains(got.Err.Error(), tt.want)) {
				t.Errorf("HTTP = %q, want %s… %s", got.Err, prefix, tt.want)
			}
			if got.Status != tt.status || string(got.Body) != tt.body {
				t.Errorf("HTTP = status %d, body %q, want %d, %q", got.Status, got.Body, tt.status, tt.body)
			}
			if got.Latency > checkLimit/2 {
				t.Errorf("HTTP took %v", got.Latency)
			}
		})
	}
}

// However slowly a host answers, the check ends with its context.
func TestHTTPEndsInTime(t *testing.T) {
	const timeout = 300 * time.Millisecond
	trickle := func(head, drop string) func(net.Conn) {
		return func(conn net.Conn) {
			io.WriteString(conn, head)
			for {
				time.Sleep(20 * time.Millisecond)
				if _, err := io.WriteString(conn, drop); err != nil {
					return
				}
			}
		}
	}
	for _, tt := range []struct {
		name  string
		serve func(net.Conn)
	}{
		{"accepts and never answers", serveNothing},
		{"body a byte at a time", trickle("HTTP/1.1 200 OK\r\n\r\n", "p")},
		{"chunks a byte at a time", trickle("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\np\r\n")},
		{"headers a byte at a time", trickle("HTTP/1.1 200 OK\r\nA: ", "b")},
		{"interim answers for ever", trickle("", "HTTP/1.1 100 Continue\r\n\r\n")},
		{"body shorter than it says, then silence", func(conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npong")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := listenHost(t, "tcp", "127.0.0.1:0", tt.serve)
			ctx := checkContext(t, timeout)
			got := askHTTP(ctx, t, HTTPConfig{Expect: pongExpect}, host)
			if got.OK || got.Phase != Read || !isTimeout(got.Err) || got.Local != (got.Latency > timeout+lateness) {
				t.Errorf("HTTP = %+v, want a timeout in read", got)
			}
			if got.Latency < timeout/2 || got.Latency > timeout+checkLimit/2 {
				t.Errorf("HTTP took %v, want %v", got.Latency, timeout)
			}
		})
	}
}

// A body that decides nothing delays the check by a moment at most.
func TestHTTPStatusNeedsNoBody(t *testing.T) {
	for _, tt := range []struct {
		status string
		ok     bool
	}{{"200 OK", true}, {"503 Service Unavailable", false}} {
		ctx := checkContext(t, 3*checkLimit)
		host := listenHost(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 "+tt.status+"\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nwhy\r\n")
		})
		got := askHTTP(ctx, t, HTTPConfig{}, host)
		if got.OK != tt.ok || got.Latency > checkLimit || string(got.Body) != "why" {
			t.Errorf("%s and an open body: HTTP = %+v, body %q, want OK %v in a moment", tt.status, got, got.Body, tt.ok)
		}
	}
}

// What comes behind the first 64 KiB is not waited for.
func TestHTTPLongBody(t *testing.T) {
	ctx := checkContext(t, 3*checkLimit)
	host := listenHost(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		http.ReadRequest(bufio.NewReader(conn))
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\nleader%s", 1<<20, strings.Repeat("a", bodyLimit))
	})
	got := askHTTP(ctx, t, HTTPConfig{Expect: Expect{BodyContains: "leader"}}, host)
	if !got.OK || got.Latency > checkLimit {
		t.Errorf("HTTP of a long body = %+v, want OK at once", got)
	}
}

func TestHTTPConnectFails(t *testing.T) {
	ctx := checkContext(t, checkLimit)
	got := askHTTP(ctx, t, HTTPConfig{Expect: pongExpect}, refusedHost(t))
	if got.OK || got.Phase != Connect || !errors.Is(got.Err, syscall.ECONNREFUSED) || got.Local || got.Status != 0 {
		t.Errorf("HTTP of a host that refuses = %+v", got)
	}
	reset := listenHost(t, "tcp", "127.0.0.1:0", serveReset)
	got = askHTTP(ctx, t, HTTPConfig{Expect: pongExpect}, reset)
	if got.OK || got.Local {
		t.Errorf("HTTP of a host that resets = %+v", got)
	}
	check, err := HTTP(HTTPConfig{Port: 80, Resolve: namesOf("db1", "127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	for host, phase := range map[string]Phase{"nobody:5432": Resolve, "db1:x": Resolve} {
		if got := check(ctx, host); got.OK || got.Phase != phase || got.Err == nil {
			t.Errorf("HTTP(%s) = %+v, want phase %s", host, got, phase)
		}
	}
}

func TestHTTPRequest(t *testing.T) {
	seen := make(chan *http.Request, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r
		io.WriteString(w, "pong")
	}))
	defer srv.Close()
	port := portOf(t, strings.TrimPrefix(srv.URL, "http://"))
	// A proxy in the environment is none of a check's business.
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	resolve := func(ctx context.Context, name string) ([]netip.Addr, error) {
		return namesOf(name, "127.0.0.1")(ctx, name)
	}
	for host, authority := range map[string]string{
		"db_1.example:5432":    "db_1.example",
		"[::1]:5432":           "[::1]",
		"[fe80::1%eth0]:5432":  "[fe80::1]", // a zone means nothing to others, RFC 6874
		"unix:/run/x.sock":     "localhost",
		"db1.example.com.:443": "db1.example.com.",
	} {
		ctx := checkContext(t, checkLimit)
		check, err := HTTP(HTTPConfig{Port: port, Path: "/a%2Fb?c=d&e", Expect: pongExpect, Resolve: resolve})
		if err != nil {
			t.Fatal(err)
		}
		if got := check(ctx, host); !got.OK {
			t.Errorf("HTTP(%s) = %+v", host, got)
			continue
		}
		r := <-seen
		line := fmt.Sprint(r.Method, " ", r.RequestURI, " ", r.Proto)
		if want := "GET /a%2Fb?c=d&e HTTP/1.1"; line != want {
			t.Errorf("%s: the host was asked %q, want %q", host, line, want)
		}
		if want := fmt.Sprintf("%s:%d", authority, port); r.Host != want {
			t.Errorf("%s: Host is %q, want %q", host, r.Host, want)
		}
		if r.UserAgent() != "understudy" || !r.Close || len(r.Header) != 2 {
			t.Errorf("%s: headers are %v, want User-Agent: understudy and Connection: close", host, r.Header)
		}
	}
}

// A check that nobody waits for any more ends at once, and is not counted.
func TestHTTPCanceled(t *testing.T) {
	asked := make(chan struct{})
	host := listenHost(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		http.ReadRequest(bufio.NewReader(conn))
		close(asked)
	})
	ctx, cancel := context.WithCancel(checkContext(t, 3*checkLimit))
	go func() { <-asked; cancel() }()
	got := askHTTP(ctx, t, HTTPConfig{Expect: pongExpect}, host)
	if got.OK || !got.Local || got.Latency > checkLimit {
		t.Errorf("HTTP, canceled = %+v, want it Local at once", got)
	}
}

func TestHTTPMemoryIsBounded(t *testing.T) {
	ctx := checkContext(t, 6*checkLimit)
	piece := bytes.Repeat([]byte("a"), 1<<16)
	host := listenHost(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		_, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		for err == nil {
			_, err = conn.Write(piece)
		}
	})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const checks = 50
	for range checks {
		askHTTP(ctx, t, HTTPConfig{Expect: pongExpect}, host)
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / checks; each > 1<<20 {
		t.Errorf("a check of an endless body allocates %d KiB, want at most 1024", each>>10)
	}
}

func TestHTTPNamesEveryMistake(t *testing.T) {
	for _, path := range []string{"ping", "/a\r\nX: y", "/%zz", "/a#b", "http://db1/ping"} {
		_, err := HTTP(HTTPConfig{Port: 65536, Path: path, Expect: Expect{Status: []string{"2"}, BodyRegex: "["}})
		if err == nil {
			t.Fatalf("path %q: HTTP = nil, want an error", path)
		}
		for _, want := range []string{"http check: ", "port: 65536", "path: ", `status[0]: "2"`, "body_regex: "} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("path %q: HTTP = %v\nwant it to name %s", path, err, want)
			}
		}
	}
}

func ExampleHTTP() {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "pong")
	}))
	defer srv.Close()
	host, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	n, _ := net.LookupPort("tcp", port)

	check, err := HTTP(HTTPConfig{Port: n, Expect: Expect{Status: []string{"200"}, Body: "pong"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	result := check(ctx, host+":5432") // the service itself is on another port
	fmt.Printf("%t %d %q\n", result.OK, result.Status, result.Body)
	// Output:
	// true 200 "pong\n"
}
