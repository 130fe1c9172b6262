package failover

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"understudy/health"
	"understudy/internal/address"
	"understudy/selector"
)

const (
	// addressTimeout is the time for which a check waits for one address when the name
	// has another one.
	addressTimeout = 250 * time.Millisecond

	// outageTimeout is the longest time that a name may have no answer before that is
	// logged.
	outageTimeout = 3 * time.Second
)

// Names resolves host names; see [health.Resolver].
type Names interface {
	Lookup(ctx context.Context, name string) health.Lookup
	Refresh(name string) health.Lookup
	Known(name string) health.Lookup
}

// Address is the address that a host name resolves to.
type Address struct {
	// Addr is the address for the host's checks and, while the host is primary,
	// for its clients. Zero when no check has passed yet.
	Addr netip.Addr

	// Confirmed is the time of the last answer of the name servers that contained
	// Addr; zero when there was none in the last 10 minutes.
	Confirmed time.Time

	// Source is the source of the last good answer: "name server 192.0.2.53:53"
	// or "hosts file".
	Source string

	// Others are the other addresses of the last good answer.
	Others []netip.Addr

	// Err is why the last query had no good answer; nil when it had.
	Err error
}

// Address returns what the name of a host resolves to; false for a host that is
// not a name.
func (c *Conductor) Address(host string) (Address, bool) {
	name := c.nameOf(host)
	if name == "" {
		return Address{}, false
	}
	l := c.cfg().Names.Known(name)
	h, _ := c.Status().host(host)
	return Address{
		Addr: h.Addr, Confirmed: l.Confirmed(h.Addr), Source: l.Source, Err: l.Err,
		Others: slices.DeleteFunc(l.Addrs, func(a netip.Addr) bool { return a == h.Addr }),
	}, true
}

// nameOf returns the name of a host; empty for an IP address or a unix socket,
// and when there is no resolver.
func (c *Conductor) nameOf(host string) string {
	if c.cfg().Names == nil {
		return ""
	}
	h, err := address.ParseHost(host)
	if err != nil {
		return ""
	}
	if h.IP().IsValid() {
		return ""
	}
	return h.Name
}

// connectTo returns the connection string of a host at an address of its name,
// which the gate opens to. It is the host's own where addr is zero.
func connectTo(host string, addr netip.Addr) string {
	h, err := address.ParseHost(host)
	if err != nil || !addr.IsValid() {
		return host
	}
	return netip.AddrPortFrom(addr, h.Port).String()
}

// addresses holds what the checks found out about the addresses of hosts, in
// addition to the answers of name servers. Its methods may be called from many
// goroutines.
type addresses struct {
	mu       sync.Mutex
	dropped  map[place]time.Time  // addresses that failed when they were stale, and when
	tried    map[string]time.Time // by host: when another address was last tried for a primary
	reported map[string]string    // by host, or by two of them: the problem of its name, as it was logged

	found map[string]netip.Addr // by host: where its first check passed last
}

// place is one address of one host.
type place struct {
	host string
	addr netip.Addr
}

func newAddresses() *addresses {
	return &addresses{dropped: map[place]time.Time{}, tried: map[string]time.Time{}, reported: map[string]string{}, found: map[string]netip.Addr{}}
}

// drop excludes an address until the name servers return it again.
func (a *addresses) drop(host string, addr netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dropped[place{host, addr}] = time.Now()
}

// usable returns addrs without those that were dropped.
func (a *addresses) usable(host string, l health.Lookup, addrs []netip.Addr) ([]netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var left []netip.Addr
	for _, addr := range addrs {
		at, dropped := a.dropped[place{host, addr}]
		switch {
		case !dropped:
		case at.Before(l.Confirmed(addr)):
			delete(a.dropped, place{host, addr})
		default:
			continue
		}
		left = append(left, addr)
	}
	if len(left) == 0 {
		return nil, fmt.Errorf("%v failed a check after the name servers had not confirmed it for long: it may be another machine's now", addrs[0])
	}
	return left, nil
}

// mayTry reports whether a primary's other addresses may be tried now, at most
// once in every.
func (a *addresses) mayTry(host string, every time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.tried[host]) < every {
		return false
	}
	a.tried[host] = time.Now()
	return true
}

// changed reports whether the problem of a host's name, empty for none, differs
// from the one logged last.
func (a *addresses) changed(host, wrong string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := a.reported[host]
	a.reported[host] = wrong
	return was != wrong
}

// alike records where a check of host passed, and returns the hosts that are at
// the same address and port, each pair once. Spellings of one host are left
// out: validation of the settings warns of them.
func (a *addresses) alike(host string, addr netip.Addr, hosts []string) (same []string) {
	own, err := address.ParseHost(host)
	if err != nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.found[host] == addr {
		return nil
	}
	a.found[host] = addr
	for _, other := range hosts {
		h, err := address.ParseHost(other)
		if err != nil || h.Port != own.Port || h.Canonical() == own.Canonical() || h.IP() != addr && a.found[other] != addr {
			continue
		}
		pair := min(host, other) + " " + max(host, other)
		if a.reported[pair] == "" {
			a.reported[pair] = "one address"
			same = append(same, other)
		}
	}
	return same
}

// found is the result of the first check of a host.
type found struct {
	health.Result
	addr      netip.Addr
	noAddress bool
	final     bool
}

// checkName runs j, the first check of a host name.
func (c *Conductor) checkName(ctx context.Context, j job) found {
	if j.pinned && j.addr.IsValid() {
		return c.checkPinned(ctx, j)
	}
	limited, cancel := context.WithTimeout(ctx, j.check.Timeout)
	defer cancel()
	began := time.Now()
	until := began.Add(j.check.Timeout)
	l, addrs, err := c.candidates(limited, j, j.name)
	if err != nil {
		res := health.NewResult(limited, began, health.Resolve, err)
		res.Unknown = true
		return found{Result: res, addr: j.addr, noAddress: true}
	}
	f := found{}
	var failed error
	for i, addr := range addrs {
		// Its share of the time.
		timeout, left := time.Until(until), len(addrs)-i
		if left > 1 {
			timeout = min(addressTimeout, timeout/time.Duration(left))
		}
		f = found{Result: c.run(ctx, j, addr, timeout), addr: addr}
		if f.OK || f.Unknown {
			break
		}
		if l.Stale(addr, c.cfg().DNSHold) {
			c.addresses.drop(j.host, addr)
		}
		failed = joined(failed, f.Err)
		f.Err = failed
		if limited.Err() != nil {
			break
		}
	}
	f.Latency = time.Since(began)
	return f
}

// joined returns both errors in one line.
func joined(a, b error) error {
	if a == nil {
		return b
	}
	return fmt.Errorf("%w; %w", a, b)
}

// checkPinned runs j at its host's address only. The name is looked up at the
// same time: slow name servers do not delay a check of a primary.
func (c *Conductor) checkPinned(ctx context.Context, j job) found {
	l := c.cfg().Names.Refresh(j.name)
	f := found{Result: c.run(ctx, j, j.addr, j.check.Timeout), addr: j.addr}
	if !f.OK && !f.Unknown && l.Stale(j.addr, c.cfg().DNSHold) {
		c.addresses.drop(j.host, j.addr)
		f.final = true
		f.Err = fmt.Errorf("%w; the name servers have not confirmed the address for long, so it is not used again", f.Err)
	}
	return f
}

// candidates returns the addresses at which to run j, in that order: the host's
// own one first, or last if another one is to be tried.
func (c *Conductor) candidates(ctx context.Context, j job, name string) (health.Lookup, []netip.Addr, error) {
	l := c.cfg().Names.Lookup(ctx, name)
	addrs, err := l.Usable(c.cfg().DNSHold)
	if err == nil {
		addrs, err = c.addresses.usable(j.host, l, addrs)
	}
	if err != nil {
		return l, nil, err
	}
	if i := slices.Index(addrs, j.addr); i >= 0 {
		if j.next {
			i++
		}
		addrs = slices.Concat(addrs[i:], addrs[:i])
	}
	return l, addrs, nil
}

// follow looks up, after a check of a primary passed, whether its name resolves
// to another address, and reports that to the machine when all checks pass
// there.
func (c *Conductor) follow(ctx context.Context, j job) {
	l := c.cfg().Names.Known(j.name)
	if !l.Left(j.addr, c.cfg().DNSHold) {
		c.noteName(j, l)
		return
	}
	every := time.Duration(0)
	for _, k := range c.cfg().Checks {
		every = max(every, k.Interval)
	}
	if !c.addresses.mayTry(j.host, every) {
		return
	}
	var bad string
	for _, addr := range l.Addrs {
		steps := c.tryAt(ctx, j.host, addr)
		if last := steps[len(steps)-1]; !last.OK {
			bad = fmt.Sprintf("%s: %s", last.Name, last.Detail)
			continue
		}
		c.report(selector.Relocated{Host: j.host, Addr: addr})
		return
	}
	if ctx.Err() == nil && c.addresses.changed(j.host, "left") {
		c.log.Warn("name resolves to another address, which fails its checks: the primary keeps its address",
			"host", j.host, "address", j.addr, "now", l.Addrs, "error", bad)
	}
}

// noteName logs once what is wrong with the name of a primary, and when it is
// correct again.
func (c *Conductor) noteName(j job, l health.Lookup) {
	wrong, text := "", "name resolves again"
	switch gone := !l.Denied.IsZero() && time.Since(l.Denied) >= c.cfg().DNSHold; {
	case gone:
		wrong, text = "gone", "name does not exist: the host is not elected any more, and stays primary while its checks pass"
	case l.Err != nil && time.Since(l.At) >= outageTimeout:
		wrong, text = "outage", "name does not resolve: the last address stays in use"
	case l.Err != nil:
		return
	}
	if !c.addresses.changed(j.host, wrong) {
		return
	}
	fields := []any{"host", j.host, "address", j.addr, "confirmed", since(l.At)}
	if wrong == "" {
		c.log.Info(text, fields...)
		return
	}
	c.log.Warn(text, append(fields, "error", l.Err)...)
}

// tryAt runs every check of a host at an address of its name, one after the
// other, until one fails; at the host's own where addr is zero. The results are
// not passed to the machine.
func (c *Conductor) tryAt(ctx context.Context, host string, addr netip.Addr) []Step {
	cfg := *c.cfg()
	cfg.Scripts = inTurn{c}
	o := c.scriptEnv(c.Snapshot(), host, addr)
	if addr.IsValid() {
		ctx = health.At(ctx, c.nameOf(host), addr)
	}
	return cfg.try(ctx, host, o)
}

// tryAddresses does the same at the address of a primary, and for another host
// at each address until all checks pass.
func (c *Conductor) tryAddresses(ctx context.Context, now Status, host string) (steps []Step) {
	name := c.nameOf(host)
	h, _ := now.host(host)
	if name == "" || host == now.Elect && h.Addr.IsValid() {
		return c.tryAt(ctx, host, h.Addr)
	}
	first := c.cfg().Checks[0]
	limited, cancel := context.WithTimeout(ctx, first.Timeout)
	defer cancel()
	_, addrs, err := c.candidates(limited, job{host: host, addr: h.Addr}, name)
	if err != nil {
		return []Step{{Name: first.Name, Phase: string(health.Resolve), Detail: err.Error()}}
	}
	for _, addr := range addrs {
		if steps = c.tryAt(ctx, host, addr); steps[len(steps)-1].OK {
			break
		}
	}
	return steps
}

// addressOf returns the current address of a host; zero for none.
func (c *Conductor) addressOf(host string) netip.Addr {
	h, _ := c.Status().host(host)
	return h.Addr
}
