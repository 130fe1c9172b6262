package relay

import (
	"context"
	"errors"
	"time"
)

// side names one of the two sockets of a connection.
type side int32

const (
	client side = 0
	host   side = 1
)

func (s side) other() side { return s ^ 1 }

// outcome is how a connection ended; see [Stats].
type outcome uint8

const (
	outcomeFinished outcome = iota
	outcomeReset
	outcomeFenced
	outcomeExpired
	outcomeGone
)

func (o outcome) String() string {
	return [...]string{"finished", "reset", "fenced", "expired", "gone"}[o]
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
	case outcomeGone:
		s.Gone++
	}
}

// chunk is how much one plain read takes at most: 16 KiB is measurably slower,
// 64 KiB is not faster.
const chunk = 32 << 10

// backlog asks for the longest queue of clients that the system allows:
// listen(2) cuts it down to its limit, on Linux net.core.somaxconn.
const backlog = 1<<16 - 1

// Keep-alive: a silent peer is dead after 30 s.
const (
	keepIdle     = 10 // seconds
	keepInterval = 5  // seconds
	keepCount    = 4
)

const (
	// tick is how often connections that wait for something are looked at.
	tick = 10 * time.Millisecond

	// lingerTimeout is how long a failed connection may go without progress in
	// delivering what had arrived before it failed.
	lingerTimeout = 5 * time.Second

	// slowConnect is when a connect that has had no answer is reported.
	slowConnect = 200 * time.Millisecond

	// addressTimeout is how long one of several addresses of a host is waited
	// for before the next is tried.
	addressTimeout = 250 * time.Millisecond

	// retryShort and retryLong bound the time between two connects for a client
	// that waits although there is a primary; it doubles.
	retryShort = 20 * time.Millisecond
	retryLong  = 250 * time.Millisecond

	// fencePoll is how often a fence that lets connections finish looks at them.
	fencePoll = 10 * time.Millisecond
)

// retryDelay is how long a client waits after its nth failed connect, from 1.
func retryDelay(n uint8) time.Duration {
	return min(retryShort<<min(n-1, 7), retryLong)
}

var (
	// errSlow is reported for a connect that has had no answer for a while.
	errSlow = errors.New("a client's connect has had no answer for " + slowConnect.String())

	// errNoByte is reported for a host that took a connection and gave it up.
	errNoByte = errors.New("the host ended a connection before a byte had passed")

	// errTimeout says that a host did not answer within the connect timeout.
	errTimeout = context.DeadlineExceeded

	// errClosed is the answer to an Open after the end of Run has begun.
	errClosed = errors.New("the relay is shutting down")
)

// fenceWith ends connections through pass, which looks at all of them once: it
// moves those over which no byte has passed, resets the others if it is told
// to, and says how many are left. It lets them finish for grace first, or, if
// that is negative, for ever. When ctx ends, what is left then lives on.
func fenceWith(ctx context.Context, grace time.Duration, pass func(reset bool, patience time.Duration) (left, cut, moved int)) Fenced {
	var f Fenced
	look := func(reset bool) int {
		// Who is moved waits for as long as others may finish, too, before its
		// own wait begins.
		left, cut, moved := pass(reset, max(grace, 0))
		f.Reset += cut
		f.Moved += moved
		return left
	}
	if grace <= 0 {
		look(grace == 0)
		return f
	}
	first := look(false)
	timeout := time.NewTimer(grace)
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
			return f
		}
		break
	}
	look(true)
	f.Finished = max(0, first-f.Reset)
	return f
}
