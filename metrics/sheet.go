package metrics

import (
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"

	"understudy/failover"
	"understudy/internal/histogram"
	"understudy/relay"
)

// sheet is what a scrape answers: the families of all metrics, each with a row for each
// combination of labels. It is filled in again by the next scrape, which usually has the
// same rows in the same order: then only values are written, and nothing is allocated.
//
// A row is found by its place. Where the labels at that place are others, because a reload
// has changed the settings, it is made anew.
//
// A row also knows whether it has changed since it was last encoded, so that the encoders
// do again only what is not as before: from one scrape to the next that is a small part.
// Each form of the answer therefore has sheets of its own.
type sheet struct {
	families []*family // as in table
	sorted   []*family // by name
	room     []byte    // of the encoders
	buckets  []uint64  // the same, of the last native histogram
	out      []*dto.MetricFamily

	// Room for what is read of one relay.
	relay     relay.Measured
	conductor failover.Measured
	hosts     map[string]relay.MeasuredHost
}

// family is the rows of one metric.
type family struct {
	of      *metric
	rows    []row
	counted []histogram.Snapshot // of each row; empty if it is no histogram
	used    int                  // of the rows, by the present scrape
	changed bool                 // a row has, or their number

	// The lines of all rows, by openMetrics.encode, and how many bytes stand before them.
	text []byte
	head int

	// The same for protocol buffers, by sheet.protocol.
	out    *dto.MetricFamily
	protos []*dto.Metric
}

// row is one combination of labels.
type row struct {
	labels  [labelsMost]string // as they were given
	value   float64            // if it is no histogram
	changed bool
	end     int // of its lines in text
}

// labelsMost is the greatest number of labels that a metric has.
const labelsMost = 4

// newSheet returns an empty sheet.
func newSheet() *sheet {
	s := &sheet{hosts: map[string]relay.MeasuredHost{}}
	for _, m := range table {
		s.families = append(s.families, &family{of: m})
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

// end ends a scrape: rows that it has not filled in are gone.
func (s *sheet) end() {
	for _, f := range s.families {
		if f.used == len(f.rows) {
			continue
		}
		f.changed = true
		clear(f.rows[f.used:])
		f.rows = f.rows[:f.used]
		if f.counted != nil {
			clear(f.counted[f.used:])
			f.counted = f.counted[:f.used]
		}
	}
}

// row returns the next row of m, with these values of its labels, and its number.
func (s *sheet) row(m *metric, labels []string) (f *family, at int) {
	f = s.families[m.index]
	at = f.used
	f.used++
	fresh := at == len(f.rows)
	if fresh {
		f.rows = append(f.rows, row{})
		if m.kind == dto.MetricType_HISTOGRAM {
			f.counted = append(f.counted, histogram.Snapshot{})
		}
	}
	if r := &f.rows[at]; fresh || !slices.Equal(r.labels[:len(labels)], labels) {
		copy(r.labels[:], labels)
		r.changed, f.changed = true, true
		if at < len(f.protos) {
			f.protos[at] = nil
		}
	}
	return f, at
}

// set writes the value of one combination of labels.
func (m *metric) set(to *sheet, v float64, labels ...string) {
	f, at := to.row(m, labels)
	if r := &f.rows[at]; r.value != v {
		r.value, r.changed, f.changed = v, true, true
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

// observe writes a histogram.
func (m *metric) observe(to *sheet, s *histogram.Snapshot, labels ...string) {
	f, at := to.row(m, labels)
	if !f.counted[at].Equal(s) {
		f.counted[at].Set(s)
		f.rows[at].changed, f.changed = true, true
	}
}
