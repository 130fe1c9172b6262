package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"

	"understudy/config"
	"understudy/control"
	"understudy/health"
	"understudy/hooks"
	"understudy/logs"
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
	sockets  []passedSocket

	// load makes the settings again, for a reload; nil when there is no file to
	// read them from.
	load func() (config.Settings, error)

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
	load := func() (config.Settings, error) {
		settings, _, err := line.settings(sockets)
		return settings, errors.Join(err, inspectScripts(settings))
	}
	settings, err := load()
	if err != nil {
		return usage(stderr, err)
	}
	p := process{settings: settings, sockets: sockets, stdout: stdout, stderr: stderr}
	if settings.File != "" {
		p.load = load
	}
	if err := serve(ctx, p); err != nil {
		fmt.Fprintf(stderr, "understudy: %v\n", err)
		return exitFailed
	}
	return exitDone
}

// serve binds every address, so that a busy one is an error before any script
// has run, then runs all parts until ctx ends, a signal asks for the end or a
// part fails. When it returns, all of them are gone.
func serve(ctx context.Context, p process) error {
	journal, err := newLogger(p.settings.Log, p.stdout, p.stderr) //nolint:contextcheck // it goes on until the very end
	if err != nil {
		return err
	}
	log := journal.Logger()
	// net/http's transports complain about servers to the standard logger.
	stdlog.SetFlags(0)
	stdlog.SetOutput(log.StandardWriter(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}))
	finish, hurry, hangups, release := endings(ctx, log)
	defer release() // last: until then a closed output must not kill this process
	defer func() {
		if hurry.Err() != nil {
			journal.Close(hurryTime)
		} else {
			journal.Close(logPatience)
		}
	}()
	for _, w := range p.settings.Warnings {
		log.Warn("configuration", "reason", w)
	}

	s, err := newService(p, journal)
	if err != nil {
		return err
	}
	b, err := s.bind(p.settings.Control) //nolint:contextcheck // it waits for nothing
	if err == nil {
		prepareProcess(s.loops(), log)
		log.Info("starting", "version", versionText(), "pid", os.Getpid(), "listen", b.String())
		if p.bound != nil {
			err = p.bound(b)
		}
	}
	if err == nil {
		err = s.run(finish, hurry, hangups)
		for _, c := range s.current() {
			c.logCounts(log)
		}
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
// probes, what answers for them, and what they share.
//
// Its parts run in two groups. When the program is asked to end the relays
// drain, and the verdicts and the control socket go on until they have, so that
// balancers in front see them turn.
type service struct {
	settings config.Settings // that hold now; written by reload
	load     func() (config.Settings, error)

	journal  *logs.Log
	log      hclog.Logger
	resolver *health.Resolver
	runner   *hooks.Runner
	verdicts *health.VerdictLog
	control  *control.Server // nil when there is none

	relays   atomic.Pointer[[]*conducted]
	answers  atomic.Pointer[answers]
	ready    atomic.Bool  // the start is over
	draining atomic.Bool  // the program is ending
	together atomic.Int64 // connections of all relays
	reloaded atomic.Pointer[control.Reload]

	// The following are of run and reload.
	changing      sync.Mutex // held by a reload, and by run once everything ends
	ending        bool       // guarded by changing
	finish, last  context.Context
	stop          func() // has everything end
	serving, rest group
	leaving       []*conducted // relays that drain because they are no longer configured; guarded by changing
}

// current are the relays that are configured now.
func (s *service) current() []*conducted { return *s.relays.Load() }

// loops is the number of event loops of all relays, zero for the default.
func (s *service) loops() (n int) {
	for _, c := range s.current() {
		n += c.settings.Loops
	}
	return n
}

// newService makes the parts and joins them. It opens nothing but the state
// that is remembered.
func newService(p process, journal *logs.Log) (*service, error) {
	log := journal.Logger()
	s := &service{
		settings: p.settings,
		load:     p.load,
		journal:  journal,
		log:      log,
		resolver: health.NewResolver(),
		runner:   hooks.New(hooks.Config{Logger: log.Named("hooks"), Without: append(p.settings.SecretVariables(), managersVariables...)}),
		verdicts: health.NewVerdictLog(p.stdout, p.stderr, p.settings.Log.JSON, log.Named("http")),
	}
	var relays []*conducted
	s.relays.Store(&relays)
	for _, r := range p.settings.Relays {
		c, err := s.conduct(r, p.settings, descriptorsOf(p.sockets, r))
		if err != nil {
			s.close()
			return nil, err
		}
		relays = append(relays, c)
		s.relays.Store(&relays)
	}
	a, err := s.answer(p.settings, relays, nil)
	if err != nil {
		s.close()
		return nil, err
	}
	s.answers.Store(a)
	if p.settings.Control != config.ControlOff {
		s.control = newControl(p.settings.Control, s)
	}
	return s, nil
}

// close gives up what was made, for a service that has ended or never ran.
func (s *service) close() {
	for _, c := range s.current() {
		c.close()
	}
	if a := s.answers.Load(); a != nil {
		a.close(nil)
	}
	if s.control != nil {
		s.control.Close()
	}
	s.runner.Close()
	s.resolver.Close()
}

// bind binds every address. What was bound before one that fails is given up
// by close.
func (s *service) bind(controlAt string) (bound, error) {
	var b bound
	for _, c := range s.current() {
		if err := c.bind(); err != nil {
			return b, err
		}
		b.relays = append(b.relays, c.relay.Addrs()...)
	}
	a := s.answers.Load()
	if err := a.bind(nil); err != nil {
		return b, err
	}
	if a.server != nil {
		b.http = a.server.Addr()
	}
	err := s.bindControl(controlAt)
	if s.control != nil {
		b.control = controlPath(controlAt)
	}
	return b, err
}

// run runs all parts. When finish ends, or a part fails, the relays drain and
// the verdicts go on, so that balancers in front see them turn; then the rest
// ends. When hurry ends everything does, at once. With each hangup the
// configuration is read again.
func (s *service) run(finish, hurry context.Context, hangups <-chan os.Signal) error {
	finish, s.stop = context.WithCancel(finish)
	defer s.stop()
	last, stopLast := context.WithCancel(context.WithoutCancel(finish))
	defer stopLast()
	s.finish, s.last = finish, last

	for _, c := range s.current() {
		s.startRelay(c)
	}
	s.answers.Load().start(s, nil)
	if s.control != nil {
		s.rest.start(last, s.stop, s.control.Run)
	}
	if os.Getenv("NOTIFY_SOCKET") != "" {
		s.rest.start(last, s.stop, s.notify)
	}
	again := make(chan struct{}, 1)
	s.rest.start(finish, func() {}, whenever(hangups, func(context.Context) {
		s.reopen() // even while a reload waits for an election: logrotate(8) does not
		select {
		case again <- struct{}{}:
		default: // one is about to begin
		}
	}))
	s.rest.start(finish, func() {}, whenever(again, s.hangup))
	var logging group
	logLast, stopLog := context.WithCancel(context.WithoutCancel(finish))
	defer stopLog()
	logging.start(logLast, s.stop, s.verdicts.Run)
	if os.Getpid() == 1 {
		logging.start(logLast, s.stop, hooks.Reap)
	}

	ended := make(chan error, 1)
	go func() {
		<-finish.Done()
		s.draining.Store(true)
		s.tellManager(daemon.SdNotifyStopping)
		s.changing.Lock() // a reload gives up when finish ends
		s.ending = true
		s.changing.Unlock()
		err := s.serving.wait()
		stopLast()
		err = errors.Join(err, s.rest.wait())
		stopLog()
		ended <- errors.Join(err, logging.wait())
	}()
	select {
	case err := <-ended:
		return err
	case <-hurry.Done():
	}
	s.cut()
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

// whenever is a part that does something each time that it is told to.
func whenever[T any](told <-chan T, do func(context.Context)) func(context.Context) error {
	return func(ctx context.Context) error {
		for {
			select {
			case <-told:
				do(ctx)
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// cut ends the drain of every relay.
func (s *service) cut() {
	all := s.current()
	if s.changing.TryLock() {
		all = slices.Concat(all, s.leaving)
		s.changing.Unlock()
	}
	for _, c := range all {
		c.relay.Cut()
	}
}

// part is something that runs in a group.
type part struct {
	end  context.CancelFunc
	over chan struct{} // closed when it has ended
}

// group is a number of parts that run until they are done.
type group struct {
	wg   sync.WaitGroup
	mu   sync.Mutex // guards errs
	errs []error
}

// start runs a part until ctx ends. One that fails, or that ends although
// nobody wants it to, calls stop.
func (g *group) start(ctx context.Context, stop func(), run func(context.Context) error) *part {
	ctx, cancel := context.WithCancel(ctx)
	p := &part{end: cancel, over: make(chan struct{})}
	g.wg.Go(func() {
		defer close(p.over)
		defer cancel()
		err := run(ctx)
		if err != nil {
			g.mu.Lock()
			g.errs = append(g.errs, err)
			g.mu.Unlock()
		}
		if err != nil || ctx.Err() == nil {
			stop()
		}
	})
	return p
}

// wait waits for all of them and returns their errors, joined.
func (g *group) wait() error {
	g.wg.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	return errors.Join(g.errs...)
}
