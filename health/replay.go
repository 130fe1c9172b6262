package health

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxReplyHead and maxReplyBody are how many bytes of one reply are read:
	// its head with every interim (1xx) head before it, and its body.
	maxReplyHead = 16 << 10
	maxReplyBody = 64 << 10
)

// question is a request in the form in which it is replayed.
type question struct {
	method string
	url    url.URL     // of the target, without host
	host   string      // the Host header
	header http.Header // end-to-end headers only
	body   []byte
}

// newQuestion turns a request into its question, without its body: what is
// meant for the next hop only is left out (RFC 9110 §7.6.1), and so is
// Accept-Encoding, since the bodies of replies are compared. HEAD becomes GET,
// because a reply without a body could never pass.
func newQuestion(r *http.Request) question {
	q := question{method: r.Method, host: r.Host, header: endToEnd(r.Header)}
	if q.method == http.MethodHead {
		q.method = http.MethodGet
	}
	if strings.HasPrefix(r.RequestURI, "//") {
		// An opaque URL of this form would be sent as "http://…".
		q.url = *r.URL
	} else {
		q.url.Opaque = r.RequestURI // sent byte for byte
	}
	delete(q.header, "Accept-Encoding")
	delete(q.header, "Content-Length")
	if _, sent := q.header["User-Agent"]; !sent {
		q.header["User-Agent"] = nil // otherwise net/http names itself
	}
	return q
}

// perRequest holds the headers that are new in every request and decide
// nothing.
var perRequest = map[string]bool{
	"Cf-Ray":          true,
	"Traceparent":     true,
	"Tracestate":      true,
	"X-Amzn-Trace-Id": true,
	"X-Request-Id":    true,
}

// key returns what identical questions have in common. Everything that a
// service could answer differently to is part of it, known or not: a stranger
// who asks with an odd header ("Range: bytes=0-0") must not decide what the
// monitor is told.
func (q question) key() (key [sha256.Size]byte) {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q\n", q.method, q.url.RequestURI(), q.host)
	for _, name := range slices.Sorted(maps.Keys(q.header)) {
		if !perRequest[name] {
			fmt.Fprintf(h, "%q: %q\n", name, q.header[name])
		}
	}
	h.Sum(key[:0])
	return key
}

// reply is what one port had to say to a question. Read only.
type reply struct {
	port   int
	status int    // 500 when err is set
	body   []byte // "error" when err is set
	took   time.Duration
	err    error // why there is no usable response
	unlike error // why the response is not the expected one
}

// passed reports whether the service is well.
func (r reply) passed() bool { return r.why() == nil }

// why returns why the service is not well: it could not be asked, or its
// response was not the expected one.
func (r reply) why() error { return cmp.Or(r.err, r.unlike) }

// replayer asks questions of services on this machine.
type replayer struct {
	transport *http.Transport
	timeout   time.Duration
	expected  *criteria
}

func newReplayer(timeout time.Duration, expected *criteria) *replayer {
	return &replayer{
		timeout:  timeout,
		expected: expected,
		transport: &http.Transport{
			// No proxy, and a new connection each time: on one that was kept
			// alive, a service that restarts in between looks dead.
			DialContext:            new(net.Dialer).DialContext,
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxReplyHead,
		},
	}
}

// askAll asks every port at once and returns the replies in the order of
// ports, by the end of ctx.
func (rp *replayer) askAll(ctx context.Context, q question, ports []int) []reply {
	replies := make([]reply, len(ports))
	var wg sync.WaitGroup
	for i, port := range ports {
		wg.Go(func() { replies[i] = rp.ask(ctx, q, port) })
	}
	wg.Wait()
	return replies
}

// ask asks one port.
func (rp *replayer) ask(ctx context.Context, q question, port int) reply {
	began := time.Now()
	status, body, err := rp.roundTrip(ctx, q, port)
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("not answered within %s", rp.timeout)
		}
		status, body = http.StatusInternalServerError, []byte("error")
	}
	r := reply{port: port, status: status, body: body, took: time.Since(began), err: err}
	if err == nil {
		r.unlike = cmp.Or(rp.expected.matchStatus(status), rp.expected.matchBody(body))
	}
	return r
}

func (rp *replayer) roundTrip(ctx context.Context, q question, port int) (status int, body []byte, err error) {
	target := q.url
	target.Scheme = "http"
	target.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	req := &http.Request{
		Method: q.method,
		URL:    &target,
		Host:   q.host,
		Header: q.header.Clone(), // one for each port; the transport may add to it
	}
	if len(q.body) > 0 {
		req.Body = io.NopCloser(bytes.NewReader(q.body))
		req.ContentLength = int64(len(q.body))
	}
	// The transport alone: no redirect is followed, no cookie is kept.
	resp, err := rp.transport.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return 0, nil, plainCause(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 599 {
		return 0, nil, fmt.Errorf("status %d is not an answer", resp.StatusCode)
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxReplyBody+1))
	switch {
	case err != nil:
		return 0, nil, fmt.Errorf("body broke off after %d bytes: %w", len(body), err)
	case len(body) > maxReplyBody:
		return 0, nil, fmt.Errorf("body is longer than %d bytes", maxReplyBody)
	}
	return resp.StatusCode, body, nil
}

// plainCause says in plain words what the transport wraps in its own.
func plainCause(err error) error {
	var protocol textproto.ProtocolError
	switch {
	case errors.Is(err, io.EOF):
		return errors.New("connection ended without an answer")
	case errors.As(err, &protocol):
		return fmt.Errorf("broken answer: %w", protocol)
	}
	return err
}
