//go:build !unix

package verdict

import (
	"io"
	"net"
)

// awaitFailure does not wait: on these systems a client that half-closes counts
// as disconnected. See server_half.go.
func awaitFailure(*net.TCPConn) error { return io.EOF }
