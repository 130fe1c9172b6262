package histogram

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// Each duration is in the classic bucket whose bounds contain it, and in the native
// bucket whose bounds, by the definition of Prometheus, do.
func TestBucketsContainTheirDurations(t *testing.T) {
	for _, d := range []time.Duration{
		-time.Second, 0, 1, 900, 953, 955, time.Microsecond, 17 * time.Microsecond, time.Millisecond, time.Millisecond + 1,
		2500 * time.Microsecond, 249 * time.Millisecond, 250 * time.Millisecond, 250*time.Millisecond + 1, 500 * time.Millisecond,
		time.Second, time.Second + 1, 59 * time.Second, time.Minute, time.Minute + 1, 128 * time.Second, 129 * time.Second, time.Hour,
	} {
		var h Histogram
		h.Observe(d)
		var s Snapshot
		s.Add(&h)
		seconds := max(d, 0).Seconds()
		if s.Count() != 1 || s.Sum() != max(d, 0) {
			t.Errorf("%v: count %d, sum %v", d, s.Count(), s.Sum())
		}
		for k, n := range s.Classic() {
			if want := seconds <= Bounds[k]; (n == 1) != want {
				t.Errorf("%v: %d in the bucket up to %v", d, n, Bounds[k])
			}
		}
		n := s.Native(nil)
		if n.Zero == 1 {
			if len(n.Buckets) != 0 || seconds > n.ZeroThreshold*1.001 {
				t.Errorf("%v: in the zero bucket up to %v, and in %v", d, n.ZeroThreshold, n.Buckets)
			}
			continue
		}
		if len(n.Buckets) != 1 || n.Buckets[0] != 1 {
			t.Fatalf("%v: native buckets %+v", d, n)
		}
		upper := math.Exp2(float64(n.First) / (1 << Schema))
		lower := math.Exp2(float64(n.First-1) / (1 << Schema))
		const rounded = 1e-9
		if seconds <= lower-rounded || seconds > upper+rounded && upper < 128 {
			t.Errorf("%v: in the native bucket from %v to %v", d, lower, upper)
		}
	}
}

// Both ways to read it count the same durations, of several histograms.
func TestSnapshotsAddUp(t *testing.T) {
	var a, b Histogram
	var sum time.Duration
	for k := range 1000 {
		d := time.Duration(math.Exp(rand.Float64()*24.7)) + 1
		sum += d
		if k%3 == 0 {
			a.Observe(d)
		} else {
			b.Observe(d)
		}
	}
	var s Snapshot
	s.Add(&a)
	s.Add(&b)
	n := s.Native(nil)
	count := n.Zero
	for _, c := range n.Buckets {
		count += c
	}
	if s.Count() != 1000 || count != 1000 || s.Sum() != sum {
		t.Errorf("%d and %d durations, sum %v, want 1000 and %v", s.Count(), count, s.Sum(), sum)
	}
	if all := s.Classic(); all[len(all)-1] != 1000 { // none is longer than a minute
		t.Errorf("%d are up to %v long, want 1000", all[len(all)-1], Bounds[len(Bounds)-1])
	}
}

func BenchmarkObserve(b *testing.B) {
	var h Histogram
	for b.Loop() {
		h.Observe(37 * time.Microsecond)
	}
}

// A copy is equal until either has counted something more, and shares nothing.
func TestCopiesAreEqualUntilOneCountsMore(t *testing.T) {
	var h Histogram
	var was, now, set Snapshot
	for k, d := range []time.Duration{0, time.Millisecond, time.Minute, 0, 0} {
		h.Observe(d)
		now = Snapshot{}
		now.Add(&h)
		if now.Equal(&was) || was.Equal(&now) {
			t.Errorf("after %d durations: equal to the one before", k)
		}
		if set.Set(&now); !set.Equal(&now) || !now.Equal(&set) {
			t.Errorf("after %d durations: a copy is not equal", k)
		}
		set.Add(&h)
		if set.Equal(&now) || now.Count() != uint64(k+1) {
			t.Errorf("after %d durations: what is added to the copy is in the original", k)
		}
		was = now
	}
	set.Set(&Snapshot{})
	if !set.Equal(&Snapshot{}) {
		t.Error("a copy of nothing is not empty")
	}
}
