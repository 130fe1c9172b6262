package rawsocket

import (
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func newSocket(t *testing.T, family int) int {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func TestConnect(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Skipf("%s: %v", host, err) // a machine without IPv6
		}
		defer ln.Close()
		at := ln.Addr().(*net.TCPAddr).AddrPort()
		to := Inet(at, 0)
		if got := to.AddrPort(); got != at {
			t.Errorf("Inet of %v is %v", at, got)
		}
		fd := newSocket(t, to.Family())
		from := Inet(netip.AddrPortFrom(at.Addr(), 0), 0)
		if e := Bind(fd, &from); e != 0 {
			t.Fatal(e)
		}
		if peer := Peer(fd); peer.IsValid() {
			t.Errorf("a socket that is not connected has the peer %v", peer)
		}
		if e := Connect(fd, &to); e != 0 && e != unix.EINPROGRESS {
			t.Fatal(e)
		}
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if own := Own(fd); Peer(fd) != at || own != c.RemoteAddr().(*net.TCPAddr).AddrPort() {
			t.Errorf("%v is connected to %v, want %v and %v", own, Peer(fd), c.RemoteAddr(), at)
		}
		if e := Error(fd); e != 0 {
			t.Errorf("its error is %v", e)
		}
	}
}

// A client that is not accepted yet is an unacknowledged one of a listening socket.
func TestTCPInfo(t *testing.T) {
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for want := range uint32(3) {
		raw.Control(func(fd uintptr) {
			if info, e := TCPInfo(int(fd)); info.Unacked != want || e != 0 {
				t.Errorf("%d unacknowledged, %v, want %d", info.Unacked, e, want)
			}
		})
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if _, e := TCPInfo(-1); e != unix.EBADF {
		t.Errorf("of no socket: %v", e)
	}
}

func TestErrors(t *testing.T) {
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := Inet(ln.Addr().(*net.TCPAddr).AddrPort(), 0)
	ln.Close()
	fd := newSocket(t, unix.AF_INET)
	e := Connect(fd, &to)
	if e == unix.EINPROGRESS {
		e = Error(fd)
	}
	if e != unix.ECONNREFUSED {
		t.Errorf("a connect to nobody: %v", e)
	}
	if e := Error(-1); e != unix.EBADF {
		t.Errorf("the error of no socket: %v", e)
	}
	if e := SetInt(-1, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1); e != unix.EBADF {
		t.Errorf("an option of no socket: %v", e)
	}
	if own := Own(-1); own.IsValid() {
		t.Errorf("no socket has the address %v", own)
	}
}

func TestOptions(t *testing.T) {
	fd := newSocket(t, unix.AF_INET)
	if e := SetInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1234); e != 0 {
		t.Fatal(e)
	}
	if v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); v != 1234 || err != nil {
		t.Errorf("the option is %d, %v, want 1234", v, err)
	}
	for _, on := range []bool{true, false} {
		if e := SetResetOnClose(fd, on); e != 0 {
			t.Fatal(e)
		}
		got, err := unix.GetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER)
		if err != nil || got.Onoff != 0 != on || got.Linger != 0 {
			t.Errorf("SO_LINGER is %+v, %v, want on %t with 0 s", got, err, on)
		}
	}
}

// A unix socket has no IP address.
func TestUnixSocket(t *testing.T) {
	ln, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	raw, err := ln.(*net.UnixListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if own := Own(int(fd)); own.IsValid() {
			t.Errorf("a unix socket has the address %v", own)
		}
	})
}

func TestEvents(t *testing.T) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(epoll)
	event, err := unix.Eventfd(1, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(event)
	events := make([]unix.EpollEvent, 2)
	if n, e := Events(epoll, events); n != 0 || e != 0 {
		t.Errorf("%d events, %v, of nothing", n, e)
	}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, event, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: 7}); err != nil {
		t.Fatal(err)
	}
	if n, e := Events(epoll, events); n != 1 || e != 0 || events[0].Fd != 7 {
		t.Errorf("%d events, %v, with tag %d, want one with 7", n, e, events[0].Fd)
	}
}
