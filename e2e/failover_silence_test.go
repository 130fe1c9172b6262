//go:build linux

package e2e

import (
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// fickle is a host that passes its TCP checks and treats its clients as the
// test chooses.
type fickle struct {
	addr  string
	treat atomic.Pointer[func(c *net.TCPConn)]
}

// The ways to treat a client.
var (
	closes = func(*net.TCPConn) {}
	drops  = func(c *net.TCPConn) { _, _ = io.ReadFull(c, make([]byte, len("hello"))) }
	resets = func(c *net.TCPConn) {
		time.Sleep(20 * time.Millisecond) // a check has ended by then
		_ = c.SetLinger(0)
	}
	waits  = func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }
	greets = func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "a\n")
		_, _ = io.Copy(io.Discard, c)
	}
)

func newFickle(t *testing.T) *fickle {
	t.Helper()
	h := &fickle{addr: freeAddr(t)}
	h.treat.Store(&closes)
	ln, err := net.Listen("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go func() {
					defer c.Close()
					(*h.treat.Load())(c.(*net.TCPConn))
				}()
			}
		}
	}()
	return h
}

// dialFrom connects from a local address.
func dialFrom(t *testing.T, from, addr string) client {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
	conn, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return client{conn.(*net.TCPConn), t}
}

// A proxy in front of a dead service accepts and ends at once: the host passes its
// TCP checks and serves no client. That is logged, and no other host is elected
// because of it. A client that connects and closes by itself, such as a
// monitor, does not count.
func TestHostThatSendsItsClientsAway(t *testing.T) {
	t.Parallel()
	h, o := newFickle(t), newOperated(t)
	o.Understudy = start(t, "--bind", o.addr, "--hosts", h.addr+","+o.b.Addr(), "--control", o.socket, "--interval", "200ms")
	o.WaitLog("relay open")
	const warning = "clients receive no data from a host that passes its checks"
	come := func(n int, end func(c client)) {
		t.Helper()
		for i := range n {
			c := dialFrom(t, []string{"127.0.0.1", "127.0.0.2"}[i%2], o.addr)
			end(c)
			c.Close()
		}
	}
	readAll := func(c client) { _, _ = io.Copy(io.Discard, c) }
	request := func(c client) {
		c.send("hello")
		readAll(c)
	}
	want := func(silent uint64, row int) {
		t.Helper()
		now := o.now()
		if now.Clients.Silent != silent || now.Clients.InARow != row {
			t.Errorf("%d silent connections, %d in a row; want %d and %d", now.Clients.Silent, now.Clients.InARow, silent, row)
		}
		const line = "client connections at once, without a byte"
		if got := o.run("why").out; strings.Contains(got, line) != (row >= 5) || strings.Contains(now.Why, line) != (row >= 5) {
			t.Errorf("with %d silent connections in a row, why says %q, and status %q", row, got, now.Why)
		}
	}

	h.treat.Store(&waits)
	come(20, func(client) {})
	o.Until("the monitors to be counted", func() bool { n := o.now().Clients; return n.Accepted == 20 && n.Live == 0 })
	want(0, 0)

	h.treat.Store(&drops)
	come(4, request)
	want(4, 4)
	come(6, request)
	o.WaitLog(warning)
	want(10, 10)
	h.treat.Store(&closes)
	come(10, readAll)
	want(20, 20)

	h.treat.Store(&greets)
	o.awaitGreeting("a")
	o.Until("the byte is counted", func() bool { return o.now().Clients.InARow == 0 })
	want(20, 0)
	if n := countLog(o.Understudy, warning, "in-a-row="); n != 1 {
		t.Errorf("%d warnings in less than a minute, want one", n)
	}
	o.Until("the host was suspected", func() bool { return countLog(o.Understudy, "host suspected", "5 client connections in a row") > 0 })
	wantElections(t, o.Understudy, 1)
	o.end()
}

// A host that resets every connection: a client is reset long before hold has
// passed.
func TestHostThatResetsWhatItAccepts(t *testing.T) {
	t.Parallel()
	h := newFickle(t)
	h.treat.Store(&resets)
	addr := freeAddr(t)
	u := start(t, "--bind", addr, "--hosts", h.addr, "--hold", "20s")
	u.WaitLog("relay open")
	for range 3 {
		begin := time.Now()
		c := dial(t, addr)
		if rest, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read %q, %v, want a reset", rest, err)
		}
		wantWithin(t, "the reset", time.Since(begin), 10*time.Second)
	}
	u.WaitLog("the host ended a connection before a byte had passed")
	if n := end(t, u); n["reset"] != 3 {
		t.Errorf("counts at the end: %v, want 3 reset", n)
	}
}
