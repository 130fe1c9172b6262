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
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"understudy/internal/address"
	"understudy/internal/criteria"
	"understudy/internal/httpsyntax"
	"understudy/internal/redact"
)

const (
	// httpHeadLimit bounds the status line and the headers of an answer, those
	// of interim answers (1xx) included, in bytes.
	httpHeadLimit = 16 << 10

	// httpWireLimit limits the bytes of a body with its transfer coding:
	// criteria.BodyLimit and the overhead of chunks.
	httpWireLimit = 16 * criteria.BodyLimit
)

// HTTPConfig configures [HTTP].
type HTTPConfig struct {
	// Port is the TCP port to check, on the host's own address, instead of the
	// port of the connection string. A host that is a unix socket is then
	// checked on localhost. Zero checks the target of the connection string.
	Port int

	// Path begins with "/" and may have a query. Required.
	Path string

	// Method is the method of the request. Required.
	Method string

	// Header holds what is sent beside Host, Connection and Content-Length;
	// it may replace our User-Agent, and its Host counts as Host does. The
	// check reads it and never changes it.
	Header http.Header

	// Host is sent in the header of that name. Empty sends the host's name and
	// the port of the request.
	Host string

	// Body is sent with its length, 64 KiB at most. Empty sends none.
	Body []byte

	// TLS is the configuration for HTTPS; nil is plain HTTP. It is cloned. An empty
	// ServerName means the host's name, for SNI and for the certificate alike;
	// NextProtos is not used.
	TLS *tls.Config

	// Expect holds the criteria of the answer. The zero value passes on any 2xx.
	Expect criteria.Expect

	// Resolve turns names into addresses. Nil queries the system's name servers,
	// without the earlier answers of a [Resolver].
	Resolve ResolveFunc

	// Source and SendProxy are those of [TCPConfig].
	Source    netip.Addr
	SendProxy int
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
	criteria *criteria.Criteria
	dialer   dialer
}

// HTTP returns a check that sends a request to the host and compares the
// answer, or an error that names every bad field.
//
// One check is one HTTP/1.1 connection: no proxy from the environment, no
// redirect followed, no compression requested. It reads 16 KiB of headers and 64 KiB
// of body at most, and ends with its context in every case.
func HTTP(cfg HTTPConfig) (Check, error) {
	var errs []error
	if cfg.Port < 0 || cfg.Port > 65535 {
		errs = append(errs, fmt.Errorf("port: %d is not from 1 to 65535", cfg.Port))
	}
	target, err := parseHTTPPath(cfg.Path)
	if err != nil {
		errs = append(errs, fmt.Errorf("path: %w", err))
		target = &url.URL{}
	}
	expected, err := cfg.Expect.Compile()
	if err != nil {
		errs = append(errs, err)
	}
	c := &httpCheck{
		port:     uint16(cfg.Port), //nolint:gosec // G115: an error if it does not fit
		target:   *target,
		method:   cfg.Method,
		header:   cfg.Header.Clone(),
		host:     cfg.Host,
		body:     cfg.Body,
		criteria: expected,
	}
	c.dialer, err = newDialer(cfg.Resolve, cfg.Source, cfg.SendProxy)
	errs = append(errs, err)
	errs = append(errs, c.checkMethod(), c.takeHost(), checkHTTPHeader(c.header))
	if len(c.body) > criteria.BodyLimit {
		errs = append(errs, fmt.Errorf("request body: %d bytes, more than %d", len(c.body), criteria.BodyLimit))
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
	return c.check, nil
}

// URLTarget parses the URL of a probe into the configuration of [HTTP] and a connection
// string. The TLS of https is the system's by default; the caller sets method and
// criteria. A user and password are refused: they belong into a header, since the URL is
// logged.
func URLTarget(rawurl string) (host string, cfg HTTPConfig, err error) {
	u, err := httpsyntax.ParseURL(rawurl)
	if err != nil {
		return "", HTTPConfig{}, fmt.Errorf("url: %s %w", redact.Quote(rawurl), err)
	}
	port := cmp.Or(u.Port(), "80")
	if u.Scheme == "https" {
		port = cmp.Or(u.Port(), "443")
		cfg.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	to := net.JoinHostPort(u.Hostname(), port)
	h, err := address.ParseHost(to)
	if err != nil {
		return "", HTTPConfig{}, fmt.Errorf("url: %s %w", redact.Quote(to), err)
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
		return nil, fmt.Errorf("%q does not begin with %q", redact.URL(path), "/")
	}
	if strings.Contains(path, "#") {
		return nil, fmt.Errorf("%q has a fragment, which is never sent", redact.URL(path))
	}
	return url.ParseRequestURI(path)
}

// checkMethod returns an error when the method cannot be sent, or no answer to
// it could pass.
func (c *httpCheck) checkMethod() error {
	if err := httpsyntax.CheckMethod(c.method); err != nil {
		return fmt.Errorf("method: %q %w", c.method, err)
	}
	if c.method == http.MethodHead && c.criteria != nil && c.criteria.WantsBody() {
		return errors.New("method: the answer to HEAD has no body to compare")
	}
	return nil
}

// takeHost moves the Host out of the header, where net/http would ignore it.
func (c *httpCheck) takeHost() error {
	for name, values := range c.header {
		if !strings.EqualFold(name, "Host") {
			continue
		}
		if c.host != "" || len(values) != 1 {
			return errors.New("header: Host is listed twice")
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

// checkHTTPHeader returns an error for every field that cannot be sent, or that a caller
// may not set. net/http would change or omit them.
func checkHTTPHeader(header http.Header) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(header)) {
		if err := httpsyntax.CheckHeaderName(name); err != nil {
			errs = append(errs, fmt.Errorf("header: %w", err))
		}
		for _, value := range header[name] {
			if err := httpsyntax.CheckHeaderValue(value); err != nil {
				errs = append(errs, fmt.Errorf("header: %q %w", name, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (c *httpCheck) check(ctx context.Context, host string) Result {
	began := time.Now()
	phase, err := c.run(ctx, host)
	return NewResult(ctx, began, phase, err)
}

// run checks host once.
func (c *httpCheck) run(ctx context.Context, host string) (Phase, error) {
	h, err := address.ParseHost(host)
	if err != nil {
		return Resolve, fmt.Errorf("host %q %w", host, err)
	}
	req, err := c.request(ctx, onPort(h, c.port))
	if err != nil {
		return Write, err
	}
	conn, phase, err := c.dialer.connect(ctx, h, c.port)
	if err != nil {
		return phase, err
	}
	defer conn.Close() // the answer was read, or the check has failed
	stop := endWith(ctx, conn)
	defer stop()

	if c.tls == nil {
		phase, err = c.exchange(conn, req)
	} else {
		phase, err = c.exchangeTLS(ctx, conn, req, req.URL.Hostname())
	}
	if err != nil {
		err = fmt.Errorf("%s %s: %w", strings.ToLower(c.method), redact.URL(req.URL.String()), err)
	}
	return phase, err
}

// onPort returns h with another port, which zero is not. That of a unix socket
// is a port of this machine.
func onPort(h address.Host, port uint16) address.Host {
	switch {
	case port == 0:
		return h
	case h.Path != "":
		return address.Host{Name: "localhost", Port: port}
	}
	return address.Host{Name: h.Name, Port: port}
}

// request returns the request for h.
func (c *httpCheck) request(ctx context.Context, h address.Host) (*http.Request, error) {
	u := c.target
	u.Host = "localhost" // a unix socket is on this machine
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
func (c *httpCheck) exchangeTLS(ctx context.Context, conn net.Conn, req *http.Request, name string) (Phase, error) {
	config := c.tls
	if config.ServerName == "" {
		config = config.Clone()
		config.ServerName, _, _ = strings.Cut(name, "%") // no certificate has a zone
	}
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		return TLS, plainTLSError(err)
	}
	phase, err := c.exchange(secured, req)
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		// TLS 1.3 servers verify our certificate after the handshake.
		return TLS, plainTLSError(err)
	}
	if err == nil && ctx.Err() == nil {
		_ = secured.CloseWrite() // hosts log its lack as a fault of their client
	}
	return phase, err
}

// plainTLSError returns a plain description of why a handshake failed.
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
// is not used: it continues a connect after its request has ended, and its goroutines
// outlive the request.
func (c *httpCheck) exchange(conn net.Conn, req *http.Request) (Phase, error) {
	if err := req.Write(conn); err != nil {
		return Write, err
	}
	wire := &io.LimitedReader{R: conn, N: httpHeadLimit}
	in := bufio.NewReader(wire)
	resp, err := readFinal(in, req) //nolint:bodyclose // the connection is closed instead, see below
	if err != nil {
		if wire.N == 0 && in.Buffered() == 0 {
			err = fmt.Errorf("headers are longer than %d bytes", httpHeadLimit)
		}
		return Read, err
	}
	if err := c.criteria.MatchStatus(resp.StatusCode); err != nil || !c.criteria.WantsBody() {
		return Criteria, err
	}
	// One byte more than the limit distinguishes a body that fits from one that does
	// not. The body is not closed: Close would read a chunked one to its end. The
	// caller closes the connection, which releases everything.
	wire.N = httpWireLimit
	body, err := io.ReadAll(io.LimitReader(resp.Body, criteria.BodyLimit+1))
	if err != nil {
		return Read, fmt.Errorf("body: %w", err)
	}
	return Criteria, c.criteria.MatchBody(body)
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
