package verdict

import (
	"bytes"
	"errors"
)

// nextHead checks the head of the request that net/http has just parsed, and
// drops it from the record. With last, the connection ends with this request and
// recording ends.
//
// net/http is lenient where RFC 9112 allows it, and does not show where it was. A
// front server that is lenient in another way would see other requests in the
// same bytes (request smuggling), so nothing ambiguous is accepted here.
func (c *peer) nextHead(last bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = last
	// net/http skips empty lines after a POST.
	raw := bytes.TrimLeft(c.raw, "\r\n")
	end := headEnd(raw)
	err := checkHead(raw[:end])
	if rest := raw[end:]; len(rest) == 0 || last {
		c.raw = nil
	} else {
		c.raw = bytes.Clone(rest) // a pipelined request, or the start of one
	}
	return err
}

// headEnd returns the length of the head at the start of raw, including its
// empty line, with lines as net/http defines them; 0 when there is no full head.
func headEnd(raw []byte) int {
	for at := 0; ; {
		n := bytes.IndexByte(raw[at:], '\n')
		if n < 0 {
			return 0
		}
		line := raw[at : at+n]
		at += n + 1
		if len(line) == 0 || len(line) == 1 && line[0] == '\r' {
			return at
		}
	}
}

// checkHead returns an error for a head that two servers could read differently
// and that net/http of Go 1.26 accepts without showing it in the request:
// lines that do not end in CRLF (RFC 9112 §2.2), folded lines (§5.2), more than one
// field for the length of the body (a Content-Length beside a
// Transfer-Encoding, or the same one twice, §6.3), and a transfer coding in HTTP/1.0
// (§6.1), whose body it reads as the next request. net/http itself refuses the
// rest, such as CR and NUL inside a line, different lengths and unknown codings.
// TestNetHTTPForgives shows which cases are which.
func checkHead(head []byte) error {
	lines := bytes.SplitAfter(head, []byte("\n"))
	lengths, http10 := 0, bytes.HasSuffix(lines[0], []byte(" HTTP/1.0\r\n"))
	for i, line := range lines {
		text, ended := bytes.CutSuffix(line, []byte("\r\n"))
		switch {
		case i == len(lines)-1 && len(line) == 0: // after the end of the last line
			continue
		case !ended:
			return errors.New("line does not end in CRLF")
		case bytes.HasPrefix(text, []byte(" ")), bytes.HasPrefix(text, []byte("\t")):
			return errors.New("folded line")
		}
		name, _, _ := bytes.Cut(text, []byte(":"))
		coded := bytes.EqualFold(name, []byte("Transfer-Encoding"))
		if coded || bytes.EqualFold(name, []byte("Content-Length")) {
			lengths++
		}
		if coded && http10 {
			return errors.New("transfer coding in HTTP/1.0")
		}
	}
	if len(lines) < 2 {
		return errors.New("no head")
	}
	if lengths > 1 {
		return errors.New("more than one length")
	}
	return nil
}
