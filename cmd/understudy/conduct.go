package main

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"understudy/config"
	"understudy/control"
	"understudy/failover"
	"understudy/health"
	"understudy/relay"
)

// conduct makes one relay and the conductor that decides over it. Each needs
// the other: the relay reports connects that failed, the conductor opens and
// shuts the relay. The relay reports nothing before it is opened.
func (s *service) conduct(name string, cfg config.Relay, p process) (c conducted, err error) {
	c.name = name
	c.relay, err = relay.New(relay.Config{
		Name:           name,
		Listen:         cfg.Listen,
		Sockets:        p.sockets,
		Resolve:        s.resolver.Resolve,
		Suspect:        func(epoch uint64, err error) { c.conductor.Suspect(epoch, err) },
		FirstByte:      func(epoch uint64) { c.conductor.FirstByte(epoch) },
		Hold:           orNever(cfg.Hold),
		ConnectTimeout: cfg.ConnectTimeout,
		IdleTimeout:    cfg.IdleTimeout,
		UserTimeout:    orNever(cfg.UserTimeout),
		DrainTimeout:   orNever(cfg.DrainTimeout),
		MaxConnections: cfg.MaxConnections,
		Reserve:        verdictDescriptors(p.settings.HTTP),
		SendProxy:      relay.ProxyVersion(cfg.SendProxy),
		AcceptProxy:    cfg.AcceptProxy,
		Allow:          cfg.Allow,
		Source:         cfg.Source,
		Loops:          cfg.Loops,
		Spin:           cfg.Spin,
		Logger:         s.log,
	})
	if err != nil {
		return c, err
	}
	rules, err := rulesOf(name, cfg, s.resolver.Resolve)
	if err != nil {
		return c, err
	}
	if dir := p.settings.StateDir; dir != "" {
		c.keeper, err = failover.OpenKeeper(dir, name, s.log.Named("state"))
		if err != nil {
			// Clients are served without a memory as well.
			s.log.Error("nothing is remembered across restarts", "relay", name, "error", err)
		}
	}
	rules.Gate, rules.Scripts, rules.Stats = c.relay, s.runner, c.relay.Stats
	rules.Keeper, rules.Logger = c.keeper, s.log
	c.conductor, err = failover.New(rules)
	return c, err
}

// verdictDescriptors is how many descriptors the verdict listener can use: for
// its clients, and for the ports that a ping is replayed to.
func verdictDescriptors(cfg config.HTTP) int {
	if cfg.Listen == "" {
		return 0
	}
	return health.MaxConnections + 16*len(cfg.LPorts)
}

// rulesOf turns the settings of a relay into those of its conductor, as far as
// they need no running part.
func rulesOf(name string, cfg config.Relay, resolve health.ResolveFunc) (failover.Config, error) {
	checks, err := checksOf(cfg, resolve)
	return failover.Config{
		Name:         name,
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
// accept connections, do its HTTP ports say pong, does the script agree.
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
			Name: "http:" + strconv.Itoa(port), Run: pong, Interval: cfg.Interval, Timeout: cfg.Timeout,
		})
	}
	if cfg.CheckHost != "" {
		checks = append(checks, failover.Check{
			Name: "check-host", Script: cfg.CheckHost, Interval: cfg.CheckInterval, Timeout: cfg.CheckTimeout,
		})
	}
	return checks, nil
}

// newControl makes the control socket of a service; at is the setting.
func newControl(at string, s *service) *control.Server {
	cfg := control.Config{Path: controlPath(at), Version: versionText(), Logger: s.log}
	for _, c := range s.relays {
		cfg.Relays = append(cfg.Relays, control.Relay{Conductor: c.conductor, Relay: c.relay})
	}
	return control.NewServer(cfg)
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

// withoutPrimary names the relays that have no primary now. It takes no lock.
func (s *service) withoutPrimary() []string {
	var names []string
	for _, c := range s.relays {
		if c.conductor.Snapshot().Primary == "" {
			names = append(names, c.name)
		}
	}
	return names
}

// orNever is d, or negative for zero: in the settings zero says "not at all",
// in a relay's configuration it says "the default".
func orNever(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}
