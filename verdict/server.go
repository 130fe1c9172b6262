package verdict

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

	"understudy/internal/tcp"
)

// MaxConnections limits the open connections of a [Server] that sets no limit of its own. At
// the limit, a new connection replaces the one that has been idle, or sending its request,
// for the longest time. When all of them wait for an answer, the new one waits too.
const MaxConnections = 512

// The other limits for one client of a [Server].
const (
	// maxHead limits the bytes of a request up to its blank line; more is
	// answered 431.
	maxHead = 16 << 10

	// headTimeout is the longest time that a client may take to send the head of a
	// request, a TLS handshake before it included; requestTimeout, to send a whole
	// request.
	headTimeout    = 5 * time.Second
	requestTimeout = 10 * time.Second

	// answerTimeout is the longest time that an answer may take, from the end of the
	// request until its last byte is handed to the system.
	answerTimeout = 10 * time.Second

	// idleTimeout ends a connection without a request for that long.
	idleTimeout = 30 * time.Second
)

// ServerConfig configures a Server.
type ServerConfig struct {
	// Listen is the address to listen on, "192.0.2.1:9001" or ":9001" (every
	// address, IPv4 and IPv6). Required.
	Listen string

	// Routes maps a path to its handler. A path that ends in "/" takes
	// everything below it as well; where several fit, the longest wins. Paths
	// are compared as they were received, before percent-decoding. A path
	// without a route is answered 404. At least one route is required.
	Routes map[string]http.Handler

	// TLS makes the listener speak TLS 1.2 or newer. It must hold a
	// certificate. Nil is plain HTTP. [Server.SetTLS] changes it.
	TLS *tls.Config

	// Name is the listener's name in log records and errors. Empty is "http".
	Name string

	// MaxConnections limits the open connections. Zero is [MaxConnections].
	MaxConnections int

	// Logger takes the listener's own records. Nil discards them.
	Logger hclog.Logger

	// Tests set these in place of the constants of the same names.
	headTimeout, requestTimeout, answerTimeout, idleTimeout time.Duration
}

// Server answers HTTP on one address. It owns its socket and every connection
// and goroutine that comes from it; when [Server.Run] returns, all are closed or have ended.
type Server struct {
	cfg     ServerConfig
	routes  atomic.Pointer[[]route]    // longest path first
	tls     atomic.Pointer[tls.Config] // nil inside is plain HTTP
	log     hclog.Logger
	limiter atomic.Pointer[limiter] // nil until Bind
}

// route sends the requests for path to handler.
type route struct {
	path    string
	handler http.Handler
}

// NewServer returns a Server, or an error naming every invalid field of cfg.
// It opens nothing.
func NewServer(cfg ServerConfig) (*Server, error) {
	cfg.headTimeout = cmp.Or(cfg.headTimeout, headTimeout)
	cfg.requestTimeout = cmp.Or(cfg.requestTimeout, requestTimeout)
	cfg.answerTimeout = cmp.Or(cfg.answerTimeout, answerTimeout)
	cfg.idleTimeout = cmp.Or(cfg.idleTimeout, idleTimeout)
	cfg.MaxConnections = cmp.Or(cfg.MaxConnections, MaxConnections)
	cfg.Name = cmp.Or(cfg.Name, "http")
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}

	var errs []error
	errs = append(errs, checkListen(cfg.Listen))
	s := &Server{cfg: cfg, log: cfg.Logger.Named(cfg.Name)}
	errs = append(errs, s.SetRoutes(cfg.Routes), s.SetTLS(cfg.TLS))
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("%s listener: %w", cfg.Name, err)
	}
	return s, nil
}

// SetRoutes replaces all routes at once, or changes nothing and returns an
// error naming every bad one. It may be called while Run serves: a request in
// progress stays with its handler.
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

// SetTLS sets the protocol of new connections: TLS 1.2 or newer with cfg, plain
// HTTP when cfg is nil. It changes nothing and returns an error when cfg has no
// certificate. It may be called while Run serves; open connections stay as
// they are.
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

// checkRoute returns an error when no request can have exactly this path.
func checkRoute(path string) error {
	_, err := url.ParseRequestURI(path)
	switch {
	case !strings.HasPrefix(path, "/"):
		return fmt.Errorf("path %q does not begin with /", path)
	case err != nil, strings.ContainsAny(path, "?# "), hasDotSegments(path):
		return fmt.Errorf("path %q is not the plain path of a URL", path)
	}
	return nil
}

// Bind opens the listening socket, or returns an error that names the
// address. Clients that connect from then on wait until Run serves them; Run
// releases the socket. When Run has returned an error, the address can be bound
// again.
func (s *Server) Bind() error {
	ln, err := listenTCP(s.cfg.Listen)
	if err != nil {
		return err // already "listen tcp :9001: bind: address already in use"
	}
	// A write timeout notices a client that does not read only when the system's buffers are
	// full, which takes small events half an hour.
	if raw, err := ln.SyscallConn(); err == nil { // it is open
		_ = raw.Control(func(fd uintptr) { tcp.SetUserTimeout(int(fd), s.cfg.answerTimeout) })
	}
	g := newLimiter(ln, s.cfg.MaxConnections, s.log)
	g.tls = &s.tls
	g.clientErrors = &clientErrorLog{log: s.log}
	s.limiter.Store(g)
	return nil
}

// listenTCP listens on address with plain TCP: the clients are probes and load
// balancers, and Go's listeners would offer Multipath TCP by default.
func listenTCP(address string) (*net.TCPListener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

// Close releases the address of a Server that was bound and never ran.
func (s *Server) Close() error {
	g := s.limiter.Load()
	if g == nil {
		return nil
	}
	return g.Close()
}

// Addr returns the address that Bind opened, or nil before.
func (s *Server) Addr() net.Addr {
	g := s.limiter.Load()
	if g == nil {
		return nil
	}
	return g.Addr()
}

// Run serves until ctx ends. Then it stops accepting, closes connections without
// a complete request, answers requests in progress within answerTimeout, and
// returns nil. Call Bind first. Temporary accept errors are retried. Any other
// error is returned: the socket can accept nothing any more, and Bind and Run
// may be called again.
func (s *Server) Run(ctx context.Context) error {
	g := s.limiter.Load()
	if g == nil {
		return errors.New(s.cfg.Name + " listener: run before bind")
	}
	srv := &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: s.cfg.headTimeout,
		ReadTimeout:       s.cfg.requestTimeout,
		WriteTimeout:      s.cfg.answerTimeout,
		IdleTimeout:       s.cfg.idleTimeout,
		MaxHeaderBytes:    maxHead - 4096, // net/http reads 4096 bytes more than this
		ConnState:         g.connState,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, c)
		},
		ErrorLog: log.New(g.clientErrors, "", 0),

		// Otherwise net/http itself answers "OPTIONS *" with 200.
		DisableGeneralOptionsHandler: true,
		Protocols:                    new(http.Protocols),
	}
	srv.Protocols.SetHTTP1(true)

	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		// Requests in progress outlive ctx by answerTimeout at most.
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.answerTimeout)
		defer cancel()
		if srv.Shutdown(grace) != nil { // closes the limiter first
			srv.Close()
		}
	})
	s.log.Info("http listener ready", "address", g.Addr())
	err := srv.Serve(g)
	if stop() { // ctx has not ended: the listener failed, and Serve has closed it
		srv.Close()
	} else {
		<-closed
		err = nil
	}
	g.clients.Wait()
	if err != nil {
		return fmt.Errorf("%s listener on %s: %w", s.cfg.Name, g.Addr(), err)
	}
	return nil
}

// serve passes a request to its route. It refuses a request that two servers
// could read differently.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff") // bodies come from services; they are text and nothing else

	from, _ := r.Context().Value(peerKey{}).(*peer)
	if r.Body != http.NoBody {
		// A request with a body is the last of its connection: bytes that
		// follow a body of ambiguous length are never read as a second request.
		h.Set("Connection", "close")
		r.Body = &awaitedBody{ReadCloser: r.Body, peer: from, done: func() {
			// net/http started its write timeout at the end of the head.
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.cfg.answerTimeout))
		}}
	}
	if from.tls != nil {
		state := from.tls.ConnectionState()
		r.TLS = &state // net/http sees no TLS here
	}
	switch {
	case r.ProtoMajor != 1:
		refuse(w, http.StatusHTTPVersionNotSupported)
		return
	case from.nextHead(r.Body != http.NoBody) != nil, toOriginForm(r) != nil:
		refuse(w, http.StatusBadRequest)
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut,
		http.MethodPatch, http.MethodDelete, http.MethodOptions:
	case http.MethodConnect, http.MethodTrace:
		// CONNECT opens a tunnel and TRACE returns the request's secrets.
		h.Set("Allow", methods)
		refuse(w, http.StatusMethodNotAllowed)
		return
	default:
		refuse(w, http.StatusNotImplemented)
		return
	}
	if r.Method == http.MethodOptions && r.RequestURI == "*" {
		// It is about the server as a whole (RFC 9110 §9.3.7), so no route gets it.
		h.Set("Allow", methods)
		h.Set("Content-Length", "0")
		return
	}
	path, _, _ := strings.Cut(r.RequestURI, "?")
	// A fragment is never sent by a correct client. Some servers cut it off and
	// others do not, so they could see another path than the one routed here.
	if !strings.HasPrefix(path, "/") || hasDotSegments(path) || strings.Contains(r.RequestURI, "#") {
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

// methods lists the methods that routes may receive.
const methods = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

// toOriginForm turns a request whose target is in absolute form,
// "http://host/path", into the same request in origin form, "/path"
// (RFC 9112 §3.2.2). The authority becomes the request's Host, which net/http has
// set in place of the header, and has no other effect: the path alone selects the
// route, and the settings alone determine where a request is replayed.
func toOriginForm(r *http.Request) error {
	scheme, rest, absolute := strings.Cut(r.RequestURI, "://")
	if !absolute || strings.HasPrefix(r.RequestURI, "/") {
		return nil
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	authority, target := rest[:end], rest[end:]
	switch {
	case !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https"):
		return errors.New("neither http nor https")
	case authority == "" || authority != r.Host || strings.ContainsAny(authority, `@%\"<>`):
		return errors.New("the authority is not a host and port alone")
	case strings.Contains(target, "#"):
		return errors.New("a fragment, which is never sent")
	case target == "" && r.Method == http.MethodOptions:
		r.RequestURI, r.URL = "*", &url.URL{Path: "*"} // §3.2.4
		return nil
	case !strings.HasPrefix(target, "/"):
		target = "/" + target
	}
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return err
	}
	r.RequestURI, r.URL = target, u
	return nil
}

// takes reports whether rt is a route for path.
func (rt route) takes(path string) bool {
	return path == rt.path || strings.HasSuffix(rt.path, "/") && strings.HasPrefix(path, rt.path)
}

// refuse answers with status and closes the connection.
func refuse(w http.ResponseWriter, status int) {
	w.Header().Set("Connection", "close")
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, strings.ToLower(http.StatusText(status))+"\n")
}

// pathEscapes decodes the characters that can change the meaning of a path's
// segments, as the most lenient server would.
var pathEscapes = strings.NewReplacer(
	"%00", "\x00", "%2e", ".", "%2E", ".", "%2f", "/", "%2F", "/", "%5c", `\`, "%5C", `\`, "%3b", ";", "%3B", ";", "%25", "%")

// hasDotSegments reports whether some server could read a segment of path as "."
// or "..", and so leave the path that was allowed: dots that are percent-encoded
// (even twice), after a backslash, or before a parameter ("..;"). It also reports
// true for a path that is encoded more than four times, and for one with an
// encoded NUL, at which some servers end the path.
func hasDotSegments(path string) bool {
	for range 4 {
		if strings.ContainsRune(path, 0) {
			return true
		}
		for segment := range strings.FieldsFuncSeq(path, func(r rune) bool { return r == '/' || r == '\\' }) {
			name, _, _ := strings.Cut(segment, ";")
			if name == "." || name == ".." {
				return true
			}
		}
		decoded := pathEscapes.Replace(path)
		if decoded == path {
			return false
		}
		path = decoded
	}
	return true
}

// awaitedBody is a request's body. While it is being read, its connection
// counts as reading.
type awaitedBody struct {
	io.ReadCloser
	peer *peer
	done func() // called at the end of the body
}

func (b *awaitedBody) Read(p []byte) (int, error) {
	b.peer.setReading(true)
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.peer.setBusy()
		b.done()
	}
	return n, err
}

// clientErrorLog receives net/http's errors about clients. Clients decide how
// many there are, so it logs at most one record a second.
type clientErrorLog struct {
	log hclog.Logger

	mu      sync.Mutex // guards everything below
	next    time.Time  // earliest time of the next record
	skipped int        // errors since the last record
}

func (c *clientErrorLog) Write(p []byte) (int, error) {
	text := strings.TrimSpace(string(p))
	if strings.HasPrefix(text, "http: panic serving") { // only as a prefix: elsewhere a client may have sent the text
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
