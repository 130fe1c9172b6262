package cluster

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Clocks watches the clocks of the other members: leases are safe only while no
// clock runs wrong by more than 1 %. It compares rates, not times: each heartbeat
// says what the clock of its member showed when it was sent, and what this has
// advanced by from one to a later one is compared with the own clock.
//
// It decides nothing. It is not safe for concurrent use.
type Clocks struct {
	member string
	read   time.Duration // when the reading before was sent; never for none
	series map[string]*clockSeries
}

const (
	// clockWindow is the time in which one sample is kept, the one with the least
	// delay.
	clockWindow = time.Minute

	// clockPoints is the number of samples that are kept.
	clockPoints = 11

	// clockError is the largest allowed error of a clock, as a part of the time.
	clockError = 0.01
)

// clockSeries are the samples of one life of a member.
type clockSeries struct {
	boot   uint64
	shown  time.Duration // by its clock, in the last sample
	points []clockPoint  // of the windows that are over
	window clockPoint    // of the present one
	ends   time.Duration // when that is over
}

// clockPoint is a sample.
type clockPoint struct {
	at    time.Duration // when it was read, on the own clock
	ahead time.Duration // of the other clock: what that showed, less at
	doubt time.Duration // how much too small ahead may be: the time in which it may have lain in the store
}

// NewClocks returns the Clocks of a member.
func NewClocks(member string) *Clocks {
	return &Clocks{member: member, read: never, series: map[string]*clockSeries{}}
}

// Observe takes note of the keys of all members, which were read by a request
// sent at sent and answered at now, on the own clock.
func (c *Clocks) Observe(sent, now time.Duration, members []Entry) {
	before := c.read
	c.read = sent
	maps.DeleteFunc(c.series, func(name string, _ *clockSeries) bool {
		return !slices.ContainsFunc(members, func(e Entry) bool { return e.Name == name })
	})
	for i := range members {
		e := &members[i]
		if e.Name == c.member || e.Member.Clock == 0 || before == never {
			continue
		}
		s := c.series[e.Name]
		if s == nil || s.boot != e.Member.Boot {
			c.series[e.Name] = &clockSeries{boot: e.Member.Boot, shown: e.Member.Clock, ends: now + clockWindow}
			continue
		}
		if e.Member.Clock != s.shown {
			s.add(clockPoint{at: now, ahead: e.Member.Clock - now, doubt: now - before})
			s.shown = e.Member.Clock
		}
	}
}

func (s *clockSeries) add(p clockPoint) {
	if p.at >= s.ends {
		if s.window != (clockPoint{}) {
			s.points = append(s.points[max(0, len(s.points)+1-clockPoints):len(s.points):len(s.points)], s.window)
		}
		s.window, s.ends = p, p.at+clockWindow
	}
	if s.window == (clockPoint{}) || p.ahead > s.window.ahead {
		s.window = p
	}
}

// rate returns by which part the clock runs faster than the own one; zero where
// that is not more than clockError for certain, and false while it is not known.
//
// A clock that runs wrong does so all the time. What changes once, such as the
// delay of the network or a machine that stands still with its clock, is in one
// half of the time only.
func (s *clockSeries) rate() (rate float64, known bool) {
	last := len(s.points) - 1
	for half := 1; 2*half <= last; half++ {
		first, middle, end := &s.points[last-2*half], &s.points[last-half], &s.points[last]
		if early, late := drift(first, middle), drift(middle, end); early*late > 0 {
			rate = float64(end.ahead-first.ahead) / float64(end.at-first.at)
		}
	}
	return rate, last >= 2
}

// drift returns the rate from a to b; zero if it is not more than clockError for
// certain.
func drift(a, b *clockPoint) float64 {
	gained, passed := b.ahead-a.ahead, b.at-a.at
	if float64(gained.Abs()-max(a.doubt, b.doubt)) <= clockError*float64(passed) {
		return 0
	}
	return float64(gained) / float64(passed)
}

// Wrong says whose clocks run wrong by more than 1 %, in one line; empty for
// nobody's. With three members or more, rates are compared with the median.
func (c *Clocks) Wrong() string {
	names, rates := []string{c.member}, []float64{0}
	for _, name := range slices.Sorted(maps.Keys(c.series)) {
		if rate, known := c.series[name].rate(); known {
			names, rates = append(names, name), append(rates, rate)
		}
	}
	if len(names) == 2 {
		switch {
		case rates[1] > 0:
			return fmt.Sprintf("the clock of %s runs faster than that of %s, by more than 1 %%", names[1], names[0])
		case rates[1] < 0:
			return fmt.Sprintf("the clock of %s runs slower than that of %s, by more than 1 %%", names[1], names[0])
		}
		return ""
	}
	right := slices.Sorted(slices.Values(rates))[(len(rates)-1)/2]
	var wrong []string
	for i, rate := range rates {
		switch off := rate - right; {
		case off > clockError:
			wrong = append(wrong, fmt.Sprintf("the clock of %s runs too fast, by more than 1 %%", names[i]))
		case off < -clockError:
			wrong = append(wrong, fmt.Sprintf("the clock of %s runs too slow, by more than 1 %%", names[i]))
		}
	}
	return strings.Join(wrong, "; ")
}
