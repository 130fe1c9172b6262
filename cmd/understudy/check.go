package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"understudy/config"
	"understudy/control"
	"understudy/failover"
	"understudy/health"
	"understudy/hooks"
	"understudy/internal/address"
	"understudy/internal/daemon"
	"understudy/relay"
	"understudy/roles"
)

const (
	// fewConnections is the limit below which a warning is given.
	fewConnections = 1000

	// usualScript is the part of its interval that a check script may take
	// before a warning is given.
	usualScript = 0.5

	// resolveTimeout limits the lookup of a name.
	resolveTimeout = 5 * time.Second
)

// checkAll checks everything that is often configured wrongly, without a
// running process and without any effect on clients: it binds for a moment,
// resolves, connects, and runs each check once.
func checkAll(ctx context.Context, l line, stdout, stderr io.Writer) int {
	sockets, err := daemon.PassedSockets()
	settings, _, err2 := l.settings(sockets)
	if err := errors.Join(err, err2); err != nil {
		return l.usage(stderr, err)
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	c := checkup{environ: daemon.ScriptEnviron(settings)}
	c.control(ctx, settings)
	for _, w := range settings.Warnings {
		c.warn("configuration", w)
	}
	c.process(settings)
	for _, r := range settings.Relays {
		if len(settings.Relays) > 1 {
			c.prefix = r.Name + ": "
		}
		c.relay(ctx, r)
	}
	c.prefix = ""
	c.cluster(ctx, settings)
	c.answers(ctx, settings)
	if ctx.Err() != nil { // the results were caused by the interrupt
		fmt.Fprintln(stderr, "understudy: check: interrupted")
		return exitFailed
	}
	if err := newTerminal(stdout).table(append([][]string{{"WHAT", "RESULT", "TOOK", "DETAIL"}}, c.rows...), true); err != nil {
		return exitFailed
	}
	if c.failed > 0 {
		fmt.Fprintf(stdout, "\n%d of %d failed\n", c.failed, len(c.rows))
		return exitFailed
	}
	fmt.Fprintf(stdout, "\nnothing failed; warnings: %d\n", c.warned)
	return exitDone
}

// checkup collects the results.
type checkup struct {
	running *control.Status // the status of a running process; nil when there is none
	environ []string        // of scripts
	prefix  string          // precedes the first cell of each row
	rows    [][]string
	failed  int
	warned  int
}

func (c *checkup) ok(what, detail string) { c.row(what, "ok", "", detail) }

func (c *checkup) warn(what, detail string) { c.row(what, "warning", "", detail) }

// result adds a row that failed if err is not nil.
func (c *checkup) result(what, detail string, err error) {
	if err != nil {
		c.row(what, "failed", "", err.Error())
		return
	}
	c.ok(what, detail)
}

func (c *checkup) row(what, result, took, detail string) {
	switch result {
	case "failed":
		c.failed++
	case "warning":
		c.warned++
	}
	c.rows = append(c.rows, []string{c.prefix + what, result, took, detail})
}

// control looks for a running process with these settings, and checks whether a
// control socket could be made. The socket of another process does not count as
// an error in these settings.
func (c *checkup) control(ctx context.Context, settings config.Settings) {
	switch settings.Control {
	case config.ControlOff:
	case config.ControlAuto:
		c.controls(ctx, settings)
	default:
		c.controlAt(ctx, settings)
	}
}

// controls does the same where the program chooses the path.
func (c *checkup) controls(ctx context.Context, settings config.Settings) {
	limited, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	all, _ := processes(limited, "", control.Find())
	for _, p := range all {
		if p.err == nil && isFor(p.Status, settings) {
			c.running = &p.Status
			c.ok("control socket "+p.Path(), fmt.Sprintf("understudy %s is running, pid %d", p.Version, p.PID))
			return
		}
	}
	what := "control socket in " + control.DefaultDir()
	dir, err := existing(control.DefaultDir())
	if err == nil {
		err = denied(dir)
	}
	if err != nil {
		c.warn(what, err.Error()) // the program runs without one
		return
	}
	c.ok(what, "free")
}

// controlAt does the same at the path in the settings.
func (c *checkup) controlAt(ctx context.Context, settings config.Settings) {
	path := settings.Control
	what := "control socket " + path
	limited, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	status, err := control.NewClient(path).Status(limited)
	switch {
	case err == nil && isFor(status, settings):
		c.running = &status
		c.ok(what, fmt.Sprintf("understudy %s is running, pid %d", status.Version, status.PID))
		return
	case err == nil:
		c.row(what, "failed", "", "another understudy serves it: "+process{Status: status}.String()+": choose another path")
		return
	}
	var place error
	if _, there := os.Lstat(path); errors.Is(there, fs.ErrNotExist) {
		dir := ""
		if dir, place = existing(filepath.Dir(path)); place == nil {
			place = denied(dir)
		}
	} else {
		place = tryUnix(ctx, path)
	}
	if errors.Is(place, syscall.EADDRINUSE) {
		c.warn(what, "another program serves it and does not answer: "+err.Error())
		return
	}
	c.result(what, "free", place)
}

// isFor reports whether a process runs with such settings: it has one of their
// relays at the same address, or neither has any.
func isFor(s control.Status, settings config.Settings) bool {
	for _, r := range settings.Relays {
		for _, own := range s.Relays {
			if slices.ContainsFunc(r.Listen, func(addr string) bool {
				return slices.ContainsFunc(own.Listen, func(a string) bool { return samePlace(a, addr) })
			}) || len(r.Listen) == 0 && own.Name == r.Name {
				return true
			}
		}
	}
	return len(settings.Relays) == 0 && len(s.Relays) == 0
}

// existing returns dir, or its nearest parent that exists. The error says that
// it is no directory.
func existing(dir string) (string, error) {
	dir = filepath.Clean(dir)
	info, err := os.Stat(dir)
	for errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		info, err = os.Stat(dir)
	}
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a directory", dir)
	}
	return dir, err
}

// denied returns why no file can be made in a directory; see access(2).
func denied(dir string) error {
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}

// process checks what all relays share.
func (c *checkup) process(settings config.Settings) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
		// The Go runtime has raised the soft limit to the hard one.
		all := int64(min(limit.Cur, 1<<30))
		n := max(1, (all-64-min(int64(daemon.Descriptors(settings)), all/4))/2) // as relay.Config has it
		detail := fmt.Sprintf("%d descriptors: %d connections", limit.Cur, n)
		configured := int64(0)
		for _, r := range settings.Relays {
			configured += int64(r.MaxConnections)
		}
		switch {
		case configured > n:
			c.row("descriptor limit", "failed", "", fmt.Sprintf("%s, and %d are configured: raise LimitNOFILE or ulimit -n", detail, configured))
		case n < fewConnections:
			c.warn("descriptor limit", detail+": raise LimitNOFILE or ulimit -n")
		default:
			c.ok("descriptor limit", detail)
		}
	}
	if settings.StateDir != "" {
		detail, err := checkStateDir(settings.StateDir)
		c.result("state directory "+settings.StateDir, detail, err)
	}
}

// cluster checks the store and the other instances. If one endpoint of the store
// answers, the others are a warning.
func (c *checkup) cluster(ctx context.Context, settings config.Settings) {
	if settings.Cluster.Listen != "" {
		c.address(ctx, "cluster", "http", settings.Cluster.Listen)
	}
	found := daemon.CheckCluster(ctx, settings)
	answered := slices.ContainsFunc(found, func(f daemon.ClusterCheck) bool { return f.Endpoint && f.Err == nil })
	for _, f := range found {
		result, detail := "ok", f.Detail
		switch {
		case f.Err == nil:
		case f.Warning || f.Endpoint && answered:
			result, detail = "warning", f.Err.Error()
		default:
			result, detail = "failed", f.Err.Error()
		}
		took := ""
		if f.Took > 0 {
			took = short(f.Took)
		}
		c.row(f.What, result, took, detail)
	}
}

// answers checks the HTTP listeners and the ports that report verdicts by
// other protocols, and runs each probe once.
func (c *checkup) answers(ctx context.Context, settings config.Settings) {
	if settings.HTTP.Listen != "" {
		c.address(ctx, "http", "http", settings.HTTP.Listen)
	}
	if settings.Admin.Listen != "" {
		c.address(ctx, "admin", "http", settings.Admin.Listen)
	}
	for _, r := range settings.HTTP.Routes {
		if v := r.Verdict; v != nil && v.Agent != "" {
			c.address(ctx, "agent", "http", v.Agent)
		}
		if v := r.Verdict; v != nil && v.TCP != "" {
			c.address(ctx, "tcp verdict", "http", v.TCP)
		}
	}
	if err := daemon.CheckRoutes(settings); err != nil {
		c.result("routes", "", err)
	}
	resolver, runner := health.NewResolver(), hooks.New(hooks.Config{Environ: c.environ})
	defer resolver.Close()
	defer runner.Close()
	for _, p := range settings.Probes {
		what := "probe " + p.Name
		if p.Exec != nil {
			c.script(what, p.Exec.Command[0])
		}
		ask, end, err := daemon.ProbeCheck(p, resolver.Resolve, runner)
		if err != nil {
			c.result(what, "", err)
			continue
		}
		limited, cancel := context.WithTimeout(ctx, p.Timeout)
		result := ask(limited)
		cancel()
		end()
		took := result.Latency.Round(100 * time.Microsecond).String()
		if result.OK {
			c.row(what, "ok", took, "")
		} else {
			c.row(what, "failed", took, fmt.Sprintf("%s: %v", result.Phase, result.Err))
		}
	}
}

// checkStateDir returns why the state could not be kept in a directory, whose
// last element is created at the start. Otherwise detail says whether that will
// be done.
func checkStateDir(dir string) (detail string, err error) {
	dir = filepath.Clean(dir)
	place, err := existing(dir)
	if err != nil {
		return "", err
	}
	detail = "writable"
	switch place {
	case dir:
	case filepath.Dir(dir):
		detail = "will be created in " + place
	default:
		return "", fmt.Errorf("%s does not exist, and only the last element of a path is created: is the path right?", filepath.Dir(dir))
	}
	f, err := os.CreateTemp(place, ".understudy-check-*")
	if err != nil {
		return "", err
	}
	return detail, errors.Join(f.Close(), os.Remove(f.Name()))
}

// relay checks one relay.
func (c *checkup) relay(ctx context.Context, r config.Relay) {
	for _, addr := range r.Listen {
		c.address(ctx, "listen", "tcp", addr)
	}
	for _, s := range [][2]string{{"check script", r.CheckHost}, {"trigger", r.OnFailover}, {"event script", r.OnEvent}, {"rejoin script", r.OnStandby}} {
		if s[1] != "" {
			c.script(s[0], s[1])
		}
	}
	for _, k := range r.Checks {
		if k.Exec != nil {
			c.script("check script", k.Exec.Command[0])
		}
	}
	resolver := health.NewResolver()
	defer resolver.Close()
	pool := roles.NewPool(hclog.NewNullLogger())
	defer pool.Close()
	cfg, err := daemon.FailoverConfig(r, resolver.Resolve, nil, pool)
	if err != nil {
		c.result("checks", "", err)
		return
	}
	runner := hooks.New(hooks.Config{Environ: c.environ})
	defer runner.Close()
	cfg.Scripts = runner
	c.hosts(ctx, cfg, resolver.Resolve)
	for _, w := range failover.Predict(cfg).Warnings {
		c.warn("settings", w)
	}
}

// address checks whether an address to listen on is free, or is served by the
// process that runs with these settings.
func (c *checkup) address(ctx context.Context, what, kind, addr string) {
	what += " " + addr
	if c.running != nil && kind == "tcp" {
		for _, r := range c.running.Relays {
			if slices.ContainsFunc(r.Listen, func(a string) bool { return samePlace(a, addr) }) {
				c.ok(what, "served by the understudy that is running")
				return
			}
		}
	}
	err := tryBind(ctx, addr)
	for wrapped := errors.Unwrap(err); wrapped != nil && strings.Contains(err.Error(), addr); wrapped = errors.Unwrap(err) {
		err = wrapped // the row has the address
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && c.running != nil && kind == "http":
		c.ok(what, "in use, most likely by the understudy that is running")
		return
	case errors.Is(err, syscall.EADDRINUSE):
		err = fmt.Errorf("%w: another program has it (ss -ltnp shows which)", err)
	case errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w: ports below 1024 need root or CAP_NET_BIND_SERVICE", err)
	}
	c.result(what, "free", err)
}

// samePlace reports whether an address that is served is the one of a setting.
// A name counts as every address.
func samePlace(served, setting string) bool {
	if path, ok := strings.CutPrefix(setting, "unix:"); ok {
		return served == path
	}
	host1, port1, err1 := net.SplitHostPort(served)
	host2, port2, err2 := net.SplitHostPort(setting)
	if err1 != nil || err2 != nil || port1 != port2 {
		return false
	}
	ip1, ip2 := net.ParseIP(host1), net.ParseIP(host2)
	return ip1 == nil || ip2 == nil || ip1.Equal(ip2) || ip1.IsUnspecified() || ip2.IsUnspecified()
}

// tryBind binds an address and releases it again. It does not listen: a client
// that comes meanwhile is refused as it would have been before.
func tryBind(ctx context.Context, addr string) error {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return tryUnix(ctx, path)
	}
	r, err := relay.New(relay.Config{Name: config.MainRelay, Listen: []string{addr}, ConnectTimeout: time.Second})
	if err != nil {
		return err
	}
	defer r.Close()
	return r.Bind()
}

// tryUnix checks whether a socket could be made at path, and makes none.
func tryUnix(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return denied(filepath.Dir(path))
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("there is a file that is not a socket")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil // left behind; the program replaces it
	}
	if err == nil {
		err = conn.Close()
	}
	return errors.Join(syscall.EADDRINUSE, err)
}

// script checks a script, or each script of a directory.
func (c *checkup) script(what, path string) {
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		c.inspect(what, path)
		return
	}
	scripts, warnings, err := hooks.List(path)
	if err != nil {
		c.result(what+" "+path, "", err)
		return
	}
	for _, w := range warnings {
		c.warn(what, w.Error())
	}
	for _, s := range scripts {
		c.inspect(what, s)
	}
	if len(scripts) == 0 {
		c.warn(what+" "+path, "there is no script in it")
	}
}

// inspect checks what can be known of a script without running it.
func (c *checkup) inspect(what, path string) {
	err := hooks.Inspect(path)
	c.result(what+" "+path, "can be run", err)
	if err != nil {
		return
	}
	if doubt := hooks.Doubt(path); doubt != nil {
		c.warn(what, doubt.Error())
	}
}

// hosts runs every check on every host, for all hosts at the same time. If one
// host passes all checks, failures of the others do not make the checkup fail.
func (c *checkup) hosts(ctx context.Context, cfg failover.Config, resolve health.ResolveFunc) {
	type answer struct {
		addresses []netip.Addr // of the name; none for a host that is not a name
		err       error
		took      time.Duration
		steps     []failover.Step
	}
	found := make([]answer, len(cfg.Hosts))
	var wg sync.WaitGroup
	for i, host := range cfg.Hosts {
		wg.Go(func() {
			o := &found[i]
			if h, err := address.ParseHost(host); err == nil && h.Path == "" && !h.IP().IsValid() {
				limited, cancel := context.WithTimeout(ctx, resolveTimeout)
				defer cancel()
				start := time.Now()
				ips, err := resolve(limited, h.Name)
				o.took, o.err = time.Since(start), err
				o.addresses = ips
			}
			if o.err == nil { // a host without an address fails all checks
				o.steps = tryEach(ctx, cfg, host)
			}
		})
	}
	wg.Wait()
	passes := func(o answer) bool {
		return o.err == nil && !slices.ContainsFunc(o.steps, func(s failover.Step) bool { return !s.OK })
	}
	usable := slices.ContainsFunc(found, passes)
	for i, host := range cfg.Hosts {
		o := found[i]
		bad := "failed"
		switch {
		case !usable:
		case o.err == nil && standby(o.steps):
			bad = "standby"
		default:
			bad = "warning" // another host can serve
		}
		switch {
		case o.err != nil:
			c.row(host+" resolve", bad, short(o.took), o.err.Error())
		case len(o.addresses) > 0:
			c.row(host+" resolve", "ok", short(o.took), strings.Trim(fmt.Sprint(o.addresses), "[]"))
		}
		for k, before := range cfg.Hosts[:i] {
			if place, same := shared(before, found[k].addresses, host, o.addresses); same {
				c.warn(host, fmt.Sprintf("is the same address as %s (%s): a failover between them changes nothing", before, place))
			}
		}
		for k, s := range o.steps {
			result, detail := "ok", ""
			if !s.OK {
				result, detail = bad, inPhase(s.Phase, s.Detail)
			} else if every := cfg.Checks[k].Interval; cfg.Checks[k].Script != "" && seconds(s.Seconds) > time.Duration(float64(every)*usualScript) {
				result, detail = "warning", fmt.Sprintf("is slow for a script that runs every %v (check-interval)", every)
			}
			c.row(host+" "+s.Name, result, millis(s.Seconds), detail)
		}
	}
}

// standby reports whether a host accepts connections and each failed check had
// an answer: it may be a host that must not be primary while another one is.
func standby(steps []failover.Step) bool {
	return !slices.ContainsFunc(steps, func(s failover.Step) bool { return !s.OK && !s.Refused })
}

// shared returns the address that two hosts have in common, whose names resolve
// to ips1 and ips2. Duplicates that are visible in the spelling are a warning
// of the settings.
func shared(host1 string, ips1 []netip.Addr, host2 string, ips2 []netip.Addr) (netip.AddrPort, bool) {
	h1, err1 := address.ParseHost(host1)
	h2, err2 := address.ParseHost(host2)
	if err1 != nil || err2 != nil || h1.Port != h2.Port || h1.Path != "" || h2.Path != "" || h1.Canonical() == h2.Canonical() {
		return netip.AddrPort{}, false
	}
	if ip := h1.IP(); ip.IsValid() {
		ips1 = []netip.Addr{ip}
	}
	if ip := h2.IP(); ip.IsValid() {
		ips2 = []netip.Addr{ip}
	}
	for _, ip := range ips1 {
		if slices.Contains(ips2, ip) {
			return netip.AddrPortFrom(ip, h1.Port), true
		}
	}
	return netip.AddrPort{}, false
}

// tryEach runs every check on one host. If the host refuses connections, only
// the first one is run.
func tryEach(ctx context.Context, cfg failover.Config, host string) []failover.Step {
	var steps []failover.Step
	for _, k := range cfg.Checks {
		one := cfg
		one.Checks = []failover.Check{k}
		steps = append(steps, failover.Try(ctx, one, host)...)
		if !steps[0].OK {
			break
		}
	}
	return steps
}
