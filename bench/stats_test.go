package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestHistogramBucketsAreNarrowAndInOrder(t *testing.T) {
	last := -1
	for _, ns := range []uint64{0, 1, 63, 64, 127, 128, 129, 130, 255, 256, 1000, 4095, 4096, 65537, 1e6, 1e9, 3.6e12, math.MaxInt64} {
		i := bucket(ns)
		if i < last {
			t.Errorf("bucket(%d) = %d, before the one of a smaller value, %d", ns, i, last)
		}
		last = i
		if err := math.Abs(float64(middle(i))-float64(ns)) / max(float64(ns), 1); err > 1.0/128 {
			t.Errorf("middle(bucket(%d)) = %d, wrong by %.4f, want at most 1/128", ns, middle(i), err)
		}
	}
	if n := len((&histogram{}).counts); last >= n {
		t.Errorf("the longest duration has bucket %d of %d", last, n)
	}
}

func TestPercentilesAreThoseOfTheSortedList(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 3, 99, 100, 101, 10000} {
		var h histogram
		values := make([]time.Duration, n)
		for i := range values {
			values[i] = time.Duration(math.Exp(random.Float64() * 20))
			h.record(values[i])
		}
		slices.Sort(values)
		for _, p := range []float64{50, 99, 99.9, 100} {
			want := values[int(math.Ceil(p/100*float64(n)))-1]
			got := h.percentile(p)
			if math.Abs(float64(got-want)) > max(1, float64(want)/128) {
				t.Errorf("of %d values: percentile(%v) = %v, want %v to 1/128", n, p, got, want)
			}
		}
	}
}

func TestHistogramForgets(t *testing.T) {
	var h histogram
	if got := h.percentile(50); got != 0 {
		t.Errorf("percentile of nothing = %v, want 0", got)
	}
	h.record(-time.Second) // clocks that go back count as zero
	h.record(time.Second)
	h.reset()
	h.record(100)
	if h.n != 1 || h.percentile(99) != 100 {
		t.Errorf("after reset: n = %d, p99 = %v, want 1, 100ns", h.n, h.percentile(99))
	}
}

func TestSummarize(t *testing.T) {
	for _, tt := range []struct {
		name   string
		values []float64
		want   summary
		spread float64
	}{
		{"nothing measured", nil, summary{}, 0},
		{"one round", []float64{3}, summary{3, 3, 3, 1}, 0},
		{"odd number of rounds", []float64{9, 1, 5}, summary{5, 1, 9, 3}, 0.8},
		{"even number of rounds", []float64{4, 1, 3, 8}, summary{3.5, 1, 8, 4}, 1},
		{"one outlier moves the spread, not the median", []float64{10, 10, 10, 10, 20}, summary{10, 10, 20, 5}, 0.5},
	} {
		before := slices.Clone(tt.values)
		got := summarize(tt.values)
		if got != tt.want || got.spread() != tt.spread {
			t.Errorf("%s: summarize(%v) = %+v, spread %v, want %+v, %v", tt.name, tt.values, got, got.spread(), tt.want, tt.spread)
		}
		if !slices.Equal(before, tt.values) {
			t.Errorf("%s: summarize changed its argument to %v", tt.name, tt.values)
		}
	}
}

func TestHistogramsAdd(t *testing.T) {
	var a, b, sum histogram
	for d := range 100 {
		a.record(time.Duration(d))
		b.record(time.Duration(1000 * (d + 1)))
	}
	sum.add(&a)
	sum.add(&b)
	if sum.n != 200 {
		t.Errorf("%d durations in the sum, want 200", sum.n)
	}
	if got, want := sum.percentile(25), a.percentile(50); got != want {
		t.Errorf("the lower quarter of the sum ends at %v, want %v", got, want)
	}
}
