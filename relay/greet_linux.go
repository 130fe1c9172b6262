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
	n, e := recv(c.fd[client], l.scratch[:proxyMax], unix.MSG_PEEK)
	if e == errAgain {
		c.ready[client] &^= readable
		return
	}
	if e != 0 || n == 0 {
		l.deny(i, c)
		return
	}
	h, length, err := parseProxy(l.scratch[:n])
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
		_, _ = recv(c.fd[client], l.scratch[:length], 0)
		if l.engine.cfg.SendProxy != 0 {
			l.proxied[i] = h
		}
		c.since = l.now
		l.letIn(i, c)
	}
}

// proxyHeader is the header that the host of connection i is sent: what the
// client's own header said, or the addresses of its connection.
func (l *loop) proxyHeader(i int32, c *conn) []byte {
	h, ok := l.proxied[i]
	if !ok {
		h = proxyHeader{from: peer(c.fd[client]), to: boundTo(int(c.fd[client]))}
	}
	return h.append(nil, l.engine.cfg.SendProxy)
}
