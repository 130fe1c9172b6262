//go:build !linux

package health

import "net"

// lampSocket is an address that was free when it was claimed. See
// lamp_linux.go for one that stays ours.
type lampSocket struct {
	addr net.Addr
}

func claimLamp(listen string) (*lampSocket, error) {
	ln, err := listenTCP(listen)
	if err != nil {
		return nil, err
	}
	return &lampSocket{addr: ln.Addr()}, ln.Close()
}

func (s *lampSocket) listen() (net.Listener, error) { return listenTCP(s.addr.String()) }

func (s *lampSocket) refuse(ln net.Listener) { _ = ln.Close() }

func (s *lampSocket) close() error { return nil }
