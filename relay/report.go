package relay

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/fault"
)

// reports passes faults on to the relay's owner and its log, limited in rate,
// so that a storm of failing clients does not become a storm of reports.
type reports struct {
	fixed *Config // the part of the settings that never changes

	suspected atomic.Int64 // when suspect was last called, in nanoseconds
	suspectOf atomic.Uint64
	serving   atomic.Uint64 // the epoch that the gate is open in; 0 while it is shut
	answered  atomic.Uint64 // the latest epoch whose first byte was reported
	complain  [3]atomic.Int64

	ends hostEnds

	turnedAway                            atomic.Uint64 // Measured.TurnedAway
	localAccept, localConnect, localWatch atomic.Uint64 // LocalFailures

	silents  atomic.Uint64 // Stats.Silent
	isSilent atomic.Bool   // silence is not zero
	silence  struct {
		sync.Mutex
		Silence
		from netip.Addr // of the first client
	}
}

const (
	// silentWithin is the time after accepting within which the end of a
	// connection by the host counts as silence.
	silentWithin = time.Second

	// silentRow is the number of silent connections in a row that is reported. If one
	// connection in ten ends so for good reasons, five in a row happen by chance
	// once in 100,000.
	silentRow = 5
)

// Silence describes the client connections in a row that the host of an epoch
// ended within a second of accepting them, before it had sent a byte, although
// their clients had not ended them. A client that gets a byte ends the row.
type Silence struct {
	Epoch   uint64
	InARow  int
	Several bool      // they came from two addresses or more
	Since   time.Time // when the row became remarkable; zero before
}

// Remarkable reports whether the row is too long for chance, five connections
// or more, and comes from more than one client.
func (s Silence) Remarkable() bool { return s.InARow >= silentRow && s.Several }

// silent records that the host of an epoch has ended a client's connection
// without a byte.
func (r *reports) silent(epoch uint64, from netip.Addr) {
	r.silents.Add(1)
	s := &r.silence
	s.Lock()
	switch {
	case epoch < s.Epoch:
		s.Unlock()
		return
	case epoch > s.Epoch:
		s.Silence = Silence{Epoch: epoch}
	}
	r.isSilent.Store(true)
	if s.InARow++; s.InARow == 1 {
		s.from = from
	}
	s.Several = s.Several || from != s.from
	remarkable := s.Remarkable()
	if remarkable && s.Since.IsZero() {
		s.Since = time.Now()
	}
	s.Unlock()
	if remarkable && r.fixed.Suspect != nil && r.seldom(2) {
		r.fixed.Suspect(epoch, errSilent)
	}
}

// endSilence records that a client got a byte.
func (r *reports) endSilence(epoch uint64) {
	if !r.isSilent.Load() {
		return
	}
	s := &r.silence
	s.Lock()
	defer s.Unlock()
	if epoch >= s.Epoch {
		s.Silence = Silence{Epoch: epoch}
		r.isSilent.Store(false)
	}
}

// Silence returns how many client connections in a row the host has ended
// without a byte.
func (r *Relay) Silence() Silence {
	r.silence.Lock()
	defer r.silence.Unlock()
	return r.silence.Silence
}

// suspect reports a fault of the primary, at most ten times a second.
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
	r.fixed.Suspect(epoch, fault.Explain(err))
}

const (
	// endsWindow is the time within which the connections of a dying process end:
	// the kernel closes all of them at once.
	endsWindow = 50 * time.Millisecond

	// endsMany is the number of clean ends within endsWindow that cause a check. One
	// or two clean ends are the normal end of a request with many services.
	endsMany = 3
)

// hostEnds counts connections in use that the host has ended.
type hostEnds struct {
	sync.Mutex
	begin    time.Time // of the window
	count    int       // clean ends in it
	reported time.Time
}

// hostEnded records that the host of an epoch has ended a connection in use
// before its client did, by a reset or cleanly, and reports a reset, or several
// clean ends at about the same time.
func (r *reports) hostEnded(epoch uint64, reset bool) {
	if r.fixed.HostEnded == nil || r.serving.Load() != epoch {
		return
	}
	e, now := &r.ends, time.Now()
	e.Lock()
	if now.Sub(e.begin) > endsWindow {
		e.begin, e.count = now, 0
	}
	if !reset {
		e.count++
	}
	report := (reset || e.count >= endsMany) && now.Sub(e.reported) >= 100*time.Millisecond
	if report {
		e.reported = now
	}
	e.Unlock()
	if report {
		r.fixed.HostEnded(epoch)
	}
}

// firstByte reports the first byte of an epoch, once. One that comes before the
// gate of the epoch is open, over a connection that was carried into the epoch,
// does not count.
func (r *reports) firstByte(epoch uint64) {
	r.endSilence(epoch)
	if r.serving.Load() != epoch {
		return
	}
	if old := r.answered.Load(); epoch > old && r.answered.CompareAndSwap(old, epoch) && r.fixed.FirstByte != nil {
		r.fixed.FirstByte(epoch)
	}
}

// local counts a fault of this machine, and logs it at most once in ten seconds.
func (r *reports) local(call string, err error) {
	switch call {
	case "accept":
		r.localAccept.Add(1)
	case "connect":
		r.localConnect.Add(1)
	default:
		r.localWatch.Add(1)
	}
	if r.seldom(0) {
		r.fixed.Logger.Warn("out of resources, clients wait", "call", call, "error", err)
	}
}

// full logs that the connection limit is reached, at most once in ten seconds.
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

// connectionLimit returns how many connections fit below the descriptor limit with
// a reserve for everything else: 64 and the requested reserve, which is capped
// at a quarter of the limit.
func connectionLimit(reserve int) int64 {
	most := int64(1) << 30
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil && uint64(lim.Cur) < uint64(most) { //nolint:unconvert // signed on FreeBSD, and never negative
		all := int64(lim.Cur) //nolint:gosec // below 1<<30
		most = max(1, (all-64-min(int64(reserve), all/4))/2)
	}
	return most
}
