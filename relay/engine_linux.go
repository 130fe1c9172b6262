//go:build !portable

package relay

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Engine is the event loops of a process, which all its relays share: the number
// of threads depends on the load and not on the number of relays. The first relay
// that runs starts it, and when the last one has ended no thread and no
// descriptor of it is left. [NewEngine] starts nothing.
//
// The first loop accepts all clients and keeps them while it has room. The others
// start when they are needed; see balance_linux.go. A connection can move from
// one loop to another; see carry_linux.go.
type Engine struct {
	cfg   EngineConfig
	start time.Time // of all loops' clocks, so that times move with a connection

	// spread starts all loops at once and gives them clients in turn; stir moves
	// a connection after each batch of events. Both are for tests.
	spread, stir bool

	mu     sync.Mutex              // guards what follows; not held while a loop is waited for
	all    atomic.Pointer[[]*loop] // those that run, first to last; never nil
	planes []*share                // by slot; nil where a slot is free
	users  int                     // planes that are not nil
	over   chan struct{}           // closed when the loops have ended
	ending sync.WaitGroup          // the loops' threads

	// A connection on the way from one loop to another belongs to none. So what
	// has to meet every connection bars moves, and waits until none is on the way.
	moveLocks atomic.Int32
	inTransit atomic.Int32

	pipes   atomic.Int32  // open ones of all loops
	turn    atomic.Uint32 // of spread
	growing atomic.Bool   // a loop is being started
	idle    idleMeter
	rester  rester
}

// NewEngine returns an engine for the relays of a process; see [Config.Engine].
func NewEngine(cfg EngineConfig) *Engine {
	e := &Engine{cfg: cfg, start: time.Now(), spread: movesAlways, stir: movesAlways}
	e.cfg.Loops = max(cfg.Loops, 1)
	if cfg.Rest {
		e.rester.after = restAfter
	}
	if movesAlways {
		e.cfg.Loops = max(e.cfg.Loops, 3)
	}
	e.all.Store(new([]*loop))
	return e
}

// loops returns the loops that run.
func (e *Engine) loops() []*loop { return *e.all.Load() }

// Busy returns for each loop how long it was busy since its start, a time window ago.
func (e *Engine) Busy() []time.Duration {
	var all []time.Duration
	for _, l := range e.loops() {
		all = append(all, time.Duration(l.load.worked.Load()))
	}
	return all
}

// join gives a relay its place on the loops, and starts the first loop if there
// is none.
func (e *Engine) join(p *share) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.loops()) == 0 {
		// A loop that comes back from its sleep must find a processor slot.
		if runtime.GOMAXPROCS(0) < e.cfg.Loops+2 {
			runtime.GOMAXPROCS(e.cfg.Loops + 2)
		}
		e.over = make(chan struct{})
		n := 1
		if e.spread {
			n = e.cfg.Loops
		}
		for range n {
			if err := e.startLocked(); err != nil {
				e.stopLocked()
				return err
			}
		}
	}
	p.slot = int32(slices.Index(e.planes, nil))
	if p.slot < 0 {
		p.slot = int32(len(e.planes))
		e.planes = append(e.planes, nil)
	}
	e.planes[p.slot] = p
	e.users++
	for _, l := range e.loops() {
		t := p.add()
		l.post(func() { l.addTenant(t) })
	}
	return nil
}

// leave takes a relay that has no connections away from the loops, and ends them
// when it was the last one.
func (e *Engine) leave(p *share) {
	e.everywhere(func(l *loop) { l.removeTenant(p.slot) })
	e.mu.Lock()
	defer e.mu.Unlock()
	e.planes[p.slot] = nil
	if e.users--; e.users == 0 {
		e.stopLocked()
		e.planes = nil
	}
}

// startLocked starts one more loop.
func (e *Engine) startLocked() error {
	l, err := newLoop(e)
	if err != nil {
		return err
	}
	l.number = len(e.loops())
	for _, p := range e.planes {
		if p != nil {
			l.addTenant(p.add())
		}
	}
	all := append(slices.Clone(e.loops()), l)
	e.all.Store(&all)
	e.ending.Go(l.run)
	return nil
}

// stopLocked ends all loops. They have no connections any more.
func (e *Engine) stopLocked() {
	all := e.loops()
	for _, l := range all {
		l.post(func() { l.finished = true })
	}
	e.ending.Wait()
	e.rester.set(false)
	close(e.over)
	for _, l := range all {
		l.close()
	}
	e.all.Store(new([]*loop))
}

// grow starts one more loop soon, if there may be more.
func (e *Engine) grow() {
	if len(e.loops()) >= e.cfg.Loops || !e.growing.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer e.growing.Store(false)
		e.mu.Lock()
		defer e.mu.Unlock()
		if n := len(e.loops()); n > 0 && n < e.cfg.Loops {
			_ = e.startLocked() // without descriptors for it, the others go on alone
		}
	}()
}

// everywhere runs f on every loop and returns when all have run it. No connection
// is on the way from one loop to another meanwhile.
func (e *Engine) everywhere(f func(*loop)) {
	e.moveLocks.Add(1)
	defer e.moveLocks.Add(-1)
	for e.inTransit.Load() > 0 {
		runtime.Gosched() // the loop that it goes to takes it in its next turn
	}
	for met := 0; met < len(e.loops()); { // one more may start meanwhile
		var wg sync.WaitGroup
		all := e.loops()
		for _, l := range all[met:] {
			wg.Go(func() { l.call(func() { f(l) }) })
		}
		wg.Wait()
		met = len(all)
	}
}
