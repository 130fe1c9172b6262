package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
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
	"understudy/relay"
)

const (
	// fewConnections is when a limit is worth a warning.
	fewConnections = 1000

	// usualScript is how long a check script may take of its interval before
	// that is worth a warning.
	usualScript = 0.5

	// resolveTimeout is how long a name may take.
	resolveTimeout = 5 * time.Second
)

// checkAll looks at everything that people get wrong, without a running
// process and without a client noticing: it binds for a moment, resolves,
// connects, and runs each check once.
func checkAll(ctx context.Context, l line, stdout, stderr io.Writer) int {
	settings, _, err := l.settings(passedSockets())
	if err != nil {
		return l.usage(stderr, err)
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	c := checkup{}
	c.control(ctx, settings.Control)
	c.process(settings)
	for _, r := range settings.Relays {
		if len(settings.Relays) > 1 {
			c.prefix = r.Name + ": "
		}
		c.relay(ctx, r)
	}
	c.prefix = ""
	c.answers(ctx, settings)
	if ctx.Err() != nil { // what was found is about the interrupt
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

// checkup collects what was found.
type checkup struct {
	running *control.Status // what a running process says; nil when there is none
	prefix  string          // of the first cell of each row
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

// control asks the process that runs already, if one does, or looks whether
// there could be a control socket.
func (c *checkup) control(ctx context.Context, setting string) {
	if setting == config.ControlOff {
		return
	}
	path := controlPath(setting)
	what := "control socket " + path
	limited, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	status, err := control.NewClient(path).Status(limited)
	if err == nil {
		c.running = &status
		c.ok(what, fmt.Sprintf("understudy %s is running, pid %d", status.Version, status.PID))
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
	switch {
	case place == nil:
		c.ok(what, "free")
		return
	case errors.Is(place, syscall.EADDRINUSE):
		c.warn(what, "somebody serves it, who gives no answer: "+err.Error())
		return
	}
	if setting == config.ControlAuto {
		c.warn(what, place.Error()) // the program goes on without
		return
	}
	c.result(what, "", place)
}

// existing is dir, or the nearest one above it that is there. The error says
// that it is no directory.
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

// denied says why no file can be made in a directory; see access(2).
func denied(dir string) error {
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}

// process looks at what all relays share.
func (c *checkup) process(settings config.Settings) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
		// The Go runtime has raised the soft limit to the hard one.
		all := int64(min(limit.Cur, 1<<30))
		n := max(1, (all-64-min(int64(verdictDescriptors(settings.HTTP)), all/4))/2) // as relay.Config has it
		detail := fmt.Sprintf("%d descriptors: %d connections", limit.Cur, n)
		asked := int64(0)
		for _, r := range settings.Relays {
			asked += int64(r.MaxConnections)
		}
		switch {
		case asked > n:
			c.row("descriptor limit", "failed", "", fmt.Sprintf("%s, and %d are asked for: raise LimitNOFILE or ulimit -n", detail, asked))
		case n < fewConnections:
			c.warn("descriptor limit", detail+": raise LimitNOFILE or ulimit -n")
		default:
			c.ok("descriptor limit", detail)
		}
	}
	if settings.StateDir != "" {
		c.result("state directory "+settings.StateDir, "writable", checkStateDir(settings.StateDir))
	}
}

// answers looks at the HTTP listener, at the ports that tell its verdicts in
// other words, and asks each probe once.
func (c *checkup) answers(ctx context.Context, settings config.Settings) {
	if settings.HTTP.Listen != "" {
		c.address(ctx, "http", "http", settings.HTTP.Listen)
	}
	for _, r := range settings.HTTP.Routes {
		if v := r.Verdict; v != nil && v.Agent != "" {
			c.address(ctx, "agent", "http", v.Agent)
		}
		if v := r.Verdict; v != nil && v.TCP != "" {
			c.address(ctx, "tcp verdict", "http", v.TCP)
		}
	}
	s := &service{log: hclog.NewNullLogger(), resolver: health.NewResolver(), runner: hooks.New(hooks.Config{})}
	defer s.resolver.Close()
	defer s.runner.Close()
	relays := make([]*conducted, 0, len(settings.Relays))
	for _, r := range settings.Relays {
		relays = append(relays, &conducted{name: r.Name})
	}
	if _, err := s.answer(settings, relays, nil); err != nil {
		c.result("routes", "", err)
	}
	for _, p := range settings.Probes {
		what := "probe " + p.Name
		if p.Exec != nil {
			c.script(what, p.Exec.Command[0])
		}
		ask, err := s.ofProbe(p)
		if err != nil {
			c.result(what, "", err)
			continue
		}
		limited, cancel := context.WithTimeout(ctx, p.Timeout)
		result := ask(limited)
		cancel()
		took := result.Latency.Round(100 * time.Microsecond).String()
		if result.OK {
			c.row(what, "ok", took, "")
		} else {
			c.row(what, "failed", took, fmt.Sprintf("%s: %v", result.Phase, result.Err))
		}
	}
}

// checkStateDir says why the state could not be kept in a directory, which is
// made at the start.
func checkStateDir(dir string) error {
	dir, err := existing(dir)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".understudy-check-*")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// relay looks at one relay.
func (c *checkup) relay(ctx context.Context, r config.Relay) {
	for _, addr := range r.Listen {
		c.address(ctx, "listen", "tcp", addr)
	}
	for _, s := range [][2]string{{"check script", r.CheckHost}, {"trigger", r.OnFailover}} {
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
	rules, err := rulesOf(r, resolver.Resolve)
	if err != nil {
		c.result("checks", "", err)
		return
	}
	runner := hooks.New(hooks.Config{})
	defer runner.Close()
	rules.Scripts = runner
	c.hosts(ctx, rules, resolver.Resolve)
	for _, w := range failover.Predict(rules).Warnings {
		c.warn("settings", w)
	}
}

// address looks whether a place to listen is free, or is served by the process
// that these settings are for.
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
		err = wrapped // the row says which address
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

// samePlace says whether an address that is served is the one of a setting. A
// name counts as every address.
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

// tryBind claims an address and gives it up again. It does not listen: a client
// that comes now is refused as it would have been before.
func tryBind(ctx context.Context, addr string) error {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return tryUnix(ctx, path)
	}
	r, err := relay.New(relay.Config{Name: config.MainRelay, Listen: []string{addr}})
	if err != nil {
		return err
	}
	defer r.Close()
	return r.Bind() //nolint:contextcheck // it waits for the name of the address at most
}

// tryUnix looks whether a socket could be made at path, and makes none.
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

// script looks at a script, or at each of a directory.
func (c *checkup) script(what, path string) {
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		c.result(what+" "+path, "can be run", hooks.Inspect(path))
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
		c.result(what+" "+s, "can be run", hooks.Inspect(s))
	}
	if len(scripts) == 0 {
		c.warn(what+" "+path, "there is no script in it")
	}
}

// hosts asks every host every check, all hosts at once.
func (c *checkup) hosts(ctx context.Context, rules failover.Config, resolve health.ResolveFunc) {
	type outcome struct {
		addresses string
		err       error
		took      time.Duration
		steps     []failover.Step
	}
	found := make([]outcome, len(rules.Hosts))
	var wg sync.WaitGroup
	for i, host := range rules.Hosts {
		wg.Go(func() {
			o := &found[i]
			if h, err := health.ParseHost(host); err == nil && h.Path == "" && net.ParseIP(h.Name) == nil {
				limited, cancel := context.WithTimeout(ctx, resolveTimeout)
				defer cancel()
				start := time.Now()
				ips, err := resolve(limited, h.Name)
				o.took, o.err = time.Since(start), err
				o.addresses = strings.Trim(fmt.Sprint(ips), "[]")
			}
			if o.err == nil { // a host without an address fails all of them
				o.steps = tryEach(ctx, rules, host)
			}
		})
	}
	wg.Wait()
	for i, host := range rules.Hosts {
		o := found[i]
		switch {
		case o.err != nil:
			c.row(host+" resolve", "failed", short(o.took), o.err.Error())
		case o.addresses != "":
			c.row(host+" resolve", "ok", short(o.took), o.addresses)
		}
		for k, s := range o.steps {
			result, detail := "ok", ""
			if !s.OK {
				result, detail = "failed", inPhase(s.Phase, s.Detail)
			} else if every := rules.Checks[k].Interval; rules.Checks[k].Script != "" && seconds(s.Seconds) > time.Duration(float64(every)*usualScript) {
				result, detail = "warning", fmt.Sprintf("takes long for a script that runs every %v (check-interval)", every)
			}
			c.row(host+" "+s.Name, result, millis(s.Seconds), detail)
		}
	}
}

// tryEach asks one host every check. One that refuses connections is not asked
// for more.
func tryEach(ctx context.Context, rules failover.Config, host string) []failover.Step {
	var steps []failover.Step
	for _, k := range rules.Checks {
		one := rules
		one.Checks = []failover.Check{k}
		steps = append(steps, failover.Try(ctx, one, host)...)
		if !steps[0].OK {
			break
		}
	}
	return steps
}
