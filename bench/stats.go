package main

import (
	"math/bits"
	"slices"
	"time"
)

// subBuckets is the number of buckets for each power of two: a value is known
// to 1/64, and the middle of its bucket, which is reported, to 1/128.
const subBuckets = 64

// histogram counts durations in logarithmic buckets, so that recording one is
// an increment and the memory does not depend on how many there are. The zero
// histogram is empty.
type histogram struct {
	counts [(64 - 6 + 1) * subBuckets]uint64
	n      uint64
}

// bucket is the index for a duration of ns nanoseconds. Below 128 every value
// has its own; above, the six bits behind the leading one choose among 64.
func bucket(ns uint64) int {
	if ns < 2*subBuckets {
		return int(ns)
	}
	shift := bits.Len64(ns) - 7
	return shift*subBuckets + int(ns>>shift) //nolint:gosec // G115: the shifted value is below 128
}

// middle is the value in the middle of bucket i, in nanoseconds.
func middle(i int) uint64 {
	if i < 2*subBuckets {
		return uint64(i) //nolint:gosec // G115: an index is not negative
	}
	shift := i/subBuckets - 1
	low := uint64(i-shift*subBuckets) << shift //nolint:gosec // G115: between 64 and 127 by construction
	return low + uint64(1)<<shift/2
}

// record counts one duration; a negative one counts as zero.
func (h *histogram) record(d time.Duration) {
	h.counts[bucket(uint64(max(d, 0)))]++
	h.n++
}

// add counts everything that o has counted.
func (h *histogram) add(o *histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.n += o.n
}

// reset empties h.
func (h *histogram) reset() { *h = histogram{} }

// percentile is the smallest recorded duration that at least p percent of all
// are not above (the nearest rank), to 1/128. It is zero when h is empty.
func (h *histogram) percentile(p float64) time.Duration {
	rank := max(uint64(p/100*float64(h.n)+0.999999), 1)
	var seen uint64
	for i, count := range h.counts {
		seen += count
		if count > 0 && seen >= rank {
			return time.Duration(middle(i)) //nolint:gosec // G115: durations went in, durations come out
		}
	}
	return 0
}

// summary is the reported values of one metric over all rounds.
type summary struct {
	Median   float64
	Min, Max float64
	N        int // rounds that measured it
}

// summarize returns the summary of values, which it leaves as they are. With
// none it returns the zero summary.
func summarize(values []float64) summary {
	if len(values) == 0 {
		return summary{}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	median := sorted[n/2]
	if n%2 == 0 {
		median = (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return summary{Median: median, Min: sorted[0], Max: sorted[n-1], N: n}
}

// spread is half the distance between the least and the greatest value, as a
// fraction of the median: the x of "± x". It is zero for a zero median.
func (s summary) spread() float64 {
	if s.Median == 0 {
		return 0
	}
	return (s.Max - s.Min) / 2 / abs(s.Median)
}

func abs(x float64) float64 { return max(x, -x) }
