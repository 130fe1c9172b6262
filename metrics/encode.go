package metrics

import (
	"bytes"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	dto "github.com/prometheus/client_model/go"

	"understudy/internal/histogram"
)

// The encoders of the library write each line anew, with its labels and their escapes, and
// took two thirds of a scrape. The two formats of text are written here instead, and lines
// whose values are as before are copied. A test compares the result with theirs.

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

// labelName is the name of a label as text has it.
type labelName struct {
	text  string
	value int // its number among those of a row
}

// labelNames returns the names of labels in the order of the text, which is by name.
func labelNames(names []string) (all []labelName) {
	for k, name := range names {
		all = append(all, labelName{name + `="`, k})
	}
	slices.SortFunc(all, func(a, b labelName) int { return strings.Compare(a.text, b.text) })
	return all
}

// appendLabels appends the labels of a row as both formats have them, without braces.
func (m *metric) appendLabels(line []byte, r *row) []byte {
	for k, l := range m.sorted {
		if k > 0 {
			line = append(line, ',')
		}
		value := r.labels[l.value]
		if !utf8.ValidString(value) {
			value = strings.ToValidUTF8(value, "?")
		}
		if strings.ContainsAny(value, "\\\n\"") {
			value = escapeLabel.Replace(value)
		}
		line = append(append(append(line, l.text...), value...), '"')
	}
	return line
}

// encode brings the text of s up to date. Only rows that have changed are encoded, so s must
// not be used for another format.
func (o openMetrics) encode(s *sheet) {
	for _, f := range s.sorted {
		switch {
		case !f.changed:
		case f.partly():
			s.room = o.again(s.room[:0], f)
			f.text = append(f.text[:0], s.room...)
		default:
			f.text = o.head(f.text[:0], f.of)
			f.head = len(f.text)
			for k := range f.rows {
				f.text = o.row(f.text, f, k)
			}
		}
		f.changed = false
	}
}

// partly reports whether some of the rows have not changed.
func (f *family) partly() bool {
	for k := range f.rows {
		if !f.rows[k].changed {
			return true
		}
	}
	return false
}

// again appends the text of f. Rows that have not changed are copied from the one before.
func (o openMetrics) again(out []byte, f *family) []byte {
	out = append(out, f.text[:f.head]...)
	from, to := f.head, f.head // what is copied next
	for k := range f.rows {
		r := &f.rows[k]
		if !r.changed {
			to = r.end
			r.end += len(out) - from
			continue
		}
		out = append(out, f.text[from:to]...)
		from, to = r.end, r.end
		out = o.row(out, f, k)
	}
	return append(out, f.text[from:to]...)
}

// piece is about how many bytes are sent together: in smaller ones a scrape would take
// hundreds of system calls.
const piece = 32 << 10

// length returns the number of bytes of the text.
func (s *sheet) length() (n int) {
	for _, f := range s.sorted {
		if f.used > 0 {
			n += len(f.text)
		}
	}
	return n
}

// send writes before, the text and last. It uses the room of before, which it returns.
func (s *sheet) send(to io.Writer, before []byte, last string) ([]byte, error) {
	for _, f := range s.sorted {
		if f.used == 0 {
			continue
		}
		if len(before)+len(f.text) > piece {
			if _, err := to.Write(before); err != nil {
				return before, err
			}
			before = before[:0]
		}
		if len(f.text) <= piece {
			before = append(before, f.text...)
		} else if _, err := to.Write(f.text); err != nil {
			return before, err
		}
	}
	before = append(before, last...)
	_, err := to.Write(before)
	return before, err
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

// row appends the lines of the row with number k.
func (o openMetrics) row(text []byte, f *family, k int) []byte {
	text = o.lines(text, f, k)
	f.rows[k].end, f.rows[k].changed = len(text), false
	return text
}

func (o openMetrics) lines(line []byte, f *family, k int) []byte {
	m, r := f.of, &f.rows[k]
	if m.kind != dto.MetricType_HISTOGRAM {
		return o.value(o.series(line, m, "", r), r.value)
	}
	counted := &f.counted[k]
	count := counted.Count()
	begin := len(line)
	line = append(append(line, m.Name...), "_bucket{"...)
	if line = m.appendLabels(line, r); len(m.sorted) > 0 {
		line = append(line, ',')
	}
	line = append(line, `le="`...)
	end := len(line)
	for k, n := range counted.Classic() {
		if k > 0 {
			line = append(line, line[begin:end]...)
		}
		line = o.count(append(append(line, o.bounds()[k]...), `"} `...), n)
	}
	line = o.count(append(append(line, line[begin:end]...), `+Inf"} `...), count)
	line = o.value(o.series(line, m, "_sum", r), counted.Sum().Seconds())
	return o.count(o.series(line, m, "_count", r), count)
}

// series appends the name of a series and its labels.
func (o openMetrics) series(line []byte, m *metric, suffix string, r *row) []byte {
	line = append(append(line, m.Name...), suffix...)
	if len(m.sorted) > 0 {
		line = append(m.appendLabels(append(line, '{'), r), '}')
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
		w.send(nil, "")
		return
	}
	g.libraries.ServeHTTP(w, r)
	format, isText := formatOf(w.Header().Get("Content-Type"))
	if !isText || w.status != http.StatusOK {
		w.content = w.content[:0]
		w.status = http.StatusOK
		w.Header().Del("Content-Type")
		w.Header().Del("Vary")
		g.all.ServeHTTP(w, r)
		w.send(nil, "")
		return
	}
	free, last := &g.plain, ""
	if format {
		free, last = &g.open, eof
		w.content = bytes.TrimSuffix(w.content, []byte(eof))
	}
	s := g.scrape(free)
	format.encode(s)
	w.send(s, last)
	free.Store(s)
}
