//go:build !portable

package relay

import (
	"time"

	"golang.org/x/sys/unix"
)

// Peers that take nothing.
//
// TCP_USER_TIMEOUT ends a connection whose sent data stays unacknowledged for
// so long; that is how a dead peer is noticed (tcp(7)). But the kernel applies
// it to a closed window as well, whether its probes are answered or not, and so
// ends a client that is alive and well and merely rests, over a page of a long
// result for one. Therefore the option is taken off while a peer takes nothing
// but answers, and the loop itself watches that it goes on answering.

// stuckTick is how often peers that take nothing are looked at.
func (l *loop) stuckTick() time.Duration {
	return min(max(l.cfg().UserTimeout/4, tick), time.Second)
}

// full notes that the peer on side o of a connection takes nothing more now.
func (l *loop) full(c *conn, o side) {
	c.ready[o] &^= writable
	l.stuck = l.cfg().UserTimeout > 0
}

// watchStuck looks at every peer that takes nothing and reports whether there
// are any.
func (l *loop) watchStuck() (found bool) {
	limit := l.cfg().UserTimeout
	if limit <= 0 {
		return false // those that are spared are left to the system from now on
	}
	l.each(func(i int32, c *conn) {
		for s := client; s <= host && c.state == relaying; s++ {
			spared := c.half[s].flags&spared != 0
			if c.ready[s]&writable != 0 {
				if spared {
					l.spare(c, s, limit)
				}
				continue
			}
			info, err := unix.GetsockoptTCPInfo(int(c.fd[s]), unix.IPPROTO_TCP, unix.TCP_INFO)
			if err != nil {
				continue // a unix socket
			}
			found = true
			silent := time.Duration(info.Last_ack_recv) * time.Millisecond
			switch {
			case !spared && silent < limit/2:
				l.spare(c, s, 0)
			case spared && silent > limit && silent > probeInterval(info)+probeSlack:
				c.fail(s)
				l.serve(i, c)
			}
		}
	})
	return found
}

// probeSlack is how long an answer to a probe may be under way.
const probeSlack = 500 * time.Millisecond

// probeInterval is the time from one of the kernel's probes of a closed window
// to the next. A peer that is alive answers each, so it is never silent for
// longer. A window that closed over data on its way is probed by sending that
// again; the kernel has doubled the timeout itself then.
func probeInterval(info *unix.TCPInfo) time.Duration {
	rto := time.Duration(info.Rto) * time.Microsecond
	if info.Retransmits > 0 {
		return rto
	}
	return min(rto<<min(info.Backoff, 16), 2*time.Minute) // TCP_RTO_MAX
}

// spare sets the kernel's own limit for the peer on side s; 0 takes it off.
func (l *loop) spare(c *conn, s side, limit time.Duration) {
	c.half[s].flags ^= spared
	setUserTimeout(c.fd[s], limit)
}
