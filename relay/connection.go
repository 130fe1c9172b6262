package relay

import (
	"context"
	"errors"
	"strconv"
	"syscall"
	"time"
)

// side names one of the two sockets of a connection.
type side int32

const (
	client side = 0
	host   side = 1
)

func (s side) other() side { return s ^ 1 }

// outcome is the way a connection ended; see [Stats].
type outcome uint8

const (
	outcomeFinished outcome = iota
	outcomeReset
	outcomeFenced
	outcomeExpired
	outcomeAborted
)

func (o outcome) String() string {
	return [...]string{"finished", "reset", "fenced", "expired", "aborted"}[o]
}

// ended counts a connection that has ended.
func (s *Stats) ended(o outcome) {
	switch o {
	case outcomeFinished:
		s.Finished++
	case outcomeReset:
		s.Reset++
	case outcomeFenced:
		s.Fenced++
	case outcomeExpired:
		s.Expired++
	case outcomeAborted:
		s.Aborted++
	}
}

// add adds the counts of connections of n to s.
func (s *Stats) add(n *Stats) {
	s.Accepted += n.Accepted
	s.Finished += n.Finished
	s.Reset += n.Reset
	s.Fenced += n.Fenced
	s.Expired += n.Expired
	s.Aborted += n.Aborted
	s.Replayed += n.Replayed
	s.Unanswered += n.Unanswered
	s.Denied += n.Denied
}

// more counts one more, up to the most that fits.
func more(n uint8) uint8 { return max(n, n+1) }

// chunk limits one plain read: 16 KiB is measurably slower, 64 KiB is not faster.
const chunk = 32 << 10

// SlowConnect is the longest time that a client's connect may go unanswered before it is
// reported to [Config.Suspect].
const SlowConnect = 200 * time.Millisecond

// Keep-alive: a silent peer is dead after 30 s.
const (
	keepIdle     = 10 // seconds
	keepInterval = 5  // seconds
	keepCount    = 4
)

const (
	// tick is the time between two looks at connections that wait for something.
	tick = 10 * time.Millisecond

	// lingerTimeout is the longest time that a failed connection may go without
	// progress in delivering what had arrived before it failed.
	lingerTimeout = 5 * time.Second

	// retryShort and retryLong bound the time between two connects for a client
	// that waits although there is a primary; the time doubles with each failure.
	retryShort = 20 * time.Millisecond
	retryLong  = 250 * time.Millisecond

	// endsMost limits how many times the host of an epoch may end a client's
	// connection before a byte has passed. One such end may come from the kernel
	// when the host itself dies; then the next connect fails. A second one is
	// taken as the host's own decision.
	endsMost = 2

	// endWait is the time for which a client is kept after endsMost resets. A host
	// that dies slowly can accept once more; within this time the checks that the
	// first reset caused find it down, at the default fast-interval and fall, and the
	// client goes to the next host.
	endWait = 300 * time.Millisecond

	// fencePoll is the time between two looks of a fence at connections that may
	// finish.
	fencePoll = 10 * time.Millisecond
)

// retryDelay returns the time for which a client waits after its nth failed connect,
// from 1.
func retryDelay(n uint8) time.Duration {
	return min(retryShort<<min(n-1, 7), retryLong)
}

var (
	// errSlow is reported for a connect that has had no answer for a while.
	errSlow = errors.New("a client's connect has had no answer for " + SlowConnect.String())

	// errNoByte is reported for a host that accepted a connection and ended it.
	errNoByte = errors.New("the host ended a connection before a byte had passed")

	// errSilent is reported for a host that ends client after client without a
	// byte.
	errSilent = errors.New("the host ended " + strconv.Itoa(silentRow) + " client connections in a row at once, without a byte")

	// errTimeout is reported for a host that did not answer within the connect
	// timeout.
	errTimeout = context.DeadlineExceeded

	// errClosed is the answer to an Open after the end of Run has begun.
	errClosed = errors.New("the relay is shutting down")
)

// isEarlyEnd reports whether a connect that failed with err had been accepted
// first: the host reset the connection so soon that the connect reports it. A
// connect to a port without a listener is refused instead.
func isEarlyEnd(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// fencedHow is the effect of a fence on a connection.
type fencedHow uint8

const (
	fencedNot     fencedHow = iota // it is of a later epoch, or has no host
	fencedLeft                     // it may finish
	fencedCut                      // it was reset
	fencedMoved                    // it has lost its host, and its client waits
	fencedCarried                  // its host stays: it is of the new epoch
)

// fencedCounts counts connections by the effect of a fence on them.
type fencedCounts [fencedCarried + 1]int

// fenceWith ends connections through pass, which looks at all of them once: it
// carries those of the host that stays, moves those over which no byte has
// passed, resets the others if its argument reset is true, and counts all of
// them. When ctx ends, the remaining connections live on.
func fenceWith(ctx context.Context, p FencePolicy, pass func(reset bool, wait time.Duration) fencedCounts) Fenced {
	var f Fenced
	look := func(reset bool) int {
		// The client of a moved connection waits for as long as others may finish,
		// too, before its own wait begins.
		n := pass(reset, p.Drain)
		f.Reset += n[fencedCut]
		f.Moved += n[fencedMoved]
		f.Kept += n[fencedCarried]
		return n[fencedLeft]
	}
	if p.Keep || p.Drain == 0 {
		f.Kept += look(!p.Keep)
		return f
	}
	first := look(false)
	timeout := time.NewTimer(p.Drain)
	defer timeout.Stop()
	poll := time.NewTicker(fencePoll)
	defer poll.Stop()
	for left := first; left > 0; {
		select {
		case <-poll.C:
			left = look(false)
			continue
		case <-timeout.C:
		case <-ctx.Done():
			f.Finished = first - left
			f.Kept += left
			return f
		}
		break
	}
	look(true)
	f.Finished = max(0, first-f.Reset)
	return f
}
