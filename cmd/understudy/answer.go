package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"time"

	"understudy/config"
	"understudy/control"
	"understudy/health"
)

// releaseTime is how long a reload waits at most for an address that nobody
// configures any more to be given up.
const releaseTime = 2 * time.Second

// answers is everything that answers for this machine: the probes, the HTTP
// listener with its routes, and the ports that tell a verdict in other words.
// A reload makes new ones that keep what has not changed.
type answers struct {
	settings config.HTTP
	probes   []*probing
	routes   map[string]http.Handler
	tls      *tls.Config

	server     *health.Server // nil when there is none
	serverPart *part
	dialects   map[dialectKey]*dialect
	judges     map[dialectKey]*health.Ping // whose verdict each of dialects tells
	endpoints  []*health.Endpoints
	dead       []*deadFiles
}

// deadFiles keeps the files of one heartbeat.
type deadFiles struct {
	keeper *health.DeadFiles
	part   *part
}

// probing is a probe and its settings.
type probing struct {
	settings config.Probe
	prober   *health.Prober
	part     *part
}

// dialectKey tells ports that tell a verdict apart. Whose verdict it is may
// change while clients go on asking there.
type dialectKey struct {
	kind, listen string
}

// dialect is a port that tells the verdict of a route in other words than
// HTTP's: an agent or a lamp.
type dialect struct {
	server interface {
		Bind() error
		Run(ctx context.Context) error
		Close() error
	}
	part *part // nil until it runs
}

// answer makes what the settings want, for relays, from what old has where that
// is the same. Nothing is opened, and nothing of old changes.
func (s *service) answer(all config.Settings, relays []*conducted, old *answers) (*answers, error) {
	if old == nil {
		old = &answers{}
	}
	a := &answers{
		settings: all.HTTP, routes: map[string]http.Handler{},
		dialects: map[dialectKey]*dialect{}, judges: map[dialectKey]*health.Ping{},
	}
	for _, cfg := range all.Probes {
		p, err := s.probe(cfg, old.probe(cfg.Name))
		if err != nil {
			return nil, err
		}
		a.probes = append(a.probes, p)
	}
	for _, r := range all.HTTP.Routes {
		if err := s.route(a, r, relays, old); err != nil {
			return nil, fmt.Errorf("route %s: %w", r.Path, err)
		}
	}
	var err error
	if a.tls, err = serverTLS(all.HTTP); err != nil {
		return nil, err
	}
	if all.HTTP.Listen == "" {
		return a, nil
	}
	// One that stays will get the routes and the certificate: this looks at both.
	a.server, err = health.NewServer(health.ServerConfig{Listen: all.HTTP.Listen, Routes: a.routes, TLS: a.tls, Logger: s.log})
	if err != nil {
		return nil, err
	}
	if old.server != nil && old.settings.Listen == all.HTTP.Listen {
		a.server, a.serverPart = old.server, old.serverPart
	}
	return a, nil
}

// probe makes a probe, or takes the old one if it asks the same.
func (s *service) probe(cfg config.Probe, old *probing) (*probing, error) {
	if old != nil && reflect.DeepEqual(old.settings, cfg) {
		return old, nil
	}
	check, err := s.ofProbe(cfg)
	if err != nil {
		return nil, fmt.Errorf("probe %s: %w", cfg.Name, err)
	}
	p := &probing{settings: cfg}
	var before *health.Prober
	if old != nil && specOf(old.settings.Ask) == specOf(cfg.Ask) {
		before = old.prober
	}
	p.prober, err = health.NewProber(health.ProberConfig{
		Name: cfg.Name, Check: check, Interval: cfg.Interval, Timeout: cfg.Timeout, Jitter: cfg.Jitter,
		Rise: cfg.Rise, Fall: cfg.Fall, Before: before, Logger: s.log,
	})
	return p, err
}

// route makes the handler of one route.
func (s *service) route(a *answers, r config.Route, relays []*conducted, old *answers) error {
	var err error
	log := s.log.Named("http")
	switch {
	case r.Verdict != nil:
		v := r.Verdict
		ping, err := health.NewPing(health.PingConfig{
			Path: r.Path, Ports: v.Ports, Members: s.members(a, relays, v.Members), Quorum: v.Quorum,
			Expect:  health.Expect{Status: v.Status, Body: v.Body, BodyContains: v.BodyContains, BodyRegex: v.BodyRegex},
			Timeout: v.Timeout, FailStatus: v.FailStatus, Token: v.Token.Value(), Log: s.verdicts,
		})
		if err != nil {
			return err
		}
		a.routes[r.Path] = ping
		if err := s.dialect(a, dialectKey{"agent", v.Agent}, ping, old); err != nil {
			return err
		}
		return s.dialect(a, dialectKey{"tcp", v.TCP}, ping, old)
	case r.Flags != "":
		a.routes[r.Path] = health.NewStatus(health.StatusConfig{Flags: health.Flags{Dir: r.Flags}, Logger: log})
	case r.Heartbeat != nil:
		h := r.Heartbeat
		a.routes[r.Path], err = health.NewHeartbeat(health.HeartbeatConfig{
			Name: h.Name, Members: s.members(a, relays, h.Members), Token: h.Token.Value(), Dead: h.Dead, Logger: log,
		})
		if err != nil || h.Dead == "" {
			return err
		}
		keeper, err := health.NewDeadFiles(health.DeadFilesConfig{Dir: h.Dead, Members: s.members(a, relays, h.Members), Logger: log})
		if err != nil {
			return err
		}
		a.dead = append(a.dead, &deadFiles{keeper: keeper})
	case r.Endpoints != nil:
		e := r.Endpoints
		cfg := health.EndpointsConfig{
			URLs: e.URLs, Race: e.Race, Status: e.Status, Timeout: e.Timeout, Total: e.Total,
			PreserveHost: e.PreserveHost, Logger: log,
		}
		if cfg.TLS, err = clientTLS(e.TLS); err != nil {
			return err
		}
		endpoints, err := health.NewEndpoints(cfg)
		if err != nil {
			return err
		}
		a.routes[r.Path] = endpoints
		a.endpoints = append(a.endpoints, endpoints)
	}
	return err
}

// members are those that count in a verdict.
func (s *service) members(a *answers, relays []*conducted, list []config.Member) []health.Member {
	all := make([]health.Member, 0, len(list))
	for _, m := range list {
		member := health.Member{Name: m.Name, Kind: "relay", Must: m.Must, Ignore: m.Ignore}
		if m.Probe {
			member.Kind, member.State = "probe", a.probe(m.Name).prober.Err
		} else {
			// A verdict keeps its relay until it is exchanged itself, even if the
			// relay is none of the service's any more.
			k := slices.IndexFunc(relays, func(c *conducted) bool { return c.name == m.Name })
			member.State = func() error { return s.hasPrimary(relays[k]) }
		}
		all = append(all, member)
	}
	return all
}

// hasPrimary says whether clients of a relay are let through now. It takes no
// lock.
func (s *service) hasPrimary(c *conducted) error {
	if s.draining.Load() || c.conductor.Snapshot().Primary == "" {
		return health.ErrNoPrimary
	}
	return nil
}

// dialect makes the port that tells the verdict of ping, if there is to be one,
// or takes the old one.
func (s *service) dialect(a *answers, key dialectKey, ping *health.Ping, old *answers) error {
	if key.listen == "" {
		return nil
	}
	a.judges[key] = ping
	if d := old.dialects[key]; d != nil {
		a.dialects[key] = d
		return nil
	}
	judge := func(ctx context.Context) error {
		if ping := s.answers.Load().judges[key]; ping != nil {
			return ping.Judge(ctx)
		}
		return errors.New("no verdict")
	}
	d, log := &dialect{}, s.log.Named("http")
	var err error
	if key.kind == "agent" {
		d.server, err = health.NewAgent(health.AgentConfig{Listen: key.listen, Judge: judge, Draining: s.draining.Load, Logger: log})
	} else {
		d.server, err = health.NewLamp(health.LampConfig{Listen: key.listen, Judge: judge, Logger: log})
	}
	a.dialects[key] = d
	return err
}

// probe returns the probe of a name; nil when there is none.
func (a *answers) probe(name string) *probing {
	for _, p := range a.probes {
		if p.settings.Name == name {
			return p
		}
	}
	return nil
}

// bind binds what old has not bound.
func (a *answers) bind(old *answers) error {
	if old == nil {
		old = &answers{}
	}
	if a.server != nil && a.server != old.server {
		if err := a.server.Bind(); err != nil {
			return err
		}
	}
	for key, d := range a.dialects {
		if d != old.dialects[key] {
			if err := d.server.Bind(); err != nil {
				return err
			}
		}
	}
	return nil
}

// start runs what old does not run, has the listener that both share answer
// from the new routes, and ends what only old has.
func (a *answers) start(s *service, old *answers) {
	if old == nil {
		old = &answers{}
	}
	for _, p := range a.probes {
		if old.probe(p.settings.Name) != p {
			p.part = s.rest.start(s.last, s.stop, p.prober.Run)
		}
	}
	for key, d := range a.dialects {
		if d != old.dialects[key] {
			d.part = s.rest.start(s.last, s.stop, d.server.Run)
		}
	}
	for _, d := range old.dead {
		d.part.end()
	}
	for _, d := range a.dead {
		d.part = s.rest.start(s.last, s.stop, func(ctx context.Context) error {
			for _, before := range old.dead { // they keep the same files
				select {
				case <-before.part.over:
				case <-ctx.Done():
					return nil
				}
			}
			return d.keeper.Run(ctx)
		})
	}
	switch a.server {
	case nil:
	case old.server:
		// Both were looked at when the answers were made.
		if err := errors.Join(a.server.SetRoutes(a.routes), a.server.SetTLS(a.tls)); err != nil {
			s.log.Error("http listener goes on as it was", "error", err)
		}
	default:
		a.serverPart = s.rest.start(s.last, s.stop, a.server.Run)
	}

	if old.server != nil && old.server != a.server {
		old.serverPart.end()   // requests under way are answered
		_ = old.server.Close() // at once: the next reload may want the address
	}
	for key, d := range old.dialects {
		if d != a.dialects[key] {
			d.part.end()
			select {
			case <-d.part.over: // as above
			case <-time.After(releaseTime):
			}
		}
	}
	for _, p := range old.probes {
		if a.probe(p.settings.Name) != p {
			p.part.end()
		}
	}
	for _, e := range old.endpoints {
		e.Close()
	}
}

// close gives up what it holds and does not share with old, for answers that
// never ran or do not run any more. Whatever ran has closed itself.
func (a *answers) close(old *answers) {
	if old == nil {
		old = &answers{}
	}
	if a.server != nil && a.serverPart == nil && a.server != old.server {
		_ = a.server.Close() // what goes wrong here is of no consequence
	}
	for _, d := range a.dialects {
		if d.part == nil {
			_ = d.server.Close() // as above
		}
	}
	for _, e := range a.endpoints {
		e.Close()
	}
}

// probesNow says how the probes are.
func (a *answers) probesNow() (all []control.Probe) {
	for _, p := range a.probes {
		state := p.prober.State()
		out := control.Probe{
			Name: p.settings.Name, State: string(state.Condition), Since: state.Since, Stale: state.Stale,
		}
		if err := p.prober.Err(); err != nil {
			out.Why = err.Error()
		}
		if last := state.Last; !state.LastAt.IsZero() {
			out.Last = &control.Result{At: state.LastAt, OK: last.OK, Local: last.Local, Phase: string(last.Phase), Seconds: last.Latency.Seconds()}
			if last.Err != nil {
				out.Last.Error = last.Err.Error()
			}
		}
		all = append(all, out)
	}
	return all
}
