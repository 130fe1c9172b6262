// Package daemon is the running process: it turns settings into relays, checks,
// probes and routes, connects the parts, reloads the settings, handles signals
// and notifies the service manager.
//
// [Run] owns everything that it starts; when it returns, all of it has ended.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"

	"understudy/config"
	"understudy/control"
	"understudy/correlate"
	"understudy/health"
	"understudy/hooks"
	"understudy/internal/webhook"
	"understudy/logs"
	"understudy/relay"
	"understudy/roles"
	"understudy/verdict"
)

const (
	// hurryTime is the longest time that the parts may take to end after the second
	// signal.
	hurryTime = 50 * time.Millisecond

	// logTimeout is the time for which the end of the program waits for a log that
	// accepts nothing; after the second signal it is hurryTime.
	logTimeout = time.Second
)

// Config configures a daemon.
type Config struct {
	// Settings are the operator's settings. Required.
	Settings config.Settings

	// Load reads the settings anew, for a reload. Nil when there is no file to
	// read.
	Load func() (config.Settings, error)

	// Sockets are the sockets that the service manager passed to the process;
	// the daemon owns them.
	Sockets []Socket

	// Version is the program's, for the log and the control socket.
	Version string

	// StatusText returns a status as the command status prints it, for the admin page.
	StatusText func(control.Status) string

	// Stdout and Stderr are the streams of the process. Required.
	Stdout, Stderr io.Writer

	// Signals request the end and reloads of the daemon. Required; the caller
	// releases them after Run.
	Signals *Signals

	// Started, if set, is called once everything is bound and nothing is left
	// of the start that could hang.
	Started func()

	// Bound, if set, is called once everything is bound and before anything
	// runs. An error ends Run.
	Bound func(Bound) error
}

// Bound holds the addresses that are bound.
type Bound struct {
	Relays []net.Addr
	HTTP   net.Addr // nil when there is none
	Admin  net.Addr // nil when there is none

	Control string // path of the control socket; empty when there is none
}

// Run binds every address, so that a busy one is an error before any script has
// run, then runs all parts until its end is requested or a part fails. When it
// returns, all of them have ended. The error names what could not be bound or
// opened, or is that of the part that failed.
func Run(p Config) error {
	journal, err := newLogger(p.Settings.Log, p.Stdout, p.Stderr)
	if err != nil {
		return err
	}
	log := journal.Logger()
	// The transports of net/http log errors of servers to the standard logger.
	stdlog.SetFlags(0)
	stdlog.SetOutput(log.StandardWriter(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}))
	p.Signals.logger.Store(&log)
	finish, hurry := p.Signals.finish, p.Signals.hurry
	defer func() {
		if hurry.Err() != nil {
			journal.Close(hurryTime)
		} else {
			journal.Close(logTimeout)
		}
	}()
	hideSecrets(p.Settings.SecretVariables(), log)
	for _, w := range p.Settings.Warnings {
		log.Warn("configuration", "reason", w)
	}

	s, err := newService(p, journal)
	if err != nil {
		return err
	}
	b, err := s.bind(p.Settings.Control)
	if err == nil {
		prepareProcess(mostLoops(p.Settings.Loops), log)
		log.Info("starting", "version", p.Version, "pid", os.Getpid(), "listen", b.String())
		if p.Bound != nil {
			err = p.Bound(b)
		}
	}
	if err == nil && finish.Err() == nil {
		if p.Started != nil {
			p.Started()
		}
		err = s.run(p.Signals)
		for _, c := range s.current() {
			c.logCounts(log)
		}
	}
	if hurry.Err() == nil { // otherwise the end of the process closes everything, now
		s.close()
	}
	return err
}

// hideSecrets removes the values of the variables called names from what other
// processes of the same user can read of this one.
func hideSecrets(names []string, log hclog.Logger) {
	err := clearEnviron(names)
	if shown := environShows(names); len(shown) > 0 {
		log.Warn("scripts of the same user can read secrets in /proc: use files instead of variables", "variables", strings.Join(shown, ","), "error", err)
	}
}

// String lists the addresses for the log.
func (b Bound) String() string {
	var all []string
	for _, a := range b.Relays {
		all = append(all, a.String())
	}
	if b.HTTP != nil {
		all = append(all, "http="+b.HTTP.String())
	}
	if b.Admin != nil {
		all = append(all, "admin="+b.Admin.String())
	}
	return strings.Join(all, " ")
}

// service holds everything that serves: the relays with their conductors, the
// probes, the verdicts, and what they share.
//
// Its parts run in two groups. When the end of the program is requested the
// relays drain, and the verdicts and the control socket continue until they
// have, so that load balancers in front see the verdicts change.
type service struct {
	settings config.Settings // the current ones; written by reload
	load     func() (config.Settings, error)
	version  string
	text     func(control.Status) string

	journal  *logs.Log
	log      hclog.Logger
	resolver *health.Resolver
	engine   *relay.Engine // of all relays
	checker  *health.Checker
	roles    *roles.Pool
	base     time.Time // of the phases of checks

	membership *membership // nil where there is no cluster
	phases     phases      // belongs to newService, and later guarded by changing
	runner     *hooks.Runner

	noticeRunner *hooks.Runner // a separate one, so that no check waits for a place
	webhook      webhook.Client
	verdicts     *verdict.Log
	connections  *connectionLog
	api          *control.Server // what the control socket and the admin listener answer
	control      *control.Server // the same; nil when there is no socket
	metrics      http.Handler

	relays   atomic.Pointer[[]*conducted]
	answers  atomic.Pointer[answers]
	started  chan struct{} // closed when the start is complete
	ready    atomic.Bool   // the service manager knows that
	draining atomic.Bool   // the program is ending

	leavingNow chan struct{} // closed when draining is set
	together   atomic.Int64  // connections of all relays
	reloaded   atomic.Pointer[control.Reload]
	findings   atomic.Pointer[correlate.Findings] // what the relays have in common
	differs    chan struct{}                      // holds an element when a comparison is requested
	bell       bell                               // rings at each change, for the admin page

	// The following belong to run and reload.
	changing      sync.Mutex      // held by a reload, and by run once everything ends
	ending        bool            // guarded by changing
	running       context.Context // ends when the end of the program is requested
	finish        context.Context // ends when the relays must accept nothing more
	last          context.Context // ends when they have drained
	stop          func()          // ends everything
	serving, rest group
	leaving       []*conducted // relays that drain because they are no longer configured; guarded by changing
}

// current returns the relays that are configured now.
func (s *service) current() []*conducted { return *s.relays.Load() }

// newService makes the parts and connects them. It opens nothing but the saved
// state.
func newService(p Config, journal *logs.Log) (*service, error) {
	log := journal.Logger()
	s := &service{
		settings: p.Settings,
		load:     p.Load,
		version:  p.Version,
		text:     p.StatusText,
		journal:  journal,
		log:      log,
		resolver: health.NewResolver(),
		engine:   relay.NewEngine(relay.EngineConfig{Loops: mostLoops(p.Settings.Loops), BusyPoll: p.Settings.Spin, Rest: true}),
		checker:  health.NewChecker(),
		roles:    roles.NewPool(log),
		base:     time.Now(),

		started:      make(chan struct{}),
		leavingNow:   make(chan struct{}),
		runner:       hooks.New(hooks.Config{Logger: log.Named("hooks"), Environ: ScriptEnviron(p.Settings), Without: append(p.Settings.SecretVariables(), managersVariables...)}),
		noticeRunner: hooks.New(hooks.Config{Logger: log.Named("hooks"), Environ: ScriptEnviron(p.Settings), Without: append(p.Settings.SecretVariables(), managersVariables...)}),
		differs:      make(chan struct{}, 1),
		verdicts:     verdict.NewLog(p.Stdout, p.Stderr, p.Settings.Log.JSON, log.Named("http")),
		connections:  newConnectionLog(log, journal.Crowded, p.Settings.Log.JSON || strings.HasPrefix(p.Settings.Log.Output, "gelf")),
	}
	s.verdicts.Record(recordedVerdicts(p.Settings.Log))
	var relays []*conducted
	s.relays.Store(&relays)
	s.findings.Store(&correlate.Findings{})
	var err error
	if s.membership, err = s.join(p.Settings.Cluster); err != nil {
		s.close()
		return nil, err
	}
	for _, r := range p.Settings.Relays {
		c, err := s.conduct(r, p.Settings, descriptorsOf(p.Sockets, r))
		if err != nil {
			s.close()
			return nil, err
		}
		relays = append(relays, c)
		s.relays.Store(&relays)
	}
	s.metrics = newMetrics(s)
	s.api = newControl(p.Settings.Control, s)
	a, err := s.answer(p.Settings, relays, nil)
	if err != nil {
		s.close()
		return nil, err
	}
	s.answers.Store(a)
	if p.Settings.Control != config.ControlOff {
		s.control = s.api
	}
	return s, nil
}

// close releases everything, for a service that has ended or never ran.
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
	s.noticeRunner.Close()
	s.checker.Close()
	s.roles.Close() // after the checks, which ask
	s.resolver.Close()
	s.membership.close()
}

// bind binds every address. If one fails, close releases those that were bound
// before. An address that this machine does not have yet is no failure as long
// as a relay has one that exists.
func (s *service) bind(controlAt string) (Bound, error) {
	var b Bound
	var missing []error
	for _, c := range s.current() {
		if err := c.bind(); err != nil {
			return b, err
		}
		b.Relays = append(b.Relays, c.relay.Addrs()...)
		for _, err := range c.relay.Missing() {
			missing = append(missing, fmt.Errorf("relay %s: %w", c.name, err))
		}
	}
	if len(b.Relays) == 0 && len(missing) > 0 {
		return b, errors.Join(missing...)
	}
	if m := s.membership; m != nil && m.server != nil {
		if err := m.Bind(); err != nil {
			return b, err
		}
	}
	a := s.answers.Load()
	if err := a.bind(nil, len(b.Relays) > 0); err != nil {
		return b, err
	}
	if a.http.server != nil {
		b.HTTP = a.http.server.Addr()
	}
	if a.admin.server != nil {
		b.Admin = a.admin.server.Addr()
	}
	err := s.bindControl(controlAt)
	if s.control != nil {
		b.Control = s.control.Path()
	}
	return b, err
}

// run runs all parts. When running ends the verdicts become negative, and after
// the lame-duck time the relays drain; when a part fails they do at once. The
// verdicts continue, so that load balancers in front see them change; then the
// rest ends. When hurry ends everything does, at once. With each hangup the
// configuration is reloaded. A hangup from a terminal that was closed requests
// the end when there is neither a configuration to reload nor a log file to
// reopen.
func (s *service) run(signals *Signals) error {
	running, hurry := signals.finish, signals.hurry
	finish, stopFinish := context.WithCancel(context.WithoutCancel(running))
	running, stopRunning := context.WithCancel(running)
	s.stop = func() { stopFinish(); stopRunning() }
	defer s.stop()
	last, stopLast := context.WithCancel(context.WithoutCancel(finish))
	defer stopLast()
	s.running, s.finish, s.last = running, finish, last

	for _, c := range s.current() {
		s.startRelay(c)
	}
	s.rest.start(last, s.stop, s.compare)
	if m := s.membership; m != nil && m.server != nil {
		s.rest.start(last, s.stop, keepServing(m, "cluster "+m.cfg.Listen, true, s.log))
	}
	if s.membership != nil {
		s.rest.start(last, s.stop, s.membership.watchStore)
	}
	s.answers.Load().start(s, nil)
	if s.control != nil {
		s.rest.start(last, s.stop, keepServing(s.control, "control", true, s.log))
	}
	s.rest.start(last, func() {}, s.awaitStart)
	if os.Getenv("NOTIFY_SOCKET") != "" {
		s.rest.start(last, s.stop, s.notify)
	}
	again := make(chan struct{}, 1)
	s.rest.start(running, func() {}, whenever(signals.hangups, func(context.Context) {
		if s.load == nil && !filepath.IsAbs(s.settings.Log.Output) && signals.lostTerminal() {
			s.log.Warn("terminal closed: ending (nohup prevents this)")
			signals.endAs(syscall.SIGHUP)
			return
		}
		s.reopen() // even while a reload waits for an election: logrotate(8) does not
		select {
		case again <- struct{}{}:
		default: // a reload is pending already
		}
	}))
	s.rest.start(running, func() {}, whenever(again, s.hangup))
	var logging group
	logLast, stopLog := context.WithCancel(context.WithoutCancel(finish))
	defer stopLog()
	logging.start(logLast, s.stop, s.verdicts.Run)
	logging.start(logLast, s.stop, s.connections.run)
	if err := hooks.Adopt(); err == nil || os.Getpid() == 1 {
		logging.start(logLast, s.stop, hooks.Reap)
	}

	ended := make(chan error, 1)
	go func() {
		<-running.Done()
		s.draining.Store(true)
		close(s.leavingNow)
		s.notifyManager(sd.SdNotifyStopping)
		s.changing.Lock() // a reload stops when running ends
		s.ending = true
		lameDuck := s.settings.LameDuck
		s.changing.Unlock()
		s.beLame(finish, lameDuck)
		stopFinish()
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
	s.stop()
	s.cut()
	hooks.KillAll(hurryTime)
	stopLast()
	stopLog()
	select {
	case err := <-ended:
		return err
	case <-time.After(hurryTime):
		return nil // an immediate end was requested: the rest ends with the process
	}
}

// beLame accepts clients for some more time, while the negative verdicts direct
// new ones elsewhere. It returns earlier when finish ends.
func (s *service) beLame(finish context.Context, d time.Duration) {
	if d == 0 || finish.Err() != nil {
		return
	}
	s.log.Info("lame duck: verdicts are bad, clients are still accepted", "lame-duck", d)
	select {
	case <-time.After(d):
	case <-finish.Done():
	}
}

// whenever returns a part that calls do for each value in events.
func whenever[T any](events <-chan T, do func(context.Context)) func(context.Context) error {
	return func(ctx context.Context) error {
		for {
			select {
			case <-events:
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
