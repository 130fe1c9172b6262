package verdict

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/criteria"
	"understudy/internal/httpsyntax"
	"understudy/internal/redact"
	"understudy/internal/safetext"
)

const (
	// maxEndpointHead limits the bytes of the head of an endpoint's response,
	// including interim responses (1xx) before it.
	maxEndpointHead = 64 << 10
	// silentFor is the time for which an endpoint that gave no response is tried after
	// all others.
	silentFor = 5 * time.Second
)

// EndpointsConfig lists the endpoints and defines a usable response. No setting
// in it has a default.
type EndpointsConfig struct {
	// URLs holds the endpoints in order of preference: http or https, with a
	// path that is put in front of the request's path and a query that is put
	// in front of the request's query. No user name, password or fragment. At
	// least one is required.
	URLs []string

	// Race sends the request to all endpoints at once, and the first usable
	// response is the answer. Otherwise they are tried one after the other
	// until one has a usable response.
	Race bool

	// Status lists the status codes that are usable, as numbers ("404") and
	// classes ("2xx"). No final response has a status from 1xx: listing these
	// has no effect. At least one is required.
	Status []string

	// Timeout limits the time until the head of an endpoint's response has
	// arrived, and then the time between two parts of its body. Required.
	Timeout time.Duration

	// Total limits the time of all endpoints together until the head of a
	// usable response has arrived. Required.
	Total time.Duration

	// PreserveHost sends the Host of the request instead of the endpoint's.
	// The name in TLS stays the endpoint's.
	PreserveHost bool

	// TLS is the client configuration for https endpoints. Nil trusts the
	// system's certificate authorities. It is copied.
	TLS *tls.Config

	// Logger takes a debug record of every request and a warning where no
	// endpoint had a usable response. Nil discards them.
	Logger hclog.Logger
}

// Endpoints answers a request with the first usable response of several
// endpoints: its status, its end-to-end headers and its body exactly as they
// come, of any size. When none is usable the answer is 500. Interim responses
// (1xx) are skipped, redirects are passed to the client, and nothing is
// compressed or decompressed.
//
// The request is replayed with its method, path, query, end-to-end headers and
// body. An endpoint that gave no response is tried after all others for the
// next 5s. The client's address is appended to X-Forwarded-For;
// X-Forwarded-Host and X-Forwarded-Proto are added where the client sent none.
// Trailers of requests are dropped. Every method is replayed to the next
// endpoint when one failed, POST too, so that every request profits from several
// endpoints. A request that has passed here before is answered 508; it is
// detected by CDN-Loop (RFC 8586). A request to switch protocols is answered
// 501: a switched connection cannot be replayed.
//
// A body that breaks off, or stalls for longer than Timeout, breaks off for the
// client as well. A reset by the client ends all work for its request. A
// half-close does not: the client may wait for the answer.
//
// Endpoints keeps idle connections for later requests; Close ends them. It runs
// behind a [Server] and uses at most three quarters of its connections. While
// endpoints or slow clients hold that many, further requests are answered 503.
type Endpoints struct {
	cfg     EndpointsConfig
	targets []*endpoint
	usable  *criteria.Criteria
	name    string // in CDN-Loop; no other Endpoints has it
	bodies  bodyBudget
	log     hclog.Logger

	kept  *http.Transport // for requests that may be sent a second time
	fresh *http.Transport // for all others: each request has its own connection
}

// NewEndpoints returns an Endpoints, or an error naming every invalid field of
// cfg.
func NewEndpoints(cfg EndpointsConfig) (*Endpoints, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}

	var errs []error
	if len(cfg.URLs) == 0 {
		errs = append(errs, errors.New("urls: at least one is required"))
	}
	e := &Endpoints{
		cfg:    cfg,
		name:   "understudy-" + strings.ToLower(rand.Text()),
		bodies: bodyBudget{each: maxBody, all: maxBodies},
		log:    cfg.Logger,
	}
	for i, raw := range cfg.URLs {
		target, err := parseEndpoint(raw)
		if err != nil {
			errs = append(errs, fmt.Errorf("urls[%d]: %w", i, err))
		}
		e.targets = append(e.targets, target)
	}
	if len(cfg.Status) == 0 {
		errs = append(errs, errors.New("status: at least one is required"))
	}
	var err error
	if e.usable, err = (criteria.Expect{Status: cfg.Status}).Compile(); err != nil {
		errs = append(errs, err)
	}
	for name, d := range map[string]time.Duration{"timeout": cfg.Timeout, "total": cfg.Total} {
		if d <= 0 {
			errs = append(errs, fmt.Errorf("%s: %s is not positive", name, d))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("endpoints: %w", err)
	}
	e.kept = newEndpointTransport(cfg)
	e.fresh = newEndpointTransport(cfg)
	e.fresh.DisableKeepAlives = true
	return e, nil
}

// attemptKey is the key of the context of the one request that a connection is
// opened for.
type attemptKey struct{}

// newEndpointTransport returns a transport that changes nothing: no proxy, no
// compression, no redirects.
func newEndpointTransport(cfg EndpointsConfig) *http.Transport {
	secure := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.TLS != nil {
		secure = cfg.TLS.Clone()
	}
	secure.NextProtos = []string{"h2", "http/1.1"}

	// The transport lets a connect continue after its request has ended, for
	// later requests. Here the connect ends with its request: in a race against
	// an endpoint that does not answer to SYN, every request would leave a
	// pending connect behind.
	own := func(ctx context.Context) context.Context {
		if attempt, ok := ctx.Value(attemptKey{}).(context.Context); ok {
			return attempt
		}
		return ctx
	}
	dialer := &net.Dialer{Timeout: cfg.Timeout}
	dialerTLS := &tls.Dialer{NetDialer: dialer, Config: secure}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialer.DialContext(own(ctx), network, addr)
		},
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialerTLS.DialContext(own(ctx), network, addr)
		},
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: maxEndpointHead,
		HTTP2: &http.HTTP2Config{
			// The response to a slow client is buffered here: without a
			// limit up to 4 MiB for each stream.
			MaxReceiveBufferPerStream: 512 << 10,
			// Otherwise each request on a connection to a dead peer would
			// fail.
			SendPingTimeout:  cfg.Timeout,
			PingTimeout:      cfg.Timeout,
			WriteByteTimeout: cfg.Timeout,
		},
	}
}

// Close closes the idle connections. Requests in progress continue, and their
// connections end with them, those of HTTP/2 after 30s at most. Call it when no
// more requests come.
func (e *Endpoints) Close() {
	e.kept.CloseIdleConnections()
	e.fresh.CloseIdleConnections()
}

// ServeHTTP answers one request.
func (e *Endpoints) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	switch {
	case switchesProtocol(r.Header):
		w.Header().Set("Connection", "close") // what follows may not be HTTP
		writeText(w, http.StatusNotImplemented, "switching protocols, as WebSocket does, cannot be replayed to endpoints")
		return
	case strings.Contains(strings.Join(r.Header["Cdn-Loop"], ","), e.name):
		e.log.Warn("an endpoint leads to this process: request loop", "path", loggedPath(r))
		writeText(w, http.StatusLoopDetected, "loop detected")
		return
	}
	body, status, text := e.bodies.read(r)
	if status != 0 {
		writeText(w, status, text)
		return
	}
	defer e.bodies.release(body)
	if from, ok := r.Context().Value(peerKey{}).(*peer); ok {
		if !from.acquire() {
			writeText(w, http.StatusServiceUnavailable, "busy")
			return
		}
		defer from.release()
	}

	f := &fanOut{
		Endpoints: e,
		request:   r,
		order:     e.order(),
		header:    e.replayHeader(r),
		body:      body,
		deadline:  began.Add(e.cfg.Total),
		results:   make(chan *attempt, len(e.targets)),
	}
	defer f.end()
	won := f.run(r.Context())
	if r.Context().Err() != nil {
		e.log.Debug("client left while endpoints were requested", "method", r.Method, "path", loggedPath(r), "took", time.Since(began))
		panic(http.ErrAbortHandler) // otherwise net/http would answer an empty 200
	}
	out := newAnswerWriter(w, r)
	if won == nil {
		e.log.Warn("endpoints failed to return a valid answer, returning 500",
			"method", r.Method, "path", loggedPath(r), "took", time.Since(began), "error", f.reasons())
		writeText(w, http.StatusInternalServerError, "no usable response")
		return
	}
	head := time.Since(began)
	sent, err := out.pass(won, e.cfg.Timeout)
	e.log.Debug("request served", "method", r.Method, "path", loggedPath(r), "endpoint", won.endpoint.name,
		"status", won.resp.StatusCode, "head", head, "took", time.Since(began), "sent", sent, "error", err)
	if err != nil {
		panic(http.ErrAbortHandler) // ends the connection without a log record: a truncated body must not look complete
	}
}

// loggedPath returns the part of a request's target that is logged: without the
// query, which may contain secrets.
func loggedPath(r *http.Request) string {
	return safetext.Escape(clipText(r.URL.EscapedPath()))
}

// writeText answers a request with status and a line of text.
func writeText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n") // fails if the client has disconnected
}

// fanOut sends one request to the endpoints.
type fanOut struct {
	*Endpoints
	request  *http.Request
	order    []*endpoint // in which they are tried
	header   http.Header // as replayed; read only
	body     []byte
	deadline time.Time // for the head of a usable response

	running  sync.WaitGroup // one for each attempt in progress
	attempts []*attempt     // every attempt that was started, in order
	results  chan *attempt  // attempts that have a response or an error
}

// attempt is the request to one endpoint, and its result.
type attempt struct {
	endpoint *endpoint
	end      context.CancelCauseFunc // ends the request, and the connection if the response is not complete
	ended    func() error            // the cause passed to end, or nil
	resp     *http.Response          // its body is unread; nil when there is no response
	err      error                   // why it is not usable
}

// run starts attempts until one has a usable response. It returns that attempt,
// or nil, after all others have been cancelled.
func (f *fanOut) run(ctx context.Context) *attempt {
	f.start(ctx)
	for f.cfg.Race && len(f.attempts) < len(f.targets) {
		f.start(ctx)
	}
	for pending := len(f.attempts); pending > 0; pending-- {
		a := <-f.results
		if ctx.Err() == nil {
			f.recordResult(a)
		}
		if a.err == nil {
			a.err = f.evaluate(a.resp.StatusCode)
		}
		if a.err == nil {
			f.drop(a)
			return a
		}
		a.drop()
		if len(f.attempts) < len(f.targets) && ctx.Err() == nil && time.Now().Before(f.deadline) {
			f.start(ctx)
			pending++
		}
	}
	return nil
}

// order returns the endpoints in the order to try them. Those without a response
// in the last 5s come last; otherwise every request would wait for them first.
func (e *Endpoints) order() []*endpoint {
	now := time.Now().UnixNano()
	var answering, silent []*endpoint
	for _, target := range e.targets {
		if now < target.silentUntil.Load() {
			silent = append(silent, target)
		} else {
			answering = append(answering, target)
		}
	}
	return append(answering, silent...)
}

// recordResult records whether an endpoint gave a response, usable or not.
func (e *Endpoints) recordResult(a *attempt) {
	if a.resp != nil {
		if a.endpoint.silentUntil.Swap(0) != 0 {
			e.log.Info("endpoint responds again", "endpoint", a.endpoint.name)
		}
		return
	}
	if a.endpoint.silentUntil.Swap(time.Now().Add(silentFor).UnixNano()) == 0 {
		e.log.Warn("endpoint does not respond, it is tried last for 5 s",
			"endpoint", a.endpoint.name, "error", safetext.Escape(clipText(a.err.Error())))
	}
}

// evaluate returns nil when a response of this status is usable, or why not.
func (f *fanOut) evaluate(status int) error {
	if status == http.StatusSwitchingProtocols {
		return errors.New("status 101 to a request without Upgrade")
	}
	return f.usable.MatchStatus(status)
}

// start starts an attempt at the next endpoint and does not wait.
func (f *fanOut) start(parent context.Context) {
	a := &attempt{endpoint: f.order[len(f.attempts)]}
	ctx, end := context.WithCancelCause(parent)
	a.end, a.ended = end, func() error { return context.Cause(ctx) }
	f.attempts = append(f.attempts, a)
	f.running.Go(func() {
		a.resp, a.err = f.roundTrip(ctx, a) //nolint:bodyclose // drop closes it
		f.results <- a
	})
}

// drop cancels all attempts but the winner.
func (f *fanOut) drop(winner *attempt) {
	for _, a := range f.attempts {
		if a != winner {
			a.end(errors.New("another was faster"))
		}
	}
}

// end cancels all attempts after run and returns when they have ended.
func (f *fanOut) end() {
	f.running.Wait()
	for _, a := range f.attempts {
		a.drop()
	}
}

// drop cancels the attempt and closes the response's body.
func (a *attempt) drop() {
	a.end(nil)
	if a.resp != nil {
		a.resp.Body.Close()
	}
}

// cause returns why a was cancelled, or err when it was not.
func (a *attempt) cause(err error) error {
	if ended := a.ended(); ended != nil {
		return ended
	}
	return plainCause(err)
}

// reasons returns why each endpoint had no usable response.
func (f *fanOut) reasons() error {
	var errs []string
	for i, target := range f.order {
		why := "not requested, no time was left"
		if i < len(f.attempts) {
			why = safetext.Escape(clipText(f.attempts[i].err.Error()))
		}
		errs = append(errs, target.name+": "+why)
	}
	return errors.New(strings.Join(errs, "; "))
}

// roundTrip sends the request to an endpoint and returns its final response,
// the body unread.
func (f *fanOut) roundTrip(ctx context.Context, a *attempt) (*http.Response, error) {
	limit := min(f.cfg.Timeout, time.Until(f.deadline))
	late := time.AfterFunc(limit, func() {
		a.end(fmt.Errorf("no answer within %s", limit.Round(time.Millisecond)))
	})
	defer late.Stop()

	req := &http.Request{
		Method: f.request.Method,
		URL:    a.endpoint.url(f.request),
		Host:   a.endpoint.host,
		Header: f.header.Clone(), // the transport may add to it
	}
	if f.cfg.PreserveHost {
		req.Host = f.request.Host
	}
	if len(f.body) > 0 {
		req.ContentLength = int64(len(f.body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(f.body)), nil }
		req.Body, _ = req.GetBody()
	}
	// The endpoint may close an idle connection at the moment it is reused. The
	// transport then sends the request again, which is safe only for methods
	// without an effect.
	transport := f.fresh
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		transport = f.kept
	}
	resp, err := transport.RoundTrip(req.WithContext(context.WithValue(ctx, attemptKey{}, ctx)))
	if err != nil {
		return nil, a.cause(err)
	}
	if !late.Stop() {
		resp.Body.Close()
		return nil, a.cause(nil)
	}
	return resp, nil
}

// endpoint is one URL, parsed.
type endpoint struct {
	scheme, host string
	path         string // percent-encoded, without a slash at its end
	query        string // percent-encoded
	name         string // for logs: without the query, which may contain secrets

	silentUntil atomic.Int64 // UnixNano; 0 after a response
}

// parseEndpoint parses a URL. Its error contains no part that may be a secret.
func parseEndpoint(raw string) (*endpoint, error) {
	u, err := httpsyntax.ParseURL(raw)
	if err == nil && hasDotSegments(u.EscapedPath()) {
		err = errors.New("has a path that leaves itself")
	}
	if err != nil {
		return nil, fmt.Errorf("%s %w", redact.Quote(raw), err)
	}
	return &endpoint{
		scheme: u.Scheme,
		host:   u.Host,
		path:   strings.TrimSuffix(u.EscapedPath(), "/"),
		query:  u.RawQuery,
		name:   u.Scheme + "://" + u.Host + u.EscapedPath(),
	}, nil
}

// target returns the request target for ep, path and query: both paths with one
// slash in between, both queries with one ampersand. The bytes of the received
// target are not changed.
func (ep *endpoint) target(requested string) string {
	path, query, hasQuery := strings.Cut(requested, "?")
	target := ep.path + "/" + strings.TrimPrefix(path, "/")
	switch {
	case ep.query == "" && !hasQuery:
		return target
	case ep.query == "" || query == "":
		return target + "?" + ep.query + query
	}
	return target + "?" + ep.query + "&" + query
}

// url returns the URL at ep for r.
func (ep *endpoint) url(r *http.Request) *url.URL {
	target := ep.target(r.RequestURI)
	if strings.HasPrefix(target, "//") {
		// An opaque URL of this form would be sent as "http://…".
		path, query, hasQuery := strings.Cut(target, "?")
		u := &url.URL{Scheme: ep.scheme, Host: ep.host, Path: path, RawQuery: query, ForceQuery: hasQuery}
		if decoded, err := url.PathUnescape(path); err == nil {
			u.Path, u.RawPath = decoded, path
		}
		return u
	}
	return &url.URL{Scheme: ep.scheme, Host: ep.host, Opaque: target} // sent byte for byte
}
