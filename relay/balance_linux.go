//go:build !portable

package relay

import (
	"bytes"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// As many loops as the load needs.
//
// A second loop costs more than it brings while one is enough: it takes a
// processor from those who send and receive, and every message of its connections
// wakes another thread. So all connections are on the first loop until it is busy
// nearly all the time and a processor has nothing to do. Then another loop gets
// half of the busy connections, and new ones go to the first loop that has room.
// When all loops together would fit well into one loop less, the last one gives
// its connections away, and sleeps.
//
// Bulk is put aside whatever the processors do. A loop with both bulk and small
// messages is busy all the time, so the scheduler makes it wait for its turn like
// any busy thread. A loop with small messages alone mostly sleeps, and one that
// has slept is woken at once.
//
// Each loop weighs its load by itself, after a window of time in which it had
// something to do.

const (
	// loadWindow is the time over which a loop's load is measured.
	loadWindow = 20 * time.Millisecond

	// hotShare is the share of its time that a loop which has no room is busy, and
	// hotAfter how long it is busy before it gives connections away.
	hotShare = 0.9
	hotAfter = 3 * loadWindow

	// roomShare is the share up to which a loop gets new connections.
	roomShare = 0.7

	// spareLeast is the part of a processor that must be idle for one more loop.
	spareLeast = 0.6

	// gatherShare is the load for each of the remaining loops below which the last
	// one gives its connections away, after gatherAfter.
	gatherShare = 0.5
	gatherAfter = 500 * time.Millisecond

	// bulkRate is the number of bytes a second that a loop splices when it carries
	// bulk that small messages should not wait for, and bulkEach how many a
	// connection that does not splice at the moment has moved in each second of its
	// life if it carries bulk.
	bulkRate = 50e6
	bulkEach = 10e6
)

// load holds the figures of a loop about its own work. The atomic fields are for other
// loops.
type load struct {
	begin   int64         // of the window, by the loop's clock
	waited  time.Duration // in this window
	served  int           // how often a connection that does not splice was served in it
	spliced int           // bytes that went through pipes in it
	cpu     time.Duration // the thread's processor time at its beginning
	hot     time.Duration // for how long the loop has been busy nearly all the time
	light   int64         // since when the loops could be one less; 0 is not at all

	asleep atomic.Int64 // since when the loop waits; 0 while it works
	busy   atomic.Int64 // share of the last window that it did not wait, in thousandths
	used   atomic.Int64 // processor time in the last window, in thousandths of it
	bulk   atomic.Bool  // the last window had bulk
	small  atomic.Bool  // it had small messages
	worked atomic.Int64 // how long it did not wait, in all windows, in nanoseconds
	awake  atomic.Bool  // new connections may go to it; the first loop needs no leave
}

// recent returns what the last window says of this moment: nothing, when the loop
// has waited for longer than that.
func (l *load) recent(v *atomic.Int64, now int64) float64 {
	if since := l.asleep.Load(); since != 0 && now-since > int64(loadWindow) {
		return 0
	}
	return float64(v.Load()) / 1000
}

// awake returns the number of loops that get new connections.
func (e *Engine) awake() int {
	n := 1
	for _, l := range e.loops()[1:] {
		if l.load.awake.Load() {
			n++
		}
	}
	return n
}

// place returns the loop that gets a new client: the first one that has room, and
// otherwise the one with the fewest connections.
func (e *Engine) place() *loop {
	all := e.loops()
	if e.spread {
		return all[int(e.turn.Add(1))%len(all)]
	}
	now := int64(time.Since(e.start))
	best := all[0]
	for _, l := range all {
		if l.number > 0 && !l.load.awake.Load() {
			continue
		}
		if l.load.recent(&l.load.busy, now) <= roomShare && !l.load.bulk.Load() {
			return l
		}
		if l.live.Load() < best.live.Load() {
			best = l
		}
	}
	return best
}

// weigh ends a window, and gives connections away if that helps.
func (l *loop) weigh() {
	w := &l.load
	cpu := threadTime()
	window := time.Duration(l.now - w.begin)
	busy := max(0, 1-w.waited.Seconds()/window.Seconds())
	used := min(1, (cpu-w.cpu).Seconds()/window.Seconds())
	if l.sleeper.another {
		used, l.sleeper.another = busy, false
	}
	seconds := window.Seconds()
	spliced := float64(w.spliced) / seconds
	w.busy.Store(int64(busy * 1000))
	w.worked.Add(int64(busy * float64(window)))
	w.used.Store(int64(used * 1000))
	w.bulk.Store(spliced >= bulkRate)
	w.small.Store(w.served > 0)
	w.begin, w.waited, w.served, w.spliced, w.cpu = l.now, 0, 0, 0, cpu
	if busy >= hotShare {
		w.hot += window
	} else {
		w.hot = 0
	}
	if e := l.engine; e.cfg.Loops > 1 && !e.spread {
		l.balance()
	}
}

// balance gives connections to other loops, if that helps.
func (l *loop) balance() {
	w, e := &l.load, l.engine
	all := e.loops()
	switch {
	case w.bulk.Load() && l.number+1 < e.cfg.Loops && l.mixed():
		if l.number+1 == len(all) {
			e.grow()
			return
		}
		aside := all[l.number+1]
		aside.load.awake.Store(true)
		l.carry(l.busy(func(c *conn) bool { return l.carriesBulk(c) }), aside)
	case w.hot >= hotAfter:
		w.hot = 0
		l.share(all)
	case l.number > 0 && (w.awake.Load() || l.used > 0): // some arrive, or stay, when it has given all away
		l.gather(all)
	}
}

// share gives connections to the loop that has the most room, or to one more.
func (l *loop) share(all []*loop) {
	e := l.engine
	to, least := (*loop)(nil), 1.0
	for _, o := range all {
		busy := o.load.recent(&o.load.busy, l.now)
		if o == l || busy >= least || o.load.bulk.Load() {
			continue
		}
		if o.number == 0 || o.load.awake.Load() || e.idle.spare() >= spareLeast {
			to, least = o, busy
		}
	}
	if to == nil || least > roomShare-0.2 {
		if e.idle.spare() >= spareLeast {
			e.grow()
		}
		return
	}
	to.load.awake.Store(true)
	some := l.busy(func(*conn) bool { return true })
	l.carry(some[:int(float64(len(some))*(1-least)/2)], to)
}

// mixed reports whether small messages wait for bulk.
func (l *loop) mixed() bool {
	return l.load.small.Load() && len(l.busy(func(c *conn) bool { return !l.carriesBulk(c) })) > 0
}

// carriesBulk reports whether a connection carries bulk.
func (l *loop) carriesBulk(c *conn) bool {
	return (c.half[client].flags|c.half[host].flags)&splicing != 0 ||
		float64(c.moved[client]+c.moved[host]) >= bulkEach*time.Duration(l.now-c.began).Seconds()
}

// busy returns the connections over which something passed in the last window and
// which f accepts.
func (l *loop) busy(f func(*conn) bool) (some []int32) {
	l.each(nil, func(i int32, c *conn) {
		if c.state == relaying && !c.pending && l.now-c.since <= int64(loadWindow) && f(c) {
			some = append(some, i)
		}
	})
	return some
}

// gather gives all connections away, if this is the last loop that has any and
// the others have room for them.
func (l *loop) gather(all []*loop) {
	w, e := &l.load, l.engine
	sum, others := 0.0, 0
	mixed := false // bulk and small messages would meet
	for _, o := range all {
		if o.number > l.number && (o.load.awake.Load() || o.live.Load() > 0) {
			return
		}
		sum += o.load.recent(&o.load.used, l.now)
		if o.number < l.number && (o.number == 0 || o.load.awake.Load()) {
			others++
			mixed = mixed || w.bulk.Load() && o.load.small.Load() && o.load.recent(&o.load.busy, l.now) > 0
		}
	}
	if sum > gatherShare*float64(others) || mixed {
		w.light = 0
		return
	}
	if w.light == 0 {
		w.light = l.now
	}
	if l.now-w.light < int64(gatherAfter) {
		return
	}
	w.light = 0
	w.awake.Store(false)
	var every []int32
	l.each(nil, func(i int32, _ *conn) { every = append(every, i) })
	l.carry(every, e.place())
}

// threadTime is the processor time of the calling thread; see clock_gettime(2).
func threadTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// idleMeter measures how much of the machine's processors is idle.
type idleMeter struct {
	reading atomic.Bool
	at      atomic.Int64 // when that was measured, in nanoseconds
	idle    atomic.Int64 // in thousandths of a processor

	lastAt   int64 // of the reader alone
	lastIdle time.Duration
}

const (
	// meterEvery is the time over which idleness is measured: the kernel counts it
	// in hundredths of a second.
	meterEvery = 100 * time.Millisecond

	// meterValid is the time for which a figure is valid.
	meterValid = 3 * meterEvery
)

// spare returns how many processors were idle lately, and 0 when that is not
// known yet: who needs it asks again. It does not wait for the kernel's answer.
func (m *idleMeter) spare() float64 {
	now := time.Now().UnixNano()
	age := now - m.at.Load()
	if age >= int64(meterEvery) && m.reading.CompareAndSwap(false, true) {
		go func() {
			defer m.reading.Store(false)
			m.read()
		}()
	}
	if age > int64(meterValid) {
		return 0
	}
	return float64(m.idle.Load()) / 1000
}

// read takes a reading, and makes a figure if the last one is not long ago.
func (m *idleMeter) read() {
	now := time.Now().UnixNano()
	since := now - m.lastAt
	if since < int64(meterEvery) {
		return
	}
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return
	}
	var own unix.CPUSet
	if unix.SchedGetaffinity(0, &own) != nil {
		return
	}
	idle := idleTime(text, own.IsSet)
	if since <= int64(meterValid) {
		m.idle.Store(int64(idle-m.lastIdle) * 1000 / since)
		m.at.Store(now)
	}
	m.lastAt, m.lastIdle = now, idle
}

// idleTime returns the time for which the processors that own names have been idle; see
// /proc/stat in proc(5). Waiting for a disk is idle, too.
func idleTime(stat []byte, own func(cpu int) bool) time.Duration {
	const tick = time.Second / 100 // USER_HZ, which is the same everywhere
	var sum time.Duration
	for line := range bytes.Lines(stat) {
		f := bytes.Fields(line)
		if len(f) < 6 || !bytes.HasPrefix(f[0], []byte("cpu")) {
			continue
		}
		cpu, err := strconv.Atoi(string(f[0][3:]))
		if err != nil || !own(cpu) {
			continue
		}
		for _, field := range f[4:6] { // idle, iowait
			n, _ := strconv.ParseInt(string(field), 10, 64)
			sum += time.Duration(n) * tick
		}
	}
	return sum
}
