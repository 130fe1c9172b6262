//go:build !portable

package relay

import (
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// acceptMost is how many connections are accepted before the others have their
// turn.
const acceptMost = 64

const (
	socketEvents   = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET&0xffffffff
	listenerEvents = unix.EPOLLIN | unix.EPOLLEXCLUSIVE
)

// Slots of the tags that are not connections.
const (
	slotWake     = -1
	slotListener = -2 // minus the listener's index
)

// loop is one event loop: a thread, its epoll, and the connections it owns.
// Only [loop.call] and the atomic fields are for other goroutines.
type loop struct {
	engine *engine
	ep     int
	wake   int // eventfd

	table
	pipes    pipes
	buffers  buffers
	batch    batch
	spinner  spinner
	events   []unix.EpollEvent
	queue    []tag   // connections that wait for another turn
	accepted []int32 // clients of the batch of acceptFrom
	lookups  map[int32][]sockaddr
	proxied  map[int32]proxyHeader // of clients that sent a PROXY header

	start    time.Time
	clock    time.Time // when the current batch of events began
	now      int64     // the same, in nanoseconds since start
	swept    int64     // when pending records were last looked at
	idled    int64     // when idle connections were last looked for
	trimmed  int64     // when unused pipes were last closed
	stuck    bool      // a peer may take nothing at present
	looked   int64     // when such peers were last looked at
	young    bool      // a host is not watched by the kernel yet
	guarded  int64     // when that began
	paused   int64     // accepting is paused until then; 0 when it is not
	taking   bool      // the listeners are in epoll
	finished bool

	bytes [2]atomic.Uint64 // moved, by the side they came from
	live  atomic.Int64
	held  atomic.Int64

	mu     sync.Mutex // guards everything below
	calls  []func()
	counts Stats // its connection counters
	closed bool
}

// cfg is the relay's settings of this moment.
func (l *loop) cfg() *settings { return l.engine.cfg.Load() }

func newLoop(e *engine) (*loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, wrap("epoll_create1", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		closeFd(int32(ep))
		return nil, wrap("eventfd", err)
	}
	l := &loop{
		engine:  e,
		ep:      ep,
		wake:    wake,
		table:   table{free: -1, first: -1, last: -1},
		pipes:   pipes{limit: min(pipesPerLoop, max(1, pipesMax/e.loopCount())), below: pipesBelow()},
		events:  make([]unix.EpollEvent, 256),
		lookups: make(map[int32][]sockaddr),
		proxied: make(map[int32]proxyHeader),
		start:   time.Now(),
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
	closeFd(int32(l.ep))
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
	case <-l.engine.over:
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
	one := [8]byte{1}
	_, _ = unix.Write(l.wake, one[:])
}

// run is the loop's thread.
func (l *loop) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	l.tell()
	for !l.finished {
		n := l.wait()
		l.tell()
		l.batch.open = true
		for k := range n {
			l.handle(&l.events[k])
		}
		l.batch.open = false
		l.sendBatch()
		l.oneTurn()
		l.passTime()
		l.sweep()
	}
}

func (l *loop) tell() {
	l.clock = time.Now()
	l.now = int64(l.clock.Sub(l.start))
}

// wait returns the number of events, at once when there is other work.
func (l *loop) wait() int {
	if len(l.queue) > 0 {
		n, _ := epollWait(l.ep, l.events, 0)
		return max(n, 0)
	}
	begin := time.Now()
	polls := l.cfg().Spin && l.used > 0
	if polls {
		if n := l.spin(begin); n > 0 {
			return n
		}
	}
	n, e := epollWait(l.ep, l.events, l.patience())
	if polls {
		l.spinner.waited(time.Since(begin))
	}
	if e != 0 {
		return 0
	}
	return n
}

// patience is how many milliseconds the loop may sleep; -1 is for ever.
func (l *loop) patience() int {
	ms := -1
	atMost := func(d time.Duration) {
		if v := int(d / time.Millisecond); ms < 0 || v < ms {
			ms = v
		}
	}
	if l.first >= 0 || l.paused != 0 {
		atMost(tick)
	}
	if l.pipes.open > 0 {
		atMost(pipeRest)
	}
	if l.stuck {
		atMost(l.stuckTick())
	}
	if l.young {
		atMost(l.guardTick())
	}
	if l.cfg().IdleTimeout > 0 && l.used > 0 {
		atMost(l.idleTick())
	}
	return ms
}

func (l *loop) idleTick() time.Duration {
	return min(max(l.cfg().IdleTimeout/8, tick), time.Second)
}

// handle notes what one event says and lets the connection act on it.
func (l *loop) handle(ev *unix.EpollEvent) {
	switch {
	case ev.Fd == slotWake:
		l.woken()
		return
	case ev.Fd <= slotListener:
		if !l.taking {
			return // left earlier in this batch, and perhaps closed since
		}
		l.acceptFrom(l.engine.listeners[slotListener-ev.Fd])
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
			l.gone(i, c)
		}
	case greeting:
		l.greet(i, c)
	case resolving, waiting:
		if c.broken(client) {
			l.gone(i, c)
		}
	}
}

// serve moves what can be moved and looks whether the connection is over.
func (l *loop) serve(i int32, c *conn) {
	if l.batch.open && l.batch.full() {
		l.sendBatch()
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
	if l.paused != 0 && l.now >= l.paused {
		l.resume()
	}
	if l.pipes.open > 0 && l.now-l.trimmed >= int64(pipeRest) {
		l.trimmed = l.now
		l.pipes.trim()
	}
	if l.stuck && l.now-l.looked >= int64(l.stuckTick()) {
		l.looked = l.now
		l.stuck = l.watchStuck()
	}
	if l.young && l.now-l.guarded >= int64(l.guardTick()) {
		l.guardAll()
	}
	if d := l.cfg().IdleTimeout; d > 0 && l.now-l.idled >= int64(l.idleTick()) {
		l.idled = l.now
		l.each(func(i int32, c *conn) {
			last := c.since
			if !c.exchanged() {
				last = c.began
			}
			// A pending one has failed, and is looked after by overdue.
			if c.state == relaying && !c.pending && l.now-last >= int64(d) {
				l.end(i, c, outcomeReset)
			}
		})
	}
}

// each visits every record in use. f may end the connection.
func (l *loop) each(f func(i int32, c *conn)) {
	for i := range l.size() {
		if c := l.at(i); c.state != free {
			f(i, c)
		}
	}
}

// woken runs what other goroutines asked for.
func (l *loop) woken() {
	l.sendBatch()
	var n [8]byte
	_, _ = unix.Read(l.wake, n[:])
	l.mu.Lock()
	calls := l.calls
	l.calls = nil
	l.mu.Unlock()
	for _, f := range calls {
		f()
	}
}

// take puts the listeners into epoll, leave takes them out: one that has been
// shut down would report that for ever.
func (l *loop) take() {
	if l.taking {
		return
	}
	for k, ln := range l.engine.listeners {
		if ln.listening.Load() {
			epollAdd(l.ep, ln.fd, listenerEvents, tag{slot: slotListener - int32(k)})
		}
	}
	l.taking = true
}

func (l *loop) leave() {
	l.paused = 0
	if !l.taking {
		return
	}
	for _, ln := range l.engine.listeners {
		if ln.fd >= 0 {
			epollDel(l.ep, ln.fd)
		}
	}
	l.taking = false
}

// pause stops accepting for d, or until a connection ends.
func (l *loop) pause(d time.Duration) {
	l.leave()
	l.paused = l.now + int64(d)
}

func (l *loop) resume() {
	l.paused = 0
	if l.engine.gate.Load() != nil {
		l.take()
	}
}

// acceptQueued lets in who is in the queue, as many as there is room for.
func (l *loop) acceptQueued(ln *listener) {
	for ln.listening.Load() && l.acceptFrom(ln) { //nolint:revive // the work is in the condition
	}
}

// acceptFrom lets clients in. It returns true when there may be more of them.
// All are accepted before the first one's host is looked for, for the same reason
// that a batch is read before it is sent.
func (l *loop) acceptFrom(ln *listener) (more bool) {
	more = l.acceptBatch(ln)
	for _, fd := range l.accepted {
		l.admit(fd)
	}
	l.accepted = l.accepted[:0]
	return more
}

func (l *loop) acceptBatch(ln *listener) (more bool) {
	for range acceptMost {
		if l.engine.gate.Load() == nil {
			return false
		}
		// The place is taken first: other loops accept at the same time.
		if !l.engine.enter() {
			if len(l.accepted) > 0 {
				return true // not all of them may be let in, and give theirs back
			}
			l.engine.full(l.cfg().limit)
			l.pause(tick)
			return false
		}
		fd, e := accept4(ln.fd)
		if e == 0 {
			l.accepted = append(l.accepted, fd)
			continue
		}
		l.engine.leave()
		switch e {
		case errAgain:
			return false
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			// Accepting again at once would spin without freeing anything.
			l.engine.local("accept", e)
			l.pause(10 * tick)
			return false
		case unix.EINVAL, unix.EBADF:
			return false // the listener has been shut down
		default:
			// The connection died in the queue, or the network did; see
			// accept(2), Error handling.
		}
	}
	return true
}

// admit gives an accepted client to the loop with the fewest connections.
func (l *loop) admit(fd int32) {
	if !l.engine.allowed(fd) {
		disconnect(fd)
		closeFd(fd)
		l.engine.leave()
		l.mu.Lock()
		l.counts.Denied++
		l.mu.Unlock()
		return
	}
	to := l.engine.idlest(l)
	to.live.Add(1) // at once, or the rest of a burst would go there, too
	if to != l {
		to.post(func() { to.adopt(fd) })
		return
	}
	l.adopt(fd)
}

// adopt makes a record for a client and looks for its host.
func (l *loop) adopt(fd int32) {
	i, c := l.alloc()
	c.fd[client] = fd
	c.since = l.now
	if l.cfg().AcceptProxy {
		c.state = greeting
		c.due = l.now + int64(l.cfg().ConnectTimeout)
		l.pend(i, c)
		l.watch(i, c)
		return
	}
	l.letIn(i, c)
}

// letIn counts a client that has shown all it has to and looks for its host.
func (l *loop) letIn(i int32, c *conn) {
	l.mu.Lock()
	l.counts.Accepted++
	l.mu.Unlock()
	l.dial(i, c)
}

// watch registers the client with epoll.
func (l *loop) watch(i int32, c *conn) {
	if c.ready[client]&watched != 0 {
		return
	}
	c.ready[client] |= watched
	if e := epollAdd(l.ep, c.fd[client], socketEvents, c.tag(i, client)); e != 0 {
		l.engine.local("epoll_ctl", e)
		c.fail(client)
	}
}

// peer is the address of a socket's other end.
func peer(fd int32) netip.AddrPort {
	sa, err := unix.Getpeername(int(fd))
	if err != nil {
		return netip.AddrPort{}
	}
	return addrPort(sa)
}
