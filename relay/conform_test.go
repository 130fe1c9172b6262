package relay

import (
	"net"
	"testing"

	"golang.org/x/net/nettest"
)

// The two ends of a relayed connection behave as Go expects of any connection.
func TestConformance(t *testing.T) {
	r := start(t, Config{Loops: 2})
	epoch := uint64(0)
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		epoch++
		ln, err := net.Listen("tcp", "127.0.0.1:0") // its own, so that the two ends are the same connection's
		if err != nil {
			return nil, nil, nil, err
		}
		if _, err := r.Open(epoch, ln.Addr().String()); err != nil {
			return nil, nil, nil, err
		}
		if c1, err = net.Dial("tcp", r.addr); err != nil {
			return nil, nil, nil, err
		}
		if c2, err = ln.Accept(); err != nil {
			return nil, nil, nil, err
		}
		return c1, c2, func() { c1.Close(); c2.Close(); ln.Close() }, nil
	})
}
