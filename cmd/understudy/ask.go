package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	"understudy/config"
	"understudy/health"
	"understudy/hooks"
)

// question makes the check that a setting describes, of every kind but exec.
// Resolve is how names become addresses.
func question(ask config.Ask, resolve health.ResolveFunc) (health.Check, error) {
	switch {
	case ask.HTTP != nil:
		return httpQuestion(ask.HTTP, resolve)
	case ask.TCP != nil:
		return health.TCPExchange(health.TCPConfig{
			Port: ask.TCP.Port, Send: []byte(ask.TCP.Send), Expect: []byte(ask.TCP.Expect), Resolve: resolve,
		})
	case ask.Flag != nil:
		return health.FlagCheck(ask.Flag.Dir, ask.Flag.Name, ask.Flag.Absent)
	case ask.VIP != nil:
		return health.VIPCheck(ask.VIP.Addresses, ask.VIP.AnyInterface)
	}
	return nil, errors.New("asks nothing")
}

func httpQuestion(ask *config.AskHTTP, resolve health.ResolveFunc) (health.Check, error) {
	cfg := health.HTTPConfig{Port: ask.Port, Path: ask.Path}
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
	cfg.Method, cfg.Body, cfg.Resolve = ask.Method, []byte(ask.RequestBody), resolve
	cfg.Header = http.Header{}
	for _, h := range ask.Headers {
		cfg.Header.Add(h[0], h[1])
	}
	cfg.Expect = health.Expect{Status: ask.Status, Body: ask.Body, BodyContains: ask.BodyContains, BodyRegex: ask.BodyRegex}
	check, err := health.HTTP(cfg)
	if err != nil || host == "" {
		return check, err
	}
	return func(ctx context.Context, _ string) health.Result { return check(ctx, host) }, nil
}

// ofProbe makes the check of a probe, which knows whom to ask.
func (s *service) ofProbe(p config.Probe) (func(ctx context.Context) health.Result, error) {
	if p.Exec != nil {
		script := hooks.Script{
			Kind: hooks.Check, Path: p.Exec.Command[0], Args: p.Exec.Command[1:], Timeout: p.Timeout,
			Fields: []any{"probe", p.Name},
		}
		return func(ctx context.Context) health.Result {
			// The runner ends the script in time, and counts from its start: it may
			// have to wait for a place before. Only when nobody asks any more it is
			// ended early.
			wanted, end := context.WithCancel(context.WithoutCancel(ctx))
			defer end()
			defer context.AfterFunc(ctx, func() {
				if errors.Is(ctx.Err(), context.Canceled) {
					end()
				}
			})()
			res := s.runner.Run(wanted, script)
			if res.Gone != nil {
				<-res.Gone
			}
			return health.Result{OK: res.OK(), Local: res.Local, Phase: health.Script, Err: res.Err, Latency: res.Took}
		}, nil
	}
	check, err := question(p.Ask, s.resolver.Resolve)
	if err != nil {
		return nil, err
	}
	host := ""
	if p.TCP != nil {
		host = p.TCP.Address
	}
	return func(ctx context.Context) health.Result { return check(ctx, host) }, nil
}

// nameOf is what records call a check of a host.
func nameOf(ask config.Ask) string {
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
		return onPort("tcp", ask.TCP.Port)
	case ask.Exec != nil:
		return filepath.Base(ask.Exec.Command[0])
	case ask.Flag != nil:
		return "flag:" + ask.Flag.Name
	}
	return "vip"
}

// specOf is what a check asks; equal texts ask the same.
func specOf(ask config.Ask) string {
	switch {
	case ask.HTTP != nil:
		return fmt.Sprintf("%+v", *ask.HTTP)
	case ask.TCP != nil:
		return fmt.Sprintf("%+v", *ask.TCP)
	case ask.Exec != nil:
		return fmt.Sprintf("%q", ask.Exec.Command)
	case ask.Flag != nil:
		return fmt.Sprintf("%+v", *ask.Flag)
	}
	return fmt.Sprintf("%+v", *ask.VIP)
}

// clientTLS reads the files that a setting names.
func clientTLS(cfg config.ClientTLS) (*tls.Config, error) {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: cfg.ServerName,
		InsecureSkipVerify: cfg.SkipVerify, //nolint:gosec // the operator's choice, by its name
	}
	if cfg.CA != "" {
		text, err := os.ReadFile(cfg.CA)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s: holds no certificate in PEM", cfg.CA)
		}
	}
	if cfg.Cert != "" {
		pair, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
		if err != nil {
			return nil, fmt.Errorf("%s, %s: %w", cfg.Cert, cfg.Key, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// serverTLS is the listener's, nil for plain HTTP.
func serverTLS(cfg config.HTTP) (*tls.Config, error) {
	if cfg.Cert == "" {
		return nil, nil //nolint:nilnil // plain HTTP is no mistake
	}
	pair, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", cfg.Cert, cfg.Key, err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}, nil
}
