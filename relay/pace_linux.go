//go:build !portable

package relay

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A client that waits for its turn is in the state waiting, like one that waits for a
// host, with a due time that has passed.

func (p *share) line(since time.Time) (all lineup) {
	var mu sync.Mutex
	from := int64(since.Sub(p.engine.start))
	p.everywhere(func(l *loop, t *tenant) {
		line := l.line(t, from)
		mu.Lock()
		defer mu.Unlock()
		all.add(line)
	})
	return all
}

func (l *loop) line(t *tenant, since int64) (line lineup) {
	l.updateTime()
	hold := int64(t.cfg().Hold)
	limit := int64(slowUnknown)
	if g := t.relay.gate.Load(); g != nil {
		limit = int64(slowLimit(t.hosts.of(g.home).connects.median()))
	}
	l.eachPending(t, func(_ int32, c *conn) {
		recent := c.began >= since
		switch c.state {
		case waiting:
			if recent && c.tries > 0 {
				line.slow++
			}
			if l.now >= c.due {
				line.waiters = append(line.waiters, waiter{came: c.accepted, left: c.since + hold - l.now})
			}
		case connecting:
			if recent && l.now-c.began > limit {
				line.slow++
			}
		case free, readingProxy, relaying:
		}
	})
	return line
}

func (p *share) giveTurns(came int64, most int) int {
	var left atomic.Int64
	left.Store(int64(most))
	p.everywhere(func(l *loop, t *tenant) {
		if t.relay.gate.Load() == nil {
			return // it was shut meanwhile
		}
		l.updateTime()
		var some []int32
		l.eachPending(t, func(i int32, c *conn) {
			if c.state == waiting && l.now >= c.due && c.accepted <= came {
				some = append(some, i)
			}
		})
		slices.SortFunc(some, func(a, b int32) int { return cmp.Compare(l.at(a).accepted, l.at(b).accepted) })
		for _, i := range some {
			if left.Add(-1) < 0 {
				return
			}
			l.retry(i, l.at(i))
		}
	})
	return most - max(int(left.Load()), 0)
}

// eachPending visits the records of a tenant in the pending list. f must not take any
// from it.
func (l *loop) eachPending(t *tenant, f func(i int32, c *conn)) {
	for i := l.first; i >= 0; i = l.at(i).next {
		if c := l.at(i); c.slot == t.slot {
			f(i, c)
		}
	}
}
