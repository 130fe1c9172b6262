//go:build !portable

package relay

import (
	"testing"
	"time"
)

// polls is how long s would poll at now.
func (s *spinner) polls(now time.Time) time.Duration { return s.until(now).Sub(now) }

// A loop polls where it would have slept for less than a poll takes at most, and
// soon stops where it would not.
func TestSpinLearns(t *testing.T) {
	now := time.Now()
	var s spinner
	if d := s.polls(now); d != 0 {
		t.Errorf("polls for %v before it has seen anything", d)
	}
	s.waited(spinMost)
	if d := s.polls(now); d != spinMost {
		t.Errorf("polls for %v after a short sleep, want %v", d, spinMost)
	}
	total := time.Duration(0)
	for range 20 {
		total += s.polls(now)
		s.waited(time.Millisecond)
	}
	if d := s.polls(now); d != 0 {
		t.Errorf("polls for %v after twenty long sleeps", d)
	}
	if total >= 2*spinMost {
		t.Errorf("polled for %v in vain, want less than %v", total, 2*spinMost)
	}
	s.waited(spinMost / 2)
	if d := s.polls(now); d != spinMost {
		t.Errorf("polls for %v after a short sleep again, want %v", d, spinMost)
	}
}

// The processor is left to who needs it, for longer and longer, until polling
// was worth it again.
func TestSpinGivesWay(t *testing.T) {
	now := time.Now()
	var s spinner
	s.waited(0)
	for rest := spinRest; rest < 4*spinRests; rest *= 2 {
		s.needed(now)
		want := min(rest, spinRests)
		if d := s.polls(now.Add(want - 1)); d != 0 {
			t.Errorf("polls for %v although it rests for %v", d, want)
		}
		now = now.Add(want)
		if d := s.polls(now); d != spinMost {
			t.Errorf("polls for %v after a rest of %v, want %v", d, want, spinMost)
		}
	}
	s.found()
	s.needed(now)
	if d := s.polls(now.Add(spinRest)); d != spinMost {
		t.Errorf("polls for %v after the first rest, want %v", d, spinMost)
	}
}
