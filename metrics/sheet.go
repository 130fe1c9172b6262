package metrics

import (
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"

	"understudy/internal/histogram"
)

// sheet is what a scrape answers: the families of all metrics, each with a row for each
// combination of labels. It is filled in again by the next scrape, which usually has the
// same rows in the same order: then only values are written, and nothing is allocated.
//
// A row is found by its place. Where the labels at that place are others, because a reload
// has changed the settings, it is made anew.
type sheet struct {
	families []*family // as in table
	sorted   []*family // by name
	out      []*dto.MetricFamily
	buckets  []uint64 // of the last native histogram
}

// family is the rows of one metric.
type family struct {
	of     *metric
	out    *dto.MetricFamily
	labels [][]string // the values of each row, as they were given
	rows   []*dto.Metric
	texts  []string // the labels of each row; see labelText
	used   int      // of the rows, by the present scrape
}

// newSheet returns an empty sheet.
func newSheet() *sheet {
	s := &sheet{}
	for _, m := range table {
		s.families = append(s.families, &family{of: m, out: &dto.MetricFamily{Name: &m.Name, Help: &m.Help, Type: m.kind.Enum()}})
	}
	s.sorted = slices.Clone(s.families)
	slices.SortFunc(s.sorted, func(a, b *family) int { return strings.Compare(a.of.Name, b.of.Name) })
	return s
}

// begin begins a scrape.
func (s *sheet) begin() {
	for _, f := range s.families {
		f.used = 0
	}
}

// end returns the families that have rows, sorted by name. They are valid until the next
// begin.
func (s *sheet) end() []*dto.MetricFamily {
	s.out = s.out[:0]
	for _, f := range s.sorted {
		clear(f.rows[f.used:])
		clear(f.labels[f.used:])
		clear(f.texts[f.used:])
		f.rows, f.labels, f.texts = f.rows[:f.used], f.labels[:f.used], f.texts[:f.used]
		if f.out.Metric = f.rows; f.used > 0 {
			s.out = append(s.out, f.out)
		}
	}
	return s.out
}

// row returns the next row of m, with these values of its labels.
func (s *sheet) row(m *metric, labels []string) *dto.Metric {
	f := s.families[m.index]
	at := f.used
	f.used++
	if at == len(f.rows) {
		f.rows, f.labels, f.texts = append(f.rows, nil), append(f.labels, nil), append(f.texts, "")
	}
	if f.rows[at] == nil || !slices.Equal(f.labels[at], labels) {
		f.labels[at] = slices.Clone(labels)
		f.rows[at] = m.newRow(f.labels[at])
		f.texts[at] = labelText(f.rows[at].Label)
	}
	return f.rows[at]
}

// newRow returns a row with the value 0.
func (m *metric) newRow(labels []string) *dto.Metric {
	row := &dto.Metric{}
	for k, name := range m.Labels {
		row.Label = append(row.Label, &dto.LabelPair{Name: &name, Value: new(strings.ToValidUTF8(labels[k], "?"))})
	}
	slices.SortFunc(row.Label, func(a, b *dto.LabelPair) int { return strings.Compare(a.GetName(), b.GetName()) })
	switch m.kind {
	case dto.MetricType_COUNTER:
		row.Counter = &dto.Counter{Value: new(float64)}
	case dto.MetricType_HISTOGRAM:
		row.Histogram = newHistogram()
	default:
		row.Gauge = &dto.Gauge{Value: new(float64)}
	}
	return row
}

// set writes the value of one combination of labels.
func (m *metric) set(to *sheet, v float64, labels ...string) {
	row := to.row(m, labels)
	if m.kind == dto.MetricType_COUNTER {
		*row.Counter.Value = v
	} else {
		*row.Gauge.Value = v
	}
}

// count writes the value of a counter.
func (m *metric) count(to *sheet, n uint64, labels ...string) { m.set(to, float64(n), labels...) }

// is writes 1 or 0.
func (m *metric) is(to *sheet, v bool, labels ...string) {
	n := 0.0
	if v {
		n = 1
	}
	m.set(to, n, labels...)
}

// observe writes a histogram, in both forms: with classic buckets, which every Prometheus
// takes, and as a native one.
func (m *metric) observe(to *sheet, s *histogram.Snapshot, labels ...string) {
	h := to.row(m, labels).Histogram
	*h.SampleCount, *h.SampleSum = s.Count(), s.Sum().Seconds()
	for k, n := range s.Classic() {
		*h.Bucket[k].CumulativeCount = n
	}
	n := s.Native(to.buckets[:0])
	to.buckets = n.Buckets[:0]
	*h.ZeroCount = n.Zero
	h.PositiveSpan, h.PositiveDelta = h.PositiveSpan[:0], h.PositiveDelta[:0]
	if len(n.Buckets) == 0 {
		return
	}
	h.PositiveSpan = h.PositiveSpan[:1]                                                           // newHistogram has made it
	*h.PositiveSpan[0].Offset, *h.PositiveSpan[0].Length = int32(n.First), uint32(len(n.Buckets)) //nolint:gosec // a hundred at most
	before := int64(0)
	for _, c := range n.Buckets {
		h.PositiveDelta = append(h.PositiveDelta, int64(c)-before) //nolint:gosec // far below 2^63
		before = int64(c)                                          //nolint:gosec // as above
	}
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
