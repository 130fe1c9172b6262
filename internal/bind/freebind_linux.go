package bind

import (
	"os"

	"golang.org/x/sys/unix"
)

// setFreebind allows a socket to be bound to an address that this machine does
// not have; see ip(7).
func setFreebind(fd, family int) error {
	if family == unix.AF_INET6 {
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1))
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1))
}
