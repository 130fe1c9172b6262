package health

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"understudy/internal/address"
	"understudy/internal/criteria"
	"understudy/internal/proctest"
)

// bodiesSeen returns a server that answers "pong" and the requests that it
// was asked, whose bodies are in the header X-Body.
func bodiesSeen(tb testing.TB) (host string, seen chan *http.Request) {
	tb.Helper()
	proctest.NoLeaks(tb)
	seen = make(chan *http.Request, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Header.Set("X-Body", string(body))
		seen <- r
		io.WriteString(w, "pong")
	}))
	tb.Cleanup(srv.Close)
	return srv.Listener.Addr().String(), seen
}

func TestHTTPSendsTheConfiguredRequest(t *testing.T) {
	host, seen := bodiesSeen(t)
	for _, tt := range []struct {
		name   string
		cfg    HTTPConfig
		method string
		host   string
		header string // name: value
		body   string
		length int64
	}{
		{"nothing set", HTTPConfig{}, "GET", host, "User-Agent: understudy", "", 0},
		{"method", HTTPConfig{Method: "DELETE"}, "DELETE", host, "", "", 0},
		{"method of one's own", HTTPConfig{Method: "PURGE"}, "PURGE", host, "", "", 0},
		{"HEAD", HTTPConfig{Method: "HEAD", Expect: criteria.Expect{Status: []string{"200"}}}, "HEAD", host, "", "", 0},
		{"POST of nothing", HTTPConfig{Method: "POST"}, "POST", host, "", "", 0},
		{"POST", HTTPConfig{Method: "POST", Body: []byte("a=b\r\n")}, "POST", host, "", "a=b\r\n", 5},
		{"a long body", HTTPConfig{Method: "PUT", Body: bytes.Repeat([]byte("a"), criteria.BodyLimit)}, "PUT", host, "", strings.Repeat("a", criteria.BodyLimit), criteria.BodyLimit},
		{"header", HTTPConfig{Header: http.Header{"x-app-id": {"7"}}}, "GET", host, "X-App-Id: 7", "", 0},
		{"another agent", HTTPConfig{Header: http.Header{"User-Agent": {"me"}}}, "GET", host, "User-Agent: me", "", 0},
		{"host", HTTPConfig{Host: "orders.example"}, "GET", "orders.example", "", "", 0},
		{"host as a header", HTTPConfig{Header: http.Header{"host": {"orders.example:80"}}}, "GET", "orders.example:80", "", "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			header := tt.cfg.Header.Clone()
			check, err := HTTP(get(tt.cfg))
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // a check is asked again and again
				got := check(checkContext(t, checkLimit), host)
				if !got.OK {
					t.Fatalf("HTTP = %+v", got)
				}
				r := <-seen
				if r.Method != tt.method || r.Host != tt.host || r.Header.Get("X-Body") != tt.body || r.ContentLength != tt.length {
					t.Errorf("asked %s of %s with %d bytes %.20q, want %s of %s with %d bytes", r.Method, r.Host, r.ContentLength, r.Header.Get("X-Body"), tt.method, tt.host, tt.length)
				}
				name, value, _ := strings.Cut(tt.header, ": ")
				if name != "" && strings.Join(r.Header[name], ",") != value {
					t.Errorf("%s is %q, want %q", name, r.Header[name], value)
				}
			}
			if fmt.Sprint(tt.cfg.Header) != fmt.Sprint(header) {
				t.Errorf("the caller's header is %v now, was %v", tt.cfg.Header, header)
			}
		})
	}
}

// The port of the connection string, and the unix socket that it may be.
func TestHTTPOwnPort(t *testing.T) {
	check, err := HTTP(get(HTTPConfig{Expect: pongExpect}))
	if err != nil {
		t.Fatal(err)
	}
	const answer = "HTTP/1.1 200 OK\r\n\r\npong"
	for _, host := range []string{
		listenHost(t, "tcp", "127.0.0.1:0", serveRaw(answer, "")),
		listenHost(t, "unix", filepath.Join(t.TempDir(), "s"), serveRaw(answer, "")),
	} {
		if got := check(checkContext(t, checkLimit), host); !got.OK {
			t.Errorf("HTTP(%s) = %+v", host, got)
		}
	}
}

func TestHTTPRequestMistakes(t *testing.T) {
	for _, tt := range []struct {
		cfg  HTTPConfig
		want string
	}{
		{HTTPConfig{Port: -1}, "port: -1"},
		{HTTPConfig{Method: "GE T"}, `method: "GE T"`},
		{HTTPConfig{Method: "GET\r\nX: y"}, "method: "},
		{HTTPConfig{Method: "CONNECT"}, `method: "CONNECT" is not`},
		{HTTPConfig{Method: "HEAD", Expect: criteria.Expect{Body: "pong"}}, "method: the answer to HEAD has no body"},
		{HTTPConfig{Header: http.Header{"A b": {"c"}}}, `header: "A b" is not the name`},
		{HTTPConfig{Header: http.Header{"": {"c"}}}, `header: "" is not the name`},
		{HTTPConfig{Header: http.Header{"A": {"b\r\nC: d"}}}, `header: "A" has a control character`},
		{HTTPConfig{Header: http.Header{"content-length": {"3"}}}, "header: content-length is a header that understudy sets"},
		{HTTPConfig{Header: http.Header{"Transfer-Encoding": {"chunked"}}}, "header: Transfer-Encoding is a header that"},
		{HTTPConfig{Header: http.Header{"Connection": {"upgrade"}}}, "header: Connection is a header that"},
		{HTTPConfig{Header: http.Header{"Host": {"a"}}, Host: "b"}, "header: Host is listed twice"},
		{HTTPConfig{Header: http.Header{"Host": {"a", "b"}}}, "header: Host is listed twice"},
		{HTTPConfig{Host: "a\r\nX: y"}, "host header: "},
		{HTTPConfig{Host: "a/b"}, "host header: "},
		{HTTPConfig{Body: make([]byte, criteria.BodyLimit+1)}, "request body: 65537 bytes"},
	} {
		if _, err := HTTP(get(tt.cfg)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("HTTP(%+v) = %v, want %s", tt.cfg.Header, err, tt.want)
		}
	}
}

// F63: one that redirects to itself is asked once.
func TestHTTPRedirectLoop(t *testing.T) {
	proctest.NoLeaks(t)
	var requested atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requested.Add(1)
		http.Redirect(w, r, "/ping", http.StatusFound)
	}))
	t.Cleanup(srv.Close)
	got := checkHTTP(checkContext(t, checkLimit), t, HTTPConfig{}, srv.Listener.Addr().String())
	if got.OK || !strings.Contains(fmt.Sprint(got.Err), "status 302") || requested.Load() != 1 {
		t.Errorf("HTTP of a redirect loop = %+v after %d requests, want status 302 after 1", got, requested.Load())
	}
}

// F63: fifty hosts with endless bodies at one time.
func TestHTTPMemoryOfManyHosts(t *testing.T) {
	piece := bytes.Repeat([]byte("a"), 1<<14)
	host := listenHost(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		_, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		for err == nil {
			_, err = conn.Write(piece)
		}
	})
	check, err := HTTP(get(HTTPConfig{Expect: pongExpect}))
	if err != nil {
		t.Fatal(err)
	}
	ctx := checkContext(t, 3*checkLimit)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if got := check(ctx, host); got.OK || got.Phase != Criteria {
				t.Errorf("HTTP of an endless body = %+v", got)
			}
		})
	}
	all.Wait()
	runtime.ReadMemStats(&after)
	// All that was ever allocated, not what was held at one time.
	if total := (after.TotalAlloc - before.TotalAlloc) >> 20; total > 50 {
		t.Errorf("50 checks of endless bodies allocated %d MiB, want at most 50", total)
	}
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	a := &authority{}
	pair := a.issue(tb, &x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true})
	a.cert, a.key = pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey)
	a.pool = x509.NewCertPool()
	a.pool.AddCert(a.cert)
	return a
}

// serveTLS serves "pong" and tells the server names that were asked for.
func serveTLS(tb testing.TB, config *tls.Config) (port int, names chan string) {
	tb.Helper()
	proctest.NoLeaks(tb)
	names = make(chan string, 1)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case names <- r.TLS.ServerName:
		default:
		}
		io.WriteString(w, "pong")
	}))
	srv.TLS = config
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	tb.Cleanup(srv.Close)
	return portOf(tb, srv.Listener.Addr().String()), names
}

func TestHTTPS(t *testing.T) {
	ours, foreign := newAuthority(t), newAuthority(t)
	named := &x509.Certificate{DNSNames: []string{"db1.example", "db2.example", "db3.example", "db4.example"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	good := ours.issue(t, named)
	client := ours.issue(t, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	expired := ours.issue(t, &x509.Certificate{DNSNames: named.DNSNames, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(86400, 0)})
	future := ours.issue(t, &x509.Certificate{DNSNames: named.DNSNames, NotBefore: time.Now().Add(24 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour)})
	other := ours.issue(t, &x509.Certificate{DNSNames: []string{"a\nb.example"}})

	for _, tt := range []struct {
		name   string
		server *tls.Config
		client *tls.Config
		host   string // "db1.example" unless set
		sni    string
		want   string // part of the error; empty for a pass
	}{
		{"own authority", &tls.Config{Certificates: []tls.Certificate{good}}, &tls.Config{RootCAs: ours.pool}, "", "db1.example", ""},
		{"an address has no SNI", &tls.Config{Certificates: []tls.Certificate{good}}, &tls.Config{RootCAs: ours.pool}, "127.0.0.1", "", ""},
		{"another name is asked for", &tls.Config{Certificates: []tls.Certificate{good}}, &tls.Config{RootCAs: ours.pool, ServerName: "db2.example"}, "127.0.0.1", "db2.example", ""},
		{"verification is skipped", &tls.Config{Certificates: []tls.Certificate{expired}}, &tls.Config{InsecureSkipVerify: true}, "", "db1.example", ""},
		{"client certificate", &tls.Config{Certificates: []tls.Certificate{good}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours.pool}, &tls.Config{RootCAs: ours.pool, Certificates: []tls.Certificate{client}}, "", "db1.example", ""},
		{"HTTP/2 offered by the caller", &tls.Config{Certificates: []tls.Certificate{good}}, &tls.Config{RootCAs: ours.pool, NextProtos: []string{"h2"}}, "", "db1.example", ""},

		{"expired", &tls.Config{Certificates: []tls.Certificate{expired}}, &tls.Config{RootCAs: ours.pool}, "", "", "certificate expired at 1970-01-02T00:00:00Z"},
		{"not yet valid", &tls.Config{Certificates: []tls.Certificate{future}}, &tls.Config{RootCAs: ours.pool}, "", "", "certificate is not valid before "},
		{"unknown authority", &tls.Config{Certificates: []tls.Certificate{good}}, &tls.Config{RootCAs: foreign.pool}, "", "", "certificate is signed by an unknown authority"},
		{"the system's authorities", &tls.Config{Certificates: []tls.Certificate{good}}, &tls.Config{}, "", "", "certificate is signed by an unknown authority"},
		{"wrong name", &tls.Config{Certificates: []tls.Certificate{good}}, &tls.Config{RootCAs: ours.pool}, "db9.example", "", `certificate is for "db1.example", "db2.example", "db3.example", …, not for "db9.example"`},
		{"wrong name with a control character", &tls.Config{Certificates: []tls.Certificate{other}}, &tls.Config{RootCAs: ours.pool}, "", "", `certificate is for "a\nb.example", not for "db1.example"`},
		{"no client certificate", &tls.Config{Certificates: []tls.Certificate{good}, ClientAuth: tls.RequireAnyClientCert}, &tls.Config{RootCAs: ours.pool}, "", "", "tls: certificate required"},
		{"no client certificate, TLS 1.2", &tls.Config{Certificates: []tls.Certificate{good}, ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12}, &tls.Config{RootCAs: ours.pool}, "", "", "remote error: tls: "},
		{"old TLS", &tls.Config{Certificates: []tls.Certificate{good}, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}, &tls.Config{RootCAs: ours.pool}, "", "", "tls: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			port, names := serveTLS(t, tt.server)
			name := cmp.Or(tt.host, "db1.example")
			check, err := HTTP(get(HTTPConfig{Port: port, TLS: tt.client, Expect: pongExpect, Resolve: namesOf(name, "127.0.0.1")}))
			if err != nil {
				t.Fatal(err)
			}
			got := check(checkContext(t, checkLimit), name+":1")
			if tt.want == "" {
				if !got.OK {
					t.Fatalf("HTTP = %+v", got)
				}
				if sni := <-names; sni != tt.sni {
					t.Errorf("SNI is %q, want %q", sni, tt.sni)
				}
				return
			}
			prefix := fmt.Sprintf("get https://%s:%d/ping: ", name, port)
			if got.OK || got.Unknown || got.Phase != TLS || !strings.HasPrefix(got.Err.Error(), prefix) || !strings.Contains(got.Err.Error(), tt.want) {
				t.Errorf("HTTP = %+v, want %s%s", got, prefix, tt.want)
			}
		})
	}
}

// A handshake that never ends, and one with something else than TLS.
func TestHTTPSWithoutTLS(t *testing.T) {
	const timeout = 300 * time.Millisecond
	check, err := HTTP(get(HTTPConfig{TLS: &tls.Config{}}))
	if err != nil {
		t.Fatal(err)
	}
	plain := listenHost(t, "tcp", "127.0.0.1:0", func(conn net.Conn) { io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n") })
	got := check(checkContext(t, checkLimit), plain)
	if got.OK || got.Phase != TLS || !strings.HasSuffix(got.Err.Error(), "the answer to the handshake is not TLS") {
		t.Errorf("HTTPS of a plain server = %+v", got)
	}
	silent := listenHost(t, "tcp", "127.0.0.1:0", serveNothing)
	got = check(checkContext(t, timeout), silent)
	if got.OK || got.Phase != TLS || !isTimeout(got.Err) || got.Latency > timeout+checkLimit/2 {
		t.Errorf("HTTPS of a silent server = %+v, want a timeout in tls", got)
	}
	ctx, cancel := context.WithCancel(checkContext(t, checkLimit))
	time.AfterFunc(50*time.Millisecond, cancel)
	if got = check(ctx, silent); got.OK || !got.Unknown {
		t.Errorf("HTTPS, canceled = %+v, want it Unknown", got)
	}
}

func TestURLTarget(t *testing.T) {
	for _, tt := range []struct {
		url                   string
		host, authority, path string
		tls                   bool
		err                   string
	}{
		{"http://localhost:9200/_cat/health", "localhost:9200", "localhost:9200", "/_cat/health", false, ""},
		{"https://es.example/a%2Fb?c=d&e", "es.example:443", "es.example", "/a%2Fb?c=d&e", true, ""},
		{"http://es.example", "es.example:80", "es.example", "/", false, ""},
		{"http://es.example?a", "es.example:80", "es.example", "/?a", false, ""},
		{"HTTPS://ES.example:8443/", "ES.example:8443", "ES.example:8443", "/", true, ""},
		{"http://[::1]:8080/x", "[::1]:8080", "[::1]:8080", "/x", false, ""},
		{"http://[fe80::1%25eth0]/x", "[fe80::1%eth0]:80", "[fe80::1]", "/x", false, ""},
		{"http://192.0.2.1/", "192.0.2.1:80", "192.0.2.1", "/", false, ""},

		{"localhost:9200/x", "", "", "", false, "is not a URL with http or https"},
		{"ftp://a/", "", "", "", false, "is not a URL with http or https"},
		{"http:///x", "", "", "", false, "has no host"},
		{"http:a/b", "", "", "", false, "has no host"},
		{"http://a:0/", "", "", "", false, `port "0"`},
		{"http://a:70000/", "", "", "", false, `port "70000"`},
		{"http://a:/", "", "", "", false, "no port behind its colon"},
		{"http://a b/", "", "", "", false, "is not a URL"},
		{"http://bücher.example/", "", "", "", false, `has the host name "bücher.example"`},
		{"http://10.0.0.256/", "", "", "", false, "no IPv4 address"},
		{"http://a/#b", "", "", "", false, "fragment"},
		{"http://a/#", "", "", "", false, "fragment"},
		{"http://me:s3cret@a/", "", "", "", false, "has a user in it"},
		{"http://me:s3cret@a/\x7f", "", "", "", false, "is not a URL"},
	} {
		host, cfg, err := URLTarget(tt.url)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("URLTarget(%q) = %v, want %s and no password", tt.url, err, tt.err)
			}
			continue
		}
		if err != nil || host != tt.host || cfg.Host != tt.authority || cfg.Path != tt.path || (cfg.TLS != nil) != tt.tls || cfg.Port != 0 {
			t.Errorf("URLTarget(%q) = %s, %+v, %v, want %s, %s, %s", tt.url, host, cfg, err, tt.host, tt.authority, tt.path)
		}
		if _, err := HTTP(get(cfg)); err != nil {
			t.Errorf("HTTP of %q: %v", tt.url, err)
		}
	}
}

func FuzzURLTarget(f *testing.F) {
	f.Add("http://localhost:9200/_cat/health")
	f.Add("https://[fe80::1%25eth0]/x?y#z")
	f.Add("http://me:s3cret@a/")
	f.Fuzz(func(t *testing.T, rawurl string) {
		host, cfg, err := URLTarget(rawurl)
		if err != nil {
			t.Skip()
		}
		if _, err := address.ParseHost(host); err != nil {
			t.Errorf("URLTarget(%q): host %q: %v", rawurl, host, err)
		}
		check, err := HTTP(get(cfg))
		if err != nil || check == nil {
			t.Errorf("URLTarget(%q) = %+v: %v", rawurl, cfg, err)
		}
	})
}

func ExampleURLTarget() {
	host, cfg, err := URLTarget("https://es.example/_cat/health?h=status")
	fmt.Println(host, cfg.Host, cfg.Path, cfg.TLS != nil, err)
	// Output:
	// es.example:443 es.example /_cat/health?h=status true <nil>
}
