//go:build !linux || portable

package relay

import (
	"maps"
	"slices"
	"sync"
	"time"

	"understudy/internal/boottime"
)

// goroutines is the data plane where there is no epoll: two goroutines for
// each connection, over the sockets of the standard library. It keeps the
// contract of the Linux one, with these exceptions:
//
//   - Refusing gives an address up for an instant, and clients of a socket that
//     another program made are accepted and reset; see [bind.Socket.Refuse]. An
//     address that another program has taken is an error of the next Open.
//   - The queue's length is known on Linux and FreeBSD only; Waiting.Queued is 0
//     elsewhere.
//   - An urgent byte is passed on when something comes behind it.
//   - Bytes are copied through user space.
//   - UserTimeout is the system's own: on Linux it ends a peer that is alive but
//     takes nothing, too; macOS has it in whole seconds, others not at all.
type goroutines struct {
	relay *Relay
	over  chan struct{} // closed when they have ended
	hosts tallies

	running  sync.WaitGroup // connections
	watching sync.WaitGroup

	accepting map[*listener]accepting // guarded by the relay's gating

	// gateMu is held for reading from the reading of the gate until a connection
	// is of its epoch. It is taken before a conn's mu.
	gateMu sync.RWMutex
	opened chan struct{} // closed, and replaced, by each open; guarded by gateMu

	holds holds

	mu       sync.Mutex // guards everything below
	live     map[*conn]struct{}
	counts   Stats                // its connection counters
	noHeader uint64               // of counts.Denied
	admitted [relaying + 1]int64  // admitted connections by their states
	connects map[int32]*latencies // by the number of the host
}

// target is the address of a host.
type target = hostAddr

func newPlane(r *Relay) plane {
	return &goroutines{
		relay:     r,
		over:      make(chan struct{}),
		accepting: make(map[*listener]accepting),
		opened:    make(chan struct{}),
		live:      make(map[*conn]struct{}),
		connects:  make(map[int32]*latencies),
	}
}

func newTarget(h hostAddr) (target, error) { return h, nil }

func (p *goroutines) start() error {
	p.watching.Go(p.watch)
	return nil
}

func (p *goroutines) stop() {
	p.running.Wait()
	close(p.over)
	p.watching.Wait()
}

// tune does nothing: each accepted socket has its options set.
func (p *goroutines) tune(*listener) {}

func (p *goroutines) open() {
	p.gateMu.Lock()
	close(p.opened)
	p.opened = make(chan struct{})
	p.gateMu.Unlock()
	p.apply()
}

func (p *goroutines) apply() {
	if p.relay.gate.Load() == nil {
		return
	}
	for _, ln := range p.relay.listeners {
		p.accept(ln)
	}
}

func (p *goroutines) leave(last []*listener) {
	// Connections that have seen an earlier gate are of its epoch from now on.
	p.gateMu.Lock()
	p.gateMu.Unlock() //nolint:staticcheck // locked only to wait
	for _, ln := range p.relay.listeners {
		p.rest(ln)
	}
	if p.relay.gate.Load() != nil {
		for _, ln := range last {
			p.acceptQueued(ln)
		}
	}
}

// current is the gate, nil when it is shut, and what the next open closes.
func (p *goroutines) current() (*gate, <-chan struct{}) {
	p.gateMu.RLock()
	defer p.gateMu.RUnlock()
	return p.relay.gate.Load(), p.opened
}

func (p *goroutines) expire() {
	for _, c := range p.conns() {
		if c.waits() {
			c.end(turnedAway)
		}
	}
}

func (p *goroutines) cut() int {
	n := 0
	for _, c := range p.conns() {
		if c.end(drainTimeout) {
			n++
		}
	}
	return n
}

func (p *goroutines) fence(before uint64, stays int32, reset bool, wait time.Duration) (all fencedCounts) {
	for _, c := range p.conns() {
		all[c.fence(before, stays, reset, wait)]++
	}
	return all
}

func (p *goroutines) stats() Stats {
	p.mu.Lock()
	s := p.counts
	p.mu.Unlock()
	for _, h := range p.hostStats() {
		s.Sent, s.Received = s.Sent+h.Sent, s.Received+h.Received
	}
	return s
}

func (p *goroutines) measure(m *Measured) (Stats, []MeasuredHost) {
	p.mu.Lock()
	s := p.counts
	m.NoHeader = p.noHeader
	m.Open = Open{Connecting: p.admitted[connecting], Held: p.admitted[waiting], Relaying: p.admitted[relaying]}
	p.mu.Unlock()
	p.holds.addTo(m)
	return s, measureTallies([]*tallies{&p.hosts})
}

func (p *goroutines) hang() Hang { return Hang{} }

func (p *goroutines) hostStats() []HostStats { return sumTallies([]*tallies{&p.hosts}) }

func (p *goroutines) held() int {
	n := 0
	for _, c := range p.conns() {
		if c.waits() {
			n++
		}
	}
	return n
}

// conns is the connections of this moment.
func (p *goroutines) conns() []*conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.live))
}

// admit admits a client, if it is allowed. It waits for room under the limit,
// or until stop is closed.
func (p *goroutines) admit(s stream, stop <-chan struct{}) {
	r := p.relay
	if twin := r.canaryTwinOf(s); twin != nil {
		twin.plane.(*goroutines).admit(s, stop) //nolint:forcetypeassert // there is no other one here
		return
	}
	if !r.cfg.Load().allows(addrPortOf(s.RemoteAddr()).Addr()) {
		abort(s)
		p.mu.Lock()
		p.counts.Denied++
		p.mu.Unlock()
		return
	}
	c, err := newConn(p, s)
	if err != nil {
		abort(s)
		return // it was closed already
	}
	// Where there are several listeners, another may have taken the last place.
	for !r.enter() {
		if !sleep(tick, stop) {
			r.live.Add(1) // one over the limit is better than a lost client
			r.fixed.Together.Add(1)
			break
		}
	}
	p.mu.Lock()
	p.live[c] = struct{}{}
	p.mu.Unlock()
	p.running.Go(c.serve)
}

// canaryTwinOf is canaryTwin for a stream.
func (r *Relay) canaryTwinOf(s stream) (twin *Relay) {
	if r.canaries.expected.Load() == nil {
		return nil
	}
	if raw, err := s.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { twin = r.canaryTwin(int(fd)) })
	}
	return twin
}

// room reports whether the limit allows another connection beside live ones.
func (s *settings) room(live int64) bool {
	return live < s.limit && s.Together.Load() < s.most
}

// awaitRoom waits until the limit allows another connection. It returns false
// when stop is closed.
func (p *goroutines) awaitRoom(stop <-chan struct{}) bool {
	for {
		s := p.relay.cfg.Load()
		if s.room(p.relay.live.Load()) {
			return true
		}
		p.relay.full(s.limit)
		if !sleep(tick, stop) {
			return false
		}
	}
}

// watchEvery is the time between two looks at connections for conditions that no
// event reports: that nothing has passed for long, or that a side has failed from
// which nothing is read because the other side takes nothing.
const watchEvery = 250 * time.Millisecond

func (p *goroutines) watch() {
	for {
		every := watchEvery
		if d := p.relay.cfg.Load().IdleTimeout; d > 0 {
			every = min(max(d/8, tick), every)
		}
		if !sleep(every, p.over) {
			return
		}
		now, leased := time.Now(), p.relay.leased()
		for _, c := range p.conns() {
			if !leased && c.relays() {
				c.end(leaseOver)
				continue
			}
			c.look(now)
		}
	}
}

// leased reports whether bytes may be moved now.
func (r *Relay) leased() bool { return r.fixed.Lease == nil || r.fixed.Lease.Holds(boottime.Now()) }

// sleep waits for d. It returns false as soon as stop is closed.
func sleep(d time.Duration, stop <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-stop:
		return false
	}
}
