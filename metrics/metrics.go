// Package metrics shows the state of the process in the formats of Prometheus.
//
// One collector reads the counters of the parts when somebody asks; between two
// scrapes it does nothing. Every metric is in [Table], from which the documentation
// is made. The values of labels are names from the settings, so their number is
// bounded.
package metrics

import (
	"net/http"
	"runtime/debug"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

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
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		&collector{cfg: cfg, revision: revision()},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		EnableOpenMetrics: true,
		// To compress takes as long as all the rest, of a machine that has better to do.
		DisableCompression: true,
		ErrorHandling:      promhttp.ContinueOnError,
		ErrorLog:           cfg.Logger.Named("metrics").StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Warn}),
	})
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
