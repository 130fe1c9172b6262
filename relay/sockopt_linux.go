//go:build !portable

package relay

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/bind"
	"understudy/internal/rawsocket"
	"understudy/internal/tcp"
)

// The options of every relayed TCP socket. An accepted one inherits it from the
// listener. A host's socket needs calls of its own, five of the thirty system
// calls of a short connection; so all but the first are made only once the
// connection has lasted for a while. That makes no difference: these options
// limit longer silences, and the kernel counts a silence from its beginning,
// not from the call.

// keepAliveAfter is the longest time that a connection lasts before keep-alive
// is set for its host.
const keepAliveAfter = 5 * time.Second

// setNoDelay makes small writes leave at once; see TCP_NODELAY in tcp(7).
func setNoDelay(fd int32) { setsockopt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

// setKeepAlive makes the kernel detect that a silent peer is dead; see
// SO_KEEPALIVE in socket(7).
func setKeepAlive(fd int32) {
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

// keepAliveTick is the longest time that a host stays without keep-alive.
func keepAliveTick(userTimeout time.Duration) time.Duration {
	if userTimeout > 0 {
		return min(max(userTimeout/4, tick), keepAliveAfter)
	}
	return keepAliveAfter
}

// noteYoung records that keep-alive is not set for some host yet.
func (l *loop) noteYoung() {
	if !l.young {
		l.young = true
		l.keepAliveAt = l.now
	}
}

// setKeepAliveOfAll sets keep-alive for the hosts of all relayed connections.
func (l *loop) setKeepAliveOfAll() {
	l.young = false
	l.each(nil, func(_ int32, c *conn) {
		if c.state != relaying || c.ready[host]&keptAlive != 0 {
			return
		}
		c.ready[host] |= keptAlive
		setKeepAlive(c.fd[host])
		if limit := l.of(c).cfg().hostTimeout; limit > 0 && c.half[host].flags&spared == 0 {
			setUserTimeout(c.fd[host], limit)
		}
	})
}

// prepare sets what a socket to a host needs before it connects, from the address
// src if that is valid.
func prepare(fd int32, family int, src netip.Addr) unix.Errno {
	if family == unix.AF_UNIX {
		return 0
	}
	setNoDelay(fd)
	if !src.IsValid() || src.Unmap().Is4() != (family == unix.AF_INET) {
		return 0
	}
	tcp.SetLatePort(int(fd))
	sa := inetAddr(netip.AddrPortFrom(src, 0), bind.ZoneIndex(src))
	return rawsocket.Bind(int(fd), &sa.Addr)
}
