package relay

import (
	"cmp"
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// Paced opening.
//
// A host that was just elected is overloaded by thousands of clients that are connected
// in the same moment. So after an Open those who wait are connected in the order in which
// they came, and those who come meanwhile wait behind them. The rate begins at twice the
// usual number of new clients, and doubles each second while the host accepts connects in
// about their usual time; when it does not, the rate is halved.
//
// The gate says that clients have to wait for their turn, so the data path costs nothing
// when nobody waits. One goroutine for each such Open counts the turns ([pacer]) and has
// the data plane take those whose turn it is, whatever the number of loops.

// OpenRate is the number of clients that waited which are connected in a second after
// [Relay.Open]. If N clients a second are too few to connect all of them within Hold, it
// is as many more as that takes. When all who waited at the Open have had their turn, a
// fixed number doubles each second, until nobody waits any more.
type OpenRate int

const (
	// OpenAll connects all at once.
	OpenAll OpenRate = 0

	// OpenAuto starts with twice the usual number of new clients, 50 at least, and
	// doubles it each second while connects to the host take less than twice their
	// usual time.
	OpenAuto OpenRate = -1
)

const (
	// paceLeast is the least number of clients in a second with which OpenAuto starts.
	paceLeast = 50

	// paceMost keeps the rate within what a tick can count.
	paceMost = 1e6

	// paceBurst is the number of clients that are connected at once in any case. So few
	// waiting clients are not paced.
	paceBurst = 16

	// paceStep is the time after which the rate doubles.
	paceStep = time.Second

	// holdShare is the share of the time that a client has left in which it gets its turn.
	holdShare = 0.75

	// slowTimes is how many times its usual time a connect takes that counts as slow,
	// slowLeast the least such time, and slowUnknown the one while the usual time is not
	// known. When the queue of a host is full, connects take a second or more.
	slowTimes   = 2
	slowLeast   = 50 * time.Millisecond
	slowUnknown = SlowConnect

	// The host is too slow if slowFew connects are slow, or failed, and one of slowPart.
	slowFew  = 3
	slowPart = 8
)

// slowLimit is the time after which a connect is slow if that is its usual time; 0 is
// not known.
func slowLimit(usual time.Duration) time.Duration {
	if usual == 0 {
		return slowUnknown
	}
	return max(slowLeast, slowTimes*usual)
}

// Pacing describes how the clients that waited are connected after an [Relay.Open].
type Pacing struct {
	Epoch  uint64
	Waited int // clients that waited when the gate was opened
	Turns  int // connects begun so far: a client whose connect failed has another turn

	First, Rate, Peak float64 // clients in a second: at first, now, and at most

	Slowed int           // how often the rate was halved because the host was slow
	For    time.Duration // how long it has lasted
	Over   bool          // nobody waits any more, or the gate was shut
}

// pacer counts turns. It knows no clock and no connections.
type pacer struct {
	Pacing
	fixed  bool      // the rate is the operator's, until those who waited have had their turns
	least  float64   // the rate is not halved below
	since  time.Time // when the rate was last changed
	turns  int       // since then
	tokens float64   // turns that are due
	filled time.Time // when tokens was last computed
}

// begin sets the rate at now, by the setting; usual is the number of new clients in a
// second. With fewer than lowest in a second some clients would wait for too long.
func (p *pacer) begin(now time.Time, setting OpenRate, usual, lowest float64) {
	if p.First == 0 {
		p.tokens, p.filled = paceBurst, now
	}
	p.fixed, p.least = setting > 0, max(2*usual, paceLeast)
	if p.fixed {
		p.least = float64(setting)
	}
	p.change(now, min(max(p.least, lowest), paceMost))
	p.First = cmp.Or(p.First, p.Rate)
}

// next returns how many clients may be connected at now. Slow is the number of connects
// that began since p.since and are slow, or have failed.
func (p *pacer) next(now time.Time, slow int) int {
	p.fixed = p.fixed && p.Turns < p.Waited
	switch {
	case p.fixed:
	case slow >= slowFew && slow*slowPart >= p.turns:
		p.Slowed++
		p.change(now, max(p.Rate/2, p.least))
	case now.Sub(p.since) >= paceStep:
		p.change(now, min(p.Rate*2, paceMost))
	}
	// What was missed by a stall of the program is not caught up at once.
	p.tokens = min(p.tokens+p.Rate*now.Sub(p.filled).Seconds(), max(paceBurst, p.Rate/10))
	p.filled = now
	return int(p.tokens)
}

func (p *pacer) change(now time.Time, rate float64) {
	p.Rate, p.since, p.turns = rate, now, 0
	p.Peak = max(p.Peak, rate)
}

// took records that n clients had their turn.
func (p *pacer) took(n int) {
	p.tokens -= float64(n)
	p.turns += n
	p.Turns += n
}

// Expect returns how many clients in a second an Open begins to connect of so many that
// wait, and after what time the last of them has its turn if the host keeps up. Usual is
// the usual number of new clients in a second; zero if it is not known. Hold is that of the
// [Config].
func (r OpenRate) Expect(waiting int, usual float64, hold time.Duration) (first float64, last time.Duration) {
	if r == OpenAll || hold == 0 || waiting <= paceBurst {
		return 0, 0
	}
	var start time.Time
	p := &pacer{Pacing: Pacing{Waited: waiting}}
	p.begin(start, r, usual, lineup{}.lowestRate(waiting, hold))
	for ; p.Turns < waiting; last += tick {
		p.took(p.next(start.Add(last), 0))
	}
	return p.First, last - tick
}

// waiter is a client that waits for its turn. Times are in nanoseconds.
type waiter struct {
	came int64 // when it was accepted, by the clock of the plane
	left int64 // until it has waited for Hold
}

// lineup is what a plane knows of the clients that wait for their turn.
type lineup struct {
	waiters []waiter // in any order; those whose last connect failed a moment ago are not among them
	slow    int      // connects that are slow, or have failed
}

func (l *lineup) add(o lineup) {
	l.waiters = append(l.waiters, o.waiters...)
	l.slow += o.slow
}

func (l lineup) sort() {
	slices.SortFunc(l.waiters, func(a, b waiter) int { return cmp.Compare(a.came, b.came) })
}

// lowestRate is the rate at which every client gets its turn in time: those in line, in
// this order, and behind them the others of those who waited, who are not accepted yet.
func (l lineup) lowestRate(waited int, hold time.Duration) float64 {
	rate := float64(max(waited, len(l.waiters))) / (holdShare * hold.Seconds())
	for k, w := range l.waiters {
		left := max(time.Duration(holdShare*float64(w.left)), tick)
		rate = max(rate, float64(k+1)/left.Seconds())
	}
	return rate
}

// pacesLocked reports whether those who wait are to be paced by an Open.
func (r *Relay) pacesLocked(waited Waiting) bool {
	if s := r.cfg.Load(); s.OpenRate == OpenAll || s.Hold == 0 || !r.listens {
		return false
	}
	unknown := slices.ContainsFunc(r.listeners, func(ln *listener) bool { return !ln.CountsQueue() })
	return unknown || waited.Queued+waited.Held > paceBurst
}

// pace connects the clients that wait since the gate was opened, until none does or
// the gate is shut.
func (r *Relay) pace(g *gate, waited int) {
	opened := time.Now()
	ticks := time.NewTicker(tick)
	defer ticks.Stop()
	p := &pacer{Pacing: Pacing{Epoch: g.epoch, Waited: waited}}
	report := func(over bool) {
		p.For, p.Over = time.Since(opened), over
		now := p.Pacing
		if last := r.pacing.Load(); last == nil || last.Epoch <= now.Epoch { // the gate may be open again
			r.pacing.Store(&now)
		}
	}
	var setting OpenRate
	line := r.plane.line(opened)
	for r.gate.Load() == g {
		s := r.cfg.Load()
		line.sort()
		if s.OpenRate != setting { // at first, and by a reload
			setting = s.OpenRate
			p.begin(time.Now(), setting, r.usual.rate(), line.lowestRate(waited-p.Turns, s.Hold))
		}
		if setting == OpenAll || s.Hold == 0 {
			break
		}
		n := min(p.next(time.Now(), line.slow), len(line.waiters))
		if n > 0 {
			p.took(r.plane.giveTurns(line.waiters[n-1].came, n))
		}
		switch {
		case n == len(line.waiters):
			r.canaries.giveTurn(math.MaxInt64)
		case n > 0:
			r.canaries.giveTurn(line.waiters[n-1].came)
		}
		report(false)
		if n == len(line.waiters) && time.Since(opened) >= paceSettle && r.nobodyWaits() {
			break
		}
		<-ticks.C
		line = r.plane.line(p.since)
	}
	// From here on no new client waits for a turn, and those who do are let through.
	if open := (&gate{epoch: g.epoch, home: g.home, to: g.to}); r.gate.CompareAndSwap(g, open) {
		r.canaries.do(func(t *Relay) { t.gate.CompareAndSwap(g, open) })
		r.plane.giveTurns(math.MaxInt64, math.MaxInt)
		r.canaries.giveTurn(math.MaxInt64)
	}
	report(true)
	if r.fixed.Paced != nil {
		r.fixed.Paced(p.Pacing)
	}
}

// paceSettle is the time within which a plane has accepted the clients of a queue
// whose length is not known.
const paceSettle = 5 * tick

// nobodyWaits reports whether no client waits, except for a place under the limit of
// connections.
func (r *Relay) nobodyWaits() bool {
	w, s := r.Waiting(), r.cfg.Load()
	return w.Held == 0 && (w.Queued == 0 || r.live.Load() >= s.limit || s.Together.Load() >= s.most)
}

// Pacing describes the last [Relay.Open] that paced the clients which waited; false if
// there was none.
func (r *Relay) Pacing() (Pacing, bool) {
	if p := r.pacing.Load(); p != nil {
		return *p, true
	}
	return Pacing{}, false
}

// Usual returns the usual number of new clients in a second; zero while it is not known.
func (r *Relay) Usual() float64 { return r.usual.rate() }

// arrivals measures the usual number of new clients in a second, over about a minute.
type arrivals struct {
	usual atomic.Uint64 // bits of a float64

	// The rest belongs to [Relay.attend].
	at       time.Time
	accepted uint64
	open     *gate // at that time
	notes    int
}

const (
	arrivalsEvery = 10 * time.Second
	arrivalsShare = 1.0 / 6 // of the latest figure in the sum

	// A primary that fails soon after the start finds a figure, too.
	arrivalsFirst = time.Second
	arrivalsFew   = 10
)

// after is the time until the next figure is to be taken.
func (a *arrivals) after() time.Duration {
	if a.notes < arrivalsFew {
		return arrivalsFirst
	}
	return arrivalsEvery
}

// rate is the number of clients in a second; 0 while it is not known.
func (a *arrivals) rate() float64 { return math.Float64frombits(a.usual.Load()) }

// note takes a figure if the gate has been open to all since the last one.
func (a *arrivals) note(now time.Time, accepted uint64, g *gate) {
	if g != nil && !g.paced && g == a.open {
		rate := float64(accepted-a.accepted) / now.Sub(a.at).Seconds()
		if was := a.rate(); was > 0 {
			rate = was + arrivalsShare*(rate-was)
		}
		a.usual.Store(math.Float64bits(rate))
	}
	a.at, a.accepted, a.open = now, accepted, g
	a.notes++
}
