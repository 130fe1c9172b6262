package daemon

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"understudy/config"
	"understudy/health"
	"understudy/health/sqlprobe"
	"understudy/hooks"
	"understudy/internal/pemfile"
)

// connects holds the options with which the checks of a relay connect to its
// hosts, the same as those of its clients' connections. Probes have a resolve only.
type connects struct {
	resolve   health.ResolveFunc
	source    netip.Addr
	sendProxy int
}

// spec returns the part that a reload can change, for [failover.Check.Spec];
// empty for the defaults.
func (c connects) spec() string {
	if !c.source.IsValid() && c.sendProxy == 0 {
		return ""
	}
	return fmt.Sprintf(" from %s with PROXY v%d", c.source, c.sendProxy)
}

// newCheck makes the check of a setting, of every kind but exec.
func newCheck(ask config.Check, via connects) (health.Check, error) {
	switch {
	case ask.HTTP != nil:
		return newHTTPCheck(ask.HTTP, via)
	case ask.TCP != nil:
		return health.TCPExchange(health.TCPConfig{
			Port: ask.TCP.Port, Send: []byte(ask.TCP.Send), Expect: []byte(ask.TCP.Expect), Handshake: ask.TCP.Handshake,
			Resolve: via.resolve, Source: via.source, SendProxy: via.sendProxy,
		})
	case ask.Flag != nil:
		return health.FlagCheck(ask.Flag.Dir, ask.Flag.Name, ask.Flag.Absent)
	case ask.VIP != nil:
		return health.VIPCheck(ask.VIP.Addresses, ask.VIP.AnyInterface)
	}
	return nil, errors.New("has no kind")
}

func newHTTPCheck(ask *config.HTTPCheck, via connects) (health.Check, error) {
	cfg := health.HTTPConfig{Port: ask.Port, Path: ask.Path, Source: via.source, SendProxy: via.sendProxy}
	host := ""
	if ask.URL != "" {
		var err error
		if host, cfg, err = health.URLTarget(ask.URL); err != nil {
			return nil, err
		}
	}
	if ask.HTTPS || cfg.TLS != nil {
		var err error
		if cfg.TLS, err = clientTLS(ask.TLS); err != nil {
			return nil, err
		}
	}
	cfg.Method, cfg.Body, cfg.Resolve = ask.Method, []byte(ask.RequestBody), via.resolve
	cfg.Header = http.Header{}
	for _, h := range ask.Headers {
		cfg.Header.Add(h[0], h[1])
	}
	cfg.Expect = ask.Expect
	check, err := health.HTTP(cfg)
	if err != nil || host == "" {
		return check, err
	}
	return func(ctx context.Context, _ string) health.Result { return check(ctx, host) }, nil
}

// ProbeCheck makes the check of a probe, which contains its target. Names are
// looked up by resolve, and scripts are run by runner. End ends what the check keeps
// open between its runs; the check is not used afterwards.
func ProbeCheck(p config.Probe, resolve health.ResolveFunc, runner *hooks.Runner) (check func(ctx context.Context) health.Result, end func(), err error) {
	end = func() {}
	if p.Exec != nil {
		script := hooks.Script{
			Kind: hooks.Check, Path: p.Exec.Command[0], Args: p.Exec.Command[1:], Timeout: p.Timeout,
			Fields: []any{"probe", p.Name},
		}
		return func(ctx context.Context) health.Result {
			// The runner ends the script at its timeout, counted from its
			// start: the script may have to wait for a place before. It is
			// ended earlier only when its result is no longer needed.
			wanted, end := context.WithCancel(context.WithoutCancel(ctx))
			defer end()
			defer context.AfterFunc(ctx, func() {
				if errors.Is(ctx.Err(), context.Canceled) {
					end()
				}
			})()
			res := runner.Run(wanted, script)
			if res.Reaped != nil {
				<-res.Reaped
			}
			return health.Result{OK: res.OK(), Unknown: res.Unknown, Phase: health.Script, Err: res.Reason(), Latency: res.Took}
		}, end, nil
	}
	if p.SQL != nil {
		probe, err := newSQLProbe(p.SQL, p.Timeout, resolve)
		if err != nil {
			return nil, nil, err
		}
		return probe.Check, func() { _ = probe.Close() }, nil // the session may be lost already
	}
	ask, err := newCheck(p.Check, connects{resolve: resolve})
	if err != nil {
		return nil, nil, err
	}
	host := ""
	if p.TCP != nil {
		host = p.TCP.Address
	}
	return func(ctx context.Context) health.Result { return ask(ctx, host) }, end, nil
}

// newSQLProbe makes the check of a query.
func newSQLProbe(ask *config.SQLCheck, timeout time.Duration, resolve health.ResolveFunc) (*sqlprobe.Probe, error) {
	cfg := sqlprobe.Config{
		Driver: ask.Driver, Host: ask.Address, User: ask.User, Database: ask.Database, PasswordFile: ask.PasswordFile,
		Query: ask.Query, Timeout: timeout, Resolve: resolve,
	}
	for _, v := range ask.Exists {
		cfg.Exists = append(cfg.Exists, sqlprobe.Value(v))
	}
	if ask.TLS != nil {
		var err error
		if cfg.TLS, err = clientTLS(*ask.TLS); err != nil {
			return nil, err
		}
	}
	return sqlprobe.New(cfg)
}

// nameOf returns the name of a check of a host in records.
func nameOf(ask config.Check) string {
	onPort := func(kind string, port int) string {
		if port == 0 {
			return kind
		}
		return kind + ":" + strconv.Itoa(port)
	}
	switch {
	case ask.HTTP != nil:
		return onPort("http", ask.HTTP.Port)
	case ask.TCP != nil:
		return onPort(cmp.Or(ask.TCP.Handshake, "tcp"), ask.TCP.Port)
	case ask.Exec != nil:
		return filepath.Base(ask.Exec.Command[0])
	case ask.Flag != nil:
		return "flag:" + ask.Flag.Name
	case ask.SQL != nil:
		return "sql"
	}
	return "vip"
}

// specOf describes what a check does; equal texts mean equal checks, of whichever
// relays.
func specOf(ask config.Check) string {
	switch {
	case ask.HTTP != nil:
		return fmt.Sprintf("%#v", *ask.HTTP)
	case ask.TCP != nil:
		return fmt.Sprintf("%#v", *ask.TCP)
	case ask.Exec != nil:
		return fmt.Sprintf("%q", ask.Exec.Command)
	case ask.Flag != nil:
		return fmt.Sprintf("%#v", *ask.Flag)
	case ask.SQL != nil:
		query, tls := *ask.SQL, ask.SQL.TLS
		query.TLS = nil // a pointer, whose text would change with a reload
		return fmt.Sprintf("%#v %+v", query, tls)
	}
	return fmt.Sprintf("%#v", *ask.VIP)
}

// clientTLS reads the files of a setting.
func clientTLS(cfg config.ClientTLS) (*tls.Config, error) {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: cfg.ServerName,
		InsecureSkipVerify: cfg.SkipVerify, //nolint:gosec // the operator's choice, by its name
	}
	if cfg.CA != "" {
		pool, err := pemfile.Pool(cfg.CA)
		if err != nil {
			return nil, err
		}
		c.RootCAs = pool
	}
	if cfg.Cert != "" {
		pair, err := pemfile.Pair(cfg.Cert, cfg.Key)
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// serverTLS returns the configuration of the listener; nil for plain HTTP.
func serverTLS(cfg config.HTTP) (*tls.Config, error) {
	if cfg.Cert == "" {
		return nil, nil //nolint:nilnil // plain HTTP is no mistake
	}
	pair, err := pemfile.Pair(cfg.Cert, cfg.Key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}, nil
}
