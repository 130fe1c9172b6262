//go:build !portable

package relay

import (
	"time"

	"golang.org/x/sys/unix"
)

// Peers with a zero window.
//
// TCP_USER_TIMEOUT ends a connection whose sent data stays unacknowledged for
// so long; it detects a dead peer (tcp(7)). But the kernel applies it to a zero
// window as well, whether its probes are answered or not, and so ends a client
// that is alive but has stopped reading for a while, for example in the middle
// of a long result. Therefore the option is unset while a peer takes nothing
// but answers, and the loop itself checks that it goes on answering.

// zeroWindowTick is the interval at which peers with a zero window are checked.
// It is 0 if the system does that.
func zeroWindowTick(userTimeout time.Duration) time.Duration {
	if userTimeout == 0 {
		return 0
	}
	return min(max(userTimeout/4, tick), time.Second)
}

// full records that the peer on side o of a connection takes nothing more now.
func (l *loop) full(c *conn, o side) {
	c.ready[o] &^= writable
	l.zeroWindow = l.zeroWindow || l.of(c).cfg().hostTimeout > 0
}

// watchZeroWindow checks every peer with a zero window and reports whether
// there are any.
func (l *loop) watchZeroWindow() (found bool) {
	l.each(nil, func(i int32, c *conn) {
		cfg := l.of(c).cfg()
		for s := client; s <= host && c.state == relaying; s++ {
			limit := cfg.userTimeout(s)
			if limit == 0 {
				continue // peers without the option are left to the system from now on
			}
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
				c.fail(s, unix.ETIMEDOUT)
				l.serve(i, c)
			}
		}
	})
	return found
}

// probeSlack is the longest time that an answer to a probe may be under way.
const probeSlack = 500 * time.Millisecond

// probeInterval is the time from one of the kernel's probes of a closed window
// to the next. A peer that is alive answers each, so it is never silent for
// longer. If the window closed while data was in flight, the kernel retransmits
// that data instead of probing, and has then doubled the timeout itself.
func probeInterval(info *unix.TCPInfo) time.Duration {
	rto := time.Duration(info.Rto) * time.Microsecond
	if info.Retransmits > 0 {
		return rto
	}
	return min(rto<<min(info.Backoff, 16), 2*time.Minute) // TCP_RTO_MAX
}

// spare sets TCP_USER_TIMEOUT for the peer on side s; 0 unsets it.
func (l *loop) spare(c *conn, s side, limit time.Duration) {
	c.half[s].flags ^= spared
	setUserTimeout(c.fd[s], limit)
}
