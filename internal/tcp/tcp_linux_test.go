package tcp

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"understudy/internal/bind"
)

// newSocket returns a blocking TCP socket over IPv4, bound to from.
func newSocket(t *testing.T, from netip.AddrPort, late bool) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if late {
		SetLatePort(fd)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: from.Addr().As4(), Port: int(from.Port())}); err != nil {
		t.Fatal(err)
	}
	return fd
}

func connectTo(t *testing.T, fd int, to netip.AddrPort) {
	t.Helper()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
		t.Fatal(err)
	}
}

var local = netip.MustParseAddrPort("127.0.0.1:0")

// A socket that is bound to an address has no port before it connects.
func TestSetLatePort(t *testing.T) {
	for _, late := range []bool{true, false} {
		if own := bind.LocalAddr(newSocket(t, local, late)); (own.Port() == 0) != late {
			t.Errorf("late port %t: the socket is bound to %s", late, own)
		}
	}
}

// A connect to the socket's own port reaches the socket itself; any other does not.
func TestConnectedToItself(t *testing.T) {
	fd := newSocket(t, local, false)
	if ConnectedToItself(fd) {
		t.Error("a socket that is not connected is connected to itself")
	}
	connectTo(t, fd, bind.LocalAddr(fd))
	if !ConnectedToItself(fd) {
		t.Errorf("the socket at %s is not connected to itself", bind.LocalAddr(fd))
	}

	to, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	fd = newSocket(t, local, true)
	connectTo(t, fd, netip.MustParseAddrPort(to.Addr().String()))
	if ConnectedToItself(fd) {
		t.Error("a socket with another peer is connected to itself")
	}
}

// Reset resets also while there is a copy of the descriptor, and the socket can connect
// again.
func TestReset(t *testing.T) {
	to, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	fd := newSocket(t, local, true)
	held, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(held)
	for range 2 {
		connectTo(t, fd, netip.MustParseAddrPort(to.Addr().String()))
		c, err := to.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := Reset(fd); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the peer got %v, want ECONNRESET", err)
		}
	}
	if err := Reset(-1); !errors.Is(err, unix.EBADF) {
		t.Errorf("Reset of no descriptor = %v, want EBADF", err)
	}
}
