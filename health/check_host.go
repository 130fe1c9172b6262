package health

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
)

// Host is where a connection string leads.
type Host struct {
	// Name is a host name or an IP address without brackets; empty for a unix
	// socket.
	Name string

	// Port is a TCP port; zero for a unix socket.
	Port uint16

	// Path is the path of a unix socket, or its abstract name behind an "@";
	// empty for TCP.
	Path string
}

// ParseHost reads a connection string: "db1:5432", "192.0.2.1:5432",
// "[2001:db8::1]:5432" or "unix:/run/orders.sock". It asks nobody: a name that
// can be written may still not exist.
func ParseHost(s string) (Host, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if err := checkSocketPath(path); err != nil {
			return Host{}, fmt.Errorf("host %q: %w", s, err)
		}
		return Host{Path: path}, nil
	}
	name, port, err := net.SplitHostPort(s)
	if err != nil {
		if addr, ok := errors.AsType[*net.AddrError](err); ok {
			err = errors.New(addr.Err) // its text repeats the address
		}
		return Host{}, fmt.Errorf("host %q: %w", s, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return Host{}, fmt.Errorf("host %q: port %q is not a number from 1 to 65535", s, port)
	}
	addr, err := netip.ParseAddr(name)
	switch {
	case strings.HasPrefix(s, "[") && (err != nil || addr.Is4()):
		return Host{}, fmt.Errorf("host %q: %q is not an IPv6 address", s, name)
	case err == nil:
		name = addr.Unmap().String()
	default:
		if err := checkHostName(name); err != nil {
			return Host{}, fmt.Errorf("host %q: %w", s, err)
		}
	}
	return Host{Name: name, Port: uint16(n)}, nil
}

// String returns the connection string of h, which ParseHost reads back.
func (h Host) String() string {
	if h.Path != "" {
		return "unix:" + h.Path
	}
	return net.JoinHostPort(h.Name, strconv.Itoa(int(h.Port)))
}

func checkSocketPath(path string) error {
	// The kernel wants room for the NUL behind a path; see unix(7).
	limit := len(syscall.RawSockaddrUnix{}.Path) - 1
	switch {
	case len(path) < 2 || path[0] != '/' && path[0] != '@':
		return errors.New(`the socket's path does not begin with "/", nor its abstract name with "@"`)
	case len(path) > limit:
		return fmt.Errorf("the socket's path has %d bytes, more than %d", len(path), limit)
	case strings.ContainsRune(path, 0):
		return errors.New("the socket's path contains a zero byte")
	}
	return nil
}

// checkHostName applies the limits of RFC 1035, section 2.3.4, and lets
// underscores pass, which container networks use.
func checkHostName(name string) error {
	labels := strings.Split(strings.TrimSuffix(name, "."), ".")
	last := labels[len(labels)-1]
	switch {
	case name == "":
		return errors.New("the name is empty")
	case len(name) > 254:
		return fmt.Errorf("the name has %d bytes, more than 254", len(name))
	case strings.Trim(last, "0123456789") == "":
		// No top-level domain is a number, so "10.0.0.256" is a slip.
		return fmt.Errorf("%q is neither an IP address nor a host name", name)
	}
	for _, label := range labels {
		if label == "" || len(label) > 63 {
			return fmt.Errorf("%q is not a host name: a label has %d bytes, want 1 to 63", name, len(label))
		}
		for _, c := range []byte(label) {
			if c != '-' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
				return fmt.Errorf("%q is not a host name: it contains %q", name, c)
			}
		}
	}
	return nil
}
