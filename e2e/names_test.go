//go:build linux

package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// names is a name server that answers as it is told; see RFC 1035, section 4.
type names struct {
	mu      sync.Mutex // guards answers
	answers map[string]answer
}

// answer is what is said of one name.
type answer struct {
	code   uint16 // RCODE
	addrs  []string
	silent bool
}

var (
	noSuchName = answer{code: 3}
	failure    = answer{code: 2}
	silence    = answer{silent: true}
)

func at(addrs ...string) answer { return answer{addrs: addrs} }

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
	n := &names{answers: map[string]answer{}}
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

// say tells what is answered about a name from now on.
func (n *names) say(name string, a answer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers[name] = a
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
	a, known := n.answers[strings.Join(labels, ".")]
	n.mu.Unlock()
	if !known {
		a = noSuchName
	}
	if a.silent {
		return nil
	}
	const typeA = 1
	addrs := a.addrs
	if binary.BigEndian.Uint16(query[i+1:]) != typeA {
		addrs = nil // there is only IPv4
	}
	reply := append([]byte(nil), query[:2]...)
	reply = binary.BigEndian.AppendUint16(reply, 0x8180|a.code) // an answer, recursion available
	for _, count := range []uint16{1, uint16(len(addrs)), 0, 0} {
		reply = binary.BigEndian.AppendUint16(reply, count)
	}
	reply = append(reply, question...)
	for _, addr := range addrs {
		reply = append(reply, 0xc0, header, 0, typeA, 0, 1, 0, 0, 0, 1, 0, 4) // the name asked for, IN, a second to live
		reply = append(reply, netip.MustParseAddr(addr).AsSlice()...)
	}
	return reply
}

// F07: hosts by name, and a name server that fails in all the usual ways.
func TestNames(t *testing.T) {
	t.Parallel()
	if !isolate(t, "nft") {
		return
	}
	run(t, "nft", "add table inet fault")
	run(t, "nft", "add chain inet fault input { type filter hook input priority 0; }")
	run(t, "nft add rule inet fault input ip daddr 127.0.0.99 drop")
	server := serveNames(t)
	port := proctest.FreePort(t, "127.0.0.1")
	a := (&proctest.Host{Name: "a", IP: "127.0.0.2", Port: port}).Start(t)
	b := (&proctest.Host{Name: "b", IP: "127.0.0.3", Port: port}).Start(t)
	(&proctest.Host{Name: "moved", IP: "127.0.0.4", Port: port}).Start(t)
	server.say("b.test", at(b.IP))
	for i, tt := range []struct {
		name      string
		before    answer // about a
		at        string // who serves then
		after     answer
		then      string
		elections int
	}{
		{"a name that does not exist at the start", noSuchName, "b", at(a.IP), "b", 1},
		{"a name server that fails at the start", failure, "b", at(a.IP), "b", 1},
		{"a name server that is silent at the start", silence, "b", at(a.IP), "b", 1},
		{"a name without an address at the start", at(), "b", at(a.IP), "b", 1},
		{"the name vanishes", at(a.IP), "a", noSuchName, "b", 2},
		{"the name server begins to fail", at(a.IP), "a", failure, "a", 1},
		{"the name server falls silent", at(a.IP), "a", silence, "a", 1},
		{"the address changes", at(a.IP), "a", at("127.0.0.4"), "moved", 1},
		{"two of three addresses are dead", at("127.0.0.98", "127.0.0.99", a.IP), "a", at(a.IP), "a", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			name := fmt.Sprintf("a%d.test", i)
			server.say(name, tt.before)
			addr := freeAddr(t)
			u := start(t, "--bind", addr, "--hosts", fmt.Sprintf("%s:%d,b.test:%d", name, port, port))
			begin := time.Now()
			awaitGreeting(t, u, addr, tt.at)
			served := time.Since(begin)
			wantWithin(t, "the first election", served, 5*time.Second)
			first := lookAt(t, u.PID())
			clients := proctest.StartLoad(t, addr, perSecond/4, patience)
			server.say(name, tt.after)
			awaitGreeting(t, u, addr, tt.then)
			if tt.at == "b" {
				u.Until("a is up", func() bool { return countLog(u, "host changed state", "host="+name, "to=up") == 1 })
			} else {
				time.Sleep(1500 * time.Millisecond) // a check and its timeout
			}
			report := finish(u, clients)
			t.Logf("served after %v; %v", served, report)
			if lost := report.Lost(); len(lost) > 0 {
				t.Errorf("%d clients lost, first: %v", len(lost), lost[0].Err)
			}
			if n := elections(u); n != tt.elections {
				t.Errorf("%d elections, want %d", n, tt.elections)
			}
			if n := strings.Count(u.Log(), "\n"); n > 20 {
				t.Errorf("%d lines of log", n)
			}
			server.say(name, at(a.IP)) // no query stays under way
			if tt.then == "moved" {
				tt.then = "a"
			}
			awaitGreeting(t, u, addr, tt.then)
			lookAgain(t, u, first, addr, tt.then)
			end(t, u)
		})
	}
}
