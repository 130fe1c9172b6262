//go:build linux

package main

import (
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// address is a listening address: a TCP port, or a unix socket if path is
// not empty.
type address struct {
	tcp  netip.AddrPort
	path string
}

// unixPrefix is in front of the path of a unix socket, for nginx and understudy
// as well.
const unixPrefix = "unix:"

// parseAddress reads what String writes.
func parseAddress(s string) (address, error) {
	if path, ok := strings.CutPrefix(s, unixPrefix); ok {
		return address{path: path}, nil
	}
	tcp, err := netip.ParseAddrPort(s)
	return address{tcp: tcp}, err
}

// loopback is port of 127.b.c.d.
func loopback(b, c, d byte, port uint16) address {
	return address{tcp: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, b, c, d}), port)}
}

func (a address) String() string {
	if a.path != "" {
		return unixPrefix + a.path
	}
	return a.tcp.String()
}

// network and name are for package net.
func (a address) network() string {
	if a.path != "" {
		return "unix"
	}
	return "tcp4"
}

func (a address) name() string { return strings.TrimPrefix(a.String(), unixPrefix) }

// sockaddr is a in the kernel's form.
func (a address) sockaddr() unix.Sockaddr {
	if a.path != "" {
		return &unix.SockaddrUnix{Name: a.path}
	}
	return &unix.SockaddrInet4{Addr: a.tcp.Addr().As4(), Port: int(a.tcp.Port())}
}

// family is that of its sockets.
func (a address) family() int {
	if a.path != "" {
		return unix.AF_UNIX
	}
	return unix.AF_INET
}
