//go:build !portable

package relay

import (
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// listener is one bound address. It listens only while the relay is open or
// holds; otherwise the address is merely claimed.
//
// On Linux shutdown(2) on a listening TCP socket resets the clients in its
// queue and refuses new ones, and listen(2) on the same descriptor undoes it, so
// the address is never given up.
type listener struct {
	fd        int32
	path      string // of a unix socket
	listening atomic.Bool
	addr      net.Addr
}

func newListener(c claim) *listener {
	ln := &listener{fd: int32(c.fd), path: c.path, addr: c.addr}
	ln.listening.Store(c.listens())
	return ln
}

// listen takes connections from now on. Accepted sockets inherit the options
// set here; see tcp(7) and socket(7).
func (ln *listener) listen(userTimeout time.Duration) error {
	if ln.listening.Load() {
		return nil
	}
	if ln.path != "" && ln.fd < 0 { // a unix socket does not come back from shutdown
		again, err := claimUnix(ln.path)
		if err != nil {
			return fmt.Errorf("listen on %s: %w", ln.addr, err)
		}
		ln.fd = int32(again.fd)
	}
	if ln.path == "" {
		// Connections of ours that are still open share the port, and listen(2)
		// refuses that unless all of them have SO_REUSEADDR. While we do not
		// listen we go without: nobody else can bind the address then.
		setsockopt(ln.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		quicken(ln.fd)
		guard(ln.fd)
		setUserTimeout(ln.fd, userTimeout)
	}
	if err := unix.Listen(int(ln.fd), backlog); err != nil {
		return fmt.Errorf("listen on %s: %w", ln.addr, wrap("listen", err))
	}
	ln.listening.Store(true)
	return nil
}

// refuse resets who waits and refuses the next; the address stays claimed.
func (ln *listener) refuse() {
	if !ln.listening.Load() {
		return
	}
	if ln.path == "" && ln.addr.Network() == "unix" {
		// One that somebody else made does not come back from shutdown, and its
		// file is not ours to make anew: who waits is sent away, the next wait.
		for fd, e := accept4(ln.fd); e == 0; fd, e = accept4(ln.fd) {
			closeFd(fd)
		}
		return
	}
	ln.listening.Store(false)
	if ln.path != "" {
		closeFd(ln.fd) // the file stays, and connects to it are refused
		ln.fd = -1
		return
	}
	_ = shutdown(ln.fd, unix.SHUT_RD)
	setsockopt(ln.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
}

// close gives the address up.
func (ln *listener) close() {
	if ln.fd >= 0 {
		closeFd(ln.fd)
		ln.fd = -1
	}
	removeSocketFile(ln.path)
	ln.listening.Store(false)
}

// queued is how many connections wait to be accepted: for a listening socket
// the tcpi_unacked of TCP_INFO; see tcp_diag in the kernel.
func (ln *listener) queued() int {
	if !ln.listening.Load() || ln.path != "" {
		return 0
	}
	info, err := unix.GetsockoptTCPInfo(int(ln.fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return int(info.Unacked)
}

// bind claims every address of the settings, or none.
func (e *engine) bind() error {
	claims, err := claimAll(e.cfg)
	for _, c := range claims {
		e.listeners = append(e.listeners, newListener(c))
	}
	return err
}
