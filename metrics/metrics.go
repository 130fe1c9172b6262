// Package metrics shows the state of the process in the formats of Prometheus.
//
// One collector reads the counters of the parts when somebody asks, into rows that it keeps
// for the next time; between two scrapes it does nothing. Every metric is in [Table], from
// which the documentation is made. The values of labels are names from the settings, so their
// number is bounded.
package metrics

import (
	"net/http"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"

	"understudy/control"
	"understudy/correlate"
)

// Config configures the metrics of a process. The functions are called for every
// scrape and must not block.
type Config struct {
	// Version is the version of the program.
	Version string

	// Relays returns the relays.
	Relays func() []control.Relay

	// Findings returns the outage and the disagreements of all relays.
	Findings func() correlate.Findings

	// Routes returns the counters of the routes of the HTTP listener.
	Routes func() []*Route

	// Dropped returns how many lines each kind of log has dropped.
	Dropped func() map[string]uint64

	// Busy returns for each event loop how long it was busy.
	Busy func() []time.Duration

	// Started is when the configuration was first loaded.
	Started time.Time

	// LastReload returns the result of the last reload; nil when there was none.
	LastReload func() *control.Reload

	// Probes returns the states of the probes.
	Probes func() []control.Probe

	// Logger gets errors of scrapes. Nil discards them.
	Logger hclog.Logger
}

// NewHandler returns a handler that answers with all metrics, as text, in the format
// OpenMetrics or as protocol buffers, whichever the client prefers. A scrape that
// fails in part still has the rest.
func NewHandler(cfg Config) http.Handler {
	g := newGatherer(cfg)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := g.buffer.Swap(nil)
		if b == nil { // another scrape has it
			b = new(buffered)
		}
		defer g.buffer.Store(b)
		b.ResponseWriter, b.status, b.content = w, http.StatusOK, b.content[:0]
		g.answer(b, r)
		b.ResponseWriter = nil
	})
}

// buffered is an answer whose first part is sent when it is complete.
type buffered struct {
	http.ResponseWriter
	status  int
	content []byte
}

func (b *buffered) WriteHeader(status int) { b.status = status }

func (b *buffered) Write(p []byte) (int, error) {
	b.content = append(b.content, p...)
	return len(p), nil
}

// send sends what was written, then the text of a sheet, which may be nil, and last. A client
// that reads slowly keeps the sheet until the listener drops it; another scrape meanwhile has
// to make one.
func (b *buffered) send(s *sheet, last string) {
	if s == nil {
		s = &sheet{}
	}
	b.ResponseWriter.Header().Set("Content-Length", strconv.Itoa(len(b.content)+s.length()+len(last)))
	b.ResponseWriter.WriteHeader(b.status)
	b.content, _ = s.send(b.ResponseWriter, b.content, last) // fails when the client has gone
}

// gatherer brings together the metrics of the program and those of its libraries.
type gatherer struct {
	own    collector
	others *prometheus.Registry

	// The sheets of the last scrape in each form, and the buffer of its answer; nil while a
	// scrape has them.
	plain, open, protocol atomic.Pointer[sheet]
	buffer                atomic.Pointer[buffered]

	libraries, all http.Handler // for the metrics of the libraries alone, and for all
}

func newGatherer(cfg Config) *gatherer {
	g := &gatherer{own: collector{cfg: cfg, revision: revision()}, others: prometheus.NewRegistry()}
	g.others.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	options := promhttp.HandlerOpts{
		EnableOpenMetrics: true,
		// To compress takes as long as all the rest, of a machine that has better to do.
		DisableCompression: true,
		ErrorHandling:      promhttp.ContinueOnError,
	}
	if cfg.Logger != nil {
		options.ErrorLog = cfg.Logger.Named("metrics").StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Warn})
	}
	g.libraries, g.all = promhttp.HandlerFor(g.others, options), promhttp.HandlerForTransactional(g, options)
	return g
}

// scrape reads the metrics of the program into the sheet that is free, or into a new one. The
// caller puts it back.
func (g *gatherer) scrape(free *atomic.Pointer[sheet]) *sheet {
	s := free.Swap(nil)
	if s == nil {
		s = newSheet()
	}
	s.begin()
	g.own.collect(s)
	s.end()
	return s
}

// Gather returns all metrics. They are valid until done is called.
func (g *gatherer) Gather() (all []*dto.MetricFamily, done func(), err error) {
	all, err = g.others.Gather()
	s := g.scrape(&g.protocol)
	return append(all, s.protocol()...), func() { g.protocol.Store(s) }, err
}

// revision is the commit that the program was built from, or empty.
func revision() string {
	info, _ := debug.ReadBuildInfo()
	if info != nil {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return ""
}
