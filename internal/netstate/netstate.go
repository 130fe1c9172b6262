// Package netstate reads the state of this machine's network that may explain
// why nothing can be reached: links, default routes and their gateways, and the
// table of connections of the firewall; and the addresses of its loopback
// interfaces. It reads what the kernel has at hand and sends nothing.
package netstate

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// State is the state of the network at one moment, one fact per sentence.
type State struct {
	Problems []string // possible causes, the most likely first
	Facts    []string // facts against a cause in the network
}

// link is a network interface.
type link struct {
	name        string
	up, running bool // by the operator, and with a carrier
	loopback    bool
	used        bool // it has an address
}

// Read reads the state of the network of this process. What cannot be read, as
// on systems without /proc, is left out.
func Read() State { return read(os.DirFS("/"), links()) }

func links() (all []link) {
	list, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, i := range list {
		addrs, err := i.Addrs()
		all = append(all, link{
			name: i.Name, up: i.Flags&net.FlagUp != 0, running: i.Flags&net.FlagRunning != 0,
			loopback: i.Flags&net.FlagLoopback != 0, used: err == nil && len(addrs) > 0,
		})
	}
	return all
}

func read(root fs.FS, links []link) State {
	var s State
	s.conntrack(root)
	s.links(root, links)
	s.routes(root)
	return s
}

func (s *State) problem(format string, args ...any) {
	s.Problems = append(s.Problems, fmt.Sprintf(format, args...))
}

func (s *State) fact(format string, args ...any) {
	s.Facts = append(s.Facts, fmt.Sprintf(format, args...))
}

// conntrack reads how full the firewall's table of connections is. When it is
// full, the kernel drops the first packet of every new connection; see
// nf_conntrack-sysctl of the kernel's documentation.
func (s *State) conntrack(root fs.FS) {
	number := func(name string) (int, bool) {
		text, err := fs.ReadFile(root, "proc/sys/net/netfilter/nf_conntrack_"+name)
		if err != nil {
			return 0, false
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(text)))
		return n, err == nil
	}
	count, ok := number("count")
	most, ok2 := number("max")
	switch {
	case !ok || !ok2 || most == 0: // without a limit
	case count >= most-most/20: // entries come and go while it is read
		s.problem("the conntrack table is full: %d of %d", count, most)
	default:
		s.fact("conntrack %d of %d", count, most)
	}
}

// links reads which links that are in use are down.
func (s *State) links(root fs.FS, links []link) {
	for _, l := range links {
		_, err := fs.Stat(root, "sys/class/net/"+l.name+"/bridge")
		switch {
		case !l.used && !l.loopback:
		case !l.up:
			s.problem("link %s is down", l.name)
		case !l.running && err != nil: // a bridge without ports never has one
			s.problem("link %s has no carrier", l.name)
		}
	}
}

// routes reads the routes to other networks.
func (s *State) routes(root fs.FS) {
	text, err := fs.ReadFile(root, "proc/net/route")
	if err != nil {
		return
	}
	gateways := defaults4(text)
	silent := unanswered(root)
	if text, err := fs.ReadFile(root, "proc/net/ipv6_route"); err == nil {
		gateways = append(gateways, defaults6(text)...)
	}
	if len(gateways) == 0 {
		s.problem("there is no default route")
	}
	for _, g := range gateways {
		switch {
		case !g.addr.IsValid():
			s.fact("default route on %s", g.link)
		case slices.Contains(silent, g.addr):
			s.problem("gateway %s on %s does not answer ARP", g.addr, g.link)
		default:
			s.fact("gateway %s on %s", g.addr, g.link)
		}
	}
}

// gateway is a default route; its address is not valid when the route has only
// a link.
type gateway struct {
	link string
	addr netip.Addr
}

// The flags of a route; see route(8).
const (
	routeUp      = 0x1
	routeGateway = 0x2
	routeReject  = 0x200
)

// defaults4 finds the default routes of /proc/net/route: interface, destination,
// gateway, flags, …, the mask in the eighth column; see proc_net(5). Addresses
// are in the order of this machine's bytes.
func defaults4(text []byte) (all []gateway) {
	for f := range table(text, 8) {
		flags, err := strconv.ParseUint(f[3], 16, 32)
		if err != nil || f[1] != "00000000" || f[7] != "00000000" || flags&routeUp == 0 || flags&routeReject != 0 {
			continue
		}
		g := gateway{link: f[0]}
		if raw, err := strconv.ParseUint(f[2], 16, 32); err == nil && flags&routeGateway != 0 {
			var b [4]byte
			binary.NativeEndian.PutUint32(b[:], uint32(raw))
			g.addr = netip.AddrFrom4(b)
		}
		all = append(all, g)
	}
	return all
}

// defaults6 finds the default routes of /proc/net/ipv6_route: destination,
// prefix length, source, its length, gateway, metric, references, use, flags,
// interface.
func defaults6(text []byte) (all []gateway) {
	for f := range table(text, 10) {
		flags, err := strconv.ParseUint(f[8], 16, 32)
		if err != nil || strings.Trim(f[0], "0") != "" || f[1] != "00" || flags&routeUp == 0 || flags&routeReject != 0 || f[9] == "lo" {
			continue
		}
		g := gateway{link: f[9]}
		if raw, err := hex.DecodeString(f[4]); err == nil && flags&routeGateway != 0 {
			g.addr, _ = netip.AddrFromSlice(raw)
		}
		all = append(all, g)
	}
	return all
}

// unanswered lists the neighbours that do not answer, from /proc/net/arp:
// address, type, flags, of which zero is incomplete; see arp(7).
func unanswered(root fs.FS) (all []netip.Addr) {
	text, err := fs.ReadFile(root, "proc/net/arp")
	if err != nil {
		return nil
	}
	for f := range table(text, 6) {
		if addr, err := netip.ParseAddr(f[0]); err == nil && f[2] == "0x0" {
			all = append(all, addr)
		}
	}
	return all
}

// table yields the lines of text that have at least so many columns.
func table(text []byte, columns int) func(func([]string) bool) {
	return func(yield func([]string) bool) {
		for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
			if f := strings.Fields(lines.Text()); len(f) >= columns && !yield(f) {
				return
			}
		}
	}
}
