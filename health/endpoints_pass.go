package health

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

// hopByHop holds the headers that are meant for the next hop only, beside
// those that Connection names (RFC 9110 §7.6.1), and Expect, which net/http
// has answered.
var hopByHop = []string{
	"Connection", "Expect", "Http2-Settings", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authentication-Info",
	"Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// endToEnd returns a copy of h without what is meant for the next hop only.
func endToEnd(h http.Header) http.Header {
	h = h.Clone()
	for name := range listed(h["Connection"]) {
		h.Del(name)
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
	return h
}

// listed yields the elements of a header that is a comma list.
func listed(values []string) func(yield func(string) bool) {
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

// lists reports whether a header that is a comma list has an element, in
// whatever case.
func lists(values []string, element string) bool {
	for e := range listed(values) {
		if strings.EqualFold(e, element) {
			return true
		}
	}
	return false
}

// switchesProtocol reports whether a client wants to speak something else from
// here on. An offer of HTTP/2 without TLS, as some send with every first
// request, is passed over instead: the answer is then HTTP/1.1, as they expect
// of most servers.
func switchesProtocol(h http.Header) bool {
	if !lists(h["Connection"], "upgrade") {
		return false
	}
	for protocol := range listed(h["Upgrade"]) {
		if !strings.EqualFold(protocol, "h2c") {
			return true
		}
	}
	return false
}

// replayHeader returns the headers with which r is replayed.
func (e *Endpoints) replayHeader(r *http.Request) http.Header {
	h := endToEnd(r.Header)
	if lists(r.Header["Te"], "trailers") {
		h.Set("Te", "trailers") // true of us as well, and some send none otherwise
	}
	if client, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		h.Set("X-Forwarded-For", strings.Join(append(slices.Clone(h["X-Forwarded-For"]), client), ", "))
	}
	// A proxy in front, where TLS may have ended, knows better.
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

// answerWriter passes responses of any size to a client, for as long as it
// goes on taking them.
type answerWriter struct {
	http.ResponseWriter
	request  *http.Request
	ctl      *http.ResponseController
	patience time.Duration // for one part; 0 is for ever
	from     *peer         // nil behind another server than ours
}

// newAnswerWriter gives the client its full time from now on, however long the
// endpoints took.
func newAnswerWriter(w http.ResponseWriter, r *http.Request) *answerWriter {
	a := &answerWriter{ResponseWriter: w, request: r, ctl: http.NewResponseController(w)}
	a.from, _ = r.Context().Value(peerKey{}).(*peer)
	if srv, ok := r.Context().Value(http.ServerContextKey).(*http.Server); ok {
		a.patience = srv.WriteTimeout
	}
	a.extend()
	return a
}

// extend lets the client have its full time for the next part.
func (a *answerWriter) extend() {
	if a.patience > 0 {
		_ = a.ctl.SetWriteDeadline(time.Now().Add(a.patience)) // if it fails, so does the write
	}
}

// pass passes the response of o on as it comes. It returns how many bytes of
// the body it has passed and, when that was not all, why. No part of the body may
// take longer than stall to come.
func (a *answerWriter) pass(o *offer, stall time.Duration) (sent int64, err error) {
	if a.from != nil {
		// A write ends when the client has taken enough, and the system's
		// idea of enough is a third of megabytes.
		wakeEarly(a.from.TCPConn)
	}
	resp := o.resp
	h := a.Header()
	h.Del("Cache-Control") // ours
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
	a.resetOnClose(true) // net/http closes when a write fails, before it says so
	if err := a.ctl.Flush(); err != nil {
		return 0, fmt.Errorf("client: %w", err)
	}

	late := time.AfterFunc(stall, func() { o.end(fmt.Errorf("body stalled for %s", stall)) })
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
			// For a client of HTTP/1.0 the plain end of a connection may be the
			// end of the body; others miss the rest, and get what there is.
			a.resetOnClose(!a.request.ProtoAtLeast(1, 1))
			return sent, fmt.Errorf("body broke off after %d bytes: %w", sent, o.cause(err))
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

// resetOnClose says how the connection ends if it is closed now: by a reset,
// which leaves nothing behind in the system for a client that takes nothing,
// or by an end behind all that was written.
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
