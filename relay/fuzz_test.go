package relay

import (
	"bufio"
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
)

func FuzzParseProxy(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.1 192.0.2.2 1 65535\r\nrest"))
	f.Add([]byte("PROXY TCP6 2001:db8::1 ::ffff:192.0.2.2 1 2\r\n"))
	f.Add([]byte("PROXY UNKNOWN ffff::1 x y z\r\n"))
	f.Add([]byte("PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n"))
	f.Add([]byte("GET / HTTP/1.0\r\n\r\n"))
	for _, from := range []string{"192.0.2.1:1", "[2001:db8::1]:1"} {
		h := proxyHeader{netip.MustParseAddrPort(from), netip.MustParseAddrPort(strings.Replace(from, "1]", "2]", 1))}
		f.Add(h.append(nil, 1))
		f.Add(append(h.append(nil, 2), "rest"...))
	}
	f.Add(proxyHeader{}.append(nil, 2))
	f.Add([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x31\x00\x04abcd"))
	f.Add([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x10\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x02\x04\x00\x00\x00"))
	for _, tt := range proxyV2Tests {
		f.Add(tt.header())
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		h, n, err := parseProxy(in)
		oracleProxyV2(t, in, n, err)
		if err == nil && (n < 0 || n > len(in)) {
			t.Fatalf("parseProxy(%q): a header of %d bytes", in, n)
		}
		// A prefix of a header is never accepted as a whole header, nor refused if
		// the whole is accepted.
		for k := range min(len(in), 300) {
			switch _, m, e := parseProxy(in[:k]); {
			case err == nil && n > 0 && k < n && (m != 0 || e != nil):
				t.Fatalf("parseProxy(%q): %d, %v, but with more it is a header of %d bytes", in[:k], m, e, n)
			case err == nil && n == 0 && (m != 0 || e != nil):
				t.Fatalf("parseProxy(%q): %d, %v, but with more it still is a beginning", in[:k], m, e)
			}
		}
		if err != nil || n == 0 {
			return
		}
		if _, m, e := parseProxy(in[:n]); m != n || e != nil {
			t.Fatalf("parseProxy of the header %q alone: %d, %v", in[:n], m, e)
		}
		for _, version := range []ProxyVersion{1, 2} {
			out := h.append(nil, version)
			again, m, err := parseProxy(append(out, "rest"...))
			if err != nil || m != len(out) || again != unmapped(h) && again != h {
				t.Errorf("%+v in version %d: %q, which is read as %+v, %d, %v", h, version, out, again, m, err)
			}
			// An independent parser reads the same.
			theirs, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(out)))
			if err != nil {
				t.Fatalf("%+v in version %d: %q, which go-proxyproto does not read: %v", h, version, out, err)
			}
			if from, to, ok := theirs.TCPAddrs(); ok && (from.AddrPort().Port() != h.from.Port() || to.AddrPort().Addr().Unmap() != h.to.Addr().Unmap()) {
				t.Errorf("%+v in version %d: %q, which go-proxyproto reads as %v to %v", h, version, out, from, to)
			}
		}
		if bytes.HasPrefix(in, []byte("PROXY ")) && n > proxyV1Max {
			t.Errorf("a header of version 1 with %d bytes", n)
		}
	})
}

// unmapped returns h as a version 2 header encodes it.
func unmapped(h proxyHeader) proxyHeader {
	from, to := h.from.Addr().Unmap(), h.to.Addr().Unmap()
	if from.Is4() != to.Is4() {
		return h
	}
	return proxyHeader{netip.AddrPortFrom(from, h.from.Port()), netip.AddrPortFrom(to, h.to.Port())}
}

func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"db1:5432", "192.0.2.1:80", "[::1]:80", "[fe80::1%eth0]:80", "unix:/run/x.sock", "unix:@x", ":80", "a:b:c", "[::1]", "x:0", "x:65536", "x:+1", "x: 1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		h, err := parseHost(in)
		if err != nil {
			if !strings.Contains(err.Error(), "host") {
				t.Errorf("parseHost(%q): %v, which does not say what is wrong", in, err)
			}
			return
		}
		again := netip.AddrPortFrom(h.ip, h.port).String()
		if h.path != "" {
			again = "unix:" + h.path
		}
		if h2, err := parseHost(again); err != nil || h2 != h {
			t.Errorf("parseHost(%q) is %+v, written %q, which is read as %+v, %v", in, h, again, h2, err)
		}
		if strings.ContainsAny(h.ip.Zone(), " \r\n%]") {
			t.Errorf("parseHost(%q) is %+v, whose zone is that of no interface", in, h)
		}
		if h.path == "" && h.port == 0 || h.path == "" && !h.ip.IsValid() {
			t.Errorf("parseHost(%q) is %+v, which cannot be connected to", in, h)
		}
	})
}

func FuzzParseListen(f *testing.F) {
	for _, s := range []string{":5432", "192.0.2.1:5432", "[::]:5432", "localhost:0", "unix:/run/x.sock", "unix:", "", "x", ":65536", ":-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		a, err := parseListen(in)
		if err != nil {
			return
		}
		if again, err := parseListen(a.String()); err != nil || again != a {
			t.Errorf("parseListen(%q) is %+v, written %q, which is read as %+v, %v", in, a, a, again, err)
		}
		if same, err := parseListen(a.setting()); err != nil || same.setting() != a.setting() || a.setting() == given {
			t.Errorf("parseListen(%q): the setting %q is read as %+v, %v", in, a.setting(), same, err)
		}
	})
}
