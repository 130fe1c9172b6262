package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/config"
	"understudy/control"
	"understudy/failover"
	"understudy/health"
	"understudy/relay"
)

// conducted is a relay and what decides over it.
type conducted struct {
	name      string
	settings  config.Relay // that hold now; of newService, and later guarded by changing
	relay     *relay.Relay
	conductor *failover.Conductor
	keeper    *failover.Keeper // nil when nothing is remembered
	decided   chan struct{}    // closed when the conductor has ended and the keeper is closed
	part      *part            // nil until it runs
}

// conduct makes one relay and the conductor that decides over it. Each needs
// the other: the relay reports connects that failed, the conductor opens and
// shuts the relay. The relay reports nothing before it is opened.
func (s *service) conduct(cfg config.Relay, all config.Settings, sockets []int) (*conducted, error) {
	c := &conducted{name: cfg.Name, settings: cfg, decided: make(chan struct{})}
	if len(sockets) < len(cfg.Sockets) {
		return nil, errors.New("the socket that was passed for it is in the hands of the relay that it replaces: this takes a restart")
	}
	rc := s.relayConfig(cfg, all.HTTP)
	rc.Sockets = sockets
	rc.Suspect = func(epoch uint64, err error) { c.conductor.Suspect(epoch, err) }
	rc.FirstByte = func(epoch uint64) { c.conductor.FirstByte(epoch) }
	var err error
	c.relay, err = relay.New(rc)
	if err != nil {
		return nil, err
	}
	rules, err := rulesOf(cfg, s.resolver.Resolve)
	if err != nil {
		c.close()
		return nil, err
	}
	if dir := all.StateDir; dir != "" {
		c.keeper, err = failover.OpenKeeper(dir, cfg.Name, s.log.Named("state"))
		if err != nil {
			// Clients are served without a memory as well.
			s.log.Error("nothing is remembered across restarts", "relay", cfg.Name, "error", err)
		}
	}
	rules.Gate, rules.Scripts, rules.Stats = c.relay, s.runner, c.relay.Stats
	rules.Keeper, rules.Logger = c.keeper, s.log
	c.conductor, err = failover.New(rules)
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// run runs the relay and its conductor until ctx ends, and the relay has
// drained.
func (c *conducted) run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var both group
	both.start(ctx, stop, c.relay.Run)
	both.start(ctx, stop, func(ctx context.Context) error {
		defer close(c.decided)
		// While connections finish here, a new relay of this name may need it.
		defer c.keeper.Close()
		return c.conductor.Run(ctx)
	})
	return both.wait()
}

// startRelay runs a relay until it is not configured any more or the program
// ends.
func (s *service) startRelay(c *conducted) {
	c.part = s.serving.start(s.finish, s.stop, c.run)
}

// bind claims the addresses.
func (c *conducted) bind() error {
	if err := c.relay.Bind(); err != nil {
		return fmt.Errorf("relay %s: %w", c.name, err)
	}
	return nil
}

// close gives up what it holds, once it does not run any more or if it never
// did.
func (c *conducted) close() {
	c.relay.Close()
	c.keeper.Close()
}

// logCounts says what became of every client.
func (c *conducted) logCounts(log hclog.Logger) {
	n := c.relay.Stats()
	log.Info("ended", "relay", c.name, "accepted", n.Accepted, "live", n.Live, "finished", n.Finished,
		"reset", n.Reset, "fenced", n.Fenced, "expired", n.Expired, "gone", n.Gone,
		"denied", n.Denied, "sent", n.Sent, "received", n.Received)
}

// relayConfig turns the settings of a relay into those of its engine, but for
// what joins it to its conductor.
func (s *service) relayConfig(cfg config.Relay, http config.HTTP) relay.Config {
	return relay.Config{
		Name:           cfg.Name,
		Listen:         cfg.Listen,
		Resolve:        s.resolver.Resolve,
		Hold:           orNever(cfg.Hold),
		ConnectTimeout: cfg.ConnectTimeout,
		IdleTimeout:    cfg.IdleTimeout,
		UserTimeout:    orNever(cfg.UserTimeout),
		DrainTimeout:   orNever(cfg.DrainTimeout),
		MaxConnections: cfg.MaxConnections,
		Reserve:        verdictDescriptors(http),
		SendProxy:      relay.ProxyVersion(cfg.SendProxy),
		AcceptProxy:    cfg.AcceptProxy,
		Allow:          cfg.Allow,
		Source:         cfg.Source,
		Loops:          cfg.Loops,
		Spin:           cfg.Spin,
		Together:       &s.together,
		Logger:         s.log,
	}
}

// verdictDescriptors is how many descriptors the verdict listener can use: for
// its clients, and for those that a request is replayed to.
func verdictDescriptors(cfg config.HTTP) int {
	if cfg.Listen == "" {
		return 0
	}
	replayed := 0
	for _, r := range cfg.Routes {
		switch {
		case r.Verdict != nil:
			replayed += 16 * len(r.Verdict.Ports)
		case r.Endpoints != nil:
			replayed += health.MaxConnections
		}
	}
	return health.MaxConnections + replayed
}

// rulesOf turns the settings of a relay into those of its conductor, as far as
// they need no running part.
func rulesOf(cfg config.Relay, resolve health.ResolveFunc) (failover.Config, error) {
	checks, err := checksOf(cfg, resolve)
	return failover.Config{
		Name:         cfg.Name,
		Hosts:        cfg.Hosts,
		Checks:       checks,
		Triggers:     failover.Triggers{Path: cfg.OnFailover, Timeout: cfg.TriggerTimeout, Abort: cfg.TriggerAbort},
		Fence:        failover.Fence{Keep: cfg.Fence.Keep, Drain: cfg.Fence.Drain},
		Rise:         cfg.Rise,
		Fall:         cfg.Fall,
		FastInterval: min(cfg.FastInterval, cfg.Interval), // a suspicion never slows the checks down
		Hold:         orNever(cfg.Hold),
		MaxBackoff:   cfg.MaxBackoff,
		Failback:     cfg.Failback,
	}, err
}

// checksOf lists the questions that every host of a relay is asked: does it
// accept connections, do its HTTP ports say pong, does the script agree, and
// what else the file has.
func checksOf(cfg config.Relay, resolve health.ResolveFunc) ([]failover.Check, error) {
	checks := []failover.Check{
		{Name: "tcp", Run: health.TCP(resolve), Interval: cfg.Interval, Timeout: cfg.Timeout},
	}
	for _, port := range cfg.PongPorts {
		pong, err := health.HTTP(health.HTTPConfig{
			Port:    port,
			Path:    cfg.PongPath,
			Expect:  health.Expect{Status: []string{"200"}, Body: "pong"},
			Resolve: resolve,
		})
		if err != nil {
			return nil, fmt.Errorf("pong check: %w", err)
		}
		checks = append(checks, failover.Check{
			Name: "http:" + strconv.Itoa(port), Spec: cfg.PongPath, Run: pong, Interval: cfg.Interval, Timeout: cfg.Timeout,
		})
	}
	if cfg.CheckHost != "" {
		checks = append(checks, failover.Check{
			Name: "check-host", Script: cfg.CheckHost, Interval: cfg.CheckInterval, Timeout: cfg.CheckTimeout,
		})
	}
	for _, ask := range cfg.Checks {
		check := failover.Check{Name: nameOf(ask), Spec: specOf(ask), Interval: ask.Interval, Timeout: ask.Timeout}
		if ask.Exec != nil {
			check.Script, check.Args = ask.Exec.Command[0], ask.Exec.Command[1:]
		} else {
			var err error
			if check.Run, err = question(ask, resolve); err != nil {
				return nil, fmt.Errorf("check %s of relay %s: %w", check.Name, cfg.Name, err)
			}
		}
		// Records tell them apart by their names.
		for n, name := 2, check.Name; slices.ContainsFunc(checks, func(c failover.Check) bool { return c.Name == check.Name }); n++ {
			check.Name = name + "#" + strconv.Itoa(n)
		}
		checks = append(checks, check)
	}
	return checks, nil
}

// newControl makes the control socket of a service; at is the setting.
func newControl(at string, s *service) *control.Server {
	return control.NewServer(control.Config{
		Path: controlPath(at), Version: versionText(), Logger: s.log,
		Relays: func() (all []control.Relay) {
			for _, c := range s.current() {
				all = append(all, control.Relay{Conductor: c.conductor, Relay: c.relay})
			}
			return all
		},
		Probes: func() []control.Probe { return s.answers.Load().probesNow() },
		Reload: func(ctx context.Context, by string) (control.Changes, error) {
			s.reopen() // as HUP does
			return s.reload(ctx, by)
		},
		LastReload: s.reloaded.Load,
	})
}

// controlPath is the control socket that the setting means.
func controlPath(setting string) string {
	if setting == config.ControlAuto {
		return control.DefaultPath()
	}
	return setting
}

// bindControl claims the control socket. Without one that nobody chose, or that
// another process serves already, the program goes on: clients come first.
func (s *service) bindControl(at string) error {
	if s.control == nil {
		return nil
	}
	err := s.control.Bind()
	if err == nil {
		return nil
	}
	if at != config.ControlAuto && !errors.Is(err, control.ErrTaken) {
		return err
	}
	s.log.Warn("no control socket: status, switch and the like will not work for this process; --control chooses another path", "error", err)
	s.control = nil
	return nil
}

// orNever is d, or negative for zero: in the settings zero says "not at all",
// in a relay's configuration it says "the default".
func orNever(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}
