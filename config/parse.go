package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	// maxHosts keeps a slip (a file pasted into HOSTS) from becoming a
	// thousand checks a second.
	maxHosts = 1000

	// maxDuration keeps sums of durations far from overflow.
	maxDuration = 10 * 365 * 24 * time.Hour

	// maxUnixPath is the longest path of a unix socket: sun_path less its
	// final zero, see unix(7).
	maxUnixPath = 107
)

// parser stores the items of one setting and returns every problem.
type parser[To any] func(to To, items []string) []error

type (
	addrValue   = netip.Addr
	prefixValue = netip.Prefix
)

var itoa = strconv.Itoa

// split makes the items of a list from what was written, with the space around
// them removed. Of a setting that is no list the last text counts.
func (s *Setting) split(texts []string) (items []string, errs []error) {
	if len(texts) == 0 {
		return nil, nil
	}
	if !s.List {
		item := strings.TrimSpace(texts[len(texts)-1])
		if item == "" {
			return nil, []error{errors.New("is empty")}
		}
		return []string{item}, nil
	}
	for _, text := range texts {
		for item := range strings.SplitSeq(text, ",") {
			item = strings.TrimSpace(item)
			items = append(items, item)
			if item == "" && len(errs) == 0 {
				errs = append(errs, fmt.Errorf("%s: item %d is empty", quote(text), len(items)))
			}
		}
	}
	return items, errs
}

// one makes a parser of a setting that is no list.
func one[To, T any](convert func(string) (T, error), store func(To, T)) parser[To] {
	return func(to To, items []string) []error {
		v, err := convert(items[0])
		if err != nil {
			return []error{fmt.Errorf("%s %w", quote(items[0]), err)}
		}
		store(to, v)
		return nil
	}
}

// each makes a parser of a list.
func each[To, T any](convert func(string) (T, error), store func(To, T)) parser[To] {
	return func(to To, items []string) (errs []error) {
		for _, item := range items {
			if more := one(convert, store)(to, []string{item}); more != nil {
				errs = append(errs, more...)
			}
		}
		return errs
	}
}

// hosts parses the list of hosts.
func hosts(d *draft, items []string) (errs []error) {
	if len(items) > maxHosts {
		return []error{fmt.Errorf("%d hosts are more than %d", len(items), maxHosts)}
	}
	seen := map[string]bool{}
	for _, item := range items {
		if err := checkHost(item); err != nil {
			errs = append(errs, fmt.Errorf("%s %w", quote(item), err))
			continue
		}
		// Names of hosts are the same in upper and lower case, paths are not.
		same := item
		if !strings.HasPrefix(item, "unix:") {
			same = strings.ToLower(item)
		}
		if seen[same] {
			errs = append(errs, fmt.Errorf("%s stands there twice", quote(item)))
			continue
		}
		seen[same] = true
		d.relay.Hosts = append(d.relay.Hosts, item)
	}
	return errs
}

// checkHost says what is wrong with a connection string.
func checkHost(text string) error {
	if path, ok := strings.CutPrefix(text, "unix:"); ok {
		return checkUnixPath(path)
	}
	name, portText, err := splitHostPort(text)
	if err != nil {
		return err
	}
	if _, err := port(portText); err != nil {
		return fmt.Errorf("has port %s, which %w", quote(portText), err)
	}
	if name == "" {
		return errors.New("has no host in front of the port")
	}
	if strings.HasPrefix(text, "[") {
		if addr, err := netip.ParseAddr(name); err != nil || !addr.Is6() {
			return fmt.Errorf("has %s in brackets, which is no IPv6 address", quote(name))
		}
		return nil
	}
	return checkName(name)
}

// splitHostPort splits at the last colon and says in the operator's terms what
// is missing.
func splitHostPort(text string) (host, port string, err error) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 || strings.HasSuffix(text, "]") {
		return "", "", errors.New("has no port: want host:port")
	}
	host, port = text[:i], text[i+1:]
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		if !ok {
			return "", "", errors.New("has a bracket that is not closed: want [address]:port")
		}
		return inner, port, nil
	}
	if strings.Contains(host, ":") {
		return "", "", errors.New("is ambiguous: want an IPv6 address in brackets, like [::1]:80")
	}
	return host, port, nil
}

// checkName accepts IPv4 addresses and host names. Underscores are no part of
// host names after RFC 1123, but container networks use them.
func checkName(name string) error {
	if len(name) > 253 {
		return errors.New("has a host name longer than 253 bytes")
	}
	numeric := true
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if label == "" || len(label) > 63 {
			return fmt.Errorf("has the host name %s: want labels of 1 to 63 bytes between dots", quote(name))
		}
		for _, c := range []byte(label) {
			digit := '0' <= c && c <= '9'
			numeric = numeric && digit
			if !digit && c != '-' && c != '_' && (c|0x20 < 'a' || c|0x20 > 'z') {
				return fmt.Errorf("has the host name %s, in which %s may not stand", quote(name), quote(string(rune(c))))
			}
		}
	}
	if numeric {
		// Some resolvers read 10.1 as 10.0.0.1, others ask a name server.
		if _, err := netip.ParseAddr(name); err != nil {
			return fmt.Errorf("has %s for a host, which is no IPv4 address", quote(name))
		}
	}
	return nil
}

func checkUnixPath(path string) error {
	switch {
	case !strings.HasPrefix(path, "/"):
		return errors.New("wants an absolute path, like unix:/run/app.sock")
	case len(path) > maxUnixPath:
		return fmt.Errorf("has a path longer than %d bytes", maxUnixPath)
	case strings.IndexByte(path, 0) >= 0:
		return errors.New("has a zero byte in its path")
	}
	return nil
}

// bindAddress accepts what can be listened on: "192.0.2.1:80", "[::]:80",
// ":80", "unix:/path". Port 0 lets the system choose.
func bindAddress(text string) (string, error) {
	if path, ok := strings.CutPrefix(text, "unix:"); ok {
		return text, checkUnixPath(path)
	}
	return httpAddress(text)
}

// httpAddress accepts "192.0.2.1:80", "[::]:80", "localhost:80" and ":80".
func httpAddress(text string) (string, error) {
	host, portText, err := splitHostPort(text)
	if err != nil {
		if _, bad := port(text); bad == nil {
			return "", fmt.Errorf("is a port alone: want address:port, like :%s", text)
		}
		return "", err
	}
	if portText != "0" {
		if _, err := port(portText); err != nil {
			return "", fmt.Errorf("has port %s, which %w", quote(portText), err)
		}
	}
	if host == "" {
		return text, nil
	}
	if host == "localhost" {
		return "127.0.0.1:" + portText, nil
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return "", errors.New("does not begin with an IP address of this machine: want address:port")
	}
	return text, nil
}

func port(text string) (int, error) { return number(1, 65535)(text) }

// number accepts whole numbers from lo to hi, in decimal digits only: a sign,
// a leading zero's octal or an underscore would be a guess.
func number(lo, hi int) func(string) (int, error) {
	return func(text string) (int, error) {
		for _, c := range []byte(text) {
			if c < '0' || c > '9' {
				return 0, fmt.Errorf("is not a number from %d to %d", lo, hi)
			}
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < lo || n > hi {
			return 0, fmt.Errorf("is not a number from %d to %d", lo, hi)
		}
		return n, nil
	}
}

// numberOr accepts a number, or the word that stands for zero.
func numberOr(zero string, lo, hi int) func(string) (int, error) {
	return func(text string) (int, error) {
		if text == zero {
			return 0, nil
		}
		n, err := number(lo, hi)(text)
		if err != nil {
			err = fmt.Errorf("%w, or %s", err, zero)
		}
		return n, err
	}
}

// ParseDuration reads a Go duration, or a bare number, which is seconds:
// "1m30s", "250ms", "1.5". Negative ones and those above ten years are errors.
func ParseDuration(text string) (time.Duration, error) {
	const want = "want seconds, or a duration like 250ms, 10s, 1m30s"
	full := text
	if text != "" {
		if last := text[len(text)-1]; last == '.' || '0' <= last && last <= '9' {
			full += "s"
		}
	}
	d, err := time.ParseDuration(full)
	switch {
	case err != nil:
		return 0, errors.New("is not a duration: " + want)
	case strings.HasPrefix(text, "-"): // -0 as well
		return 0, errors.New("is negative: " + want)
	case d > maxDuration:
		return 0, errors.New("is longer than ten years: " + want)
	}
	return d, nil
}

// duration accepts durations of at least lo.
func duration(lo time.Duration) func(string) (time.Duration, error) {
	return durationWithin(lo, maxDuration)
}

func durationWithin(lo, hi time.Duration) func(string) (time.Duration, error) {
	return func(text string) (time.Duration, error) {
		d, err := ParseDuration(text)
		switch {
		case err == nil && d < lo:
			return 0, fmt.Errorf("is shorter than %v", lo)
		case err == nil && d > hi:
			return 0, fmt.Errorf("is longer than %v", hi)
		}
		return d, err
	}
}

// word accepts one of a few words.
func word(words ...string) func(string) (string, error) {
	return func(text string) (string, error) {
		if slices.Contains(words, text) {
			return text, nil
		}
		err := fmt.Errorf("is unknown: want %s", alternatives(words))
		if near := Nearest(text, words); near != "" {
			err = fmt.Errorf("%w (did you mean %s?)", err, near)
		}
		return "", err
	}
}

// alternatives joins words as a sentence does: "a, b or c".
func alternatives(words []string) string {
	last := len(words) - 1
	if last == 0 {
		return words[0]
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

func onOff(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "true", "1", "yes", "on":
		return true, nil
	case "false", "0", "no", "off":
		return false, nil
	}
	return false, errors.New("is neither true nor false")
}

// prefix accepts a network, or an address, which is a network of one.
func prefix(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, errors.New("is not a network: want one like 192.0.2.0/24 or 2001:db8::/32")
	}
	return p.Masked(), nil
}

func ipAddress(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, errors.New("is not an IP address")
	}
	return addr, nil
}

// urlPath accepts an absolute path of a URL, without a query.
func urlPath(text string) (string, error) {
	if strings.Contains(text, "?") {
		return "", errors.New("is not a path but has a query: want one like /ping")
	}
	return urlTarget(text)
}

// urlTarget accepts an absolute path of a URL that may have a query.
func urlTarget(text string) (string, error) {
	if !strings.HasPrefix(text, "/") || strings.ContainsAny(text, "# \t\r\n\x00") {
		return "", errors.New("is not a path: want one like /ping")
	}
	return text, nil
}

// path accepts any path; whoever uses it says what is wrong with the file.
func path(text string) (string, error) { return text, nil }

// controlPath is the path of the control socket, or a word.
func controlPath(text string) (string, error) {
	if text == ControlAuto || text == ControlOff {
		return text, nil
	}
	return text, checkUnixPath(text)
}

func fence(text string) (Fence, error) {
	if text == "now" {
		return Fence{}, nil
	}
	if text == "keep" {
		return Fence{Keep: true}, nil
	}
	grace, ok := strings.CutPrefix(text, "drain=")
	if !ok {
		return Fence{}, errors.New("is unknown: want now, drain=D (like drain=30s) or keep")
	}
	d, err := ParseDuration(grace)
	if err != nil {
		return Fence{}, fmt.Errorf("has a time that %w", err)
	}
	return Fence{Drain: d}, nil
}

func failback(text string) (time.Duration, error) {
	if text == "never" {
		return 0, nil
	}
	d, err := duration(time.Millisecond)(text)
	if err != nil {
		return 0, fmt.Errorf("%w, or never", err)
	}
	return d, nil
}

func failStatus(text string) (string, error) {
	if text == "auto" || text == "keep" {
		return text, nil
	}
	// A failing verdict must not look like success, and never redirects.
	if _, err := number(400, 599)(text); err != nil {
		return "", fmt.Errorf("%w, auto or keep", err)
	}
	return text, nil
}

// lookIntoScriptsDir fills in --check-host and --on-failover from
// --scripts-dir. What is there is used, and complained about later if it
// cannot be run: a check that is silently left out would make every host
// usable.
func (d *draft) lookIntoScriptsDir(values map[string]raw) {
	dir := values["scripts-dir"]
	if len(dir.texts) == 0 {
		return
	}
	name := strings.TrimSpace(dir.texts[len(dir.texts)-1])
	if name == "" {
		return // reported as empty
	}
	if info, err := os.Stat(name); err != nil {
		d.problem(dir.origin, err)
		return
	} else if !info.IsDir() {
		d.problem(dir.origin, fmt.Errorf("%s is not a directory", quote(name)))
		return
	}
	for _, found := range []struct{ flag, file string }{
		{"check-host", "check-host.sh"},
		{"on-failover", "triggers.d"},
	} {
		if values[found.flag].given() {
			continue
		}
		file := filepath.Join(name, found.file)
		// Lstat: a link that leads nowhere is there, and is a mistake.
		switch _, err := os.Lstat(file); {
		case err == nil:
			values[found.flag] = raw{texts: []string{file}, origin: dir.origin}
		case !errors.Is(err, fs.ErrNotExist):
			d.problem(dir.origin, err)
		}
	}
}

// escape keeps a text on its line, whatever a name in it holds.
func escape(text string) string {
	if !strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return text
	}
	var b strings.Builder
	for _, c := range text {
		if unicode.IsPrint(c) {
			b.WriteRune(c)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(c), "'"))
		}
	}
	return b.String()
}

// quote shows a value as it was written, control characters escaped, and cuts
// one that is far too long to read.
func quote(text string) string {
	if len(text) > 80 {
		return strconv.Quote(text[:60]) + fmt.Sprintf("… (%d bytes)", len(text))
	}
	return strconv.Quote(text)
}

// statusClass accepts a class of status by its number (200) or name (2xx), and
// returns its name.
func statusClass(text string) (string, error) {
	if len(text) == 3 && text[0] >= '1' && text[0] <= '5' && (text[1:] == "00" || text[1:] == "xx") {
		return text[:1] + "xx", nil
	}
	return "", errors.New("is not a class of status: want 100, 200, 300, 400 or 500")
}

// defaultGELFPort is what receivers of GELF listen on.
const defaultGELFPort = "12201"

// logOutput accepts a place that logs can go to. A GELF address gets its port
// if it has none.
func logOutput(text string) (string, error) {
	for _, scheme := range []string{"gelf+tcp://", "gelf+udp://"} {
		if addr, ok := strings.CutPrefix(text, scheme); ok {
			if _, _, err := splitHostPort(addr); err != nil {
				addr += ":" + defaultGELFPort
			}
			return scheme + addr, checkAddress(addr)
		}
	}
	if strings.HasPrefix(text, "/") && strings.IndexByte(text, 0) < 0 && !strings.HasSuffix(text, "/") {
		return text, nil
	}
	_, err := word("stderr", "stdout", "syslog")(text)
	if err != nil {
		err = fmt.Errorf("%w, gelf+tcp://host:port, gelf+udp://host:port or an absolute path", err)
	}
	return text, err
}

// checkAddress says what is wrong with a host:port to connect to.
func checkAddress(text string) error {
	if strings.HasPrefix(text, "unix:") {
		return errors.New("is a unix socket: want host:port")
	}
	return checkHost(text)
}
