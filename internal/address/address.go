// Package address parses the addresses that operators write: hosts to connect
// to and addresses to listen on, with one grammar and one set of limits for the
// whole program.
//
// An error begins with a verb, so that it can follow the text that it is about:
// "db1" has no port. It does not repeat that text.
package address

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"

	"understudy/internal/redact"
)

// unixPrefix begins the address of a unix socket.
const unixPrefix = "unix:"

// MaxPath is the longest path of a unix socket, in bytes: sun_path less its
// final zero; see unix(7).
const MaxPath = len(syscall.RawSockaddrUnix{}.Path) - 1

// maxName is the longest host name, in bytes; see RFC 1035, section 2.3.4.
const maxName = 253

// Host is an address to connect to.
type Host struct {
	// Name is a host name, or an IP address in its canonical form without
	// brackets; empty for a unix socket.
	Name string

	// Port is a TCP port from 1 to 65535; zero for a unix socket.
	Port uint16

	// Path is the absolute path of a unix socket; empty for TCP.
	Path string
}

// whole reports a text that is a URL or several addresses instead of one
// address. The errors of the grammar of one address would name a part of it
// that is not the mistake.
func whole(text string) error {
	if scheme, _, ok := strings.Cut(text, "://"); ok && scheme != "" {
		return fmt.Errorf("is a URL: want host:port alone, without %s and a path", redact.Quote(scheme+"://"))
	}
	i := strings.IndexAny(text, " \t\r\n;|")
	switch {
	case i < 0:
		return nil
	case strings.HasPrefix(text, unixPrefix) && !strings.Contains(text[i:], ":"):
		return nil // a path may have any of them
	case strings.Count(text[:i], "[") > strings.Count(text[:i], "]"):
		return nil // it is in a single address
	}
	what := map[byte]string{' ': "a space", ';': "a semicolon", '|': "a bar"}[text[i]]
	return fmt.Errorf("has %s in it: separate addresses with commas", cmp.Or(what, "white space"))
}

// ParseHost parses "db1:5432", "192.0.2.1:5432", "[2001:db8::1]:5432" or
// "unix:/run/orders.sock". It resolves nothing: a well-formed name may not
// exist.
func ParseHost(text string) (Host, error) {
	if err := whole(text); err != nil {
		return Host{}, err
	}
	if path, ok := strings.CutPrefix(text, unixPrefix); ok {
		return Host{Path: path}, CheckPath(path)
	}
	name, portText, err := split(text)
	if err != nil {
		return Host{}, err
	}
	port, err := parsePort(portText, 1)
	if err != nil {
		return Host{}, err
	}
	if name == "" {
		return Host{}, errors.New("has no host in front of the port")
	}
	ip, err := ParseIP(name)
	switch {
	case strings.HasPrefix(text, "[") && err != nil && strings.Contains(name, "%"):
		return Host{}, fmt.Errorf("has %s in brackets, which is no IPv6 address: %w", redact.Quote(name), err)
	case strings.HasPrefix(text, "[") && (err != nil || ip.Is4()):
		return Host{}, fmt.Errorf("has %s in brackets, which is no IPv6 address", redact.Quote(name))
	case err == nil:
		name = ip.Unmap().String()
	default:
		if err := CheckName(name); err != nil {
			return Host{}, err
		}
	}
	return Host{Name: name, Port: port}, nil
}

// IP returns the host's IP address if it is written as one, and otherwise the
// zero Addr, which is not valid.
func (h Host) IP() netip.Addr {
	ip, err := ParseIP(h.Name)
	if err != nil {
		return netip.Addr{}
	}
	return ip
}

// String returns text that [ParseHost] parses to h.
func (h Host) String() string {
	if h.Path != "" {
		return unixPrefix + h.Path
	}
	return net.JoinHostPort(h.Name, strconv.Itoa(int(h.Port)))
}

// Canonical returns the same value for every spelling of a host: a name in
// lower case without the final dot, and localhost as 127.0.0.1.
func (h Host) Canonical() Host {
	h.Name = strings.TrimSuffix(strings.ToLower(h.Name), ".")
	if h.Name == "localhost" {
		h.Name = "127.0.0.1"
	}
	return h
}

// Listen is an address to listen on.
type Listen struct {
	// IP is an address of this machine; the zero Addr is every address, of IPv4
	// and IPv6.
	IP netip.Addr

	// Port is a TCP port; zero lets the system choose one.
	Port uint16

	// Path is the absolute path of a unix socket; empty for TCP.
	Path string
}

// ParseListen parses "192.0.2.1:80", "[::]:80", ":80" (every address),
// "localhost:80" (127.0.0.1) or "unix:/run/orders.sock".
func ParseListen(text string) (Listen, error) {
	if err := whole(text); err != nil {
		return Listen{}, err
	}
	if path, ok := strings.CutPrefix(text, unixPrefix); ok {
		return Listen{Path: path}, CheckPath(path)
	}
	host, portText, err := split(text)
	if err != nil {
		if _, bad := parsePort(text, 1); bad == nil {
			return Listen{}, fmt.Errorf("is a port alone: want address:port, like :%s", text)
		}
		return Listen{}, err
	}
	port, err := parsePort(portText, 0)
	if err != nil {
		return Listen{}, err
	}
	switch host {
	case "":
		return Listen{Port: port}, nil
	case "localhost":
		return Listen{IP: netip.AddrFrom4([4]byte{127, 0, 0, 1}), Port: port}, nil
	}
	ip, err := ParseIP(host)
	if err != nil {
		return Listen{}, errors.New("does not begin with an IP address of this machine: want address:port")
	}
	return Listen{IP: ip, Port: port}, nil
}

// String returns text that [ParseListen] parses to l.
func (l Listen) String() string {
	if l.Path != "" {
		return unixPrefix + l.Path
	}
	host := ""
	if l.IP.IsValid() {
		host = l.IP.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(l.Port)))
}

// split splits at the last colon. The error says in the operator's terms what
// is missing.
func split(text string) (host, port string, err error) {
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

// parsePort parses a port of at least lowest in decimal digits.
func parsePort(text string, lowest uint64) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16) // accepts neither sign nor underscore
	if err != nil || n < lowest {
		return 0, fmt.Errorf("has port %s, which is not a number from %d to 65535", redact.Quote(text), max(lowest, 1))
	}
	return uint16(n), nil
}

// CheckPath returns what is wrong with the path of a unix socket. Abstract
// names (@name) are refused: they have no permissions, so every process of the
// machine could connect.
func CheckPath(path string) error {
	switch {
	case !strings.HasPrefix(path, "/"):
		return errors.New("needs an absolute path, like unix:/run/app.sock")
	case len(path) > MaxPath:
		return fmt.Errorf("has a path longer than %d bytes", MaxPath)
	case strings.IndexByte(path, 0) >= 0:
		return errors.New("has a zero byte in its path")
	}
	return nil
}

// CheckName returns what is wrong with a host name. Underscores are not allowed
// by RFC 1123, but container networks use them.
func CheckName(name string) error {
	if len(strings.TrimSuffix(name, ".")) > maxName {
		return fmt.Errorf("has a host name longer than %d bytes", maxName)
	}
	last := ""
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		last = label
		if label == "" || len(label) > 63 {
			return fmt.Errorf("has the host name %s: want labels of 1 to 63 bytes between dots", redact.Quote(name))
		}
		for _, c := range []byte(label) {
			if c != '-' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
				return fmt.Errorf("has the host name %s, in which %s is not allowed", redact.Quote(name), redact.Quote(string(rune(c))))
			}
		}
	}
	if strings.Trim(last, "0123456789") == "" {
		// No top-level domain is a number, so 10.0.0.256 is a mistake; and
		// some resolvers read 10.1 as 10.0.0.1, others query a name server.
		return fmt.Errorf("has %s for a host, which is no IPv4 address", redact.Quote(name))
	}
	return nil
}
