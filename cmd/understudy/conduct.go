package main

import (
	"fmt"
	"strconv"
	"time"

	"understudy/config"
	"understudy/failover"
	"understudy/health"
	"understudy/relay"
)

// conduct makes one relay and the conductor that decides over it. Each needs
// the other: the relay reports connects that failed, the conductor opens and
// shuts the relay. The relay reports nothing before it is opened.
func (s *service) conduct(name string, cfg config.Relay, sockets []int) (conducted, error) {
	c := conducted{name: name}
	var err error
	c.relay, err = relay.New(relay.Config{
		Name:           name,
		Listen:         cfg.Listen,
		Sockets:        sockets,
		Resolve:        s.resolver.Resolve,
		Suspect:        func(epoch uint64, err error) { c.conductor.Suspect(epoch, err) },
		Hold:           orNever(cfg.Hold),
		ConnectTimeout: cfg.ConnectTimeout,
		IdleTimeout:    cfg.IdleTimeout,
		UserTimeout:    orNever(cfg.UserTimeout),
		DrainTimeout:   orNever(cfg.DrainTimeout),
		MaxConnections: cfg.MaxConnections,
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
	checks, err := s.checks(cfg)
	if err != nil {
		return c, err
	}
	c.conductor, err = failover.New(failover.Config{
		Name:         name,
		Hosts:        cfg.Hosts,
		Gate:         c.relay,
		Checks:       checks,
		Triggers:     failover.Triggers{Path: cfg.OnFailover, Timeout: cfg.TriggerTimeout, Abort: cfg.TriggerAbort},
		Fence:        failover.Fence{Keep: cfg.Fence.Keep, Drain: cfg.Fence.Drain},
		Scripts:      s.runner,
		Rise:         cfg.Rise,
		Fall:         cfg.Fall,
		FastInterval: min(cfg.FastInterval, cfg.Interval), // a suspicion never slows the checks down
		Hold:         orNever(cfg.Hold),
		MaxBackoff:   cfg.MaxBackoff,
		Failback:     cfg.Failback,
		Logger:       s.log,
	})
	return c, err
}

// checks lists the questions that every host of a relay is asked: does it
// accept connections, do its HTTP ports say pong, does the script agree.
func (s *service) checks(cfg config.Relay) ([]failover.Check, error) {
	checks := []failover.Check{
		{Name: "tcp", Run: health.TCP(s.resolver.Resolve), Interval: cfg.Interval, Timeout: cfg.Timeout},
	}
	for _, port := range cfg.PongPorts {
		pong, err := health.HTTP(health.HTTPConfig{
			Port:    port,
			Path:    cfg.PongPath,
			Expect:  health.Expect{Status: []string{"200"}, Body: "pong"},
			Resolve: s.resolver.Resolve,
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
