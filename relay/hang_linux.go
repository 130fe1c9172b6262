//go:build !portable

package relay

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"time"
)

// A host that hangs: its kernel accepts connections, and passes the checks that
// only connect, but no client is answered. Its clients notice that first.
//
// Each record knows since when its client has waited for an answer. A loop with
// such records looks at them a few times a second. Each tenant then publishes what
// it has found, and the relay adds that up.

// waiters counts the clients of one tenant that wait for an answer.
type waiters struct {
	at         int64 // when, by the engine's clock
	epoch      uint64
	count      int
	first      netip.Addr // of the client that was found first
	several    bool       // there are clients of two addresses or more
	since      int64      // when the first of them began to wait
	replayable bool
}

// noteRequest records that a client has sent something, and that an answer of its host is expected.
func (l *loop) noteRequest(c *conn) {
	if c.unansweredSince == 0 && (c.moved[host] == 0 || c.turns >= hangTurns) {
		c.unansweredSince = l.now
		l.addRequest()
	}
}

// addRequest counts a client that waits for an answer.
func (l *loop) addRequest() {
	if l.unanswered == 0 {
		l.hangsFoundAt = l.now // the next look is a tick from now
	}
	l.unanswered++
}

// stallLeast is the least delay of a look at the waiting clients that shows that the
// program, or the machine, was stopped.
const stallLeast = HangTick

// excuseStall lets the clients that wait begin to wait now if the loop was stopped.
// That time says nothing about the host: its answers were not read, and it may have
// been stopped, too.
func (l *loop) excuseStall() {
	if l.unanswered == 0 || l.now-l.hangsFoundAt < int64(HangTick+stallLeast) {
		return
	}
	l.hangsFoundAt = l.now
	l.each(nil, func(_ int32, c *conn) {
		if c.unansweredSince != 0 {
			c.unansweredSince = l.now
		}
	})
}

// noteAnswer records that the host has sent something.
func (l *loop) noteAnswer(c *conn, t *tenant, to *tally) {
	if l.now-t.answered.Load() > int64(time.Millisecond) { // to store it is dearer than to look
		t.answered.Store(l.now)
	}
	if c.unansweredSince != 0 {
		took := time.Duration(l.now - c.unansweredSince)
		to.latencies.add(took)
		if c.moved[host] == 0 {
			to.dials.firstByte.Observe(took)
		}
		l.clearRequest(c)
	}
	if c.turned == 0 {
		c.turned, c.turns = 1, min(c.turns+1, hangTurns)
	}
}

// clearRequest records that a client does not wait for an answer any more.
func (l *loop) clearRequest(c *conn) {
	if c.unansweredSince != 0 {
		c.unansweredSince = 0
		l.unanswered--
	}
}

// search is a look for the clients of one tenant that wait for too long.
type search struct {
	found  waiters
	limit  int64 // how long is too long
	last   int64 // when the host last answered a client: it did not hang then
	replay func([]byte) bool
}

// findHangs looks for clients that wait for an answer for too long, publishes them,
// and reports a host that hangs. It visits every connection once, however many relays
// there are.
func (l *loop) findHangs() {
	l.hangsFoundAt = l.now
	searches := make([]search, len(l.tenants))
	for slot, t := range l.tenants {
		if t == nil {
			continue
		}
		if g := t.relay.gate.Load(); g != nil {
			searches[slot] = search{
				found:  waiters{at: l.now, epoch: g.epoch},
				limit:  int64(hangLimit(t.hosts.of(g.home).latencies.usual())),
				last:   t.relay.plane.(*share).answered(), //nolint:forcetypeassert // there is no other one here
				replay: t.cfg().Replay,
			}
		}
	}
	l.each(nil, func(i int32, c *conn) {
		if c.unansweredSince != 0 {
			l.searchOne(&searches[c.slot], i, c)
		}
	})
	for slot, t := range l.tenants {
		if t == nil {
			continue
		}
		t.waiters.Store(nil)
		if found := searches[slot].found; found.count > 0 {
			t.waiters.Store(&found)
		}
		if h := t.relay.Hang(); h.Hangs() {
			t.relay.suspect(h.Epoch, errors.New(h.String()))
		}
	}
}

// searchOne adds a client to what is found if it waits for too long.
func (l *loop) searchOne(s *search, i int32, c *conn) {
	if s.limit == 0 || c.state != relaying || c.epoch != s.found.epoch || c.unansweredSince <= s.last || l.now-c.unansweredSince < s.limit || c.pending {
		return
	}
	f := &s.found
	if f.count++; f.count == 1 {
		f.first, f.since = l.from(i, c), c.unansweredSince
	}
	f.several = f.several || l.from(i, c) != f.first
	f.since = min(f.since, c.unansweredSince)
	f.replayable = f.replayable || s.replay != nil && c.opening > 0 && s.replay(l.openings.all[c.opening-1].rest)
}

// from is the address that a client comes from.
func (l *loop) from(i int32, c *conn) netip.Addr {
	if h, ok := l.proxied[i]; ok {
		return h.from.Addr()
	}
	return peer(c.fd[client]).Addr()
}

// answered is when a host last answered a client, by the engine's clock.
func (p *share) answered() (last int64) {
	for _, t := range *p.tenants.Load() {
		last = max(last, t.answered.Load())
	}
	return last
}

// hang adds up what the tenants have found.
func (p *share) hang() (h Hang) {
	g := p.relay.gate.Load()
	if g == nil {
		return Hang{}
	}
	now := int64(time.Since(p.engine.start))
	var sum waiters
	for _, t := range *p.tenants.Load() {
		w := t.waiters.Load()
		if w == nil || w.epoch != g.epoch || now-w.at > int64(4*HangTick) {
			continue
		}
		if sum.count == 0 {
			sum.first, sum.since = w.first, w.since
		}
		sum.several = sum.several || w.several || w.first != sum.first
		sum.count += w.count
		sum.since = min(sum.since, w.since)
		sum.replayable = sum.replayable || w.replayable
	}
	enough := hangAlone
	if sum.several {
		enough = hangClients
	}
	last := p.answered()
	if sum.count < enough || last >= sum.since {
		return Hang{}
	}
	// A host that has never answered may be one that never does, such as a collector
	// of logs, unless its clients open in a way that is known to be answered.
	if last == 0 && !sum.replayable {
		return Hang{}
	}
	return Hang{Epoch: g.epoch, Clients: sum.count, For: time.Duration(now - sum.since), Replayable: sum.replayable}
}

// unanswered returns how many clients of the gate's host wait for an answer for longer
// than is usual.
func (p *share) unanswered() (home int32, n int) {
	g := p.relay.gate.Load()
	if g == nil {
		return 0, 0
	}
	now := int64(time.Since(p.engine.start))
	for _, t := range *p.tenants.Load() {
		if w := t.waiters.Load(); w != nil && w.epoch == g.epoch && now-w.at <= int64(4*HangTick) {
			n += w.count
		}
	}
	return g.home, n
}

// published is the last result of a tenant.
type published = atomic.Pointer[waiters]
