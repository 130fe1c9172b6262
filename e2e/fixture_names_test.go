//go:build linux

package e2e

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// names is a name server whose answers the test chooses; see RFC 1035, section
// 4.
type names struct {
	mu      sync.Mutex // guards the following
	answers map[string]answer
	queries map[string]int
}

// answer is the reply for one name.
type answer struct {
	code   uint16 // RCODE
	addrs  []string
	silent bool
	turns  bool // each reply begins with the next address
}

var (
	noSuchName = answer{code: 3}
	failure    = answer{code: 2}
	silence    = answer{silent: true}
)

func at(addrs ...string) answer { return answer{addrs: addrs} }

// turning is at, in another order each time.
func turning(addrs ...string) answer { return answer{addrs: addrs, turns: true} }

// serveNames makes the name server of the namespace that the test runs in.
func serveNames(t *testing.T) *names {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(conf, "/etc/resolv.conf", "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenPacket("udp", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	n := &names{answers: map[string]answer{}, queries: map[string]int{}}
	go func() {
		query := make([]byte, 1500)
		for {
			size, from, err := conn.ReadFrom(query)
			if err != nil {
				return
			}
			if reply := n.reply(query[:size]); reply != nil {
				_, _ = conn.WriteTo(reply, from)
			}
		}
	}()
	return n
}

// say sets the answer for a name from now on.
func (n *names) say(name string, a answer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers[name] = a
}

// queriesOf returns the number of queries for the addresses of a name.
func (n *names) queriesOf(name string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.queries[name]
}

// reply answers a query, or is nil for silence.
func (n *names) reply(query []byte) []byte {
	const header = 12
	var labels []string
	i := header
	for i < len(query) && query[i] != 0 {
		end := i + 1 + int(query[i])
		if end > len(query) {
			return nil
		}
		labels = append(labels, string(query[i+1:end]))
		i = end
	}
	if i+5 > len(query) {
		return nil
	}
	question := query[header : i+5]
	n.mu.Lock()
	name := strings.Join(labels, ".")
	a, known := n.answers[name]
	const typeA = 1
	isA := binary.BigEndian.Uint16(query[i+1:]) == typeA
	if isA {
		n.queries[name]++
	}
	turn := n.queries[name]
	n.mu.Unlock()
	if !known {
		a = noSuchName
	}
	if a.silent {
		return nil
	}
	addrs := a.addrs
	if !isA {
		addrs = nil // there is only IPv4
	}
	if a.turns && len(addrs) > 0 {
		first := turn % len(addrs)
		addrs = slices.Concat(addrs[first:], addrs[:first])
	}
	reply := append([]byte(nil), query[:2]...)
	reply = binary.BigEndian.AppendUint16(reply, 0x8180|a.code) // an answer, recursion available
	for _, count := range []uint16{1, uint16(len(addrs)), 0, 0} {
		reply = binary.BigEndian.AppendUint16(reply, count)
	}
	reply = append(reply, question...)
	for _, addr := range addrs {
		reply = append(reply, 0xc0, header, 0, typeA, 0, 1, 0, 0, 0, 1, 0, 4) // the name of the query, IN, a second to live
		reply = append(reply, netip.MustParseAddr(addr).AsSlice()...)
	}
	return reply
}
