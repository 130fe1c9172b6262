//go:build !portable

package relay

import (
	"fmt"
	"net"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// listener is one bound address. It listens only while the relay is open or
// holds; otherwise the address is merely claimed.
//
// On Linux shutdown(2) on a listening TCP socket resets the clients in its
// queue and refuses new ones, and listen(2) on the same descriptor undoes it, so
// the address is never given up.
type listener struct {
	engine    *engine
	setting   string // of its claim
	fd        int32
	path      string // of a unix socket
	listening atomic.Bool
	addr      net.Addr
}

func newListener(e *engine, c claim) *listener {
	ln := &listener{engine: e, setting: c.setting, fd: int32(c.fd), path: c.path, addr: c.addr}
	ln.listening.Store(c.listens())
	return ln
}

// listen takes connections from now on.
func (ln *listener) listen() error {
	ln.tune()
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
	}
	if err := unix.Listen(int(ln.fd), backlog); err != nil {
		return fmt.Errorf("listen on %s: %w", ln.addr, wrap("listen", err))
	}
	ln.listening.Store(true)
	return nil
}

// tune sets the options that accepted sockets inherit; see tcp(7) and socket(7).
func (ln *listener) tune() {
	if ln.path != "" {
		return
	}
	quicken(ln.fd)
	guard(ln.fd)
	setUserTimeout(ln.fd, max(ln.engine.cfg.Load().UserTimeout, 0))
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
	e.changing.Lock()
	defer e.changing.Unlock()
	claims, err := claimAll(e.cfg.Load().Config)
	if err != nil {
		return err
	}
	e.gating.Lock()
	defer e.gating.Unlock()
	for _, c := range claims {
		e.listeners = append(e.listeners, newListener(e, c))
	}
	e.bound = true
	return nil
}

// apply replaces the listeners and has the loops look at the settings anew. Who
// is in the queue of one that goes is let in first, while there is a primary.
func (e *engine) apply(c listeners) {
	if !slices.Equal(c.all, e.listeners) {
		e.onLoops(func(l *loop) {
			for _, ln := range c.gone {
				l.acceptQueued(ln)
			}
			l.leave()
		})
		e.listeners = c.all
		for _, ln := range c.gone {
			ln.close()
		}
	}
	for _, ln := range e.listeners {
		if ln.listening.Load() {
			ln.tune()
		}
	}
	e.onLoops(func(l *loop) {
		l.stuck = l.cfg().UserTimeout > 0
		if e.gate.Load() != nil {
			l.take()
		}
	})
}
