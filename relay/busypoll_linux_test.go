//go:build !portable

package relay

import (
	"testing"
	"time"
)

// polls returns the time for which s would poll at now.
func (s *busyPoller) polls(now time.Time) time.Duration { return s.until(now).Sub(now) }

// A loop polls if it would have slept for less than the longest poll, and soon
// stops if it would not.
func TestBusyPollAdapts(t *testing.T) {
	now := time.Now()
	var s busyPoller
	if d := s.polls(now); d != 0 {
		t.Errorf("polls for %v before it has seen anything", d)
	}
	s.waited(busyPollMost)
	if d := s.polls(now); d != busyPollMost {
		t.Errorf("polls for %v after a short sleep, want %v", d, busyPollMost)
	}
	total := time.Duration(0)
	for range 20 {
		total += s.polls(now)
		s.waited(time.Millisecond)
	}
	if d := s.polls(now); d != 0 {
		t.Errorf("polls for %v after twenty long sleeps", d)
	}
	if total >= 2*busyPollMost {
		t.Errorf("polled for %v in vain, want less than %v", total, 2*busyPollMost)
	}
	s.waited(busyPollMost / 2)
	if d := s.polls(now); d != busyPollMost {
		t.Errorf("polls for %v after a short sleep again, want %v", d, busyPollMost)
	}
}

// While other threads need the processor a loop does not poll, for longer and
// longer, until polling was worth it again.
func TestBusyPollYields(t *testing.T) {
	now := time.Now()
	var s busyPoller
	s.waited(0)
	for rest := busyPollRest; rest < 4*busyPollRests; rest *= 2 {
		s.needed(now)
		want := min(rest, busyPollRests)
		if d := s.polls(now.Add(want - 1)); d != 0 {
			t.Errorf("polls for %v although it rests for %v", d, want)
		}
		now = now.Add(want)
		if d := s.polls(now); d != busyPollMost {
			t.Errorf("polls for %v after a rest of %v, want %v", d, want, busyPollMost)
		}
	}
	s.found()
	s.needed(now)
	if d := s.polls(now.Add(busyPollRest)); d != busyPollMost {
		t.Errorf("polls for %v after the first rest, want %v", d, busyPollMost)
	}
}
