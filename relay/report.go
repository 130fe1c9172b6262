package relay

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// reports is what an engine tells its owner and its log about faults, so seldom
// that a storm of failing clients is no storm of reports.
type reports struct {
	fixed *Config // what of it never changes

	suspected atomic.Int64 // when suspect was last called, in nanoseconds
	suspectOf atomic.Uint64
	answered  atomic.Uint64 // the latest epoch whose first byte was reported
	complain  [2]atomic.Int64
}

// suspect reports a fault of the primary, ten times a second at most.
func (r *reports) suspect(epoch uint64, err error) {
	if r.fixed.Suspect == nil {
		return
	}
	now := time.Now().UnixNano()
	last := r.suspected.Load()
	if r.suspectOf.Swap(epoch) == epoch && now-last < int64(100*time.Millisecond) && now >= last {
		return
	}
	r.suspected.Store(now)
	r.fixed.Suspect(epoch, err)
}

// firstByte reports the first byte of an epoch, once.
func (r *reports) firstByte(epoch uint64) {
	if old := r.answered.Load(); epoch > old && r.answered.CompareAndSwap(old, epoch) && r.fixed.FirstByte != nil {
		r.fixed.FirstByte(epoch)
	}
}

// local notes a fault of this machine, once in ten seconds.
func (r *reports) local(call string, err error) {
	if r.seldom(0) {
		r.fixed.Logger.Warn("out of resources, clients wait", "call", call, "error", err)
	}
}

// full notes that the connection limit is reached, once in ten seconds.
func (r *reports) full(limit int64) {
	if r.seldom(1) {
		r.fixed.Logger.Warn("connection limit reached, clients wait", "max-connections", limit)
	}
}

func (r *reports) seldom(kind int) bool {
	now := time.Now().UnixNano()
	last := r.complain[kind].Load()
	return (last == 0 || now-last > int64(10*time.Second)) && r.complain[kind].CompareAndSwap(last, now)
}

// connectionLimit is how many connections fit below the descriptor limit with
// a reserve for everything else: 64 and what was asked for, of which a quarter
// of all is given at most.
func connectionLimit(reserve int) int64 {
	most := int64(1) << 30
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil && uint64(lim.Cur) < uint64(most) { //nolint:unconvert // signed on FreeBSD, and never negative
		all := int64(lim.Cur) //nolint:gosec // below 1<<30
		most = max(1, (all-64-min(int64(reserve), all/4))/2)
	}
	return most
}
