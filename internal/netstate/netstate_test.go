package netstate

import (
	"encoding/binary"
	"fmt"
	"net"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

const header4 = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"

// route4 is a line of /proc/net/route.
func route4(link, dest, gateway, flags, mask string) string {
	raw := func(addr string) uint32 { return binary.NativeEndian.Uint32(net.ParseIP(addr).To4()) }
	return fmt.Sprintf("%s\t%08X\t%08X\t%s\t0\t0\t0\t%08X\t0\t0\t0\n", link, raw(dest), raw(gateway), flags, raw(mask))
}

func TestRead(t *testing.T) {
	const (
		zero    = "00000000000000000000000000000000"
		header  = "IP address       HW type     Flags       HW address            Mask     Device\n"
		answers = "192.0.2.1        0x1         0x2         02:fc:00:00:00:05     *        eth0\n"
		silent  = "192.0.2.1        0x1         0x0         00:00:00:00:00:00     *        eth0\n"
	)
	eth0 := link{name: "eth0", up: true, running: true, used: true}
	lo := link{name: "lo", up: true, running: true, loopback: true, used: true}
	well := route4("eth0", "0.0.0.0", "192.0.2.1", "0003", "0.0.0.0") + route4("eth0", "192.0.2.0", "0.0.0.0", "0001", "255.255.255.0")
	for _, tt := range []struct {
		name  string
		files map[string]string
		links []link
		want  State
	}{
		{
			name: "all is well",
			files: map[string]string{
				"proc/net/route": header4 + well, "proc/net/arp": header + answers,
				"proc/net/ipv6_route": "fd000000000000000000000000000000 40 " + zero + " 00 " + zero + " 00000100 00000001 00000000 00000001     eth0\n" +
					zero + " 00 " + zero + " 00 fd000000000000000000000000000001 00000400 00000002 00000000 00000003     eth0\n" +
					zero + " 00 " + zero + " 00 " + zero + " ffffffff 00000001 00000000 00200200       lo\n",
				"proc/sys/net/netfilter/nf_conntrack_count": "12\n", "proc/sys/net/netfilter/nf_conntrack_max": "65536\n",
			},
			links: []link{lo, eth0, {name: "ifb0"}, {name: "docker0", up: true, used: true}},
			want: State{
				Problems: []string{"link docker0 has no carrier"}, // not known for a bridge here
				Facts:    []string{"conntrack 12 of 65536", "gateway 192.0.2.1 on eth0", "gateway fd00::1 on eth0"},
			},
		},
		{
			name: "the table of connections is full",
			files: map[string]string{
				"proc/net/route": header4 + well,
				"proc/sys/net/netfilter/nf_conntrack_count": "65530\n", "proc/sys/net/netfilter/nf_conntrack_max": "65536\n",
			},
			links: []link{lo, eth0},
			want:  State{Problems: []string{"the conntrack table is full: 65530 of 65536"}, Facts: []string{"gateway 192.0.2.1 on eth0"}},
		},
		{
			name:  "the link was set down, and its routes went with it",
			files: map[string]string{"proc/net/route": header4, "proc/net/ipv6_route": ""},
			links: []link{lo, {name: "eth0", used: true}},
			want:  State{Problems: []string{"link eth0 is down", "there is no default route"}},
		},
		{
			name:  "no carrier, and the gateway does not answer",
			files: map[string]string{"proc/net/route": header4 + well, "proc/net/arp": header + silent, "sys/class/net/br0/bridge/x": ""},
			links: []link{lo, {name: "eth0", up: true, used: true}, {name: "br0", up: true, used: true}},
			want:  State{Problems: []string{"link eth0 has no carrier", "gateway 192.0.2.1 on eth0 does not answer ARP"}},
		},
		{
			name:  "only loopback, and it is down",
			files: map[string]string{"proc/net/route": header4},
			links: []link{{name: "lo", loopback: true}},
			want:  State{Problems: []string{"link lo is down", "there is no default route"}},
		},
		{
			name: "routes that are no default",
			files: map[string]string{"proc/net/route": header4 +
				route4("eth0", "0.0.0.0", "0.0.0.0", "0200", "0.0.0.0") + // prohibited
				route4("eth0", "0.0.0.0", "192.0.2.1", "0003", "128.0.0.0") +
				route4("ppp0", "0.0.0.0", "0.0.0.0", "0001", "0.0.0.0")},
			want: State{Facts: []string{"default route on ppp0"}},
		},
		{
			name: "limits that are none, and text that is no number",
			files: map[string]string{
				"proc/net/route": "garbage\n" + well,
				"proc/sys/net/netfilter/nf_conntrack_count": "many\n", "proc/sys/net/netfilter/nf_conntrack_max": "0\n",
			},
			want: State{Facts: []string{"gateway 192.0.2.1 on eth0"}},
		},
		{name: "a system without /proc"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := fstest.MapFS{}
			for name, text := range tt.files {
				root[name] = &fstest.MapFile{Data: []byte(text)}
			}
			if diff := cmp.Diff(tt.want, read(root, tt.links)); diff != "" {
				t.Errorf("state (-want +got):\n%s", diff)
			}
		})
	}
}
