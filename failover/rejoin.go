package failover

import (
	"context"
	"fmt"
	"slices"
	"time"

	"understudy/hooks"
	"understudy/internal/role"
	"understudy/selector"
)

// EventRejoin is the event of the script that makes a host a standby again.
const EventRejoin hooks.Event = "rejoin"

const (
	// firstRejoinDelay is the time for which the script does not run again for a host
	// that is still not usable after a run. It doubles each time, up to
	// mostRejoinDelay, and starts again once the host was usable.
	firstRejoinDelay = 10 * time.Second
	mostRejoinDelay  = 10 * time.Minute
)

// Rejoin is the script that makes a host a standby again that came back and is
// not usable: usually an old primary.
type Rejoin struct {
	// Path is a script, or a directory whose scripts run in byte order of their
	// names. It runs at one host of a relay at a time. Empty, the default, is none.
	Path string

	// Timeout is the longest time that each of them may run. Required with a Path.
	Timeout time.Duration
}

// rejoinState is the state of the runs of the script. It belongs to Run's
// goroutine.
type rejoinState struct {
	running bool
	hosts   map[string]rejoinDelay // by host
}

type rejoinDelay struct {
	delay time.Duration // after the last run
	at    time.Time     // when the next run is allowed
}

// canRejoin reports whether a host of the cluster with an identity came back and is not
// usable: it accepts connections, and another check had a negative answer.
func canRejoin(h selector.Host, rules *selector.RoleRules, identity string) bool {
	if h.Drained || h.State != selector.Down || h.Checks[0].State != selector.Up {
		return false
	}
	if h.Says == role.Starting || h.Says == role.Replica && !h.Fact.Detached { // it is becoming one, or is one
		return false
	}
	if rules != nil && rules.Foreign(h.Fact, identity) != "" { // the data of another cluster
		return false
	}
	return !slices.ContainsFunc(h.Checks, func(k selector.Record) bool { return k.Last.Unknown })
}

// factOf is what a host said of itself last; nil without a role check.
func factOf(now selector.Snapshot, host string) *role.Fact {
	i := slices.IndexFunc(now.Hosts, func(h selector.Host) bool { return h.Name == host })
	if i < 0 {
		return nil
	}
	return now.Hosts[i].Fact
}

// watchRejoin runs the script for a host that needs it, while another is
// primary, and returns when it must be called again at the latest; zero for
// never.
func (c *Conductor) watchRejoin(ctx context.Context, at time.Time, now selector.Snapshot) (next time.Time) {
	r := &c.rejoin
	for _, h := range now.Hosts {
		if h.State == selector.Up {
			delete(r.hosts, h.Name)
		}
	}
	if c.cfg().Rejoin.Path == "" || r.running || now.Primary == "" || c.opening != nil || now.Frozen {
		return time.Time{}
	}
	for _, h := range now.Hosts {
		if h.Name == now.Primary || !canRejoin(h, c.cfg().roleCheck(), now.Identity) {
			continue
		}
		if due := r.hosts[h.Name].at; at.Before(due) {
			if next.IsZero() || due.Before(next) {
				next = due
			}
			continue
		}
		r.running = true
		why := unusable(h)
		c.log.Info("rejoin begins", "host", h.Name, "primary", now.Primary, "epoch", now.Epoch, "reason", why)
		env := hooks.ScriptEnv{
			Event: EventRejoin, Relay: c.cfg().Name, Epoch: now.Epoch, Old: h.Name, New: now.Primary, Reason: why,
			Address: now.Addr, OldAddress: h.Addr, Fact: factOf(now, now.Primary),
		}.Env()
		c.tasks.Go(func() {
			err := c.runRejoin(ctx, h.Name, env)
			c.reportRequest(ctx, func() selector.Event {
				c.rejoined(ctx, h.Name, err)
				return selector.Tick{}
			})
		})
		return time.Time{}
	}
	return next
}

// runRejoin runs the scripts for a host, until one fails.
func (c *Conductor) runRejoin(ctx context.Context, host string, env []string) error {
	cfg := c.cfg()
	scripts, warnings, err := hooks.List(cfg.Rejoin.Path)
	for _, w := range warnings {
		c.log.Warn("rejoin script skipped", "host", host, "error", w)
	}
	for _, script := range scripts {
		res := cfg.NoticeScripts.Run(ctx, hooks.Script{
			Kind: hooks.Trigger, Path: script, Args: []string{host}, Env: env, Timeout: cfg.Rejoin.Timeout,
			Fields: []any{"relay", cfg.Name, "host", host},
		})
		if !res.OK() {
			return res.Reason()
		}
	}
	return err
}

// rejoined processes the end of the script for a host.
func (c *Conductor) rejoined(ctx context.Context, host string, err error) {
	r := &c.rejoin
	r.running = false
	d := r.hosts[host]
	d.delay = min(max(2*d.delay, firstRejoinDelay), mostRejoinDelay)
	d.at = time.Now().Add(d.delay)
	if r.hosts == nil {
		r.hosts = map[string]rejoinDelay{}
	}
	r.hosts[host] = d
	if err != nil {
		c.log.Warn("rejoin failed", "host", host, "delay", d.delay, "error", err)
		c.notice(ctx, EventScriptFailed, host, fmt.Sprintf("rejoin: %v", err))
		return
	}
	c.log.Info("rejoin script ended", "host", host)
}
