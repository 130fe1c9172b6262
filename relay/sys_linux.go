//go:build !portable

package relay

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/internal/rawsocket"
)

// Each function here is one system call under the name of its manual page,
// with the flags that the loops always need and EINTR retried inside.
//
// All but epollWait with a timeout are calls that cannot block, so they go
// through RawSyscall, without notice to the Go scheduler. A zero Errno means
// success.

// errAgain is the error of a call on a socket that is not ready.
const errAgain = unix.EAGAIN

// recv reads from a socket; see recv(2).
func recv(fd int32, p []byte, flags int) (int, unix.Errno) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(flags), 0, 0)
		if e != unix.EINTR {
			return int(n), e
		}
	}
}

// send writes to a socket and never raises SIGPIPE; see send(2).
func send(fd int32, p []byte, flags int) (int, unix.Errno) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(flags|unix.MSG_NOSIGNAL), 0, 0)
		if e != unix.EINTR {
			return int(n), e
		}
	}
}

// write puts p into an empty pipe and returns how much of it went in; see
// write(2).
func write(fd int32, p []byte) int {
	for {
		n, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch e {
		case 0:
			return int(n)
		case unix.EINTR:
		default:
			return 0
		}
	}
}

// empty takes what is in an eventfd; see eventfd(2).
func empty(fd int32) {
	var n [8]byte
	_, _, _ = unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&n)), unsafe.Sizeof(n))
}

// splice moves up to n bytes between a pipe and a socket without copying them
// to user space; see splice(2). Never SPLICE_F_MORE: it holds the last segment
// of an answer back for up to 200 ms.
func splice(from, to int32, n int) (int, unix.Errno) {
	for {
		r, _, e := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if e != unix.EINTR {
			return int(r), e
		}
	}
}

// accept4 takes one connection from a listening socket; see accept(2).
func accept4(fd int32) (int32, unix.Errno) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		if e != unix.EINTR {
			return int32(n), e
		}
	}
}

// socket makes a non-blocking stream socket; see socket(2). Protocol 0 is
// plain TCP: Multipath TCP sockets cannot splice.
func socket(family int) (int32, unix.Errno) {
	n, _, e := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	return int32(n), e
}

// shutdown ends one or both directions; see shutdown(2).
func shutdown(fd int32, how int) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), uintptr(how), 0)
	return e
}

// closeFd gives a descriptor back; see close(2). It is not retried: Linux has
// freed the descriptor whatever close returns.
func closeFd(fd int32) {
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
}

// setsockopt sets an integer option; see setsockopt(2). The options set here
// cannot fail on a socket of the right family, and none is worth a connection.
func setsockopt(fd int32, level, name, value int) {
	_ = rawsocket.SetInt(int(fd), level, name, value) // see above
}

// unsent returns how many bytes written to a socket its peer has not taken yet
// (SIOCOUTQ; see tcp(7)).
func unsent(fd int32) int {
	n, _ := ioctl(fd, unix.SIOCOUTQ)
	return n
}

// atMark reports whether the next byte to read is the urgent one (SIOCATMARK;
// see tcp(7)).
func atMark(fd int32) bool {
	n, e := ioctl(fd, unix.SIOCATMARK)
	return e == 0 && n != 0
}

// ioctl asks a socket for a number; see ioctl(2).
func ioctl(fd int32, what uintptr) (int, unix.Errno) {
	var v int32
	_, _, e := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), what, uintptr(unsafe.Pointer(&v)))
	return int(v), e
}

// epollAdd registers fd once, for all events, edge-triggered; see epoll_ctl(2).
func epollAdd(ep int, fd int32, events uint32, tag tag) unix.Errno {
	ev := unix.EpollEvent{Events: events, Fd: tag.slot, Pad: tag.gen}
	return errno(unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, int(fd), &ev))
}

// epollDel removes fd; see epoll_ctl(2).
func epollDel(ep int, fd int32) {
	_ = unix.EpollCtl(ep, unix.EPOLL_CTL_DEL, int(fd), nil)
}

// epollWait returns pending events; see epoll_pwait(2), which every Linux port
// has. With a timeout of 0 it cannot block and stays a raw call; otherwise the
// Go scheduler must know that this thread sleeps, or the garbage collector
// would wait for it.
func epollWait(ep int, events []unix.EpollEvent, timeoutMS int) (int, unix.Errno) {
	if timeoutMS == 0 {
		return rawsocket.Events(ep, events)
	}
	p := unsafe.Pointer(unsafe.SliceData(events))
	n, _, e := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(p), uintptr(len(events)), uintptr(timeoutMS), 0, 0)
	return int(n), e
}

// schedYield yields the processor to another thread; see sched_yield(2).
func schedYield() {
	_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
}

func errno(err error) unix.Errno {
	if err == nil {
		return 0
	}
	if e, ok := err.(unix.Errno); ok { //nolint:errorlint // x/sys/unix returns bare Errno values
		return e
	}
	return unix.EINVAL
}

// sockaddr is an address in the form that connect(2) takes.
type sockaddr struct {
	rawsocket.Addr

	text string
	// ephemeral is true for a loopback port that the system may also hand out
	// as a source port: a connect to it can connect to itself.
	ephemeral bool
}

// inetAddr is the sockaddr of an IP address and port; scope is the interface
// index of a link-local IPv6 address.
func inetAddr(ap netip.AddrPort, scope uint32) sockaddr {
	return sockaddr{Addr: rawsocket.Inet(ap, scope), text: ap.String()}
}

// unixAddr is the sockaddr of a socket file.
func unixAddr(path string) (sockaddr, bool) {
	s := sockaddr{text: "unix:" + path}
	p := (*unix.RawSockaddrUnix)(unsafe.Pointer(&s.Raw))
	p.Family = unix.AF_UNIX
	if path == "" || len(path) >= len(p.Path) {
		return s, false
	}
	for i := range len(path) {
		p.Path[i] = int8(path[i])
	}
	s.Len = uint32(unsafe.Offsetof(p.Path)) + uint32(len(path)) + 1
	if path[0] == '@' { // the abstract namespace; see unix(7)
		p.Path[0] = 0
		s.Len--
	}
	return s, true
}
