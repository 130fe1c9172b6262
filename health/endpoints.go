package health

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// maxEndpointHead is how many bytes the head of an endpoint's answer may
	// have, those of interim answers (1xx) before it included.
	maxEndpointHead = 64 << 10
	// maxEndpointBodies is how many bytes of request bodies may be held at one
	// time.
	maxEndpointBodies = 32 << 20
	// silentFor is how long an endpoint that gave no response is asked behind
	// all others.
	silentFor = 5 * time.Second
)

// EndpointsConfig says who is asked for a usable response, and what is one.
// Zero fields mean their defaults.
type EndpointsConfig struct {
	// URLs holds the endpoints in order of preference: http or https, with a
	// path that is a prefix of the request's and a query that goes in front of
	// the request's. No user name, password or fragment. At least one is
	// required.
	URLs []string

	// Race asks all endpoints at once, and the first to have a usable response
	// is the answer. Otherwise they are asked one after the other until one
	// has.
	Race bool

	// Status lists the status codes that are usable, as numbers ("404") and
	// classes ("2xx"). No final response has one from 1xx: these can be listed
	// and say nothing. Defaults to 1xx, 2xx, 3xx and 4xx.
	Status []string

	// Timeout is how long an endpoint may take until the head of its response
	// is there, and then at most between two parts of the body. Defaults to
	// 10s.
	Timeout time.Duration

	// Total is how long all endpoints together may take until the head of a
	// usable response is there. Defaults to 30s.
	Total time.Duration

	// PreserveHost sends the Host of the request instead of the endpoint's.
	// The name in TLS stays the endpoint's.
	PreserveHost bool

	// TLS is how https endpoints are spoken to. Nil believes what the system
	// believes. It is copied.
	TLS *tls.Config

	// MaxBody is how many bytes the body of a request may have; more is
	// answered 413. Defaults to 1 MiB, at most 32 MiB.
	MaxBody int64

	// Logger takes a debug record of every request and a warning where no
	// endpoint had a usable response. Defaults to none.
	Logger hclog.Logger
}

// Endpoints answers a request with the first usable response that one of
// several endpoints has to it: its status, its end-to-end headers and its body
// exactly as they come, of any size. When none is usable the answer is 500.
// Interim responses (1xx) are passed over, redirects are for the client to
// follow, and nothing is compressed or unpacked on the way.
//
// The request is replayed with its method, path, query, end-to-end headers and
// body. An endpoint that gave no response is asked behind all others for the
// next 5s. The client's address is appended to X-Forwarded-For;
// X-Forwarded-Host and X-Forwarded-Proto are added where the client sent none.
// Trailers of requests are dropped. Every method is replayed to the next
// endpoint when one failed, POST too: that is what several endpoints are for.
// A request that has passed here before is answered 508; CDN-Loop (RFC 8586)
// tells. A request to switch protocols is answered 501: a connection that
// was switched has one other end and cannot be replayed.
//
// A body that breaks off, or stalls for longer than Timeout, breaks off for
// the client as well. A client that goes away ends everything that was done
// for it.
//
// Endpoints keeps idle connections for later requests; Close ends them. It
// belongs behind a [Server], of whose connections it takes three quarters at
// most: what comes when endpoints or slow clients hold so many is answered 503.
type Endpoints struct {
	cfg     EndpointsConfig
	targets []*endpoint
	usable  *criteria
	name    string // in CDN-Loop; no other Endpoints has it
	bodies  bodyRoom
	log     hclog.Logger

	kept  *http.Transport // for what may be sent a second time
	fresh *http.Transport // for what may not: each request has its own connection
}

// NewEndpoints returns an Endpoints, or an error naming every invalid field of
// cfg.
func NewEndpoints(cfg EndpointsConfig) (*Endpoints, error) {
	cfg.Timeout = cmp.Or(cfg.Timeout, 10*time.Second)
	cfg.Total = cmp.Or(cfg.Total, 30*time.Second)
	cfg.MaxBody = cmp.Or(cfg.MaxBody, 1<<20)
	if len(cfg.Status) == 0 {
		cfg.Status = []string{"1xx", "2xx", "3xx", "4xx"}
	}
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
		bodies: bodyRoom{each: cfg.MaxBody, all: maxEndpointBodies},
		log:    cfg.Logger,
	}
	for i, raw := range cfg.URLs {
		target, err := parseEndpoint(raw)
		if err != nil {
			errs = append(errs, fmt.Errorf("urls[%d]: %w", i, err))
		}
		e.targets = append(e.targets, target)
	}
	var err error
	if e.usable, err = (Expect{Status: cfg.Status}).compile(); err != nil {
		errs = append(errs, err)
	}
	for name, d := range map[string]time.Duration{"timeout": cfg.Timeout, "total": cfg.Total} {
		if d < 0 {
			errs = append(errs, fmt.Errorf("%s: %s is negative", name, d))
		}
	}
	if cfg.MaxBody < 0 || cfg.MaxBody > maxEndpointBodies {
		errs = append(errs, fmt.Errorf("max body: %d is not from 0 to %d", cfg.MaxBody, maxEndpointBodies))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("endpoints: %w", err)
	}
	e.kept = newEndpointTransport(cfg)
	e.fresh = newEndpointTransport(cfg)
	e.fresh.DisableKeepAlives = true
	return e, nil
}

// askKey is the key of the context of the one request that a connection is
// opened for.
type askKey struct{}

// newEndpointTransport returns a transport that changes nothing: no proxy, no
// compression, no redirects.
func newEndpointTransport(cfg EndpointsConfig) *http.Transport {
	secure := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.TLS != nil {
		secure = cfg.TLS.Clone()
	}
	secure.NextProtos = []string{"h2", "http/1.1"}

	// The transport lets a connect go on when its request has ended, for later
	// ones. Here it ends: in a race against an endpoint that does not even
	// refuse, every request would leave one behind.
	asked := func(ctx context.Context) context.Context {
		if own, ok := ctx.Value(askKey{}).(context.Context); ok {
			return own
		}
		return ctx
	}
	dialer := &net.Dialer{Timeout: cfg.Timeout}
	dialerTLS := &tls.Dialer{NetDialer: dialer, Config: secure}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialer.DialContext(asked(ctx), network, addr)
		},
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialerTLS.DialContext(asked(ctx), network, addr)
		},
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: maxEndpointHead,
		HTTP2: &http.HTTP2Config{
			// What a client takes slowly is held here. All streams of a
			// connection could otherwise fill 4 MiB each.
			MaxReceiveBufferPerStream: 512 << 10,
			// A connection whose other end has vanished would otherwise take
			// one request after the other down with it.
			SendPingTimeout:  cfg.Timeout,
			PingTimeout:      cfg.Timeout,
			WriteByteTimeout: cfg.Timeout,
		},
	}
}

// Close ends the connections that are kept for later requests. Requests under
// way go on, and theirs end with them, those of HTTP/2 after 30s at most. Close
// it when no more requests come.
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
		tell(w, http.StatusNotImplemented, "switching protocols, as WebSocket does, cannot be replayed to endpoints")
		return
	case strings.Contains(strings.Join(r.Header["Cdn-Loop"], ","), e.name):
		e.log.Warn("an endpoint leads back here", "path", loggedPath(r))
		tell(w, http.StatusLoopDetected, "loop detected")
		return
	}
	body, status, text := e.bodies.read(r)
	if status != 0 {
		tell(w, status, text)
		return
	}
	defer e.bodies.give(body)
	if from, ok := r.Context().Value(peerKey{}).(*peer); ok {
		if !from.lend() {
			tell(w, http.StatusServiceUnavailable, "busy")
			return
		}
		defer from.giveBack()
	}

	c := &contest{
		Endpoints: e,
		request:   r,
		order:     e.order(),
		header:    e.replayHeader(r),
		body:      body,
		deadline:  began.Add(e.cfg.Total),
		offers:    make(chan *offer, len(e.targets)),
	}
	defer c.end()
	won := c.run(r.Context())
	if r.Context().Err() != nil {
		e.log.Debug("client left while endpoints were asked", "method", r.Method, "path", loggedPath(r), "took", time.Since(began))
		panic(http.ErrAbortHandler) // it may only have closed its half, and must not read an empty 200
	}
	out := newAnswerWriter(w, r)
	if won == nil {
		e.log.Warn("endpoints failed to return a valid answer, returning 500",
			"method", r.Method, "path", loggedPath(r), "took", time.Since(began), "error", c.reasons())
		tell(w, http.StatusInternalServerError, "no usable response")
		return
	}
	head := time.Since(began)
	sent, err := out.pass(won, e.cfg.Timeout)
	e.log.Debug("request served", "method", r.Method, "path", loggedPath(r), "endpoint", won.endpoint.name,
		"status", won.resp.StatusCode, "head", head, "took", time.Since(began), "sent", sent, "error", err)
	if err != nil {
		panic(http.ErrAbortHandler) // ends the connection without a record: a truncated body must not look whole
	}
}

// loggedPath is what logs show of a request's target: not the query, where
// secrets may be.
func loggedPath(r *http.Request) string {
	return escapeText(clipText(r.URL.EscapedPath()), 0)
}

// tell answers a request itself.
func tell(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n") // fails if the client is gone
}

// contest is one request on its way to the endpoints.
type contest struct {
	*Endpoints
	request  *http.Request
	order    []*endpoint // to ask them in
	header   http.Header // as replayed; read only
	body     []byte
	deadline time.Time // for the head of a usable response

	asked  sync.WaitGroup // one for each endpoint that is being asked
	asks   []*offer       // every endpoint that was asked, in order
	offers chan *offer    // what became of them, as they come
}

// offer is what one endpoint has to say.
type offer struct {
	endpoint *endpoint
	end      context.CancelCauseFunc // ends the request, and the connection if there is more to come on it
	ended    func() error            // the cause that was given to end, or nil
	resp     *http.Response          // its body is not read; nil when there is none
	err      error                   // why it is not usable
}

// run asks until there is a usable response, and returns it or nil. All others
// are over then.
func (c *contest) run(ctx context.Context) *offer {
	c.ask(ctx)
	for c.cfg.Race && len(c.asks) < len(c.targets) {
		c.ask(ctx)
	}
	for pending := len(c.asks); pending > 0; pending-- {
		o := <-c.offers
		if ctx.Err() == nil {
			c.remember(o)
		}
		if o.err == nil {
			o.err = c.judge(o.resp.StatusCode)
		}
		if o.err == nil {
			c.drop(o)
			return o
		}
		o.drop()
		if len(c.asks) < len(c.targets) && ctx.Err() == nil && time.Now().Before(c.deadline) {
			c.ask(ctx)
			pending++
		}
	}
	return nil
}

// order returns the endpoints in the order to ask them. Those that gave no
// response lately come last, or every request would wait for them first.
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

// remember notes whether an endpoint gave a response, usable or not.
func (e *Endpoints) remember(o *offer) {
	if o.resp != nil {
		if o.endpoint.silentUntil.Swap(0) != 0 {
			e.log.Info("endpoint gives responses again", "endpoint", o.endpoint.name)
		}
		return
	}
	if o.endpoint.silentUntil.Swap(time.Now().Add(silentFor).UnixNano()) == 0 {
		e.log.Warn("endpoint gives no response, others are asked before it",
			"endpoint", o.endpoint.name, "error", escapeText(clipText(o.err.Error()), 0))
	}
}

// judge returns nil when a response of this status is usable, or why not.
func (c *contest) judge(status int) error {
	if status == http.StatusSwitchingProtocols {
		return errors.New("status 101 to a request that asked for nothing of the kind")
	}
	return c.usable.matchStatus(status)
}

// ask asks the next endpoint and does not wait.
func (c *contest) ask(parent context.Context) {
	o := &offer{endpoint: c.order[len(c.asks)]}
	ctx, end := context.WithCancelCause(parent)
	o.end, o.ended = end, func() error { return context.Cause(ctx) }
	c.asks = append(c.asks, o)
	c.asked.Go(func() {
		o.resp, o.err = c.roundTrip(ctx, o) //nolint:bodyclose // drop closes it, or who passes it on
		c.offers <- o
	})
}

// drop ends everything but the winner.
func (c *contest) drop(winner *offer) {
	for _, o := range c.asks {
		if o != winner {
			o.end(errors.New("another was faster"))
		}
	}
}

// end ends the contest after run and returns when nothing of it is left.
func (c *contest) end() {
	c.asked.Wait()
	for _, o := range c.asks {
		o.drop()
	}
}

// drop gives up what is not read of the response.
func (o *offer) drop() {
	o.end(nil)
	if o.resp != nil {
		o.resp.Body.Close()
	}
}

// cause returns why the request of o was ended by us, or else err.
func (o *offer) cause(err error) error {
	if ended := o.ended(); ended != nil {
		return ended
	}
	return plainCause(err)
}

// reasons says of each endpoint why it had no usable response.
func (c *contest) reasons() error {
	var errs []string
	for i, target := range c.order {
		why := "not asked, no time was left"
		if i < len(c.asks) {
			why = escapeText(clipText(c.asks[i].err.Error()), 0)
		}
		errs = append(errs, target.name+": "+why)
	}
	return errors.New(strings.Join(errs, "; "))
}

// roundTrip sends the request to an endpoint and returns its final response,
// the body unread.
func (c *contest) roundTrip(ctx context.Context, o *offer) (*http.Response, error) {
	limit := min(c.cfg.Timeout, time.Until(c.deadline))
	late := time.AfterFunc(limit, func() {
		o.end(fmt.Errorf("no answer within %s", limit.Round(time.Millisecond)))
	})
	defer late.Stop()

	req := &http.Request{
		Method: c.request.Method,
		URL:    o.endpoint.url(c.request),
		Host:   o.endpoint.host,
		Header: c.header.Clone(), // the transport may add to it
	}
	if c.cfg.PreserveHost {
		req.Host = c.request.Host
	}
	if len(c.body) > 0 {
		req.ContentLength = int64(len(c.body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(c.body)), nil }
		req.Body, _ = req.GetBody()
	}
	// A connection that was kept may have been closed by the other end in this
	// very moment. The transport then tries again, and that must not happen to
	// what cannot be done twice without harm.
	transport := c.fresh
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		transport = c.kept
	}
	resp, err := transport.RoundTrip(req.WithContext(context.WithValue(ctx, askKey{}, ctx)))
	if err != nil {
		return nil, o.cause(err)
	}
	if !late.Stop() {
		resp.Body.Close()
		return nil, o.cause(nil)
	}
	return resp, nil
}

// endpoint is one URL, parsed.
type endpoint struct {
	scheme, host string
	path         string // percent-encoded, without a slash at its end
	query        string // percent-encoded
	name         string // for logs: no query, where secrets may be

	silentUntil atomic.Int64 // UnixNano; 0 since it last gave a response
}

// parseEndpoint reads a URL. Its error never repeats what may be a secret.
func parseEndpoint(raw string) (*endpoint, error) {
	u, err := url.Parse(raw)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err // the URL may hold a password
		}
		return nil, fmt.Errorf("not a URL: %w", err)
	}
	shown := u.Redacted()
	switch {
	case raw == "":
		return nil, errors.New("empty")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("%q does not begin with http:// or https://", shown)
	case u.User != nil:
		return nil, fmt.Errorf("%q has a user name, which is not sent", shown)
	case u.Hostname() == "":
		return nil, fmt.Errorf("%q has no host", shown)
	case u.Fragment != "" || strings.HasSuffix(raw, "#"):
		return nil, fmt.Errorf("%q has a fragment, which is never sent", shown)
	case climbs(u.EscapedPath()):
		return nil, fmt.Errorf("%q has a path that leaves itself", shown)
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, fmt.Errorf("%q: port %q is not from 1 to 65535", shown, port)
		}
	}
	return &endpoint{
		scheme: u.Scheme,
		host:   u.Host,
		path:   strings.TrimSuffix(u.EscapedPath(), "/"),
		query:  u.RawQuery,
		name:   u.Scheme + "://" + u.Host + u.EscapedPath(),
	}, nil
}

// target returns what is asked of ep for a request target, path and query:
// both paths with one slash in between, both queries with one ampersand. The
// request's bytes are not touched.
func (ep *endpoint) target(requested string) string {
	path, query, asked := strings.Cut(requested, "?")
	target := ep.path + "/" + strings.TrimPrefix(path, "/")
	switch {
	case ep.query == "" && !asked:
		return target
	case ep.query == "" || query == "":
		return target + "?" + ep.query + query
	}
	return target + "?" + ep.query + "&" + query
}

// url returns the URL to ask ep for.
func (ep *endpoint) url(r *http.Request) *url.URL {
	target := ep.target(r.RequestURI)
	if strings.HasPrefix(target, "//") {
		// An opaque URL of this form would be sent as "http://…".
		path, query, asked := strings.Cut(target, "?")
		u := &url.URL{Scheme: ep.scheme, Host: ep.host, Path: path, RawQuery: query, ForceQuery: asked}
		if decoded, err := url.PathUnescape(path); err == nil {
			u.Path, u.RawPath = decoded, path
		}
		return u
	}
	return &url.URL{Scheme: ep.scheme, Host: ep.host, Opaque: target} // sent byte for byte
}
