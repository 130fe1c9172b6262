package relay

import (
	"net"
	"testing"

	"golang.org/x/net/nettest"
)

// The two ends of a relayed connection behave as Go expects of any connection.
func TestConformance(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		// A relay for each, so that no client of an earlier one, which may wait
		// for a new host, is taken for the other end.
		r := start(t, Config{Engine: engine(2)})
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, nil, err
		}
		r.open(1, ln.Addr().String())
		if c1, err = net.Dial("tcp", r.addr); err != nil {
			return nil, nil, nil, err
		}
		if c2, err = ln.Accept(); err != nil {
			return nil, nil, nil, err
		}
		return c1, c2, func() { c1.Close(); c2.Close(); ln.Close() }, nil
	})
}
