package health

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// MaxConnections is the default of [ServerConfig.MaxConnections].
const MaxConnections = 512

// maxHead is how many bytes a request may take up to its blank line; more is
// answered 431.
const maxHead = 16 << 10

// ServerConfig says where verdicts are served and what one client may cost.
// Zero fields mean their defaults.
type ServerConfig struct {
	// Listen is the address to listen on, "192.0.2.1:9001" or ":9001" (every
	// address, IPv4 and IPv6). Required.
	Listen string

	// Routes maps a path to its handler. A path that ends in "/" takes
	// everything below it as well; where several fit, the longest wins. Paths
	// are compared as they were received, before percent-decoding. What no
	// route takes is answered 404. At least one is required.
	Routes map[string]http.Handler

	// TLS is what clients must speak, 1.2 or newer, with a certificate in it;
	// nil is plain HTTP. [Server.SetTLS] changes it.
	TLS *tls.Config

	// HeaderTimeout is how long a client may take to send the head of a
	// request, a TLS handshake before it included. Defaults to 5s.
	HeaderTimeout time.Duration

	// RequestTimeout is how long a client may take to send a whole request.
	// Defaults to 10s.
	RequestTimeout time.Duration

	// AnswerTimeout is how long an answer may take, from the end of the
	// request until its last byte is handed to the system. Defaults to 10s.
	AnswerTimeout time.Duration

	// IdleTimeout ends a connection without a request for that long. Defaults
	// to 30s.
	IdleTimeout time.Duration

	// MaxConnections limits the connections that are open at one time. When
	// one more comes, the one that has kept us waiting longest (idle, or
	// still sending its request) is closed to make place; when all of them
	// are waiting for us, the newcomer waits. Defaults to 512.
	MaxConnections int

	// Logger takes the listener's own records. Defaults to none.
	Logger hclog.Logger
}

// Server answers HTTP on one address. It owns its socket and every connection
// and goroutine that comes from it; when [Server.Run] returns, all are gone.
type Server struct {
	cfg    ServerConfig
	routes atomic.Pointer[[]route]    // longest path first
	tls    atomic.Pointer[tls.Config] // nil inside is plain HTTP
	log    hclog.Logger
	gate   *gate // nil until Bind
}

// route gives what is asked under path to handler.
type route struct {
	path    string
	handler http.Handler
}

// NewServer returns a Server, or an error naming every invalid field of cfg.
// It opens nothing.
func NewServer(cfg ServerConfig) (*Server, error) {
	cfg.HeaderTimeout = cmp.Or(cfg.HeaderTimeout, 5*time.Second)
	cfg.RequestTimeout = cmp.Or(cfg.RequestTimeout, 10*time.Second)
	cfg.AnswerTimeout = cmp.Or(cfg.AnswerTimeout, 10*time.Second)
	cfg.IdleTimeout = cmp.Or(cfg.IdleTimeout, 30*time.Second)
	cfg.MaxConnections = cmp.Or(cfg.MaxConnections, MaxConnections)
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}

	var errs []error
	if _, _, err := net.SplitHostPort(cfg.Listen); err != nil {
		errs = append(errs, fmt.Errorf("listen: %q is not host:port", cfg.Listen))
	}
	s := &Server{cfg: cfg, log: cfg.Logger.Named("http")}
	errs = append(errs, s.SetRoutes(cfg.Routes), s.SetTLS(cfg.TLS))
	for name, d := range map[string]time.Duration{
		"header timeout": cfg.HeaderTimeout, "request timeout": cfg.RequestTimeout,
		"answer timeout": cfg.AnswerTimeout, "idle timeout": cfg.IdleTimeout,
	} {
		if d < 0 {
			errs = append(errs, fmt.Errorf("%s: %s is negative", name, d))
		}
	}
	if cfg.MaxConnections < 0 {
		errs = append(errs, fmt.Errorf("max connections: %d is negative", cfg.MaxConnections))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("http listener: %w", err)
	}
	return s, nil
}

// SetRoutes exchanges all routes at once, or changes nothing and returns an
// error naming every bad one. It may be called while Run serves: a request
// that is under way stays with the handler that took it.
func (s *Server) SetRoutes(routes map[string]http.Handler) error {
	var errs []error
	if len(routes) == 0 {
		errs = append(errs, errors.New("routes: at least one is required"))
	}
	sorted := make([]route, 0, len(routes))
	for path, handler := range routes {
		if err := checkRoute(path); err != nil {
			errs = append(errs, fmt.Errorf("routes: %w", err))
		}
		if handler == nil {
			errs = append(errs, fmt.Errorf("routes: path %q has no handler", path))
		}
		sorted = append(sorted, route{path, handler})
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	slices.SortFunc(sorted, func(a, b route) int { return len(b.path) - len(a.path) })
	s.routes.Store(&sorted)
	return nil
}

// SetTLS exchanges what connections that come from now on must speak: TLS 1.2
// or newer by cfg, plain HTTP when it is nil. It changes nothing and returns an
// error when cfg has no certificate. It may be called while Run serves;
// connections that are open stay as they are.
func (s *Server) SetTLS(cfg *tls.Config) error {
	if cfg == nil {
		s.tls.Store(nil)
		return nil
	}
	if len(cfg.Certificates) == 0 && cfg.GetCertificate == nil && cfg.GetConfigForClient == nil {
		return errors.New("tls: no certificate")
	}
	cfg = cfg.Clone()
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	cfg.NextProtos = []string{"http/1.1"}
	s.tls.Store(cfg)
	return nil
}

// checkRoute reports why path could never be asked for as it stands.
func checkRoute(path string) error {
	_, err := url.ParseRequestURI(path)
	switch {
	case !strings.HasPrefix(path, "/"):
		return fmt.Errorf("path %q does not begin with /", path)
	case err != nil, strings.ContainsAny(path, "?# "), climbs(path):
		return fmt.Errorf("path %q is not the plain path of a URL", path)
	}
	return nil
}

// Bind opens the listening socket, or returns an error that names the
// address. Clients that connect from then on wait until Run serves them; Run
// releases the socket.
func (s *Server) Bind() error {
	ln, err := listenTCP(s.cfg.Listen)
	if err != nil {
		return err // already "listen tcp :9001: bind: address already in use"
	}
	s.gate = newGate(ln, s.cfg.MaxConnections)
	s.gate.tls = &s.tls
	s.gate.complaints = &complaintLog{log: s.log}
	return nil
}

// listenTCP listens on address. The stations of this traffic, probes and load
// balancers, speak plain TCP, and Go's listeners would offer Multipath TCP.
func listenTCP(address string) (*net.TCPListener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

// Close gives up the address of a Server that was bound and never ran.
func (s *Server) Close() error {
	if s.gate == nil {
		return nil
	}
	return s.gate.Close()
}

// Addr returns the address that Bind opened, or nil before.
func (s *Server) Addr() net.Addr {
	if s.gate == nil {
		return nil
	}
	return s.gate.Addr()
}

// Run serves until ctx ends. Then nothing new comes in, clients that have no
// whole request here are cut off, requests under way are answered within
// AnswerTimeout, and Run returns nil. Bind comes first. Any other return says
// why the listener died.
func (s *Server) Run(ctx context.Context) error {
	if s.gate == nil {
		return errors.New("http listener: run before bind")
	}
	srv := &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: s.cfg.HeaderTimeout,
		ReadTimeout:       s.cfg.RequestTimeout,
		WriteTimeout:      s.cfg.AnswerTimeout,
		IdleTimeout:       s.cfg.IdleTimeout,
		MaxHeaderBytes:    maxHead - 4096, // net/http reads 4096 bytes more than it is told
		ConnState:         s.gate.connState,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, c)
		},
		ErrorLog: log.New(s.gate.complaints, "", 0),

		// Otherwise net/http itself answers "OPTIONS *" with 200.
		DisableGeneralOptionsHandler: true,
		Protocols:                    new(http.Protocols),
	}
	srv.Protocols.SetHTTP1(true)

	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		// Requests under way outlive ctx, by a named time.
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.AnswerTimeout)
		defer cancel()
		if srv.Shutdown(grace) != nil { // closes the gate first
			srv.Close()
		}
	})
	s.log.Info("http listener ready", "address", s.gate.Addr())
	err := srv.Serve(s.gate)
	if stop() { // the listener died by itself, and Serve has closed it
		srv.Close()
	} else {
		<-closed
		err = nil
	}
	s.gate.clients.Wait()
	if err != nil {
		return fmt.Errorf("http listener on %s: %w", s.gate.Addr(), err)
	}
	return nil
}

// serve gives a request that two servers could not read differently to
// its route, and refuses every other.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff") // bodies come from services; they are text and nothing else

	from, _ := r.Context().Value(peerKey{}).(*peer)
	if r.Body != http.NoBody {
		// One request with a body for a connection: whatever follows a body
		// of a debatable length is never taken for a second request.
		h.Set("Connection", "close")
		r.Body = &awaitedBody{ReadCloser: r.Body, peer: from, done: func() {
			// net/http began to count at the end of the head.
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.cfg.AnswerTimeout))
		}}
	}
	if from.tls != nil {
		state := from.tls.ConnectionState()
		r.TLS = &state // net/http sees no TLS here
	}
	path, _, _ := strings.Cut(r.RequestURI, "?")
	switch {
	case r.ProtoMajor != 1:
		refuse(w, http.StatusHTTPVersionNotSupported)
		return
	case from.nextHead(r.Body != http.NoBody) != nil:
		refuse(w, http.StatusBadRequest)
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut,
		http.MethodPatch, http.MethodDelete, http.MethodOptions:
	case http.MethodConnect, http.MethodTrace:
		// A tunnel, or an echo of the request's secrets: never a verdict.
		h.Set("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
		refuse(w, http.StatusMethodNotAllowed)
		return
	default:
		refuse(w, http.StatusNotImplemented)
		return
	}
	// "*" and "http://host/path" are for servers of many names and for
	// proxies; here they are nothing but probing.
	if !strings.HasPrefix(path, "/") || climbs(path) {
		refuse(w, http.StatusBadRequest)
		return
	}
	for _, rt := range *s.routes.Load() {
		if rt.takes(path) {
			rt.handler.ServeHTTP(w, r)
			return
		}
	}
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusNotFound)
	_, _ = io.WriteString(w, "not found\n")
}

// takes reports whether path is rt's.
func (rt route) takes(path string) bool {
	return path == rt.path || strings.HasSuffix(rt.path, "/") && strings.HasPrefix(path, rt.path)
}

// refuse answers a request that is not worth another on its connection.
func refuse(w http.ResponseWriter, status int) {
	w.Header().Set("Connection", "close")
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, strings.ToLower(http.StatusText(status))+"\n")
}

// telling decodes what can change the meaning of a path's segments, as a
// server would that forgives every other mistake.
var telling = strings.NewReplacer(
	"%2e", ".", "%2E", ".", "%2f", "/", "%2F", "/", "%5c", `\`, "%5C", `\`, "%3b", ";", "%3B", ";", "%25", "%")

// climbs reports whether some server could read a segment of path as "here"
// or "one up", and so find itself outside the path that was allowed: dots that
// are percent-encoded (even twice), behind a backslash, or in front of a
// parameter ("..;"). What is encoded more often than anybody has a reason to
// climbs too.
func climbs(path string) bool {
	for range 4 {
		for segment := range strings.FieldsFuncSeq(path, func(r rune) bool { return r == '/' || r == '\\' }) {
			name, _, _ := strings.Cut(segment, ";")
			if name == "." || name == ".." {
				return true
			}
		}
		decoded := telling.Replace(path)
		if decoded == path {
			return false
		}
		path = decoded
	}
	return true
}

// awaitedBody is a request's body. While it is being read, it is the client
// who keeps us waiting.
type awaitedBody struct {
	io.ReadCloser
	peer *peer
	done func() // called when nothing more will come
}

func (b *awaitedBody) Read(p []byte) (int, error) {
	b.peer.owes(true)
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.peer.paid()
		b.done()
	}
	return n, err
}

// complaintLog takes what net/http has to say about its clients. Whoever
// throws garbage at the port decides how much that is, so at most one record a
// second is passed on.
type complaintLog struct {
	log hclog.Logger

	mu      sync.Mutex // guards everything below
	next    time.Time  // earliest time of the next record
	skipped int        // complaints since the last one
}

func (c *complaintLog) Write(p []byte) (int, error) {
	text := strings.TrimSpace(string(p))
	if strings.HasPrefix(text, "http: panic serving") { // elsewhere it may be a client's own word
		c.log.Error("http handler panicked", "error", text) // our fault, not a client's
		return len(p), nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Before(c.next) {
		c.skipped++
	} else {
		c.log.Debug("http client refused", "skipped", c.skipped, "error", text)
		c.next, c.skipped = now.Add(time.Second), 0
	}
	return len(p), nil
}
