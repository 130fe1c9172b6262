package verdict

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

	"understudy/internal/criteria"
)

const (
	// maxReplyHead and maxReplyBody are how many bytes of one reply are read:
	// its head with every interim (1xx) head before it, and its body.
	maxReplyHead = 16 << 10
	maxReplyBody = 64 << 10
)

// portRequest is a request in the form in which it is sent to ports.
type portRequest struct {
	method string
	url    url.URL     // of the target, without host
	host   string      // the Host header
	header http.Header // end-to-end headers only
	body   []byte
}

// newPortRequest returns the request to replay for r, without its body. It has no
// headers for the next hop only (RFC 9110 §7.6.1) and no Accept-Encoding, since
// the bodies of replies are compared. HEAD becomes GET, because a reply without a
// body could never pass.
func newPortRequest(r *http.Request) portRequest {
	req := portRequest{method: r.Method, host: r.Host, header: endToEnd(r.Header)}
	if req.method == http.MethodHead {
		req.method = http.MethodGet
	}
	if strings.HasPrefix(r.RequestURI, "//") {
		// An opaque URL of this form would be sent as "http://…".
		req.url = *r.URL
	} else {
		req.url.Opaque = r.RequestURI // sent byte for byte
	}
	delete(req.header, "Accept-Encoding")
	delete(req.header, "Content-Length")
	if _, sent := req.header["User-Agent"]; !sent {
		req.header["User-Agent"] = nil // otherwise net/http names itself
	}
	return req
}

// perRequest lists the headers that differ in every request and do not change
// the reply.
var perRequest = map[string]bool{
	"Cf-Ray":          true,
	"Traceparent":     true,
	"Tracestate":      true,
	"X-Amzn-Trace-Id": true,
	"X-Request-Id":    true,
}

// key returns a key that is equal for identical requests. Every header that could
// change the reply is part of it, also unknown ones: a client that sends an
// unusual header ("Range: bytes=0-0") must not change the reply that a monitor
// gets.
func (req portRequest) key() (key [sha256.Size]byte) {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q\n", req.method, req.url.RequestURI(), req.host)
	for _, name := range slices.Sorted(maps.Keys(req.header)) {
		if !perRequest[name] {
			fmt.Fprintf(h, "%q: %q\n", name, req.header[name])
		}
	}
	h.Sum(key[:0])
	return key
}

// reply is the reply of one port. It is not modified once it is shared.
type reply struct {
	port     int
	status   int    // 500 when err is set
	body     []byte // "error" when err is set
	took     time.Duration
	err      error // why there is no usable response
	mismatch error // how the response differs from the expected one
}

// passed reports whether the service gave the expected response.
func (r reply) passed() bool { return r.why() == nil }

// why returns why the service failed: the request failed, or the response was not
// the expected one.
func (r reply) why() error { return cmp.Or(r.err, r.mismatch) }

// replayer sends requests to services on this machine.
type replayer struct {
	transport *http.Transport
	timeout   time.Duration
	expected  *criteria.Criteria
}

func newReplayer(timeout time.Duration, expected *criteria.Criteria) *replayer {
	return &replayer{
		timeout:  timeout,
		expected: expected,
		transport: &http.Transport{
			// No proxy, and a new connection for each request: a service that
			// has restarted would look dead on a kept connection.
			DialContext:            new(net.Dialer).DialContext,
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxReplyHead,
		},
	}
}

// sendAll sends req to every port at once and returns the replies in the order of
// ports, when ctx ends at the latest.
func (rp *replayer) sendAll(ctx context.Context, req portRequest, ports []int) []reply {
	replies := make([]reply, len(ports))
	var wg sync.WaitGroup
	for i, port := range ports {
		wg.Go(func() { replies[i] = rp.send(ctx, req, port) })
	}
	wg.Wait()
	return replies
}

// send sends req to one port and evaluates the response.
func (rp *replayer) send(ctx context.Context, req portRequest, port int) reply {
	began := time.Now()
	status, body, err := rp.roundTrip(ctx, req, port)
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("not answered within %s", rp.timeout)
		}
		status, body = http.StatusInternalServerError, []byte("error")
	}
	r := reply{port: port, status: status, body: body, took: time.Since(began), err: err}
	if err == nil {
		r.mismatch = cmp.Or(rp.expected.MatchStatus(status), rp.expected.MatchBody(body))
	}
	return r
}

func (rp *replayer) roundTrip(ctx context.Context, req portRequest, port int) (status int, body []byte, err error) {
	target := req.url
	target.Scheme = "http"
	target.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	out := &http.Request{
		Method: req.method,
		URL:    &target,
		Host:   req.host,
		Header: req.header.Clone(), // one for each port; the transport may add to it
	}
	if len(req.body) > 0 {
		out.Body = io.NopCloser(bytes.NewReader(req.body))
		out.ContentLength = int64(len(req.body))
	}
	// The transport alone: no redirect is followed, no cookie is kept.
	resp, err := rp.transport.RoundTrip(out.WithContext(ctx))
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

// plainCause replaces errors of the transport that are hard to read.
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
