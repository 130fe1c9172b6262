package tcp

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/internal/rawsocket"
)

// SetLatePort has connect(2) choose the port of a socket that is bound to a source
// address. Otherwise bind(2) chooses it, and one port serves one connection only; see
// IP_BIND_ADDRESS_NO_PORT in ip(7). A kernel without the option chooses it at bind(2).
func SetLatePort(fd int) {
	_ = rawsocket.SetInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
}

// ConnectedToItself reports whether a socket is connected to itself. That happens when there is
// no listener on a local port which the system then chooses as the source port: the two
// SYNs meet, and the connect succeeds.
func ConnectedToItself(fd int) bool {
	own := rawsocket.Own(fd)
	return own.IsValid() && own == rawsocket.Peer(fd)
}

// SetResetOnClose has close(2) reset the connection and throw away what was not
// sent yet, also when the process is killed: otherwise the kernel goes on trying to
// deliver that after its end.
func SetResetOnClose(fd int, on bool) {
	_ = rawsocket.SetResetOnClose(fd, on)
}

// Reset resets an established connection at once, by connect(2) with AF_UNSPEC. Unlike
// close(2) with SO_LINGER 0 it does so even while a process that is being forked still
// has a copy of the descriptor. The socket can connect again afterwards.
func Reset(fd int) error {
	none := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none)) //nolint:gosec // G103: x/sys has no connect with AF_UNSPEC
	if errno != 0 {
		return errno
	}
	return nil
}

// SetUserTimeout has the system end a connection when its peer has taken nothing of what was
// sent for so long, because it is gone or does not read; see TCP_USER_TIMEOUT in tcp(7). The
// connections of a listener have it from the listener. Elsewhere than on Linux it does
// nothing.
func SetUserTimeout(fd int, d time.Duration) {
	_ = rawsocket.SetInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
}
