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
// How long is learned, as the kernel's halt_poll_ns learns it for virtual
// machines: a loop that slept for less than spinMost would have been better off
// polling, and does so from then on; one that polled in vain, or slept longer,
// polls half as long the next time, and soon not at all. Traffic that comes
// further apart is never polled for, nor is the time without any.

const (
	// spinMost is the longest that a loop polls, and spinLeast the shortest that
	// it tries.
	spinMost  = 200 * time.Microsecond
	spinLeast = 10 * time.Microsecond

	// yieldLong is what a yield takes at least that met somebody who needs the
	// processor.
	yieldLong = 4 * time.Microsecond

	// spinRest and spinRests bound how long the processor is left to who needs
	// it; it doubles.
	spinRest  = 200 * time.Microsecond
	spinRests = 4 * time.Millisecond
)

// spinner is what a loop has learned about polling. The zero value sleeps at
// once, and learns.
type spinner struct {
	window time.Duration // how long to poll
	rest   time.Duration // how long not to, the next time that somebody needs the processor
	after  time.Time     // when polling is allowed again
}

// until is when polling that begins now is over; it is now where none is worth
// it.
func (s *spinner) until(now time.Time) time.Time {
	if now.Before(s.after) {
		return now
	}
	return now.Add(s.window)
}

// waited is told how long it took until something happened, or nothing did,
// polled for or slept through.
func (s *spinner) waited(d time.Duration) {
	if d <= spinMost {
		s.window = spinMost
	} else if s.window /= 2; s.window < spinLeast {
		s.window = 0
	}
}

// found is told that polling was worth it.
func (s *spinner) found() { s.rest = spinRest }

// needed is told that somebody else needs the processor: it is left to them for
// longer and longer.
func (s *spinner) needed(now time.Time) {
	s.rest = min(max(s.rest, spinRest), spinRests)
	s.after = now.Add(s.rest)
	s.rest *= 2
}

// spin polls for as long as that is worth it, and returns the number of events.
// It gives way at the first sign that somebody else needs the processor.
func (l *loop) spin(begin time.Time) int {
	for now, end := begin, l.spinner.until(begin); now.Before(end); {
		n, e := epollWait(l.ep, l.events, 0)
		if e != 0 {
			return 0
		}
		if n > 0 {
			l.spinner.found()
			return n
		}
		before := time.Now()
		schedYield()
		now = time.Now()
		if now.Sub(before) > yieldLong {
			l.spinner.needed(now)
			return 0
		}
	}
	return 0
}
