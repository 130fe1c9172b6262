//go:build !portable

package relay

import "time"

// Polling before sleeping.
//
// The next small message of a busy connection is often closer than a wake-up
// takes, above all on a virtual machine: its idle processors are handed back to
// the host, and to get one back takes longer than all the work on a message. So
// a loop that has nothing to do polls for a while before it sleeps.
//
// The time adapts, as the kernel's halt_poll_ns does for virtual machines: a
// loop that slept for less than busyPollMost would have been faster polling,
// and polls from then on; one that polled in vain, or slept longer, polls half
// as long the next time, and soon not at all. So a loop does not poll for
// messages that are further apart, nor while there is no traffic.

const (
	// busyPollMost is the longest that a loop polls, and busyPollLeast the
	// shortest that it tries.
	busyPollMost  = 200 * time.Microsecond
	busyPollLeast = 10 * time.Microsecond

	// yieldLong is the least time that a yield takes when another thread needs the
	// processor.
	yieldLong = 4 * time.Microsecond

	// busyPollRest and busyPollRests bound how long a loop does not poll after
	// another thread needed the processor; the time doubles.
	busyPollRest  = 200 * time.Microsecond
	busyPollRests = 4 * time.Millisecond
)

// busyPoller is the adaptive state of a loop's polling. The zero value sleeps
// at once, and adapts.
type busyPoller struct {
	window time.Duration // how long to poll
	rest   time.Duration // how long not to poll, the next time that another thread needs the processor
	after  time.Time     // when polling is allowed again
}

// until returns when polling that begins now must end; that is now if polling
// is not worth it.
func (s *busyPoller) until(now time.Time) time.Time {
	if now.Before(s.after) {
		return now
	}
	return now.Add(s.window)
}

// waited records how long a wait took, polling and sleeping together, whether
// it ended with an event or without one.
func (s *busyPoller) waited(d time.Duration) {
	if d <= busyPollMost {
		s.window = busyPollMost
	} else if s.window /= 2; s.window < busyPollLeast {
		s.window = 0
	}
}

// found records that polling was worth it.
func (s *busyPoller) found() { s.rest = busyPollRest }

// needed records that another thread needs the processor: the loop does not
// poll for a while, which is longer each time.
func (s *busyPoller) needed(now time.Time) {
	s.rest = min(max(s.rest, busyPollRest), busyPollRests)
	s.after = now.Add(s.rest)
	s.rest *= 2
}

// busyPoll polls for as long as that is worth it, and returns the number of events.
// It stops at the first sign that another thread needs the processor.
func (l *loop) busyPoll(begin time.Time) int {
	for now, end := begin, l.poller.until(begin); now.Before(end); {
		n, e := epollWait(l.ep, l.events, 0)
		if e != 0 {
			return 0
		}
		if n > 0 {
			l.poller.found()
			return n
		}
		before := time.Now()
		schedYield()
		now = time.Now()
		if now.Sub(before) > yieldLong {
			l.poller.needed(now)
			return 0
		}
	}
	return 0
}
