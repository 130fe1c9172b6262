package health

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"testing"
	"time"
)

// checkLimit is how long a check may take that should take no time at all.
const checkLimit = 10 * time.Second

// checkContext returns the context of one check, and fails the test at its end
// when a goroutine is left.
func checkContext(tb testing.TB, timeout time.Duration) context.Context {
	tb.Helper()
	noLeaks(tb)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	tb.Cleanup(cancel)
	return ctx
}

// listenHost listens on a loopback port and handles each connection with
// serve, which may return with it open. It returns the connection string, and
// ends everything with the test.
func listenHost(tb testing.TB, network, addr string, serve func(net.Conn)) string {
	tb.Helper()
	noLeaks(tb)
	ln, err := net.Listen(network, addr)
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(3 * checkLimit))
			served := make(chan struct{})
			go func() { defer close(served); serve(conn) }()
			defer func() { conn.Close(); <-served }()
		}
	}()
	tb.Cleanup(func() { ln.Close(); <-done })
	if network == "unix" {
		return "unix:" + addr
	}
	return ln.Addr().String()
}

// serveRaw returns a handler that reads one request and answers it with raw,
// then with endless once and again, and closes.
func serveRaw(raw, endless string) func(net.Conn) {
	return func(conn net.Conn) {
		defer conn.Close()
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
			return
		}
		_, err := io.WriteString(conn, raw)
		for endless != "" && err == nil {
			_, err = io.WriteString(conn, endless)
		}
	}
}

func serveNothing(net.Conn) {}

// refusedHost returns the connection string of a port on which nobody listens.
func refusedHost(tb testing.TB) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func portOf(tb testing.TB, host string) int {
	tb.Helper()
	_, port, err := net.SplitHostPort(host)
	if err != nil {
		tb.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

// namesOf returns a ResolveFunc that knows one name.
func namesOf(name string, addrs ...string) ResolveFunc {
	return func(_ context.Context, asked string) ([]netip.Addr, error) {
		if asked != name {
			return nil, &net.DNSError{Err: "no such host", Name: asked, IsNotFound: true}
		}
		var all []netip.Addr
		for _, a := range addrs {
			all = append(all, netip.MustParseAddr(a))
		}
		return all, nil
	}
}
