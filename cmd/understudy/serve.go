package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/config"
	"understudy/control"
	"understudy/failover"
	"understudy/health"
	"understudy/hooks"
	"understudy/relay"
)

const (
	// hurryTime is how long the parts may take to end after the second signal.
	hurryTime = 50 * time.Millisecond

	// logPatience is how long the end of the program waits for a log that
	// takes nothing; after the second signal it is hurryTime.
	logPatience = time.Second
)

// process is what to serve with.
type process struct {
	settings config.Settings
	sockets  []int // passed by systemd

	stdout, stderr io.Writer

	// bound, if set, is called once everything is bound and before anything
	// runs.
	bound func(bound) error
}

// bound holds the addresses that are bound.
type bound struct {
	relays []net.Addr
	http   net.Addr // nil when there is none

	control string // path of the control socket; empty when there is none
}

// serveVerb runs until it is asked to end.
func serveVerb(ctx context.Context, line line, stdout, stderr io.Writer) int {
	sockets := passedSockets()
	settings, _, err := line.settings(len(sockets))
	if err = errors.Join(err, inspectScripts(settings.Relays)); err != nil {
		return usage(stderr, err)
	}
	err = serve(ctx, process{settings: settings, sockets: sockets, stdout: stdout, stderr: stderr})
	if err != nil {
		fmt.Fprintf(stderr, "understudy: %v\n", err)
		return exitFailed
	}
	return exitDone
}

// serve binds every address, so that a busy one is an error before any script
// has run, then runs all parts until ctx ends, a signal asks for the end or a
// part fails. When it returns, all of them are gone.
func serve(ctx context.Context, p process) error {
	log, queue := newLogger(p.settings.Log, p.stdout, p.stderr)
	finish, hurry, release := endings(ctx, log)
	defer release() // last: until then a closed output must not kill this process
	defer func() {
		if hurry.Err() != nil {
			queue.Close(hurryTime)
		} else {
			queue.Close(logPatience)
		}
	}()

	s, err := newService(p, log)
	if err != nil {
		return err
	}
	b, err := s.bind(p.settings.Control) //nolint:contextcheck // it waits for nothing
	if err == nil {
		prepareProcess(s.loops, log)
		log.Info("starting", "version", versionText(), "pid", os.Getpid(), "listen", b.String())
		if p.bound != nil {
			err = p.bound(b)
		}
	}
	if err == nil {
		err = s.run(finish, hurry)
		s.logCounts()
	}
	if hurry.Err() == nil { // otherwise the end of the process closes it all, now
		s.close()
	}
	return err
}

// String lists the addresses for the log.
func (b bound) String() string {
	var all []string
	for _, a := range b.relays {
		all = append(all, a.String())
	}
	if b.http != nil {
		all = append(all, "http="+b.http.String())
	}
	return strings.Join(all, " ")
}

// service is everything that serves: the relays with their conductors, the
// verdict listener, and what they share.
type service struct {
	log      hclog.Logger
	loops    int // event loops of all relays, zero for the default
	resolver *health.Resolver
	runner   *hooks.Runner
	relays   []conducted
	verdicts *health.VerdictLog
	http     *health.Server  // nil when there is none
	control  *control.Server // nil when there is none
}

// conducted is a relay and what decides over it.
type conducted struct {
	name      string
	relay     *relay.Relay
	conductor *failover.Conductor
	keeper    *failover.Keeper // nil when nothing is remembered
}

// newService makes the parts and joins them. It opens nothing but the state
// that is remembered.
func newService(p process, log hclog.Logger) (*service, error) {
	s := &service{
		log:      log,
		resolver: health.NewResolver(),
		runner:   hooks.New(hooks.Config{Logger: log.Named("hooks")}),
	}
	for _, r := range p.settings.Relays {
		c, err := s.conduct("main", r, p)
		s.relays = append(s.relays, c)
		if err != nil {
			s.close()
			return nil, err
		}
		s.loops += r.Loops
	}
	if p.settings.HTTP.Listen != "" {
		if err := s.answer(p); err != nil {
			s.close()
			return nil, err
		}
	}
	if p.settings.Control != config.ControlOff {
		s.control = newControl(p.settings.Control, s)
	}
	return s, nil
}

// close gives up what was made, for a service that has ended or never ran.
func (s *service) close() {
	for _, c := range s.relays {
		if c.relay != nil {
			c.relay.Close()
		}
		c.keeper.Close()
	}
	if s.control != nil {
		s.control.Close()
	}
	s.runner.Close()
	s.resolver.Close()
}

// answer makes the verdict listener.
func (s *service) answer(p process) error {
	cfg := p.settings.HTTP
	routes := map[string]http.Handler{}
	if len(s.relays) > 0 || len(cfg.LPorts) > 0 {
		s.verdicts = health.NewVerdictLog(p.stdout, p.stderr, p.settings.Log.JSON, s.log.Named("http"))
		ping := health.PingConfig{Ports: cfg.LPorts, Timeout: cfg.PingTimeout, FailStatus: cfg.FailStatus, Log: s.verdicts}
		if len(s.relays) > 0 {
			ping.Relays = s.withoutPrimary
		}
		handler, err := health.NewPing(ping)
		if err != nil {
			return err
		}
		for _, path := range cfg.PingPaths {
			routes[path] = handler
		}
	}
	if cfg.StatusDir != "" {
		routes[config.StatusPath] = health.NewStatus(health.StatusConfig{
			Flags: health.Flags{Dir: cfg.StatusDir}, Logger: s.log.Named("http"),
		})
	}
	var err error
	s.http, err = health.NewServer(health.ServerConfig{Listen: cfg.Listen, Routes: routes, Logger: s.log})
	return err
}

// bind binds every address. What was bound before one that fails is given up
// by close.
func (s *service) bind(controlAt string) (bound, error) {
	var b bound
	for _, c := range s.relays {
		if err := c.relay.Bind(); err != nil {
			return b, err
		}
		b.relays = append(b.relays, c.relay.Addrs()...)
	}
	if s.http != nil {
		if err := s.http.Bind(); err != nil {
			return b, err
		}
		b.http = s.http.Addr()
	}
	err := s.bindControl(controlAt)
	if s.control != nil {
		b.control = controlPath(controlAt)
	}
	return b, err
}

// run runs all parts. When finish ends, or a part fails, the relays drain and
// the verdicts go on, so that balancers in front see them turn; then the rest
// ends. When hurry ends everything does, at once.
func (s *service) run(finish, hurry context.Context) error {
	finish, stop := context.WithCancel(finish)
	defer stop()
	last, stopLast := context.WithCancel(context.WithoutCancel(finish))
	defer stopLast()

	var serving, lasting group
	for _, c := range s.relays {
		serving.start(stop, func() error { return c.relay.Run(finish) })
		serving.start(stop, func() error { return c.conductor.Run(finish) })
	}
	if s.http != nil {
		lasting.start(stop, func() error { return s.http.Run(last) })
	}
	if s.control != nil {
		lasting.start(stop, func() error { return s.control.Run(last) })
	}
	var logging group
	logLast, stopLog := context.WithCancel(context.WithoutCancel(finish))
	defer stopLog()
	if s.verdicts != nil {
		logging.start(stop, func() error { return s.verdicts.Run(logLast) })
	}
	if os.Getpid() == 1 {
		logging.start(stop, func() error { return hooks.Reap(logLast) })
	}

	ended := make(chan error, 1)
	go func() {
		<-finish.Done()
		err := serving.wait()
		stopLast()
		err = errors.Join(err, lasting.wait())
		stopLog()
		ended <- errors.Join(err, logging.wait())
	}()
	select {
	case err := <-ended:
		return err
	case <-hurry.Done():
	}
	for _, c := range s.relays {
		c.relay.Cut()
	}
	killChildren()
	stopLast()
	stopLog()
	select {
	case err := <-ended:
		return err
	case <-time.After(hurryTime):
		return nil // asked to end at once: the process takes the rest with it
	}
}

// logCounts says what became of every client.
func (s *service) logCounts() {
	for _, c := range s.relays {
		n := c.relay.Stats()
		s.log.Info("ended", "relay", c.name, "accepted", n.Accepted, "live", n.Live, "finished", n.Finished,
			"reset", n.Reset, "fenced", n.Fenced, "expired", n.Expired, "gone", n.Gone,
			"denied", n.Denied, "sent", n.Sent, "received", n.Received)
	}
}

// group is a number of functions that run until they are done.
type group struct {
	wg   sync.WaitGroup
	mu   sync.Mutex // guards errs
	errs []error
}

// start runs part. The first that fails, or that ends, calls stop.
func (g *group) start(stop func(), part func() error) {
	g.wg.Go(func() {
		err := part()
		g.mu.Lock()
		g.errs = append(g.errs, err)
		g.mu.Unlock()
		stop()
	})
}

// wait waits for all of them and returns their errors, joined.
func (g *group) wait() error {
	g.wg.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	return errors.Join(g.errs...)
}
