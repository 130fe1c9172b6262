package health

import (
	"bytes"
	"errors"
)

// nextHead checks the head of the request that net/http has just parsed and
// forgets it. With a last request, one whose connection ends with it, it
// forgets everything.
//
// net/http is forgiving where RFC 9112 allows it to be, and hides that it
// was. A front server that forgave differently would see other requests in the
// same bytes (request smuggling), so nothing is forgiven here.
func (c *peer) nextHead(last bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deaf = last
	// net/http passes over empty lines behind a POST.
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

// headEnd returns the length of the head that raw begins with, its empty line
// included, by net/http's understanding of a line; 0 when there is none.
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

// checkHead reports what in the head of a request two servers could understand
// differently: lines that do not end in CRLF (RFC 9112 §2.2), folded lines
// (§5.2), and more than one statement about the length of the body (§6.1, §6.3).
func checkHead(head []byte) error {
	lines := bytes.SplitAfter(head, []byte("\n"))
	lengths, http10 := 0, bytes.HasSuffix(lines[0], []byte(" HTTP/1.0\r\n"))
	for i, line := range lines {
		text, ended := bytes.CutSuffix(line, []byte("\r\n"))
		switch {
		case i == len(lines)-1 && len(line) == 0: // behind the last line's end
			continue
		case !ended:
			return errors.New("line does not end in CRLF")
		case bytes.ContainsAny(text, "\r\x00"):
			return errors.New("CR or NUL inside a line")
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
