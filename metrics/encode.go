package metrics

import (
	"bytes"
	"math"
	"net/http"
	"strconv"
	"strings"

	dto "github.com/prometheus/client_model/go"

	"understudy/internal/histogram"
)

// The encoders of the library write each line anew, with its labels and their escapes, and
// took two thirds of a scrape. The two formats of text are written here instead, with labels
// that are kept with their row. A test compares the result with theirs.

// openMetrics is the format OpenMetrics, and not the text format of Prometheus.
type openMetrics bool

// formatOf returns the format of text of a content type; false for another format.
func formatOf(contentType string) (format openMetrics, isText bool) {
	kind, _, _ := strings.Cut(contentType, ";")
	return kind == "application/openmetrics-text", kind == "application/openmetrics-text" || kind == "text/plain"
}

// eof is the last line of OpenMetrics.
const eof = "# EOF\n"

var (
	escapeLabel = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
	escapeHelp  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
)

// labelText returns labels as both formats have them, without braces.
func labelText(labels []*dto.LabelPair) string {
	var b strings.Builder
	for k, l := range labels {
		if k > 0 {
			b.WriteByte(',')
		}
		b.WriteString(l.GetName() + `="` + escapeLabel.Replace(l.GetValue()) + `"`)
	}
	return b.String()
}

// appendTo appends the rows of s, after [sheet.end].
func (o openMetrics) appendTo(out *bytes.Buffer, s *sheet) {
	line := out.AvailableBuffer()
	flush := func() {
		out.Write(line)
		line = out.AvailableBuffer()
	}
	for _, f := range s.sorted {
		if f.used == 0 {
			continue
		}
		line = o.head(line, f.of)
		for k, row := range f.rows {
			if line = o.row(line, f.of.Name, f.texts[k], row); len(line) > 4<<10 {
				flush()
			}
		}
	}
	flush()
}

// head appends what stands before the rows of m.
func (o openMetrics) head(line []byte, m *metric) []byte {
	name, help := m.Name, escapeHelp.Replace(m.Help)
	if o {
		help = escapeLabel.Replace(m.Help)
		if m.kind == dto.MetricType_COUNTER {
			name = strings.TrimSuffix(name, "_total")
		}
	}
	for _, part := range [...]string{"# HELP ", name, " ", help, "\n# TYPE ", name, " ", m.Type, "\n"} {
		line = append(line, part...)
	}
	return line
}

// row appends the lines of a row.
func (o openMetrics) row(line []byte, name, labels string, row *dto.Metric) []byte {
	switch {
	case row.Gauge != nil:
		return o.value(o.series(line, name, "", labels), row.Gauge.GetValue())
	case row.Counter != nil:
		return o.value(o.series(line, name, "", labels), row.Counter.GetValue())
	}
	h := row.Histogram
	bucket := func(le string, n uint64) {
		line = append(append(line, name...), "_bucket{"...)
		if line = append(line, labels...); labels != "" {
			line = append(line, ',')
		}
		line = append(append(append(line, `le="`...), le...), `"} `...)
		line = o.count(line, n)
	}
	for k, b := range h.Bucket {
		bucket(o.bounds()[k], b.GetCumulativeCount())
	}
	bucket("+Inf", h.GetSampleCount())
	line = o.value(o.series(line, name, "_sum", labels), h.GetSampleSum())
	return o.count(o.series(line, name, "_count", labels), h.GetSampleCount())
}

// series appends the name of a series and its labels.
func (o openMetrics) series(line []byte, name, suffix, labels string) []byte {
	line = append(append(line, name...), suffix...)
	if labels != "" {
		line = append(append(append(line, '{'), labels...), '}')
	}
	return append(line, ' ')
}

// value appends a value and the end of its line.
func (o openMetrics) value(line []byte, v float64) []byte { return append(o.number(line, v), '\n') }

func (o openMetrics) number(line []byte, v float64) []byte {
	at := len(line)
	line = strconv.AppendFloat(line, v, 'g', -1, 64)
	if bool(o) && !math.IsInf(v, 0) && !math.IsNaN(v) && !bytes.ContainsAny(line[at:], "e.") {
		line = append(line, ".0"...)
	}
	return line
}

// count appends a number of durations and the end of its line.
func (o openMetrics) count(line []byte, n uint64) []byte {
	if o {
		return append(strconv.AppendUint(line, n, 10), '\n')
	}
	return o.value(line, float64(n))
}

// bounds returns the upper bounds of the classic buckets.
func (o openMetrics) bounds() *[len(histogram.Bounds)]string {
	if o {
		return &openBounds
	}
	return &plainBounds
}

var plainBounds, openBounds = boundsOf(false), boundsOf(true)

func boundsOf(o openMetrics) (all [len(histogram.Bounds)]string) {
	for k, bound := range histogram.Bounds {
		all[k] = string(o.number(nil, bound))
	}
	return all
}

// answer answers a scrape.
func (g *gatherer) answer(w *buffered, r *http.Request) {
	if r.URL.Query().Has("name[]") {
		g.all.ServeHTTP(w, r) // a few of all
		return
	}
	g.libraries.ServeHTTP(w, r)
	format, isText := formatOf(w.Header().Get("Content-Type"))
	if !isText || w.status != http.StatusOK {
		w.content.Reset()
		w.status = http.StatusOK
		w.Header().Del("Content-Type")
		w.Header().Del("Vary")
		g.all.ServeHTTP(w, r)
		return
	}
	if format {
		w.content.Truncate(len(bytes.TrimSuffix(w.content.Bytes(), []byte(eof))))
	}
	s := g.scrape()
	format.appendTo(&w.content, s)
	g.free.Store(s)
	if format {
		w.content.WriteString(eof)
	}
}
