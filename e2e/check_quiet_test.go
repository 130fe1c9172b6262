//go:build linux

package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/pires/go-proxyproto"

	"understudy/internal/proctest"
)

// serve handles every connection to ln until the end of the test.
func serve(ln net.Listener, handle func(net.Conn)) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go handle(conn)
	}
}

// countPongs answers "pong" on a port of its own. It returns the port and the
// number of requests so far, which the tests below use as a clock.
func countPongs(t *testing.T) (port string, requested *atomic.Int64) {
	t.Helper()
	ln := listen(t)
	requested = new(atomic.Int64)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requested.Add(1)
		fmt.Fprint(w, "pong")
	})}
	go server.Serve(ln)
	t.Cleanup(func() { server.Close() })
	return portOf(ln.Addr().String()), requested
}

// F13: a host accepts the connections of clients and none of the checks,
// however often it is checked.
func TestTCPChecksAreNotSeen(t *testing.T) {
	t.Parallel()
	ln := listen(t)
	var accepted atomic.Int64
	go serve(ln, func(conn net.Conn) {
		accepted.Add(1)
		fmt.Fprintln(conn, "a")
		conn.Close()
	})
	port, pongs := countPongs(t)
	addr := freeAddr(t)
	u := start(t, "--bind", addr, "--hosts", ln.Addr().String(), "--interval", "20ms", "--pong-port", port)
	u.WaitLog("relay open")
	const checks = 200
	u.Until("200 checks are done", func() bool { return pongs.Load() >= checks })
	if n := accepted.Load(); n > checks/50 { // a busy machine may be later than the 200ms of a delayed ACK
		t.Errorf("the host accepted %d connections of %d checks, want none", n, checks)
	}
	awaitGreeting(t, u, addr, "a")
	end(t, u)
}

// F13: MariaDB refuses an address with which max_connect_errors connections in a row
// have ended without a login; it counts none from 127.0.0.1 itself.
func TestMariaDBIsNotBlockedByChecks(t *testing.T) {
	t.Parallel()
	m := newMariaDB(t)
	d := m.serve("a", "--max-connect-errors=5")
	m.application(d)
	port, pongs := countPongs(t)
	addr := freeAddr(t)
	u := start(t, "--bind", addr, "--hosts", d.addr(), "--interval", "50ms", "--pong-port", port, "--source", "127.0.0.9")
	u.WaitLog("relay open")
	u.Until("100 checks are done", func() bool { return pongs.Load() >= 100 })
	m.wantServed(addr)
	if n := m.number(d, "Aborted_connects"); n != 0 {
		t.Errorf("Aborted_connects is %d, want 0", n)
	}
	end(t, u)
}

// F14: checks come from the same source address as clients' connections and
// begin with the same kind of header: a host that requires both is elected and
// serves.
func TestChecksGoTheWayOfClients(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"v1", "v2"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			ln := listen(t)
			go serve(ln, func(conn net.Conn) {
				defer conn.Close()
				if from, _, _ := net.SplitHostPort(conn.RemoteAddr().String()); from != "127.0.0.9" {
					return
				}
				in := bufio.NewReader(conn)
				header, err := proxyproto.Read(in)
				if err != nil || fmt.Sprintf("v%d", header.Version) != version {
					return
				}
				if !header.TransportProtocol.IsUnspec() { // a client's
					fmt.Fprintln(conn, "a")
					return
				}
				if _, err := http.ReadRequest(in); err == nil {
					fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong")
				}
			})
			addr := freeAddr(t)
			u := start(t, "--bind", addr, "--hosts", ln.Addr().String(), "--pong-port", portOf(ln.Addr().String()),
				"--source", "127.0.0.9", "--send-proxy", version)
			awaitGreeting(t, u, addr, "a")
			end(t, u)
		})
	}
}

// F14: a host that cannot be reached from the source address of clients is down,
// though it can be reached from another one.
func TestHostUnreachableFromSourceIsDown(t *testing.T) {
	t.Parallel()
	if !isolate(t, "nft") {
		return
	}
	a := (&proctest.Host{Name: "a"}).Start(t)
	b := (&proctest.Host{Name: "b"}).Start(t)
	run(t, "nft add table inet test")
	run(t, "nft add chain inet test in { type filter hook input priority 0 ; }")
	run(t, "nft add rule inet test in ip saddr 127.0.0.9 tcp dport", fmt.Sprint(a.Port), "reject with tcp reset")
	addr := freeAddr(t)
	u := start(t, "--bind", addr, "--hosts", a.Addr()+","+b.Addr(), "--source", "127.0.0.9")
	awaitGreeting(t, u, addr, "b")
	u.Until("a is down", func() bool { return countLog(u, "host changed state", "host="+a.Addr(), "to=down") == 1 })
	end(t, u)
}
