package relay

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
)

// proxyV2Test is a header of version 2 and whether it is accepted.
type proxyV2Test struct {
	name   string
	kind   string // version and command, family and protocol
	body   string
	accept bool
}

func (tt proxyV2Test) header() []byte {
	head := append(bytes.Clone(proxyV2Signature), tt.kind...)
	return append(binary.BigEndian.AppendUint16(head, uint16(len(tt.body))), tt.body...)
}

var proxyV2Tests = func() []proxyV2Test {
	const tlv = "\x05\x00\x02id"
	v4, v6, sock := strings.Repeat("4", 12), strings.Repeat("6", 36), strings.Repeat("u", 216)
	return []proxyV2Test{
		{"TCP over IPv4", "\x21\x11", v4, true},
		{"TCP over IPv4, one byte short", "\x21\x11", v4[1:], false},
		{"UDP over IPv4", "\x21\x12", v4, true},
		{"UDP over IPv4, one byte short", "\x21\x12", v4[1:], false},
		{"TCP over IPv6", "\x21\x21", v6, true},
		{"TCP over IPv6, one byte short", "\x21\x21", v6[1:], false},
		{"UDP over IPv6, one byte short", "\x21\x22", v6[1:], false},
		{"unix stream", "\x21\x31", sock, true},
		{"unix stream, one byte short", "\x21\x31", sock[1:], false},
		{"unix stream, no address", "\x21\x31", "", false},
		{"unix datagram", "\x21\x32", sock, true},
		{"unix datagram, one byte short", "\x21\x32", sock[1:], false},
		{"unix stream with a TLV", "\x21\x31", sock + tlv, true},
		{"unix stream, a TLV that overruns", "\x21\x31", sock + tlv[:4], false},
		{"IPv4 with two TLVs", "\x21\x11", v4 + tlv + tlv, true},
		{"IPv4 with an empty TLV", "\x21\x11", v4 + "\x04\x00\x00", true},
		{"IPv4, a TLV that overruns by one", "\x21\x11", v4 + tlv[:4], false},
		{"IPv4, a second TLV that overruns", "\x21\x11", v4 + tlv + "\x05\xff\xffx", false},
		{"IPv4, a TLV of one byte", "\x21\x11", v4 + "\x04", false},
		{"IPv4, a TLV of two bytes", "\x21\x11", v4 + "\x04\x00", false},
		{"IPv6, a TLV that overruns", "\x21\x21", v6 + "\x04\x01\x00", false},
		{"unspecified, nothing behind", "\x21\x00", "", true},
		{"unspecified, anything behind is ignored", "\x21\x00", "\x04\xff\xff", true},
		{"a family that does not exist", "\x21\x41", sock, false},
		{"a protocol that does not exist", "\x21\x13", v4, false},
		{"LOCAL", "\x20\x00", "", true},
		{"LOCAL with anything behind, which is discarded", "\x20\x31", "\x04\xff\xff", true},
		{"a command that does not exist", "\x22\x11", v4, false},
		{"version 3", "\x31\x11", v4, false},
	}
}()

func TestParseProxyV2(t *testing.T) {
	for _, tt := range proxyV2Tests {
		t.Run(tt.name, func(t *testing.T) {
			in := tt.header()
			_, n, err := parseProxy(append(bytes.Clone(in), "rest"...))
			if tt.accept && (err != nil || n != len(in)) || !tt.accept && err == nil {
				t.Errorf("parseProxy(%q) = %d, %v, want accepted %v", in, n, err, tt.accept)
			}
			oracleProxyV2(t, in, n, err)
		})
	}
}

// oracleProxyV2 compares with go-proxyproto what parseProxy made of in: a
// header of n bytes, or an error. It compares where the specification decides:
// not LOCAL, whose content go-proxyproto checks although it has to be
// discarded, and no family or protocol that is unspecified or does not exist.
func oracleProxyV2(t *testing.T, in []byte, n int, err error) {
	t.Helper()
	if len(in) < proxyV2Prefix || !bytes.HasPrefix(in, proxyV2Signature) || in[12] != 0x21 || in[13]>>4 == 0 || in[13]&0xf == 0 || in[13]&0xf > 2 {
		return
	}
	if length := proxyV2Prefix + int(binary.BigEndian.Uint16(in[14:])); length > proxyMax || length > len(in) {
		return
	}
	theirs, refused := proxyproto.Read(bufio.NewReader(bytes.NewReader(in)))
	if refused == nil {
		_, refused = theirs.TLVs()
	}
	if (err == nil && n > 0) != (refused == nil) {
		t.Errorf("parseProxy(%q) = %d, %v; go-proxyproto says %v", in, n, err, refused)
	}
}
