//go:build !portable

package relay

import "golang.org/x/sys/unix"

// greet reads the PROXY header that a client owes. It looks first and takes
// only the header, so the client's own bytes stay in the socket.
func (l *loop) greet(i int32, c *conn) {
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
		l.engine.log.Debug("client sent no PROXY header", "client", peer(c.fd[client]))
		l.deny(i, c)
	case length == 0:
		c.ready[client] &^= readable // an event comes with the rest of it
		if c.ready[client]&hungUp != 0 {
			l.deny(i, c)
		}
	default:
		_, _ = recv(c.fd[client], room[:length], 0)
		l.proxied[i] = h // for the host that is sent a header
		c.since = l.now
		l.letIn(i, c)
	}
}

// introduce sends a host the PROXY header, in front of all that the client has
// sent: what the client's own header said, or the addresses of its connection. A
// socket that has just been connected takes the little; one that does not is
// broken.
func (l *loop) introduce(i int32, c *conn, version ProxyVersion) {
	h, ok := l.proxied[i]
	if !ok {
		h = proxyHeader{from: peer(c.fd[client]), to: boundTo(int(c.fd[client]))}
	}
	text := h.append(nil, version)
	if n, e := send(c.fd[host], text, 0); e != 0 || n < len(text) {
		c.fail(host)
	}
}
