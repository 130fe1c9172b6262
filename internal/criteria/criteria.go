// Package criteria compares an HTTP response with what an operator expects: of
// a host that is checked, of a port behind /ping, of an endpoint.
package criteria

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// BodyLimit limits the bytes of a body that are read and compared.
const BodyLimit = 64 << 10

// Expect holds the criteria of an HTTP response. All that are set must be met.
type Expect struct {
	// Status lists the status codes that pass, as numbers ("200") and classes
	// ("2xx"). Empty means "2xx": an error page passes only if it is listed.
	Status []string

	// Body must equal the body, byte for byte, after white space at both ends
	// of both is removed. Empty requires nothing.
	Body string

	// BodyContains must be contained in the body, byte for byte. Empty requires
	// nothing.
	BodyContains string

	// BodyRegex is a Go regular expression that must match somewhere in the
	// body. Empty requires nothing.
	BodyRegex string
}

// Criteria is an Expect, compiled. It may be used from many goroutines.
type Criteria struct {
	expect Expect
	codes  []statusRange
	body   []byte // trimmed
	regex  *regexp.Regexp
}

// statusRange is an inclusive range of status codes.
type statusRange struct{ from, to int }

// Compile returns the criteria of e, or an error that names every bad one.
func (e Expect) Compile() (*Criteria, error) {
	if len(e.Status) == 0 {
		e.Status = []string{"2xx"}
	}
	c := &Criteria{expect: e, body: bytes.TrimSpace([]byte(e.Body))}
	var errs []error
	for i, s := range e.Status {
		r, err := parseStatus(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("status[%d]: %q %w", i, s, err))
		}
		c.codes = append(c.codes, r)
	}
	switch {
	case e.Body != "" && len(c.body) == 0:
		errs = append(errs, fmt.Errorf("body: %q is white space, which is dropped before comparing", e.Body))
	case len(c.body) > BodyLimit:
		errs = append(errs, fmt.Errorf("body: %d bytes, more than the %d that are read", len(c.body), BodyLimit))
	}
	if len(e.BodyContains) > BodyLimit {
		errs = append(errs, fmt.Errorf("body_contains: %d bytes, more than the %d that are read", len(e.BodyContains), BodyLimit))
	}
	if e.BodyRegex != "" {
		var err error
		if c.regex, err = regexp.Compile(e.BodyRegex); err != nil {
			errs = append(errs, fmt.Errorf("body_regex: %w", err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return c, nil
}

// CheckStatus returns nil when text is a status or a class of them, and
// otherwise the error "is neither …".
func CheckStatus(text string) error {
	_, err := parseStatus(text)
	return err
}

// parseStatus parses "200" or "2xx".
func parseStatus(text string) (statusRange, error) {
	if len(text) == 3 && text[0] >= '1' && text[0] <= '5' {
		if strings.EqualFold(text[1:], "xx") {
			from := int(text[0]-'0') * 100
			return statusRange{from, from + 99}, nil
		}
		if n, err := strconv.ParseUint(text, 10, 16); err == nil {
			return statusRange{int(n), int(n)}, nil
		}
	}
	return statusRange{}, errors.New("is neither a status from 100 to 599 nor a class from 1xx to 5xx")
}

// WantsBody reports whether any criterion looks at the body.
func (e Expect) WantsBody() bool {
	return e.Body != "" || e.BodyContains != "" || e.BodyRegex != ""
}

// OrPong returns e with the default criteria of a healthy service where none is
// set: status 200 and, if there is no criterion for the body either, the body
// "pong".
func (e Expect) OrPong() Expect {
	if len(e.Status) == 0 {
		e.Status = []string{"200"}
		if !e.WantsBody() {
			e.Body = "pong"
		}
	}
	return e
}

// WantsBody reports whether any criterion looks at the body.
func (c *Criteria) WantsBody() bool { return c.expect.WantsBody() }

// MatchStatus returns nil when status passes, or an error that says what was
// expected.
func (c *Criteria) MatchStatus(status int) error {
	passes := func(r statusRange) bool { return r.from <= status && status <= r.to }
	if slices.ContainsFunc(c.codes, passes) {
		return nil
	}
	return fmt.Errorf("status %d, want %s", status, strings.Join(c.expect.Status, " or "))
}

// MatchBody returns nil when body passes, or an error that says what was
// expected. A body longer than 64 KiB never equals Body, and only the first 64
// KiB are searched.
func (c *Criteria) MatchBody(body []byte) error {
	seen := body[:min(len(body), BodyLimit)]
	switch {
	case len(c.body) > 0 && (len(body) > BodyLimit || !bytes.Equal(bytes.TrimSpace(body), c.body)):
		return fmt.Errorf("body %s, want %s", Quote(body), Quote(c.body))
	case !bytes.Contains(seen, []byte(c.expect.BodyContains)):
		return fmt.Errorf("body %s does not contain %s", Quote(body), Quote([]byte(c.expect.BodyContains)))
	case c.regex != nil && !c.regex.Match(seen):
		return fmt.Errorf("body %s does not match %q", Quote(body), c.expect.BodyRegex)
	}
	return nil
}

// Quote returns the beginning of body in quotes, with control characters
// escaped, for an error.
func Quote(body []byte) string {
	const limit = 64
	if len(body) > limit {
		return fmt.Sprintf("%q…", body[:limit])
	}
	return fmt.Sprintf("%q", body)
}
