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

	"understudy/internal/criteria"
)

func TestHTTP(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, tt := range []struct {
		name    string
		raw     string // what the host answers,
		endless string // and then once and again
		expect  criteria.Expect
		phase   Phase
		want    string // part of the error; empty for a pass
	}{
		{"pong", ok + "Content-Length: 4\r\n\r\npong", "", pongExpect, "", ""},
		{"pong without a length", ok + "\r\npong\n", "", pongExpect, "", ""},
		{"pong over HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\npong", "", pongExpect, "", ""},
		{"pong in chunks", ok + "Transfer-Encoding: chunked\r\n\r\n2\r\npo\r\n2\r\nng\r\n0\r\n\r\n", "", pongExpect, "", ""},
		{"pong after interim answers", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok + "Content-Length: 4\r\n\r\npong", "", pongExpect, "", ""},
		{"pong and extra bytes", ok + "Content-Length: 4\r\n\r\npongpong", "", pongExpect, "", ""},
		{"no body is asked for", ok + "Content-Length: 1000000\r\n\r\nhello", "", criteria.Expect{}, "", ""},

		{"another status", "HTTP/1.1 503 Service Unavailable\r\n\r\nreplica lags", "", pongExpect, Criteria, "status 503, want 200"},
		{"another body", ok + "\r\nerror", "", pongExpect, Criteria, `body "error", want "pong"`},
		{"pong compressed", ok + "Content-Encoding: gzip\r\n\r\n\x1f\x8b\x08\x00", "", pongExpect, Criteria, `body "\x1f\x8b`},
		{"redirect", "HTTP/1.1 302 Found\r\nLocation: /ping\r\n\r\npong", "", pongExpect, Criteria, "status 302, want 200"},
		{"protocol switch", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\npong", "", pongExpect, Criteria, "status 101, want 200"},

		{"truncated", ok + "Content-Length: 10\r\n\r\npong", "", pongExpect, Read, "body: unexpected EOF"},
		{"truncated chunk", ok + "Transfer-Encoding: chunked\r\n\r\n8\r\npong", "", pongExpect, Read, "body: unexpected EOF"},
		{"two lengths", ok + "Content-Length: 4\r\nContent-Length: 5\r\n\r\npong", "", pongExpect, Read, "Content-Length"},
		{"no answer", "", "", pongExpect, Read, "EOF"},
		{"no HTTP", "SSH-2.0-OpenSSH_9.9\r\n", "", pongExpect, Read, "malformed HTTP"},
		{"half a head", "HTTP/1.1 200 OK\r\nContent-Le", "", pongExpect, Read, "malformed MIME header"},

		{"endless compressed body", ok + "Content-Encoding: gzip\r\n\r\n", strings.Repeat("\x00", 4096), pongExpect, Criteria, "want \"pong\""},
		{"length that is a lie, and endless", ok + "Content-Length: 4\r\n\r\npong", strings.Repeat("a", 4096), pongExpect, "", ""},
		{"length beyond all bounds", ok + "Content-Length: 9223372036854775807\r\n\r\n", strings.Repeat("a", 4096), pongExpect, Criteria, "want \"pong\""},
		{"length below zero", ok + "Content-Length: -1\r\n\r\npong", "", pongExpect, Read, "bad Content-Length"},
		{"chunk of a size beyond all bounds", ok + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", "", pongExpect, Read, "body: "},
		{"endless body", ok + "\r\n", strings.Repeat("a", 4096), pongExpect, Criteria, "want \"pong\""},
		{"endless white space", ok + "\r\npong", strings.Repeat(" ", 4096), pongExpect, Criteria, "want \"pong\""},
		{"endless chunks", ok + "Transfer-Encoding: chunked\r\n\r\n", "1\r\na\r\n", pongExpect, Criteria, "want \"pong\""},
		{"endless headers", ok, "A: b\r\n", pongExpect, Read, "headers are longer than 16384 bytes"},
		{"endless header", ok + "A: ", "b", pongExpect, Read, "headers are longer than 16384 bytes"},
		{"endless status line", "HTTP/1.1 200 ", "OK", pongExpect, Read, "headers are longer than 16384 bytes"},
		{"endless interim answers", "", "HTTP/1.1 100 Continue\r\n\r\n", pongExpect, Read, "headers are longer than 16384 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := checkContext(t, checkLimit)
			host := listenHost(t, "tcp", "127.0.0.1:0", serveRaw(tt.raw, tt.endless))
			got := checkHTTP(ctx, t, HTTPConfig{Expect: tt.expect}, host)
			if got.OK != (tt.want == "") || got.Phase != tt.phase || got.Unknown {
				t.Fatalf("HTTP = %+v, want phase %q", got, tt.phase)
			}
			if prefix := "get http://" + host + "/ping: "; got.Err != nil && (!strings.HasPrefix(got.Err.Error(), prefix) || !strings.Contains(got.Err.Error(), tt.want)) {
				t.Errorf("HTTP = %q, want %s… %s", got.Err, prefix, tt.want)
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
				time.Sleep(20 * time.Millisecond) // the pace of a trickle
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
			got := checkHTTP(ctx, t, HTTPConfig{Expect: pongExpect}, host)
			if got.OK || got.Phase != Read || !isTimeout(got.Err) || got.Unknown != (got.Latency > timeout+lateness) {
				t.Errorf("HTTP = %+v, want a timeout in read", got)
			}
			if got.Latency < timeout/2 || got.Latency > timeout+checkLimit/2 {
				t.Errorf("HTTP took %v, want %v", got.Latency, timeout)
			}
		})
	}
}

// A body that has no criterion is not awaited, so its time is not part of the
// check's. Of ten checks on a busy machine one is undisturbed.
func TestHTTPStatusNeedsNoBody(t *testing.T) {
	for _, tt := range []struct {
		status string
		ok     bool
	}{{"200 OK", true}, {"503 Service Unavailable", false}} {
		ctx := checkContext(t, 3*checkLimit)
		host := listenHost(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 "+tt.status+"\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nwhy\r\n")
		})
		shortest := checkLimit
		for range 10 {
			got := checkHTTP(ctx, t, HTTPConfig{}, host)
			if got.OK != tt.ok || got.Unknown {
				t.Errorf("%s and an open body: HTTP = %+v, want OK %v", tt.status, got, tt.ok)
			}
			shortest = min(shortest, got.Latency)
		}
		if shortest > 40*time.Millisecond {
			t.Errorf("%s and an open body: each check took %v or more, want no wait for the body", tt.status, shortest)
		}
	}
}

// What comes behind the first 64 KiB is not waited for.
func TestHTTPLongBody(t *testing.T) {
	ctx := checkContext(t, 3*checkLimit)
	host := listenHost(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		http.ReadRequest(bufio.NewReader(conn))
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\nleader%s", 1<<20, strings.Repeat("a", criteria.BodyLimit))
	})
	got := checkHTTP(ctx, t, HTTPConfig{Expect: criteria.Expect{BodyContains: "leader"}}, host)
	if !got.OK || got.Latency > checkLimit {
		t.Errorf("HTTP of a long body = %+v, want OK at once", got)
	}
}

func TestHTTPConnectFails(t *testing.T) {
	ctx := checkContext(t, checkLimit)
	got := checkHTTP(ctx, t, HTTPConfig{Expect: pongExpect}, refusedHost(t))
	if got.OK || got.Phase != Connect || !errors.Is(got.Err, syscall.ECONNREFUSED) || got.Unknown {
		t.Errorf("HTTP of a host that refuses = %+v", got)
	}
	reset := listenHost(t, "tcp", "127.0.0.1:0", serveReset)
	got = checkHTTP(ctx, t, HTTPConfig{Expect: pongExpect}, reset)
	if got.OK || got.Unknown {
		t.Errorf("HTTP of a host that resets = %+v", got)
	}
	check, err := HTTP(get(HTTPConfig{Port: 80, Resolve: namesOf("db1", "127.0.0.1")}))
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
		check, err := HTTP(get(HTTPConfig{Port: port, Path: "/a%2Fb?c=d&e", Expect: pongExpect, Resolve: resolve}))
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

// A check whose caller has given up ends at once, and is not counted.
func TestHTTPCanceled(t *testing.T) {
	requested := make(chan struct{})
	host := listenHost(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		http.ReadRequest(bufio.NewReader(conn))
		close(requested)
	})
	ctx, cancel := context.WithCancel(checkContext(t, 3*checkLimit))
	go func() { <-requested; cancel() }()
	got := checkHTTP(ctx, t, HTTPConfig{Expect: pongExpect}, host)
	if got.OK || !got.Unknown || got.Latency > checkLimit {
		t.Errorf("HTTP, canceled = %+v, want it Unknown at once", got)
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
		checkHTTP(ctx, t, HTTPConfig{Expect: pongExpect}, host)
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / checks; each > 1<<20 {
		t.Errorf("a check of an endless body allocates %d KiB, want at most 1024", each>>10)
	}
}

func TestHTTPNamesEveryMistake(t *testing.T) {
	for _, path := range []string{"", "ping", "/a\r\nX: y", "/%zz", "/a#b", "http://db1/ping"} {
		_, err := HTTP(HTTPConfig{Port: 65536, Path: path, Expect: criteria.Expect{Status: []string{"2"}, BodyRegex: "["}})
		if err == nil {
			t.Fatalf("path %q: HTTP = nil, want an error", path)
		}
		for _, want := range []string{"http check: ", "port: 65536", "path: ", "method: ", `status[0]: "2"`, "body_regex: "} {
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

	check, err := HTTP(HTTPConfig{
		Port: n, Path: "/ping", Method: http.MethodGet,
		Expect: criteria.Expect{Status: []string{"200"}, Body: "pong"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	result := check(ctx, host+":5432") // the service itself is on another port
	fmt.Println(result.OK, result.Err)
	// Output:
	// true <nil>
}
