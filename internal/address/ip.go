package address

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// maxZone limits the bytes of the name of a network interface; see IFNAMSIZ in
// netdevice(7).
const maxZone = 15

// ParseIP parses an IPv4 or IPv6 address without brackets, as [netip.ParseAddr]
// does. The zone of an IPv6 address, "fe80::1%eth0", is the name or number of a
// network interface: 1 to 15 letters, digits, '-', '.', '_' and '~', the
// characters that need no escaping in a URL (RFC 6874). [netip.ParseAddr]
// accepts any characters there, including spaces, brackets and line breaks.
//
// The error does not repeat the text.
func ParseIP(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, errors.New("not an IP address")
	}
	if err := checkZone(addr.Zone()); err != nil {
		return netip.Addr{}, err
	}
	return addr, nil
}

// checkZone returns what is wrong with a zone; an empty one is no zone.
func checkZone(zone string) error {
	if len(zone) > maxZone {
		return fmt.Errorf("zone of %d bytes, more than the %d of an interface name", len(zone), maxZone)
	}
	for _, c := range []byte(zone) {
		letter, digit := 'a' <= c|0x20 && c|0x20 <= 'z', '0' <= c && c <= '9'
		if !letter && !digit && !strings.ContainsRune("-._~", rune(c)) {
			return fmt.Errorf("zone with %q, which is in no interface name", c)
		}
	}
	return nil
}
