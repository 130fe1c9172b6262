//go:build !portable

package relay

import (
	"time"

	"golang.org/x/sys/unix"
)

// What every relayed TCP socket has set. An accepted one inherits it from the
// listener. A host's needs the calls of its own, five of the thirty that a short
// connection takes; so all but the first wait until the connection has lasted
// for a while. That changes nothing: they are about silences that are longer,
// and the kernel counts a silence from its beginning, not from the call.

// guardAfter is at most how long a connection lasts before the kernel watches
// its host.
const guardAfter = 5 * time.Second

// quicken has small writes leave at once; see TCP_NODELAY in tcp(7).
func quicken(fd int32) { setsockopt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

// guard has the kernel notice that a silent peer is gone; see SO_KEEPALIVE in
// socket(7).
func guard(fd int32) {
	setsockopt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	setsockopt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepIdle)
	setsockopt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepInterval)
	setsockopt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepCount)
}

// setUserTimeout limits how long sent data may stay unacknowledged; see
// TCP_USER_TIMEOUT in tcp(7). Zero leaves that to the system.
func setUserTimeout(fd int32, limit time.Duration) {
	setsockopt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit/time.Millisecond))
}

// guardTick is how long a host stays unwatched at most.
func (l *loop) guardTick() time.Duration {
	if d := l.cfg().UserTimeout; d > 0 {
		return min(max(d/4, tick), guardAfter)
	}
	return guardAfter
}

// unguard notes that there is a host that the kernel does not watch yet.
func (l *loop) unguard() {
	if !l.young {
		l.young = true
		l.guarded = l.now
	}
}

// guardAll has the kernel watch the hosts of all relayed connections.
func (l *loop) guardAll() {
	l.young = false
	l.each(func(_ int32, c *conn) {
		if c.state != relaying || c.ready[host]&guarded != 0 {
			return
		}
		c.ready[host] |= guarded
		guard(c.fd[host])
		if limit := l.cfg().UserTimeout; limit > 0 && c.half[host].flags&spared == 0 {
			setUserTimeout(c.fd[host], limit)
		}
	})
}
