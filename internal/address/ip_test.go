package address

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestParseIP(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want string // "" for an error
	}{
		{"192.0.2.1", "192.0.2.1"},
		{"2001:DB8::1", "2001:db8::1"},
		{"fe80::1%eth0", "fe80::1%eth0"},
		{"fe80::1%2", "fe80::1%2"},
		{"fe80::1%br-12ab_3.4094", "fe80::1%br-12ab_3.4094"},
		{"fe80::1%" + strings.Repeat("x", 15), "fe80::1%" + strings.Repeat("x", 15)},
		{"", ""},
		{"db1", ""},
		{"192.0.2.1%eth0", ""},
		{"fe80::1%", ""},
		{"fe80::1%" + strings.Repeat("x", 16), ""},
		{"fe80::1%8A 00000", ""},
		{"fe80::1%eth0\r\nX: y", ""},
		{"fe80::1%a\x00", ""},
		{"fe80::1%a]:80", ""},
		{"fe80::1%a%b", ""},
		{"fe80::1%a/b", ""},
		{"fe80::1%a@b", ""},
		{"fe80::1%ünï", ""},
	} {
		got, err := ParseIP(tt.in)
		if tt.want == "" && err == nil || tt.want != "" && (err != nil || got.String() != tt.want) {
			t.Errorf("ParseIP(%q) = %v, %v, want %q", tt.in, got, err, tt.want)
		}
	}
}

func FuzzParseIP(f *testing.F) {
	for _, s := range []string{"192.0.2.1", "fe80::1%eth0", "::ffff:192.0.2.1%x", "fe80::1%8A 00000"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		addr, err := ParseIP(in)
		if err != nil {
			return
		}
		if again, err := ParseIP(addr.String()); err != nil || again != addr {
			t.Errorf("ParseIP(%q) is %v, which is read as %v, %v", in, addr, again, err)
		}
		written := netip.AddrPortFrom(addr, 80).String()
		if host, _, err := net.SplitHostPort(written); err != nil || strings.ContainsAny(written, " \t\r\n/@\x00") {
			t.Errorf("ParseIP(%q) with a port is %q: host %q, %v", in, written, host, err)
		}
	})
}
