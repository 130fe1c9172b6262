package opening

import (
	"bytes"
	"strings"
)

// safeRequest reports whether b is the head of one request with a safe method
// and without content: RFC 9110, section 9.2.1, and RFC 9112, sections 2 to 6.
//
// A request to upgrade, to WebSocket for example, is one too: the client waits
// for the answer before it speaks the other protocol (RFC 9110, section 7.8).
// A header by which some services replace the method makes a request unsafe.
func safeRequest(b []byte) bool {
	line, rest, ok := cutLine(b)
	method, line, _ := bytes.Cut(line, []byte(" "))
	target, version, _ := bytes.Cut(line, []byte(" "))
	switch string(method) {
	case "GET", "HEAD", "OPTIONS", "TRACE":
	default:
		return false
	}
	if !ok || len(target) == 0 || !all(target, visible) || string(version) != "HTTP/1.1" && string(version) != "HTTP/1.0" {
		return false
	}
	for {
		if line, rest, ok = cutLine(rest); !ok {
			return false
		}
		if len(line) == 0 {
			return len(rest) == 0
		}
		name, value, found := bytes.Cut(line, []byte(":"))
		if !found || len(name) == 0 || !all(name, token) || !all(value, text) || !safeHeader(name, value) {
			return false
		}
	}
}

// safeHeader reports whether a header leaves a safe request without content safe
// and without content.
func safeHeader(name, value []byte) bool {
	switch {
	case bytes.EqualFold(name, []byte("Content-Length")):
		return string(bytes.Trim(value, " \t")) == "0"
	case bytes.EqualFold(name, []byte("Transfer-Encoding")),
		bytes.EqualFold(name, []byte("X-HTTP-Method-Override")),
		bytes.EqualFold(name, []byte("X-HTTP-Method")),
		bytes.EqualFold(name, []byte("X-Method-Override")):
		return false
	}
	return true
}

// cutLine cuts b behind the first line, which must end with CRLF.
func cutLine(b []byte) (line, rest []byte, ok bool) {
	n := bytes.IndexByte(b, '\n')
	if n < 1 || b[n-1] != '\r' {
		return nil, nil, false
	}
	return b[:n-1], b[n+1:], true
}

func all(b []byte, is func(byte) bool) bool {
	for _, c := range b {
		if !is(c) {
			return false
		}
	}
	return true
}

func visible(c byte) bool { return c > ' ' && c != 0x7f }

func text(c byte) bool { return c >= ' ' && c != 0x7f || c == '\t' }

func token(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// preface reports whether b is the client preface of HTTP/2 and then only whole
// frames about the connection: RFC 9113, sections 3.4 and 6.
func preface(b []byte) bool {
	b, ok := bytes.CutPrefix(b, []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	if !ok {
		return false
	}
	c := cursor{b: b}
	for first := true; len(c.b) > 0; first = false {
		size, kind, flags, stream := c.uint(3), c.uint(1), c.uint(1), c.uint(4)
		c.field(size)
		switch {
		case c.bad || flags != 0:
			return false
		case kind == 4 && stream == 0 && size%6 == 0: // SETTINGS
		case kind == 8 && stream == 0 && size == 4 && !first: // WINDOW_UPDATE
		case kind == 2 && stream != 0 && size == 5 && !first: // PRIORITY
		default:
			return false
		}
	}
	return !c.bad
}
