// Package histogram counts durations in buckets, cheaply enough for the data path: an
// observation is a search among constants and two additions.
//
// The buckets are fine enough to be read in two ways that agree: as the exponential
// buckets of a native histogram of Prometheus, and as a few classic ones with round
// bounds; see [Snapshot].
package histogram

import (
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// Schema is the resolution of the native buckets: each is wider than the one before by
// the factor 2^(2^-Schema), 19 %.
const Schema = 2

// The native buckets go from 2^lowest seconds, 0.95 µs, to 2^highest, 128 s. What is
// below is in the zero bucket, and what is above in the last one.
const (
	lowest  = -20
	highest = 7
	natives = (highest-lowest)<<Schema + 1 // their upper bounds, with that of the zero bucket
)

// Bounds are the upper bounds of the classic buckets, in seconds. A bound belongs to its
// bucket.
var Bounds = [classics]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}

const classics = 15

// edges is the number of upper bounds of either kind; 0.25, 0.5 and 1 are of both.
const edges = natives + classics - 3

// layout says for each bucket that is counted, which lies between two bounds of any
// kind, its upper bound in nanoseconds and the classic and native bucket that it is in.
// The last bucket has no bound.
var layout = func() (l struct {
	bounds          [edges]int64
	classic, native [edges + 1]int
},
) {
	var fine, round []int64
	for k := range natives {
		fine = append(fine, int64(math.Round(math.Exp2(lowest+float64(k)/(1<<Schema))*1e9)))
	}
	for _, b := range Bounds {
		round = append(round, int64(math.Round(b*1e9)))
	}
	sorted := slices.Sorted(slices.Values(slices.Concat(fine, round)))
	copy(l.bounds[:], slices.Compact(sorted))
	for k, b := range l.bounds {
		l.classic[k], _ = slices.BinarySearch(round, b)
		l.native[k], _ = slices.BinarySearch(fine, b)
	}
	l.classic[edges], l.native[edges] = len(round), len(fine)-1
	for k, n := range l.native { // what is longer than all of them is in the last one
		l.native[k] = min(n, len(fine)-1)
	}
	return l
}()

// Histogram counts durations. The zero Histogram is empty. All methods may be called
// from many goroutines. Most histograms of a relay stay empty or have a few buckets that
// lie side by side, so the counts are allocated in parts when something is in them.
type Histogram struct {
	parts [parts]atomic.Pointer[[part]atomic.Uint64]
	sum   atomic.Int64 // nanoseconds
}

// part is the number of buckets that are allocated together, and parts that of their parts.
const (
	part  = 16
	parts = (edges + part) / part
)

// Observe counts a duration. A negative one counts as zero.
func (h *Histogram) Observe(d time.Duration) {
	d = max(d, 0)
	k, _ := slices.BinarySearch(layout.bounds[:], int64(d))
	p := h.parts[k/part].Load()
	if p == nil {
		h.parts[k/part].CompareAndSwap(nil, new([part]atomic.Uint64)) // somebody else may be first
		p = h.parts[k/part].Load()
	}
	p[k%part].Add(1)
	h.sum.Add(int64(d))
}

// Snapshot is what one or several histograms have counted at a moment. The zero Snapshot
// is empty. Most are, or nearly, and many are made for a scrape, so it has only the parts in
// which something was counted. A copy shares them: only one of the two may be added to.
type Snapshot struct {
	parts [parts]*[part]uint64
	sum   time.Duration
}

// Add adds what h has counted.
func (s *Snapshot) Add(h *Histogram) {
	for i := range h.parts {
		p := h.parts[i].Load()
		if p == nil {
			continue
		}
		to := s.part(i)
		for k := range p {
			to[k] += p[k].Load()
		}
	}
	s.sum += time.Duration(h.sum.Load())
}

// Merge adds what another snapshot has counted.
func (s *Snapshot) Merge(n *Snapshot) {
	for i, p := range n.parts {
		if p == nil {
			continue
		}
		to := s.part(i)
		for k, c := range p {
			to[k] += c
		}
	}
	s.sum += n.sum
}

// Set makes s equal to n. They share nothing.
func (s *Snapshot) Set(n *Snapshot) {
	for i, p := range n.parts {
		if p == nil {
			s.parts[i] = nil
		} else {
			*s.part(i) = *p
		}
	}
	s.sum = n.sum
}

// Equal reports whether two snapshots have counted the same.
func (s *Snapshot) Equal(n *Snapshot) bool {
	if s.sum != n.sum {
		return false
	}
	for i, p := range s.parts {
		q := n.parts[i]
		if p != q && (p == nil || q == nil || *p != *q) {
			return false
		}
	}
	return true
}

// part returns a part, which it makes if there is none.
func (s *Snapshot) part(i int) *[part]uint64 {
	if s.parts[i] == nil {
		s.parts[i] = new([part]uint64)
	}
	return s.parts[i]
}

// each calls f for each bucket that is not empty.
func (s *Snapshot) each(f func(bucket int, n uint64)) {
	for i, p := range s.parts {
		if p == nil {
			continue
		}
		for k, n := range p {
			if n > 0 {
				f(i*part+k, n)
			}
		}
	}
}

// Count returns the number of durations.
func (s *Snapshot) Count() (n uint64) {
	s.each(func(_ int, c uint64) { n += c })
	return n
}

// Sum returns the sum of all durations.
func (s *Snapshot) Sum() time.Duration { return s.sum }

// Classic returns for each of [Bounds] the number of durations that are not longer.
func (s *Snapshot) Classic() (all [classics]uint64) {
	s.each(func(k int, n uint64) {
		if c := layout.classic[k]; c < classics {
			all[c] += n
		}
	})
	for k := range all[1:] {
		all[k+1] += all[k]
	}
	return all
}

// Native is a snapshot as a native histogram of [Schema].
type Native struct {
	ZeroThreshold float64  // upper bound of the zero bucket, in seconds
	Zero          uint64   // number of durations in it
	First         int      // index of the first of Buckets, as Prometheus numbers them
	Buckets       []uint64 // from the first to the last that is not empty
}

// Native returns the same durations in exponential buckets, which it appends to buckets.
func (s *Snapshot) Native(buckets []uint64) Native {
	var all [natives]uint64
	s.each(func(k int, n uint64) { all[layout.native[k]] += n })
	out := Native{ZeroThreshold: math.Exp2(lowest), Zero: all[0]}
	first := slices.IndexFunc(all[1:], func(n uint64) bool { return n > 0 }) + 1
	if first == 0 {
		return out
	}
	last := len(all) - 1
	for all[last] == 0 {
		last--
	}
	out.First = lowest<<Schema + first
	buckets = append(buckets, all[first:last+1]...)
	out.Buckets = buckets
	return out
}
