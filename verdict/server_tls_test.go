package verdict

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// httpsPair returns what a server on 127.0.0.1 needs to speak TLS, and what its
// clients need to trust it.
func httpsPair(tb testing.TB) (server, client *tls.Config) {
	tb.Helper()
	srv := httptest.NewTLSServer(http.NotFoundHandler())
	defer srv.Close()
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	return &tls.Config{Certificates: srv.TLS.Certificates}, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}
}

// dialTLS connects to addr and shakes hands.
func dialTLS(tb testing.TB, addr string, cfg *tls.Config) (*tls.Conn, error) {
	tb.Helper()
	conn := tls.Client(dialHTTP(tb, addr), cfg)
	return conn, conn.Handshake()
}

// sayTLS is say over TLS.
func sayTLS(tb testing.TB, addr string, cfg *tls.Config, raw string) string {
	tb.Helper()
	conn, err := dialTLS(tb, addr, cfg)
	if err != nil {
		tb.Fatalf("handshake: %v", err)
	}
	io.WriteString(conn, raw)
	answer, err := io.ReadAll(conn)
	if err != nil && len(answer) == 0 {
		tb.Fatalf("after %.80q: %v", raw, err)
	}
	return string(answer)
}

func TestServerTLS(t *testing.T) {
	server, client := httpsPair(t)
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %v", r.Method, r.RequestURI, r.TLS != nil && r.TLS.HandshakeComplete)
	})
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": answer}, TLS: server})

	t.Run("answers", func(t *testing.T) {
		got := parseAnswer(t, sayTLS(t, addr, client, "GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), "GET")
		if got.StatusCode != http.StatusOK || got.body != "GET /x true" {
			t.Errorf("answered %d %q, want 200", got.StatusCode, got.body)
		}
	})
	t.Run("keeps connections", func(t *testing.T) {
		conn, err := dialTLS(t, addr, client)
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(conn)
		for i := range 3 {
			fmt.Fprintf(conn, "GET /%d HTTP/1.1\r\nHost: x\r\n\r\n", i)
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, _ := io.ReadAll(resp.Body); string(body) != fmt.Sprintf("GET /%d true", i) {
				t.Errorf("request %d was answered %q", i, body)
			}
		}
	})
	t.Run("heads are checked", func(t *testing.T) {
		for _, raw := range []string{
			"GET / HTTP/1.1\nHost: x\n\n",
			"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
		} {
			if got := sayTLS(t, addr, client, raw); !strings.HasPrefix(got, "HTTP/1.1 400 ") {
				t.Errorf("%q was answered %q, want 400", raw, got)
			}
		}
	})
	t.Run("a large answer is encrypted", func(t *testing.T) {
		large := bytes.Repeat([]byte("pong"), 1<<18)
		addr := serveRoutes(t, ServerConfig{TLS: server, Routes: map[string]http.Handler{
			"/": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				io.Copy(w, bytes.NewReader(large)) // offers every short cut there is
			}),
		}})
		got := sayTLS(t, addr, client, "GET / HTTP/1.0\r\n\r\n")
		if !strings.HasSuffix(got, string(large)) {
			t.Errorf("%d bytes came, want %d and a head", len(got), len(large))
		}
	})
	for _, tt := range []struct {
		name    string
		change  func(*tls.Config)
		wantErr bool
	}{
		{"TLS 1.2", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, false},
		{"TLS 1.1", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, true},
		{"offers h2", func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} }, false},
		{"h2 alone", func(c *tls.Config) { c.NextProtos = []string{"h2"} }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := client.Clone()
			tt.change(cfg)
			conn, err := dialTLS(t, addr, cfg)
			if (err != nil) != tt.wantErr {
				t.Errorf("handshake: %v, want an error: %v", err, tt.wantErr)
			}
			if err == nil && conn.ConnectionState().NegotiatedProtocol == "h2" {
				t.Error("HTTP/2 was agreed upon, want HTTP/1.1")
			}
		})
	}
	t.Run("plain HTTP gets an answer", func(t *testing.T) {
		if got := say(t, addr, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.0 400 ") || !strings.Contains(got, "https") {
			t.Errorf("answered %q, want 400", got)
		}
	})
}

// F62 holds for TLS: a client that sends too much gets an error before the end.
func TestServerTLSLimitsHeads(t *testing.T) {
	server, client := httpsPair(t)
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": mirror}, TLS: server})
	conn, err := dialTLS(t, addr, client)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nA: "+strings.Repeat("a", 2*maxHead)+"\r\n\r\n")
	if got, err := io.ReadAll(conn); !strings.Contains(string(got), " 431 ") || err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("answered %q, %v, want 431 and the end", got, err)
	}
}

// F60 and F61 hold for TLS: silence, half a handshake and half a head end with
// the header timeout.
func TestServerTLSTimeouts(t *testing.T) {
	server, client := httpsPair(t)
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": mirror}, TLS: server, headTimeout: 300 * time.Millisecond})
	gone := func(t *testing.T, conn net.Conn) {
		t.Helper()
		began := time.Now()
		if _, err := io.ReadAll(conn); os.IsTimeout(err) {
			t.Errorf("still open after %s", time.Since(began))
		}
	}
	for _, raw := range []string{"", "\x16", "\x16\x03\x01\x02\x00\x01\x00"} {
		t.Run(fmt.Sprintf("%q", raw), func(t *testing.T) {
			conn := dialHTTP(t, addr)
			io.WriteString(conn, raw)
			gone(t, conn)
		})
	}
	t.Run("half a head", func(t *testing.T) {
		conn, err := dialTLS(t, addr, client)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost:")
		gone(t, conn)
	})
}

// F60 for TLS: clients that never finish their handshake do not block others.
func TestServerTLSSlowloris(t *testing.T) {
	const limit, slow = 64, 300
	server, client := httpsPair(t)
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": mirror}, MaxConnections: limit, TLS: server, headTimeout: time.Minute})
	for i := range slow {
		conn := dialHTTP(t, addr)
		if i%2 == 0 {
			io.WriteString(conn, "\x16\x03\x01\x02\x00\x01\x00")
		}
	}
	var took []time.Duration
	for range 30 {
		began := time.Now()
		if got := sayTLS(t, addr, client, "GET /honest HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); !strings.Contains(got, "GET /honest") {
			t.Fatalf("honest client was answered %q", got)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("honest requests beside %d slow ones: median %s, slowest %s", slow, took[len(took)/2], took[len(took)-1])
	if slowest := took[len(took)-1]; slowest > 15*time.Second { // who is locked out waits a minute
		t.Errorf("slowest honest request took %s", slowest)
	}
}

// A client that ends its direction waits for its answer, whether TLS says so or
// the connection alone; one that resets the connection has gone.
func TestServerTLSHalfClosedClient(t *testing.T) {
	server, client := httpsPair(t)
	for _, how := range []string{"tls", "connection", "reset"} {
		t.Run(how, func(t *testing.T) {
			came, left, release := make(chan bool, 1), make(chan bool, 1), make(chan bool)
			slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				came <- true
				select {
				case <-release:
					io.WriteString(w, "here")
				case <-r.Context().Done():
					left <- true
				}
			})
			addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": slow}, TLS: server})
			conn, err := dialTLS(t, addr, client)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			<-came
			switch tcp := conn.NetConn().(*net.TCPConn); how {
			case "tls":
				conn.CloseWrite()
			case "connection":
				tcp.CloseWrite()
			case "reset":
				tcp.CloseWrite()
				time.Sleep(50 * time.Millisecond) // for the end to be read by itself
				tcp.SetLinger(0)
				tcp.Close()
				select {
				case <-left:
				case <-time.After(15 * time.Second): // a deadline
					t.Error("a client that reset its connection still counts as there")
				}
				return
			}
			time.Sleep(50 * time.Millisecond) // time for a mistake
			close(release)
			raw, _ := io.ReadAll(conn)
			if got := parseAnswer(t, string(raw), "GET"); got.StatusCode != http.StatusOK || got.body != "here" {
				t.Errorf("answered %d %q, want 200 here", got.StatusCode, got.body)
			}
		})
	}
}

// F70: garbage on a TLS port is a line a second at most.
func TestServerTLSGarbage(t *testing.T) {
	server, client := httpsPair(t)
	var out lockedBuffer
	logger := hclog.New(&hclog.LoggerOptions{Output: &out, Level: hclog.Debug})
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": mirror}, TLS: server, Logger: logger})
	began := time.Now()
	for i := range 200 {
		conn := dialHTTP(t, addr)
		switch i % 4 {
		case 0:
			io.WriteString(conn, "\x00\xff garbage\r\n\r\n")
		case 1:
			conn.Close()
		case 2:
			io.WriteString(conn, "\x16\x03\x01\x00\x05hello")
		case 3: // does not believe us
			tls.Client(conn, &tls.Config{ServerName: "other.example"}).Handshake()
		}
		conn.CloseWrite()
		io.Copy(io.Discard, conn)
	}
	if got := sayTLS(t, addr, client, "GET / HTTP/1.0\r\n\r\n"); !strings.Contains(got, "200 OK") {
		t.Errorf("after garbage answered %q, want 200", got)
	}
	// A client that chooses its words does not pass for a fault of ours.
	if _, err := dialTLS(t, addr, &tls.Config{RootCAs: client.RootCAs, ServerName: client.ServerName, NextProtos: []string{"http: panic serving"}}); err == nil {
		t.Error("a protocol of its own was agreed upon")
	}
	clientErrors := &clientErrorLog{log: logger}
	fmt.Fprint(clientErrors, `tls handshake with 192.0.2.1:1: tls: client requested unsupported application protocols (["http: panic serving"])`)
	if strings.Contains(out.String(), "[ERROR]") {
		t.Errorf("a client wrote an error into the log: %s", out.String())
	}
	most := 3 + int(time.Since(began)/time.Second) // of two logs
	if n := strings.Count(out.String(), "http client refused"); n < 1 || n > most {
		t.Errorf("%d records about garbage, want at most %d: %s", n, most, out.String())
	}
	if n := strings.Count(out.String(), "\n"); n > most+2 {
		t.Errorf("%d records in all: %s", n, out.String())
	}
}

// The listener ends in time with TLS clients in every state.
func TestServerTLSStop(t *testing.T) {
	server, client := httpsPair(t)
	s := startServer(t, ServerConfig{Routes: map[string]http.Handler{"/": mirror}, TLS: server})
	addr := s.Addr().String()
	dialHTTP(t, addr) // silent
	if _, err := dialTLS(t, addr, client); err != nil {
		t.Fatal(err)
	}
	idle, err := dialTLS(t, addr, client)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(idle, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := http.ReadResponse(bufio.NewReader(idle), nil); err != nil {
		t.Fatal(err)
	}
}

// Certificates are exchanged under way; open connections stay.
func TestServerSetTLS(t *testing.T) {
	first, believesFirst := httpsPair(t)
	s := startServer(t, ServerConfig{Routes: map[string]http.Handler{"/": mirror}})
	addr := s.Addr().String()
	const text = "GET /x HTTP/1.0\r\n\r\n"
	plain := dialHTTP(t, addr)
	r := bufio.NewReader(plain)
	request := func() {
		t.Helper()
		io.WriteString(plain, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
	}
	request()
	if err := s.SetTLS(&tls.Config{}); err == nil {
		t.Error("SetTLS without a certificate = nil, want an error")
	}
	request()
	if got := say(t, addr, text); !strings.Contains(got, "200 OK") {
		t.Errorf("after a bad change answered %q, want as before", got)
	}
	if err := s.SetTLS(first); err != nil {
		t.Fatal(err)
	}
	request() // one that is open goes on
	if got := sayTLS(t, addr, believesFirst, text); !strings.Contains(got, "200 OK") {
		t.Errorf("over TLS answered %q, want 200", got)
	}
	if first.NextProtos != nil || first.MinVersion != 0 {
		t.Error("the caller's configuration was changed")
	}
	second := first.Clone()
	second.MinVersion = tls.VersionTLS13
	if err := s.SetTLS(second); err != nil {
		t.Fatal(err)
	}
	old := believesFirst.Clone()
	old.MaxVersion = tls.VersionTLS12
	if _, err := dialTLS(t, addr, old); err == nil {
		t.Error("TLS 1.2 was agreed upon after the change, want none")
	}
	if err := s.SetTLS(nil); err != nil {
		t.Fatal(err)
	}
	if got := say(t, addr, text); !strings.Contains(got, "200 OK") {
		t.Errorf("plain again answered %q, want 200", got)
	}
	if _, err := NewServer(ServerConfig{Listen: ":0", Routes: map[string]http.Handler{"/": mirror}, TLS: &tls.Config{}}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("NewServer() = %v, want no certificate", err)
	}
}

// Routes are exchanged under way: a request stays with the handler that took
// it, on a connection that stays.
func TestServerSetRoutes(t *testing.T) {
	named := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, name) })
	}
	requested, release := make(chan struct{}), make(chan struct{})
	s := startServer(t, ServerConfig{Routes: map[string]http.Handler{
		"/": named("old"),
		"/slow": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(requested)
			<-release
			io.WriteString(w, "old slow")
		}),
	}})
	conn := dialHTTP(t, s.Addr().String())
	r := bufio.NewReader(conn)
	request := func(path string) { fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path) }
	want := func(want string) {
		t.Helper()
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != want {
			t.Errorf("answered %q, want %q", body, want)
		}
	}
	request("/ping")
	want("old")
	request("/slow")
	<-requested
	for _, bad := range []map[string]http.Handler{nil, {"ping": named("x")}, {"/ping": nil}} {
		if err := s.SetRoutes(bad); err == nil {
			t.Errorf("SetRoutes(%v) = nil, want an error", bad)
		}
	}
	if err := s.SetRoutes(map[string]http.Handler{"/ping": named("new ping"), "/": named("new rest")}); err != nil {
		t.Fatal(err)
	}
	close(release)
	want("old slow")
	for path, answer := range map[string]string{
		"/ping": "new ping", "/": "new rest", "/ping/": "new rest", "/pingx": "new rest", "/slow": "new rest", "/ping?x": "new ping",
	} {
		request(path)
		want(answer)
	}
}

func TestServerSetRoutesUnderLoad(t *testing.T) {
	numbered := func(n int) map[string]http.Handler {
		h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, n) })
		return map[string]http.Handler{"/a": h, "/": h}
	}
	s := startServer(t, ServerConfig{Routes: numbered(0)})
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if got := say(t, s.Addr().String(), "GET /a HTTP/1.0\r\n\r\n"); !strings.Contains(got, "200 OK") {
					t.Errorf("answered %q, want 200", got)
					return
				}
			}
		})
	}
	for i := range 200 {
		if err := s.SetRoutes(numbered(i)); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Millisecond) // for some requests to come between two changes
	}
	close(stop)
	clients.Wait()
}

// A server that was bound and never ran gives its address up.
func TestServerClose(t *testing.T) {
	s, err := NewServer(ServerConfig{Listen: "127.0.0.1:0", Routes: map[string]http.Handler{"/": mirror}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close() before Bind = %v, want nil", err)
	}
	if err := s.Bind(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close() = %v, want nil", err)
	}
	ln, err := net.Listen("tcp", s.Addr().String())
	if err != nil {
		t.Fatalf("the address is not free: %v", err)
	}
	ln.Close()
}

// The client decides which certificates it trusts.
func TestCheckTLS(t *testing.T) {
	server, client := httpsPair(t)
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": mirror}, TLS: server})
	if got, err := Check(t.Context(), "https://"+addr+"/", client); err != nil || !strings.HasPrefix(got, "200 GET") {
		t.Errorf("Check() = %q, %v, want 200", got, err)
	}
	if _, err := Check(t.Context(), "https://"+addr+"/", nil); err == nil {
		t.Error("Ask of a stranger = nil, want an error")
	}
}
