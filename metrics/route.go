package metrics

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"understudy/control"
	"understudy/internal/histogram"
)

// Route counts the requests for one path of the HTTP listener.
type Route struct {
	path    string
	verdict bool // the class of its status says whether all is well

	codes [6]atomic.Uint64 // by the class of the status; 0 is not used
	took  histogram.Histogram

	mu    sync.Mutex // guards everything below
	last  int        // the status of the last answer; 0 before the first
	at    time.Time  // when that was
	since time.Time  // since when all answers were good, or none
}

// NewRoute returns the counters of a path. Of a verdict, the last answer is shown, too.
func NewRoute(path string, verdict bool) *Route { return &Route{path: path, verdict: verdict} }

// Count returns a handler that counts what next answers.
func (r *Route) Count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		begin := time.Now()
		counted := &statusWriter{ResponseWriter: w}
		defer func() {
			status := counted.status
			if status == 0 {
				status = http.StatusOK // nothing was written: net/http answers 200
			}
			if class := status / 100; class > 0 && class < len(r.codes) {
				r.codes[class].Add(1)
				r.answered(status, time.Now())
			}
			r.took.Observe(time.Since(begin))
		}()
		next.ServeHTTP(counted, req)
	})
}

// answered records the status of an answer.
func (r *Route) answered(status int, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == 0 || status/100 == 2 != (r.last/100 == 2) {
		r.since = now
	}
	r.last, r.at = status, now
}

// Verdict returns what the route has answered.
func (r *Route) Verdict() control.Verdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := control.Verdict{Route: r.path, Status: r.last, At: r.at, Since: r.since}
	for class := range r.codes {
		n := r.codes[class].Load()
		if v.Requests += n; class != 2 {
			v.Bad += n
		}
	}
	return v
}

// classes are the labels of the classes of the status.
var classes = [...]string{1: "1xx", 2: "2xx", 3: "3xx", 4: "4xx", 5: "5xx"}

// collect writes the counts.
func (r *Route) collect(to *sheet) {
	for class := 1; class < len(r.codes); class++ {
		verdictReqs.count(to, r.codes[class].Load(), r.path, classes[class])
	}
	if v := r.Verdict(); r.verdict && v.Status != 0 {
		verdictUp.is(to, v.Good(), r.path)
	}
	var s histogram.Snapshot
	s.Add(&r.took)
	verdictTook.observe(to, &s, r.path)
}

// statusWriter remembers the final status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) { // others are followed by the final one
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap gives [http.ResponseController] what it needs.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
