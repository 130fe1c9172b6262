//go:build !portable

package relay

import (
	"golang.org/x/sys/unix"

	"understudy/internal/bind"
)

// readProxy reads the PROXY header that is expected from a client. It peeks
// first and takes only the header, so the client's own bytes stay in the
// socket.
func (l *loop) readProxy(i int32, c *conn) {
	if c.broken(client) {
		l.deny(i, c)
		return
	}
	if c.ready[client]&readable == 0 {
		return
	}
	room := l.batch.room()
	n, e := recv(c.fd[client], room[:proxyMax], unix.MSG_PEEK)
	if e == errAgain {
		c.ready[client] &^= readable
		return
	}
	if e != 0 || n == 0 {
		l.deny(i, c)
		return
	}
	h, length, err := parseProxy(room[:n])
	switch {
	case err != nil:
		l.of(c).relay.log.Debug("client sent no PROXY header", "client", peer(c.fd[client]))
		l.deny(i, c)
	case length == 0:
		c.ready[client] &^= readable // the rest of the header will cause an event
		if c.ready[client]&hungUp != 0 {
			l.deny(i, c)
		}
	default:
		_, _ = recv(c.fd[client], room[:length], 0)
		l.proxied[i] = h // for the header that is sent to the host
		c.since = l.now
		l.admit(i, c)
	}
}

// ownHeader is the header for a client that sent none.
func ownHeader(fd int32) proxyHeader {
	return proxyHeader{from: peer(fd), to: bind.LocalAddr(int(fd))}
}

// sendProxy sends a host the PROXY header, in front of all that the client has
// sent: what the client's own header said, or the addresses of its connection. A
// socket that has just been connected has room for that little; one that has
// not is broken.
func (l *loop) sendProxy(i int32, c *conn, version ProxyVersion) {
	h, ok := l.proxied[i]
	if !ok {
		h = ownHeader(c.fd[client])
	}
	text := h.append(nil, version)
	if n, e := send(c.fd[host], text, 0); e != 0 || n < len(text) {
		c.fail(host, e)
	}
}
