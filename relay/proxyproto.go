package relay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

// The PROXY protocol, versions 1 and 2, as specified by HAProxy's
// doc/proxy-protocol.txt. A header at the beginning of a connection gives the
// receiver the addresses of its client.

// proxyHeader is the content of a PROXY header. Invalid addresses mean that it
// contains none: UNKNOWN in version 1, LOCAL or another family in version 2.
type proxyHeader struct{ from, to netip.AddrPort }

var errProxyHeader = errors.New("no PROXY protocol header")

const (
	proxyV1Max    = 107 // with its CRLF; section 2.1
	proxyV2Prefix = 16
	// proxyMax bounds a version 2 header with all its TLVs. The specification
	// allows 64 KiB; what is in use is below 1 KiB.
	proxyMax = 4 << 10
)

// proxyV2Addresses is the number of bytes that the two addresses of each family have in
// version 2: unspecified, IPv4, IPv6, unix; section 2.2. A receiver has to
// refuse every other family, and to ignore what follows an unspecified one.
var proxyV2Addresses = [...]int{0, 12, 36, 216}

var proxyV2Signature = []byte("\r\n\r\n\x00\r\nQUIT\n")

// parseProxy reads a header at the start of b. It returns the header's length,
// or 0 when b holds only the beginning of one.
func parseProxy(b []byte) (proxyHeader, int, error) {
	switch {
	case bytes.HasPrefix(b, proxyV2Signature):
		return parseProxyV2(b)
	case bytes.HasPrefix(proxyV2Signature, b):
		return proxyHeader{}, 0, nil
	}
	const v1 = "PROXY "
	if !strings.HasPrefix(string(b[:min(len(b), len(v1))]), v1[:min(len(b), len(v1))]) {
		return proxyHeader{}, 0, errProxyHeader
	}
	line, _, found := bytes.Cut(b[:min(len(b), proxyV1Max)], []byte("\r\n"))
	if !found {
		if len(b) >= proxyV1Max {
			return proxyHeader{}, 0, errProxyHeader
		}
		return proxyHeader{}, 0, nil
	}
	h, err := parseProxyV1(string(line[len(v1):]))
	return h, len(line) + 2, err
}

func parseProxyV1(line string) (proxyHeader, error) {
	f := strings.Split(line, " ")
	if f[0] == "UNKNOWN" {
		return proxyHeader{}, nil
	}
	if len(f) != 5 || f[0] != "TCP4" && f[0] != "TCP6" {
		return proxyHeader{}, errProxyHeader
	}
	var h proxyHeader
	for k, to := range []*netip.AddrPort{&h.from, &h.to} {
		a, err := netip.ParseAddr(f[1+k])
		if err != nil || a.Zone() != "" || a.Is4() != (f[0] == "TCP4") {
			return proxyHeader{}, errProxyHeader
		}
		p, err := strconv.ParseUint(f[3+k], 10, 16)
		if err != nil || strconv.FormatUint(p, 10) != f[3+k] {
			return proxyHeader{}, errProxyHeader
		}
		*to = netip.AddrPortFrom(a, uint16(p))
	}
	return h, nil
}

func parseProxyV2(b []byte) (proxyHeader, int, error) {
	if len(b) < proxyV2Prefix {
		return proxyHeader{}, 0, nil
	}
	version, command, family := b[12]>>4, b[12]&0xf, b[13]
	length := proxyV2Prefix + int(binary.BigEndian.Uint16(b[14:]))
	if version != 2 || command > 1 || length > proxyMax {
		return proxyHeader{}, 0, errProxyHeader
	}
	if len(b) < length {
		return proxyHeader{}, 0, nil
	}
	if command == 0 { // LOCAL: whatever follows is to be discarded
		return proxyHeader{}, length, nil
	}
	if int(family>>4) >= len(proxyV2Addresses) || family&0xf > 2 {
		return proxyHeader{}, 0, errProxyHeader
	}
	body, addresses := b[proxyV2Prefix:length], proxyV2Addresses[family>>4]
	if len(body) < addresses || addresses > 0 && !wholeTLVs(body[addresses:]) {
		return proxyHeader{}, 0, errProxyHeader
	}
	size := 0
	switch family {
	case 0x11: // TCP over IPv4
		size = 4
	case 0x21: // TCP over IPv6
		size = 16
	default:
		return proxyHeader{}, length, nil
	}
	from, _ := netip.AddrFromSlice(body[:size])
	to, _ := netip.AddrFromSlice(body[size : 2*size])
	ports := body[2*size:]
	return proxyHeader{
		from: netip.AddrPortFrom(from, binary.BigEndian.Uint16(ports)),
		to:   netip.AddrPortFrom(to, binary.BigEndian.Uint16(ports[2:])),
	}, length, nil
}

// wholeTLVs reports whether b is a sequence of TLVs (type, length, value) of
// which none is longer than the bytes that remain.
func wholeTLVs(b []byte) bool {
	for len(b) > 0 {
		if len(b) < 3 {
			return false
		}
		n := 3 + int(binary.BigEndian.Uint16(b[1:]))
		if n > len(b) {
			return false
		}
		b = b[n:]
	}
	return true
}

// append writes h in the given version.
func (h proxyHeader) append(b []byte, version ProxyVersion) []byte {
	from, to := h.from.Addr().Unmap(), h.to.Addr().Unmap()
	known := from.IsValid() && to.IsValid()
	if known && from.Is4() != to.Is4() { // one of them as IPv6, the other likewise
		from, to = netip.AddrFrom16(from.As16()), netip.AddrFrom16(to.As16())
	}
	from, to = from.WithZone(""), to.WithZone("")
	if version == 1 {
		if !known {
			return append(b, "PROXY UNKNOWN\r\n"...)
		}
		family := "TCP4 "
		if !from.Is4() {
			family = "TCP6 "
		}
		b = append(append(b, "PROXY "...), family...)
		b = append(b, textV1(from)+" "+textV1(to)+" "...)
		b = strconv.AppendUint(b, uint64(h.from.Port()), 10)
		b = strconv.AppendUint(append(b, ' '), uint64(h.to.Port()), 10)
		return append(b, "\r\n"...)
	}
	b = append(b, proxyV2Signature...)
	if !known {
		return append(b, 0x20, 0, 0, 0) // LOCAL, unspecified
	}
	b = append(b, 0x21) // version 2, PROXY
	if from.Is4() {
		b = append(b, 0x11, 0, 12)
	} else {
		b = append(b, 0x21, 0, 36)
	}
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, h.from.Port())
	return binary.BigEndian.AppendUint16(b, h.to.Port())
}

// textV1 is the form of an address in version 1, which has no mapped addresses.
func textV1(a netip.Addr) string {
	if a.Is4In6() {
		return "::ffff:" + a.Unmap().String()
	}
	return a.String()
}
