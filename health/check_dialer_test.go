package health

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"

	"understudy/internal/criteria"
)

// servePong answers "pong" to the request that follows a PROXY header, which
// must be of the version and say that the connection is the proxy's own; zero
// expects none. A line instead of a request gets the same answer.
func servePong(version byte) func(net.Conn) {
	return func(conn net.Conn) {
		defer conn.Close()
		in := bufio.NewReader(conn)
		answer := func(text string) {
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
		}
		header, err := proxyproto.Read(in)
		switch {
		case version == 0 && err == nil:
			answer("an unexpected header")
			return
		case version != 0 && err != nil:
			answer("no header: " + err.Error())
			return
		case version != 0 && (header.Version != version || !header.TransportProtocol.IsUnspec() || version == 2 && !header.Command.IsLocal()):
			answer(fmt.Sprintf("the header %+v", header))
			return
		}
		if _, err := http.ReadRequest(in); err == nil {
			answer("pong")
		}
	}
}

// A host that expects a PROXY header gets one from every check that is accepted
// where clients are connected to, and from none elsewhere.
func TestChecksSendProxy(t *testing.T) {
	const request = "GET /ping HTTP/1.1\r\nHost: db1\r\n\r\n"
	for version := range 3 {
		t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
			ctx := checkContext(t, checkLimit)
			host := listenHost(t, "tcp", "127.0.0.1:0", servePong(byte(version)))
			elsewhere := listenHost(t, "tcp", "127.0.0.1:0", servePong(0))
			local := listenHost(t, "unix", filepath.Join(t.TempDir(), "s"), servePong(byte(version)))
			for _, tt := range []struct {
				name, host string
				port       int
			}{
				{"where clients go", host, 0},
				{"on the same port, by its number", host, portOf(t, host)},
				{"on another port", host, portOf(t, elsewhere)},
				{"on a unix socket", local, 0},
				{"on a port beside a unix socket", local, portOf(t, elsewhere)},
			} {
				pong, err := HTTP(get(HTTPConfig{Port: tt.port, SendProxy: version, Expect: pongExpect}))
				if err != nil {
					t.Fatal(err)
				}
				if got := pong(ctx, tt.host); !got.OK {
					t.Errorf("http %s = %v", tt.name, got.Err)
				}
				exchange, err := TCPExchange(TCPConfig{Port: tt.port, SendProxy: version, Send: []byte(request), Expect: []byte("\r\n\r\npong")})
				if err != nil {
					t.Fatal(err)
				}
				if got := exchange(ctx, tt.host); !got.OK {
					t.Errorf("tcp %s = %v", tt.name, got.Err)
				}
			}
		})
	}
	for _, version := range []int{-1, 3} {
		if _, err := HTTP(get(HTTPConfig{SendProxy: version})); err == nil || !strings.Contains(err.Error(), "send-proxy: ") {
			t.Errorf("HTTP with version %d = %v, want an error", version, err)
		}
		if _, err := TCPExchange(TCPConfig{SendProxy: version}); err == nil || !strings.Contains(err.Error(), "send-proxy: ") {
			t.Errorf("TCPExchange with version %d = %v, want an error", version, err)
		}
	}
}

// A check that only connects sends its PROXY header if the host accepts it.
func TestPoliteCheckSendsProxy(t *testing.T) {
	said := make(chan string, 1)
	local := listenHost(t, "unix", filepath.Join(t.TempDir(), "s"), func(conn net.Conn) {
		text, _ := io.ReadAll(conn)
		said <- string(text)
	})
	check, err := TCPExchange(TCPConfig{SendProxy: 1})
	if err != nil {
		t.Fatal(err)
	}
	if got := check(checkContext(t, checkLimit), local); !got.OK {
		t.Fatal(got.Err)
	}
	if got, want := <-said, "PROXY UNKNOWN\r\n"; got != want {
		t.Errorf("the host was sent %q, want %q", got, want)
	}
}

func TestChecksHaveSource(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("SKIP: needs all of 127.0.0.0/8 on loopback, as on Linux")
	}
	ctx := checkContext(t, checkLimit)
	host := listenHost(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		from, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		serveRaw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"+from, "")(conn)
	})
	for _, tt := range []struct {
		source string
		want   string // the host sees; empty for a check that fails
	}{
		{"127.0.0.9", "127.0.0.9"},
		{"::ffff:127.0.0.9", "127.0.0.9"},
		{"::1", ""}, // of another family: the system chooses, as for clients
		{"192.0.2.77", ""},
	} {
		cfg := HTTPConfig{Source: netip.MustParseAddr(tt.source), Expect: criteria.Expect{BodyContains: "127.0.0.9"}}
		check, err := HTTP(get(cfg))
		if err != nil {
			t.Fatal(err)
		}
		got := check(ctx, host)
		if got.OK != (tt.want != "") {
			t.Errorf("HTTP from %s = %+v, want the host to see %q", tt.source, got, tt.want)
		}
		if !got.OK && got.Unknown != (tt.source == "192.0.2.77") {
			t.Errorf("HTTP from %s = %+v: only an address that is not here is a fault of this machine", tt.source, got)
		}
	}
}
