package health

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
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// httpHeadLimit bounds the status line and the headers of an answer, those
	// of interim answers (1xx) included, in bytes.
	httpHeadLimit = 16 << 10

	// httpWireLimit bounds what is read of a body as it is sent: bodyLimit and
	// what chunks add to it.
	httpWireLimit = 16 * bodyLimit

	// httpBodyPatience is how long a body is waited for that decides nothing
	// and is only wanted for logs.
	httpBodyPatience = 50 * time.Millisecond

	// resultBodyLimit bounds Result.Body, in bytes.
	resultBodyLimit = 1 << 10
)

// HTTPConfig says what [HTTP] asks and which answer passes.
type HTTPConfig struct {
	// Port is the TCP port that is asked, on the host's own address, instead
	// of the port of the connection string. A host that is a unix socket is
	// then asked on localhost. Zero asks where the connection string leads.
	Port int

	// Path begins with "/" and may have a query. Defaults to "/ping".
	Path string

	// Method defaults to "GET".
	Method string

	// Header holds what is sent beside Host, Connection and Content-Length;
	// it may replace our User-Agent, and its Host counts as Host does. The
	// check reads it and never changes it.
	Header http.Header

	// Host is sent in the header of that name. Defaults to the host's name and
	// the port that is asked.
	Host string

	// Body is sent with its length, 64 KiB at most. Empty sends none.
	Body []byte

	// TLS says how to speak HTTPS; nil is plain HTTP. It is cloned. An empty
	// ServerName means the host's name, for SNI and for the certificate alike;
	// NextProtos is not used.
	TLS *tls.Config

	// Expect is what the answer must be. The zero value passes on any 2xx.
	Expect Expect

	// Resolve turns names into addresses. Defaults to asking the system's name
	// servers, without the comfort of a [Resolver].
	Resolve ResolveFunc
}

// httpCheck is an HTTPConfig, validated.
type httpCheck struct {
	port     uint16  // zero: the connection string's
	target   url.URL // scheme, path and query
	method   string
	header   http.Header
	host     string
	body     []byte
	tls      *tls.Config // nil: plain
	criteria *criteria
	resolve  ResolveFunc
}

// HTTP returns a check that sends a request to the host and compares the
// answer, or an error that names every bad field.
//
// One check is one HTTP/1.1 connection: no proxy from the environment, no
// redirect followed, no compression asked for. It reads 16 KiB of headers and
// 64 KiB of body at most, and whatever the host does the check ends with its
// context.
func HTTP(cfg HTTPConfig) (Check, error) {
	var errs []error
	if cfg.Port < 0 || cfg.Port > 65535 {
		errs = append(errs, fmt.Errorf("port: %d is not from 1 to 65535", cfg.Port))
	}
	target, err := parseHTTPPath(cmp.Or(cfg.Path, "/ping"))
	if err != nil {
		errs = append(errs, fmt.Errorf("path: %w", err))
		target = &url.URL{}
	}
	criteria, err := cfg.Expect.compile()
	if err != nil {
		errs = append(errs, err)
	}
	c := &httpCheck{
		port:     uint16(cfg.Port), //nolint:gosec // G115: an error if it does not fit
		target:   *target,
		method:   cmp.Or(cfg.Method, http.MethodGet),
		header:   cfg.Header.Clone(),
		host:     cfg.Host,
		body:     cfg.Body,
		criteria: criteria,
		resolve:  cfg.Resolve,
	}
	errs = append(errs, c.checkMethod(), c.takeHost(), checkHTTPHeader(c.header))
	if len(c.body) > bodyLimit {
		errs = append(errs, fmt.Errorf("request body: %d bytes, more than %d", len(c.body), bodyLimit))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("http check: %w", err)
	}
	c.target.Scheme = "http"
	if cfg.TLS != nil {
		c.target.Scheme = "https"
		c.tls = cfg.TLS.Clone()
		c.tls.NextProtos = []string{"http/1.1"}
	}
	if c.header == nil {
		c.header = make(http.Header)
	}
	if _, own := c.header["User-Agent"]; !own {
		c.header.Set("User-Agent", "understudy")
	}
	if c.resolve == nil {
		c.resolve = lookupAddrs
	}
	return c.check, nil
}

// URLTarget takes the URL of a probe apart: what [HTTP] asks, and the
// connection string to ask it of. The TLS of https is the system's until the
// caller says more; criteria are the caller's as well. A user and password are
// refused: they belong into a header, and the URL into logs.
func URLTarget(rawurl string) (host string, cfg HTTPConfig, err error) {
	u, err := url.Parse(rawurl)
	if err != nil {
		// The whole URL may hold a password; its fault is told without it.
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return "", HTTPConfig{}, fmt.Errorf("url: %w", err)
	}
	port := u.Port()
	switch u.Scheme {
	case "http":
		port = cmp.Or(port, "80")
	case "https":
		port = cmp.Or(port, "443")
		cfg.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	default:
		return "", HTTPConfig{}, fmt.Errorf("url: scheme %q is neither http nor https", u.Scheme)
	}
	switch {
	case u.User != nil:
		return "", HTTPConfig{}, errors.New("url: it has a user or a password; send the header Authorization instead")
	case u.Fragment != "" || strings.Contains(rawurl, "#"):
		return "", HTTPConfig{}, fmt.Errorf("url: %q has a fragment, which is never sent", rawurl)
	case strings.HasSuffix(u.Host, ":"):
		return "", HTTPConfig{}, fmt.Errorf("url: %q has no port behind its colon", rawurl)
	}
	h, err := ParseHost(net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return "", HTTPConfig{}, fmt.Errorf("url: %w", err)
	}
	cfg.Host = u.Host // as written: virtual hosts rarely know their default port
	if name, _, zoned := strings.Cut(h.Name, "%"); zoned {
		cfg.Host = "[" + name + "]" // a zone means nothing to others, RFC 6874
		if u.Port() != "" {
			cfg.Host += ":" + u.Port()
		}
	}
	cfg.Path = u.RequestURI()
	return h.String(), cfg, nil
}

// parseHTTPPath reads the path and query of a request.
func parseHTTPPath(path string) (*url.URL, error) {
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("%q does not begin with %q", path, "/")
	}
	if strings.Contains(path, "#") {
		return nil, fmt.Errorf("%q has a fragment, which is never sent", path)
	}
	return url.ParseRequestURI(path)
}

// checkMethod returns an error when the method cannot be sent, or no answer to
// it could pass.
func (c *httpCheck) checkMethod() error {
	switch {
	case !isToken(c.method):
		return fmt.Errorf("method: %q is not a word", c.method)
	case c.method == http.MethodConnect:
		return errors.New("method: CONNECT asks a proxy for a tunnel and not a service for an answer")
	case c.method == http.MethodHead && c.criteria != nil && c.criteria.wantsBody():
		return errors.New("method: the answer to HEAD has no body to compare")
	}
	return nil
}

// takeHost takes the Host out of the header, where net/http would ignore it.
func (c *httpCheck) takeHost() error {
	for name, values := range c.header {
		if !strings.EqualFold(name, "Host") {
			continue
		}
		if c.host != "" || len(values) != 1 {
			return errors.New("header: Host is given twice")
		}
		c.host = values[0]
		delete(c.header, name)
	}
	// net/http cleans a Host instead of refusing it.
	if strings.ContainsFunc(c.host, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`/\?#@"<>`, r) }) {
		return fmt.Errorf("host header: %q is not host or host:port", c.host)
	}
	return nil
}

// checkHTTPHeader names every field that cannot be sent, or not by the one who
// asks. net/http would mend them or leave them out.
func checkHTTPHeader(header http.Header) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(header)) {
		switch canonical := http.CanonicalHeaderKey(name); {
		case !isToken(name):
			errs = append(errs, fmt.Errorf("header: %q is not the name of one", name))
		case slices.Contains([]string{"Connection", "Content-Length", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}, canonical):
			errs = append(errs, fmt.Errorf("header: %s is about the connection, which is the check's own", canonical))
		}
		for _, value := range header[name] {
			if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				errs = append(errs, fmt.Errorf("header: the value of %q contains a control character", name))
			}
		}
	}
	return errors.Join(errs...)
}

// isToken reports whether s is a token: a method, the name of a header (RFC
// 9110, section 5.6.2).
func isToken(s string) bool {
	const marks = "!#$%&'*+-.^_`|~"
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') && !strings.Contains(marks, string(rune(c))) {
			return false
		}
	}
	return s != ""
}

func (c *httpCheck) check(ctx context.Context, host string) Result {
	began := time.Now()
	answer, phase, err := c.ask(ctx, host)
	result := Outcome(ctx, began, phase, err)
	result.Status, result.Body = answer.status, answer.body
	return result
}

// httpAnswer is what is kept of an answer; zero when none came.
type httpAnswer struct {
	status int
	body   []byte // the beginning
}

// ask asks host once. It returns what came even when that does not pass.
func (c *httpCheck) ask(ctx context.Context, host string) (httpAnswer, Phase, error) {
	h, err := ParseHost(host)
	if err != nil {
		return httpAnswer{}, Resolve, err
	}
	h = h.onPort(c.port)
	req, err := c.request(ctx, h)
	if err != nil {
		return httpAnswer{}, Write, err
	}
	conn, phase, err := c.resolve.connect(ctx, h)
	if err != nil {
		return httpAnswer{}, phase, err
	}
	defer conn.Close() // the answer was read, or is not wanted any more
	stop := endWith(ctx, conn)
	defer stop()

	var answer httpAnswer
	if c.tls == nil {
		answer, phase, err = c.exchange(conn, req)
	} else {
		answer, phase, err = c.exchangeTLS(ctx, conn, req, req.URL.Hostname())
	}
	if err != nil {
		err = fmt.Errorf("%s %s: %w", strings.ToLower(c.method), req.URL, err)
	}
	return answer, phase, err
}

// onPort returns h with another port, which zero is not. That of a unix socket
// is a port of this machine.
func (h Host) onPort(port uint16) Host {
	switch {
	case port == 0:
		return h
	case h.Path != "":
		return Host{Name: "localhost", Port: port}
	}
	return Host{Name: h.Name, Port: port}
}

// request returns the request for h.
func (c *httpCheck) request(ctx context.Context, h Host) (*http.Request, error) {
	u := c.target
	u.Host = "localhost" // who asks a unix socket does so on this machine
	if h.Path == "" {
		u.Host = net.JoinHostPort(h.Name, strconv.Itoa(int(h.Port)))
	}
	// A Reader of nothing is a body of length 0 to net/http, and of no length
	// at all where it means nothing, as in a GET.
	req, err := http.NewRequestWithContext(ctx, c.method, u.String(), bytes.NewReader(c.body))
	if err != nil {
		return nil, err // already `parse "http://…": …`
	}
	req.Host = cmp.Or(c.host, req.Host)
	req.Header = c.header // Write only reads it
	req.Close = true
	return req, nil
}

// exchangeTLS is exchange behind a handshake with name.
func (c *httpCheck) exchangeTLS(ctx context.Context, conn net.Conn, req *http.Request, name string) (httpAnswer, Phase, error) {
	config := c.tls
	if config.ServerName == "" {
		config = config.Clone()
		config.ServerName, _, _ = strings.Cut(name, "%") // no certificate has a zone
	}
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		return httpAnswer{}, TLS, plainTLSError(err)
	}
	answer, phase, err := c.exchange(secured, req)
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		// TLS 1.3 servers judge our certificate behind the handshake.
		return answer, TLS, plainTLSError(err)
	}
	if err == nil && ctx.Err() == nil {
		_ = secured.CloseWrite() // hosts log its lack as a fault of their client
	}
	return answer, phase, err
}

// plainTLSError says in plain words why a handshake failed.
func plainTLSError(err error) error {
	var (
		invalid x509.CertificateInvalidError
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		record  tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && time.Now().Before(invalid.Cert.NotBefore):
		return fmt.Errorf("certificate is not valid before %s", invalid.Cert.NotBefore.UTC().Format(time.RFC3339))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("certificate expired at %s", invalid.Cert.NotAfter.UTC().Format(time.RFC3339))
	case errors.As(err, &unknown):
		return errors.New("certificate is signed by an unknown authority")
	case errors.As(err, &name):
		return fmt.Errorf("certificate is for %s, not for %q", certificateNames(name.Certificate), name.Host)
	case errors.As(err, &record):
		return errors.New("the answer to the handshake is not TLS")
	}
	return fmt.Errorf("tls: %w", err)
}

// certificateNames returns the first names that cert is for, in quotes.
func certificateNames(cert *x509.Certificate) string {
	const limit = 3
	var names []string
	for _, name := range cert.DNSNames {
		names = append(names, strconv.Quote(name))
	}
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	switch {
	case len(names) == 0:
		return "no host"
	case len(names) > limit:
		names = append(names[:limit], "…")
	}
	return strings.Join(names, ", ")
}

// endWith makes every read and write of conn fail when ctx ends, until the
// function that it returns is called.
func endWith(ctx context.Context, conn net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		_ = conn.SetDeadline(time.Unix(1, 0)) // fails on a closed connection only, which is as good
	})
}

// exchange sends req over conn and compares the answer. net/http's Transport
// is not used: it goes on with a connect that nobody waits for any more, and
// its goroutines outlive the request.
func (c *httpCheck) exchange(conn net.Conn, req *http.Request) (httpAnswer, Phase, error) {
	if err := req.Write(conn); err != nil {
		return httpAnswer{}, Write, err
	}
	wire := &io.LimitedReader{R: conn, N: httpHeadLimit}
	in := bufio.NewReader(wire)
	resp, err := readFinal(in, req) //nolint:bodyclose // the connection is closed instead, see below
	if err != nil {
		if wire.N == 0 && in.Buffered() == 0 {
			err = fmt.Errorf("headers are longer than %d bytes", httpHeadLimit)
		}
		return httpAnswer{}, Read, err
	}
	// The body is not closed: Close would read a chunked one to its end. The
	// connection, which the caller closes, is all there is to give back.
	wire.N = httpWireLimit

	answer := httpAnswer{status: resp.StatusCode}
	if err := c.criteria.matchStatus(resp.StatusCode); err != nil {
		answer.body = glance(req.Context(), conn, resp.Body)
		return answer, Criteria, err
	}
	if !c.criteria.wantsBody() {
		answer.body = glance(req.Context(), conn, resp.Body)
		return answer, Criteria, nil
	}
	// One byte more than the limit tells a body that fits from one that does not.
	body, err := io.ReadAll(io.LimitReader(resp.Body, bodyLimit+1))
	answer.body = clip(body)
	if err != nil {
		return answer, Read, fmt.Errorf("body: %w", err)
	}
	return answer, Criteria, c.criteria.matchBody(body)
}

// readFinal reads the head of the final answer to req and passes over interim
// ones (RFC 9110, section 15.2). The limit of in bounds them all.
func readFinal(in *bufio.Reader, req *http.Request) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(in, req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, nil
		}
	}
}

// glance returns the beginning of a body that decides nothing: what of it is
// there within 50ms and before the end of ctx, errors aside.
func glance(ctx context.Context, conn net.Conn, body io.Reader) []byte {
	_ = conn.SetReadDeadline(time.Now().Add(httpBodyPatience)) // if it fails, so does the read
	if ctx.Err() != nil {
		return nil // the deadline that endWith had set is gone now
	}
	seen, _ := io.ReadAll(io.LimitReader(body, resultBodyLimit))
	return seen
}

// clip returns a copy of the beginning of body, so that the rest can be freed.
func clip(body []byte) []byte {
	return append([]byte(nil), body[:min(len(body), resultBodyLimit)]...)
}
