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
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"understudy/internal/address"
	"understudy/internal/criteria"
	"understudy/internal/flagfile"
	"understudy/internal/greeting"
	"understudy/internal/httpsyntax"
	"understudy/internal/redact"
)

// maxBody is the number of bytes of a body or an answer that are compared.
const maxBody = criteria.BodyLimit

var clientTLSKeys = []key[ClientTLS]{
	{name: "server_name", value: "name", help: "name for SNI and the certificate, instead of the host's",
		parse: one(hostName, func(t *ClientTLS, v string) { t.ServerName = v })},
	{name: "ca", value: "file", help: "authorities to trust instead of the system's (PEM)",
		parse: one(authorities, func(t *ClientTLS, v string) { t.CA = v })},
	{name: "cert", value: "file", help: "client certificate; needs key",
		parse: one(text, func(t *ClientTLS, v string) { t.Cert = v })},
	{name: "key", value: "file", help: "private key of cert",
		parse: one(text, func(t *ClientTLS, v string) { t.Key = v })},
	{name: "skip_verify", value: "true or false", fallback: "false", help: "accept any certificate",
		parse: one(onOff, func(t *ClientTLS, v bool) { t.SkipVerify = v })},
}

// clientTLS reads the settings of TLS connections to a server.
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

// digest returns a hash of the content of files, so that a reload notices a
// change. A file that cannot be read is reported elsewhere.
func digest(files ...string) string {
	h := sha256.New()
	for _, file := range files {
		if file == "" {
			continue
		}
		text, _ := readRegular(file)
		fmt.Fprintf(h, "%d:%s", len(text), text)
	}
	if strings.Join(files, "") == "" {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil))
}

// atOr returns the origin of s, or of the map around it if s was not given.
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
		d.problem(keyAt, errors.New("the key needs a certificate"))
		return
	case key == "":
		d.problem(certAt, errors.New("the certificate needs a key"))
		return
	}
	certPEM, err := readRegular(cert)
	if err != nil {
		d.problem(certAt, err)
	}
	keyPEM, err2 := readRegular(key)
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
	pem, err := readRegular(file)
	if err != nil {
		return "", fmt.Errorf("cannot be read: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return "", errors.New("holds no certificate (PEM)")
	}
	return file, nil
}

// criteriaKeys are the keys for an expected HTTP answer.
var criteriaKeys = []key[criteria.Expect]{
	{name: "status", value: "list", list: true, help: "numbers and classes that pass: 200, 2xx",
		parse: each(status, func(e *criteria.Expect, v string) { e.Status = append(e.Status, v) })},
	{name: "body", value: "text", help: "what the body must equal; white space around both is ignored",
		parse: one(bodyText, func(e *criteria.Expect, v string) { e.Body = v })},
	{name: "body_contains", value: "text", help: "what the body must contain",
		parse: one(rawText, func(e *criteria.Expect, v string) { e.BodyContains = v })},
	{name: "body_regex", value: "regular expression", help: "what the body must match somewhere (Go's syntax)",
		parse: one(regularExpression, func(e *criteria.Expect, v string) { e.BodyRegex = v })},
}

// checkExpect reports criteria that no answer can meet at once.
func checkExpect(r *reader, given map[string]spot, e criteria.Expect) {
	if at, ok := given["status"]; ok && len(e.Status) > 0 {
		final := slices.ContainsFunc(e.Status, func(s string) bool { return s[0] != '1' })
		if !final {
			r.problem(at, "names no status that an answer can end with")
		}
		empty := !slices.ContainsFunc(e.Status, func(s string) bool { return s[0] != '1' && s != "204" && s != "304" })
		if final && empty && e.WantsBody() {
			r.problem(at, "%s has no body, but a body is expected", strings.Join(e.Status, ", "))
		}
	}
	if e.Body == "" {
		return
	}
	if e.BodyContains != "" && !strings.Contains(e.Body, e.BodyContains) && !strings.Contains(strings.TrimSpace(e.BodyContains), strings.TrimSpace(e.Body)) {
		r.problem(given["body_contains"], "%s cannot be in a body that equals %s", quote(e.BodyContains), quote(e.Body))
	}
	// A body may have white space around it, so an expression always fails only if
	// it matches neither with nor without it.
	if regex, err := regexp.Compile(e.BodyRegex); err == nil && e.BodyRegex != "" && !strings.Contains(e.BodyRegex, `\s`) &&
		!regex.MatchString(e.Body) && !regex.MatchString(strings.TrimSpace(e.Body)) && !regex.MatchString("\n"+strings.TrimSpace(e.Body)+"\n") {
		r.problem(given["body_regex"], "%s matches no body that equals %s", quote(e.BodyRegex), quote(e.Body))
	}
}

// httpKeys are the keys of both HTTP checks and HTTP probes.
var httpKeys = []key[HTTPCheck]{
	{name: "method", value: "word", fallback: http.MethodGet, help: "request method",
		parse: one(method, func(a *HTTPCheck, v string) { a.Method = v })},
	{name: "headers", value: "map", help: "headers to send; a value is a text, a list of them, or `{file: …}` or `{env: …}` for a secret",
		read: func(r *reader, s spot, a *HTTPCheck) { a.Headers = r.headers(s) }},
	{name: "request_body", value: "text", help: "body to send",
		parse: one(rawText, func(a *HTTPCheck, v string) { a.RequestBody = v })},
	{name: "tls", value: "map", help: "TLS connections to the server; see below",
		read: func(r *reader, s spot, a *HTTPCheck) { clientTLS(r, s, &a.TLS) }},
}

// checkHTTPKeys are the keys for the target of a check, probeHTTPKeys for that of a
// probe.
var (
	checkHTTPKeys = []key[HTTPCheck]{
		{name: "port", value: "number", help: "port of the host to request from; default: the host's own",
			parse: one(port, func(a *HTTPCheck, v int) { a.Port = v })},
		{name: "path", value: "path", fallback: "/", help: "path to request",
			parse: one(urlTarget, func(a *HTTPCheck, v string) { a.Path = v })},
		{name: "https", value: "true or false", fallback: "false", help: "speak TLS",
			parse: one(onOff, func(a *HTTPCheck, v bool) { a.HTTPS = v })},
	}
	probeHTTPKeys = []key[HTTPCheck]{
		{name: "url", value: "URL", help: "path or URL to request (required)",
			parse: one(checkURL, func(a *HTTPCheck, v string) { a.URL = v })},
	}
)

// httpOf reads a request and the expected answer.
func httpOf(r *reader, s spot, to *Check, probe bool) {
	a := new(HTTPCheck)
	given, ok := decode(r, s, httpKeysOf(probe), a, func(key string) string {
		switch {
		case probe && slices.Contains([]string{"port", "path", "https"}, key):
			return "is for a relay's check: a probe has a url"
		case !probe && key == "url":
			return "is for a probe: a check connects to the host, at port and path"
		}
		return ""
	})
	if !ok {
		return
	}
	checkExpect(r, given, a.Expect)
	secure := a.HTTPS || strings.HasPrefix(strings.ToLower(a.URL), "https:")
	switch {
	case probe && given["url"].node == nil:
		r.problem(s, "needs a url")
	case given["tls"].node != nil && !secure && (!probe || a.URL != ""):
		r.problem(given["tls"], "is for https")
	}
	if a.Method == http.MethodHead && a.WantsBody() {
		r.problem(given["method"], "a response to HEAD has no body, but a body is expected")
	}
	to.HTTP = a
}

// httpKeysOf returns the keys of an HTTP probe or of an HTTP check.
func httpKeysOf(probe bool) []key[HTTPCheck] {
	where := checkHTTPKeys
	if probe {
		where = probeHTTPKeys
	}
	return slices.Concat(
		where, httpKeys,
		lift(criteriaKeys, func(a *HTTPCheck) *criteria.Expect { return &a.Expect }),
	)
}

var (
	checkTCPKeys = []key[TCPCheck]{
		{name: "port", value: "number", help: "port of the host to connect to; default: the host's own",
			parse: one(port, func(a *TCPCheck, v int) { a.Port = v })},
	}
	probeTCPKeys = []key[TCPCheck]{
		{name: "address", value: "host:port", help: "where to connect to, or unix:/path (required)",
			parse: one(hostAddress, func(a *TCPCheck, v string) { a.Address = v })},
	}
	tcpKeys = []key[TCPCheck]{
		{name: "send", value: "text", help: "what to send after the connect",
			parse: one(rawText, func(a *TCPCheck, v string) { a.Send = v })},
		{name: "expect", value: "text", help: "what the answer must contain; without it the connect is enough",
			parse: one(rawText, func(a *TCPCheck, v string) { a.Expect = v })},
		{name: "handshake", value: "protocol", help: "read the greeting of this protocol instead, without a login, and say goodbye: " + alternatives(greeting.Names()),
			parse: one(word(greeting.Names()...), func(a *TCPCheck, v string) { a.Handshake = v })},
	}
	execKeys = []key[ExecCheck]{
		{name: "command", value: "list", help: "absolute path and arguments; there is no shell in between (required)",
			read: command},
	}
	flagKeys = []key[FlagCheck]{
		{name: "dir", value: "directory", help: "where flag files are (required)",
			parse: one(text, func(a *FlagCheck, v string) { a.Dir = v })},
		{name: "name", value: "name", help: "the file (required)",
			parse: one(flagName, func(a *FlagCheck, v string) { a.Name = v })},
		{name: "absent", value: "true or false", fallback: "false", help: "pass when the file is not there",
			parse: one(onOff, func(a *FlagCheck, v bool) { a.Absent = v })},
	}
	vipKeys = []key[VIPCheck]{
		{name: "addresses", value: "list", list: true, help: "IP addresses, all of which must be this machine's (required)",
			parse: each(vipAddress, func(a *VIPCheck, v netip.Addr) { a.Addresses = append(a.Addresses, v) })},
		{name: "any_interface", value: "true or false", fallback: "false", help: "of any interface, not the loopback ones only",
			parse: one(onOff, func(a *VIPCheck, v bool) { a.AnyInterface = v })},
	}
)

// kindKeys returns the keys of the kinds of checks; exactly one of them is given.
func kindKeys(probe bool) []key[Check] {
	tcp := slices.Concat(checkTCPKeys, tcpKeys)
	var more []key[Check]
	if probe {
		tcp = slices.Concat(probeTCPKeys, tcpKeys)
		more = []key[Check]{{name: "sql", value: "map", help: "a query of a database", read: sqlOf}}
	}
	return slices.Concat([]key[Check]{
		{name: "http", value: "map", help: "an HTTP request",
			read: func(r *reader, s spot, to *Check) { httpOf(r, s, to, probe) }},
		{name: "tcp", value: "map", help: "connect, and perhaps send and expect something",
			read: func(r *reader, s spot, to *Check) {
				to.TCP = new(TCPCheck)
				given, ok := decode(r, s, tcp, to.TCP, nil)
				if ok && probe && given["address"].node == nil {
					r.problem(s, "needs an address")
				}
				if at, found := given["handshake"]; found && len(to.TCP.Send)+len(to.TCP.Expect) > 0 {
					r.problem(at, "excludes send and expect")
				}
			}},
		{name: "exec", value: "map", help: "run a command; exit status 0 passes. A check gets the host as its last argument",
			read: func(r *reader, s spot, to *Check) {
				to.Exec = new(ExecCheck)
				if given, ok := decode(r, s, execKeys, to.Exec, nil); ok && given["command"].node == nil {
					r.problem(s, "needs a command")
				}
			}},
		{name: "flag", value: "map", help: "look for a flag file",
			read: func(r *reader, s spot, to *Check) {
				to.Flag = new(FlagCheck)
				given, ok := decode(r, s, flagKeys, to.Flag, nil)
				if ok && (given["dir"].node == nil || given["name"].node == nil) {
					r.problem(s, "needs dir and name")
				}
			}},
		{name: "vip", value: "map", help: "look for addresses of this machine",
			read: func(r *reader, s spot, to *Check) {
				to.VIP = new(VIPCheck)
				given, ok := decode(r, s, vipKeys, to.VIP, nil)
				if at, found := given["addresses"]; ok && !found {
					r.problem(s, "needs addresses")
				} else if ok && isEmpty(at) {
					r.problem(at, "is empty")
				}
			}},
	}, more)
}

// kindsOf returns the names of the kinds.
func kindsOf(probe bool) (names []string) {
	for _, k := range kindKeys(probe) {
		names = append(names, k.name)
	}
	return names
}

// oneKind reports a check that has no kind, or several.
func (r *reader) oneKind(s spot, given map[string]spot, probe bool) {
	var kinds []string
	for _, kind := range kindsOf(probe) {
		if _, ok := given[kind]; ok {
			kinds = append(kinds, kind)
		}
	}
	switch len(kinds) {
	case 0:
		r.problem(s, "has no kind: set one of %s", alternatives(kindsOf(probe)))
	case 1:
	default:
		r.problem(s, "has several kinds (%s): make them separate", strings.Join(kinds, " and "))
	}
}

var checkKeys = slices.Concat([]key[Check]{
	{name: "interval", value: "duration", help: "time between starts; default: the relay's interval (exec: its check_interval)",
		parse: one(duration(time.Millisecond), func(a *Check, v time.Duration) { a.Interval = v })},
	{name: "timeout", value: "duration", help: "timeout of one check; default: the relay's timeout (exec: its check_timeout)",
		parse: one(duration(time.Millisecond), func(a *Check, v time.Duration) { a.Timeout = v })},
}, kindKeys(false))

// checks reads a list of checks. The result is not nil even if the list is empty:
// an empty list is not a missing one.
func (r *reader) checks(s spot, settings map[string]raw) []Check {
	checks := []Check{}
	items, _ := r.items(s, maxList)
	for _, item := range items {
		if r.role(item, settings) {
			continue
		}
		item = r.preset(item)
		var a Check
		given, ok := decode(r, item, checkKeys, &a, func(key string) string {
			if near := r.nearest(key, shortChecks()); near != "" {
				return "unknown key: did you mean " + near + "?"
			}
			return ""
		})
		if ok {
			r.oneKind(item, given, false)
		}
		checks = append(checks, a)
	}
	return checks
}

// inherit returns checks with missing times taken from their relay.
func inherit(checks []Check, from Relay) []Check {
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
	{name: "timeout", value: "duration", fallback: "2s", help: "timeout of one check",
		parse: one(duration(time.Millisecond), func(p *Probe, v time.Duration) { p.Timeout = v })},
	{name: "rise", value: "number", fallback: "2", help: "passes in a row until it is up",
		parse: one(number(1, 1000), func(p *Probe, v int) { p.Rise = v })},
	{name: "fall", value: "number", fallback: "2", help: "failures in a row until it is down",
		parse: one(number(1, 1000), func(p *Probe, v int) { p.Fall = v })},
	{name: "jitter", value: "duration", fallback: "0", help: "each interval is longer by a random part of it, at most",
		parse: one(duration(0), func(p *Probe, v time.Duration) { p.Jitter = v })},
}, lift(kindKeys(true), func(p *Probe) *Check { return &p.Check }))

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
			r.oneKind(e, given, true)
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
		if err := httpsyntax.CheckHeaderName(e.key); err != nil {
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
			shown = redact.Mask
			r.warn(e, "holds a secret in the file itself: name a file or a variable, like {file: /etc/understudy/secret}")
		}
		r.record(e.path, shown, r.at(e))
	}
	return headers
}

// headerValue reports a value that would end the header.
func (r *reader) headerValue(s spot, value string) {
	if err := httpsyntax.CheckHeaderValue(value); err != nil {
		r.problem(s, "%v", err)
	}
	if len(value) > maxBody {
		r.problem(s, "has %d bytes, more than %d", len(value), maxBody)
	}
}

// secretHeader reports whether headers of that name contain secrets.
func secretHeader(name string) bool {
	name = strings.ToLower(name)
	for _, part := range []string{"authorization", "cookie", "token", "secret", "api-key", "apikey", "password"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// text accepts any text that is not empty.
func text(text string) (string, error) {
	switch {
	case text == "":
		return "", errors.New("is empty")
	case strings.IndexByte(text, 0) >= 0:
		return "", errors.New("has a zero byte in it")
	}
	return text, nil
}

// rawText accepts text to send or to expect.
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
	return text, criteria.CheckStatus(text)
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

// method accepts request methods, and makes them upper case.
func method(text string) (string, error) {
	text = strings.ToUpper(text)
	return text, httpsyntax.CheckMethod(text)
}

// checkURL accepts the URL of a probe.
func checkURL(text string) (string, error) {
	_, err := httpsyntax.ParseURL(text)
	if errors.Is(err, httpsyntax.ErrUser) {
		err = fmt.Errorf("%w: send an Authorization header, from a file", err)
	}
	return text, err
}

// endpointURL accepts an endpoint.
func endpointURL(text string) (string, error) {
	_, err := httpsyntax.ParseURL(text)
	if errors.Is(err, httpsyntax.ErrUser) {
		err = fmt.Errorf("%w, which is not sent", err)
	}
	return text, err
}

// hostAddress accepts an address to connect to.
func hostAddress(text string) (string, error) { return text, checkHost(text) }

func hostName(text string) (string, error) {
	if _, err := address.ParseIP(text); err == nil {
		return text, nil
	}
	return text, address.CheckName(text)
}

// command reads a command: a list, or a path alone.
func command(r *reader, s spot, to *ExecCheck) {
	texts, ok := r.texts(s)
	if !ok {
		return
	}
	var quoted []string
	for _, text := range texts {
		if strings.IndexByte(text, 0) >= 0 {
			r.problem(s, "has a zero byte in it")
		}
		quoted = append(quoted, shown(redact.URL(text)))
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

// shown returns an argument quoted approximately as in a shell.
func shown(text string) string {
	if text == "" || bytes.ContainsAny([]byte(text), " \t\"'\\\n") {
		return strconv.Quote(text)
	}
	return text
}

// flagName accepts names of flag files.
func flagName(text string) (string, error) { return text, flagfile.CheckName(text) }

// vipAddress accepts an address without a zone.
func vipAddress(text string) (netip.Addr, error) {
	addr, err := ipAddress(text)
	if err == nil && addr.Zone() != "" {
		err = errors.New("has a zone, which no address to look for has")
	}
	return addr.Unmap(), err
}
