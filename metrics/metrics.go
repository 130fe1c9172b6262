// Package metrics shows the state of the process in the formats of Prometheus.
//
// One collector reads the counters of the parts when somebody asks, into rows that it keeps
// for the next time; between two scrapes it does nothing. Every metric is in [Table], from
// which the documentation is made. The values of labels are names from the settings, so their
// number is bounded.
package metrics

import (
	"bytes"
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
		// In small pieces, as it is encoded, it would take hundreds of system calls, and a
		// client that reads slowly would keep the sheet.
		whole := g.buffer.Swap(nil)
		if whole == nil { // another scrape has it
			whole = new(buffered)
		}
		defer g.buffer.Store(whole)
		whole.ResponseWriter, whole.status = w, http.StatusOK
		whole.content.Reset()
		g.answer(whole, r)
		w.Header().Set("Content-Length", strconv.Itoa(whole.content.Len()))
		w.WriteHeader(whole.status)
		_, _ = w.Write(whole.content.Bytes()) // fails when the client has gone
		whole.ResponseWriter = nil
	})
}

// buffered is an answer that is sent when it is complete.
type buffered struct {
	http.ResponseWriter
	status  int
	content bytes.Buffer
}

func (b *buffered) WriteHeader(status int)      { b.status = status }
func (b *buffered) Write(p []byte) (int, error) { return b.content.Write(p) }

// gatherer brings together the metrics of the program and those of its libraries.
type gatherer struct {
	own    collector
	others *prometheus.Registry
	free   atomic.Pointer[sheet]    // of the last scrape; nil while a scrape has it
	buffer atomic.Pointer[buffered] // the same, for its answer

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

// scrape reads the metrics of the program. The caller puts the sheet back into free.
func (g *gatherer) scrape() *sheet {
	s := g.free.Swap(nil)
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
	s := g.scrape()
	return append(all, s.out...), func() { g.free.Store(s) }, err
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
