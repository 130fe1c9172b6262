package failover

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"understudy/health"
	"understudy/hooks"
	"understudy/selector"
)

// exitGrace is the time for which Run waits for an ended script after its context has
// ended: longer than the runner needs to kill it, but bounded, because a
// process can hang in the kernel.
const exitGrace = 5 * time.Second

// job is one check of one host that the machine has requested.
type job struct {
	id    uint64
	host  string
	name  string // of the host; empty where it is none
	check Check
	key   string    // equal for equal checks of several relays
	since time.Time // see [selector.StartCheck]
	env   []string  // of a script

	first        bool // its result decides the address
	addr         netip.Addr
	pinned, next bool // see [selector.StartCheck]
}

// job collects what the check needs, on Run's goroutine.
func (c *Conductor) job(a selector.StartCheck) job {
	r := c.settings.Load()
	j := job{
		id: a.ID, host: a.Host, name: c.nameOf(a.Host), check: r.Checks[a.Check], key: r.keys[a.Check], since: a.Since,
		first: a.Check == 0, addr: a.Addr, pinned: a.Pinned, next: a.Next,
	}
	if j.check.Script != "" {
		j.env = c.scriptEnv(c.machine.Snapshot(), a.Host, a.Addr).Env()
	}
	return j
}

// start starts j, and reports its result later. Only a script, a name that has to be
// resolved and, without a Checker, any check take a goroutine.
func (c *Conductor) start(ctx context.Context, j job) {
	checker := c.cfg().Checker
	if checker == nil || j.check.Script != "" || j.name != "" && j.first {
		c.tasks.Go(func() { c.check(ctx, j) })
		return
	}
	//nolint:contextcheck // a check of several relays ends by its own timeout
	checker.Start(j.query(c, j.atName(), j.check.Timeout), func(r health.Result) {
		if ctx.Err() == nil { // otherwise Run has ended
			c.checked(j, found{Result: r}, false)
		}
	})
}

// atName returns the address of j's host; zero where the host is no name.
func (j job) atName() netip.Addr {
	if j.name == "" {
		return netip.Addr{}
	}
	return j.addr
}

// query returns j for the Checker, at an address of its host's name; zero for none.
func (j job) query(by any, addr netip.Addr, timeout time.Duration) health.Query {
	return health.Query{
		Check: j.check.Run, Connect: j.check.Connect, Key: j.key, Host: j.host, Addr: addr, Since: j.since, By: by, Timeout: timeout,
	}
}

// run runs j, which is no script, at an address of its host's name, zero for none, and
// returns the result.
func (c *Conductor) run(ctx context.Context, j job, addr netip.Addr, timeout time.Duration) health.Result {
	if checker := c.cfg().Checker; checker != nil {
		return checker.Run(ctx, j.query(c, addr, timeout))
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if addr.IsValid() {
		ctx = health.At(ctx, j.name, addr)
	}
	return j.check.Run(ctx, j.host)
}

// scriptEnv is the environment of a check script: the election that would make
// its host primary, at an address if it is a name.
func (c *Conductor) scriptEnv(now selector.Snapshot, host string, addr netip.Addr) hooks.ScriptEnv {
	o := hooks.ScriptEnv{
		Event:  hooks.EventFailover,
		Relay:  c.cfg().Name,
		Epoch:  now.Epoch,
		Old:    now.Elect,
		New:    host,
		Reason: "check",

		Address: addr, OldAddress: now.Addr,
	}
	switch {
	case now.Elect == "":
		o.Event = hooks.EventStart
	case now.Elect == host && now.Addr == addr:
		o.Event = hooks.EventReselect
	case now.Elect == host:
		o.Event = hooks.EventMoved
	}
	return o
}

// check runs j and reports its result.
func (c *Conductor) check(ctx context.Context, j job) {
	switch {
	case j.check.Script != "":
		c.checkByScript(ctx, j)
	case j.name != "" && j.first:
		f := c.checkName(ctx, j)
		c.checked(j, f, false)
		if f.OK {
			for _, other := range c.addresses.alike(j.host, f.addr, c.cfg().Hosts) {
				c.log.Warn("two hosts are one address: a failover between them changes nothing", "host", j.host, "other", other, "address", f.addr)
			}
		}
		if f.OK && j.pinned {
			c.follow(ctx, j)
		}
	default:
		c.checked(j, found{Result: c.run(ctx, j, j.atName(), j.check.Timeout)}, false)
	}
}

// checkByScript runs j's script. It reports the outcome as soon as it is known,
// and the end of the script when it has ended.
func (c *Conductor) checkByScript(ctx context.Context, j job) {
	script := j.check.script(c.cfg().Name, j.host, j.env)
	free, err := c.turn(ctx, script)
	if err != nil {
		return // Run has ended
	}
	defer free()
	res := c.cfg().Scripts.Run(ctx, script)
	c.checked(j, found{Result: resultOf(res)}, true)
	select {
	case <-res.Reaped:
		c.report(selector.Ended{ID: j.id})
		return
	case <-ctx.Done():
	}
	grace := time.NewTimer(exitGrace)
	defer grace.Stop()
	select {
	case <-res.Reaped:
	case <-grace.C:
	}
}

// script returns the script that k runs for a host of a relay.
func (k Check) script(relay, host string, env []string) hooks.Script {
	return hooks.Script{
		Kind: hooks.Check, Path: k.Script, Args: append(slices.Clone(k.Args), host), Env: env, Timeout: k.Timeout,
		Fields: []any{"relay", relay, "host", host},
	}
}

// resultOf returns what the end of a script means for its host.
func resultOf(res hooks.Result) health.Result {
	return health.Result{OK: res.OK(), Unknown: res.Unknown, Phase: health.Script, Err: res.Reason(), Latency: res.Took}
}

// checked reports the result of j.
func (c *Conductor) checked(j job, res found, running bool) {
	if res.OK && j.first {
		if h, fails := c.failsByHang(j.host); fails {
			res.OK, res.Err = false, errors.New(h.String())
		}
	}
	if !res.OK {
		c.log.Debug("check failed", "host", j.host, "check", j.check.Name, "phase", string(res.Phase), "unknown", res.Unknown, "latency", res.Latency, "error", res.Err)
	}
	c.measure.check(CheckOf{j.host, j.check.Name}, res.OK, res.Unknown, res.Latency)
	if !res.Unknown {
		c.evidence.note(j.host, j.check.Name, string(res.Phase), res.OK, res.Err)
	}
	c.report(selector.Result{
		ID: j.id, OK: res.OK, Unknown: res.Unknown, Running: running,
		Phase: string(res.Phase), Err: res.Err, Latency: res.Latency,
		Addr: res.addr, NoAddress: res.noAddress, Final: res.final, Fact: res.Fact,
	})
}
