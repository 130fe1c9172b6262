//go:build !portable

package relay

import (
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/boottime"
	"understudy/internal/rawsocket"
	"understudy/internal/tcp"
)

// acceptMost is the number of connections that are accepted before open ones are served
// again.
const acceptMost = 64

const (
	socketEvents = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET&0xffffffff
)

// Slots of the tags that are not connections.
const (
	slotWake     = -1
	slotListener = -2 // minus the slot of the relay; the generation is the listener's index
)

// loop is one event loop: a thread, its epoll, and the connections it owns.
// Only [loop.call], [loop.post] and the atomic fields are for other goroutines.
type loop struct {
	engine  *Engine
	number  int       // among the engine's loops; the first one, 0, accepts clients
	tenants []*tenant // by slot; nil where a slot is free
	over    chan struct{}
	ep      int
	wake    int // eventfd

	table
	pipes    pipes
	buffers  buffers
	openings buffers // what clients have said, until their hosts have said something
	batch    batch
	poller   busyPoller
	sleeper  *sleeper
	events   []unix.EpollEvent
	queue    []tag                 // connections that wait for another turn
	accepted []int32               // clients of the batch of acceptFrom
	proxied  map[int32]proxyHeader // of clients that sent a PROXY header, or whose ends are recorded

	clock        time.Time // when the current batch of events began
	now          int64     // the same, in nanoseconds since the engine's start
	waitBegan    time.Time // when the last wait began; zero if it could not wait
	swept        int64     // when pending records were last looked at
	idled        int64     // when idle connections were last looked for
	trimmed      int64     // when unused pipes were last closed
	zeroWindow   bool      // a peer may take nothing at present
	looked       int64     // when such peers were last looked at
	young        bool      // keep-alive is not set for some host yet
	keepAliveAt  int64     // when that began
	pausing      int       // tenants that have paused accepting
	room         int       // how many clients this batch may still accept
	unanswered   int       // clients that wait for an answer
	clientAt     int64     // when a client, but no canary, was last there; of the first loop
	lastAccepted int64     // when the last client was accepted, a different time for each
	hangsFoundAt int64     // when these were last looked at
	worked       bool      // a byte has passed, or a connect began, since stirred
	finished     bool

	// How often connections are looked at, the soonest of all tenants; 0 is never.
	idleTick, zeroWindowTick, keepAliveTick time.Duration

	leases int // tenants with a lease

	load load
	live atomic.Int64 // connections, including those on the way to it

	mu     sync.Mutex // guards everything below
	calls  []func()
	closed bool
}

func newLoop(e *Engine) (*loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, wrap("epoll_create1", err)
	}
	events := make([]unix.EpollEvent, 256)
	sleeper, err := newSleeper(ep, events)
	if err != nil {
		closeFd(int32(ep))
		return nil, err
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		sleeper.close()
		return nil, wrap("eventfd", err)
	}
	l := &loop{
		engine:  e,
		over:    e.over,
		ep:      ep,
		wake:    wake,
		table:   table{free: -1, first: -1, last: -1},
		pipes:   pipes{limit: pipesPerLoop, total: &e.pipes, below: pipesBelow()},
		events:  events,
		sleeper: sleeper,
		proxied: make(map[int32]proxyHeader),
	}
	l.batch.warm()
	if e := epollAdd(ep, int32(wake), unix.EPOLLIN, tag{slot: slotWake}); e != 0 {
		l.close()
		return nil, wrap("epoll_ctl", e)
	}
	return l, nil
}

// close gives back what the loop holds. It must not run any more.
func (l *loop) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.pipes.spare = len(l.pipes.free)
	l.pipes.trim()
	l.sleeper.close()
	closeFd(int32(l.wake))
}

// call runs f on the loop's thread and returns when it has. It returns false
// when the loop is over and f will never run.
func (l *loop) call(f func()) bool {
	done := make(chan struct{})
	l.post(func() { f(); close(done) })
	select {
	case <-done:
		return true
	case <-l.over:
		return false
	}
}

// post has f run on the loop's thread soon.
func (l *loop) post(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.calls = append(l.calls, f)
	if len(l.calls) > 1 {
		return // the first one wakes it
	}
	one := [8]byte{1}
	write(int32(l.wake), one[:])
}

// run is the loop's thread.
func (l *loop) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	l.updateTime()
	l.load.begin = l.now
	for !l.finished {
		n := l.wait()
		l.updateTime()
		if !l.waitBegan.IsZero() {
			l.load.waited += l.clock.Sub(l.waitBegan)
		}
		if l.leases > 0 {
			l.lookAtLeases()
		}
		l.room = acceptMost
		l.batch.open = true
		for k := range n {
			l.handle(&l.events[k])
		}
		l.batch.open = false
		l.sendBatch()
		l.oneTurn()
		l.passTime()
		l.sweep()
		if l.engine.stir {
			l.stir()
		}
		if l.now-l.load.begin >= int64(loadWindow) {
			l.weigh()
		}
	}
}

// lookAtLeases takes the hosts away from the connections of every relay whose lease
// does not hold, before a byte is moved in this turn: however long the loop did not run,
// because the process was stopped or the machine slept.
func (l *loop) lookAtLeases() {
	now := boottime.Now()
	for _, t := range l.tenants {
		if t == nil || t.relay.fixed.Lease == nil {
			continue
		}
		t.lapsed = !t.relay.fixed.Lease.Holds(now)
		if !t.lapsed {
			continue
		}
		l.each(t, func(i int32, c *conn) {
			switch {
			case c.state == relaying && (c.broken(client) || !l.canMove(c)):
				l.end(i, c, leaseOver)
			case c.state == relaying || c.state == connecting:
				c.since = l.now
				l.redial(i, c, l.now+int64(leaseRetry))
			}
		})
	}
}

// updateTime reads the clock.
func (l *loop) updateTime() {
	l.clock = time.Now()
	l.now = int64(l.clock.Sub(l.engine.start))
	l.excuseStall()
}

// wait returns the number of events, at once when there is other work.
func (l *loop) wait() int {
	if len(l.queue) > 0 {
		l.waitBegan = time.Time{}
		n, _ := epollWait(l.ep, l.events, 0)
		return max(n, 0)
	}
	begin := time.Now()
	l.waitBegan = begin
	polls := l.engine.cfg.BusyPoll && l.used > 0 && l.engine.awake() == 1
	if polls {
		if n := l.busyPoll(begin); n > 0 {
			return n
		}
	}
	l.load.asleep.Store(int64(begin.Sub(l.engine.start)))
	if l.sleeper.count(l.now) && l.number == 0 {
		l.considerRest()
	}
	n, e := l.sleeper.sleep(l.ep, l.events, l.sleepLimit())
	l.load.asleep.Store(0)
	if polls {
		l.poller.waited(time.Since(begin))
	}
	if e != 0 {
		return 0
	}
	return n
}

// sleepLimit returns the number of milliseconds that the loop may sleep; -1 is for ever.
func (l *loop) sleepLimit() int {
	ms := -1
	atMost := func(d time.Duration) {
		if v := int(d / time.Millisecond); ms < 0 || v < ms {
			ms = v
		}
	}
	if l.first >= 0 || l.pausing > 0 {
		atMost(tick)
	}
	if l.pipes.open > 0 {
		atMost(pipeRest)
	}
	if l.zeroWindow {
		atMost(l.zeroWindowTick)
	}
	if l.young {
		atMost(l.keepAliveTick)
	}
	if l.idleTick > 0 && l.used > 0 {
		atMost(l.idleTick)
	}
	if l.number > 0 && l.used > 0 {
		atMost(gatherAfter)
	}
	if l.unanswered > 0 {
		atMost(HangTick)
	}
	if r := &l.engine.rester; r.after > 0 && l.number == 0 && !r.rests.Load() {
		atMost(r.after)
	}
	return ms
}

// idleTick is the interval at which idle connections are looked for; 0 is never.
func idleTick(timeout time.Duration) time.Duration {
	if timeout == 0 {
		return 0
	}
	return min(max(timeout/8, tick), time.Second)
}

// soonest is the shorter of two times, of which 0 is never.
func soonest(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return a + b
	}
	return min(a, b)
}

// handle records one event and lets the connection act on it.
func (l *loop) handle(ev *unix.EpollEvent) {
	switch {
	case ev.Fd == slotWake:
		l.woken()
		return
	case ev.Fd <= slotListener:
		// It may have left earlier in this batch, and be closed since.
		t := l.tenants[slotListener-ev.Fd]
		if t != nil && ev.Pad == genTry {
			t.relay.canaries.tries.look(false)
		} else if t != nil && t.taking && int(ev.Pad) < len(t.relay.listeners) {
			l.acceptFrom(t, t.relay.listeners[ev.Pad], max(l.room, 1)) // one each, so that a burst at one relay does not keep others waiting
		}
		return
	}
	i, s := ev.Fd>>1, side(ev.Fd&1)
	c := l.at(i)
	if (c.half[client].flags|c.half[host].flags)&batched != 0 {
		l.sendBatch()
	}
	if c.state == free || c.gen != ev.Pad {
		return // closed earlier in this batch
	}
	r := &c.ready[s]
	if ev.Events&unix.EPOLLIN != 0 {
		*r |= readable
	}
	if ev.Events&unix.EPOLLOUT != 0 {
		*r |= writable
	}
	if ev.Events&unix.EPOLLPRI != 0 {
		*r |= readable | urgent
	}
	if ev.Events&unix.EPOLLRDHUP != 0 {
		*r |= readable | hungUp
	}
	if ev.Events&unix.EPOLLHUP != 0 {
		*r |= readable | writable | hungUp
	}
	if ev.Events&unix.EPOLLERR != 0 {
		*r |= readable | writable | failed
	}
	switch c.state {
	case free:
	case relaying:
		// Bulk waits for its turn, so that small messages of this batch do not
		// wait for it.
		if (c.half[client].flags|c.half[host].flags)&splicing != 0 && *r&failed == 0 {
			l.enqueue(i, c)
			return
		}
		l.serve(i, c)
	case connecting:
		if s == host {
			l.connected(i, c, ev.Events)
		} else if c.broken(client) {
			l.clientLeft(i, c)
		}
	case readingProxy:
		l.readProxy(i, c)
	case waiting:
		if c.broken(client) {
			l.clientLeft(i, c)
		}
	}
}

// serve moves what can be moved and checks whether the connection is over.
func (l *loop) serve(i int32, c *conn) {
	if l.batch.open && l.batch.full() {
		l.sendBatch()
	}
	if (c.half[client].flags|c.half[host].flags)&splicing == 0 {
		l.load.served++
	}
	more := l.pump(i, c, client)
	if l.pump(i, c, host) {
		more = true
	}
	if c.exchanged() {
		c.since = l.now
	}
	if l.settle(i, c) && more {
		l.enqueue(i, c)
	}
}

// enqueue gives a connection a place in the queue.
func (l *loop) enqueue(i int32, c *conn) {
	if c.half[client].flags&queued != 0 {
		return
	}
	c.half[client].flags |= queued
	l.queue = append(l.queue, c.tag(i, client))
}

// oneTurn serves the first connection of the queue. Between two of them the
// loop looks at epoll, so a small message waits for one turn at most.
func (l *loop) oneTurn() {
	for len(l.queue) > 0 {
		t := l.queue[0]
		copy(l.queue, l.queue[1:])
		l.queue = l.queue[:len(l.queue)-1]
		i := t.slot >> 1
		c := l.at(i)
		if c.state == free || c.gen != t.gen {
			continue
		}
		c.half[client].flags &^= queued
		if c.state != relaying {
			continue
		}
		l.serve(i, c)
		return
	}
}

// passTime does what is due.
func (l *loop) passTime() {
	if l.first >= 0 && l.now-l.swept >= int64(tick)/2 {
		l.swept = l.now
		for i := l.first; i >= 0; {
			c := l.at(i)
			next := c.next
			l.overdue(i, c)
			i = next
		}
	}
	if l.pausing > 0 {
		l.resume()
	}
	if l.pipes.open > 0 && l.now-l.trimmed >= int64(pipeRest) {
		l.trimmed = l.now
		l.pipes.trim()
	}
	if l.zeroWindow && l.now-l.looked >= int64(l.zeroWindowTick) {
		l.looked = l.now
		l.zeroWindow = l.watchZeroWindow()
	}
	if l.young && l.now-l.keepAliveAt >= int64(l.keepAliveTick) {
		l.setKeepAliveOfAll()
	}
	if l.unanswered > 0 && l.now-l.hangsFoundAt >= int64(HangTick) {
		l.findHangs()
	}
	if l.idleTick > 0 && l.now-l.idled >= int64(l.idleTick) {
		l.idled = l.now
		l.each(nil, func(i int32, c *conn) {
			d := l.of(c).cfg().IdleTimeout
			if d == 0 {
				return
			}
			last := c.since
			if !c.exchanged() {
				last = c.began
			}
			// A pending one has failed; overdue handles it.
			if c.state == relaying && !c.pending && l.now-last >= int64(d) {
				l.end(i, c, idleTimeout)
			}
		})
	}
}

// each visits every record in use of a tenant, or with nil of all of them. f may
// end the connection.
func (l *loop) each(t *tenant, f func(i int32, c *conn)) {
	for i := range l.size() {
		if c := l.at(i); c.state != free && (t == nil || c.slot == t.slot) {
			f(i, c)
		}
	}
}

// woken runs the functions that other goroutines posted.
func (l *loop) woken() {
	l.sendBatch()
	empty(int32(l.wake))
	l.mu.Lock()
	calls := l.calls
	l.calls = nil
	l.mu.Unlock()
	for _, f := range calls {
		f()
	}
}

// take puts a tenant's listeners into epoll, leave takes them out: one that has
// been shut down would report that for ever. Only the first loop accepts.
func (l *loop) take(t *tenant) {
	if t.taking || l.number != 0 {
		return
	}
	for k, ln := range t.relay.listeners {
		if ln.Listening() {
			epollAdd(l.ep, int32(ln.FD), unix.EPOLLIN, tag{slot: slotListener - t.slot, gen: int32(k)})
		}
	}
	t.taking = true
}

func (l *loop) leave(t *tenant) {
	l.resumed(t)
	if !t.taking {
		return
	}
	for _, ln := range t.relay.listeners {
		if ln.FD >= 0 {
			epollDel(l.ep, int32(ln.FD))
		}
	}
	t.taking = false
}

// pause stops accepting for d, or until a connection ends.
func (l *loop) pause(t *tenant, d time.Duration) {
	l.leave(t)
	t.paused = l.now + int64(d)
	l.pausing++
}

// resumed records that a tenant does not pause any more.
func (l *loop) resumed(t *tenant) {
	if t.paused != 0 {
		t.paused = 0
		l.pausing--
	}
}

// resume accepts again from listeners whose pause is over.
func (l *loop) resume() {
	for _, t := range l.tenants {
		if t != nil && t.paused != 0 && l.now >= t.paused {
			l.resumed(t)
			if t.relay.gate.Load() != nil {
				l.take(t)
			}
		}
	}
}

// roomAgain ends every pause, because a connection has ended.
func (l *loop) roomAgain() {
	if l.pausing == 0 {
		return
	}
	for _, t := range l.tenants {
		if t != nil && t.paused != 0 {
			t.paused = l.now
		}
	}
}

// acceptQueued admits the clients in the queue, as many as there is room for.
func (l *loop) acceptQueued(t *tenant, ln *listener) {
	for l.number == 0 && ln.Listening() && l.acceptFrom(t, ln, acceptMost) { //nolint:revive // the work is in the condition
	}
}

// acceptFrom admits clients, the given number at most. It returns true when there
// may be more of them. All are accepted before the first one's host is looked for,
// for the same reason that a batch is read before it is sent.
func (l *loop) acceptFrom(t *tenant, ln *listener, most int) (more bool) {
	more = l.acceptBatch(t, ln, most)
	l.room -= len(l.accepted)
	for _, fd := range l.accepted {
		l.assign(t, fd)
	}
	l.accepted = l.accepted[:0]
	return more
}

func (l *loop) acceptBatch(t *tenant, ln *listener, most int) (more bool) {
	for range most {
		if t.relay.gate.Load() == nil {
			return false
		}
		// The place is taken first: other loops accept at the same time.
		if !t.relay.enter() {
			if len(l.accepted) > 0 {
				return true // some may not be admitted, and give their places back
			}
			t.relay.full(t.cfg().limit)
			l.pause(t, tick)
			return false
		}
		fd, e := accept4(int32(ln.FD))
		if e == 0 {
			l.accepted = append(l.accepted, fd)
			continue
		}
		t.relay.leave()
		switch e {
		case errAgain:
			return false
		case unix.EINVAL, unix.EBADF:
			return false // the listener has been shut down
		case unix.ECONNABORTED, unix.EPROTO, unix.ENETDOWN, unix.ENOPROTOOPT, unix.EHOSTDOWN, unix.ENONET,
			unix.EHOSTUNREACH, unix.EOPNOTSUPP, unix.ENETUNREACH:
			// The connection died in the queue, or the network did; see
			// accept(2), Error handling.
		default:
			// No descriptors, no memory, a refusal by a security policy: the
			// client stays in the queue, and accepting again at once would busy-loop.
			t.relay.local("accept", e)
			l.pause(t, 10*tick)
			return false
		}
	}
	return true
}

// assign gives an accepted client to the loop that has room for it.
func (l *loop) assign(t *tenant, fd int32) {
	if twin := t.relay.canaryTwin(int(fd)); twin != nil {
		t.queued = max(t.queued-1, 0)
		t.relay.leave()
		twin.enter()
		t = l.tenants[twin.plane.(*share).slot] //nolint:forcetypeassert // there is no other one here
	} else {
		l.clientAt = l.now
		l.engine.rester.set(false)
	}
	if cfg := t.cfg(); len(cfg.Allow) > 0 && !cfg.allows(peer(fd).Addr()) {
		_ = tcp.Reset(int(fd)) // the client may have left
		closeFd(fd)
		t.relay.leave()
		t.count(func(s *Stats) { s.Denied++ })
		t.relay.wasDropped()
		return
	}
	var held uint32
	if t.queued > 0 {
		t.queued--
		if d := queuedFor(fd); d > 0 {
			held = heldAt(l.now - int64(d))
		}
	}
	l.lastAccepted = max(l.now, l.lastAccepted+1)
	at := l.lastAccepted
	to := l.engine.place()
	to.live.Add(1) // at once, otherwise the rest of a burst would go there, too
	if to != l {
		to.post(func() { to.adopt(t.slot, fd, at, held) })
		return
	}
	l.adopt(t.slot, fd, at, held)
}

// queuedFor returns how long ago the kernel has last heard of a client that was just
// accepted: since then, or for longer, the client was in the queue.
func queuedFor(fd int32) time.Duration {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0 // a unix socket
	}
	return time.Duration(info.Last_ack_recv) * time.Millisecond
}

// adopt makes a record for a client of the tenant with the given slot, which has waited
// in the queue since held, and looks for its host.
func (l *loop) adopt(slot, fd int32, accepted int64, held uint32) {
	i, c := l.alloc(slot)
	c.fd[client] = fd
	c.since, c.accepted, c.heldAt = l.now, accepted, held
	if cfg := l.of(c).cfg(); cfg.AcceptProxy {
		c.state = readingProxy
		c.due = l.now + int64(cfg.ConnectTimeout)
		l.pend(i, c)
		l.watch(i, c)
		return
	}
	l.admit(i, c)
}

// admit counts a client that is allowed and whose PROXY header, if one is
// expected, was read, and looks for its host.
func (l *loop) admit(i int32, c *conn) {
	t := l.of(c)
	t.mu.Lock()
	t.counts.Accepted++
	t.admitted[connecting]++
	t.mu.Unlock()
	c.state = connecting
	if _, ok := l.proxied[i]; !ok && l.of(c).cfg().Ended != nil {
		// A socket that was reset does not know its peer any more.
		l.proxied[i] = ownHeader(c.fd[client])
	}
	l.dial(i, c)
}

// watch registers the client with epoll.
func (l *loop) watch(i int32, c *conn) {
	if c.ready[client]&watched != 0 {
		return
	}
	c.ready[client] |= watched
	if e := epollAdd(l.ep, c.fd[client], socketEvents, c.tag(i, client)); e != 0 {
		l.of(c).relay.local("epoll_ctl", e)
		c.fail(client, e)
	}
}

// peer is the address of a socket's other end.
func peer(fd int32) netip.AddrPort { return rawsocket.Peer(int(fd)) }
