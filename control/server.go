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
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/failover"
	"understudy/relay"
)

const (
	// orderLimit is the most that the body of an order may have.
	orderLimit = 64 << 10

	headerTimeout = 5 * time.Second
	idleTimeout   = time.Minute

	// shutdownTime is how long the end of the process waits for answers.
	shutdownTime = time.Second
)

// Relay is one relay of the process.
type Relay struct {
	Conductor *failover.Conductor
	Relay     *relay.Relay
}

// Config says what a [Server] serves. Zero fields mean their defaults.
type Config struct {
	// Path is the socket's. Required; see [DefaultPath].
	Path string

	// Version is the program's.
	Version string

	// Relays returns those of the process. It is asked for every request, and
	// Probes is too, which may be nil.
	Relays func() []Relay
	Probes func() []Probe

	// Reload reads the configuration again, for somebody; a
	// [failover.RefusedError] says why nothing has changed. LastReload says what
	// came of the last time; nil when there was none. Both may be nil.
	Reload     func(ctx context.Context, by string) (Changes, error)
	LastReload func() *Reload

	// Logger defaults to one that discards.
	Logger hclog.Logger
}

// Server answers on the control socket.
type Server struct {
	cfg     Config
	log     hclog.Logger
	started time.Time
	socket  *socket
}

// NewServer returns a Server. It opens nothing.
func NewServer(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Server{cfg: cfg, log: cfg.Logger.Named("control"), started: time.Now()}
}

// Bind claims the socket. A file that a process left behind is replaced; one
// that a living process serves is not. The error says which, and wraps
// [ErrTaken] in the latter case.
func (s *Server) Bind() error {
	var err error
	s.socket, err = claim(s.cfg.Path)
	return err
}

// Close gives up what Bind claimed, for a Server that is never run.
func (s *Server) Close() {
	if s.socket != nil {
		s.socket.close()
		s.socket = nil
	}
}

// Run answers until ctx ends. When it returns, the socket and everything that
// it started are gone; orders under way go on without their clients.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	server := http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		// Clients are operators, few and friendly: what is said here is about us.
		ErrorLog:    s.log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Warn}),
		BaseContext: func(net.Listener) context.Context { return ctx }, // follow ends with it
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, callerKey{}, callerOf(c))
		},
	}
	stopped := make(chan struct{})
	context.AfterFunc(ctx, func() { //nolint:contextcheck // it runs when ctx has ended
		defer close(stopped)
		// What is under way ends with ctx, all but a client that reads nothing.
		brief, cancel := context.WithTimeout(context.Background(), shutdownTime)
		defer cancel()
		_ = server.Shutdown(brief)
		_ = server.Close()
	})
	err := server.Serve(s.socket.listener)
	if ctx.Err() != nil {
		<-stopped
		return nil
	}
	// Without it the operator is blind; the clients of the relay must not be
	// the worse for it.
	s.log.Error("control socket gone", "path", s.cfg.Path, "error", err)
	<-stopped
	return nil
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", s.status)
	mux.HandleFunc("GET /v1/predict", s.predict)
	mux.HandleFunc("GET /v1/events", s.events)
	for path, order := range orders {
		mux.HandleFunc("POST /v1/"+path, func(w http.ResponseWriter, r *http.Request) { s.order(w, r, order) })
	}
	mux.HandleFunc("POST /v1/reload", s.reload)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusNotFound, failure{fmt.Sprintf("there is no %s %s", r.Method, r.URL.Path)})
	})
	return mux
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	out := Status{Version: s.cfg.Version, PID: os.Getpid(), Started: s.started, Now: time.Now()}
	for _, r := range s.cfg.Relays() {
		out.Relays = append(out.Relays, describe(r, out.Now))
	}
	if s.cfg.Probes != nil {
		out.Probes = s.cfg.Probes()
	}
	if s.cfg.LastReload != nil {
		out.Reload = s.cfg.LastReload()
	}
	answer(w, http.StatusOK, out)
}

func (s *Server) predict(w http.ResponseWriter, r *http.Request) {
	if c, ok := s.conductor(w, r.URL.Query().Get("relay")); ok {
		answer(w, http.StatusOK, c.Prediction())
	}
}

// events answers with the record; with follow=1 it goes on, one incident a
// line, as each of them is done.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	c, ok := s.conductor(w, r.URL.Query().Get("relay"))
	if !ok {
		return
	}
	list, changed := c.Incidents()
	if r.URL.Query().Get("follow") != "1" {
		if list == nil {
			list = []failover.Incident{}
		}
		answer(w, http.StatusOK, list)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(w)
	var told uint64
	for {
		for _, i := range list {
			if !i.Done || i.ID <= told {
				continue
			}
			if out.Encode(i) != nil {
				return
			}
			told = i.ID
		}
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
		list, changed = c.Incidents()
	}
}

// orderFunc carries an order out and returns the body of the answer.
type orderFunc func(ctx context.Context, c *failover.Conductor, o Order) (any, error)

var orders = map[string]orderFunc{
	"switch": func(ctx context.Context, c *failover.Conductor, o Order) (any, error) {
		drain := time.Duration(-1)
		if o.DrainSeconds != nil {
			drain = seconds(*o.DrainSeconds)
		}
		if o.Host == "" {
			return nil, failover.RefusedError{Reason: "host: needed to say who becomes primary"}
		}
		return c.Switch(ctx, failover.SwitchRequest{Host: o.Host, Drain: drain, By: o.By, Reason: o.Reason})
	},
	"drain": func(ctx context.Context, c *failover.Conductor, o Order) (any, error) {
		return lock(ctx, c, failover.Drain, o)
	},
	"freeze": func(ctx context.Context, c *failover.Conductor, o Order) (any, error) {
		return lock(ctx, c, failover.Freeze, o)
	},
	"ready": func(ctx context.Context, c *failover.Conductor, o Order) (any, error) {
		return unlock(ctx, c, failover.Drain, o)
	},
	"unfreeze": func(ctx context.Context, c *failover.Conductor, o Order) (any, error) {
		return unlock(ctx, c, failover.Freeze, o)
	},
	"drill": func(ctx context.Context, c *failover.Conductor, o Order) (any, error) {
		return c.Drill(ctx, o.Host, o.Triggers)
	},
}

func lock(ctx context.Context, c *failover.Conductor, kind failover.LockKind, o Order) (any, error) {
	k := lockOf(kind, o)
	if o.ForSeconds > 0 {
		k.Until = k.Since.Add(seconds(o.ForSeconds))
	}
	return k, c.Lock(ctx, k)
}

func unlock(ctx context.Context, c *failover.Conductor, kind failover.LockKind, o Order) (any, error) {
	k := lockOf(kind, o)
	return k, c.Unlock(ctx, k)
}

func lockOf(kind failover.LockKind, o Order) failover.Lock {
	k := failover.Lock{Kind: kind, By: o.By, Reason: o.Reason, Since: time.Now()}
	if kind == failover.Drain {
		k.Host = o.Host
	}
	return k
}

// order reads an order and has it carried out.
func (s *Server) order(w http.ResponseWriter, r *http.Request, do orderFunc) {
	o, ok := s.readOrder(w, r)
	if !ok {
		return
	}
	c, ok := s.conductor(w, o.Relay)
	if !ok {
		return
	}
	out, err := do(r.Context(), c, o)
	answerOrder(w, out, err)
}

// reload has the configuration read again.
func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	o, ok := s.readOrder(w, r)
	if !ok {
		return
	}
	if s.cfg.Reload == nil {
		answer(w, http.StatusConflict, failure{"this process cannot reload"})
		return
	}
	out, err := s.cfg.Reload(r.Context(), o.By)
	answerOrder(w, out, err)
}

// readOrder reads an order and who gives it. It answers itself when that cannot
// be understood.
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

// answerOrder answers with what came of an order.
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

// decodeOrder understands the body of an order. No body is an empty order.
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
		return Order{}, errors.New("the order cannot be understood: something stands behind it")
	}
	if o.ForSeconds < 0 || o.ForSeconds > mostSeconds {
		return Order{}, fmt.Errorf("for_seconds: %v is not from 0 to %d", o.ForSeconds, mostSeconds)
	}
	if d := o.DrainSeconds; d != nil && (*d < 0 || *d > mostSeconds) {
		return Order{}, fmt.Errorf("drain_seconds: %v is not from 0 to %d", *d, mostSeconds)
	}
	o.Reason, o.By = oneLine(o.Reason), oneLine(o.By)
	return o, nil
}

// mostSeconds is ten years.
const mostSeconds = 10 * 366 * 24 * 3600

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// oneLine takes line breaks and length out of what people write.
func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > 500 {
		text = strings.ToValidUTF8(text[:500], "")
	}
	return text
}

// conductor finds a relay by name, or the only one when there is no name. It
// answers itself when there is none.
func (s *Server) conductor(w http.ResponseWriter, name string) (*failover.Conductor, bool) {
	var names []string
	relays := s.cfg.Relays()
	for _, r := range relays {
		if r.Conductor.Name() == name {
			return r.Conductor, true
		}
		names = append(names, r.Conductor.Name())
	}
	switch {
	case name == "" && len(names) == 1:
		return relays[0].Conductor, true
	case len(names) == 0:
		answer(w, http.StatusNotFound, failure{"this process has no relay"})
	case name == "":
		answer(w, http.StatusBadRequest, failure{"relay: needed to say which is meant: " + strings.Join(names, ", ")})
	default:
		answer(w, http.StatusNotFound, failure{fmt.Sprintf("there is no relay %q: there is %s", name, strings.Join(names, ", "))})
	}
	return nil, false
}

// answer writes a body as JSON that people can read too.
func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	_ = out.Encode(body) // a client that left hears nothing
}
