//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"understudy/bench/program"

	"golang.org/x/sys/unix"
)

// fault is a fault of the primary.
type fault struct {
	name  string
	about string
	load  string        // who the clients are: "" are those that wait for a greeting
	after time.Duration // for how long clients go on coming; zero is the usual time
	cause func(ctx context.Context, t *trial) error
}

func faults() []fault {
	all := []fault{
		{name: "killed", about: "its process gets SIGKILL; its machine lives and refuses connections",
			cause: func(_ context.Context, t *trial) error { return t.old.Signal(syscall.SIGKILL) }},
		{name: "stopped", about: "its process gets SIGSTOP; its kernel goes on accepting connections, but no process answers",
			cause: func(_ context.Context, t *trial) error { return t.old.Signal(syscall.SIGSTOP) }},
		{name: "silenced", about: "every packet to and from its address is swallowed, as when its cable is pulled",
			cause: func(ctx context.Context, _ *trial) error { return silence(ctx, oldIP) }},
		{name: "replaced", about: "nothing is wrong with it: an operator makes the other host primary", after: plannedTime,
			cause: func(ctx context.Context, t *trial) error { return t.proxy.replace(ctx, t.site, t.relay) }},
		{name: "killed, pools", about: "its process gets SIGKILL; its machine lives and refuses connections", load: pools,
			cause: func(_ context.Context, t *trial) error { return t.old.Signal(syscall.SIGKILL) }},
	}
	for _, f := range all {
		if f.load == "" {
			f.name, f.load = f.name+", "+clientFirst, clientFirst
			all = append(all, f)
		}
	}
	return all
}

// The loads beside the usual one, as the flag -only and the page name them.
const (
	pools       = "pools"        // connections that stay, and no others
	clientFirst = "client first" // clients that speak first
)

// trial is one proxy, one fault.
type trial struct {
	proxy      proxy
	fault      fault
	site       site
	old, relay *program.Process
}

// result is the outcome of a trial.
type result struct {
	round        int
	proxy, fault string
	outcome
}

// The hosts have addresses of their own, so that packets of one can be dropped.
const (
	oldIP   = "127.0.0.11"
	newIP   = "127.0.0.12"
	proxyIP = "127.0.0.1"
)

// driver runs trials.
type driver struct {
	settings
	dir      string
	proxies  []proxy
	missing  []string // proxies that are missing, and why
	port     uint16   // the last one that was given out
	progress io.Writer
	results  []result
	failed   []string // trials that could not be measured
}

// errFailed is returned when a trial could not be measured.
var errFailed = errors.New("not every trial could be measured; the report says which and why")

// errInterrupted is returned after Ctrl-C.
var errInterrupted = errors.New("interrupted")

// drive does a whole run and writes the table to stdout, and the report to the
// file that a flag names. Everything that it started has ended when it returns.
func drive(ctx context.Context, s settings, stdout, progress io.Writer) error {
	if err := prepareNamespace(ctx); err != nil {
		return err
	}
	if err := raiseDescriptors(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "understudy-failover-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d := &driver{settings: s, dir: dir, port: 11000, progress: progress}
	for _, p := range proxies(s.understudy) {
		if err := p.installed(); err != nil {
			d.missing = append(d.missing, fmt.Sprintf("%s: %v", p.name, err))
			d.say("SKIP: %s: %v", p.name, err)
			continue
		}
		d.proxies = append(d.proxies, p)
	}
	about := describe(ctx, d.proxies)
	d.rounds(ctx)
	if ctx.Err() != nil {
		return errInterrupted // a table of half a run would mislead
	}
	if len(d.results)+len(d.failed) == 0 {
		return errors.New("nothing to measure: -only matches no trial")
	}
	if _, err := io.WriteString(stdout, d.table()); err != nil {
		return err
	}
	if s.out != "" {
		page, err := os.ReadFile(s.out) // of an earlier run
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(s.out, []byte(d.report(about, string(page))), 0o644); err != nil { //nolint:gosec // G306: a page to read
			return err
		}
	}
	if len(d.failed) > 0 {
		return errFailed
	}
	return nil
}

// raiseDescriptors raises the descriptor limit of every process to a few
// thousand waiting clients.
func raiseDescriptors() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	const needed = 2*maxConnections + 500
	if limit.Max < needed {
		return fmt.Errorf("needs a limit of %d descriptors (ulimit -n), not %d", needed, limit.Max)
	}
	// Through syscall and not unix, or Go would give children the old one.
	raised := syscall.Rlimit{Cur: limit.Max, Max: limit.Max}
	return os.NewSyscallError("setrlimit", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised))
}

func (d *driver) say(format string, args ...any) {
	_, _ = fmt.Fprintf(d.progress, format+"\n", args...)
}

// rounds runs all trials. The proxies take turns, and each round begins with
// another one.
func (d *driver) rounds(ctx context.Context) {
	for round := range d.settings.rounds {
		for _, f := range faults() {
			for i := range d.proxies {
				p := d.proxies[(i+round)%len(d.proxies)]
				name := f.name + "/" + p.name
				if !d.only.MatchString(name) || f.load == clientFirst && p.name == defaults {
					continue
				}
				o, err := d.try(ctx, p, f, d.warm+d.spread*time.Duration(round)/time.Duration(d.settings.rounds))
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					d.say("round %d, %s: FAILED: %v", round+1, name, err)
					d.failed = append(d.failed, fmt.Sprintf("round %d, %s: %v", round+1, name, err))
					continue
				}
				d.say("round %d, %s: %v", round+1, name, o)
				d.results = append(d.results, result{round: round + 1, proxy: p.name, fault: f.name, outcome: o})
			}
		}
	}
}

// try runs one trial with new hosts and a new proxy on new ports.
func (d *driver) try(ctx context.Context, p proxy, f fault, warm time.Duration) (outcome, error) {
	dir, err := os.MkdirTemp(d.dir, "trial-")
	if err != nil {
		return outcome{}, err
	}
	defer os.RemoveAll(dir)
	d.port += 3
	t := &trial{proxy: p, fault: f, site: site{
		dir:    dir,
		listen: netip.AddrPortFrom(netip.MustParseAddr(proxyIP), d.port),
		old:    netip.AddrPortFrom(netip.MustParseAddr(oldIP), d.port+1),
		new:    netip.AddrPortFrom(netip.MustParseAddr(newIP), d.port+1),
		pings:  d.port + 2,
	}}
	start := func(name string, leash syscall.Signal, argv ...string) (*program.Process, error) {
		return program.Start(ctx, program.Settings{Name: name, Dir: dir, Leash: leash}, argv...)
	}
	var says opening
	for _, h := range []struct {
		name string
		addr netip.AddrPort
	}{{newHost, t.site.new}, {oldHost, t.site.old}} {
		argv := []string{"/proc/self/exe", roleHost, h.name, h.addr.String(), netip.AddrPortFrom(h.addr.Addr(), t.site.pings).String()}
		if f.load == clientFirst {
			says, argv = openings()[0], append(argv, clientFirst)
		}
		child, err := start(h.name, syscall.SIGKILL, argv...)
		if err != nil {
			return outcome{}, err
		}
		defer child.Stop(syscall.SIGKILL)
		if err := ready(ctx, h.addr, child, h.name, says); err != nil {
			return outcome{}, err
		}
		t.old = child // the last one
	}
	if f.load == clientFirst && p.name == subject {
		t.site.pings = 0 // its clients notice everything
	}
	argv, err := p.argv(t.site)
	if err != nil {
		return outcome{}, err
	}
	if t.relay, err = start(filepath.Base(p.program), p.leash, argv...); err != nil {
		return outcome{}, err
	}
	defer t.relay.Stop(syscall.SIGKILL)
	if err := ready(ctx, t.site.listen, t.relay, oldHost, says); err != nil {
		return outcome{}, err
	}
	return d.strike(ctx, t, warm)
}

// strike puts load on a running proxy, and then causes the fault.
func (d *driver) strike(ctx context.Context, t *trial, warm time.Duration) (outcome, error) {
	start := startLoad
	switch t.fault.load {
	case pools:
		start = startPools
	case clientFirst:
		start = startOpenings
	}
	g := start(ctx, t.site.listen.String())
	program.Pause(ctx, warm)
	by, lost := g.served()
	var err error
	if lost > 0 || by[oldHost] == 0 || len(by) > 1 {
		err = fmt.Errorf("before the fault, with all well: %d clients lost, served %v", lost, by)
	} else {
		err = t.fault.cause(ctx, t)
	}
	if err == nil {
		after := t.fault.after
		if after == 0 {
			after = d.after
		}
		program.Pause(ctx, min(after, d.after))
	}
	l := g.finish()
	err = errors.Join(err, endSilence(context.WithoutCancel(ctx)))
	if err == nil && t.relay.Exited() {
		err = t.relay.Failure()
	}
	return l.evaluate(), err
}

// ready waits until a client at addr is served by a host, or process ends.
func ready(ctx context.Context, addr netip.AddrPort, p *program.Process, host string, says opening) error {
	err := errors.New("nobody tried")
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline) && ctx.Err() == nil; {
		within, cancel := context.WithTimeout(ctx, time.Second)
		err = talk(within, addr.String(), says, func(t *conversation) error {
			if t.host != host {
				return fmt.Errorf("%s answers, not %s", t.host, host)
			}
			_, err := t.exchange("ready")
			return err
		})
		cancel()
		if err == nil {
			return nil
		}
		if p.Exited() {
			return p.Failure()
		}
		program.Pause(ctx, 20*time.Millisecond)
	}
	return errors.Join(ctx.Err(), fmt.Errorf("%s at %s is not ready: %w", p, addr, err))
}

// String is one line about a trial.
func (o outcome) String() string {
	text := fmt.Sprintf("gap %s, lost %d of %d", o.gapText(), o.lost, o.clients)
	if o.lost > 0 {
		text += fmt.Sprintf(" (%d greeted; %s)", o.greeted, describeReasons(o.reasons))
	}
	hosts := make([]string, 0, len(o.by))
	for host, n := range o.by {
		hosts = append(hosts, fmt.Sprintf("%s %d", host, n))
	}
	slices.Sort(hosts)
	return text + fmt.Sprintf(", served %v, p99.9 %s, slowest %s, wrong %d, sessions left %d, load late by %s",
		hosts, short(o.p999), short(o.slowest), o.wrong, o.left, short(o.late))
}
