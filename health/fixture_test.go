package health

import (
	"bufio"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"syscall"
	"testing"
	"time"

	"understudy/internal/criteria"
	"understudy/internal/proctest"
)

// complete gives the settings of cfg that are zero the values that most tests
// use.
func complete(cfg ProberConfig) ProberConfig {
	cfg.Name = cmp.Or(cfg.Name, "elastic")
	cfg.Interval = cmp.Or(cfg.Interval, time.Second)
	cfg.Timeout = cmp.Or(cfg.Timeout, time.Second)
	cfg.Rise = cmp.Or(cfg.Rise, 2)
	cfg.Fall = cmp.Or(cfg.Fall, 3)
	return cfg
}

// get returns cfg with GET and /ping as defaults.
func get(cfg HTTPConfig) HTTPConfig {
	cfg.Path = cmp.Or(cfg.Path, "/ping")
	cfg.Method = cmp.Or(cfg.Method, http.MethodGet)
	return cfg
}

// checkLimit is the longest time that a check may take that should take no time at all.
const checkLimit = 10 * time.Second

// checkContext returns the context of one check, and fails the test at its end
// when a goroutine is left.
func checkContext(tb testing.TB, timeout time.Duration) context.Context {
	tb.Helper()
	proctest.NoLeaks(tb)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	tb.Cleanup(cancel)
	return ctx
}

// listenHost listens on a loopback port and handles each connection with
// serve, which may return with it open. It returns the connection string, and
// ends everything with the test.
func listenHost(tb testing.TB, network, addr string, serve func(net.Conn)) string {
	tb.Helper()
	proctest.NoLeaks(tb)
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

// refusedHost returns the connection string of a port without a listener.
func refusedHost(tb testing.TB) string {
	tb.Helper()
	return proctest.FreeAddr(tb)
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

// namesOf returns a ResolveFunc for one name.
func namesOf(name string, addrs ...string) ResolveFunc {
	return func(_ context.Context, requested string) ([]netip.Addr, error) {
		if requested != name {
			return nil, &net.DNSError{Err: "no such host", Name: requested, IsNotFound: true}
		}
		var all []netip.Addr
		for _, a := range addrs {
			all = append(all, netip.MustParseAddr(a))
		}
		return all, nil
	}
}

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

// issue returns a certificate that is valid today by default.
func (a *authority) issue(tb testing.TB, cert *x509.Certificate) tls.Certificate {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	cert.SerialNumber = big.NewInt(1)
	cert.Subject = pkix.Name{CommonName: "test"}
	if cert.NotAfter.IsZero() {
		cert.NotBefore, cert.NotAfter = time.Now().Add(-24*time.Hour), time.Now().Add(24*time.Hour)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = cert, key
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, &key.PublicKey, signer)
	if err != nil {
		tb.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// pongExpect is what the selector's pong check asks for.
var pongExpect = criteria.Expect{Status: []string{"200"}, Body: "pong"}

// checkHTTP makes one HTTP check of the port of host.
func checkHTTP(ctx context.Context, tb testing.TB, cfg HTTPConfig, host string) Result {
	tb.Helper()
	cfg.Port = portOf(tb, host)
	check, err := HTTP(get(cfg))
	if err != nil {
		tb.Fatal(err)
	}
	// The port of the connection string plays no part.
	return check(ctx, "127.0.0.1:1")
}

var (
	passed  = Result{OK: true}
	refused = Result{Phase: Connect, Err: syscall.ECONNREFUSED}
	local   = Result{Phase: Connect, Err: syscall.EMFILE, Unknown: true}
)

var (
	addrA    = netip.MustParseAddr("192.0.2.1")
	addrB    = netip.MustParseAddr("192.0.2.2")
	nxdomain = &net.DNSError{Err: "no such host", Name: "db1", IsNotFound: true}
	servfail = &net.DNSError{Err: "server misbehaving", Name: "db1", IsTemporary: true}
)

// serveReset resets the connection, at once.
func serveReset(conn net.Conn) {
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
}

func serveClose(conn net.Conn) { conn.Close() }

func serveBanner(conn net.Conn) { io.WriteString(conn, "220 ready\r\n") }

// named returns the connection string of name and port.
func named(name string, port int) string { return net.JoinHostPort(name, strconv.Itoa(port)) }

// tcpOf returns the check that only connects.
func tcpOf(resolve ResolveFunc) Check {
	check, err := TCPExchange(TCPConfig{Resolve: resolve})
	if err != nil {
		panic(err)
	}
	return check
}
