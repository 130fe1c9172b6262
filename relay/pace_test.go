package relay

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// The rate starts at twice the usual number of new clients, doubles each second, and is
// halved when connects are slow.
func TestPacerRate(t *testing.T) {
	t.Parallel()
	start := time.Unix(0, 0)
	for _, tt := range []struct {
		name    string
		setting OpenRate
		usual   float64
		lowest  float64
		waited  int
		slow    func(second, turns int) int // connects that are slow in that second, of so many
		want    []float64                   // the rate at the end of each second
	}{
		{"unknown usual rate", OpenAuto, 0, 0, 1e6, nil, []float64{50, 100, 200, 400}},
		{"few clients usually", OpenAuto, 10, 0, 1e6, nil, []float64{50, 100, 200}},
		{"many clients usually", OpenAuto, 300, 0, 1e6, nil, []float64{600, 1200}},
		{"hold would expire", OpenAuto, 0, 900, 1e6, nil, []float64{900, 1800}},
		{"few slow connects", OpenAuto, 100, 0, 1e6, func(int, int) int { return slowFew - 1 }, []float64{200, 400, 800}},
		{"a small part is slow", OpenAuto, 100, 0, 1e6, func(_, turns int) int { return turns/slowPart - 1 }, []float64{200, 400, 800}},
		{"slow in the third second", OpenAuto, 100, 0, 1e6, func(second, turns int) int {
			if second == 2 && turns >= 700 {
				return turns / 4
			}
			return 0
		}, []float64{200, 400, 400, 800}},
		{"always slow", OpenAuto, 100, 700, 1e6, func(_, turns int) int { return turns }, []float64{200, 200}},
		{"fixed", 80, 500, 0, 200, nil, []float64{80, 80, 160, 320}},
		{"fixed, and slow", 80, 500, 0, 1e6, func(_, turns int) int { return turns }, []float64{80, 80, 80}},
		{"fixed, and hold would expire", 80, 500, 170, 1e6, nil, []float64{170, 170}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &pacer{Pacing: Pacing{Waited: tt.waited}}
			p.begin(start, tt.setting, tt.usual, tt.lowest)
			for second, want := range tt.want {
				sum := 0
				for k := range 100 {
					slow := 0
					if tt.slow != nil {
						slow = tt.slow(second, p.turns)
					}
					n := p.next(start.Add(time.Duration(second)*time.Second+time.Duration(k)*tick), slow)
					p.took(n)
					sum += n
				}
				if p.Rate != want {
					t.Errorf("after second %d: rate %v, want %v", second+1, p.Rate, want)
				}
				if tt.slow == nil && tt.setting == OpenAuto && math.Abs(float64(sum)-want) > paceBurst+want/50 {
					t.Errorf("%d turns in second %d at a rate of %v", sum, second+1, want)
				}
			}
		})
	}
}

// A stall of the program is not made up for by a burst.
func TestPacerAfterStall(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	p := &pacer{Pacing: Pacing{Waited: 1e6}}
	p.begin(now, 1000, 0, 0)
	p.took(p.next(now, 0))
	if n := p.next(now.Add(time.Minute), 0); n != 100 {
		t.Errorf("%d turns after a minute's stall at 1000 a second, want a tenth of a second's, 100", n)
	}
}

// The lowest rate gives everybody a turn within the time that is left.
func TestLowestRate(t *testing.T) {
	t.Parallel()
	const second = int64(time.Second)
	same := func(n int, left int64) (l lineup) {
		for range n {
			l.waiters = append(l.waiters, waiter{left: left})
		}
		return l
	}
	soon := same(10, second/10)
	soon.add(same(500, 10*second))
	for _, tt := range []struct {
		name   string
		line   lineup
		waited int
		want   float64
	}{
		{"all in the queue", lineup{}, 750, 100},
		{"all in line", same(750, 10*second), 750, 100},
		{"half of it in the queue", same(300, 10*second), 750, 100},
		{"a second is left", same(750, second), 750, 1000},
		{"some are urgent, many not", soon, 510, 10 / 0.075},
		{"one has no time left", same(1, -second), 1, 100},
	} {
		if got := tt.line.lowestRate(tt.waited, 10*time.Second); math.Abs(got-tt.want) > 0.01 {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// Only figures of an undisturbed time count.
func TestArrivals(t *testing.T) {
	t.Parallel()
	var a arrivals
	now, total := time.Unix(0, 0), uint64(0)
	after := func(clients uint64, g *gate) {
		now, total = now.Add(arrivalsEvery), total+clients
		a.note(now, total, g)
	}
	want := func(what string, rate float64) {
		t.Helper()
		if got := a.rate(); math.Abs(got-rate) > 0.001 {
			t.Errorf("%s: %v, want %v", what, got, rate)
		}
	}
	one, paced, two := &gate{}, &gate{paced: true}, &gate{}
	after(500, one)
	want("the gate has opened", 0)
	after(500, one)
	want("ten seconds at 50", 50)
	after(1100, one)
	want("ten seconds at 110", 60)
	after(0, nil)
	want("the gate was shut", 60)
	after(9000, paced)
	after(9000, paced)
	after(9000, two)
	want("clients were paced", 60)
	after(600, two)
	want("ten seconds at 60", 60)
}

// A primary that fails some seconds after the start finds a figure.
func TestFirstArrivals(t *testing.T) {
	t.Parallel()
	var a arrivals
	open := &gate{}
	start := time.Unix(0, 0)
	now, sum := start, time.Duration(0)
	for total := uint64(0); a.rate() == 0; total += uint64(200 * a.after().Seconds()) {
		now = now.Add(a.after())
		a.note(now, total, open)
		if took := now.Sub(start); took > 2*time.Second {
			t.Fatalf("no figure after %v", took)
		}
	}
	for range 20 { // an idle relay is not asked each second for ever
		sum += a.after()
		now = now.Add(a.after())
		a.note(now, 0, nil)
	}
	if sum < 100*time.Second {
		t.Errorf("20 figures within %v, want one in %v", sum, arrivalsEvery)
	}
}

// model is a host in virtual time: it takes so many connects a second out of a queue
// of that length. What does not fit is dropped, and sent again after 1 s and 3 s.
type model struct {
	perSecond float64
	backlog   int

	queue   float64
	dropped int // SYNs
}

// attempt is a connect whose SYN was dropped.
type attempt struct{ began, again time.Duration }

// open simulates an Open with so many clients that wait for hold at most. It returns how
// many were connected in time, and when the last one was.
func (m *model) open(setting OpenRate, waited int, hold time.Duration) (served int, last time.Duration, paced Pacing) {
	const timeout = 3 * time.Second
	start := time.Unix(0, 0)
	p := &pacer{Pacing: Pacing{Waited: waited}}
	p.begin(start, setting, 0, float64(waited)/hold.Seconds()/holdShare)
	var pending []attempt
	waiting := waited
	for now := time.Duration(0); now < hold && served < waited; now += tick {
		m.queue = max(0, m.queue-m.perSecond*tick.Seconds())
		slow, n := 0, waiting
		for _, a := range pending {
			if !start.Add(a.began).Before(p.since) && now-a.began > slowLimit(0) {
				slow++
			}
		}
		if setting != OpenAll {
			n = min(p.next(start.Add(now), slow), waiting)
			p.took(n)
		}
		waiting -= n
		due := pending
		pending = nil
		for range n {
			due = append(due, attempt{began: now, again: now})
		}
		for _, a := range due {
			switch {
			case now-a.began >= timeout: // it waits for another turn
				waiting++
			case now < a.again:
				pending = append(pending, a)
			case m.queue+1 <= float64(m.backlog):
				m.queue++
				served, last = served+1, now
			default:
				m.dropped++
				a.again = a.began + time.Second
				if now > a.began {
					a.again = a.began + timeout
				}
				pending = append(pending, a)
			}
		}
	}
	return served, last, p.Pacing
}

// A host that is slower than the clients are many serves all of them in about the time
// that it needs for so many. When all are connected at once it serves few, because most
// connects are sent again at the wrong time.
func TestPacerSavesHost(t *testing.T) {
	t.Parallel()
	const waited, backlog = 5000, 128
	for _, tt := range []struct {
		perSecond float64
		hold      time.Duration
	}{{300, 30 * time.Second}, {1000, 10 * time.Second}, {5000, 10 * time.Second}} {
		m := model{perSecond: tt.perSecond, backlog: backlog}
		served, last, p := m.open(OpenAuto, waited, tt.hold)
		ideal := time.Duration(waited / tt.perSecond * float64(time.Second))
		t.Logf("%v a second: %d served, the last after %s (ideally %s), %d dropped, %+v", tt.perSecond, served, last, ideal, m.dropped, p)
		if served != waited || last > ideal+4*time.Second || m.dropped > waited/3 {
			t.Errorf("%v a second: %d served, the last after %s, %d dropped", tt.perSecond, served, last, m.dropped)
		}
		if tt.perSecond > 300 {
			continue // one comparison is enough
		}
		m = model{perSecond: tt.perSecond, backlog: backlog}
		if served, _, _ := m.open(OpenAll, waited, tt.hold); served > waited*2/3 {
			t.Errorf("%v a second, all at once: %d served: the model is wrong", tt.perSecond, served)
		}
	}
}

// Whatever the times are that clients have left, and however slow the rate is that the
// operator wants, each has its turn in time.
func TestPacerLosesNobody(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		hold := time.Duration(1+random.IntN(30)) * time.Second
		var line lineup
		for k := range 1 + random.IntN(3000) {
			// Those who came first have waited for the longest time.
			line.waiters = append(line.waiters, waiter{came: int64(k), left: int64(hold/4) + random.Int64N(int64(hold*3/4))})
		}
		waited := len(line.waiters) + random.IntN(3000) // some are in the queue
		start := time.Unix(0, 0)
		setting := []OpenRate{OpenAuto, 1, 100}[random.IntN(3)]
		p := &pacer{Pacing: Pacing{Waited: waited}}
		p.begin(start, setting, 0, line.lowestRate(waited, hold))
		for now := time.Duration(0); p.Turns < waited; now += tick {
			n := min(p.next(start.Add(now), 0), waited-p.Turns)
			for k := p.Turns; k < p.Turns+n; k++ {
				left := hold
				if k < len(line.waiters) {
					left = time.Duration(line.waiters[k].left)
				}
				if now > left {
					t.Fatalf("setting %d, hold %s: turn %d of %d comes after %s, its client waits for %s", setting, hold, k, waited, now, left)
				}
			}
			p.took(n)
		}
	}
}

// hold lets clients wait in the queue of a relay that is shut. Each sends its number.
func (tr *testRelay) holdMany(n int) (clients []*net.TCPConn) {
	tr.tb.Helper()
	for k := range n {
		c := tr.dial()
		fmt.Fprintf(c, "%04d", k)
		clients = append(clients, c)
	}
	if tr.listeners[0].CountsQueue() {
		proctest.Until(tr.tb, "all to be queued", func() bool { return tr.Waiting().Queued == n })
	}
	return clients
}

// numbered is a host that reads the numbers of its clients, in the order in which it
// accepts them, and answers with its name.
type numbered struct {
	*testHost
	mu  sync.Mutex
	got []int
}

func newNumbered(tb testing.TB, name string) *numbered {
	tb.Helper()
	h := new(numbered)
	ln := &inTurn{Listener: listen(tb, "127.0.0.1:0"), read: func(c net.Conn) {
		b := make([]byte, 4)
		if _, err := io.ReadFull(c, b); err != nil {
			return // it was fenced
		}
		n, _ := strconv.Atoi(string(b))
		h.mu.Lock()
		h.got = append(h.got, n)
		h.mu.Unlock()
	}}
	h.testHost = newHostOn(tb, ln, func(c net.Conn) { greet(name)(c.(*net.TCPConn)) })
	return h
}

func (h *numbered) list() []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.got)
}

// inTurn reads from each connection before it accepts the next one.
type inTurn struct {
	net.Listener
	read func(net.Conn)
}

func (l *inTurn) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		c.SetDeadline(time.Now().Add(patience))
		l.read(c)
	}
	return c, err
}

// Those who waited go in the order in which they came, and those who come meanwhile
// after them. Then new clients do not wait any more.
func TestPacedOpen(t *testing.T) {
	t.Parallel()
	paced := make(chan Pacing, 1)
	one := NewEngine(EngineConfig{}) // several loops, or goroutines, connect the clients of one turn at the same time
	tr := start(t, Config{OpenRate: 200, Hold: time.Minute, Engine: one, Paced: func(p Pacing) { paced <- p }})
	tr.open(1, newHost(t, echo).addr)
	tr.Hold()
	const many = 150
	clients := tr.holdMany(many)
	h := newNumbered(t, "x")
	w, err := tr.Open(2, h.addr)
	if err != nil || !w.Paced || w.Queued != many && tr.listeners[0].CountsQueue() {
		t.Fatalf("Open = %+v, %v, want %d queued, and paced", w, err, many)
	}
	late := tr.dial()
	fmt.Fprintf(late, "%04d", many)
	for _, c := range append(clients, late) {
		if got := readSome(t, c, 1); got != "x" {
			t.Fatalf("a client read %q", got)
		}
	}
	p := <-paced
	displaced := 0
	for k, n := range h.list() {
		displaced += max(k-n, n-k)
	}
	// In random order clients are displaced by a third of their number.
	if mean := float64(displaced) / many; mean > many/6 || keepsOrder && mean > 3 {
		t.Errorf("clients are %.1f places from where they should be: %v", mean, h.list())
	}
	if p.Epoch != 2 || p.Turns != many+1 || p.Waited != w.Queued || p.First != 200 || !p.Over || p.Slowed != 0 {
		t.Errorf("pacing %+v, want %d turns at 200 a second", p, many+1)
	}
	if last, ok := tr.Pacing(); !ok || last != p {
		t.Errorf("Pacing = %+v, %v, want the same", last, ok)
	}
	if least := time.Duration(float64(many-2*paceBurst) / 400 * float64(time.Second)); p.For < least {
		t.Errorf("the pacing took %s, want at least %s", p.For, least) // the rate is 400 at most
	}
	if g := tr.gate.Load(); g == nil || g.paced || g.epoch != 2 {
		t.Errorf("the gate is %+v afterwards", g)
	}
	after := tr.dial()
	fmt.Fprintf(after, "%04d", many+1)
	readSome(t, after, 1)
}

// Few clients are not paced, nor is anybody without Hold or with OpenAll.
func TestUnpacedOpen(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		cfg  Config
		many int
	}{
		{"few", Config{OpenRate: 1}, paceBurst},
		{"off", Config{OpenRate: OpenAll}, paceBurst + 1},
	} {
		tr := start(t, tt.cfg)
		tr.open(1, newHost(t, echo).addr)
		tr.Hold()
		clients := tr.holdMany(tt.many)
		h := newNumbered(t, "x")
		if w, err := tr.Open(2, h.addr); err != nil || w.Paced {
			t.Errorf("%s: Open = %+v, %v, want no pacing", tt.name, w, err)
		}
		for _, c := range clients {
			readSome(t, c, 1)
		}
		if p, ok := tr.Pacing(); ok {
			t.Errorf("%s: %+v", tt.name, p)
		}
	}
}

// When the gate is shut during the pacing, nobody is connected any more, and the next
// primary gets the others.
func TestPacedOpenInterrupted(t *testing.T) {
	t.Parallel()
	paced := make(chan Pacing, 2)
	tr := start(t, Config{OpenRate: 40, Hold: 10 * time.Minute, Paced: func(p Pacing) { paced <- p }})
	tr.open(1, newHost(t, echo).addr)
	tr.Hold()
	const many = 120
	clients := tr.holdMany(many)
	one, two := newNumbered(t, "a"), newNumbered(t, "b")
	tr.open(2, one.addr)
	proctest.Until(t, "some to be connected", func() bool { return len(one.list()) > paceBurst })
	tr.Hold()
	tr.Fence(t.Context(), 3, "", FencePolicy{})
	first := <-paced
	if first.Epoch != 2 || first.Turns < paceBurst || first.Turns >= many || !first.Over {
		t.Errorf("the first pacing was %+v", first)
	}
	tr.open(3, two.addr)
	served := 0
	for k, c := range clients {
		b := make([]byte, 1)
		_, err := c.Read(b)
		switch {
		case err == nil && b[0] == 'b':
			served++
			continue
		case err == nil: // the first host's, so it was fenced, perhaps before it had this byte
			_, err = c.Read(b)
		}
		if !isReset(err) {
			t.Errorf("client %d of the first host: %v, want a reset", k, err)
		}
	}
	if p := <-paced; p.Epoch != 3 || p.Turns != served || !p.Over {
		t.Errorf("the second pacing was %+v, and %d clients were served", p, served)
	}
}

// Settings that change during the pacing apply at once.
func TestPacedOpenReconfigured(t *testing.T) {
	t.Parallel()
	const hold = time.Hour // at 1 a second the test would take minutes
	for _, to := range []Config{
		{OpenRate: OpenAll, Hold: hold},
		{OpenRate: 2000, Hold: hold},
	} {
		tr := start(t, Config{OpenRate: 1, Hold: hold})
		tr.open(1, newHost(t, echo).addr)
		tr.Hold()
		clients := tr.holdMany(300)
		h := newNumbered(t, "x")
		tr.open(2, h.addr)
		proctest.Until(t, "the first to be connected", func() bool { return len(h.list()) >= paceBurst })
		to.Listen = []string{"127.0.0.1:0"}
		tr.reconfigure(to)
		for _, c := range clients {
			readSome(t, c, 1)
		}
	}
}

// A client that leaves while it waits for its turn is never connected.
func TestPacedClientLeaves(t *testing.T) {
	t.Parallel()
	tr := start(t, Config{OpenRate: 1, Hold: time.Hour})
	tr.open(1, newHost(t, echo).addr)
	tr.Hold()
	clients := tr.holdMany(100)
	h := newNumbered(t, "x")
	tr.open(2, h.addr)
	proctest.Until(t, "all to be accepted", func() bool { return tr.Stats().Accepted == 100 })
	for _, c := range clients[50:] {
		reset(c)
	}
	// On a slow machine some of them have had their turns.
	proctest.Until(t, "the relay to notice", func() bool { s := tr.Stats(); return s.Aborted+s.Reset == 50 })
	early := int64(tr.Stats().Reset)
	tr.reconfigure(Config{OpenRate: OpenAll, Hold: time.Hour, Listen: []string{"127.0.0.1:0"}})
	for _, c := range clients[:50] {
		readSome(t, c, 1)
	}
	if n := h.accepted.Load(); n != 50+early {
		t.Errorf("%d connections to the host, want 50 and %d that left later", n, early)
	}
}

// While the program ends, those who wait have their turns. What the drain cuts does not
// keep it from ending.
func TestPacedOpenAtTheEnd(t *testing.T) {
	t.Parallel()
	for _, drain := range []time.Duration{0, patience} {
		tr := start(t, Config{OpenRate: 100, Hold: time.Hour, DrainTimeout: drain})
		tr.open(1, newHost(t, echo).addr)
		tr.Hold()
		clients := tr.holdMany(60)
		h := newNumbered(t, "x")
		tr.open(2, h.addr)
		tr.stop()
		for _, c := range clients {
			b := make([]byte, 1)
			if _, err := c.Read(b); (err != nil) != (drain == 0) && drain > 0 {
				t.Errorf("drain %s: %v", drain, err)
			}
			c.Close()
		}
		<-tr.done
	}
}
