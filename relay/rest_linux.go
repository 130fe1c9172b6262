//go:build !portable

package relay

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// A program without clients.
//
// Checks, canaries and scrapes wake a program a few times a second, and each time several
// goroutines at once. The Go scheduler wakes a thread for each that could run at the same
// time, so that work of a millisecond runs on four threads and takes half as long again:
// all of them look for work, and none has it in its cache. While there are no clients
// nobody is in a hurry, so the engine then gives the scheduler one processor. The first
// client gets all of them back.

// restAfter is how long there must be no clients before the engine rests.
const restAfter = 5 * time.Second

// rester has an engine rest.
type rester struct {
	after time.Duration // 0 is never
	rests atomic.Bool

	mu    sync.Mutex // guards procs
	procs int        // what the scheduler has when the engine does not rest; 0 while that is so
}

// set has the scheduler have one processor, or all of them. It changes that without
// keeping the caller waiting, for the runtime waits for the garbage collector first.
func (r *rester) set(rests bool) {
	if r.rests.CompareAndSwap(!rests, rests) {
		go r.apply()
	}
}

// apply makes true what rests says.
func (r *rester) apply() {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch rests := r.rests.Load(); {
	case rests && r.procs == 0:
		r.procs = runtime.GOMAXPROCS(1)
	case !rests && r.procs != 0:
		runtime.GOMAXPROCS(r.procs)
		r.procs = 0
	}
}

// considerRest has the engine rest when it had no clients for long. The first loop calls it:
// it accepts all clients.
func (l *loop) considerRest() {
	r := &l.engine.rester
	if r.after == 0 {
		return
	}
	if !l.sleeper.parks { // the only processor would sleep with it
		r.set(false)
		return
	}
	if r.rests.Load() {
		return
	}
	for _, t := range l.tenants {
		if t != nil && !t.relay.isTwin() && t.relay.live.Load() > 0 {
			l.clientAt = l.now
		}
	}
	if l.now-l.clientAt >= int64(r.after) {
		r.set(true)
	}
}
