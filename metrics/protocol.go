package metrics

import (
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"

	"understudy/internal/histogram"
)

// protocol returns the families that have rows, sorted by name, as the library encodes
// them. They are valid until the next begin.
func (s *sheet) protocol() []*dto.MetricFamily {
	s.out = s.out[:0]
	for _, f := range s.sorted {
		if f.changed {
			s.update(f)
		}
		if f.used > 0 {
			s.out = append(s.out, f.out)
		}
	}
	return s.out
}

// update brings what the library encodes of f up to date.
func (s *sheet) update(f *family) {
	if f.out == nil {
		f.out = &dto.MetricFamily{Name: &f.of.Name, Help: &f.of.Help, Type: f.of.kind.Enum()}
	}
	clear(f.protos[min(f.used, len(f.protos)):])
	f.protos = slices.Grow(f.protos[:min(f.used, len(f.protos))], f.used)[:f.used]
	for k := range f.rows {
		r := &f.rows[k]
		if !r.changed {
			continue
		}
		if f.protos[k] == nil {
			f.protos[k] = f.of.newProto(r)
		}
		switch p := f.protos[k]; {
		case p.Histogram != nil:
			s.buckets = copyTo(p.Histogram, &f.counted[k], s.buckets)
		case p.Counter != nil:
			*p.Counter.Value = r.value
		default:
			*p.Gauge.Value = r.value
		}
		r.changed = false
	}
	f.out.Metric, f.changed = f.protos, false
}

// newProto returns a row with the value 0.
func (m *metric) newProto(r *row) *dto.Metric {
	p := &dto.Metric{}
	for k, name := range m.Labels {
		p.Label = append(p.Label, &dto.LabelPair{Name: &name, Value: new(strings.ToValidUTF8(r.labels[k], "?"))})
	}
	slices.SortFunc(p.Label, func(a, b *dto.LabelPair) int { return strings.Compare(a.GetName(), b.GetName()) })
	switch m.kind {
	case dto.MetricType_COUNTER:
		p.Counter = &dto.Counter{Value: new(float64)}
	case dto.MetricType_HISTOGRAM:
		p.Histogram = newHistogram()
	default:
		p.Gauge = &dto.Gauge{Value: new(float64)}
	}
	return p
}

// copyTo writes a histogram in both forms: with classic buckets, which every Prometheus
// takes, and as a native one. It needs room for the native buckets, which it returns.
func copyTo(h *dto.Histogram, s *histogram.Snapshot, room []uint64) []uint64 {
	*h.SampleCount, *h.SampleSum = s.Count(), s.Sum().Seconds()
	for k, n := range s.Classic() {
		*h.Bucket[k].CumulativeCount = n
	}
	n := s.Native(room[:0])
	*h.ZeroCount = n.Zero
	h.PositiveSpan, h.PositiveDelta = h.PositiveSpan[:0], h.PositiveDelta[:0]
	if len(n.Buckets) == 0 {
		return room
	}
	h.PositiveSpan = h.PositiveSpan[:1]                                                           // newHistogram has made it
	*h.PositiveSpan[0].Offset, *h.PositiveSpan[0].Length = int32(n.First), uint32(len(n.Buckets)) //nolint:gosec // a hundred at most
	before := int64(0)
	for _, c := range n.Buckets {
		h.PositiveDelta = append(h.PositiveDelta, int64(c)-before) //nolint:gosec // far below 2^63
		before = int64(c)                                          //nolint:gosec // as above
	}
	return n.Buckets[:0]
}

// newHistogram returns an empty histogram.
func newHistogram() *dto.Histogram {
	h := &dto.Histogram{
		SampleCount: new(uint64), SampleSum: new(float64),
		Schema: new(int32(histogram.Schema)), ZeroThreshold: new(new(histogram.Snapshot).Native(nil).ZeroThreshold), ZeroCount: new(uint64),
		PositiveSpan: []*dto.BucketSpan{{Offset: new(int32), Length: new(uint32)}},
	}
	for k := range histogram.Bounds {
		h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: &histogram.Bounds[k], CumulativeCount: new(uint64)})
	}
	return h
}
