//go:build !linux || portable

package bind

import (
	"errors"
	"net"
	"time"
)

// refuse refuses clients of a TCP socket, or of one that another program made.
// Where listen(2) does not reverse shutdown(2), the address is released and
// bound again: for an instant another program could take it, which the next
// Listen reports. A socket that another program made cannot be recreated: its
// clients are accepted and reset at once.
func (s *Socket) refuse() error {
	if s.given {
		return s.discard()
	}
	s.listening = false
	s.closeFD()
	return s.rebind()
}

// discard resets clients until stopDiscarding.
func (s *Socket) discard() error {
	if s.resume != nil {
		return nil
	}
	ln, err := s.Listener()
	if err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			switch {
			case err == nil:
				if tcp, ok := c.(*net.TCPConn); ok {
					_ = tcp.SetLinger(0)
				}
				_ = c.Close()
			case errors.Is(err, net.ErrClosed):
				return
			default: // no descriptors, or a client that left the queue
				time.Sleep(10 * time.Millisecond) //nolint:forbidigo // Close waits no longer than that
			}
		}
	}()
	s.resume = func() {
		_ = ln.Close()
		<-done
	}
	return nil
}
