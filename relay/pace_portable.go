//go:build !linux || portable

package relay

import (
	"cmp"
	"slices"
	"time"
)

// connected records how long a connect to a host took.
func (p *goroutines) connected(home int32, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.connects[home] == nil {
		p.connects[home] = new(latencies)
	}
	p.connects[home].add(took)
}

// usualConnect is the usual time of a connect to the host of the gate; 0 while it is not
// known.
func (p *goroutines) usualConnect() time.Duration {
	g := p.relay.gate.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	if g == nil || p.connects[g.home] == nil {
		return 0
	}
	return p.connects[g.home].median()
}

func (p *goroutines) line(since time.Time) (all lineup) {
	limit, now := slowLimit(p.usualConnect()), time.Now()
	for _, c := range p.conns() {
		c.mu.Lock()
		recent := !c.dialed.Before(since)
		switch {
		case c.over:
		case c.state == connecting && recent && now.Sub(c.dialed) > limit:
			all.slow++
		case c.state == waiting:
			if recent && c.failed {
				all.slow++
			}
			if c.lines {
				all.waiters = append(all.waiters, waiter{came: c.accepted.UnixNano(), left: int64(c.until.Sub(now))})
			}
		}
		c.mu.Unlock()
	}
	return all
}

func (p *goroutines) giveTurns(came int64, most int) (n int) {
	all := p.conns()
	slices.SortFunc(all, func(a, b *conn) int { return cmp.Compare(a.accepted.UnixNano(), b.accepted.UnixNano()) })
	for _, c := range all {
		if n == most || c.accepted.UnixNano() > came {
			break
		}
		c.mu.Lock()
		if c.lines && !c.over {
			c.lines, c.turn = false, true
			n++
			select {
			case c.turns <- struct{}{}:
			default: // it has not noticed the last one yet
			}
		}
		c.mu.Unlock()
	}
	return n
}
