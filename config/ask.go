package config

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxBody is how much of a body or an answer is compared.
const maxBody = 64 << 10

var clientTLSKeys = []key[ClientTLS]{
	{name: "server_name", value: "name", help: "name for SNI and the certificate, instead of the host's",
		parse: one(hostName, func(t *ClientTLS, v string) { t.ServerName = v })},
	{name: "ca", value: "file", help: "authorities to believe instead of the system's (PEM)",
		parse: one(authorities, func(t *ClientTLS, v string) { t.CA = v })},
	{name: "cert", value: "file", help: "certificate to show; needs key",
		parse: one(text, func(t *ClientTLS, v string) { t.Cert = v })},
	{name: "key", value: "file", help: "private key of cert",
		parse: one(text, func(t *ClientTLS, v string) { t.Key = v })},
	{name: "skip_verify", value: "true or false", fallback: "false", help: "believe any certificate",
		parse: one(onOff, func(t *ClientTLS, v bool) { t.SkipVerify = v })},
}

// clientTLS reads how a TLS server is spoken to.
func clientTLS(r *reader, s spot, to *ClientTLS) {
	given, _ := decode(r, s, clientTLSKeys, to, nil)
	cert, key := given["cert"], given["key"]
	if cert.node != nil || key.node != nil {
		r.d.checkPair(r.atOr(cert, s), to.Cert, r.atOr(key, s), to.Key)
	}
	if to.SkipVerify && (to.CA != "" || to.ServerName != "") {
		r.problem(given["skip_verify"], "contradicts ca and server_name: nothing is verified")
	}
	to.Digest = digest(to.CA, to.Cert, to.Key)
}

// digest tells what files hold from what they held before. A file that cannot
// be read is reported elsewhere.
func digest(files ...string) string {
	h := sha256.New()
	for _, file := range files {
		if file == "" {
			continue
		}
		text, _ := os.ReadFile(file) //nolint:gosec // the operator names the file
		fmt.Fprintf(h, "%d:%s", len(text), text)
	}
	if strings.Join(files, "") == "" {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil))
}

// atOr is the origin of s, or of the map around it if it is not there.
func (r *reader) atOr(s, around spot) Origin {
	if s.node == nil {
		return r.at(around)
	}
	return r.at(s)
}

// checkPair reports a certificate and a key that cannot be used together.
func (d *draft) checkPair(certAt Origin, cert string, keyAt Origin, key string) {
	switch {
	case cert == "":
		d.problem(keyAt, errors.New("the key needs its certificate as well"))
		return
	case key == "":
		d.problem(certAt, errors.New("the certificate needs its key as well"))
		return
	}
	certPEM, err := os.ReadFile(cert) //nolint:gosec // the operator names the file
	if err != nil {
		d.problem(certAt, err)
	}
	keyPEM, err2 := os.ReadFile(key) //nolint:gosec // the operator names the file
	if err2 != nil {
		d.problem(keyAt, err2)
	}
	if err != nil || err2 != nil {
		return
	}
	if _, err := tls.X509KeyPair(certPEM, keyPEM); err != nil {
		d.problem(certAt, fmt.Errorf("%s and %s: %s", cert, key, strings.TrimPrefix(err.Error(), "tls: ")))
	}
}

// authorities accepts a file of certificates.
func authorities(file string) (string, error) {
	pem, err := os.ReadFile(file) //nolint:gosec // the operator names the file
	if err != nil {
		return "", fmt.Errorf("cannot be read: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return "", errors.New("holds no certificate (PEM)")
	}
	return file, nil
}

// criteriaKeys are of whatever says what an HTTP answer must be.
var criteriaKeys = []key[criteria]{
	{name: "status", value: "list", list: true, help: "numbers and classes that pass: 200, 2xx",
		parse: each(status, func(c *criteria, v string) { c.status = append(c.status, v) })},
	{name: "body", value: "text", help: "what the body must equal, white space around both aside",
		parse: one(bodyText, func(c *criteria, v string) { c.body = v })},
	{name: "body_contains", value: "text", help: "what the body must contain",
		parse: one(rawText, func(c *criteria, v string) { c.contains = v })},
	{name: "body_regex", value: "regular expression", help: "what the body must match somewhere (Go's syntax)",
		parse: one(regularExpression, func(c *criteria, v string) { c.regex = v })},
}

// criteria are what [AskHTTP] and [Verdict] say about an answer.
type criteria struct {
	status                []string
	body, contains, regex string
}

// wantsBody says whether any of them looks at the body.
func (c criteria) wantsBody() bool { return c.body != "" || c.contains != "" || c.regex != "" }

// check reports criteria that no answer can meet together.
func (c criteria) check(r *reader, given map[string]spot) {
	if at, ok := given["status"]; ok && len(c.status) > 0 {
		final := slices.ContainsFunc(c.status, func(s string) bool { return s[0] != '1' })
		if !final {
			r.problem(at, "names no status that an answer can end with")
		}
		empty := !slices.ContainsFunc(c.status, func(s string) bool { return s[0] != '1' && s != "204" && s != "304" })
		if final && empty && c.wantsBody() {
			r.problem(at, "%s has no body, and one is asked for", strings.Join(c.status, ", "))
		}
	}
	if c.body == "" {
		return
	}
	if c.contains != "" && !strings.Contains(c.body, c.contains) && !strings.Contains(strings.TrimSpace(c.contains), strings.TrimSpace(c.body)) {
		r.problem(given["body_contains"], "%s cannot be in a body that equals %s", quote(c.contains), quote(c.body))
	}
	// White space around the body may be there or not, so only what matches
	// neither way is sure to fail.
	if regex, err := regexp.Compile(c.regex); err == nil && c.regex != "" && !strings.Contains(c.regex, `\s`) &&
		!regex.MatchString(c.body) && !regex.MatchString(strings.TrimSpace(c.body)) && !regex.MatchString("\n"+strings.TrimSpace(c.body)+"\n") {
		r.problem(given["body_regex"], "%s matches no body that equals %s", quote(c.regex), quote(c.body))
	}
}

// httpKeys are of checks and probes alike.
var httpKeys = []key[AskHTTP]{
	{name: "method", value: "word", fallback: http.MethodGet, help: "request method",
		parse: one(method, func(a *AskHTTP, v string) { a.Method = v })},
	{name: "headers", value: "map", help: "headers to send; a value is a text, a list of them, or `{file: …}` or `{env: …}` for a secret",
		read: func(r *reader, s spot, a *AskHTTP) { a.Headers = r.headers(s) }},
	{name: "request_body", value: "text", help: "body to send",
		parse: one(rawText, func(a *AskHTTP, v string) { a.RequestBody = v })},
	{name: "tls", value: "map", help: "how a TLS server is spoken to; see below",
		read: func(r *reader, s spot, a *AskHTTP) { clientTLS(r, s, &a.TLS) }},
}

// checkHTTPKeys say where a check asks, probeHTTPKeys where a probe does.
var (
	checkHTTPKeys = []key[AskHTTP]{
		{name: "port", value: "number", help: "port of the host to ask; its own when not given",
			parse: one(port, func(a *AskHTTP, v int) { a.Port = v })},
		{name: "path", value: "path", fallback: "/", help: "what to ask for",
			parse: one(urlTarget, func(a *AskHTTP, v string) { a.Path = v })},
		{name: "https", value: "true or false", fallback: "false", help: "speak TLS",
			parse: one(onOff, func(a *AskHTTP, v bool) { a.HTTPS = v })},
	}
	probeHTTPKeys = []key[AskHTTP]{
		{name: "url", value: "URL", help: "what to ask for (required)",
			parse: one(askURL, func(a *AskHTTP, v string) { a.URL = v })},
	}
)

// askHTTP reads a request and what its answer must be.
func askHTTP(r *reader, s spot, to *Ask, probe bool) {
	a := new(httpQuestion)
	given, ok := decode(r, s, httpKeysOf(probe), a, func(key string) string {
		switch {
		case probe && slices.Contains([]string{"port", "path", "https"}, key):
			return "is for a relay's check: a probe has a url"
		case !probe && key == "url":
			return "is for a probe: a check asks the host, at port and path"
		}
		return ""
	})
	if !ok {
		return
	}
	a.check(r, given)
	secure := a.HTTPS || strings.HasPrefix(strings.ToLower(a.URL), "https:")
	switch {
	case probe && given["url"].node == nil:
		r.problem(s, "needs a url")
	case given["tls"].node != nil && !secure && (!probe || a.URL != ""):
		r.problem(given["tls"], "is for https")
	}
	if a.Method == http.MethodHead && a.wantsBody() {
		r.problem(given["method"], "HEAD is answered without a body, and one is asked for")
	}
	a.Status, a.Body, a.BodyContains, a.BodyRegex = a.status, a.body, a.contains, a.regex
	to.HTTP = &a.AskHTTP
}

// httpQuestion is a request with the criteria of its answer beside it.
type httpQuestion struct {
	AskHTTP
	criteria
}

// httpKeysOf are the keys of a request, of a probe or of a check.
func httpKeysOf(probe bool) []key[httpQuestion] {
	where := checkHTTPKeys
	if probe {
		where = probeHTTPKeys
	}
	return slices.Concat(
		lift(slices.Concat(where, httpKeys), func(q *httpQuestion) *AskHTTP { return &q.AskHTTP }),
		lift(criteriaKeys, func(q *httpQuestion) *criteria { return &q.criteria }),
	)
}

var (
	checkTCPKeys = []key[AskTCP]{
		{name: "port", value: "number", help: "port of the host to connect to; its own when not given",
			parse: one(port, func(a *AskTCP, v int) { a.Port = v })},
	}
	probeTCPKeys = []key[AskTCP]{
		{name: "address", value: "host:port", help: "where to connect to, or unix:/path (required)",
			parse: one(hostAddress, func(a *AskTCP, v string) { a.Address = v })},
	}
	tcpKeys = []key[AskTCP]{
		{name: "send", value: "text", help: "what to send after the connect",
			parse: one(rawText, func(a *AskTCP, v string) { a.Send = v })},
		{name: "expect", value: "text", help: "what the answer must contain; without it the connect is enough",
			parse: one(rawText, func(a *AskTCP, v string) { a.Expect = v })},
	}
	execKeys = []key[AskExec]{
		{name: "command", value: "list", help: "absolute path and arguments; there is no shell in between (required)",
			read: command},
	}
	flagKeys = []key[AskFlag]{
		{name: "dir", value: "directory", help: "where flag files are (required)",
			parse: one(text, func(a *AskFlag, v string) { a.Dir = v })},
		{name: "name", value: "name", help: "the file (required)",
			parse: one(flagName, func(a *AskFlag, v string) { a.Name = v })},
		{name: "absent", value: "true or false", fallback: "false", help: "pass when the file is not there",
			parse: one(onOff, func(a *AskFlag, v bool) { a.Absent = v })},
	}
	vipKeys = []key[AskVIP]{
		{name: "addresses", value: "list", list: true, help: "IP addresses, all of which must be this machine's (required)",
			parse: each(vipAddress, func(a *AskVIP, v netip.Addr) { a.Addresses = append(a.Addresses, v) })},
		{name: "any_interface", value: "true or false", fallback: "false", help: "of any interface, not the loopback ones only",
			parse: one(onOff, func(a *AskVIP, v bool) { a.AnyInterface = v })},
	}
)

// kindKeys are the kinds of questions; exactly one of them is given.
func kindKeys(probe bool) []key[Ask] {
	tcp := slices.Concat(checkTCPKeys, tcpKeys)
	if probe {
		tcp = slices.Concat(probeTCPKeys, tcpKeys)
	}
	return []key[Ask]{
		{name: "http", value: "map", help: "ask over HTTP",
			read: func(r *reader, s spot, to *Ask) { askHTTP(r, s, to, probe) }},
		{name: "tcp", value: "map", help: "connect, and perhaps send and expect something",
			read: func(r *reader, s spot, to *Ask) {
				to.TCP = new(AskTCP)
				given, ok := decode(r, s, tcp, to.TCP, nil)
				if ok && probe && given["address"].node == nil {
					r.problem(s, "needs an address")
				}
			}},
		{name: "exec", value: "map", help: "run a command; exit status 0 passes. A check gets the host as its last argument",
			read: func(r *reader, s spot, to *Ask) {
				to.Exec = new(AskExec)
				if given, ok := decode(r, s, execKeys, to.Exec, nil); ok && given["command"].node == nil {
					r.problem(s, "needs a command")
				}
			}},
		{name: "flag", value: "map", help: "look for a flag file",
			read: func(r *reader, s spot, to *Ask) {
				to.Flag = new(AskFlag)
				given, ok := decode(r, s, flagKeys, to.Flag, nil)
				if ok && (given["dir"].node == nil || given["name"].node == nil) {
					r.problem(s, "needs dir and name")
				}
			}},
		{name: "vip", value: "map", help: "look for addresses of this machine",
			read: func(r *reader, s spot, to *Ask) {
				to.VIP = new(AskVIP)
				given, ok := decode(r, s, vipKeys, to.VIP, nil)
				if at, found := given["addresses"]; ok && !found {
					r.problem(s, "needs addresses")
				} else if ok && isEmpty(at) {
					r.problem(at, "is empty")
				}
			}},
	}
}

// askKinds are the names of the kinds.
var askKinds = []string{"http", "tcp", "exec", "flag", "vip"}

// oneKind reports a question that has no kind or several.
func (r *reader) oneKind(s spot, given map[string]spot) {
	var kinds []string
	for _, kind := range askKinds {
		if _, ok := given[kind]; ok {
			kinds = append(kinds, kind)
		}
	}
	switch len(kinds) {
	case 0:
		r.problem(s, "asks nothing: want one of %s", alternatives(askKinds))
	case 1:
	default:
		r.problem(s, "asks by %s at once: make them separate", strings.Join(kinds, " and "))
	}
}

var checkKeys = slices.Concat([]key[Ask]{
	{name: "interval", value: "duration", help: "from one start to the next; the relay's interval when not given (exec: its check_interval)",
		parse: one(duration(time.Millisecond), func(a *Ask, v time.Duration) { a.Interval = v })},
	{name: "timeout", value: "duration", help: "time that one may take; the relay's timeout when not given (exec: its check_timeout)",
		parse: one(duration(time.Millisecond), func(a *Ask, v time.Duration) { a.Timeout = v })},
}, kindKeys(false))

// checks reads a list of checks. It is not nil, so that an empty list is told
// from none.
func (r *reader) checks(s spot) []Ask {
	checks := []Ask{}
	items, _ := r.items(s, maxList)
	for _, item := range items {
		var a Ask
		if given, ok := decode(r, item, checkKeys, &a, nil); ok {
			r.oneKind(item, given)
		}
		checks = append(checks, a)
	}
	return checks
}

// inherit returns checks with what they do not say themselves, taken from
// their relay.
func inherit(checks []Ask, from Relay) []Ask {
	checks = slices.Clone(checks)
	for i := range checks {
		a := &checks[i]
		interval, timeout := from.Interval, from.Timeout
		if a.Exec != nil {
			interval, timeout = from.CheckInterval, from.CheckTimeout
		}
		if a.Interval == 0 {
			a.Interval = interval
		}
		if a.Timeout == 0 {
			a.Timeout = timeout
		}
	}
	return checks
}

var probeKeys = slices.Concat([]key[Probe]{
	{name: "interval", value: "duration", fallback: "3s", help: "from one start to the next",
		parse: one(duration(time.Millisecond), func(p *Probe, v time.Duration) { p.Interval = v })},
	{name: "timeout", value: "duration", fallback: "2s", help: "time that one may take",
		parse: one(duration(time.Millisecond), func(p *Probe, v time.Duration) { p.Timeout = v })},
	{name: "rise", value: "number", fallback: "2", help: "passes in a row until it is up",
		parse: one(number(1, 1000), func(p *Probe, v int) { p.Rise = v })},
	{name: "fall", value: "number", fallback: "2", help: "failures in a row until it is down",
		parse: one(number(1, 1000), func(p *Probe, v int) { p.Fall = v })},
	{name: "jitter", value: "duration", fallback: "0", help: "each interval is longer by a random part of it, at most",
		parse: one(duration(0), func(p *Probe, v time.Duration) { p.Jitter = v })},
}, lift(kindKeys(true), func(p *Probe) *Ask { return &p.Ask }))

// probes reads the map of probes.
func (r *reader) probes(s spot) {
	entries, _ := r.entries(s, maxProbes)
	for _, e := range entries {
		p := Probe{Name: e.key}
		if _, err := name(e.key); err != nil {
			r.problem(e, "%s %v", quote(e.key), err)
		}
		for _, relay := range r.file.relays {
			if relay.name == e.key {
				r.problem(e, "%s is the name of a relay already", quote(e.key))
			}
		}
		if !r.file.listed && e.key == MainRelay {
			r.problem(e, "%s is the name of the relay", quote(e.key))
		}
		if given, ok := decode(r, e, probeKeys, &p, nil); ok {
			r.oneKind(e, given)
			if at, ok := given["jitter"]; ok && p.Jitter > p.Interval {
				r.problem(at, "is longer than the interval, %v", p.Interval)
			}
		}
		r.file.probes = append(r.file.probes, p)
	}
}

// headers reads the headers of a request.
func (r *reader) headers(s spot) (headers [][2]string) {
	entries, _ := r.entries(s, maxList)
	for _, e := range entries {
		if err := checkHeaderName(e.key); err != nil {
			r.problem(e, "%v", err)
			continue
		}
		if isMap(e) {
			if secret := r.secretOf(e); secret.IsSet() {
				headers = append(headers, [2]string{e.key, secret.value})
				r.headerValue(e, secret.value)
			}
			continue
		}
		texts, ok := r.texts(e)
		if !ok {
			continue
		}
		for _, text := range texts {
			r.headerValue(e, text)
			headers = append(headers, [2]string{e.key, text})
		}
		shown := strings.Join(texts, ",")
		if secretHeader(e.key) {
			shown = masked
			r.warn(e, "holds a secret in the file itself: name a file or a variable, like {file: /etc/understudy/secret}")
		}
		r.record(e.path, shown, r.at(e))
	}
	return headers
}

// headerValue reports a value that would end the header.
func (r *reader) headerValue(s spot, value string) {
	if strings.ContainsFunc(value, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) {
		r.problem(s, "has a control character in its value")
	}
	if len(value) > maxBody {
		r.problem(s, "has %d bytes, more than %d", len(value), maxBody)
	}
}

// secretHeader says whether the header of that name is one that carries
// secrets.
func secretHeader(name string) bool {
	name = strings.ToLower(name)
	for _, part := range []string{"authorization", "cookie", "token", "secret", "api-key", "apikey", "password"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// checkHeaderName says what is wrong with the name of a header.
func checkHeaderName(name string) error {
	if !isToken(name) {
		return fmt.Errorf("%s is not the name of a header", quote(name))
	}
	switch strings.ToLower(name) {
	case "connection", "content-length", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade":
		return fmt.Errorf("%s is a header that understudy sets itself", name)
	}
	return nil
}

// isToken says whether text is a token as RFC 9110 has it.
func isToken(text string) bool {
	return text != "" && len(text) <= 256 && !strings.ContainsFunc(text, func(c rune) bool {
		return c <= ' ' || c >= 0x7f || strings.ContainsRune(`()<>@,;:\"/[]?={}`, c)
	})
}

// text accepts anything but nothing.
func text(text string) (string, error) {
	switch {
	case text == "":
		return "", errors.New("is empty")
	case strings.IndexByte(text, 0) >= 0:
		return "", errors.New("has a zero byte in it")
	}
	return text, nil
}

// rawText accepts what is sent, or looked for.
func rawText(text string) (string, error) {
	switch {
	case text == "":
		return "", errors.New("is empty")
	case len(text) > maxBody:
		return "", fmt.Errorf("has %d bytes, more than the %d that are looked at", len(text), maxBody)
	}
	return text, nil
}

// bodyText accepts a body to compare with.
func bodyText(text string) (string, error) {
	if strings.TrimSpace(text) == "" {
		return "", errors.New("is empty, or white space, which is dropped before comparing")
	}
	return rawText(text)
}

// status accepts "200" and "2xx".
func status(text string) (string, error) {
	text = strings.ToLower(text)
	if len(text) == 3 && text[0] >= '1' && text[0] <= '5' {
		if text[1:] == "xx" {
			return text, nil
		}
		if _, err := number(100, 599)(text); err == nil {
			return text, nil
		}
	}
	return "", errors.New("is neither a status from 100 to 599 nor a class from 1xx to 5xx")
}

func regularExpression(text string) (string, error) {
	if len(text) > maxBody {
		return "", fmt.Errorf("has %d bytes, more than %d", len(text), maxBody)
	}
	if text == "" {
		return "", errors.New("is empty")
	}
	if _, err := regexp.Compile(text); err != nil {
		return "", errors.New("is not a regular expression: " + strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	return text, nil
}

// method accepts request methods, which are upper case by custom.
func method(text string) (string, error) {
	text = strings.ToUpper(text)
	if !isToken(text) || text == http.MethodConnect {
		return "", errors.New("is not a method to ask with")
	}
	return text, nil
}

// askURL accepts what a probe can ask for.
func askURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil {
		return "", errors.New("is not a URL: want one like http://host:port/path")
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return "", errors.New("is not a URL with http or https: want one like http://host:port/path")
	case u.Hostname() == "":
		return "", errors.New("has no host: want one like http://host:port/path")
	case u.User != nil:
		return "", errors.New("has a user in it: send an Authorization header, from a file")
	case u.Fragment != "" || strings.Contains(text, "#"):
		return "", errors.New("has a fragment, which is never sent")
	case strings.ContainsFunc(text, func(c rune) bool { return c <= ' ' || c == 0x7f }):
		return "", errors.New("has a space or a control character in it")
	}
	host := u.Host
	if u.Port() == "" {
		host = strings.TrimSuffix(host, ":") + ":80"
	}
	return text, checkHost(host)
}

// endpointURL accepts an endpoint.
func endpointURL(text string) (string, error) {
	text, err := askURL(text)
	if err != nil && strings.Contains(err.Error(), "has a user") {
		err = errors.New("has a user in it, which is not sent")
	}
	return text, err
}

var userinfo = regexp.MustCompile(`//[^/@,]*@`)

// withoutPasswords masks what stands for a user in URLs, though none is
// accepted.
func withoutPasswords(urls string) string { return userinfo.ReplaceAllString(urls, "//"+masked+"@") }

// hostAddress accepts what can be connected to.
func hostAddress(text string) (string, error) { return text, checkHost(text) }

func hostName(text string) (string, error) {
	if _, err := netip.ParseAddr(text); err == nil {
		return text, nil
	}
	return text, checkName(text)
}

// command reads a command: a list, or a path alone.
func command(r *reader, s spot, to *AskExec) {
	texts, ok := r.texts(s)
	if !ok {
		return
	}
	var quoted []string
	for _, text := range texts {
		if strings.IndexByte(text, 0) >= 0 {
			r.problem(s, "has a zero byte in it")
		}
		quoted = append(quoted, shown(text))
	}
	switch {
	case len(texts) == 0:
		r.problem(s, "is empty")
	case !filepath.IsAbs(texts[0]):
		r.problem(s, "%s is not an absolute path: want a list like [/usr/local/bin/check, argument]", quote(texts[0]))
	}
	to.Command = texts
	r.record(s.path, strings.Join(quoted, " "), r.at(s))
}

// shown is an argument as a shell would take it, nearly.
func shown(text string) string {
	if text == "" || bytes.ContainsAny([]byte(text), " \t\"'\\\n") {
		return strconv.Quote(text)
	}
	return text
}

// flagName accepts names of files in a directory of flags.
func flagName(text string) (string, error) {
	switch {
	case text == "":
		return "", errors.New("is empty")
	case text == "." || text == "..":
		return "", errors.New("is a directory")
	case len(text) > 255: // NAME_MAX
		return "", errors.New("is longer than 255 bytes")
	case strings.ContainsFunc(text, func(c rune) bool { return c == '/' || c < ' ' || c == 0x7f }):
		return "", errors.New("has a slash or a control character in it")
	}
	return text, nil
}

// vipAddress accepts an address without a zone.
func vipAddress(text string) (netip.Addr, error) {
	addr, err := ipAddress(text)
	if err == nil && addr.Zone() != "" {
		err = errors.New("has a zone, which no address to look for has")
	}
	return addr.Unmap(), err
}
