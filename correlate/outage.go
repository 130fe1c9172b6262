package correlate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"understudy/failover"
	"understudy/health"
	"understudy/internal/address"
	"understudy/internal/fault"
	"understudy/selector"
)

const (
	// failedBefore leaves a host out of an outage that failed this much earlier
	// than the others.
	failedBefore = time.Minute

	// leastSlack is added to an interval: hosts that fail within the sum fail
	// together. Checks may start late on a busy machine. If half an interval is
	// more, that is added instead.
	leastSlack = 500 * time.Millisecond
)

// outage is an Outage and the hosts that it is about.
type outage struct {
	Outage
	places []place
}

// failing is a check that is down.
type failing struct {
	place
	check    string
	way      string // in which it fails
	since    time.Time
	interval time.Duration
}

// The ways in which checks fail. Any other way is the name of a check.
const (
	timeout     = "timeout"
	unreachable = "unreachable"
	firewall    = "firewall"
	refused     = "refused"
	reset       = "reset"
	resolve     = "resolve"

	// network is the kind of timeouts, missing routes and this machine's
	// firewall: no reply arrives. A cut link appears as a timeout or a missing
	// route.
	network = "network"
)

// kind returns the group of similar ways that f's way belongs to.
func (f failing) kind() string {
	switch f.way {
	case timeout, unreachable, firewall:
		return network
	case reset:
		return refused
	}
	return f.way
}

// findOutage begins or ends an outage.
func (d *Detector) findOutage(now time.Time, relays []failover.Status) []Change {
	var all []place
	down := map[string]map[place]failing{} // by kind, the first check of each host
	first := map[place]time.Time{}         // since when a host is down, in any way
	if d.answered == nil {
		d.answered = map[place]bool{}
	}
	for _, r := range relays {
		for _, h := range r.Hosts {
			p := place{r.Relay, h.Name}
			all = append(all, p)
			if h.State == selector.Up {
				d.answered[p] = true
			}
			for i, k := range h.Checks {
				if k.State != selector.Down || k.Failing.IsZero() {
					continue
				}
				f := failing{p, k.Name, wayOf(i, k), k.Failing, k.Interval}
				if down[f.kind()] == nil {
					down[f.kind()] = map[place]failing{}
				}
				if old, ok := down[f.kind()][p]; !ok || f.since.Before(old.since) {
					down[f.kind()][p] = f
				}
				if at, ok := first[p]; !ok || f.since.Before(at) {
					first[p] = f.since
				}
			}
		}
	}
	maps.DeleteFunc(d.answered, func(p place, _ bool) bool { return !slices.Contains(all, p) })
	if d.outage != nil {
		return d.endOutage(now, all, first)
	}
	kinds := slices.Collect(maps.Keys(down))
	slices.SortFunc(kinds, func(a, b string) int { // the kind with the most hosts comes first
		return cmp.Or(-cmp.Compare(len(down[a]), len(down[b])), cmp.Compare(a, b))
	})
	for _, kind := range kinds {
		if together := d.together(all, down[kind], first); together != nil {
			d.outage = d.describe(kind, together, len(all))
			o := d.outage
			fields := []any{"failure", o.Failure}
			if len(o.Network) > 0 {
				fields = append(fields, "network", strings.Join(o.Network, "; "))
			}
			return []Change{{Begun: true, Text: o.Text, Fields: fields}}
		}
	}
	return nil
}

// endOutage ends the outage when a host answers, or none of its hosts is
// configured any more.
func (d *Detector) endOutage(now time.Time, all []place, down map[place]time.Time) []Change {
	took := now.Sub(d.outage.Since).Round(100 * time.Millisecond)
	for _, p := range all {
		if _, ok := down[p]; !ok {
			d.outage = nil
			return []Change{{Text: "a host answers again after all had stopped answering", Fields: []any{"relay", p.relay, "host", p.host, "after", took}}}
		}
	}
	if !slices.ContainsFunc(d.outage.places, func(p place) bool { return slices.Contains(all, p) }) {
		d.outage = nil
		return []Change{{Text: "the hosts that had stopped answering are not configured any more", Fields: []any{"after", took}}}
	}
	return nil
}

// together returns the hosts that stopped answering at the same time in one way, the
// earliest first, without hosts that were down for long before. It returns nil when
// they did not fail together, or when another host answers.
func (d *Detector) together(all []place, down map[place]failing, first map[place]time.Time) []failing {
	var list []failing
	for _, f := range down {
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b failing) int {
		return cmp.Or(a.since.Compare(b.since), cmp.Compare(a.relay, b.relay), cmp.Compare(a.host, b.host))
	})
	last := list[len(list)-1].since
	list = slices.DeleteFunc(list, func(f failing) bool { return last.Sub(f.since) > failedBefore })
	for _, p := range all {
		if slices.ContainsFunc(list, func(f failing) bool { return f.place == p }) {
			continue
		}
		if at, ok := first[p]; !ok || last.Sub(at) <= failedBefore {
			return nil // it answers, or failed in another way
		}
	}
	var interval time.Duration
	names, answered := map[string]bool{}, false
	for _, f := range list {
		interval = max(interval, f.interval)
		names[f.host] = true
		answered = answered || d.answered[f.place]
	}
	switch spread := last.Sub(list[0].since); {
	case len(names) < 2, spread > interval+max(leastSlack, interval/2):
		return nil
	case !answered && list[0].kind() != network:
		return nil // services that have not been started yet
	}
	return list
}

// describe returns the outage of the hosts that stopped answering together.
func (d *Detector) describe(kind string, list []failing, configured int) *outage {
	o := &outage{Outage: Outage{Since: list[0].since}}
	within := list[len(list)-1].since.Sub(list[0].since)
	names, relays, ways, answered := map[string]bool{}, map[string]bool{}, map[string]bool{}, false
	for _, f := range list {
		o.places = append(o.places, f.place)
		names[f.host], relays[f.relay], ways[f.way] = true, true, true
		answered = answered || d.answered[f.place]
	}
	o.Hosts, o.Relays, o.WithinSeconds = len(names), len(relays), within.Seconds()
	o.Failure = strings.Join(sorted(ways), ", ")
	var problems, facts []string
	if d.Network != nil {
		problems, facts = d.Network()
	}
	o.Network = slices.Concat(problems, facts)

	which, what := "", "stopped answering"
	if len(list) < configured {
		which = " that still answered"
	}
	if !answered {
		what = "failed"
	}
	o.Text = fmt.Sprintf("all %d hosts of %s%s %s within %.1f s: %s", o.Hosts, count(o.Relays, "relay"), which, what, within.Seconds(),
		cause(kind, o.Failure, sorted(names), problems))
	return o
}

// cause returns a text with the likely cause of a common failure.
func cause(kind, ways string, hosts, problems []string) string {
	machine := machineOf(hosts[0])
	for _, h := range hosts {
		if machineOf(h) != machine {
			machine = ""
		}
	}
	local := !slices.ContainsFunc(hosts, func(h string) bool { return !isHere(machineOf(h)) })
	switch {
	case kind == resolve:
		return "the name servers, or the way to them, are the likely cause"
	case kind != network && kind != refused:
		return "what the check " + kind + " depends on is the likely cause"
	case ways == firewall:
		return "this machine's firewall is the likely cause"
	case machine != "" && !local:
		return "they are all on " + machine + ", which is the likely cause, or the way there"
	case kind == refused && local:
		return "this machine is the likely cause: they are all on it"
	case kind == refused:
		return "something that they have in common is the likely cause, and not one host"
	}
	text := "this machine's network is the likely cause"
	if len(problems) > 0 {
		text += " (" + strings.Join(problems, "; ") + ")"
	}
	return text
}

// wayOf returns the way in which k, the i-th check of its host, fails.
func wayOf(i int, k selector.Record) string {
	err := k.Failure.Err
	is := func(errs ...error) bool {
		return slices.ContainsFunc(errs, func(e error) bool { return errors.Is(err, e) })
	}
	switch phase := health.Phase(k.Failure.Phase); {
	case phase == health.Resolve:
		return resolve
	case phase == health.Script || phase == health.Criteria:
		return k.Name
	case is(syscall.ECONNREFUSED):
		return refused
	case is(syscall.ECONNRESET, syscall.EPIPE):
		return reset
	case fault.Firewall(err):
		return firewall
	case is(os.ErrDeadlineExceeded, context.DeadlineExceeded, syscall.ETIMEDOUT):
		return timeout
	case phase == health.Connect:
		return unreachable // no route, no address to connect from, a link that is down
	case i == 0:
		return timeout // a check that did not end
	}
	return k.Name
}

// machineOf returns the machine of a host, without its port.
func machineOf(host string) string {
	h, err := address.ParseHost(host)
	if err != nil {
		return host
	}
	return strings.ToLower(strings.TrimSuffix(h.Name, "."))
}

// isHere reports whether a machine is this one.
func isHere(machine string) bool {
	addr, err := netip.ParseAddr(machine)
	return machine == "" || machine == "localhost" || err == nil && addr.IsLoopback()
}

// count returns a number with its noun.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// sorted returns the keys of a map in order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
