package health

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"understudy/internal/address"
)

// Dialer connects to hosts as checks do, for questions that this package does not know.
// It is safe for concurrent use.
type Dialer struct{ dialer dialer }

// NewDialer returns a Dialer, or an error that names every bad field. Its arguments are
// those of [TCPConfig].
func NewDialer(resolve ResolveFunc, source netip.Addr, sendProxy int) (*Dialer, error) {
	d, err := newDialer(resolve, source, sendProxy)
	if err != nil {
		return nil, fmt.Errorf("dialer: %w", err)
	}
	return &Dialer{d}, nil
}

// Dial connects to host, a connection string, or to another port of its address if port
// is not zero. A PROXY protocol header is sent already, unless it is another port. See
// [At] for the address of a name.
func (d *Dialer) Dial(ctx context.Context, host string, port uint16) (net.Conn, error) {
	h, err := address.ParseHost(host)
	if err != nil {
		return nil, fmt.Errorf("host %q %w", host, err)
	}
	conn, _, err := d.dialer.connect(ctx, h, port)
	return conn, err
}
