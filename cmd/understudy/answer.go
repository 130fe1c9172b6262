package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"reflect"

	"understudy/config"
	"understudy/control"
	"understudy/health"
)

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
	pings      map[string]*health.Ping // by path
	dialects   map[dialectKey]*dialect
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

// dialectKey tells ports that tell a verdict apart.
type dialectKey struct {
	kind, listen, path string
}

// dialect is a port that tells the verdict of a route in other words than
// HTTP's: an agent or a lamp.
type dialect struct {
	server interface {
		Bind() error
		Run(ctx context.Context) error
		Close() error
	}
	part *part
}

// answer makes what the settings want, from what old has where that is the
// same. Nothing is opened, and nothing of old changes.
func (s *service) answer(all config.Settings, old *answers) (*answers, error) {
	if old == nil {
		old = &answers{}
	}
	a := &answers{
		settings: all.HTTP, routes: map[string]http.Handler{},
		pings: map[string]*health.Ping{}, dialects: map[dialectKey]*dialect{},
	}
	for _, cfg := range all.Probes {
		p, err := s.probe(cfg, old.probe(cfg.Name))
		if err != nil {
			return nil, err
		}
		a.probes = append(a.probes, p)
	}
	for _, r := range all.HTTP.Routes {
		if err := s.route(a, r, old); err != nil {
			return nil, fmt.Errorf("route %s: %w", r.Path, err)
		}
	}
	var err error
	if a.tls, err = serverTLS(all.HTTP); err != nil {
		return nil, err
	}
	switch {
	case all.HTTP.Listen == "":
	case old.server != nil && old.settings.Listen == all.HTTP.Listen:
		a.server, a.serverPart = old.server, old.serverPart
	default:
		a.server, err = health.NewServer(health.ServerConfig{Listen: all.HTTP.Listen, Routes: a.routes, TLS: a.tls, Logger: s.log})
	}
	return a, err
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
	p.prober, err = health.NewProber(health.ProberConfig{
		Name: cfg.Name, Check: check, Interval: cfg.Interval, Timeout: cfg.Timeout, Jitter: cfg.Jitter,
		Rise: cfg.Rise, Fall: cfg.Fall, Logger: s.log,
	})
	return p, err
}

// route makes the handler of one route.
func (s *service) route(a *answers, r config.Route, old *answers) error {
	var err error
	log := s.log.Named("http")
	switch {
	case r.Verdict != nil:
		v := r.Verdict
		ping, err := health.NewPing(health.PingConfig{
			Path: r.Path, Ports: v.Ports, Members: s.members(a, v.Members), Quorum: v.Quorum,
			Expect:  health.Expect{Status: v.Status, Body: v.Body, BodyContains: v.BodyContains, BodyRegex: v.BodyRegex},
			Timeout: v.Timeout, FailStatus: v.FailStatus, Token: v.Token.Value(), Log: s.verdicts,
		})
		if err != nil {
			return err
		}
		a.routes[r.Path], a.pings[r.Path] = ping, ping
		if err := s.dialect(a, "agent", v.Agent, r.Path, old); err != nil {
			return err
		}
		return s.dialect(a, "tcp", v.TCP, r.Path, old)
	case r.Flags != "":
		a.routes[r.Path] = health.NewStatus(health.StatusConfig{Flags: health.Flags{Dir: r.Flags}, Logger: log})
	case r.Heartbeat != nil:
		h := r.Heartbeat
		a.routes[r.Path], err = health.NewHeartbeat(health.HeartbeatConfig{
			Name: h.Name, Members: s.members(a, h.Members), Token: h.Token.Value(), Dead: h.Dead, Logger: log,
		})
		if err != nil || h.Dead == "" {
			return err
		}
		keeper, err := health.NewDeadFiles(health.DeadFilesConfig{Dir: h.Dead, Members: s.members(a, h.Members), Logger: log})
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

// members are those that count in a verdict. They are looked up each time: a
// relay of the same name may be another one tomorrow.
func (s *service) members(a *answers, list []config.Member) []health.Member {
	all := make([]health.Member, 0, len(list))
	for _, m := range list {
		member := health.Member{Name: m.Name, Kind: "relay", Must: m.Must, Ignore: m.Ignore}
		if m.Probe {
			member.Kind, member.State = "probe", a.probe(m.Name).prober.Err
		} else {
			member.State = func() error { return s.hasPrimary(m.Name) }
		}
		all = append(all, member)
	}
	return all
}

// hasPrimary says whether clients of a relay are let through now. It takes no
// lock.
func (s *service) hasPrimary(name string) error {
	for _, c := range s.current() {
		if c.name == name && c.conductor.Snapshot().Primary != "" {
			return nil
		}
	}
	return health.ErrNoPrimary
}

// dialect makes the port that tells the verdict of path, if there is to be one,
// or takes the old one.
func (s *service) dialect(a *answers, kind, listen, path string, old *answers) error {
	if listen == "" {
		return nil
	}
	key := dialectKey{kind, listen, path}
	if d := old.dialects[key]; d != nil {
		a.dialects[key] = d
		return nil
	}
	judge := func(ctx context.Context) error {
		if ping := s.answers.Load().pings[path]; ping != nil {
			return ping.Judge(ctx)
		}
		return errors.New("no verdict")
	}
	d, log := &dialect{}, s.log.Named("http")
	var err error
	if kind == "agent" {
		d.server, err = health.NewAgent(health.AgentConfig{Listen: listen, Judge: judge, Draining: s.draining.Load, Logger: log})
	} else {
		d.server, err = health.NewLamp(health.LampConfig{Listen: listen, Judge: judge, Logger: log})
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
		<-d.part.over // the new ones keep the same files
	}
	for _, d := range a.dead {
		d.part = s.rest.start(s.last, s.stop, d.keeper.Run)
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
		old.serverPart.end() // requests under way are answered
	}
	for key, d := range old.dialects {
		if d != a.dialects[key] {
			d.part.end()
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
// never ran or do not run any more.
func (a *answers) close(old *answers) {
	if old == nil {
		old = &answers{}
	}
	if a.server != nil && a.server != old.server {
		_ = a.server.Close() // it may be closed already
	}
	for key, d := range a.dialects {
		if d != old.dialects[key] {
			_ = d.server.Close()
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
