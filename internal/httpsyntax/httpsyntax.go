// Package httpsyntax checks the parts of an HTTP request that operators write:
// methods, headers, URLs. Its errors say what is wrong with a text, "has no
// host", and do not repeat it, because it may contain a secret; those about the
// name of a header begin with it.
package httpsyntax

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"understudy/internal/address"
	"understudy/internal/redact"
)

// CheckMethod returns nil when method is valid in a request to a service; case
// matters. CONNECT is not: it requests a tunnel from a proxy.
func CheckMethod(method string) error {
	if !isToken(method) || method == http.MethodConnect {
		return errors.New("is not a request method")
	}
	return nil
}

// CheckHeaderName returns nil when a header of that name, in any case, may be
// sent in addition to those that are about the connection.
func CheckHeaderName(name string) error {
	if !isToken(name) {
		return fmt.Errorf("%s is not the name of a header", redact.Quote(name))
	}
	switch strings.ToLower(name) {
	case "connection", "content-length", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade":
		return fmt.Errorf("%s is a header that understudy sets itself", name)
	}
	return nil
}

// CheckHeaderValue returns nil when value contains nothing that would end its
// header.
func CheckHeaderValue(value string) error {
	if strings.ContainsFunc(value, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) {
		return errors.New("has a control character in its value")
	}
	return nil
}

// isToken reports whether text is a token as defined in RFC 9110, section
// 5.6.2.
func isToken(text string) bool {
	return text != "" && len(text) <= 256 && !strings.ContainsFunc(text, func(c rune) bool {
		return c <= ' ' || c >= 0x7f || strings.ContainsRune(`()<>@,;:\"/[]?={}`, c)
	})
}

// ErrUser is the error of [ParseURL] about a user or a password in the URL.
var ErrUser = errors.New("has a user in it")

// ParseURL parses a URL that can be requested: http or https, with a host and
// without a user or a fragment.
func ParseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("is not a URL: want one like http://host:port/path")
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("is not a URL with http or https: want one like http://host:port/path")
	case u.Hostname() == "":
		return nil, errors.New("has no host: want one like http://host:port/path")
	case u.User != nil:
		return nil, ErrUser
	case strings.Contains(text, "#"):
		return nil, errors.New("has a fragment, which is never sent")
	case strings.ContainsFunc(text, func(c rune) bool { return c <= ' ' || c == 0x7f }):
		return nil, errors.New("has a space or a control character in it")
	case strings.HasSuffix(u.Host, ":"):
		return nil, errors.New("has no port behind its colon")
	}
	host := u.Host
	if u.Port() == "" {
		host += ":80" // any port: only the name is checked
	}
	if _, err := address.ParseHost(host); err != nil {
		return nil, err
	}
	return u, nil
}
