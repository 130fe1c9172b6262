//go:build !portable

package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"understudy/internal/bind"
)

// share is the data plane on Linux: the relay's part of each loop of its engine.
type share struct {
	relay  *Relay
	engine *Engine
	slot   int32 // on every loop, while it runs

	tenants atomic.Pointer[[]*tenant] // by the number of the loop; they outlive it
	up      atomic.Bool               // it has joined its engine and not left it
}

// target is the address of a host.
type target = sockaddr

func newPlane(r *Relay) plane {
	p := &share{relay: r, engine: r.fixed.Engine}
	p.tenants.Store(new([]*tenant))
	return p
}

// add makes the tenant of one more loop. The engine's lock is held.
func (p *share) add() *tenant {
	t := &tenant{relay: p.relay, slot: p.slot}
	all := append(slices.Clone(*p.tenants.Load()), t)
	p.tenants.Store(&all)
	return t
}

func newTarget(h hostAddr) (target, error) {
	if h.path == "" {
		return hostSockaddr(h.ip, h.port), nil
	}
	a, ok := unixAddr(h.path)
	if !ok {
		return target{}, errors.New("the path is too long")
	}
	return a, nil
}

// hostSockaddr is the address of a host to connect to. A loopback port that the
// system may also give out as a source port is marked, because a connect to it
// can connect to itself.
func hostSockaddr(ip netip.Addr, port uint16) sockaddr {
	a := inetAddr(netip.AddrPortFrom(ip, port), bind.ZoneIndex(ip))
	low, high := ephemeralPorts()
	a.ephemeral = ip.Unmap().IsLoopback() && port >= low && port <= high
	return a
}

var ephemeralPorts = sync.OnceValues(func() (low, high uint16) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		_, err = fmt.Sscan(string(text), &low, &high)
	}
	if err != nil {
		return 32768, 60999
	}
	return low, high
})

func (p *share) start() error {
	if err := p.engine.join(p); err != nil {
		return err
	}
	p.up.Store(true)
	return nil
}

func (p *share) stop() {
	p.up.Store(false)
	p.engine.leave(p)
}

// everywhere runs f for the relay's tenant of every loop and returns when all have
// run it, or at once when the relay does not run. A relay may end meanwhile: its slot
// is free on the loops then, or another relay's.
func (p *share) everywhere(f func(*loop, *tenant)) {
	if !p.up.Load() {
		return
	}
	p.engine.everywhere(func(l *loop) {
		if int(p.slot) >= len(l.tenants) {
			return
		}
		if t := l.tenants[p.slot]; t != nil && t.relay == p.relay {
			f(l, t)
		}
	})
}

// tune sets what accepted sockets inherit; see tcp(7) and socket(7).
func (p *share) tune(ln *listener) {
	if ln.Addr.Network() != "tcp" {
		return
	}
	fd := int32(ln.FD)
	setNoDelay(fd)
	setKeepAlive(fd)
	setUserTimeout(fd, p.relay.cfg.Load().UserTimeout)
}

func (p *share) open() {
	p.everywhere(func(l *loop, t *tenant) {
		l.updateTime()
		if l.number == 0 {
			t.queued = 0
			for _, ln := range p.relay.listeners {
				t.queued += ln.Queued()
			}
		}
		l.take(t)
		l.each(t, func(i int32, c *conn) {
			if c.state != waiting {
				return
			}
			c.tries, c.due = 0, l.now
			if g := p.relay.gate.Load(); g == nil || !g.paced {
				l.retry(i, c)
			}
		})
	})
}

func (p *share) apply() {
	p.everywhere(func(l *loop, t *tenant) {
		l.setTicks()
		l.zeroWindow = l.zeroWindowTick > 0
		if p.relay.gate.Load() != nil {
			l.take(t)
		}
	})
}

func (p *share) leave(last []*listener) {
	p.everywhere(func(l *loop, t *tenant) {
		for _, ln := range last {
			l.acceptQueued(t, ln)
		}
		l.leave(t)
	})
}

func (p *share) expire() {
	p.everywhere(func(l *loop, t *tenant) {
		l.updateTime()
		l.each(t, func(i int32, c *conn) {
			if c.state == waiting {
				l.end(i, c, turnedAway)
			}
		})
	})
}

func (p *share) cut() int {
	var n atomic.Int64
	p.everywhere(func(l *loop, t *tenant) {
		l.each(t, func(i int32, c *conn) {
			if c.state != readingProxy {
				n.Add(1)
			}
			l.end(i, c, drainTimeout)
		})
	})
	return int(n.Load())
}

func (p *share) fence(before uint64, stays int32, reset bool, patience time.Duration) (all fencedCounts) {
	var mu sync.Mutex
	p.everywhere(func(l *loop, t *tenant) {
		counts := l.fence(t, before, stays, reset, patience)
		mu.Lock()
		defer mu.Unlock()
		for how, n := range counts {
			all[how] += n
		}
	})
	return all
}

func (p *share) stats() (s Stats) {
	all := *p.tenants.Load()
	// A connection may begin on one loop and end on another, so the ends are read
	// first: there are never more of them than beginnings.
	for _, t := range all {
		t.count(func(c *Stats) {
			s.Finished += c.Finished
			s.Reset += c.Reset
			s.Fenced += c.Fenced
			s.Expired += c.Expired
			s.Aborted += c.Aborted
			s.Unanswered += c.Unanswered
			s.Replayed += c.Replayed
		})
	}
	for _, t := range *p.tenants.Load() { // a loop may have started meanwhile
		t.count(func(c *Stats) {
			s.Accepted += c.Accepted
			s.Denied += c.Denied
		})
	}
	for _, h := range p.hostStats() {
		s.Sent, s.Received = s.Sent+h.Sent, s.Received+h.Received
	}
	return s
}

func (p *share) hostStats() []HostStats {
	var all []*tallies
	for _, t := range *p.tenants.Load() {
		all = append(all, &t.hosts)
	}
	return sumTallies(all)
}

func (p *share) held() int {
	var n int64
	for _, t := range *p.tenants.Load() {
		t.mu.Lock()
		n += t.admitted[waiting]
		t.mu.Unlock()
	}
	return int(n)
}

// measure holds the counts of all loops for a moment, because a connection may begin on
// one and end on another.
func (p *share) measure(m *Measured) (s Stats, hosts []MeasuredHost) {
	all := *p.tenants.Load()
	for _, t := range all {
		t.mu.Lock()
	}
	for _, t := range all {
		s.add(&t.counts)
		m.NoHeader += t.noHeader
		m.Open.Connecting += t.admitted[connecting]
		m.Open.Held += t.admitted[waiting]
		m.Open.Relaying += t.admitted[relaying]
	}
	for _, t := range all {
		t.mu.Unlock()
	}
	counted := make([]*tallies, 0, len(all))
	for _, t := range all {
		t.holds.addTo(m)
		counted = append(counted, &t.hosts)
	}
	hosts = measureTallies(counted)
	if home, n := p.unanswered(); int(home) < len(hosts) {
		hosts[home].Unanswered = n
	}
	return s, hosts
}
