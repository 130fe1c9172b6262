// Package control lets an operator look into a running process and give it
// orders: HTTP with JSON over a unix socket that only the process's own user,
// and root, can open. [Server] is the process's side, [Client] the other one.
//
// The package decides nothing: orders go to the relay's [failover.Conductor].
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/correlate"
	"understudy/failover"
	"understudy/internal/accept"
	"understudy/internal/safetext"
	"understudy/relay"
)

const (
	// orderLimit limits the bytes of the body of an order.
	orderLimit = 64 << 10

	headerTimeout = 5 * time.Second
	idleTimeout   = time.Minute

	// shutdownTime is the time for which Run waits for answers in progress when it ends.
	shutdownTime = time.Second
)

// Relay is one relay of the process.
type Relay struct {
	Conductor *failover.Conductor
	Relay     *relay.Relay
}

// Config configures a [Server].
type Config struct {
	// Path is the path of the socket. Empty creates one for this process in
	// [DefaultDir].
	Path string

	// Version is the version of the program.
	Version string

	// Relays and Probes return those of the process. They are called for every
	// request. Probes may be nil.
	Relays func() []Relay
	Probes func() []Probe

	// Verdicts returns what the routes of the HTTP listener have answered. May be nil.
	Verdicts func() []Verdict

	// Reload reads the configuration again, ordered by the user by; it returns a
	// [failover.RefusedError] when nothing has changed. LastReload returns the
	// result of the last reload; nil when there was none. Both may be nil.
	Reload     func(ctx context.Context, by string) (Changes, error)
	LastReload func() *Reload

	// Metrics answers GET /metrics. May be nil.
	Metrics http.Handler

	// Unlogged returns how many connections the log of connections has dropped. May be
	// nil.
	Unlogged func() uint64

	// Findings returns the outage and the disagreements of all relays. May be nil.
	Findings func() correlate.Findings

	// Logger gets the server's log. Nil discards it.
	Logger hclog.Logger
}

// Server answers on the control socket.
type Server struct {
	cfg     Config
	log     hclog.Logger
	started time.Time
	path    string // set by Bind
	socket  *socket
}

// NewServer returns a Server. It opens nothing.
func NewServer(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Server{cfg: cfg, log: cfg.Logger.Named("control"), started: time.Now()}
}

// Bind opens the socket. It replaces the socket of a process that has ended, but not
// one that a running process serves: then the error wraps [ErrTaken].
func (s *Server) Bind() error {
	var err error
	if s.cfg.Path == "" {
		s.socket, s.path, err = bindIn(DefaultDir())
		return err
	}
	s.path = s.cfg.Path
	s.socket, err = bindAt(s.path)
	return err
}

// Path returns the path of the socket that Bind opened.
func (s *Server) Path() string { return s.path }

// Close releases the socket of a Server that was bound and never ran.
func (s *Server) Close() {
	if s.socket != nil {
		s.socket.close()
		s.socket = nil
	}
}

// Run answers until ctx ends and returns nil. When it returns, the socket is closed
// and everything that it started has ended; orders in progress continue without
// their clients. Temporary accept errors are retried. Any other error is returned:
// the socket can accept nothing any more, and Bind and Run may be called again.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	server := http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		// Clients are a few trusted operators: an error here is this program's.
		ErrorLog:    s.log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Warn}),
		BaseContext: func(net.Listener) context.Context { return ctx }, // follow ends with it
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, callerKey{}, callerOf(c))
		},
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { //nolint:contextcheck // it runs when ctx has ended
		defer close(stopped)
		// Requests in progress end with ctx, except for clients that do not read.
		brief, cancel := context.WithTimeout(context.Background(), shutdownTime)
		defer cancel()
		_ = server.Shutdown(brief)
		_ = server.Close()
	})
	err := server.Serve(accept.Retry(s.socket.listener, s.log))
	if !stop() {
		<-stopped
		return nil
	}
	_ = server.Close() // closes the remaining connections
	return fmt.Errorf("control socket %s: %w", s.path, err)
}

// Reading answers the requests below /v1 that give no order, for another listener: the
// events without those that are to come.
func (s *Server) Reading() http.Handler {
	mux := s.reading()
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("follow") {
			answer(w, http.StatusBadRequest, failure{"follow: only on the control socket; GET /v1/stream is for this"})
			return
		}
		s.events(w, r)
	})
	return mux
}

func (s *Server) handler() http.Handler {
	mux := s.reading()
	mux.HandleFunc("GET /v1/events", s.events)
	for path, order := range orders {
		mux.HandleFunc("POST /v1/"+path, func(w http.ResponseWriter, r *http.Request) { s.order(w, r, order) })
	}
	mux.HandleFunc("POST /v1/reload", s.reload)
	if s.cfg.Metrics != nil {
		mux.Handle("GET /metrics", s.cfg.Metrics)
	}
	return mux
}

// reading returns the requests that every listener answers.
func (s *Server) reading() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", s.status)
	mux.HandleFunc("GET /v1/predict", s.predict)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusNotFound, failure{fmt.Sprintf("there is no %s %s", r.Method, r.URL.Path)})
	})
	return mux
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, s.Status()) }

// Status returns what GET /v1/status answers.
func (s *Server) Status() Status {
	out := s.Process()
	for _, r := range s.cfg.Relays() {
		out.Relays = append(out.Relays, out.describe(r))
	}
	return out
}

// Process returns a [Server.Status] without relays.
func (s *Server) Process() Status {
	out := Status{Schema: Schema, Version: s.cfg.Version, PID: os.Getpid(), Started: s.started, Now: time.Now()}
	if s.cfg.Unlogged != nil {
		out.Unlogged = s.cfg.Unlogged()
	}
	if s.cfg.Findings != nil {
		f := s.cfg.Findings()
		out.Outage, out.Disagreements = f.Outage, f.Disagreements
	}
	if s.cfg.Probes != nil {
		out.Probes = s.cfg.Probes()
	}
	if s.cfg.Verdicts != nil {
		out.Verdicts = s.cfg.Verdicts()
	}
	if s.cfg.LastReload != nil {
		out.Reload = s.cfg.LastReload()
	}
	return out
}

// Elections returns the records of all relays, the newest first: at most most elections,
// and as many orders.
func (s *Server) Elections(most int) []Event {
	// first returns a function that reports whether a record is among the first of its kind.
	first := func() func(failover.Incident) bool {
		seen := map[bool]int{}
		return func(i failover.Incident) bool {
			order := i.Order != nil
			seen[order]++
			return seen[order] <= most
		}
	}
	var all []Event
	for _, r := range s.cfg.Relays() {
		list, _ := r.Conductor.Incidents()
		keep := first()
		for _, i := range slices.Backward(list) {
			if keep(i) {
				all = append(all, Event{Schema, i})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Event) int { return b.At().Compare(a.At()) })
	keep := first()
	return slices.DeleteFunc(all, func(e Event) bool { return !keep(e.Incident) })
}

// Carry carries out an order; what is the name of its path below /v1. The result is the
// body of the answer. The error is a [failover.RefusedError] when nothing has changed.
func (s *Server) Carry(ctx context.Context, what string, o Order) (any, error) {
	do, ok := orders[what]
	if !ok {
		return nil, failover.RefusedError{Reason: fmt.Sprintf("there is no order %q", what)}
	}
	for _, r := range s.cfg.Relays() {
		if r.Conductor.Name() == o.Relay {
			return do(ctx, r.Conductor, Answered{Relay: o.Relay, Listen: r.listen(), PID: os.Getpid()}, o)
		}
	}
	return nil, failover.RefusedError{Reason: fmt.Sprintf("there is no relay %q", o.Relay)}
}

func (s *Server) predict(w http.ResponseWriter, r *http.Request) {
	if of, ok := s.relay(w, r.URL.Query().Get("relay")); ok {
		answer(w, http.StatusOK, PredictAnswer{Schema, of.Conductor.Prediction()})
	}
}

// events answers with the records of elections and orders. With follow=1 it continues and
// sends each record as a line when it is done.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	of, ok := s.relay(w, r.URL.Query().Get("relay"))
	if !ok {
		return
	}
	list, changed := of.Conductor.Incidents()
	if r.URL.Query().Get("follow") != "1" {
		all := make([]Event, len(list))
		for n, i := range list {
			all[n] = Event{Schema, i}
		}
		answer(w, http.StatusOK, all)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(w)
	var reported map[uint64]bool // by ID: an order may be complete before an election that began earlier
	for {
		now := map[uint64]bool{}
		for _, i := range list {
			if !i.Done {
				continue
			}
			if !reported[i.ID] && out.Encode(Event{Schema, i}) != nil {
				return
			}
			now[i.ID] = true
		}
		reported = now
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
		list, changed = of.Conductor.Incidents()
	}
}

// orderFunc executes an order and returns the body of the answer, which begins
// with at.
type orderFunc func(ctx context.Context, c *failover.Conductor, at Answered, o Order) (any, error)

var orders = map[string]orderFunc{
	"switch": switchTo,
	"drain": func(ctx context.Context, c *failover.Conductor, at Answered, o Order) (any, error) {
		return lock(ctx, c, failover.Drain, at, o)
	},
	"freeze": func(ctx context.Context, c *failover.Conductor, at Answered, o Order) (any, error) {
		return lock(ctx, c, failover.Freeze, at, o)
	},
	"ready": func(ctx context.Context, c *failover.Conductor, at Answered, o Order) (any, error) {
		return unlock(ctx, c, failover.Drain, at, o)
	},
	"unfreeze": func(ctx context.Context, c *failover.Conductor, at Answered, o Order) (any, error) {
		return unlock(ctx, c, failover.Freeze, at, o)
	},
	"cluster-add": func(ctx context.Context, c *failover.Conductor, at Answered, o Order) (any, error) {
		return ClusterAnswer{at, o.Member}, c.ChangeRoster(ctx, failover.RosterOrder{Member: o.Member, By: o.By, Reason: o.Reason})
	},
	"cluster-forget": func(ctx context.Context, c *failover.Conductor, at Answered, o Order) (any, error) {
		return ClusterAnswer{at, o.Member}, c.ChangeRoster(ctx, failover.RosterOrder{Member: o.Member, Forget: true, By: o.By, Reason: o.Reason})
	},
	"cluster-force": func(ctx context.Context, c *failover.Conductor, at Answered, o Order) (any, error) {
		_, err := c.Force(ctx, o.By, o.Reason)
		return ClusterAnswer{Answered: at}, err
	},
	"drill": func(ctx context.Context, c *failover.Conductor, at Answered, o Order) (any, error) {
		r, err := c.Drill(ctx, failover.DrillRequest{Host: o.Host, Without: o.Without, Triggers: o.Triggers, By: o.By, Reason: o.Reason})
		return DrillAnswer{at, r}, err
	},
}

// switchTo switches now or later, or cancels a scheduled switch.
func switchTo(ctx context.Context, c *failover.Conductor, at Answered, o Order) (any, error) {
	if o.Cancel {
		was, err := c.CancelScheduled(ctx, o.By)
		return ScheduleAnswer{at, was}, err
	}
	var drain *time.Duration
	if o.DrainSeconds != nil {
		drain = new(seconds(*o.DrainSeconds))
	}
	if o.Host == "" {
		return nil, failover.RefusedError{Reason: "host: missing: the host that is to become primary"}
	}
	if !o.At.IsZero() {
		planned, err := c.Schedule(ctx, failover.Scheduled{Host: o.Host, At: o.At, By: o.By, Reason: o.Reason, DrainSeconds: o.DrainSeconds})
		return ScheduleAnswer{at, planned}, err
	}
	done, err := c.Switch(ctx, failover.SwitchRequest{Host: o.Host, Drain: drain, By: o.By, Reason: o.Reason})
	return SwitchAnswer{at, done}, err
}

func lock(ctx context.Context, c *failover.Conductor, kind failover.LockKind, at Answered, o Order) (any, error) {
	k := lockOf(kind, o)
	if o.ForSeconds > 0 {
		k.Until = k.Since.Add(seconds(o.ForSeconds))
	}
	return LockAnswer{at, k}, c.Lock(ctx, k)
}

func unlock(ctx context.Context, c *failover.Conductor, kind failover.LockKind, at Answered, o Order) (any, error) {
	k := lockOf(kind, o)
	return LockAnswer{at, k}, c.Unlock(ctx, k)
}

func lockOf(kind failover.LockKind, o Order) failover.Lock {
	k := failover.Lock{Kind: kind, By: o.By, Reason: o.Reason, Since: time.Now()}
	if kind == failover.Drain {
		k.Host = o.Host
	}
	return k
}

// order reads an order and executes it.
func (s *Server) order(w http.ResponseWriter, r *http.Request, do orderFunc) {
	o, ok := s.readOrder(w, r)
	if !ok {
		return
	}
	to, ok := s.relay(w, o.Relay)
	if !ok {
		return
	}
	at := Answered{Relay: to.Conductor.Name(), Listen: to.listen(), PID: os.Getpid()}
	out, err := do(r.Context(), to.Conductor, at, o)
	answerOrder(w, out, err)
}

// reload reads an order and reloads the configuration.
func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	o, ok := s.readOrder(w, r)
	if !ok {
		return
	}
	if s.cfg.Reload == nil {
		answer(w, http.StatusConflict, failure{"this process cannot reload"})
		return
	}
	did, err := s.cfg.Reload(r.Context(), o.By)
	answerOrder(w, ReloadAnswer{os.Getpid(), did}, err)
}

// readOrder reads an order and sets By to its caller. It answers the request and
// returns false when the order is invalid.
func (s *Server) readOrder(w http.ResponseWriter, r *http.Request) (Order, bool) {
	o, err := decodeOrder(http.MaxBytesReader(w, r.Body, orderLimit))
	if err != nil {
		answer(w, http.StatusBadRequest, failure{err.Error()})
		return o, false
	}
	caller, _ := r.Context().Value(callerKey{}).(caller)
	o.By = caller.name(o.By)
	return o, true
}

// answerOrder answers with the result of an order.
func answerOrder(w http.ResponseWriter, out any, err error) {
	var refused failover.RefusedError
	switch {
	case err == nil:
		answer(w, http.StatusOK, out)
	case errors.As(err, &refused):
		answer(w, http.StatusConflict, failure{refused.Reason})
	default:
		answer(w, http.StatusServiceUnavailable, failure{err.Error()})
	}
}

// decodeOrder parses the body of an order. No body is an empty order.
func decodeOrder(body io.Reader) (Order, error) {
	var o Order
	in := json.NewDecoder(body)
	in.DisallowUnknownFields()
	switch err := in.Decode(&o); {
	case errors.Is(err, io.EOF):
		return Order{}, nil
	case err != nil:
		return Order{}, fmt.Errorf("the order cannot be understood: %w", err)
	}
	if _, err := in.Token(); !errors.Is(err, io.EOF) {
		return Order{}, errors.New("the request is invalid: data follows the JSON value")
	}
	if o.ForSeconds < 0 || o.ForSeconds > maxSeconds {
		return Order{}, fmt.Errorf("for_seconds: %v is not from 0 to %d", o.ForSeconds, maxSeconds)
	}
	if d := o.DrainSeconds; d != nil && (*d < 0 || *d > maxSeconds) {
		return Order{}, fmt.Errorf("drain_seconds: %v is not from 0 to %d", *d, maxSeconds)
	}
	o.Reason, o.By = oneLine(o.Reason), oneLine(o.By)
	return o, nil
}

// maxSeconds is ten years.
const maxSeconds = 10 * 366 * 24 * 3600

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// oneLine returns text without line breaks, cut at 500 bytes.
func oneLine(text string) string {
	text = safetext.Line(text)
	if len(text) > 500 {
		text = strings.ToValidUTF8(text[:500], "")
	}
	return text
}

// relay returns the relay with this name, or the only one when name is empty. It
// answers the request and returns false when there is none.
func (s *Server) relay(w http.ResponseWriter, name string) (Relay, bool) {
	var names []string
	relays := s.cfg.Relays()
	for _, r := range relays {
		if r.Conductor.Name() == name {
			return r, true
		}
		names = append(names, r.Conductor.Name())
	}
	switch {
	case name == "" && len(names) == 1:
		return relays[0], true
	case len(names) == 0:
		answer(w, http.StatusNotFound, failure{"this process has no relay"})
	case name == "":
		answer(w, http.StatusBadRequest, failure{"relay: needed, because there are several: " + strings.Join(names, ", ")})
	default:
		answer(w, http.StatusNotFound, failure{fmt.Sprintf("there is no relay %q: there is %s", name, strings.Join(names, ", "))})
	}
	return Relay{}, false
}

// answer writes a body as JSON that people can read too.
func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	_ = out.Encode(body) // fails if the client has disconnected
}
