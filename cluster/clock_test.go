package cluster

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// clockLab is some members with clocks that run at rates of their own, a store between
// them, and the Clocks of the first.
type clockLab struct {
	rates   []float64 // of the clocks
	stands  []time.Duration
	delay   func(now time.Duration) time.Duration // of each request and each answer
	late    func(now time.Duration) time.Duration // what each request of another one is delayed by in addition
	clocks  *Clocks
	entries []Entry
	now     time.Duration // real
	rng     *rand.Rand
	beat    time.Duration                         // from one heartbeat to the next
	phase   func(now time.Duration) time.Duration // of the heartbeats of the others
	beats   int
	every   int // heartbeats from one reading to the next
}

func newClockLab(rates ...float64) *clockLab {
	l := &clockLab{
		rates: rates, stands: make([]time.Duration, len(rates)), clocks: NewClocks("m"), entries: make([]Entry, len(rates)),
		rng: rand.New(rand.NewPCG(1, 2)), every: 1, beat: time.Second,
	}
	for i := range rates {
		l.entries[i] = Entry{Name: name(i), Member: Member{Boot: 1}}
	}
	return l
}

func (l *clockLab) clock(i int, now time.Duration) time.Duration {
	return time.Duration(float64(now-l.stands[i]) * l.rates[i])
}

// run lets time pass. Each member writes once in a beat, at a time of its own that
// moves on slowly; the first reads then.
func (l *clockLab) run(d time.Duration) {
	delay := func(at time.Duration) time.Duration {
		d := time.Duration(l.rng.Int64N(int64(20 * time.Millisecond)))
		if l.delay != nil {
			d += l.delay(at)
		}
		return d
	}
	for end := l.now + d; l.now < end; l.now += l.beat {
		l.beats++
		for i := 1; i < len(l.rates); i++ {
			phase := time.Duration(l.beats*i) * time.Millisecond % l.beat
			if l.phase != nil {
				phase = l.phase(l.now)
			}
			e := &l.entries[i]
			wrote := l.now + phase - delay(l.now)
			if l.late != nil {
				wrote -= l.late(l.now)
			}
			e.Member.Clock, e.Revision = l.clock(i, wrote), e.Revision+1
		}
		if l.beats%l.every == 0 {
			sent := l.now + l.beat
			l.clocks.Observe(l.clock(0, sent), l.clock(0, sent+delay(l.now)), l.entries)
		}
	}
}

func (l *clockLab) want(t *testing.T, wrong string) {
	t.Helper()
	if got := l.clocks.Wrong(); got != wrong {
		t.Fatalf("after %v: %q, want %q", l.now, got, wrong)
	}
}

// With three members, the one whose clock differs is named. With two, both are.
func TestWrongClock(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rates []float64
		wrong string
	}{
		{"all right", []float64{1, 1.004, 0.996}, ""},
		{"another one is fast", []float64{1, 1.03, 1}, "the clock of n runs too fast, by more than 1 %"},
		{"another one is slow", []float64{1, 1, 0.97}, "the clock of o runs too slow, by more than 1 %"},
		{"this one is fast", []float64{1.05, 1, 1, 1.001}, "the clock of m runs too fast, by more than 1 %"},
		{"two are wrong", []float64{1, 1.05, 0.95, 1, 1}, "the clock of n runs too fast, by more than 1 %; the clock of o runs too slow, by more than 1 %"},
		{"of two", []float64{1, 1.03}, "the clock of n runs faster than that of m, by more than 1 %"},
		{"of two, and slow", []float64{1, 0.97}, "the clock of n runs slower than that of m, by more than 1 %"},
		{"of two, and right", []float64{1, 1.002}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newClockLab(tt.rates...)
			for range 15 {
				l.run(time.Minute)
				if got := l.clocks.Wrong(); got != "" && tt.wrong == "" {
					t.Fatalf("after %v: %q", l.now, got)
				}
			}
			l.want(t, tt.wrong)
		})
	}
}

// A clock that is badly wrong is noticed within minutes, and one that is right again is
// forgotten.
func TestWrongClockIsNoticedSoon(t *testing.T) {
	l := newClockLab(1, 1, 1)
	l.run(time.Hour)
	l.want(t, "")
	at := l.now
	l.rates[2] = 1.1
	l.stands[2] = time.Duration(float64(at) * (1 - 1/1.1)) // it shows what it has shown
	l.run(4 * time.Minute)
	l.want(t, "the clock of o runs too fast, by more than 1 %")
	shown := l.clock(2, l.now)
	l.rates[2], l.stands[2] = 1, l.now-shown
	l.run(12 * time.Minute)
	l.want(t, "")
}

// What slows messages down, stops a machine together with its clock, or starts it anew is
// no clock that runs wrong.
func TestRightClock(t *testing.T) {
	step := func(at, by time.Duration) func(time.Duration) time.Duration {
		return func(now time.Duration) time.Duration {
			if now >= at {
				return by
			}
			return 0
		}
	}
	for what, happen := range map[string]func(*clockLab){
		"the store becomes slow": func(l *clockLab) { l.delay = step(5*time.Minute, 6*time.Second) },
		"the store is slow for a minute": func(l *clockLab) {
			l.delay = func(now time.Duration) time.Duration {
				return step(5*time.Minute, 6*time.Second)(now) - step(6*time.Minute, 6*time.Second)(now)
			}
		},
		"a machine stands still": func(l *clockLab) { l.run(5 * time.Minute); l.stands[1] = 20 * time.Second },
		"this machine stands still": func(l *clockLab) {
			l.run(5 * time.Minute)
			l.stands[0] = 20 * time.Second
		},
		"another one starts anew": func(l *clockLab) {
			l.run(5 * time.Minute)
			l.stands[1] = l.now
			l.entries[1].Member.Boot++
		},
		"the other one is silent": func(l *clockLab) {
			l.run(5 * time.Minute)
			entry := l.entries[1]
			for range 180 {
				l.now += time.Second
				l.clocks.Observe(l.now, l.now, []Entry{l.entries[0], entry, l.entries[2]})
				l.want(t, "")
			}
			l.stands[1] = 3 * time.Minute
		},
		"another one starts anew again and again": func(l *clockLab) {
			for range 15 {
				l.run(50 * time.Second)
				l.want(t, "")
				l.stands[1] += 10 * time.Second
				l.entries[1].Member.Boot++
			}
		},
		"most heartbeats of the others arrive later and later": func(l *clockLab) {
			l.late = func(now time.Duration) time.Duration {
				if now/time.Second%10 == 0 {
					return 0
				}
				return now / 20
			}
		},
		"keys are read seldom": func(l *clockLab) { l.every = 15 },
		"heartbeats are far apart": func(l *clockLab) {
			l.beat = 4 * time.Second
			l.phase = func(now time.Duration) time.Duration { return min(now.Truncate(100*time.Second)/100, 4*time.Second) }
		},
	} {
		t.Run(strings.ReplaceAll(what, " ", "-"), func(t *testing.T) {
			l := newClockLab(1, 1, 1)
			happen(l)
			for range 20 {
				l.run(time.Minute)
				l.want(t, "")
			}
		})
	}
}
