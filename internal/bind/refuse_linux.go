//go:build !portable

package bind

import "golang.org/x/sys/unix"

// refuse refuses clients of a TCP socket, or of one that another program made.
// On Linux shutdown(2) on a listening TCP socket resets the clients in its
// queue and refuses new ones, and listen(2) reverses that, so the address is
// never released.
func (s *Socket) refuse() error {
	if s.Addr.Network() == "unix" {
		// A unix socket cannot listen again after shutdown, and its file must
		// not be recreated by us: the clients in the queue are closed, later
		// ones wait.
		for {
			fd, _, err := unix.Accept4(s.FD, unix.SOCK_CLOEXEC)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return nil // the queue is empty
			}
			_ = unix.Close(fd)
		}
	}
	s.listening = false
	_ = unix.Shutdown(s.FD, unix.SHUT_RD)
	reuse(s.FD, 0)
	return nil
}
