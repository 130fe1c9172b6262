package verdict

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// hopByHop lists the headers for the next hop only, in addition to those that
// Connection names (RFC 9110 §7.6.1), and Expect, which net/http has answered.
var hopByHop = []string{
	"Connection", "Expect", "Http2-Settings", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authentication-Info",
	"Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// endToEnd returns a copy of h without the headers for the next hop only.
func endToEnd(h http.Header) http.Header {
	h = h.Clone()
	for name := range listElements(h["Connection"]) {
		h.Del(name)
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
	return h
}

// listElements yields the elements of a header that is a comma list.
func listElements(values []string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for _, list := range values {
			for element := range strings.SplitSeq(list, ",") {
				if element = strings.TrimSpace(element); element != "" && !yield(element) {
					return
				}
			}
		}
	}
}

// listContains reports whether a header that is a comma list has an element,
// ignoring case.
func listContains(values []string, element string) bool {
	for e := range listElements(values) {
		if strings.EqualFold(e, element) {
			return true
		}
	}
	return false
}

// switchesProtocol reports whether a client requests another protocol on this
// connection. An offer of HTTP/2 without TLS, which some clients send with every
// first request, is ignored: the answer is then HTTP/1.1, as from most servers.
func switchesProtocol(h http.Header) bool {
	if !listContains(h["Connection"], "upgrade") {
		return false
	}
	for protocol := range listElements(h["Upgrade"]) {
		if !strings.EqualFold(protocol, "h2c") {
			return true
		}
	}
	return false
}

// replayHeader returns the headers with which r is replayed.
func (e *Endpoints) replayHeader(r *http.Request) http.Header {
	h := endToEnd(r.Header)
	if listContains(r.Header["Te"], "trailers") {
		h.Set("Te", "trailers") // we accept them too, and some servers send none without it
	}
	if client, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		h.Set("X-Forwarded-For", strings.Join(append(slices.Clone(h["X-Forwarded-For"]), client), ", "))
	}
	// A proxy in front may have terminated TLS: its value is kept.
	if h.Get("X-Forwarded-Proto") == "" {
		h.Set("X-Forwarded-Proto", "http")
		if r.TLS != nil {
			h.Set("X-Forwarded-Proto", "https")
		}
	}
	if h.Get("X-Forwarded-Host") == "" && r.Host != "" {
		h.Set("X-Forwarded-Host", r.Host)
	}
	// Not Via, which makes some servers answer differently.
	h.Set("Cdn-Loop", strings.Join(append(slices.Clone(h["Cdn-Loop"]), e.name), ", "))
	if _, sent := h["User-Agent"]; !sent {
		h["User-Agent"] = nil // otherwise net/http names itself
	}
	return h
}

// answerWriter passes responses of any size to a client, as long as the client
// keeps reading.
type answerWriter struct {
	http.ResponseWriter
	request *http.Request
	ctl     *http.ResponseController
	timeout time.Duration // for one part; 0 is no limit
	from    *peer         // nil when the server is not a [Server]
}

// newAnswerWriter starts the client's write timeout anew, whatever time the
// endpoints took.
func newAnswerWriter(w http.ResponseWriter, r *http.Request) *answerWriter {
	a := &answerWriter{ResponseWriter: w, request: r, ctl: http.NewResponseController(w)}
	a.from, _ = r.Context().Value(peerKey{}).(*peer)
	if srv, ok := r.Context().Value(http.ServerContextKey).(*http.Server); ok {
		a.timeout = srv.WriteTimeout
	}
	a.extend()
	return a
}

// extend starts the write timeout for the next part.
func (a *answerWriter) extend() {
	if a.timeout > 0 {
		_ = a.ctl.SetWriteDeadline(time.Now().Add(a.timeout)) // if it fails, so does the write
	}
}

// pass copies the response of won to the client as it arrives. It returns how many
// bytes of the body it has copied and, when that was not all, why. Stall limits
// the time between two parts of the body.
func (a *answerWriter) pass(won *attempt, stall time.Duration) (sent int64, err error) {
	if a.from != nil {
		// By default a blocked write resumes only when the client has read a
		// third of the send buffer, which may be megabytes.
		wakeEarly(a.from.TCPConn)
	}
	resp := won.resp
	h := a.Header()
	h.Del("Cache-Control") // set by Server.serve
	h.Del("X-Content-Type-Options")
	maps.Copy(h, endToEnd(resp.Header))
	for _, name := range []string{"Content-Type", "Date"} {
		if _, sent := h[name]; !sent {
			h[name] = nil // otherwise net/http makes one up
		}
	}
	announced := slices.Sorted(maps.Keys(resp.Trailer))
	for _, name := range announced {
		h.Add("Trailer", name)
	}
	a.WriteHeader(resp.StatusCode)
	a.resetOnClose(true) // net/http closes when a write fails, before it returns the error
	if err := a.ctl.Flush(); err != nil {
		return 0, fmt.Errorf("client: %w", err)
	}

	late := time.AfterFunc(stall, func() { won.end(fmt.Errorf("body stalled for %s", stall)) })
	defer late.Stop()
	buf := make([]byte, 32<<10)
	for {
		late.Reset(stall)
		n, err := resp.Body.Read(buf)
		late.Stop()
		if n > 0 {
			a.extend()
			_, lost := a.Write(buf[:n])
			if lost == nil {
				lost = a.ctl.Flush()
			}
			if lost != nil {
				return sent, fmt.Errorf("client: %w", lost)
			}
			sent += int64(n)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			// An HTTP/1.0 client may take a normal close for the end of the
			// body, so it gets a reset. Others can see that the body is
			// incomplete, so they get all bytes that were sent.
			a.resetOnClose(!a.request.ProtoAtLeast(1, 1))
			return sent, fmt.Errorf("body broke off after %d bytes: %w", sent, won.cause(err))
		}
	}
	a.resetOnClose(false)
	a.extend() // for the end of the answer, which net/http writes
	for name, values := range resp.Trailer {
		if !slices.Contains(announced, name) {
			name = http.TrailerPrefix + name
		}
		h[name] = values
	}
	return sent, nil
}

// resetOnClose sets how the connection is closed: by a reset, which leaves no
// state in the kernel for a client that does not read, or normally, after all
// that was written.
func (a *answerWriter) resetOnClose(reset bool) {
	if a.from == nil {
		return
	}
	linger := -1
	if reset {
		linger = 0
	}
	_ = a.from.SetLinger(linger) // fails on a dead connection only
}
