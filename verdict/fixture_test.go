package verdict

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/proctest"
)

// complete gives the settings of cfg that are zero the values that most tests
// use.
func complete(cfg PingConfig) PingConfig {
	cfg.Path = cmp.Or(cfg.Path, "/ping")
	cfg.Timeout = cmp.Or(cfg.Timeout, 2*time.Second)
	cfg.FailStatus = cmp.Or(cfg.FailStatus, "auto")
	return cfg
}

// completeEndpoints does the same for endpoints.
func completeEndpoints(cfg EndpointsConfig) EndpointsConfig {
	cfg.Timeout = cmp.Or(cfg.Timeout, 10*time.Second)
	cfg.Total = cmp.Or(cfg.Total, 30*time.Second)
	if cfg.Status == nil {
		cfg.Status = []string{"1xx", "2xx", "3xx", "4xx"}
	}
	return cfg
}

// opinion is a verdict that a test sets.
type opinion struct{ atomic.Pointer[string] }

// be sets the verdict; "" is a good one.
func (o *opinion) be(reason string) { o.Store(&reason) }

func (o *opinion) evaluate(context.Context) error {
	if s := o.Load(); s != nil && *s != "" {
		return errors.New(*s)
	}
	return nil
}

// run binds r and runs it until the test ends, or stop is called.
func run(tb testing.TB, r runner) (addr string, stop func()) {
	tb.Helper()
	proctest.NoLeaks(tb)
	if err := r.Run(tb.Context()); err == nil {
		tb.Fatal("Run() before Bind = nil, want an error")
	}
	if err := r.Bind(); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	stop = func() {
		cancel()
		select {
		case err := <-ended:
			ended <- err
			if err != nil {
				tb.Errorf("Run() = %v, want nil", err)
			}
		case <-time.After(15 * time.Second): // a deadline
			tb.Error("Run did not return after its context ended")
		}
	}
	tb.Cleanup(stop)
	return r.Addr().String(), stop
}

// errUnknown is what the state of a probe is until it is known.
var errUnknown = errors.New("not known yet")

// serveEndpoints runs one until the test ends.
func serveEndpoints(tb testing.TB, cfg EndpointsConfig, server ...ServerConfig) endpointsUnderTest {
	tb.Helper()
	proctest.NoLeaks(tb)
	log := new(lockedBuffer)
	cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Debug})
	e, err := NewEndpoints(completeEndpoints(cfg))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(e.Close)
	sc := append(server, ServerConfig{})[0]
	sc.Routes = map[string]http.Handler{"/": e}
	return endpointsUnderTest{serveRoutes(tb, sc), e, log}
}

// at returns the URL of a port on this machine.
func at(port int, path ...string) string {
	return fmt.Sprintf("http://127.0.0.1:%d%s", port, strings.Join(path, ""))
}

// trusting returns settings that trust srv only.
func trusting(srv *httptest.Server) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

var errDead = errors.New("down: connection refused")

func memberOf(name string, err error) Member {
	return Member{Name: name, Kind: "probe", State: func() error { return err }}
}

func put(tb testing.TB, path, content string) {
	tb.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// servePing runs a Server with /ping and everything below it until the test
// ends.
func servePing(tb testing.TB, cfg PingConfig) pinged {
	tb.Helper()
	p := pinged{good: new(lockedBuffer), bad: new(lockedBuffer)}
	proctest.NoLeaks(tb)
	if cfg.Log == nil {
		cfg.Log = NewLog(p.good, p.bad, false, nil)
	}
	ping, err := NewPing(complete(cfg))
	if err != nil {
		tb.Fatal(err)
	}
	p.addr = serveRoutes(tb, ServerConfig{Routes: map[string]http.Handler{"/ping": ping, "/ping/": ping}})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- cfg.Log.Run(ctx) }()
	tb.Cleanup(func() { stop(); <-ended })
	return p
}

// service runs an HTTP service on a free port of 127.0.0.1.
func service(tb testing.TB, handler http.HandlerFunc) (port int) {
	tb.Helper()
	srv := httptest.NewServer(handler)
	tb.Cleanup(srv.Close)
	return srv.Listener.Addr().(*net.TCPAddr).Port
}

// saying is a service that answers everything with status and body.
func saying(tb testing.TB, status int, body string) (port int) {
	tb.Helper()
	return service(tb, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		io.WriteString(w, body)
	})
}

// rawService runs a service that reads the head of a request and then does
// what answer does with the connection. Answer must return when a write fails.
func rawService(tb testing.TB, answer func(net.Conn)) (port int) {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(20 * time.Second))
				conn.Read(make([]byte, 64<<10))
				answer(conn)
			})
		}
	})
	tb.Cleanup(func() { ln.Close(); conns.Wait() })
	return ln.Addr().(*net.TCPAddr).Port
}

// untilHungUp waits until the other side closes.
func untilHungUp(conn net.Conn) { io.Copy(io.Discard, conn) }

// unreachablePort returns a port without a listener.
func unreachablePort(tb testing.TB) int {
	tb.Helper()
	return proctest.FreePort(tb, "127.0.0.1")
}

// seen is a service that passes and remembers what it was asked.
type seen struct {
	port int
	mu   sync.Mutex
	got  []*http.Request
	body []string
}

func seeing(tb testing.TB) *seen {
	tb.Helper()
	s := new(seen)
	s.port = service(tb, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.got, s.body = append(s.got, r), append(s.body, string(body))
		io.WriteString(w, "pong")
	})
	return s
}

func (s *seen) times() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.got)
}

// member returns a member that is always well, or never for err.
func member(name string, err error) Member {
	return Member{Name: name, State: func() error { return err }}
}

func readerOf(s string) *bufio.Reader { return bufio.NewReader(strings.NewReader(s)) }

// serveRoutes runs a Server on a free port until the test ends, and returns
// its address.
func serveRoutes(tb testing.TB, cfg ServerConfig) string {
	tb.Helper()
	return startServer(tb, cfg).Addr().String()
}

// startServer is serveRoutes, and returns the Server.
func startServer(tb testing.TB, cfg ServerConfig) *Server {
	tb.Helper()
	proctest.NoLeaks(tb)
	cfg.Listen = "127.0.0.1:0"
	s, err := NewServer(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	if err := s.Bind(); err != nil {
		tb.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	tb.Cleanup(func() {
		stop()
		select {
		case err := <-ended:
			if err != nil {
				tb.Errorf("Run() = %v, want nil", err)
			}
		case <-time.After(15 * time.Second): // a deadline
			tb.Error("Run did not return after its context ended")
		}
	})
	return s
}

// mirror is a handler that answers with the request that it got.
var mirror = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %s %q %v", r.Method, r.RequestURI, body, err)
})

// dialHTTP connects to addr; everything on the connection fails after 20s.
func dialHTTP(tb testing.TB, addr string) *net.TCPConn {
	tb.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn.(*net.TCPConn)
}

// say sends raw bytes and returns everything that comes back until the server
// closes.
func say(tb testing.TB, addr, raw string) string {
	tb.Helper()
	conn := dialHTTP(tb, addr)
	io.WriteString(conn, raw)
	answer, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		tb.Fatalf("after %.80q read %.200q, %v, want an answer and its end", raw, answer, err)
	}
	return string(answer)
}

// answer is a parsed response.
type answer struct {
	*http.Response
	body string
	rest string // bytes behind it
}

func parseAnswer(tb testing.TB, raw, method string) answer {
	tb.Helper()
	r := bufio.NewReader(strings.NewReader(raw))
	resp, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		tb.Fatalf("answer %q: %v", raw, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatalf("answer %q: body: %v", raw, err)
	}
	rest, _ := io.ReadAll(r)
	return answer{resp, string(body), string(rest)}
}

// lockedBuffer is a buffer for many goroutines.
type lockedBuffer struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	writes int
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.writes++
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func newTCPResponder(tb testing.TB, listen string, evaluate func(context.Context) error) *TCPResponder {
	tb.Helper()
	r, err := NewTCPResponder(TCPResponderConfig{Listen: listen, Evaluate: evaluate})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}
