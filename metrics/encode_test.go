package metrics

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy/control"
	"understudy/internal/histogram"
)

// own returns the lines about the program itself.
func own(text string) (lines []string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, "understudy_") {
			lines = append(lines, line)
		}
	}
	return lines
}

// What is written here is, byte for byte, what the library would write.
func TestTextIsThatOfTheLibrary(t *testing.T) {
	route := NewRoute("/a \"quoted\\path\"\nü", true)
	handler := route.Count(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	for range 3 {
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
	}
	for _, d := range []time.Duration{0, time.Millisecond, 3 * time.Second, time.Hour} {
		for range 700_000 { // so many are written in another way than a few
			route.took.Observe(d)
		}
	}
	cfg := quiet()
	routes := []*Route{route, NewRoute("", false)}
	for k := range 100 { // more than is sent together
		routes = append(routes, NewRoute("/"+strconv.Itoa(k), false))
	}
	cfg.Routes = func() []*Route { return routes }
	cfg.Dropped = func() map[string]uint64 {
		return map[string]uint64{"0": 0, "1": 1, "million": 1e6, "much": 123_456_789_012, "most": math.MaxUint64}
	}
	cfg.Busy = func() []time.Duration { return []time.Duration{0, time.Second, 1234567 * time.Microsecond} }
	cfg.Probes = func() []control.Probe { return []control.Probe{{Name: "up", State: "up"}} }
	cfg.Started = time.Unix(1_795_000_000, 123_456_789)
	g, fast := newGatherer(cfg), NewHandler(cfg)
	for _, accept := range []string{"", "text/plain;version=0.0.4", "application/openmetrics-text;version=1.0.0", "application/openmetrics-text;version=0.0.1;q=0.75,text/plain;q=0.5"} {
		ask := func(h http.Handler) *httptest.ResponseRecorder {
			r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
			r.Header.Set("Accept", accept)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w
		}
		want, got := ask(g.all), ask(fast)
		if diff := cmp.Diff(own(want.Body.String()), own(got.Body.String())); diff != "" || len(own(got.Body.String())) < 60 {
			t.Errorf("Accept %q: (-library +here)\n%s", accept, diff)
		}
		if w, g := want.Header().Get("Content-Type"), got.Header().Get("Content-Type"); w != g {
			t.Errorf("Accept %q: type %s, want %s", accept, g, w)
		}
		end := strings.Contains(accept, "openmetrics")
		if body := got.Body.String(); strings.HasSuffix(body, "\n"+eof) != end || strings.Count(body, eof) > 1 || !strings.Contains(body, "\ngo_goroutines ") {
			t.Errorf("Accept %q: the answer ends with %q", accept, body[len(body)-60:])
		}
	}
	only := httptest.NewRecorder()
	fast.ServeHTTP(only, httptest.NewRequest(http.MethodGet, "/metrics?name[]=understudy_probe_up", nil))
	if lines := own(only.Body.String()); len(lines) != 3 || strings.Contains(only.Body.String(), "go_") {
		t.Errorf("one metric by its name is %q", only.Body.String())
	}
}

// Values that no counter has, too.
func TestValuesAreThoseOfTheLibrary(t *testing.T) {
	for v, want := range map[float64][2]string{
		math.Inf(1): {"+Inf", "+Inf"}, math.Inf(-1): {"-Inf", "-Inf"}, math.NaN(): {"NaN", "NaN"}, -1: {"-1", "-1.0"}, 0: {"0", "0.0"},
		1e21: {"1e+21", "1e+21"}, .25: {"0.25", "0.25"}, 42: {"42", "42.0"},
	} {
		if got := [2]string{string(openMetrics(false).number(nil, v)), string(openMetrics(true).number(nil, v))}; got != want {
			t.Errorf("%v is written as %q, want %q", v, got, want)
		}
	}
}

// Text is written without an allocation once its buffer is large enough.
func TestTextAllocatesNothing(t *testing.T) {
	var h histogram.Histogram
	h.Observe(time.Second)
	var counted histogram.Snapshot
	counted.Add(&h)
	s := newSheet()
	for k := range 40 {
		holdDuration.observe(s, &counted, "relay-"+strconv.Itoa(k), "served")
	}
	s.end()
	write := func() {
		for _, f := range s.families { // all of it
			f.changed = true
			for k := range f.rows {
				f.rows[k].changed = true
			}
		}
		openMetrics(true).encode(s)
	}
	write()
	if n := testing.AllocsPerRun(10, write); n > 0 {
		t.Errorf("%v allocations for %d rows", n, 40)
	}
}

// textOf returns the text of a sheet.
func textOf(o openMetrics, s *sheet) string {
	o.encode(s)
	var text strings.Builder
	_, _ = s.send(&text, nil, "")
	return text.String()
}

// The text of a sheet that is used again is that of a new one, whichever of its rows have
// changed, come or gone.
func TestTextFollowsTheRows(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	used := [...]*sheet{newSheet(), newSheet()}
	hosts := []string{"a", "b", "c", "d", "e"}
	values := map[string]uint64{}
	counted := map[string]*histogram.Histogram{}
	for step := range 2000 {
		switch random.IntN(8) {
		case 0:
			from := random.IntN(len(hosts) + 1)
			hosts = slices.Delete(hosts, from, from+random.IntN(len(hosts)-from+1))
		case 1:
			hosts = slices.Insert(hosts, random.IntN(len(hosts)+1), fmt.Sprintf("host \"%d\"\n", step))
		default:
			for _, host := range hosts {
				if random.IntN(3) == 0 {
					values[host] = random.Uint64N(1 << random.IntN(60))
				}
				if random.IntN(3) == 0 {
					h := counted[host]
					if h == nil {
						h = &histogram.Histogram{}
						counted[host] = h
					}
					h.Observe(time.Duration(random.Int64N(1 << random.IntN(40))))
				}
			}
		}
		fill := func(s *sheet) {
			s.begin()
			for _, host := range hosts {
				hostSessions.count(s, values[host], "orders", host)
				relayedBytes.count(s, values[host]/2, "orders", host, "to_host")
				relayedBytes.count(s, 0, "orders", host, "from_host")
				var n histogram.Snapshot
				if h := counted[host]; h != nil {
					n.Add(h)
				}
				firstByte.observe(s, &n, "orders", host)
			}
			s.end()
		}
		for k, s := range used {
			o, fresh := openMetrics(k == 1), newSheet()
			fill(s)
			fill(fresh)
			if got, want := textOf(o, s), textOf(o, fresh); got != want {
				t.Fatalf("step %d, hosts %q: (-fresh +used)\n%s", step, hosts, cmp.Diff(want, got))
			}
		}
	}
}
