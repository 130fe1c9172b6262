package relay

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// listenAddr is an address to listen on: a socket file, or a host and port of
// which the host may be empty or a name.
type listenAddr struct {
	path string
	host string
	port uint16
}

func (a listenAddr) String() string {
	if a.path != "" {
		return "unix:" + a.path
	}
	return net.JoinHostPort(a.host, strconv.Itoa(int(a.port)))
}

// setting is the address in the one form by which old and new settings are
// compared: different spellings of a file's name are the same file.
func (a listenAddr) setting() string {
	if a.path != "" && a.path[0] != '@' {
		if path, err := filepath.Abs(a.path); err == nil {
			a.path = path
		}
	}
	return a.String()
}

// parseListen reads "192.0.2.1:5432", "[::]:5432", ":5432" or "unix:/run/x.sock".
func parseListen(s string) (listenAddr, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if path == "" {
			return listenAddr{}, fmt.Errorf("%q: the path is missing", s)
		}
		return listenAddr{path: path}, nil
	}
	name, port, err := splitPort(s)
	return listenAddr{host: name, port: port}, err
}

// hostAddr is a host to connect to: a socket file, an IP address, or a name
// that is looked up at each connect.
type hostAddr struct {
	path string
	ip   netip.Addr
	name string
	port uint16
}

// unixPathMax is how long the path of a unix socket may be; see unix(7).
const unixPathMax = len(unix.RawSockaddrUnix{}.Path) - 1

// parseHost reads "db1:5432", "192.0.2.1:5432", "[::1]:80" or "unix:/run/x.sock".
func parseHost(s string) (hostAddr, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if path == "" {
			return hostAddr{}, fmt.Errorf("host %q: the path is missing", s)
		}
		if len(path) > unixPathMax {
			return hostAddr{}, fmt.Errorf("host %q: the path is longer than %d bytes", s, unixPathMax)
		}
		return hostAddr{path: path}, nil
	}
	name, port, err := splitPort(s)
	switch {
	case err != nil:
		return hostAddr{}, fmt.Errorf("host %w", err)
	case name == "":
		return hostAddr{}, fmt.Errorf("host %q: the name or address is missing", s)
	case port == 0:
		return hostAddr{}, fmt.Errorf("host %q: port 0 cannot be connected to", s)
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		return hostAddr{ip: ip, port: port}, nil
	}
	return hostAddr{name: name, port: port}, nil
}

func splitPort(s string) (string, uint16, error) {
	name, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, err // names the address
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%q: port %q is not a number from 0 to 65535", s, port)
	}
	return name, uint16(n), nil
}

// wrap names the system call that failed; nil for success.
func wrap(call string, err error) error {
	return os.NewSyscallError(call, err)
}

// scope is the interface index of a link-local address's zone.
func scope(a netip.Addr) uint32 {
	zone := a.Zone()
	if zone == "" {
		return 0
	}
	if ifi, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifi.Index) //nolint:gosec // an index is positive
	}
	n, _ := strconv.ParseUint(zone, 10, 32)
	return uint32(n)
}
