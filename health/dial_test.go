package health

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"
)

// A Dialer connects as clients are connected: from the same address, to the address that
// was chosen for the name, with a PROXY header to the port of clients.
func TestDialer(t *testing.T) {
	listen := func() (net.Listener, uint16) {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln, ln.Addr().(*net.TCPAddr).AddrPort().Port()
	}
	own, port := listen()
	other, otherPort := listen()
	d, err := NewDialer(func(context.Context, string) ([]netip.Addr, error) {
		t.Error("the name is looked up, although its address was chosen")
		return nil, io.EOF
	}, netip.MustParseAddr("127.0.0.3"), 2)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ctx = At(ctx, "db1.example", netip.MustParseAddr("127.0.0.1"))
	for _, tt := range []struct {
		ln   net.Listener
		port uint16
		want string
	}{
		{own, 0, "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00hello"},
		{other, otherPort, "hello"},
	} {
		conn, err := d.Dial(ctx, net.JoinHostPort("db1.example", strconv.Itoa(int(port))), tt.port)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "hello"); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		peer, err := tt.ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(peer)
		if string(got) != tt.want || err != nil {
			t.Errorf("port %d received %q, %v, want %q", tt.port, got, err, tt.want)
		}
		if from := peer.RemoteAddr().(*net.TCPAddr).IP.String(); from != "127.0.0.3" {
			t.Errorf("port %d: the connection is from %s, want 127.0.0.3", tt.port, from)
		}
		peer.Close()
	}
	if _, err := d.Dial(ctx, "no host", 0); err == nil {
		t.Error("Dial of no host: no error")
	}
	if _, err := NewDialer(nil, netip.Addr{}, 3); err == nil {
		t.Error("PROXY version 3: no error")
	}
}
