package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/hashicorp/go-hclog"

	"understudy/admin"
	"understudy/cluster"
	"understudy/config"
	"understudy/control"
	"understudy/correlate"
	"understudy/failover"
	"understudy/health"
	"understudy/internal/bind"
	"understudy/internal/criteria"
	"understudy/internal/opening"
	"understudy/relay"
	"understudy/roles"
	"understudy/verdict"
)

// conducted is a relay with its conductor.
type conducted struct {
	name      string
	settings  config.Relay // the current ones; belongs to newService, and later guarded by changing
	relay     *relay.Relay
	conductor *failover.Conductor
	stateFile *failover.StateFile // nil when no state is kept
	doubts    health.Doubts       // hosts that reset clients
	decided   chan struct{}       // closed when the conductor has ended and the state file is closed
	part      *part               // nil until it runs
	lease     cluster.Lease       // with a cluster: until when the relay may move bytes
}

// conduct makes one relay and its conductor. Each needs the other: the relay
// reports connects that failed, the conductor opens and shuts the relay. The
// relay reports nothing before it is opened.
func (s *service) conduct(cfg config.Relay, all config.Settings, sockets []int) (*conducted, error) {
	c := &conducted{name: cfg.Name, settings: cfg, decided: make(chan struct{})}
	if len(sockets) < len(cfg.Sockets) {
		return nil, errors.New("the socket that was passed for it is used by the relay that it replaces: this needs a restart")
	}
	rc := s.relayConfig(c, cfg, all)
	rc.Sockets = sockets
	if s.membership != nil {
		rc.Lease = &c.lease
	}
	rc.Suspect = func(epoch uint64, err error) {
		if now := c.conductor.Snapshot(); now.Epoch == epoch && now.Primary != "" && relay.EndedEarly(err) {
			c.doubts.Add(now.Primary)
		}
		c.conductor.Suspect(epoch, err)
	}
	rc.HostEnded = func(epoch uint64) { c.conductor.HostEnded(epoch) }
	rc.FirstByte = func(epoch uint64) { c.conductor.FirstByte(epoch) }
	rc.Paced = func(p relay.Pacing) { c.conductor.Paced(p) }
	var err error
	c.relay, err = relay.New(rc)
	if err != nil {
		return nil, err
	}
	conductorConfig, err := FailoverConfig(cfg, s.resolver.Resolve, &c.doubts, s.roles)
	conductorConfig.Phases, conductorConfig.Cluster = s.phases.of(cfg.Hosts), s.clusterOf(c, cfg)
	if err != nil {
		c.close()
		return nil, err
	}
	if dir := all.StateDir; dir != "" {
		if cfg.Unnamed {
			s.takeOver(dir, cfg)
		}
		c.stateFile, err = failover.OpenStateFile(dir, cfg.Name, s.log.Named("state"))
		if err != nil {
			// Clients are served without saved state as well.
			s.log.Error("state is not kept across restarts", "relay", cfg.Name, "error", err)
		}
	}
	conductorConfig.Gate, conductorConfig.Scripts, conductorConfig.Stats = c.relay, s.runner, c.relay.Stats
	conductorConfig.NoticeScripts, conductorConfig.Deliver = s.noticeRunner, s.webhook.Deliver
	conductorConfig.Silence, conductorConfig.Checker, conductorConfig.Base = c.relay.Silence, s.checker, s.base
	conductorConfig.Hang, conductorConfig.Usual = c.relay.Hang, c.relay.Usual
	conductorConfig.DialCanary = func(ctx context.Context) (failover.CanaryConn, error) {
		conn, err := c.relay.DialCanary(ctx)
		if err != nil {
			return nil, err // and not a conn that is nil
		}
		return conn, nil
	}
	conductorConfig.TryCanary = c.relay.TryCanary
	conductorConfig.Names, conductorConfig.StateFile, conductorConfig.Changed, conductorConfig.Logger = s.resolver, c.stateFile, s.changed, s.log
	c.conductor, err = failover.New(conductorConfig)
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// takeOver takes over the state that an earlier version saved for a relay
// without a name.
func (s *service) takeOver(dir string, cfg config.Relay) {
	log := s.log.Named("state")
	switch took, err := failover.TakeOver(dir, config.MainRelay, cfg.Name, cfg.Hosts); {
	case err != nil:
		log.Warn("state of an earlier version not imported", "relay", cfg.Name, "file", filepath.Join(dir, config.MainRelay+".json"), "error", err)
	case took:
		log.Info("state of an earlier version imported", "relay", cfg.Name)
	}
}

// run runs the relay and its conductor until ctx has ended and the relay has
// drained.
func (c *conducted) run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var engine group
	engine.start(ctx, stop, c.relay.Run)
	err := c.conductor.Run(ctx)
	// A new relay of this name may need it while connections finish here.
	c.stateFile.Close()
	close(c.decided)
	if err != nil || ctx.Err() == nil {
		stop()
	}
	return errors.Join(err, engine.wait())
}

// startRelay runs a relay until it is no longer configured or the program ends.
func (s *service) startRelay(c *conducted) {
	c.part = s.serving.start(s.finish, s.stop, c.run)
}

// bind binds the addresses.
func (c *conducted) bind() error {
	if err := c.relay.Bind(); err != nil {
		return fmt.Errorf("relay %s: %w", c.name, err)
	}
	return nil
}

// close releases what it holds, once it has ended or if it never ran.
func (c *conducted) close() {
	c.relay.Close()
	c.stateFile.Close()
}

// logCounts logs the number of clients by outcome.
func (c *conducted) logCounts(log hclog.Logger) {
	n := c.relay.Stats()
	log.Info("ended", "relay", c.name, "accepted", n.Accepted, "live", n.Live, "finished", n.Finished,
		"reset", n.Reset, "fenced", n.Fenced, "expired", n.Expired, "aborted", n.Aborted,
		"denied", n.Denied, "replayed", n.Replayed, "unanswered", n.Unanswered, "sent", n.Sent, "received", n.Received)
}

// relayConfig converts the settings of the relay c to those of its engine, without
// the connections to its conductor.
func (s *service) relayConfig(c *conducted, cfg config.Relay, all config.Settings) relay.Config {
	rc := relay.Config{
		Name:           cfg.Name,
		Listen:         cfg.Listen,
		Freebind:       cfg.Freebind,
		SocketFile:     bind.File{Mode: cfg.SocketMode, Owner: cfg.SocketOwner, Group: cfg.SocketGroup},
		Hold:           cfg.Hold,
		OpenRate:       relay.OpenRate(cfg.OpenRate), // config.OpenAuto is relay.OpenAuto
		ConnectTimeout: cfg.ConnectTimeout,
		IdleTimeout:    cfg.IdleTimeout,
		UserTimeout:    cfg.UserTimeout,
		DrainTimeout:   cfg.DrainTimeout,
		MaxConnections: cfg.MaxConnections,
		Reserve:        Descriptors(all),
		SendProxy:      relay.ProxyVersion(cfg.SendProxy),
		AcceptProxy:    cfg.AcceptProxy,
		Allow:          cfg.Allow,
		Source:         cfg.Source,
		Replay:         replay(cfg.Replay),
		Engine:         s.engine,
		Together:       &s.together,
		Logger:         s.log,
	}
	if len(all.Cluster.Endpoints) > 0 {
		rc.LeaseTime = all.Cluster.Lease
	}
	if cfg.ConnectionLog {
		rc.Ended = s.connections.of(c.name, func(address string) string { return cmp.Or(c.conductor.HostAt(address), address) })
	}
	return rc
}

// onHang is by the value of the setting on-silence.
var onHang = map[string]failover.OnHang{
	"auto": failover.HangFailsReplayable, "fail": failover.HangFails, "alarm": failover.HangWarns,
}

// replay decides which openings of clients may be sent again to another host.
func replay(which string) func(opening []byte) bool {
	switch which {
	case "auto":
		return func(b []byte) bool {
			_, ok := opening.Replayable(b)
			return ok
		}
	case "always":
		return func([]byte) bool { return true }
	}
	return nil
}

// spareDescriptors is the part of the 64 descriptors never used for
// connections that is left to the listeners and checks of relays.
const spareDescriptors = 32

// Descriptors returns how many descriptors are used for anything but the connections of
// relays, beyond 64: by the admin listener, by the verdict listener, for its clients and
// for the services to which a request is replayed, and by listeners and checks of more than a few relays. A
// check can be in progress several times while its host hangs.
func Descriptors(all config.Settings) int {
	n := -spareDescriptors
	for _, r := range all.Relays {
		checks := 1 + len(r.PongPorts) + len(r.Checks)
		if r.Role.Protocol != "" {
			n += 2 * len(r.Hosts) // a session, and the one that replaces it
		}
		if r.Canary.Every > 0 {
			n += 3 // both ends of its connection, and that to the host
		}
		n += len(r.Listen) + r.Fall*len(r.Hosts)*checks
	}
	n = max(n, 0)
	if members := len(all.Cluster.Endpoints); members > 0 {
		n += members + 8*len(all.Cluster.Members)
	}
	if all.Cluster.Listen != "" {
		n += peerConnections
	}
	if all.Admin.Listen != "" {
		n += admin.MaxConnections
	}
	if all.HTTP.Listen == "" {
		return n
	}
	n += verdict.MaxConnections
	for _, r := range all.HTTP.Routes {
		switch {
		case r.Verdict != nil:
			n += 16 * len(r.Verdict.Ports)
		case r.Endpoints != nil:
			n += verdict.MaxConnections
		}
	}
	return n
}

// FailoverConfig converts the settings of a relay to those of its conductor, as far as
// they need no running part. Without a running relay doubts is nil, and without a pool
// hosts cannot be asked for their role.
func FailoverConfig(cfg config.Relay, resolve health.ResolveFunc, doubts *health.Doubts, pool *roles.Pool) (failover.Config, error) {
	checks, err := checksOf(cfg, resolve, doubts, pool)
	canary, err2 := canaryOf(cfg)
	return failover.Config{
		Name:         cfg.Name,
		Hosts:        cfg.Hosts,
		Checks:       checks,
		Triggers:     failover.Triggers{Path: cfg.OnFailover, Timeout: cfg.TriggerTimeout, Abort: cfg.TriggerAbort},
		Rejoin:       failover.Rejoin{Path: cfg.OnStandby, Timeout: cfg.StandbyTimeout},
		Notices:      failover.Notices{Path: cfg.OnEvent, Webhook: cfg.Webhook.Value()},
		Fence:        relay.FencePolicy(cfg.Fence),
		Rise:         cfg.Rise,
		Fall:         cfg.Fall,
		FastInterval: min(cfg.FastInterval, cfg.Interval), // a suspicion must not slow the checks down
		Hold:         cfg.Hold,
		OpenRate:     relay.OpenRate(cfg.OpenRate),
		MaxBackoff:   cfg.MaxBackoff,
		Stay:         cfg.Stay,
		Freshest:     cfg.Elect == "freshest",
		Failback:     cfg.Failback,
		OnHang:       onHang[cfg.OnSilence],
		DNSHold:      cfg.DNSHold,
		Canary:       canary,
	}, errors.Join(err, err2)
}

// canaryOf returns the canary of a relay, which speaks as a TCP check does.
func canaryOf(cfg config.Relay) (failover.Canary, error) {
	k := failover.Canary{Every: cfg.Canary.Every, Slow: cfg.Canary.Slow, Timeout: cfg.Timeout}
	if cfg.Canary.Send+cfg.Canary.Expect+cfg.Canary.Handshake == "" {
		return k, nil
	}
	talk, err := health.NewTCPCheck(health.TCPConfig{
		Send: []byte(cfg.Canary.Send), Expect: []byte(cfg.Canary.Expect), Handshake: cfg.Canary.Handshake, Complete: true,
	})
	if err != nil {
		return k, fmt.Errorf("canary: %w", err)
	}
	k.Talk = func(_ context.Context, conn net.Conn) error { return talk.Talk(conn) }
	return k, nil
}

// checksOf returns the checks of every host of a relay: the connect, the role, the pongs
// of its HTTP ports, the script, and those in the file. The first one connects to the
// host.
func checksOf(cfg config.Relay, resolve health.ResolveFunc, doubts *health.Doubts, pool *roles.Pool) ([]failover.Check, error) {
	via := connects{resolve: resolve, source: cfg.Source, sendProxy: cfg.SendProxy}
	if cfg.Role.Protocol != "" {
		doubts = nil // a session shows what a connection that is closed at once would
	}
	var checks []failover.Check
	if cfg.CheckTCP != "off" {
		tcp, err := tcpCheck(cfg, via, doubts)
		if err != nil {
			return nil, err
		}
		checks = append(checks, tcp)
	}
	if cfg.Role.Protocol != "" {
		check, err := newRoleCheck(cfg, via, pool)
		if err != nil {
			return nil, err
		}
		checks = append(checks, check)
	}
	for _, port := range cfg.PongPorts {
		pong, err := health.HTTP(health.HTTPConfig{
			Port:    port,
			Path:    cfg.PongPath,
			Method:  http.MethodGet,
			Expect:  criteria.Expect{Status: []string{"200"}, Body: "pong"},
			Resolve: resolve, Source: cfg.Source, SendProxy: cfg.SendProxy,
		})
		if err != nil {
			return nil, fmt.Errorf("pong check: %w", err)
		}
		checks = append(checks, failover.Check{
			Name: "http:" + strconv.Itoa(port), Spec: cfg.PongPath + via.spec(), Run: pong, Answers: true, Interval: cfg.Interval, Timeout: cfg.Timeout,
		})
	}
	led := len(checks) > 0
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
			check.Spec += via.spec()
			check.Answers = ask.HTTP != nil || ask.TCP != nil && (ask.TCP.Expect != "" || ask.TCP.Handshake != "")
			if check.Run, err = newCheck(ask, via); err != nil {
				return nil, fmt.Errorf("check %s of relay %s: %w", check.Name, cfg.Name, err)
			}
		}
		// Records distinguish checks by their names.
		for n, name := 2, check.Name; slices.ContainsFunc(checks, func(c failover.Check) bool { return c.Name == check.Name }); n++ {
			check.Name = name + "#" + strconv.Itoa(n)
		}
		if !led && (ask.HTTP != nil || ask.TCP != nil) {
			checks, led = slices.Insert(checks, 0, check), true
		} else {
			checks = append(checks, check)
		}
	}
	return checks, nil
}

// tcpCheck returns the check of --check-tcp, which is not off.
func tcpCheck(cfg config.Relay, via connects, doubts *health.Doubts) (failover.Check, error) {
	tcp := health.TCPConfig{Resolve: via.resolve, Source: via.source, SendProxy: via.sendProxy, Doubts: doubts}
	check := failover.Check{Name: "tcp", Spec: via.spec(), Interval: cfg.Interval, Timeout: cfg.Timeout}
	switch cfg.CheckTCP {
	case "auto":
	case "on":
		tcp.Complete = true
		check.Spec += " complete"
	default:
		tcp.Handshake, check.Name, check.Answers = cfg.CheckTCP, cfg.CheckTCP, true
	}
	run, err := health.NewTCPCheck(tcp)
	if err != nil {
		return failover.Check{}, err
	}
	check.Run, check.Connect = run.Check, run
	return check, nil
}

// newControl makes the control socket of a service; at is the setting.
func newControl(at string, s *service) *control.Server {
	return control.NewServer(control.Config{
		Path: controlPath(at), Version: s.version, Logger: s.log,
		Relays: s.controlled,
		Probes: func() []control.Probe { return s.answers.Load().probesNow() },

		Verdicts: func() []control.Verdict { return s.answers.Load().verdictsNow() },
		Reload: func(ctx context.Context, by string) (control.Changes, error) {
			s.reopen() // as HUP does
			return s.reload(ctx, by)
		},
		LastReload: s.reloaded.Load,
		Metrics:    s.metrics,
		Unlogged:   s.connections.dropped.Load,
		Findings:   func() correlate.Findings { return *s.findings.Load() },
	})
}

// controlled returns the relays that are configured now.
func (s *service) controlled() (all []control.Relay) {
	for _, c := range s.current() {
		all = append(all, control.Relay{Conductor: c.conductor, Relay: c.relay})
	}
	return all
}

// controlPath returns the path that the setting chooses; empty when it chooses
// none.
func controlPath(setting string) string {
	if setting == config.ControlAuto {
		return ""
	}
	return setting
}

// bindControl binds the control socket. If a default socket cannot be bound, or
// another process serves it already, the program continues without: clients
// come first.
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
