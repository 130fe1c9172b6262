package health

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
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
	// Port is the TCP port that is asked, on the host's own address; the port
	// of the connection string is not used. Required.
	Port int

	// Path begins with "/" and may have a query. Defaults to "/ping".
	Path string

	// Expect is what the answer must be. The zero value passes on any 2xx.
	Expect Expect

	// Resolve turns names into addresses. Defaults to asking the system's name
	// servers, without the comfort of a [Resolver].
	Resolve ResolveFunc
}

// httpCheck is an HTTPConfig, validated.
type httpCheck struct {
	port     uint16
	target   url.URL // path and query
	criteria *criteria
	resolve  ResolveFunc
}

// HTTP returns a check that sends GET Path to Port on the host and compares the
// answer, or an error that names every bad field. A host that is a unix socket
// is asked on localhost.
//
// One check is one HTTP/1.1 connection: no proxy from the environment, no
// redirect followed, no compression asked for. It reads 16 KiB of headers and
// 64 KiB of body at most, and whatever the host does the check ends with its
// context.
func HTTP(cfg HTTPConfig) (Check, error) {
	var errs []error
	if cfg.Port < 1 || cfg.Port > 65535 {
		errs = append(errs, fmt.Errorf("port: %d is not from 1 to 65535", cfg.Port))
	}
	if cfg.Path == "" {
		cfg.Path = "/ping"
	}
	target, err := parseHTTPPath(cfg.Path)
	if err != nil {
		errs = append(errs, fmt.Errorf("path: %w", err))
	}
	criteria, err := cfg.Expect.compile()
	if err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("http check: %w", err)
	}
	c := &httpCheck{
		port:     uint16(cfg.Port), //nolint:gosec // G115: checked above
		target:   *target,
		criteria: criteria,
		resolve:  cfg.Resolve,
	}
	if c.resolve == nil {
		c.resolve = lookupAddrs
	}
	return c.check, nil
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
	if h.Path != "" {
		h = Host{Name: "localhost"} // a unix socket is on this machine
	}
	h.Port = c.port
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

	answer, phase, err := c.exchange(conn, req)
	if err != nil {
		err = fmt.Errorf("get %s: %w", req.URL, err)
	}
	return answer, phase, err
}

// request returns the request for h.
func (c *httpCheck) request(ctx context.Context, h Host) (*http.Request, error) {
	u := c.target
	u.Scheme = "http"
	u.Host = net.JoinHostPort(h.Name, strconv.Itoa(int(h.Port)))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return nil, err // already `parse "http://…": …`
	}
	req.Header.Set("User-Agent", "understudy")
	req.Close = true
	return req, nil
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
