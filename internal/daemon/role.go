package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/config"
	"understudy/failover"
	"understudy/health"
	"understudy/internal/address"
	"understudy/internal/role"
	"understudy/roles"
	"understudy/selector"
)

// newRoleCheck makes the check of the role of a relay's hosts. Without a pool it cannot
// be run.
func newRoleCheck(cfg config.Relay, via connects, pool *roles.Pool) (failover.Check, error) {
	if pool == nil {
		pool = roles.NewPool(hclog.NewNullLogger())
	}
	dialer, err := health.NewDialer(via.resolve, via.source, via.sendProxy)
	if err != nil {
		return failover.Check{}, err
	}
	r := cfg.Role
	r.Promote, r.MaxLag, r.Identity = false, config.Lag{}, "" // rules of the relay, which the hosts do not hear of
	spec := fmt.Sprintf("%#v", r) + via.spec()
	asker, err := pool.NewAsker(spec, roles.Config{
		Protocol: r.Protocol, Port: uint16(r.Port), //nolint:gosec // G115: config accepts ports only
		User: r.User, PasswordFile: r.PasswordFile, Database: r.Database,
		TLS:      roles.TLSConfig{Mode: r.TLS, ServerName: r.PEM.ServerName, CA: r.PEM.CA, Cert: r.PEM.Cert, Key: r.PEM.Key},
		Interval: cfg.Interval, Dial: dialer.Dial,
	})
	return failover.Check{
		Name: r.Protocol, Spec: spec, Interval: cfg.Interval, Timeout: cfg.Timeout,
		Role: &selector.RoleRules{
			Promote: cfg.Role.Promote, MaxLagBytes: cfg.Role.MaxLag.Bytes, MaxLag: cfg.Role.MaxLag.Time,
			Identity: cfg.Role.Identity, Verify: cfg.TriggerTimeout,
		},
		Run: func(ctx context.Context, host string) health.Result { return askRole(ctx, asker, host) },
	}, err
}

// askRole asks a host for its role.
func askRole(ctx context.Context, asker *roles.Asker, host string) health.Result {
	began := time.Now()
	var addr netip.Addr
	if h, err := address.ParseHost(host); err == nil {
		addr, _ = health.AddrOf(ctx, h.Name)
	}
	fact, err := asker.Ask(ctx, host, addr)
	if errors.Is(err, roles.ErrRefused) {
		return health.Result{Unknown: true, Phase: health.Login, Err: err, Latency: time.Since(began), Fact: &fact}
	}
	if err != nil {
		phase := health.Role
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
			phase = health.Connect
		}
		return health.NewResult(ctx, began, phase, err)
	}
	switch fact.Role {
	case role.Starting:
		err = errors.New(fact.Detail)
	case role.Primary, role.Replica, role.Unknown: // the rules of the relay decide
	}
	res := health.NewResult(ctx, began, health.Role, err)
	res.Fact, res.Phase = &fact, health.Role // the rules may refuse the role that was told
	return res
}
