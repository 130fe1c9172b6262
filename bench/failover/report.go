//go:build linux

package main

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// short is a duration with three digits.
func short(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d >= time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond))
}

// gapText returns the longest time without a served client, for a table.
func (o outcome) gapText() string {
	if o.never {
		return "over " + short(o.gap)
	}
	return short(o.gap)
}

// medianAndWorst picks two of the trials, in an order that begins with the
// best. Of an even number the median is the worse of the two in the middle.
func medianAndWorst(trials []result, by func(a, b result) int) (median, worst result) {
	sorted := slices.SortedFunc(slices.Values(trials), by)
	return sorted[len(sorted)/2], sorted[len(sorted)-1]
}

// twice is a median, and the worst in parentheses if that is another.
func twice(median, worst string) string {
	if median == worst {
		return median
	}
	return median + " (" + worst + ")"
}

// table shows all results: a row for each fault and proxy, those of pools in a
// table of their own.
func (d *driver) table() string {
	tables := []string{d.rows("", "clients"), d.rowsOfOpenings(), d.rows(pools, "requests")}
	return strings.Join(slices.DeleteFunc(tables, func(t string) bool { return t == "" }), "\n")
}

// rows is the table of the faults with a load. It is empty if none of them was
// tried.
func (d *driver) rows(load, lost string) string {
	var b strings.Builder
	for _, f := range faults() {
		for _, p := range d.proxies {
			var trials []result
			for _, r := range d.results {
				if f.load == load && r.fault == f.name && r.proxy == p.name {
					trials = append(trials, r)
				}
			}
			if len(trials) > 0 {
				b.WriteString(row(f.name, p.name, trials))
			}
		}
	}
	if b.Len() == 0 {
		return ""
	}
	return "| primary is | proxy | longest gap | " + lost + " lost | p99.9 | slowest | served by db1 / db2 | wrong | sessions left |\n" +
		"|---|---|---|---|---|---|---|---|---|\n" + b.String()
}

// row shows the trials of one fault and proxy.
func row(fault, proxy string, trials []result) string {
	duration := func(of func(result) time.Duration) string { return durations(trials, of) }
	count := func(of func(result) int) string { return counts(trials, of) }
	served := map[string]int{}
	for _, t := range trials {
		for host, n := range t.by {
			served[host] += n
		}
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %d / %d | %s | %s |\n", fault, proxy,
		gaps(trials),
		count(func(r result) int { return r.lost }),
		duration(func(r result) time.Duration { return r.p999 }),
		duration(func(r result) time.Duration { return r.slowest }),
		served[oldHost], served[newHost],
		count(func(r result) int { return r.wrong }),
		count(func(r result) int { return r.left }))
}

// gaps is the longest gap of the trials.
func gaps(trials []result) string {
	median, worst := medianAndWorst(trials, func(a, b result) int {
		if a.never != b.never {
			return map[bool]int{true: 1, false: -1}[a.never] // never is longer than any time
		}
		return cmp.Compare(a.gap, b.gap)
	})
	return twice(median.gapText(), worst.gapText())
}

func durations(trials []result, of func(result) time.Duration) string {
	median, worst := medianAndWorst(trials, func(a, b result) int { return cmp.Compare(of(a), of(b)) })
	return twice(short(of(median)), short(of(worst)))
}

func counts(trials []result, of func(result) int) string {
	median, worst := medianAndWorst(trials, func(a, b result) int { return cmp.Compare(of(a), of(b)) })
	return twice(fmt.Sprint(of(median)), fmt.Sprint(of(worst)))
}

// losses lists why clients or requests were lost, for each fault and proxy with
// losses.
func (d *driver) losses(load string) string {
	var b strings.Builder
	for _, f := range faults() {
		if f.load != load {
			continue
		}
		for _, p := range d.proxies {
			reasons, greeted, lost := map[string]int{}, 0, 0
			for _, r := range d.results {
				if r.fault != f.name || r.proxy != p.name {
					continue
				}
				lost += r.lost
				greeted += r.greeted
				for what, n := range r.reasons {
					reasons[what] += n
				}
			}
			if lost > 0 {
				fmt.Fprintf(&b, "- %s, %s: %s; %d of %d had been greeted by db1\n", f.name, p.name, describeReasons(reasons), greeted, lost)
			}
		}
	}
	return b.String()
}

// machine describes the machine of the run, as far as it matters.
type machine struct {
	date, processor, kernel, load string
	versions                      []string
}

func describe(ctx context.Context, list []proxy) machine {
	m := machine{
		date:      time.Now().UTC().Format("2006-01-02 15:04 MST"),
		processor: fmt.Sprintf("%d × %s", runtime.NumCPU(), processorName()),
		load:      "unknown",
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.load = strings.Join(strings.Fields(string(text))[:3], " ")
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.kernel = unix.ByteSliceToString(name.Release[:]) + " " + unix.ByteSliceToString(name.Machine[:])
	}
	for _, p := range list {
		if v := p.version(ctx); !slices.Contains(m.versions, v) {
			m.versions = append(m.versions, v)
		}
	}
	return m
}

// processorName is the model name of the processors.
func processorName() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	name, virtual := "unknown processor", ""
	for line := range bytes.Lines(text) {
		key, value, _ := strings.Cut(string(line), ":")
		switch strings.TrimSpace(key) {
		case "model name":
			name = strings.TrimSpace(value)
		case "flags":
			if strings.Contains(value+" ", " hypervisor ") {
				virtual = ", a virtual machine"
			}
		}
	}
	return name + virtual
}

//go:embed preface.md
var preface string

//go:embed limits.md
var limits string

// The parts of the page that have results. Each ends where the next heading of
// its rank begins, and states the run that it is from.
const (
	resultsHeading = "## Results\n"
	poolsHeading   = "## Clients with pools\n"
	firstHeading   = "## Clients that speak first\n"
)

// report is the whole page. A part without results is taken from the earlier
// page, with the run that it states.
func (d *driver) report(m machine, earlier string) string {
	var b strings.Builder
	b.WriteString(preface + "\n")
	b.WriteString(cmp.Or(d.resultsOfClients(m), part(earlier, resultsHeading)))
	b.WriteString(cmp.Or(d.resultsOfOpenings(m), part(earlier, firstHeading)))
	b.WriteString(cmp.Or(d.resultsOfPools(m), part(earlier, poolsHeading)))
	b.WriteString("## Settings\n")
	s := example()
	for _, p := range d.proxies {
		fmt.Fprintf(&b, "\n**%s.** %s Replaced by: %s.\n\n```\n%s```\n", p.name, p.about, p.replaces, p.settings(s))
	}
	b.WriteString("\n" + limits)
	return b.String()
}

// part is a part of a page, with its heading; empty if there is none.
func part(page, heading string) string {
	_, text, found := strings.Cut(page, "\n"+heading)
	if !found {
		return ""
	}
	if end := strings.Index(text, "\n## "); end >= 0 {
		text = text[:end+1]
	}
	return heading + text
}

// resultsOfClients is the part on 200 clients a second; empty without results.
func (d *driver) resultsOfClients(m machine) string {
	table := d.rows("", "clients")
	if table == "" {
		return ""
	}
	var b strings.Builder
	b.WriteString(resultsHeading)
	fmt.Fprintf(&b, "\n%d rounds. Medians; the worst round in parentheses where it differs.\n\n%s\n", d.settings.rounds, table)
	for _, f := range faults() {
		if f.load == "" {
			fmt.Fprintf(&b, "- **%s**: %s\n", f.name, f.about)
		}
	}
	b.WriteString("\n| column | |\n|---|---|\n" +
		"| longest gap | longest time between two new clients that were answered; *over* when none was until the end |\n" +
		"| clients lost | refused, reset, ended early, or not answered within 10 s |\n" +
		"| p99.9, slowest | of the clients that were answered: from their connect to the answer |\n" +
		"| served by | over all rounds |\n" +
		"| wrong | clients and sessions that db1 answered after db2 had answered one: two primaries at a time |\n" +
		"| sessions left | of 10 that stay connected: still open to db1 at the end |\n")
	if text := d.losses(""); text != "" {
		b.WriteString("\nWhy clients were lost, over all rounds:\n\n" + text)
	}
	b.WriteString("\n" + d.run(m, "") + "\n")
	return b.String()
}

// resultsOfPools is the part on pools; empty without results.
func (d *driver) resultsOfPools(m machine) string {
	table := d.rows(pools, "requests")
	if table == "" {
		return ""
	}
	var b strings.Builder
	b.WriteString(poolsHeading)
	fmt.Fprintf(&b, "\nThe load is that of applications with pools: %d connections that are kept, each with a\n"+
		"request %s after the last answer, and no other clients. The primary gets SIGKILL, which\n"+
		"ends all connections within milliseconds. A connection that has ended is replaced at once,\n"+
		"and a connect that is not served is repeated every %s. The longest gap is the time until\n"+
		"the service answers again; lost are requests and connects. %d rounds.\n\n%s",
		pooled, short(poolPace), short(poolRetry), d.settings.rounds, table)
	if text := d.losses(pools); text != "" {
		b.WriteString("\nWhy requests were lost, over all rounds:\n\n" + text)
	}
	b.WriteString("\n" + d.run(m, pools) + "\n")
	return b.String()
}

// run describes the run that a part of the page is from.
func (d *driver) run(m machine, load string) string {
	late := time.Duration(0)
	for _, r := range d.results {
		late = max(late, r.late)
	}
	var b strings.Builder
	b.WriteString("The run of this table:\n\n")
	fmt.Fprintf(&b, "- %s, %s, Linux %s, loopback in a network namespace of its own\n", m.date, m.processor, m.kernel)
	fmt.Fprintf(&b, "- %s; load and hosts: %s\n", strings.Join(m.versions, "; "), runtime.Version())
	fmt.Fprintf(&b, "- load average before the run: %s", m.load)
	if load != pools {
		fmt.Fprintf(&b, "; a client of the load came %s too late at worst, so a gap below that says nothing", short(late))
	}
	b.WriteString("\n")
	for _, text := range d.missing {
		fmt.Fprintf(&b, "- not there: %s\n", text)
	}
	for _, text := range d.failed {
		fmt.Fprintf(&b, "- **failed**: %s\n", text)
	}
	return b.String()
}

// example is a site to show settings for.
func example() site {
	return site{
		dir:    "/run/example",
		listen: netip.AddrPortFrom(netip.MustParseAddr(proxyIP), 5432),
		old:    netip.AddrPortFrom(netip.MustParseAddr(oldIP), 5432),
		new:    netip.AddrPortFrom(netip.MustParseAddr(newIP), 5432),
		pings:  8008,
	}
}
