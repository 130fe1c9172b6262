//go:build !linux || portable

package health

import (
	"net/netip"
	"syscall"
	"time"
)

// quietly reports whether a connection can be made and ended without the
// service noticing: not here, where an acknowledgement cannot be delayed.
const quietly = false

// prepare has nothing to set.
func prepare(syscall.RawConn, bool, bool) error { return nil }

// connects is not used where connects are not quiet.
type connects struct{}

func (*connects) start(netip.AddrPort, netip.Addr, time.Time, func(error)) {}

func (*connects) close() {}
