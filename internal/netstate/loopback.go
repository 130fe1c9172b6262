package netstate

import (
	"net"
	"net/netip"
)

// MaxVIPs limits the addresses that one check or one request compares with those
// of this machine.
const MaxVIPs = 64

// Loopback returns the addresses of all loopback interfaces.
func Loopback() ([]netip.Addr, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil {
				all = append(all, prefix.Addr())
			}
		}
	}
	return all, nil
}
