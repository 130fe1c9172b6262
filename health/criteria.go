package health

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// bodyLimit is how many bytes of a body are read and compared.
const bodyLimit = 64 << 10

// Expect says what an HTTP answer must be for a check to pass. Every criterion
// that is set must hold.
type Expect struct {
	// Status lists the status codes that pass, as numbers ("200") and classes
	// ("2xx"). Empty means "2xx": an error page never passes unasked.
	Status []string

	// Body is what the body must equal, byte for byte, after white space at
	// both ends of both is dropped. Empty asks for nothing.
	Body string

	// BodyContains is what the body must contain, byte for byte. Empty asks
	// for nothing.
	BodyContains string

	// BodyRegex is a Go regular expression that must match somewhere in the
	// body. Empty asks for nothing.
	BodyRegex string
}

// criteria is an Expect, compiled. It may be used from many goroutines.
type criteria struct {
	expect Expect
	codes  []statusRange
	body   []byte // trimmed
	regex  *regexp.Regexp
}

// statusRange is an inclusive range of status codes.
type statusRange struct{ from, to int }

// compile returns the criteria of e, or an error that names every bad one.
func (e Expect) compile() (*criteria, error) {
	if len(e.Status) == 0 {
		e.Status = []string{"2xx"}
	}
	c := &criteria{expect: e, body: bytes.TrimSpace([]byte(e.Body))}
	var errs []error
	for i, s := range e.Status {
		r, err := parseStatus(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("status[%d]: %w", i, err))
		}
		c.codes = append(c.codes, r)
	}
	switch {
	case e.Body != "" && len(c.body) == 0:
		errs = append(errs, fmt.Errorf("body: %q is white space, which is dropped before comparing", e.Body))
	case len(c.body) > bodyLimit:
		errs = append(errs, fmt.Errorf("body: %d bytes, more than the %d that are read", len(c.body), bodyLimit))
	}
	if len(e.BodyContains) > bodyLimit {
		errs = append(errs, fmt.Errorf("body_contains: %d bytes, more than the %d that are read", len(e.BodyContains), bodyLimit))
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

// parseStatus reads "200" or "2xx".
func parseStatus(s string) (statusRange, error) {
	if len(s) == 3 && s[0] >= '1' && s[0] <= '5' {
		if strings.EqualFold(s[1:], "xx") {
			from := int(s[0]-'0') * 100
			return statusRange{from, from + 99}, nil
		}
		if n, err := strconv.ParseUint(s, 10, 16); err == nil {
			return statusRange{int(n), int(n)}, nil
		}
	}
	return statusRange{}, fmt.Errorf("%q is neither a status from 100 to 599 nor a class from 1xx to 5xx", s)
}

// wantsBody reports whether any criterion looks at the body.
func (c *criteria) wantsBody() bool {
	return len(c.body) > 0 || c.expect.BodyContains != "" || c.regex != nil
}

// matchStatus returns nil when status passes, or an error that says what was
// wanted.
func (c *criteria) matchStatus(status int) error {
	passes := func(r statusRange) bool { return r.from <= status && status <= r.to }
	if slices.ContainsFunc(c.codes, passes) {
		return nil
	}
	return fmt.Errorf("status %d, want %s", status, strings.Join(c.expect.Status, " or "))
}

// matchBody returns nil when body passes, or an error that says what was
// wanted. A body longer than 64 KiB equals nothing, and is searched only so
// far.
func (c *criteria) matchBody(body []byte) error {
	seen := body[:min(len(body), bodyLimit)]
	switch {
	case len(c.body) > 0 && (len(body) > bodyLimit || !bytes.Equal(bytes.TrimSpace(body), c.body)):
		return fmt.Errorf("body %s, want %s", quoteBody(body), quoteBody(c.body))
	case !bytes.Contains(seen, []byte(c.expect.BodyContains)):
		return fmt.Errorf("body %s does not contain %s", quoteBody(body), quoteBody([]byte(c.expect.BodyContains)))
	case c.regex != nil && !c.regex.Match(seen):
		return fmt.Errorf("body %s does not match %q", quoteBody(body), c.expect.BodyRegex)
	}
	return nil
}

// quoteBody returns the beginning of body in quotes, with control characters
// escaped, for an error.
func quoteBody(body []byte) string {
	const limit = 64
	if len(body) > limit {
		return fmt.Sprintf("%q…", body[:limit])
	}
	return fmt.Sprintf("%q", body)
}
