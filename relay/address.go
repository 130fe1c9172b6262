package relay

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"understudy/internal/address"
)

// listenAddr is an address to listen on.
type listenAddr struct{ address.Listen }

// setting is the address in the one form by which old and new settings are
// compared: different spellings of a file's name are the same file.
func (a listenAddr) setting() string {
	if a.Path != "" {
		a.Path = filepath.Clean(a.Path)
	}
	return a.String()
}

// parseListen accepts the same addresses as [address.ParseListen].
func parseListen(s string) (listenAddr, error) {
	l, err := address.ParseListen(s)
	if err != nil {
		return listenAddr{}, fmt.Errorf("%q %w", s, err)
	}
	return listenAddr{l}, nil
}

// hostAddr is a host to connect to: a socket file, or an IP address and port.
type hostAddr struct {
	path string
	ip   netip.Addr
	port uint16
}

// parseHost accepts the same addresses as [address.ParseHost], except names: a
// name may have several addresses, which may be several machines.
func parseHost(s string) (hostAddr, error) {
	h, err := address.ParseHost(s)
	if err != nil {
		return hostAddr{}, fmt.Errorf("host %q %w", s, err)
	}
	ip := h.IP()
	if h.Path == "" && !ip.IsValid() {
		return hostAddr{}, fmt.Errorf("host %q: %q is not an IP address", s, h.Name)
	}
	return hostAddr{path: h.Path, ip: ip, port: h.Port}, nil
}

// wrap names the system call that failed; nil for success.
func wrap(call string, err error) error {
	return os.NewSyscallError(call, err)
}

// addrPortOf is the IP address and port of a; invalid when it has none.
func addrPortOf(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
