package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/admin"
	"understudy/config"
	"understudy/control"
	"understudy/health"
	"understudy/hooks"
	"understudy/internal/flagfile"
	"understudy/metrics"
	"understudy/verdict"
)

// releaseTime is the longest time that a reload waits until an address that is no
// longer configured is released.
const releaseTime = 2 * time.Second

// answers holds everything that reports verdicts: the probes, the HTTP listener
// with its routes, and the ports that report a verdict by another protocol. A
// reload makes new answers that keep what has not changed.
type answers struct {
	settings config.HTTP
	probes   []*probing
	routes   map[string]http.Handler
	tls      *tls.Config

	adminSettings config.Admin
	adminRoutes   map[string]http.Handler
	page          *admin.Page // nil when there is no admin listener
	pagePart      *part

	counted map[string]*metrics.Route // of routes, by path
	pings   map[string]*verdict.Ping  // those of the routes that have one, by path

	http  web
	admin web // for those who operate the program

	responders map[responderKey]*responder
	evaluators map[responderKey]*verdict.Ping // the verdicts that the responders report
	drains     map[responderKey]bool          // whether an agent reports drain
	endpoints  []*verdict.Endpoints
	dead       []*deadFiles
}

// web is an HTTP listener. The zero web is none.
type web struct {
	listen  string
	server  *verdict.Server
	part    *part // nil until it runs
	missing bool  // its address did not exist when it was to be bound
}

// keep takes the server of old if it listens on the same address.
func (w *web) keep(old web) {
	if old.server != nil && old.listen == w.listen {
		w.server, w.part = old.server, old.part
	}
}

// bind binds the address, if old has not. With later, an address that this machine
// does not have yet is no failure: start retries it.
func (w *web) bind(old web, later bool) error {
	if w.server == nil || w.server == old.server {
		return nil
	}
	err := w.server.Bind()
	if w.missing = later && errors.Is(err, syscall.EADDRNOTAVAIL); w.missing {
		return nil
	}
	return err
}

// start runs the server, if old does not, and ends a server that only old has.
func (w *web) start(s *service, name string, old web) {
	if w.server != nil && w.server != old.server {
		w.part = s.rest.start(s.last, s.stop, keepServing(w.server, name+" "+w.listen, !w.missing, s.log))
	}
	if old.server != nil && old.server != w.server {
		old.part.end()         // requests in progress are completed
		_ = old.server.Close() // at once: the next reload may want the address
	}
}

// close releases the address, unless the server is old's or has run.
func (w *web) close(old web) {
	if w.server != nil && w.part == nil && w.server != old.server {
		_ = w.server.Close() // an error here has no effect
	}
}

// deadFiles updates the files of one heartbeat.
type deadFiles struct {
	files *verdict.DeadFiles
	part  *part
}

// probing is a probe and its settings.
type probing struct {
	settings config.Probe
	prober   *health.Prober
	end      func() // of what its check keeps open, once the prober has ended
	part     *part
}

// responderKey identifies responders. The verdict of a responder may change
// while clients use it.
type responderKey struct {
	kind, listen string
}

// responder is a port that reports the verdict of a route by another protocol
// than HTTP: an agent or a TCP responder.
type responder struct {
	server interface {
		listening
		Close() error
	}
	part    *part // nil until it runs
	missing bool  // its address did not exist when it was to be bound
}

// answer makes the parts of the settings, for relays, and reuses parts of old
// that are the same. Nothing is opened, and old does not change.
func (s *service) answer(all config.Settings, relays []*conducted, old *answers) (*answers, error) {
	if old == nil {
		old = &answers{}
	}
	a := &answers{
		settings: all.HTTP, routes: map[string]http.Handler{},
		responders: map[responderKey]*responder{}, evaluators: map[responderKey]*verdict.Ping{},
		drains: map[responderKey]bool{}, counted: map[string]*metrics.Route{}, pings: map[string]*verdict.Ping{},
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
		count := old.counted[r.Path]
		if count == nil {
			count = metrics.NewRoute(r.Path, r.Verdict != nil || r.Heartbeat != nil)
		}
		a.counted[r.Path] = count
		a.routes[r.Path] = count.Count(a.routes[r.Path])
	}
	var err error
	if a.tls, err = serverTLS(all.HTTP); err != nil {
		return nil, err
	}
	// A server that stays will get the routes and the certificate: to make a new one
	// validates both.
	if listen := all.HTTP.Listen; listen != "" {
		server, err := verdict.NewServer(verdict.ServerConfig{Listen: listen, Routes: a.routes, TLS: a.tls, Logger: s.log})
		if err != nil {
			return nil, err
		}
		a.http = web{listen: listen, server: server}
		a.http.keep(old.http)
	}
	if listen := all.Admin.Listen; listen != "" {
		a.adminSettings, a.page, a.pagePart = all.Admin, old.page, old.pagePart
		if old.page == nil || old.adminSettings != all.Admin {
			// Who watches has to show a token that is new.
			a.page = s.newPage(all.Admin.Token.IsSet())
		}
		a.adminRoutes = admin.Routes(admin.Config{
			Token: all.Admin.Token.Value(), Loopback: all.Admin.OnLoopback(), Metrics: s.metrics, API: s.api.Reading(), Page: a.page,
		})
		server, err := verdict.NewServer(verdict.ServerConfig{
			Name: "admin", Listen: listen, Routes: a.adminRoutes, MaxConnections: admin.MaxConnections, Logger: s.log,
		})
		if err != nil {
			return nil, err
		}
		a.admin = web{listen: listen, server: server}
		a.admin.keep(old.admin)
	}
	return a, nil
}

// newPage makes the admin page. With acts, operators can give orders there.
func (s *service) newPage(acts bool) *admin.Page {
	cfg := admin.PageConfig{
		Status: s.api.Status, Elections: s.api.Elections, Changed: s.bell.wait, Text: s.text,
		Process: s.api.Process, Glances: s.api.Glances, Describe: s.api.Describe,
	}
	if acts {
		cfg.Order = s.api.Carry
	}
	return admin.NewPage(cfg)
}

// run runs the probe until ctx ends.
func (p *probing) run(ctx context.Context) error {
	defer p.end()
	return p.prober.Run(ctx)
}

// CheckRoutes returns why the routes of the settings cannot be served. It opens
// nothing.
func CheckRoutes(settings config.Settings) error {
	s := &service{log: hclog.NewNullLogger(), resolver: health.NewResolver(), runner: hooks.New(hooks.Config{})}
	defer s.resolver.Close()
	defer s.runner.Close()
	relays := make([]*conducted, 0, len(settings.Relays))
	for _, r := range settings.Relays {
		relays = append(relays, &conducted{name: r.Name})
	}
	_, err := s.answer(settings, relays, nil)
	return err
}

// probe makes a probe, or returns the old one if its check is the same.
func (s *service) probe(cfg config.Probe, old *probing) (*probing, error) {
	if old != nil && reflect.DeepEqual(old.settings, cfg) {
		return old, nil
	}
	check, end, err := ProbeCheck(cfg, s.resolver.Resolve, s.runner)
	if err != nil {
		return nil, fmt.Errorf("probe %s: %w", cfg.Name, err)
	}
	p := &probing{settings: cfg, end: end}
	var before *health.Prober
	if old != nil && specOf(old.settings.Check) == specOf(cfg.Check) {
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
		ping, err := verdict.NewPing(verdict.PingConfig{
			Path: r.Path, Ports: v.Ports, Members: s.members(a, relays, v.Members, v.Standby), Quorum: v.Quorum,
			Expect: v.Expect, Timeout: v.Timeout, FailStatus: v.FailStatus, Draining: s.draining.Load, Token: v.Token.Value(), Log: s.verdicts,
		})
		if err != nil {
			return err
		}
		a.routes[r.Path], a.pings[r.Path] = ping, ping
		a.drains[responderKey{"agent", v.Agent}] = v.AgentDrain
		if err := s.responder(a, responderKey{"agent", v.Agent}, ping, old); err != nil {
			return err
		}
		return s.responder(a, responderKey{"tcp", v.TCP}, ping, old)
	case r.Flags != "":
		a.routes[r.Path] = verdict.NewStatus(verdict.StatusConfig{Flags: flagfile.Dir(r.Flags), Logger: log})
	case r.Metrics != nil:
		a.routes[r.Path] = admin.Routes(admin.Config{Token: r.Metrics.Token.Value(), Metrics: s.metrics})["/metrics"]
	case r.Heartbeat != nil:
		h := r.Heartbeat
		a.routes[r.Path], err = verdict.NewHeartbeat(verdict.HeartbeatConfig{
			Name: h.Name, Members: s.members(a, relays, h.Members, false), Token: h.Token.Value(), Dead: h.Dead, Logger: log,
		})
		if err != nil || h.Dead == "" {
			return err
		}
		keeper, err := verdict.NewDeadFiles(verdict.DeadFilesConfig{
			Dir: h.Dead, Members: s.members(a, relays, h.Members, false), Logger: log,
			Unknown: func(why error) bool { return errors.Is(why, health.ErrUnknown) },
		})
		if err != nil {
			return err
		}
		a.dead = append(a.dead, &deadFiles{files: keeper})
	case r.Endpoints != nil:
		e := r.Endpoints
		cfg := verdict.EndpointsConfig{
			URLs: e.URLs, Race: e.Race, Status: e.Status, Timeout: e.Timeout, Total: e.Total,
			PreserveHost: e.PreserveHost, Logger: log,
		}
		if cfg.TLS, err = clientTLS(e.TLS); err != nil {
			return err
		}
		endpoints, err := verdict.NewEndpoints(cfg)
		if err != nil {
			return err
		}
		a.routes[r.Path] = endpoints
		a.endpoints = append(a.endpoints, endpoints)
	}
	return err
}

// members returns the members of a verdict. With standby a relay must have one.
func (s *service) members(a *answers, relays []*conducted, list []config.Member, standby bool) []verdict.Member {
	all := make([]verdict.Member, 0, len(list))
	for _, m := range list {
		member := verdict.Member{Name: m.Name, Kind: "relay", Must: m.Must, Ignore: m.Ignore}
		if m.Probe {
			member.Kind, member.State = "probe", a.probe(m.Name).prober.Err
		} else {
			// A verdict keeps its relay until it is replaced itself, even if
			// the relay is no longer one of the service's.
			k := slices.IndexFunc(relays, func(c *conducted) bool { return c.name == m.Name })
			member.State = func() error { return s.hasPrimary(relays[k], standby) }
		}
		all = append(all, member)
	}
	return all
}

// hasPrimary returns nil while clients of a relay are connected and, with
// standby, another host could become primary. It takes no lock.
func (s *service) hasPrimary(c *conducted, standby bool) error {
	if !s.draining.Load() && c.conductor.Snapshot().Primary != "" {
		if standby && c.conductor.WithoutStandby() {
			return verdict.ErrNoStandby
		}
		return nil
	}
	if o := s.findings.Load().Outage; o != nil {
		return fmt.Errorf("%w: %s", verdict.ErrNoPrimary, o.Text) // the log has the reason, an answer to strangers does not
	}
	return verdict.ErrNoPrimary
}

// responder makes the port that reports the verdict of ping, if one is
// configured, or reuses the old one.
func (s *service) responder(a *answers, key responderKey, ping *verdict.Ping, old *answers) error {
	if key.listen == "" {
		return nil
	}
	a.evaluators[key] = ping
	if d := old.responders[key]; d != nil {
		a.responders[key] = d
		return nil
	}
	evaluate := func(ctx context.Context) error {
		if ping := s.answers.Load().evaluators[key]; ping != nil {
			return ping.Evaluate(ctx)
		}
		return errors.New("no verdict")
	}
	d, log := &responder{}, s.log.Named("http")
	var err error
	if key.kind == "agent" {
		d.server, err = verdict.NewAgent(verdict.AgentConfig{Listen: key.listen, Evaluate: evaluate, Logger: log, Draining: s.draining.Load, SendDrain: func() bool { return s.answers.Load().drains[key] }})
	} else {
		d.server, err = verdict.NewTCPResponder(verdict.TCPResponderConfig{Listen: key.listen, Evaluate: evaluate, Again: s.leavingNow, Logger: log})
	}
	a.responders[key] = d
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

// bind binds what old has not bound; see [web.bind].
func (a *answers) bind(old *answers, later bool) error {
	if old == nil {
		old = &answers{}
	}
	if err := a.http.bind(old.http, later); err != nil {
		return err
	}
	if err := a.admin.bind(old.admin, later); err != nil {
		return err
	}
	for key, d := range a.responders {
		if d != old.responders[key] {
			err := d.server.Bind()
			d.missing = later && errors.Is(err, syscall.EADDRNOTAVAIL)
			if err != nil && !d.missing {
				return err
			}
		}
	}
	return nil
}

// start runs what old does not run, gives the new routes to a listener that
// both share, and ends what only old has.
func (a *answers) start(s *service, old *answers) {
	if old == nil {
		old = &answers{}
	}
	for _, p := range a.probes {
		if old.probe(p.settings.Name) != p {
			p.part = s.rest.start(s.last, s.stop, p.run)
		}
	}
	for key, d := range a.responders {
		if d != old.responders[key] {
			d.part = s.rest.start(s.last, s.stop, keepServing(d.server, key.kind+" "+key.listen, !d.missing, s.log))
		}
	}
	for _, d := range old.dead {
		d.part.end()
	}
	for _, d := range a.dead {
		d.part = s.rest.start(s.last, s.stop, func(ctx context.Context) error {
			for _, before := range old.dead { // they update the same files
				select {
				case <-before.part.over:
				case <-ctx.Done():
					return nil
				}
			}
			return d.files.Run(ctx)
		})
	}
	// A listener that both share gets the new routes. They were validated when the
	// answers were made.
	if w := a.http; w.server != nil && w.server == old.http.server {
		if err := errors.Join(w.server.SetRoutes(a.routes), w.server.SetTLS(a.tls)); err != nil {
			s.log.Error("http listener not changed", "listener", "http", "error", err)
		}
	}
	if w := a.admin; w.server != nil && w.server == old.admin.server {
		if err := w.server.SetRoutes(a.adminRoutes); err != nil {
			s.log.Error("http listener not changed", "listener", "admin", "error", err)
		}
	}
	if a.page != nil && a.page != old.page {
		a.pagePart = s.rest.start(s.last, s.stop, a.page.Run)
	}
	if old.page != nil && old.page != a.page {
		old.pagePart.end()
	}
	a.http.start(s, "http", old.http)
	a.admin.start(s, "admin", old.admin)

	for key, d := range old.responders {
		if d != a.responders[key] {
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

// close releases what it holds and does not share with old, for answers that
// never ran or have ended. Parts that ran have closed themselves.
func (a *answers) close(old *answers) {
	if old == nil {
		old = &answers{}
	}
	a.http.close(old.http)
	a.admin.close(old.admin)
	for _, d := range a.responders {
		if d.part == nil {
			_ = d.server.Close() // an error here has no effect
		}
	}
	for _, e := range a.endpoints {
		e.Close()
	}
}

// probesNow returns the states of the probes.
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
			out.Last = &control.Result{At: state.LastAt, OK: last.OK, Unknown: last.Unknown, Phase: string(last.Phase), Seconds: last.Latency.Seconds()}
			if last.Err != nil {
				out.Last.Error = last.Err.Error()
			}
		}
		all = append(all, out)
	}
	return all
}
