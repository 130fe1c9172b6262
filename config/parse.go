package config

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"understudy/internal/address"
	"understudy/internal/redact"
	"understudy/internal/webhook"
)

const (
	// maxHosts limits what a mistake, such as a file pasted into HOSTS, can make
	// the program check.
	maxHosts = 1000

	// maxDuration keeps sums of durations far from overflow.
	maxDuration = 10 * 365 * 24 * time.Hour
)

// parser parses the items of one setting, stores them in to, and returns every
// error.
type parser[To any] func(to To, items []string) []error

type (
	addrValue   = netip.Addr
	prefixValue = netip.Prefix
)

var itoa = strconv.Itoa

// split returns the items of texts, separated by commas and trimmed. For a setting
// that is not a list it returns the last text.
func (s *Setting) split(texts []string) (items []string, errs []error) {
	if len(texts) == 0 {
		return nil, nil
	}
	if !s.List {
		item := texts[len(texts)-1]
		if !s.verbatim {
			item = strings.TrimSpace(item)
		}
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

// one returns a parser for a setting that is not a list.
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

// each returns a parser for a list.
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
		// Host names are case-insensitive, paths are not.
		same := item
		if !strings.HasPrefix(item, "unix:") {
			same = strings.ToLower(item)
		}
		if seen[same] {
			errs = append(errs, fmt.Errorf("%s is listed twice", quote(item)))
			continue
		}
		seen[same] = true
		d.relay.Hosts = append(d.relay.Hosts, item)
	}
	return errs
}

// bindAddress accepts an address to listen on.
func bindAddress(text string) (string, error) {
	l, err := address.ParseListen(text)
	if err != nil {
		return "", err
	}
	if strings.HasPrefix(text, "localhost:") {
		return l.String(), nil
	}
	return text, nil
}

// httpAddress accepts a TCP address to listen on.
func httpAddress(text string) (string, error) {
	if strings.HasPrefix(text, "unix:") {
		return "", errors.New("is a unix socket: want address:port")
	}
	return bindAddress(text)
}

// checkHost returns an error for an invalid connection string.
func checkHost(text string) error {
	_, err := address.ParseHost(text)
	return err
}

func port(text string) (int, error) { return number(1, 65535)(text) }

// number accepts whole numbers from lo to hi in decimal digits. Signs and
// underscores are errors.
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

// numberOr is number and accepts the word zero for 0.
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

// fileMode accepts permissions in octal digits, such as 660 or 0660.
func fileMode(text string) (fs.FileMode, error) {
	n, err := strconv.ParseUint(text, 8, 32)
	if err != nil || n == 0 || n > 0o777 {
		return 0, errors.New("is not a permission from 0001 to 0777, in octal digits")
	}
	return fs.FileMode(n), nil
}

// owner accepts the name of a user or group of this machine, or a number.
func owner(id func(name string) (string, error)) func(string) (string, error) {
	return func(text string) (string, error) {
		if _, err := number(0, math.MaxInt32)(text); err == nil {
			return text, nil
		}
		if _, err := id(text); err != nil {
			return "", errors.New("is unknown to this machine: want a name, or a number")
		}
		return text, nil
	}
}

func userID(name string) (string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return "", err
	}
	return u.Uid, nil
}

func groupID(name string) (string, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return "", err
	}
	return g.Gid, nil
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
	addr, err := address.ParseIP(text)
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

// path accepts any text: errors are reported where the file is opened.
func path(text string) (string, error) { return text, nil }

// controlPath accepts the path of the control socket, "auto" and "off".
func controlPath(text string) (string, error) {
	if text == ControlAuto || text == ControlOff {
		return text, nil
	}
	return text, address.CheckPath(text)
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

// canaryEvery accepts "off" and a duration.
func canaryEvery(text string) (time.Duration, error) {
	if text == "off" {
		return 0, nil
	}
	d, err := duration(100 * time.Millisecond)(text)
	if err != nil {
		return 0, fmt.Errorf("%w, or off", err)
	}
	return d, nil
}

// escapedText accepts text with the escapes of Go, such as \r\n and \x00.
func escapedText(text string) (string, error) {
	var out []byte
	for rest := text; rest != ""; {
		r, multibyte, tail, err := strconv.UnquoteChar(rest, 0)
		if err != nil {
			return "", fmt.Errorf("has an escape that is not known at %s", quote(rest))
		}
		if multibyte {
			out = utf8.AppendRune(out, r)
		} else {
			out = append(out, byte(r)) //nolint:gosec // below 256; see strconv.UnquoteChar
		}
		rest = tail
	}
	return rawText(string(out))
}

// openRate accepts "auto", "off" and a number.
func openRate(text string) (int, error) {
	switch text {
	case "auto":
		return OpenAuto, nil
	case "off":
		return 0, nil
	}
	n, err := number(1, 1_000_000)(text)
	if err != nil {
		err = fmt.Errorf("%w, auto or off", err)
	}
	return n, err
}

func failStatus(text string) (string, error) {
	if text == "auto" || text == "keep" {
		return text, nil
	}
	// A 2xx would be a success, and clients would follow a 3xx.
	if _, err := number(400, 599)(text); err != nil {
		return "", fmt.Errorf("%w, auto or keep", err)
	}
	return text, nil
}

// webhookURL parses the URL of a webhook, which is a secret: errors do not contain
// it, and it is removed from the environment of scripts.
func webhookURL(d *draft, items []string) []error {
	if err := webhook.Check(items[0]); err != nil {
		return []error{err}
	}
	d.relay.Webhook = Secret{items[0]}
	const variable = "WEBHOOK"
	if d.env[variable] != "" && !slices.Contains(d.settings.secretVariables, variable) {
		d.settings.secretVariables = append(d.settings.secretVariables, variable)
	}
	return nil
}

// applyScriptsDir sets --check-host and --on-failover to the files in
// --scripts-dir that exist. One that cannot be run is an error later: to ignore
// a check would make every host usable.
func (d *draft) applyScriptsDir(values map[string]raw) {
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
		// Lstat, because a broken link is a mistake and not a missing file.
		switch _, err := os.Lstat(file); {
		case err == nil:
			values[found.flag] = raw{texts: []string{file}, origin: dir.origin}
		case !errors.Is(err, fs.ErrNotExist):
			d.problem(dir.origin, err)
		}
	}
}

// statusClass accepts a class of HTTP status as 200 or 2xx, and returns the
// latter.
func statusClass(text string) (string, error) {
	if len(text) == 3 && text[0] >= '1' && text[0] <= '5' && (text[1:] == "00" || text[1:] == "xx") {
		return text[:1] + "xx", nil
	}
	return "", errors.New("is not a class of status: want 100, 200, 300, 400 or 500")
}

// defaultGELFPort is the usual port of GELF receivers.
const defaultGELFPort = "12201"

// logOutput accepts a destination of the log. It adds the default port to a GELF
// address without one.
func logOutput(text string) (string, error) {
	for _, scheme := range []string{"gelf+tcp://", "gelf+udp://"} {
		if addr, ok := strings.CutPrefix(text, scheme); ok {
			if strings.Contains(addr, "@") {
				return "", errors.New("has a user in it, which is not sent: want " + scheme + "host:port")
			}
			if err := checkHost(addr); err != nil && strings.HasPrefix(err.Error(), "has no port") {
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

// checkAddress returns an error for an invalid host:port to connect to.
func checkAddress(text string) error {
	if strings.HasPrefix(text, "unix:") {
		return errors.New("is a unix socket: want host:port")
	}
	return checkHost(text)
}

// quote returns text quoted and redacted, for errors.
func quote(text string) string { return redact.Quote(text) }
