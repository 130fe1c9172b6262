package metrics

import (
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"

	"understudy/control"
	"understudy/correlate"
	"understudy/internal/histogram"
)

var update = flag.Bool("update", false, "write the table of metrics into docs/monitoring.md")

// quiet is a process without relays.
func quiet() Config {
	return Config{
		Relays: func() []control.Relay { return nil }, Findings: func() correlate.Findings { return correlate.Findings{} },
		Routes: func() []*Route { return nil }, Probes: func() []control.Probe { return nil },
		LastReload: func() *control.Reload { return nil }, Dropped: func() map[string]uint64 { return nil },
		Busy: func() []time.Duration { return nil }, Started: time.Unix(1000, 0),
	}
}

// plain gathers for tests, one scrape at a time.
type plain struct{ *gatherer }

func (p plain) Gather() ([]*dto.MetricFamily, error) {
	all, done, err := p.gatherer.Gather()
	done()
	return all, err
}

// The names and helps follow the conventions of Prometheus, and each metric is described
// once.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	var families []*dto.MetricFamily
	for _, m := range Table() {
		if seen[m.Name] {
			t.Errorf("%s is there twice", m.Name)
		}
		seen[m.Name] = true
		kind := map[string]dto.MetricType{"gauge": dto.MetricType_GAUGE, "counter": dto.MetricType_COUNTER, "histogram": dto.MetricType_HISTOGRAM}[m.Type]
		var labels []*dto.LabelPair
		for _, l := range m.Labels {
			labels = append(labels, &dto.LabelPair{Name: &l, Value: new("x")})
		}
		families = append(families, &dto.MetricFamily{Name: &m.Name, Help: &m.Help, Type: &kind, Metric: []*dto.Metric{{Label: labels}}})
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

// The table of the documentation is made from the table of the code.
func TestDocumentation(t *testing.T) {
	const file, begin, end = "../docs/monitoring.md", "<!-- metrics: made by go test ./metrics -update -->\n", "<!-- end of metrics -->"
	var b strings.Builder
	b.WriteString("\n| metric | type | labels | |\n|---|---|---|---|\n")
	for _, m := range Table() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, m.Type, strings.Join(m.Labels, ", "), m.Help)
	}
	b.WriteString("\n")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	_, after, found2 := strings.Cut(rest, end)
	if !found || !found2 {
		t.Fatalf("%s: the marks around the metrics are missing", file)
	}
	want := before + begin + b.String() + end + after
	switch {
	case want == string(text):
	case *update:
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("%s: the table is out of date: go test ./metrics -update", file)
	}
}

// A client gets the format that it asks for.
func TestFormats(t *testing.T) {
	h := NewHandler(quiet())
	for accept, want := range map[string]string{
		"": "text/plain", "application/openmetrics-text;version=1.0.0": "application/openmetrics-text",
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited": "application/vnd.google.protobuf",
	} {
		r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		w.Header().Set("X-Before", "kept")
		h.ServeHTTP(w, r)
		if got := w.Header().Get("Content-Type"); w.Code != http.StatusOK || !strings.HasPrefix(got, want) {
			t.Errorf("Accept %q: status %d, %s, want %s", accept, w.Code, got, want)
		}
		if w.Header().Get("X-Before") != "kept" || len(w.Header()["Vary"]) != 1 {
			t.Errorf("Accept %q: headers %v", accept, w.Header())
		}
	}
}

// The durations of a histogram are the same in both forms.
func TestHistogramsAreClassicAndNative(t *testing.T) {
	var h histogram.Histogram
	for _, d := range []time.Duration{0, 3 * time.Millisecond, 3 * time.Millisecond, 700 * time.Millisecond, time.Hour} {
		h.Observe(d)
	}
	var s histogram.Snapshot
	s.Add(&h)
	to := newSheet()
	holdDuration.observe(to, &s, "orders", "served")
	to.end()
	got := to.protocol()[0].Metric[0]
	up := map[float64]uint64{}
	for _, b := range got.Histogram.Bucket {
		up[b.GetUpperBound()] = b.GetCumulativeCount()
	}
	if up[.001] != 1 || up[.005] != 3 || up[.5] != 3 || up[1] != 4 || up[60] != 4 || got.Histogram.GetSampleCount() != 5 {
		t.Errorf("classic buckets %v of %d", up, got.Histogram.GetSampleCount())
	}
	count, native := int64(0), int64(got.Histogram.GetZeroCount())
	for _, d := range got.Histogram.PositiveDelta {
		count += d
		native += count
	}
	if native != 5 || int(got.Histogram.PositiveSpan[0].GetLength()) != len(got.Histogram.PositiveDelta) {
		t.Errorf("%d durations in native buckets, want 5", native)
	}
}

// A route is counted by the class of its final status, and a verdict shows its last
// answer.
func TestRoutes(t *testing.T) {
	status := 0
	r := NewRoute("/ping", true)
	h := r.Count(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if status != 0 {
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(status)
		}
	}))
	cfg := quiet()
	cfg.Routes = func() []*Route { return []*Route{r} }
	g := plain{newGatherer(cfg)}
	if n, err := testutil.GatherAndCount(g, "understudy_verdict_up"); n != 0 || err != nil {
		t.Errorf("verdict_up has %d values before the first request, %v", n, err)
	}
	for _, status = range []int{0, 200, 404, 503} {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/ping", nil))
	}
	if v := r.Verdict(); v.Status != 503 || v.Good() || v.Requests != 4 || v.Bad != 2 || v.Since.After(v.At) || v.Since.IsZero() {
		t.Errorf("%+v", v)
	}
	want := `# HELP understudy_verdict_requests_total Requests to a route of the HTTP listener, by the class of the status.
# TYPE understudy_verdict_requests_total counter
understudy_verdict_requests_total{code="1xx",route="/ping"} 0
understudy_verdict_requests_total{code="2xx",route="/ping"} 2
understudy_verdict_requests_total{code="3xx",route="/ping"} 0
understudy_verdict_requests_total{code="4xx",route="/ping"} 1
understudy_verdict_requests_total{code="5xx",route="/ping"} 1
# HELP understudy_verdict_up Whether the last answer of the verdict was good. Absent before the first request.
# TYPE understudy_verdict_up gauge
understudy_verdict_up{route="/ping"} 0
`
	if err := testutil.GatherAndCompare(g, strings.NewReader(want), "understudy_verdict_requests_total", "understudy_verdict_up"); err != nil {
		t.Error(err)
	}
	if !slices.ContainsFunc(Table(), func(m Metric) bool { return m.Name == "understudy_verdict_up" }) {
		t.Error("the table lacks it")
	}
}
