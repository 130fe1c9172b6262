package verdict

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// endpointsUnderTest is a running Server whose every path is Endpoints.
type endpointsUnderTest struct {
	addr string
	*Endpoints
	log *lockedBuffer
}

// request sends one request, "GET /" unless head says otherwise, and returns the
// answer.
func (e endpointsUnderTest) request(tb testing.TB, head string, body ...string) answer {
	tb.Helper()
	if head == "" {
		head = "GET / HTTP/1.1"
	}
	raw := say(tb, e.addr, head+"\r\nHost: any.host\r\nConnection: close\r\n\r\n"+strings.Join(body, ""))
	method, _, _ := strings.Cut(head, " ")
	return parseAnswer(tb, raw, method)
}

func TestNewEndpointsNamesEveryMistake(t *testing.T) {
	_, err := NewEndpoints(EndpointsConfig{
		URLs: []string{
			"", "one.example", "localhost:8000", "ftp://one.example", "http://", "http://one.example/#top", "http://one.example:0",
			"http://one.example:65536", "http://one.example:", "https://user:hush@two.example/", "https://user:hush@two.example:x/",
			"https://three.example/a/../b", "http://[::1", "http://a b/", "http://ok.example/",
		},
		Status: []string{"250", "6xx", "2x"}, Timeout: -1, Total: -1,
	})
	if err == nil {
		t.Fatal("NewEndpoints() = nil, want an error")
	}
	for i := range 14 {
		if want := fmt.Sprintf("urls[%d]: ", i); !strings.Contains(err.Error(), want) {
			t.Errorf("NewEndpoints() = %v, want %q in it", err, want)
		}
	}
	for _, want := range []string{"status[1]", "status[2]", "timeout", "total"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("NewEndpoints() = %v, want %q in it", err, want)
		}
	}
	for _, wrong := range []string{"urls[14]", "hush", "status[0]"} {
		if strings.Contains(err.Error(), wrong) {
			t.Errorf("NewEndpoints() = %v, want no %q in it", err, wrong)
		}
	}
	_, err = NewEndpoints(EndpointsConfig{})
	for _, want := range []string{"urls: ", "status: ", "timeout: 0s", "total: 0s"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewEndpoints without settings = %v, want %q in it", err, want)
		}
	}
}

// D-BRP1, D-BRP5, D-BRP7: status, headers and body leave as they came.
func TestEndpointsAnswerIsExact(t *testing.T) {
	const twoLines = "Set-Cookie: a=b; Path=/\r\nSet-Cookie: c=d\r\nX-Odd: \xff\xfe\r\n"
	all := []string{"1xx", "2xx", "3xx", "4xx", "5xx"}
	headers := http.Header{"Set-Cookie": {"a=b; Path=/", "c=d"}, "X-Odd": {"\xff\xfe"}}
	with := func(more ...string) http.Header {
		h := headers.Clone()
		for i := 0; i < len(more); i += 2 {
			h.Add(more[i], more[i+1])
		}
		return h
	}
	for _, tt := range []struct {
		name, head, sent string
		status           int
		header           http.Header
		body             string
	}{
		{"length", "", "200 OK\r\nContent-Length: 5\r\n" + twoLines + "\r\nhello", 200, with("Content-Length", "5"), "hello"},
		{"chunked", "", "200 OK\r\nTransfer-Encoding: chunked\r\n" + twoLines + "\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", 200, with(), "hello"},
		{"until the end", "", "200 OK\r\n" + twoLines + "\r\nhello", 200, with(), "hello"},
		{"empty", "", "200 OK\r\nContent-Length: 0\r\n" + twoLines + "\r\n", 200, with("Content-Length", "0"), ""},
		{"own caching and type", "", "200 OK\r\nContent-Length: 2\r\nCache-Control: max-age=60\r\nX-Content-Type-Options: none\r\nContent-Type: image/png\r\nServer: x/1\r\n" + twoLines + "\r\n{}", 200,
			with("Content-Length", "2", "Cache-Control", "max-age=60", "X-Content-Type-Options", "none", "Content-Type", "image/png", "Server", "x/1"), "{}"},
		{"redirect is not followed", "", "302 Found\r\nLocation: http://127.0.0.1:1/x\r\nContent-Length: 2\r\n" + twoLines + "\r\nhi", 302,
			with("Location", "http://127.0.0.1:1/x", "Content-Length", "2"), "hi"},
		{"404", "", "404 Not Found\r\nContent-Length: 4\r\n" + twoLines + "\r\nnone", 404, with("Content-Length", "4"), "none"},
		{"401", "", "401 Unauthorized\r\nWww-Authenticate: Basic\r\nContent-Length: 0\r\n" + twoLines + "\r\n", 401, with("Www-Authenticate", "Basic", "Content-Length", "0"), ""},
		{"503 when it is usable", "", "503 Busy\r\nRetry-After: 5\r\nContent-Length: 1\r\n" + twoLines + "\r\nx", 503, with("Retry-After", "5", "Content-Length", "1"), "x"},
		{"a status that has no name", "", "299 Odd\r\nContent-Length: 1\r\n" + twoLines + "\r\nx", 299, with("Content-Length", "1"), "x"},
		{"204", "", "204 No Content\r\n" + twoLines + "\r\n", 204, with(), ""},
		{"304", "GET / HTTP/1.1\r\nIf-None-Match: \"v\"", "304 Not Modified\r\nEtag: \"v\"\r\n" + twoLines + "\r\n", 304, with("Etag", `"v"`), ""},
		{"206", "GET / HTTP/1.1\r\nRange: bytes=0-1", "206 Partial Content\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n" + twoLines + "\r\nab", 206, with("Content-Range", "bytes 0-1/9", "Content-Length", "2"), "ab"},
		{"HEAD", "HEAD / HTTP/1.1", "200 OK\r\nContent-Length: 12345\r\n" + twoLines + "\r\n", 200, with("Content-Length", "12345"), ""},
		{"HEAD of an unknown length", "HEAD / HTTP/1.1", "200 OK\r\n" + twoLines + "\r\n", 200, with(), ""},
		{"HTTP/1.0 client", "GET / HTTP/1.0", "200 OK\r\nTransfer-Encoding: chunked\r\n" + twoLines + "\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", 200, with(), "hello"},
		{"interim answers are passed over", "", "103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + twoLines + "\r\nhi", 200, with("Content-Length", "2"), "hi"},
		{"hop-by-hop headers stay", "", "200 OK\r\nContent-Length: 2\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\n" + twoLines + "\r\nhi", 200, with("Content-Length", "2"), "hi"},
		{"a body that looks like a head", "", "200 OK\r\nContent-Length: 30\r\n" + twoLines + "\r\nHTTP/1.1 500 No\r\nX: y\r\n\r\npong!", 200, with("Content-Length", "30"), "HTTP/1.1 500 No\r\nX: y\r\n\r\npong!"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			port := rawService(t, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 "+tt.sent) })
			for _, race := range []bool{false, true} {
				e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(port)}, Race: race, Status: all})
				got := e.request(t, tt.head)
				if got.StatusCode != tt.status || got.body != tt.body || got.rest != "" {
					t.Errorf("race %t: answered %d %q and %q behind it, want %d %q", race, got.StatusCode, got.body, got.rest, tt.status, tt.body)
				}
				header := got.Header
				header.Del("Connection") // ours
				if fmt.Sprint(header) != fmt.Sprint(tt.header) {
					t.Errorf("race %t: headers %q, want %q", race, header, tt.header)
				}
			}
		})
	}
}

func TestEndpointsDate(t *testing.T) {
	port := rawService(t, func(c net.Conn) {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n")
	})
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(port)}})
	if got := e.request(t, "").Header["Date"]; len(got) != 1 || got[0] != "Sun, 06 Nov 1994 08:49:37 GMT" {
		t.Errorf("Date %q, want the endpoint's", got)
	}
}

// Compression is between client and endpoint.
func TestEndpointsLeaveEncodingAlone(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	io.WriteString(z, strings.Repeat("pong", 1000))
	z.Close()
	port := service(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header()["X-Asked"] = r.Header["Accept-Encoding"]
		if r.Header.Get("Accept-Encoding") == "" {
			io.WriteString(w, "plain")
			return
		}
		w.Header().Set("Content-Encoding", "gzip")
		w.Write(packed.Bytes())
	})
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(port)}})
	if got := e.request(t, ""); got.body != "plain" || got.Header.Get("X-Asked") != "" || got.Header.Get("Content-Encoding") != "" {
		t.Errorf("answered %q %v, want plain, not asked to compress", got.body, got.Header)
	}
	got := e.request(t, "GET / HTTP/1.1\r\nAccept-Encoding: br;q=0.5, gzip")
	if got.body != packed.String() || got.Header.Get("X-Asked") != "br;q=0.5, gzip" || got.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("answered %d bytes %v, want the packed %d", len(got.body), got.Header, packed.Len())
	}
}

func TestEndpointsTrailers(t *testing.T) {
	t.Run("announced", func(t *testing.T) {
		port := rawService(t, func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, X-Never\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\nX-Sum: 2\r\n\r\n")
		})
		e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(port)}})
		got := e.request(t, "GET / HTTP/1.1\r\nTE: trailers")
		if got.body != "hi" || fmt.Sprint(got.Trailer["X-Sum"]) != "[1 2]" || got.Header.Get("X-Sum") != "" || got.Trailer.Get("X-Never") != "" {
			t.Errorf("answered %q, headers %v, trailers %v, want hi and X-Sum behind it", got.body, got.Header, got.Trailer)
		}
		if got := e.request(t, "GET / HTTP/1.0"); got.body != "hi" {
			t.Errorf("HTTP/1.0 client was answered %q, want hi", got.body)
		}
	})
	t.Run("not announced", func(t *testing.T) {
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, r.Header.Get("Te"))
			w.(http.Flusher).Flush()
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
		}))
		srv.EnableHTTP2 = true
		srv.StartTLS()
		t.Cleanup(srv.Close)
		e := serveEndpoints(t, EndpointsConfig{URLs: []string{srv.URL}, TLS: trusting(srv)})
		t.Cleanup(srv.CloseClientConnections) // a stream may still be being tidied up when Close comes
		if got := e.request(t, "GET / HTTP/1.1\r\nTE: trailers"); got.body != "trailers" || got.Trailer.Get("Grpc-Status") != "0" {
			t.Errorf("answered %q, trailers %v, want Grpc-Status: 0", got.body, got.Trailer)
		}
	})
}

// Items BRP 16 to 18, D-BRP6: what an endpoint is asked.
func TestEndpointsReplay(t *testing.T) {
	for _, tt := range []struct {
		name, prefix, head, body string
		want                     string
	}{
		{"BRP 17 prefix and query", "/pre", "GET /a?q=1 HTTP/1.1", "", "GET /pre/a?q=1 "},
		{"one slash", "/pre/", "GET /a HTTP/1.1", "", "GET /pre/a "},
		{"the prefix itself", "/pre", "GET / HTTP/1.1", "", "GET /pre/ "},
		{"no prefix", "", "GET /a/b HTTP/1.1", "", "GET /a/b "},
		{"queries are merged", "/pre?key=1", "GET /a?b=2 HTTP/1.1", "", "GET /pre/a?key=1&b=2 "},
		{"the endpoint's query alone", "?key=1", "GET /a HTTP/1.1", "", "GET /a?key=1 "},
		{"byte for byte", "/p%41", "GET /a%2Fb%7e~'\"<>?x=%0d%0aSet-Cookie:y&{}|^` HTTP/1.1", "", "GET /p%41/a%2Fb%7e~'\"<>?x=%0d%0aSet-Cookie:y&{}|^` "},
		{"empty query", "", "GET /a? HTTP/1.1", "", "GET /a? "},
		{"looks like a host", "", "GET //other.host/a?b HTTP/1.1", "", "GET //other.host/a?b "},
		{"looks like a host below a prefix", "/pre", "GET //other.host/a HTTP/1.1", "", "GET /pre//other.host/a "},
		{"HEAD stays HEAD", "", "HEAD /a HTTP/1.1", "", "HEAD /a "},
		{"POST", "", "POST /a HTTP/1.1\r\nContent-Length: 5", "hello", "POST /a hello"},
		{"POST without a body", "", "POST /a HTTP/1.1\r\nContent-Length: 0", "", "POST /a "},
		{"chunked body and trailer", "", "PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked", "5\r\nhello\r\n1\r\n!\r\n0\r\nX-T: x\r\n\r\n", "PUT /a hello!"},
		{"100-continue", "", "PATCH /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5", "hello", "PATCH /a hello"},
		{"GET with a body", "", "GET /a HTTP/1.1\r\nContent-Length: 2", "hi", "GET /a hi"},
		{"DELETE", "", "DELETE /a HTTP/1.1", "", "DELETE /a "},
		{"OPTIONS", "", "OPTIONS /a HTTP/1.1", "", "OPTIONS /a "},
		{"HTTP/1.0", "", "GET /a HTTP/1.0", "", "GET /a "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := seeing(t)
			e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(s.port, tt.prefix)}})
			raw := say(t, e.addr, tt.head+"\r\nHost: any.host\r\nConnection: close\r\n\r\n"+tt.body)
			if raw = strings.TrimPrefix(raw, "HTTP/1.1 100 Continue\r\n\r\n"); !strings.Contains(raw, " 200 OK\r\n") {
				t.Fatalf("answered %q, want 200", raw)
			}
			if got := s.got[0].Method + " " + s.got[0].RequestURI + " " + s.body[0]; got != tt.want {
				t.Errorf("asked %q, want %q", got, tt.want)
			}
		})
	}
}

func TestEndpointsRequestHeaders(t *testing.T) {
	s := seeing(t)
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(s.port)}})
	const hops = "TE: trailers, deflate\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nKeep-Alive: timeout=5\r\n" +
		"Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\nX-Hop: gone\r\nTrailer: Expires\r\nConnection: X-Hop, upgrade\r\n"
	e.request(t, "GET / HTTP/1.1\r\n"+hops+"User-Agent: one\r\nAuthorization: Bearer x\r\nCookie: a=b\r\nX-Two: 1\r\nX-Two: 2\r\nCDN-Loop: other")
	want := http.Header{
		"User-Agent": {"one"}, "Authorization": {"Bearer x"}, "Cookie": {"a=b"}, "X-Two": {"1", "2"}, "Te": {"trailers"},
		"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Host": {"any.host"}, "X-Forwarded-Proto": {"http"}, "Cdn-Loop": {"other, " + e.name},
	}
	if got := s.got[0]; fmt.Sprint(got.Header) != fmt.Sprint(want) || got.Host != fmt.Sprintf("127.0.0.1:%d", s.port) {
		t.Errorf("asked %s with %v, want the endpoint's host and %v", got.Host, got.Header, want)
	}

	// The proxy in front knows the client's address.
	e.request(t, "GET / HTTP/1.1\r\nX-Forwarded-For: 192.0.2.9\r\nX-Forwarded-For: 192.0.2.8\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: site.example")
	want = http.Header{
		"X-Forwarded-For": {"192.0.2.9, 192.0.2.8, 127.0.0.1"}, "X-Forwarded-Host": {"site.example"}, "X-Forwarded-Proto": {"https"}, "Cdn-Loop": {e.name},
	}
	if got := s.got[1]; fmt.Sprint(got.Header) != fmt.Sprint(want) {
		t.Errorf("asked with %v, want %v", got.Header, want)
	}

	kept := serveEndpoints(t, EndpointsConfig{URLs: []string{at(s.port)}, PreserveHost: true})
	kept.request(t, "")
	if got := s.got[2].Host; got != "any.host" {
		t.Errorf("asked for host %q, want any.host", got)
	}
}

// BRP 19, 21, 23, D-BRP2: which response is the answer, and which endpoints get the request.
func TestEndpointsPolicy(t *testing.T) {
	refused := at(unreachablePort(t))
	for _, tt := range []struct {
		name      string
		statuses  []int // of the endpoints; 0 refuses
		usable    []string
		race      bool
		status    int
		requested int // endpoints, without race
	}{
		{"the first is usable", []int{200, 201}, nil, false, 200, 1},
		{"the second is usable", []int{500, 201, 202}, nil, false, 201, 2},
		{"refused, then usable", []int{0, 201}, nil, false, 201, 1},
		{"4xx is usable by default", []int{404, 200}, nil, false, 404, 1},
		{"unless it is not", []int{404, 200}, []string{"2xx"}, false, 200, 2},
		{"numbers", []int{200, 404, 204}, []string{"404", "204"}, false, 404, 2},
		{"1xx says nothing", []int{200, 301}, []string{"1xx", "3xx"}, false, 301, 2},
		{"none", []int{500, 0, 503}, nil, false, 500, 2},
		{"race", []int{500, 0, 201}, nil, true, 201, 0},
		{"race, none", []int{500, 0, 503}, nil, true, 500, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var requested atomic.Int32
			var urls []string
			for _, status := range tt.statuses {
				if status == 0 {
					urls = append(urls, refused)
					continue
				}
				urls = append(urls, at(service(t, func(w http.ResponseWriter, _ *http.Request) {
					requested.Add(1)
					w.Header().Set("X-Internal", "yes")
					w.WriteHeader(status)
					fmt.Fprint(w, "from ", status)
				}), "/prefix?key=secret"))
			}
			e := serveEndpoints(t, EndpointsConfig{URLs: urls, Status: tt.usable, Race: tt.race})
			got := e.request(t, "GET /a?token=secret HTTP/1.1")
			want := fmt.Sprint("from ", tt.status)
			if strings.Contains(tt.name, "none") {
				want = "no usable response\n"
				if got.Header.Get("X-Internal") != "" || got.Header.Get("Cache-Control") != "no-store" {
					t.Errorf("headers %v, want our own alone", got.Header)
				}
				log := e.log.String()
				for i, text := range []string{"[WARN]", "failed to return a valid answer, returning 500", "/prefix/a: status 500, want", refused + ": dial", "status 503, want"} {
					if i != 2 && !strings.Contains(log, text) {
						t.Errorf("log %s, want %q in it", log, text)
					}
				}
				if strings.Contains(log, "secret") {
					t.Errorf("log %s, want no queries in it", log)
				}
			}
			if got.StatusCode != tt.status || got.body != want {
				t.Errorf("answered %d %q, want %d %q", got.StatusCode, got.body, tt.status, want)
			}
			if n := int(requested.Load()); !tt.race && n != tt.requested {
				t.Errorf("%d endpoints were asked, want %d", n, tt.requested)
			}
		})
	}
}

// D-BRP4: every endpoint gets the whole body.
func TestEndpointsBodyGoesToAll(t *testing.T) {
	body := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	for _, race := range []bool{false, true} {
		for _, method := range []string{"POST", "PUT", "GET"} {
			t.Run(fmt.Sprintf("%s race=%t", method, race), func(t *testing.T) {
				var mu sync.Mutex
				got := make(map[int]bool)
				var everybody sync.WaitGroup
				everybody.Add(3)
				reading := func(i, status int) string {
					return at(service(t, func(w http.ResponseWriter, r *http.Request) {
						read, err := io.ReadAll(r.Body)
						mu.Lock()
						got[i] = string(read) == body && err == nil && r.ContentLength == int64(len(body))
						mu.Unlock()
						everybody.Done()
						if race {
							everybody.Wait()
						}
						w.WriteHeader(status)
					}))
				}
				e := serveEndpoints(t, EndpointsConfig{URLs: []string{reading(0, 500), reading(1, 503), reading(2, 201)}, Race: race})
				answer := e.request(t, fmt.Sprintf("%s / HTTP/1.1\r\nContent-Length: %d", method, len(body)), body)
				if answer.StatusCode != http.StatusCreated || len(got) != 3 || !got[0] || !got[1] || !got[2] {
					t.Errorf("answered %d, whole bodies at %v, want 201 and all three", answer.StatusCode, got)
				}
				if held := e.bodies.held.Load(); held != 0 {
					t.Errorf("%d bytes are held afterwards, want none", held)
				}
			})
		}
	}
}

func TestEndpointsBodyLimits(t *testing.T) {
	s := seeing(t)
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(s.port)}})
	e.bodies.each, e.bodies.all = 10, 15
	for _, tt := range []struct {
		name, head, body string
		held             int64
		want             int
	}{
		{"at the limit", "Content-Length: 10", "0123456789", 0, 200},
		{"over it", "Content-Length: 11", "0123456789a", 0, 413},
		{"over it, announced only", "Content-Length: 11", "", 0, 413},
		{"over it in chunks", "Transfer-Encoding: chunked", "b\r\n0123456789a\r\n0\r\n\r\n", 0, 413},
		{"no room left", "Content-Length: 10", "0123456789", 6, 503},
		{"just room left", "Content-Length: 10", "0123456789", 5, 200},
		{"broken chunk", "Transfer-Encoding: chunked", "zz\r\nhello\r\n0\r\n\r\n", 0, 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := s.times()
			e.bodies.held.Store(tt.held)
			got := e.request(t, "POST / HTTP/1.1\r\n"+tt.head, tt.body)
			if requested := s.times() - before; got.StatusCode != tt.want || (requested == 1) != (tt.want == 200) {
				t.Errorf("answered %d %q and asked %d times, want %d", got.StatusCode, got.body, requested, tt.want)
			}
			if held := e.bodies.held.Load(); held != tt.held {
				t.Errorf("%d bytes are held afterwards, want %d as before", held, tt.held)
			}
		})
	}
}

// D-BRP3: the fastest decides, and the others are done with at once.
func TestEndpointsRaceCancelsLosers(t *testing.T) {
	gone := make(chan bool, 2)
	var requested sync.WaitGroup
	requested.Add(2)
	hung := at(rawService(t, func(c net.Conn) {
		requested.Done()
		untilHungUp(c)
		gone <- true
	}))
	// One whose head is there and whose body goes on for ever.
	flooding := at(rawService(t, func(c net.Conn) {
		requested.Done()
		io.WriteString(c, "HTTP/1.1 503 No\r\n\r\n")
		for {
			if _, err := c.Write(make([]byte, 32<<10)); err != nil {
				gone <- true
				return
			}
		}
	}))
	release := make(chan struct{})
	over := sync.OnceFunc(func() { close(release) })
	winner := at(service(t, func(w http.ResponseWriter, _ *http.Request) {
		requested.Wait() // a loser that was not asked yet would never be
		io.WriteString(w, "first")
		w.(http.Flusher).Flush()
		<-release
		io.WriteString(w, " and last")
	}))
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{hung, flooding, winner}, Race: true, Timeout: time.Minute, Total: time.Minute})
	t.Cleanup(over) // before everything else is closed, whatever happens
	resp, err := http.Get("http://" + e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	for range 2 {
		select {
		case <-gone: // while the winner is still at it
		case <-time.After(15 * time.Second): // a deadline
			t.Fatal("a loser's connection is still open while the winner's response is passed on")
		}
	}
	over()
	if body, err := io.ReadAll(resp.Body); string(body) != "first and last" || err != nil {
		t.Errorf("body %q, %v, want the winner's", body, err)
	}
}

// F63, F64: whatever endpoints do, the answer comes in time.
func TestEndpointsBrokenAndHung(t *testing.T) {
	const timeout, hung = 700 * time.Millisecond, "no answer within 700ms"
	flood := func(head, piece string) func(net.Conn) {
		return func(c net.Conn) {
			_, err := io.WriteString(c, head)
			for err == nil {
				_, err = io.WriteString(c, piece)
			}
		}
	}
	for _, tt := range []struct {
		name   string
		answer func(net.Conn)
		reason string
	}{
		{"says nothing", untilHungUp, hung},
		{"hangs up", func(net.Conn) {}, "without an answer"},
		{"resets", func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) }, "reset"},
		{"is not HTTP", flood("", "SSH-2.0\r\n\r\n"), "malformed HTTP"},
		{"half a head", func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nA"); untilHungUp(c) }, hung},
		{"endless header", flood("HTTP/1.1 200 OK\r\nA: ", strings.Repeat("a", 1024)), "exceed"},
		{"endless 1xx", flood("", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"), "exceed"},
		{"switches protocols without a request", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello")
		}, "status 101"},
		{"status 000", func(c net.Conn) { io.WriteString(c, "HTTP/1.1 000 Zero\r\nContent-Length: 0\r\n\r\n") }, "status 0,"},
		{"status 999", func(c net.Conn) { io.WriteString(c, "HTTP/1.1 999 Many\r\nContent-Length: 0\r\n\r\n") }, "status 999,"},
		{"two lengths", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\npong")
		}, "Content-Length"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			broken, limit := at(rawService(t, tt.answer)), 20*time.Second // a busy machine is slow to see what is broken
			if tt.reason == hung {
				limit = timeout
			}
			for _, race := range []bool{false, true} {
				e := serveEndpoints(t, EndpointsConfig{URLs: []string{broken, broken}, Race: race, Timeout: limit, Status: []string{"2xx"}})
				if got := e.request(t, ""); got.StatusCode != http.StatusInternalServerError || got.body != "no usable response\n" {
					t.Errorf("race %t: answered %d %q, want 500", race, got.StatusCode, got.body)
				}
				log := e.log.String()
				if _, line, _ := strings.Cut(log, "failed to return"); strings.Count(line, tt.reason) != 2 || strings.Count(log, "\n") > 3 {
					t.Errorf("race %t: log %q, want a line with %q for both", race, log, tt.reason)
				}
			}
		})
	}
	t.Run("1xx is not an answer even where it is listed", func(t *testing.T) {
		switching := at(rawService(t, func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello")
		}))
		e := serveEndpoints(t, EndpointsConfig{URLs: []string{switching, at(saying(t, 200, "pong"))}})
		if got := e.request(t, ""); got.StatusCode != http.StatusOK || got.body != "pong" {
			t.Errorf("answered %d %q, want 200 of the next", got.StatusCode, got.body)
		}
	})
	silent := at(rawService(t, untilHungUp))
	t.Run("hung, then usable", func(t *testing.T) {
		e := serveEndpoints(t, EndpointsConfig{URLs: []string{silent, silent, at(saying(t, 200, "pong"))}, Timeout: timeout})
		if got := e.request(t, ""); got.body != "pong" {
			t.Errorf("answered %q, want pong", got.body)
		}
	})
	t.Run("total", func(t *testing.T) {
		s := seeing(t)
		e := serveEndpoints(t, EndpointsConfig{URLs: []string{silent, silent, at(s.port)}, Timeout: time.Minute, Total: timeout})
		if got := e.request(t, ""); got.StatusCode != http.StatusInternalServerError || s.times() != 0 {
			t.Errorf("answered %d, asked the last %d times, want 500 and none", got.StatusCode, s.times())
		}
		if log := e.log.String(); !strings.Contains(log, "no answer within") || !strings.Contains(log, "not requested, no time was left") {
			t.Errorf("log %q, want reasons", log)
		}
	})
}

// D-BRP10: an endpoint that does not respond does not delay every request, and
// has its place again when it gives one.
func TestEndpointsRememberSilence(t *testing.T) {
	var well atomic.Bool
	var requested atomic.Int32
	first := at(service(t, func(w http.ResponseWriter, _ *http.Request) {
		requested.Add(1)
		if !well.Load() {
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, "first")
	}))
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{first, at(saying(t, 200, "second"))}})
	request := func(want string, times int32) {
		t.Helper()
		if got := e.request(t, "POST / HTTP/1.1\r\nContent-Length: 0"); got.body != want || requested.Swap(0) != times {
			t.Errorf("answered %q, want %q, and the first asked %d times: %s", got.body, want, times, e.log)
		}
	}
	request("second", 1)
	e.targets[0].silentUntil.Add(int64(time.Hour)) // however long this test takes
	request("second", 0)
	well.Store(true)
	request("second", 0)
	e.targets[0].silentUntil.Store(1) // its time is over
	request("first", 1)
	request("first", 1)
	well.Store(false)
	e.targets[0].silentUntil.Store(0)
	e.targets[1].silentUntil.Store(time.Now().Add(time.Hour).UnixNano())
	request("second", 1) // one that gave none is requested when no other gives one
	if log := e.log.String(); strings.Count(log, "does not respond") != 2 || strings.Count(log, "responds again") != 2 {
		t.Errorf("log %s, want each change once", log)
	}
}

// However many requests wait for endpoints, verdicts come.
func TestEndpointsLeaveRoomForVerdicts(t *testing.T) {
	const limit = 8
	proctest.NoLeaks(t)
	release := make(chan struct{})
	over := sync.OnceFunc(func() { close(release) })
	var waiting atomic.Int32
	port := service(t, func(w http.ResponseWriter, _ *http.Request) {
		waiting.Add(1)
		<-release
		io.WriteString(w, "late")
	})
	e, err := NewEndpoints(completeEndpoints(EndpointsConfig{URLs: []string{at(port)}, Timeout: time.Minute, Total: time.Minute}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": e, "/ping": mirror}, MaxConnections: limit})
	t.Cleanup(over)
	const request = " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	var conns []*net.TCPConn
	for range limit * 3 / 4 {
		conn := dialHTTP(t, addr)
		io.WriteString(conn, "GET /"+request)
		conns = append(conns, conn)
	}
	proctest.Until(t, "the endpoint has its share", func() bool { return int(waiting.Load()) == len(conns) })
	for range 2 * limit {
		if got := say(t, addr, "GET /"+request); !strings.Contains(got, " 503 ") || !strings.HasSuffix(got, "busy\n") {
			t.Fatalf("one more was answered %q, want 503", got)
		}
		if got := say(t, addr, "GET /ping"+request); !strings.Contains(got, " 200 OK") {
			t.Fatalf("/ping was answered %q, want 200", got)
		}
	}
	over()
	for _, conn := range conns {
		if got, _ := io.ReadAll(conn); !strings.HasSuffix(string(got), "late") {
			t.Errorf("one of those that waited was answered %q", got)
		}
	}
	proctest.Until(t, "the place is free again", func() bool { return strings.HasSuffix(say(t, addr, "GET /"+request), "late") })
}

// The listener's limits are for its own clients and answers.
func TestEndpointsOutliveTheListenersLimits(t *testing.T) {
	const limit = 400 * time.Millisecond
	slow := func(status int) string {
		return at(service(t, func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(2 * limit) // longer than the listener gives
			w.WriteHeader(status)
			for range 6 {
				io.WriteString(w, "part ")
				w.(http.Flusher).Flush()
				time.Sleep(limit / 2) // the pace of a response, less than the listener gives
			}
			time.Sleep(3 * limit / 2) // longer than the listener gives
		}))
	}
	for _, head := range []string{"GET / HTTP/1.1", "POST / HTTP/1.1\r\nContent-Length: 2"} {
		for status, body := range map[int]string{200: strings.Repeat("part ", 6), 503: "no usable response\n"} {
			e := serveEndpoints(t, EndpointsConfig{URLs: []string{slow(status)}},
				ServerConfig{requestTimeout: limit, answerTimeout: limit, idleTimeout: limit})
			content := ""
			if strings.HasPrefix(head, "POST") {
				content = "hi"
			}
			if got := e.request(t, head, content); got.body != body {
				t.Errorf("%s: answered %d %q, want %q", head, got.StatusCode, got.body, body)
			}
		}
	}
}

func TestEndpointsRefuseUpgrade(t *testing.T) {
	s := seeing(t)
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(s.port)}})
	for _, head := range []string{
		"Upgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\nConnection: Upgrade",
		"Upgrade: h2c, WebSocket\r\nConnection: keep-alive,UPGRADE",
	} {
		raw := say(t, e.addr, "GET / HTTP/1.1\r\nHost: x\r\n"+head+"\r\n\r\n")
		got := parseAnswer(t, raw, "GET")
		if got.StatusCode != http.StatusNotImplemented || !got.Close || !strings.Contains(got.body, "WebSocket") || s.times() != 0 {
			t.Errorf("%q: answered %q and asked %d times, want 501, the end of the connection, and none", head, raw, s.times())
		}
	}
	// Neither of these is a wish that must be granted.
	for _, head := range []string{"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings", "Upgrade: websocket"} {
		if got := e.request(t, "GET / HTTP/1.1\r\n"+head); got.StatusCode != http.StatusOK || got.body != "pong" {
			t.Errorf("%q: answered %d %q, want 200 pong", head, got.StatusCode, got.body)
		}
	}
}

func TestEndpointsLoop(t *testing.T) {
	var inner http.Handler
	var depth atomic.Int32
	port := service(t, func(w http.ResponseWriter, r *http.Request) {
		depth.Add(1)
		inner.ServeHTTP(w, r)
	})
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(port), at(saying(t, 200, "pong"))}})
	inner = e.Endpoints
	if got := e.request(t, ""); got.body != "pong" || depth.Load() != 1 {
		t.Errorf("answered %q after %d rounds, want pong after one", got.body, depth.Load())
	}
	if !strings.Contains(e.log.String(), "[WARN]  an endpoint leads to this process: request loop") {
		t.Errorf("log %s, want a warning", e.log)
	}
	// Another one behind us is no loop.
	next := serveEndpoints(t, EndpointsConfig{URLs: []string{"http://" + e.addr}})
	if got := next.request(t, ""); got.body != "pong" {
		t.Errorf("two in a row answered %q, want pong", got.body)
	}
}

func TestEndpointsHTTP2(t *testing.T) {
	var conns atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header()["X-Two"] = []string{"1", "2"}
		fmt.Fprintf(w, "%s %s %s %s %s", r.Proto, r.Method, r.RequestURI, r.TLS.ServerName, body)
	}))
	srv.EnableHTTP2 = true
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	settings := trusting(srv)
	settings.ServerName = "example.com" // in httptest's certificate
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{srv.URL + "/pre?k=1"}, TLS: settings})
	for range 3 {
		got := e.request(t, "GET /a%2Fb?x=<> HTTP/1.1")
		if want := "HTTP/2.0 GET /pre/a%2Fb?k=1&x=<> example.com "; got.StatusCode != http.StatusOK || got.body != want || fmt.Sprint(got.Header["X-Two"]) != "[1 2]" {
			t.Errorf("answered %d %q %v, want %q", got.StatusCode, got.body, got.Header, want)
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections for three requests, want one", n)
	}
	got := e.request(t, "POST //a HTTP/1.1\r\nContent-Length: 2", "hi")
	if want := "HTTP/2.0 POST /pre//a?k=1 example.com hi"; got.body != want {
		t.Errorf("answered %d %q, want %q", got.StatusCode, got.body, want)
	}
	if len(settings.NextProtos) != 0 {
		t.Errorf("NextProtos = %q, want the caller's settings untouched", settings.NextProtos)
	}

	t.Cleanup(srv.CloseClientConnections) // a stream may still be being tidied up when Close comes

	stranger := serveEndpoints(t, EndpointsConfig{URLs: []string{srv.URL}})
	if got := stranger.request(t, ""); got.StatusCode != http.StatusInternalServerError || !strings.Contains(stranger.log.String(), "certificate") {
		t.Errorf("an unknown certificate: answered %d, log %s, want 500 and the reason", got.StatusCode, stranger.log)
	}
}

// closing is a service that keeps each connection for one answer longer than
// it says: the next request on it meets the end of the connection. The answer has
// a body, as it must not have for HEAD.
func closing(tb testing.TB, body string) (port int, requested *atomic.Int32) {
	tb.Helper()
	requested = new(atomic.Int32)
	return rawService(tb, func(c net.Conn) {
		requested.Add(1)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"+body)
		c.Read(make([]byte, 64<<10)) // another request, which is not answered
	}), requested
}

// An endpoint that has closed a kept connection in this very moment is not
// dead, and what must not be done twice is not sent twice.
func TestEndpointsStaleConnections(t *testing.T) {
	for _, head := range []string{"GET / HTTP/1.1", "HEAD / HTTP/1.1", "GET / HTTP/1.1\r\nContent-Length: 2", "POST / HTTP/1.1\r\nContent-Length: 2", "DELETE / HTTP/1.1"} {
		t.Run(head, func(t *testing.T) {
			answer := "pong"
			if strings.HasPrefix(head, "HEAD") {
				answer = ""
			}
			port, requested := closing(t, answer)
			e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(port)}})
			body := ""
			if strings.Contains(head, "Length") {
				body = "hi"
			}
			for i := range 4 {
				if got := e.request(t, head, body); got.StatusCode != http.StatusOK {
					t.Errorf("request %d: answered %d, want 200: %s", i, got.StatusCode, e.log)
				}
			}
			if n := requested.Load(); n != 4 {
				t.Errorf("%d connections were answered, want 4", n)
			}
		})
	}
	t.Run("POST is sent once", func(t *testing.T) {
		var requests atomic.Int32
		port := rawService(t, func(net.Conn) { requests.Add(1) })
		e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(port)}})
		if got := e.request(t, "POST / HTTP/1.1\r\nContent-Length: 2", "hi"); got.StatusCode != http.StatusInternalServerError || requests.Load() != 1 {
			t.Errorf("answered %d after %d requests, want 500 after one", got.StatusCode, requests.Load())
		}
	})
}

// Connections are kept, and Close ends them; noLeaks looks.
func TestEndpointsKeepConnections(t *testing.T) {
	var conns atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "pong") }))
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{srv.URL}})
	for range 5 {
		e.request(t, "")
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections for five requests, want one", n)
	}
}

// A client that half-closes after its request waits for its answer (RFC 9112
// §9.6), from whichever endpoint it comes.
func TestEndpointsHalfClosedClient(t *testing.T) {
	for _, race := range []bool{false, true} {
		for _, post := range []bool{false, true} {
			t.Run(fmt.Sprintf("race=%t,post=%t", race, post), func(t *testing.T) {
				came, release := make(chan bool, 4), make(chan bool)
				bad := at(service(t, func(w http.ResponseWriter, _ *http.Request) {
					came <- true
					<-release
					w.WriteHeader(http.StatusServiceUnavailable)
				}))
				good := at(service(t, func(w http.ResponseWriter, _ *http.Request) {
					if race {
						came <- true
						<-release
					}
					io.WriteString(w, "here")
				}))
				e := serveEndpoints(t, EndpointsConfig{URLs: []string{bad, good}, Race: race, Timeout: time.Minute, Total: time.Minute})
				conn := dialHTTP(t, e.addr)
				request := "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
				if post {
					request = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
				}
				io.WriteString(conn, request)
				conn.CloseWrite()
				select {
				case <-came:
				case <-time.After(5 * time.Second): // the client is answered nothing
				}
				time.Sleep(50 * time.Millisecond) // time for a mistake
				close(release)
				raw, err := io.ReadAll(conn)
				if got := parseAnswer(t, string(raw), "GET"); got.StatusCode != http.StatusOK || got.body != "here" || err != nil {
					t.Errorf("answered %d %q, %v, want 200 here and the end", got.StatusCode, got.body, err)
				}
			})
		}
	}
}

// A request in absolute form goes to the endpoints of the settings, wherever its
// URL leads; its authority is no more than a Host.
func TestEndpointsAbsoluteForm(t *testing.T) {
	s, stranger := seeing(t), seeing(t)
	for _, preserve := range []bool{false, true} {
		e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(s.port, "/base")}, PreserveHost: preserve})
		elsewhere := strings.TrimPrefix(at(stranger.port), "http://")
		want := strings.TrimPrefix(at(s.port), "http://")
		if preserve {
			want = elsewhere
		}
		for _, target := range []string{"http://" + elsewhere + "/a?b=c", "HTTPS://" + elsewhere + "/a?b=c"} {
			before := s.times()
			got := parseAnswer(t, say(t, e.addr, "GET "+target+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), "GET")
			if got.StatusCode != http.StatusOK || s.times() != before+1 {
				t.Fatalf("GET %s: answered %d, the endpoint asked %d times, want 200 and once", target, got.StatusCode, s.times()-before)
			}
			last := s.got[before]
			if last.RequestURI != "/base/a?b=c" || last.Host != want || last.Header.Get("X-Forwarded-Host") != elsewhere {
				t.Errorf("GET %s: the endpoint was asked for %s of %s, forwarded for %s, want /base/a?b=c of %s for %s",
					target, last.RequestURI, last.Host, last.Header.Get("X-Forwarded-Host"), want, elsewhere)
			}
		}
		if got := parseAnswer(t, say(t, e.addr, "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), "OPTIONS"); got.StatusCode != http.StatusOK {
			t.Errorf("OPTIONS *: answered %d, want 200", got.StatusCode)
		}
	}
	if s.times() != 4 || stranger.times() != 0 {
		t.Errorf("the endpoint was asked %d times, the host of the URL %d times, want 4 and none", s.times(), stranger.times())
	}
}

// A client that goes away, by a reset, ends what is done for it, also when it
// had half-closed before. A plain end is no sign of that: see above.
func TestEndpointsClientGone(t *testing.T) {
	for n, race := range []bool{false, true, false, true} {
		half := n > 1
		t.Run(fmt.Sprintf("race=%t,half=%t", race, half), func(t *testing.T) {
			came, gone := make(chan bool, 4), make(chan bool, 4)
			hung := at(rawService(t, func(c net.Conn) {
				came <- true
				untilHungUp(c)
				gone <- true
			}))
			s := seeing(t)
			urls := []string{hung, at(s.port)}
			if race {
				urls = []string{hung, hung}
			}
			e := serveEndpoints(t, EndpointsConfig{URLs: urls, Race: race, Timeout: time.Minute, Total: time.Minute})
			conn := dialHTTP(t, e.addr)
			io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
			<-came
			if half {
				conn.CloseWrite()
				time.Sleep(50 * time.Millisecond) // for the end to be read by itself
			}
			conn.SetLinger(0)
			conn.Close()
			select {
			case <-gone:
			case <-time.After(15 * time.Second): // a deadline
				t.Error("the endpoint's connection is still open")
			}
			proctest.Until(t, "the record is there", func() bool { return strings.Contains(e.log.String(), "client left") })
			if s.times() != 0 || strings.Contains(e.log.String(), "[WARN]") {
				t.Errorf("the next endpoint was asked %d times, log %s, want none and no warning", s.times(), e.log)
			}
		})
	}
}

// F65: nothing a client or an endpoint sends becomes a line of its own.
func TestEndpointsInjection(t *testing.T) {
	for _, value := range []string{"a\rX-Evil: 1", "a\r\r\nX-Evil-2: 1", "a\x00b", "a\x0bb"} {
		port := rawService(t, func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nX-A: "+value+"\r\nContent-Length: 2\r\n\r\nhi")
		})
		e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(port)}})
		raw := say(t, e.addr, "GET /%0d%0aX-Evil:%201?a=%0d%0a[ERROR] HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		head, _, _ := strings.Cut(raw, "\r\n\r\n")
		if lines := strings.ReplaceAll(head, "\r\n", ""); strings.ContainsAny(lines, "\r\n\x00") || strings.Contains(raw, "\rX-Evil:") {
			t.Errorf("a header of %q: answered %q, want no line of the endpoint's making", value, raw)
		}
		if log := e.log.String(); strings.Count(log, "\n") > 2 || strings.Contains(log, "[ERROR]") {
			t.Errorf("a header of %q: log %q, want a line about the endpoint and one about the request", value, log)
		}
	}
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(saying(t, 200, "pong"))}})
	if got := parseAnswer(t, say(t, e.addr, "GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n"), "GET"); got.StatusCode != http.StatusBadRequest {
		t.Errorf("a Host with CR: answered %d, want 400", got.StatusCode)
	}
}

func FuzzEndpointTarget(f *testing.F) {
	for _, seed := range [][2]string{
		{"http://h", "/"}, {"http://h/pre", "/a?q=1"}, {"http://h/pre/?k=1", "//a?"}, {"https://[::1]:8443/a%2fb?", "/%zz?&&"},
		{"http://h//", "/?x=http://y"}, {"HTTP://h/ü?a=<>", "/\xff?\"{}"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, raw, requested string) {
		ep, err := parseEndpoint(raw)
		if err != nil || !strings.HasPrefix(requested, "/") || strings.ContainsAny(requested, " \x00\r\n") {
			return
		}
		base, err := url.Parse(raw)
		if err != nil {
			t.Fatalf("%q was taken and is no URL: %v", raw, err)
		}
		target := ep.target(requested)
		path, query, _ := strings.Cut(target, "?")
		wantPath, wantQuery, _ := strings.Cut(requested, "?")
		prefix, below := strings.TrimSuffix(base.EscapedPath(), "/"), strings.TrimPrefix(wantPath, "/")
		if path != prefix+"/"+below {
			t.Fatalf("%q and %q make path %q, want %q and one slash and %q", raw, requested, path, prefix, below)
		}
		if !strings.HasPrefix(query, base.RawQuery) || !strings.HasSuffix(query, wantQuery) || len(query) > len(base.RawQuery)+len(wantQuery)+1 {
			t.Fatalf("%q and %q make query %q, want the one before the other", raw, requested, query)
		}
		u := ep.url(&http.Request{RequestURI: requested})
		if u.Host != base.Host || u.Scheme != base.Scheme {
			t.Fatalf("%q and %q lead to %s://%s, want the endpoint", raw, requested, u.Scheme, u.Host)
		}
		if sent := u.RequestURI(); !strings.HasPrefix(sent, "/") || sent != target && !strings.HasPrefix(target, "//") {
			t.Fatalf("%q and %q are sent as %q, want %q", raw, requested, sent, target)
		}
	})
}

// D-BRP1: bodies of the sizes that broke the older program, whole and in two
// parts, and the next request is answered as well.
func TestEndpointsBodiesOfEverySize(t *testing.T) {
	parts := func(sizes ...int) (handler http.HandlerFunc, whole string) {
		for i, n := range sizes {
			whole += strings.Repeat(string(rune('a'+i)), n)
		}
		return func(w http.ResponseWriter, _ *http.Request) {
			rest := whole
			for _, n := range sizes {
				io.WriteString(w, rest[:n])
				w.(http.Flusher).Flush()
				rest = rest[n:]
			}
		}, whole
	}
	for _, sizes := range [][]int{{3800}, {4200}, {5000}, {32768}, {100_000}, {2, 3}, {4096, 1}, {40_000, 40_000}} {
		t.Run(fmt.Sprint(sizes), func(t *testing.T) {
			handler, whole := parts(sizes...)
			url := at(service(t, handler))
			for _, race := range []bool{false, true} {
				e := serveEndpoints(t, EndpointsConfig{URLs: []string{url, url}, Race: race})
				for range 3 {
					if got := e.request(t, ""); got.StatusCode != http.StatusOK || got.body != whole {
						t.Errorf("race %t: answered %d with %d bytes, want 200 with %d", race, got.StatusCode, len(got.body), len(whole))
					}
				}
			}
		})
	}
}

// BRP 20: an endpoint that cannot be asked has no response, whatever statuses
// are usable, and BRP 23: when none has, the answer is 500.
func TestEndpointsRefusedIsNeverUsable(t *testing.T) {
	refused, busy := at(unreachablePort(t)), at(saying(t, 503, "busy"))
	for _, race := range []bool{false, true} {
		e := serveEndpoints(t, EndpointsConfig{URLs: []string{refused, busy}, Status: []string{"5xx"}, Race: race})
		if got := e.request(t, "GET /a HTTP/1.1"); got.StatusCode != http.StatusServiceUnavailable || got.body != "busy" {
			t.Errorf("race %t: answered %d %q, want the 503 of the one that answers", race, got.StatusCode, got.body)
		}
		// BRP 28: which endpoint answered, and after what time.
		served := regexp.MustCompile(`\[DEBUG\] request served: method=GET path=/a endpoint=` + regexp.QuoteMeta(busy) + ` status=503 .*took="?[\d.]+`)
		proctest.Until(t, "the record is there", func() bool { return served.MatchString(e.log.String()) })
		e = serveEndpoints(t, EndpointsConfig{URLs: []string{refused, refused}, Status: []string{"5xx"}, Race: race})
		if got := e.request(t, ""); got.StatusCode != http.StatusInternalServerError || strings.Contains(got.body, "127.0.0.1") {
			t.Errorf("race %t: answered %d %q, want 500 without an address", race, got.StatusCode, got.body)
		}
	}
}

// CF 17, BRP 27, F63: a service that redirects to itself for ever is asked
// once.
func TestRedirectLoop(t *testing.T) {
	var requested atomic.Int32
	port := service(t, func(w http.ResponseWriter, r *http.Request) {
		requested.Add(1)
		http.Redirect(w, r, r.URL.Path+"?again", http.StatusFound)
	})
	if got := servePing(t, PingConfig{Ports: []int{port}}).request(t, ""); got.StatusCode != http.StatusBadGateway || requested.Load() != 1 {
		t.Errorf("/ping answered %d and asked %d times, want 502 and once", got.StatusCode, requested.Load())
	}
	requested.Store(0)
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(port)}})
	if got := e.request(t, "GET /loop HTTP/1.1"); got.StatusCode != http.StatusFound || got.Header.Get("Location") != "/loop?again" || requested.Load() != 1 {
		t.Errorf("an endpoint answered %d to %q and was asked %d times, want 302, /loop?again and once", got.StatusCode, got.Header.Get("Location"), requested.Load())
	}
}

// D-BRP11: a client that gives up is no endpoint's fault, and the endpoint is
// asked again as before.
func TestEndpointsClientsThatGiveUp(t *testing.T) {
	var requested atomic.Int32
	slow := at(service(t, func(w http.ResponseWriter, r *http.Request) {
		if requested.Add(1) <= 10 {
			<-r.Context().Done()
			return
		}
		io.WriteString(w, "here")
	}))
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{slow}, Timeout: time.Minute})
	for range 10 {
		before := requested.Load()
		conn := dialHTTP(t, e.addr)
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		proctest.Until(t, "the endpoint is asked", func() bool { return requested.Load() > before })
		conn.SetLinger(0)
		conn.Close()
	}
	proctest.Until(t, "all are seen to be gone", func() bool { return strings.Count(e.log.String(), "client left") == 10 })
	if got := e.request(t, ""); got.body != "here" || strings.Contains(e.log.String(), "[WARN]") || strings.Contains(e.log.String(), "[ERROR]") {
		t.Errorf("answered %q, log %s, want the endpoint's answer and no warning", got.body, e.log)
	}
}
