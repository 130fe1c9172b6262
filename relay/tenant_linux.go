//go:build !portable

package relay

import (
	"sync"
	"sync/atomic"
)

// tenant holds the state of one relay on one loop. Only the loop changes it; other
// goroutines read the atomic fields, and counts under mu.
type tenant struct {
	relay *Relay
	slot  int32 // in the tenants of every loop

	taking bool  // its listeners are in the loop's epoll
	paused int64 // accepting is paused until then; 0 when it is not

	answered atomic.Int64 // when a host last answered a client, by the engine's clock
	waiters  published    // clients that wait for an answer for too long

	hosts  tallies
	holds  holds
	queued int // clients that were in the kernel's queue when the gate opened, and are not accepted yet

	fencedBy uint64 // the epoch of the last fence
	lapsed   bool   // the relay's lease does not hold, in this turn

	mu       sync.Mutex // guards everything below
	counts   Stats      // of connections
	noHeader uint64     // of counts.Denied

	// admitted counts connections by their states. One that moves to another loop is counted
	// there from its next change on, so only the sum over all loops means something.
	admitted [relaying + 1]int64
}

// cfg is the relay's settings of this moment.
func (t *tenant) cfg() *settings { return t.relay.cfg.Load() }

// count changes the counters.
func (t *tenant) count(f func(*Stats)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(&t.counts)
}

// become changes the state of a connection that is admitted.
func (l *loop) become(c *conn, s state) {
	if c.state == s {
		return
	}
	t := l.of(c)
	t.mu.Lock()
	t.admitted[c.state]--
	t.admitted[s]++
	t.mu.Unlock()
	c.state = s
}

// addTenant gives a relay its slot.
func (l *loop) addTenant(t *tenant) {
	for int(t.slot) >= len(l.tenants) {
		l.tenants = append(l.tenants, nil)
	}
	l.tenants[t.slot] = t
	l.setTicks()
}

// removeTenant frees the slot of a relay that has no connections and accepts none.
func (l *loop) removeTenant(slot int32) {
	l.resumed(l.tenants[slot])
	l.tenants[slot] = nil
	l.setTicks()
}

// of is the tenant that a connection belongs to.
func (l *loop) of(c *conn) *tenant { return l.tenants[c.slot] }

// setTicks derives from the settings of all tenants how often connections are
// looked at.
func (l *loop) setTicks() {
	l.idleTick, l.zeroWindowTick, l.keepAliveTick, l.leases = 0, 0, keepAliveAfter, 0
	for _, t := range l.tenants {
		if t == nil {
			continue
		}
		cfg := t.cfg()
		if cfg.Lease != nil {
			l.leases++
		}
		l.idleTick = soonest(l.idleTick, idleTick(cfg.IdleTimeout))
		l.zeroWindowTick = soonest(l.zeroWindowTick, zeroWindowTick(cfg.hostTimeout))
		l.keepAliveTick = soonest(l.keepAliveTick, keepAliveTick(cfg.hostTimeout))
	}
}
