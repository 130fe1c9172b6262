//go:build !portable

package relay

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

// keepsOrder is true where one loop connects the clients of a turn, one after the other.
const keepsOrder = !movesAlways

// engine has n loops from the start on, and its clients are spread over them.
func engine(n int) *Engine {
	e := NewEngine(EngineConfig{Loops: n})
	e.spread = true
	return e
}

// idleLoops gives the engine of a relay n loops without threads: a test does
// their work.
func idleLoops(t *testing.T, r *Relay, n int) []*loop {
	t.Helper()
	p := r.plane.(*share)
	e := p.engine
	e.spread, e.stir, e.over = false, false, make(chan struct{})
	e.cfg.Loops = n
	e.planes = []*share{p}
	var all []*loop
	for k := range n {
		l, err := newLoop(e)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			l.each(nil, func(i int32, c *conn) { l.drop(i, c, true) })
			l.close()
		})
		l.number = k
		l.addTenant(p.add())
		l.updateTime()
		all = append(all, l)
	}
	e.all.Store(&all)
	return all
}

// running starts a relay with the given engine in front of a host.
func running(t *testing.T, e *Engine, h string) (r *Relay, end func()) {
	t.Helper()
	r, err := New(complete(Config{Listen: []string{"127.0.0.1:0"}, Engine: e}))
	if err == nil {
		err = r.Bind()
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	if _, err := r.Open(1, h); err != nil {
		t.Fatal(err)
	}
	return r, func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// However many relays an engine has, they run on one loop until that has no room.
// Relays that come and go start and stop none, but the last one that goes ends it.
func TestRelaysShareLoops(t *testing.T) {
	h := newHost(t, echo).addr
	e := NewEngine(EngineConfig{Loops: 4})
	e.spread, e.stir = false, false
	var ends []func()
	for range 20 {
		r, end := running(t, e, h)
		wantServed(t, "a relay of many", "tcp", r.Addrs()[0].String())
		ends = append(ends, end)
	}
	first := e.loops()[0]
	if n := len(e.loops()); n != 1 {
		t.Errorf("%d loops for 20 relays, want 1", n)
	}
	for k := range ends {
		if k == 10 { // a slot that became free is used again
			r, end := running(t, e, h)
			wantServed(t, "a late relay", "tcp", r.Addrs()[0].String())
			if all := e.loops(); len(all) != 1 || all[0] != first || len(first.tenants) > 20 {
				t.Errorf("%d loops and %d slots after a relay has come, want the one loop and 20 slots", len(all), len(first.tenants))
			}
			end()
		}
		ends[k]()
	}
	if n := len(e.loops()); n != 0 {
		t.Errorf("%d loops after the last relay", n)
	}
	r, end := running(t, e, h)
	wantServed(t, "after a new beginning", "tcp", r.Addrs()[0].String())
	end()
}

// A loop that starts while all are visited is visited, too.
func TestEverywhereMeetsNewLoops(t *testing.T) {
	e := NewEngine(EngineConfig{Loops: 2})
	e.spread, e.stir = false, false
	_, end := running(t, e, newHost(t, echo).addr)
	defer end()
	var met sync.Map
	e.everywhere(func(l *loop) {
		met.Store(l.number, true)
		if l.number == 0 {
			e.grow()
			proctest.Until(t, "another loop", func() bool { return len(e.loops()) == 2 })
		}
	})
	if _, ok := met.Load(1); !ok {
		t.Error("the loop that started meanwhile was not visited")
	}
}

// A relay may end while it is being fenced. The fence must not meet the connections
// of others then, nor those of the relay that has its slot now.
func TestFenceOfARelayThatEnds(t *testing.T) {
	h := newHost(t, echo).addr
	e := NewEngine(EngineConfig{Loops: 1})
	stays, endStays := running(t, e, h)
	defer endStays()
	ends, end := running(t, e, h)
	end()
	p := ends.plane.(*share)
	p.up.Store(true) // as the fence has seen it, a moment before
	served := func(r *Relay) {
		t.Helper()
		c, err := net.Dial("tcp", r.Addrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		io.WriteString(c, "x")
		readSome(t, c.(*net.TCPConn), 1)
	}
	served(stays)
	fence := func(slot string) {
		t.Helper()
		ends.Fence(t.Context(), 9, "", FencePolicy{})
		if s := stays.Stats(); s.Live != 1 || s.Fenced != 0 {
			t.Errorf("with %s: another relay has %+v, want its connection open", slot, s)
		}
	}
	fence("its slot free")
	next, endNext := running(t, e, h)
	defer endNext()
	if next.plane.(*share).slot != p.slot {
		t.Fatal("the slot is not used again")
	}
	served(next)
	fence("its slot another relay's")
	if s := next.Stats(); s.Live != 1 || s.Fenced != 0 {
		t.Errorf("the relay in its slot has %+v, want its connection open", s)
	}
}

// One batch of events accepts a limited number of clients, whatever the number of
// relays and of clients that come.
func TestAcceptsAreBounded(t *testing.T) {
	r := newRelay(complete(Config{Listen: []string{"127.0.0.1:0"}}))
	if err := r.Bind(); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l := idleLoops(t, r, 1)[0]
	to := listen(t, "127.0.0.1:0")
	defer to.Close()
	gate, err := newGate(1, to.Addr().String())
	if err == nil {
		err = r.listen(r.listeners[0])
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 * acceptMost {
		c, err := net.Dial("tcp", r.listeners[0].Addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	r.gate.Store(gate)
	l.take(l.tenants[0])
	for _, want := range []int64{acceptMost + 2, 2 * acceptMost} { // one each of the second and third
		l.room = acceptMost
		for range 3 { // as events of three listeners
			l.handle(&unix.EpollEvent{Fd: slotListener, Events: unix.EPOLLIN})
		}
		if n := l.live.Load(); n != want {
			t.Errorf("%d clients accepted, want %d", n, want)
		}
	}
}

// A move carries every field of a connection, whatever fields there are.
func TestCarryEveryField(t *testing.T) {
	own := []string{"gen", "prev", "next"} // of the loop's table; everything else is carried
	r := newRelay(complete(Config{Listen: []string{"127.0.0.1:0"}}))
	all := idleLoops(t, r, 2)
	from, to := all[0], all[1]
	near, far := pairTCP(t)
	hostNear, hostFar := pairTCP(t)
	t.Cleanup(func() { closeFd(far); closeFd(hostFar) })

	i, c := from.alloc(0)
	from.live.Add(1)
	r.enter()
	v := reflect.ValueOf(c).Elem()
	fill := func(names ...string) map[string]any {
		kept := map[string]any{}
		for k := range v.NumField() {
			if name := v.Type().Field(k).Name; !slices.Contains(names, name) {
				kept[name] = printable(v.Field(k))
			}
		}
		return kept
	}
	c.fd = [2]int32{near, hostNear}
	c.moved, c.epoch, c.since, c.began, c.due = [2]uint64{11, 12}, 13, 14, 15, from.now+int64(time.Hour)
	c.accepted, c.moves, c.replays = 16, 2, 1
	c.tries, c.ends, c.home, c.state, c.heldAt = 3, 1, 2, relaying, 7
	c.unansweredSince, c.turns, c.turned = 16, 2, 1
	from.unanswered++
	c.ready = [2]uint8{writable, writable | keptAlive}
	c.half[client].flags, c.half[host].flags = spared, unheard|ended
	c.half[client].first, c.half[host].timedOut = true, true
	for k := range v.NumField() {
		name := v.Type().Field(k).Name
		if v.Field(k).IsZero() && !slices.Contains(append(own, "slot", "pending", "opening"), name) {
			t.Fatalf("the test does not set the field %s", name)
		}
	}
	from.pend(i, c)
	from.watch(i, c)
	if e := epollAdd(from.ep, hostNear, socketEvents, c.tag(i, host)); e != 0 {
		t.Fatal(e)
	}
	c.half[client].store = from.buffers.keep([]byte("read and not sent")) + 1
	k, ok := from.pipes.take(from.clock)
	if !ok {
		t.Fatal("no pipe")
	}
	from.pipes.all[k].n = write(from.pipes.all[k].w, []byte("in a pipe"))
	c.half[host].store = -k - 1
	c.opening = from.openings.keep([]byte("said first")) + 1
	from.proxied[i] = proxyHeader{from: netip.MustParseAddrPort("192.0.2.1:5")}
	places := [3]int32{c.half[client].store, c.half[host].store, c.opening}
	want := fill(own...)

	from.carry([]int32{i}, to)
	if from.used != 0 || from.live.Load() != 0 || len(from.proxied) != 0 || from.first >= 0 || from.unanswered != 0 || from.pipes.open != 0 {
		t.Errorf("the loop keeps something of a connection that has left")
	}
	if r.plane.(*share).engine.inTransit.Load() != 1 {
		t.Error("the connection is not known to be on the way")
	}
	to.woken()
	if r.plane.(*share).engine.inTransit.Load() != 0 || to.used != 1 || to.live.Load() != 1 {
		t.Fatal("the connection has not arrived")
	}
	to.each(nil, func(j int32, d *conn) {
		v = reflect.ValueOf(d).Elem()
		d.half[client].store, places[client] = places[client], d.half[client].store
		d.half[host].store, places[host] = places[host], d.half[host].store
		d.opening, places[2] = places[2], d.opening
		got := fill(own...)
		d.half[client].store, d.half[host].store, d.opening = places[client], places[host], places[2]
		if b := to.openings.all[d.opening-1].rest; string(b) != "said first" || len(from.openings.all[0].data) != 0 {
			t.Errorf("the opening is %q", b)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("carried:\n%v\nwant:\n%v", got, want)
		}
		if b := to.buffers.all[d.half[client].store-1].rest; !bytes.Equal(b, []byte("read and not sent")) {
			t.Errorf("the buffer has %q", b)
		}
		if p := to.pipes.all[-d.half[host].store-1]; p.n != len("in a pipe") {
			t.Errorf("the pipe has %d bytes", p.n)
		}
		if to.proxied[j].from.String() != "192.0.2.1:5" {
			t.Error("what the PROXY header said is lost")
		}
		if to.first != j {
			t.Error("it is not in the pending list")
		}
	})
	// Both sockets report to the new loop, though nothing has happened since.
	n, _ := epollWait(to.ep, to.events, 0)
	seen := map[int32]bool{}
	for _, ev := range to.events[:n] {
		seen[ev.Fd&1] = true
	}
	if !seen[int32(client)] || !seen[int32(host)] {
		t.Errorf("the new loop has %d events, want those of both sockets", n)
	}
}

func printable(v reflect.Value) any {
	switch v.Kind() {
	case reflect.Array:
		var all []any
		for k := range v.Len() {
			all = append(all, printable(v.Index(k)))
		}
		return all
	case reflect.Struct:
		var all []any
		for _, f := range v.Fields() {
			all = append(all, printable(f))
		}
		return all
	case reflect.Bool:
		return v.Bool()
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Int:
		return v.Int()
	default:
		return v.Uint()
	}
}

// What has to meet every connection waits for those that are on the way, and lets
// none depart.
func TestNothingDepartsWhileAllAreMet(t *testing.T) {
	r := newRelay(complete(Config{Listen: []string{"127.0.0.1:0"}}))
	all := idleLoops(t, r, 2)
	e := r.plane.(*share).engine
	s := stage{t, all[0]}
	first, second := s.relayed(), s.relayed()
	all[0].carry([]int32{first.i}, all[1])
	met := make(chan int, 2)
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.everywhere(func(l *loop) { met <- l.used })
	}()
	proctest.Until(t, "moves are moveLocks", func() bool { return e.moveLocks.Load() == 1 })
	all[0].carry([]int32{second.i}, all[1])
	if all[0].used != 1 || e.inTransit.Load() != 1 {
		t.Error("a connection has departed although all are to be met")
	}
	for range 50 {
		all[0].woken()
		time.Sleep(time.Millisecond) // for a visit that must not come
	}
	if len(met) != 0 {
		t.Error("a loop was visited while a connection was on the way")
	}
	all[1].woken() // it arrives
	sum := 0
	for range 2 {
		proctest.Until(t, "a loop is visited", func() bool {
			all[0].woken()
			all[1].woken()
			return len(met) > 0
		})
		sum += <-met
	}
	<-done
	if sum != 2 {
		t.Errorf("%d connections were met, want 2", sum)
	}
	all[0].carry([]int32{second.i}, all[1])
	if e.inTransit.Load() != 1 {
		t.Error("no connection departs afterwards")
	}
	all[1].woken()
}

// weighed sets what a loop knows of its last window.
func weighed(l *loop, busy, used float64) {
	l.load.busy.Store(int64(busy * 1000))
	l.load.used.Store(int64(used * 1000))
}

// spareProcessors sets how much of the processors is idle.
func spareProcessors(e *Engine, n float64) {
	e.idle.at.Store(time.Now().UnixNano() + int64(time.Hour))
	e.idle.idle.Store(int64(n * 1000))
}

func TestBalance(t *testing.T) {
	// newLoops has 8 busy connections on the first of n loops.
	newLoops := func(t *testing.T, n int) []*loop {
		t.Helper()
		all := idleLoops(t, newRelay(complete(Config{Listen: []string{"127.0.0.1:0"}})), n)
		s := stage{t, all[0]}
		for range 8 {
			s.relayed().c.since = s.now
		}
		return all
	}
	counts := func(all []*loop) (n []int) {
		for _, l := range all {
			l.woken()
			n = append(n, l.used)
		}
		return n
	}
	want := func(t *testing.T, what string, all []*loop, n ...int) {
		t.Helper()
		if got := counts(all); !slices.Equal(got, n) {
			t.Errorf("%s: the loops have %v connections, want %v", what, got, n)
		}
	}

	t.Run("share", func(t *testing.T) {
		all := newLoops(t, 2)
		first := all[0]
		weighed(first, 1, 1)
		first.load.hot = hotAfter - 1
		spareProcessors(first.engine, 1)
		first.balance()
		want(t, "busy, but not for long", all, 8, 0)
		first.load.hot = hotAfter
		spareProcessors(first.engine, 0.1)
		first.balance()
		want(t, "busy, and no processor to spare", all, 8, 0)
		first.load.hot = hotAfter
		spareProcessors(first.engine, 1)
		first.balance()
		want(t, "busy", all, 4, 4)
		if !all[1].load.awake.Load() {
			t.Error("the second loop does not count as awake")
		}
		weighed(all[1], 0.6, 0.6)
		first.load.hot = hotAfter
		first.balance()
		want(t, "both busy", all, 4, 4)
	})
	t.Run("aside", func(t *testing.T) {
		all := newLoops(t, 2)
		first := all[0]
		weighed(first, 0.5, 0.5)
		first.load.bulk.Store(true)
		first.load.small.Store(true)
		first.balance()
		want(t, "no connection that carries bulk", all, 8, 0)
		n := 0
		first.each(nil, func(_ int32, c *conn) {
			if n++; n <= 2 {
				c.half[host].flags |= splicing
			} else if n == 3 {
				c.moved[host] = 1 << 40 // now and then without a pipe
			}
		})
		first.load.small.Store(false)
		first.balance()
		want(t, "bulk alone", all, 8, 0)
		first.load.small.Store(true)
		first.balance()
		want(t, "bulk beside small messages", all, 5, 3)

		// The last loop there may be has nowhere to put bulk, and shares like others.
		all = newLoops(t, 2)
		var every []int32
		all[0].each(nil, func(i int32, c *conn) {
			c.half[host].flags |= splicing
			if every = append(every, i); len(every) > 4 {
				c.half[host].flags = 0
			}
		})
		all[0].carry(every, all[1])
		want(t, "at first", all, 0, 8)
		last := all[1]
		weighed(last, 1, 1)
		last.load.bulk.Store(true)
		last.load.small.Store(true)
		last.load.hot = hotAfter
		last.balance()
		want(t, "bulk beside small messages on the last loop", all, 4, 4)
	})
	t.Run("gather", func(t *testing.T) {
		all := newLoops(t, 3)
		var some []int32
		all[0].each(nil, func(i int32, _ *conn) { some = append(some, i) })
		all[0].carry(some[:4], all[1])
		want(t, "at first", all, 4, 4, 0)
		second := all[1]
		second.load.awake.Store(true)
		weighed(all[0], 0.3, 0.3)
		weighed(second, 0.3, 0.3)
		second.balance()
		second.now += int64(2 * gatherAfter)
		second.balance()
		want(t, "too much for one loop", all, 4, 4, 0)
		weighed(second, 0.1, 0.1)
		second.balance()
		want(t, "little, but not for long", all, 4, 4, 0)
		second.now += int64(gatherAfter)
		second.balance()
		want(t, "little", all, 8, 0, 0)
		if second.load.awake.Load() {
			t.Error("an empty loop counts as awake")
		}
		// Clients that were on the way to it arrive later.
		some = nil
		all[0].each(nil, func(i int32, _ *conn) { some = append(some, i) })
		all[0].carry(some[:1], second)
		want(t, "one has arrived", all, 7, 1, 0)
		second.balance()
		second.now += int64(2 * gatherAfter)
		second.balance()
		want(t, "it is given away, too", all, 8, 0, 0)
	})
	t.Run("place", func(t *testing.T) {
		all := newLoops(t, 3)
		e := all[0].engine
		weighed(all[0], 1, 1)
		if got := e.place(); got.number != 0 {
			t.Errorf("with one loop awake a client goes to loop %d", got.number)
		}
		all[1].load.awake.Store(true)
		weighed(all[1], 0.2, 0.2)
		if got := e.place(); got.number != 1 {
			t.Errorf("beside a busy loop a client goes to loop %d", got.number)
		}
		weighed(all[0], roomShare, 1)
		if got := e.place(); got.number != 0 {
			t.Errorf("with room on the first loop a client goes to loop %d", got.number)
		}
		weighed(all[0], 1, 1)
		all[0].load.asleep.Store(1) // since the engine's start
		time.Sleep(2 * loadWindow)  // a figure of the time before says nothing then
		if got := e.place(); got.number != 0 {
			t.Errorf("beside an idle loop a client goes to loop %d", got.number)
		}
	})
}

// A busy loop starts another one while a processor is idle, and its connections
// are served on both; see the test of what is decided above.
func TestLoopStartsUnderLoad(t *testing.T) {
	h := newHost(t, echo).addr
	e := NewEngine(EngineConfig{Loops: 2})
	e.spread, e.stir, e.cfg.Loops = false, false, 2
	r, end := running(t, e, h)
	defer end()
	e.grow()
	proctest.Until(t, "another loop", func() bool { return len(e.loops()) == 2 })
	e.grow() // there may be no third one
	e.loops()[1].load.awake.Store(true)
	weighed(e.loops()[1], 0, 0)
	weighed(e.loops()[0], 1, 1)
	e.loops()[0].load.asleep.Store(0)
	wantServed(t, "with two loops", "tcp", r.Addrs()[0].String())
	if n := len(*r.plane.(*share).tenants.Load()); n != 2 || len(e.loops()) != 2 {
		t.Errorf("%d tenants on %d loops, want 2 on 2", n, len(e.loops()))
	}
}

func TestIdleTime(t *testing.T) {
	stat := "cpu  10 20 30 4000 500 6 7 8 0 0\n" +
		"cpu0 1 2 3 400 50 0 0 0 0 0\n" +
		"cpu1 1 2 3 700 8 0 0 0 0 0\n" +
		"cpu2 1 2\n" +
		"intr 33 0 1\nctxt 1\n"
	for _, tt := range []struct {
		own  []int
		want time.Duration
	}{
		{[]int{0}, 4500 * time.Millisecond},
		{[]int{0, 1}, 11580 * time.Millisecond},
		{[]int{2, 3}, 0},
	} {
		if got := idleTime([]byte(stat), func(n int) bool { return slices.Contains(tt.own, n) }); got != tt.want {
			t.Errorf("idle time of %v is %v, want %v", tt.own, got, tt.want)
		}
	}
	var m idleMeter
	proctest.Until(t, "the kernel's figure", func() bool {
		m.spare()
		return m.at.Load() != 0
	})
	if n := m.spare(); n < 0 || n > 4096 {
		t.Errorf("%v processors are idle", n)
	}
}
