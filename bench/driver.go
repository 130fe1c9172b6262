//go:build linux

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"understudy/bench/program"

	"golang.org/x/sys/unix"
)

// settings are the values of the flags.
type settings struct {
	rounds      int
	length      time.Duration // of a window
	only, peers *regexp.Regexp
	users       *regexp.Regexp
	rate        float64  // of the open loop; zero finds one
	understudy  string   // its program; "" builds it
	variants    []string // further runs of it, "name=flags"
	out, json   string   // files; "" writes none
	again       string   // file with the samples of an earlier run; "" measures
	congestion  string   // congestion control of every row that names none; "" is the machine's
}

// account is a user that proxies run as.
type account struct {
	name string
	cred *syscall.Credential // nil for our own
}

// driver runs trials.
type driver struct {
	settings
	dir      string
	self     string
	accounts []account
	peers    []peer
	figures  []figure
	backends map[shape]*backend // of the chosen figures
	port     uint16             // the last one that was given out
	limit    uint64             // of descriptors
	progress io.Writer
	results  results
}

// socketDir is where proxies listen on unix sockets, below the directory of the
// run: such paths have to be short.
const socketDir = "s"

// backend is the service behind the proxies, in one shape.
type backend struct {
	*process
	addr     address
	socket   address // the same service by a unix socket
	hostPort uint16  // of the hosts of many relays; zero when there are none
}

// errFailed is returned when a trial failed: the report names it and the
// reason.
var errFailed = errors.New("not every trial could be measured; see \"failed\" in the report")

// errInterrupted is returned after Ctrl-C.
var errInterrupted = errors.New("interrupted; a report, if there is one, holds what was measured until then")

// drive does a whole run and writes the report to stdout. Everything that it
// started has ended when it returns.
func drive(ctx context.Context, s settings, stdout, progress io.Writer) (err error) {
	defer func() {
		if err != nil && ctx.Err() != nil && !errors.Is(err, errInterrupted) { // in the middle of the preparation
			err = errInterrupted
		}
	}()
	dir, err := os.MkdirTemp("", "understudy-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // G302: proxies run from here as another user
		return err
	}
	runtime.GOMAXPROCS(wide.clients() + 2) // see poller.bare
	d := &driver{settings: s, dir: dir, port: 11000, progress: progress}
	defer d.stopBackends()
	if err := d.prepare(ctx); err != nil {
		return err
	}
	about := describe(ctx, d.peers, d.limit)
	if err := d.chooseCongestion(ctx); err != nil {
		return err
	}
	about.Congestion = cmp.Or(d.congestion, about.Congestion)
	all, stolen := processorTicks()
	err = d.rounds(ctx)
	if allNow, stolenNow := processorTicks(); allNow > all {
		about.Stolen = 100 * (stolenNow - stolen) / (allNow - all)
	}
	return errors.Join(err, d.report(about, stdout))
}

// prepare finds the programs, raises limits and starts the backends. The caller
// stops those that run, also after an error.
func (d *driver) prepare(ctx context.Context) error {
	var err error
	if d.limit, err = raiseDescriptors(); err != nil {
		return err
	}
	if err := d.findPrograms(ctx); err != nil {
		return err
	}
	for _, f := range figures() {
		if d.only.MatchString(f.id()) {
			d.figures = append(d.figures, f)
		}
	}
	for _, a := range accounts() {
		if d.users.MatchString(a.name) {
			d.accounts = append(d.accounts, a)
		}
	}
	if len(d.figures) == 0 || len(d.peers) == 0 || len(d.accounts) == 0 {
		return fmt.Errorf("nothing to measure: %d figures, %d peers, %d users chosen", len(d.figures), len(d.peers), len(d.accounts))
	}
	sockets := filepath.Join(d.dir, socketDir)
	if err := errors.Join(os.Mkdir(sockets, 0o700), os.Chmod(sockets, 0o777)); err != nil { //nolint:gosec // G302: proxies of every user listen there
		return err
	}
	d.backends = map[shape]*backend{}
	for _, f := range d.figures {
		if d.backends[f.shape] == nil {
			if err := d.startBackend(ctx, f.shape); err != nil {
				return err
			}
		}
	}
	return nil
}

// chooseCongestion sets the congestion control of all rows that name none.
// If that cannot be done they use the machine's, and the report names it.
func (d *driver) chooseCongestion(ctx context.Context) error {
	if d.congestion == "" {
		return nil
	}
	err := setCongestion(ctx, d.congestion)
	if skip, ok := errors.AsType[skipError](err); ok {
		_, _ = fmt.Fprintf(d.progress, "bench: the machine's congestion control is used: %s %s\n", d.congestion, skip.reason)
		d.congestion = ""
		return nil
	}
	return err
}

// findPrograms copies this program to where every user may run it, builds
// understudy if it takes part, and prints which peers are missing.
func (d *driver) findPrograms(ctx context.Context) error {
	d.self = filepath.Join(d.dir, "bench")
	if err := copyProgram("/proc/self/exe", d.self); err != nil {
		return err
	}
	t := tools{self: d.self, understudy: filepath.Join(d.dir, subject), limit: d.limit}
	list, err := peers(t, d.variants)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(p peer) bool { return !d.settings.peers.MatchString(p.name) })
	if slices.ContainsFunc(list, func(p peer) bool { return p.program == t.understudy }) {
		if err := d.buildUnderstudy(ctx, t.understudy); err != nil {
			return err
		}
	}
	for _, p := range list {
		if err := p.installed(); err != nil {
			d.say("SKIP: %s: %v", p.name, err)
			continue
		}
		d.peers = append(d.peers, p)
	}
	return nil
}

// buildUnderstudy puts the program to measure at to. One that does not build
// is skipped with a message; one that was named must exist.
func (d *driver) buildUnderstudy(ctx context.Context, to string) error {
	if d.understudy != "" {
		return copyProgram(d.understudy, to)
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", to, "understudy/cmd/understudy") //nolint:gosec // G204: constant arguments
	build.Env = append(os.Environ(), "CGO_ENABLED=0")                                                    // as it is shipped
	if out, err := build.CombinedOutput(); err != nil {
		d.say("understudy does not build (run this inside its module): %v: %s", err, program.LastBytes(out, 300))
	}
	return nil
}

func copyProgram(from, to string) error {
	content, err := os.ReadFile(from) //nolint:gosec // G304: the program that a flag names
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755) //nolint:gosec // G306: it runs as another user
}

// accounts returns the users that run the peers: root and nobody if the benchmark runs as
// root, else the current user.
func accounts() []account {
	if os.Getuid() != 0 {
		name := strconv.Itoa(os.Getuid())
		if u, err := user.Current(); err == nil {
			name = u.Username
		}
		return []account{{name: name}}
	}
	const usual = 65534
	nobody := &syscall.Credential{Uid: usual, Gid: usual}
	if u, err := user.Lookup("nobody"); err == nil {
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			nobody = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
	}
	return []account{{name: "root"}, {name: "nobody", cred: nobody}}
}

// raiseDescriptors raises the limit for us and for everything that we start,
// to what 9,000 connections of the hungriest peer need if we may. It returns
// the limit.
func raiseDescriptors() (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, os.NewSyscallError("getrlimit", err)
	}
	const wanted = 1 << 16
	raised := syscall.Rlimit{Cur: max(limit.Max, wanted), Max: max(limit.Max, wanted)}
	// Through syscall and not unix, or Go would give children the old one.
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised) == nil {
		return raised.Cur, nil
	}
	raised = syscall.Rlimit{Cur: limit.Max, Max: limit.Max}
	return raised.Cur, os.NewSyscallError("setrlimit", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised))
}

// startBackend starts the backend of shape s and waits until it answers.
func (d *driver) startBackend(ctx context.Context, s shape) error {
	addr, err := d.nextAddr()
	if err != nil {
		return err
	}
	b := &backend{addr: addr, socket: address{path: filepath.Join(d.dir, string(s))}}
	argv := []string{d.self, roleNameBackend, string(s), addr.String(), b.socket.String()}
	if slices.ContainsFunc(d.figures, func(f figure) bool { return f.shape == s && f.relays > 0 }) {
		b.hostPort = addr.tcp.Port()
		for i := range 2 * maxRelays {
			argv = append(argv, hostAddress(i, b.hostPort).String())
		}
	}
	if b.process, err = startProcess(ctx, string(s)+" backend", d.dir, nil, argv...); err != nil {
		return err
	}
	d.backends[s] = b
	return waitReady(ctx, addr, b.process)
}

func (d *driver) stopBackends() {
	for _, b := range d.backends {
		b.stop()
	}
}

// nextAddr returns an address without a listener. It gives out each port once,
// so that no trial meets what an earlier one left.
func (d *driver) nextAddr() (address, error) {
	for d.port < 32000 {
		d.port++
		addr := loopback(0, 0, 1, d.port)
		if fd, err := listen(addr); fd >= 0 {
			_ = unix.Close(fd)
			if err == nil {
				return addr, nil
			}
		}
	}
	return address{}, errors.New("no free port between 11000 and 32000")
}

// rounds measures everything again and again. Within a figure the peers take
// turns, each round beginning with another one, so that disturbances of the
// machine affect all of them alike.
func (d *driver) rounds(ctx context.Context) error {
	if err := d.findRate(ctx); err != nil {
		return err
	}
	begin := time.Now()
	for round := range d.settings.rounds {
		for _, f := range d.figures {
			for _, a := range d.accounts {
				for i := range d.peers {
					p := d.peers[(i+round)%len(d.peers)]
					if !d.takesPart(f, a, p) {
						continue
					}
					s := sample{Round: round + 1, User: a.name, Figure: f.id(), Peer: p.name}
					values, err := d.trial(ctx, f, a, p, d.length)
					if ctx.Err() != nil {
						return errInterrupted
					}
					if b := d.backends[f.shape]; b.Exited() {
						return b.Failure()
					}
					s.note(values, err)
					d.results = append(d.results, s)
					d.say("%6s  round %d  %-6s %-16s %-17s %s", time.Since(begin).Round(time.Second), round+1, a.name, f.id(), p.name, s.brief(f.metrics))
				}
			}
		}
	}
	return nil
}

// note keeps what a trial returned.
func (s *sample) note(values measured, err error) {
	var skip skipError
	switch {
	case errors.As(err, &skip):
		s.Skipped = skip.reason
	case err != nil:
		s.Failed = strings.ReplaceAll(err.Error(), "\n", "; ")
	default:
		s.Values = values
	}
}

// brief is one line about s.
func (s *sample) brief(metrics []metric) string {
	if s.Failed != "" || s.Skipped != "" {
		return cmp.Or(s.Failed, "skipped: "+s.Skipped)
	}
	var parts []string
	for _, m := range metrics {
		if v, ok := s.Values[m.key]; ok {
			parts = append(parts, spoken(m, v))
		}
	}
	return strings.Join(parts, ", ")
}

// trial starts p, measures f on it and ends it.
func (d *driver) trial(ctx context.Context, f figure, a account, p peer, length time.Duration) (values measured, err error) {
	const others = 64                                                                             // descriptors that are not for connections
	if need := max(f.connections*p.descriptors, f.connections) + others; uint64(need) > d.limit { //nolint:gosec // G115: a few thousand
		return nil, skipError{fmt.Sprintf("needs %d descriptors, the limit is %d", need, d.limit)}
	}
	if f.congestion != "" {
		defer func() { err = errors.Join(err, setCongestion(context.WithoutCancel(ctx), d.congestion)) }()
		if err := setCongestion(ctx, f.congestion); err != nil {
			return nil, err
		}
	}
	listen, err := d.nextAddr()
	if err != nil {
		return nil, err
	}
	b := d.backends[f.shape]
	relays := d.relays(f, p, b, listen)
	t := &trial{shape: f.shape, backend: b, length: length, rate: d.rate}
	if f.relays > 1 {
		if t.alone, err = d.residentAlone(ctx, f, a, p, relays); err != nil {
			return nil, err
		}
	}
	if t.way, err = p.run(ctx, d.dir, a.cred, relays); err != nil {
		return nil, err
	}
	defer t.way.stop()
	if p.admin != "" {
		audience, failed := attend(ctx, p.admin)
		if failed != nil {
			return nil, failed
		}
		defer func() { err = errors.Join(err, audience.leave()) }()
	}
	values, err = f.run(ctx, t)
	return values, errors.Join(err, t.way.alive())
}

// relays are those of a trial of f, on the address of listen. Direct has no
// second leg, and always connects by TCP.
func (d *driver) relays(f figure, p peer, b *backend, listen address) []relay {
	if f.relays > 0 {
		return relaysOn(f.relays, listen.tcp.Port(), b.hostPort)
	}
	one := relay{listen, []address{b.addr}}
	switch {
	case p.argv == nil:
	case f.leg == clientLeg:
		one.listen = address{path: filepath.Join(d.dir, socketDir, fmt.Sprint(listen.tcp.Port()))}
	case f.leg == hostLeg:
		one.hosts[0] = b.socket
	}
	return []relay{one}
}

// takesPart reports whether f is measured with p as a: many relays are the same
// for every user, and not every peer can have them.
func (d *driver) takesPart(f figure, a account, p peer) bool {
	return f.relays == 0 || !p.one && a.name == d.accounts[0].name
}

// findRate chooses the rate of the open loop, unless it was given: half of
// what the slowest peer reaches in a closed one, so that all can carry it.
func (d *driver) findRate(ctx context.Context) error {
	wanted := false
	for _, f := range d.figures {
		wanted = wanted || f.id() == openID
	}
	if !wanted || d.rate > 0 {
		return nil
	}
	probe := echoFigure(usual, "64B", 64, 64)
	for _, a := range d.accounts {
		for _, p := range d.peers {
			m, err := d.trial(ctx, probe, a, p, 400*time.Millisecond)
			if ctx.Err() != nil {
				return errInterrupted
			}
			if err != nil {
				d.say("no rate of %s for the open loop: %v", p.name, err)
				continue // its own trials will report that again, and count
			}
			if half := m[rate] / 2; d.rate == 0 || half < d.rate {
				d.rate = half
			}
		}
	}
	d.rate = max(float64(int(d.rate/1000))*1000, 1000)
	d.say("open loop: %.0f messages/s, half of what the slowest peer can do", d.rate)
	return nil
}

// say writes one line of progress.
func (d *driver) say(format string, args ...any) {
	_, _ = fmt.Fprintf(d.progress, format+"\n", args...) // the error cannot be reported
}

// record is the output of -json.
type record struct {
	Machine machine `json:"machine"`
	Seconds float64 `json:"seconds"` // of each window
	Rate    float64 `json:"openLoopRate"`
	Samples results `json:"samples"`
}

// reportAgain makes the report of an earlier run.
func reportAgain(s settings, stdout io.Writer) error {
	raw, err := os.ReadFile(s.again)
	if err != nil {
		return err
	}
	var was record
	if err := json.Unmarshal(raw, &was); err != nil {
		return fmt.Errorf("%s: %w", s.again, err)
	}
	d := &driver{settings: s, results: was.Samples}
	d.length, d.rate = time.Duration(was.Seconds*float64(time.Second)), was.Rate
	seen := map[string]bool{}
	first := func(kind, name string) bool { // of its kind, in the order in which they were measured
		known := seen[kind+name]
		seen[kind+name] = true
		return !known
	}
	for _, sample := range was.Samples {
		if first("peer", sample.Peer) {
			d.peers = append(d.peers, peer{name: sample.Peer})
		}
		if first("user", sample.User) {
			d.accounts = append(d.accounts, account{name: sample.User})
		}
	}
	for _, f := range figures() {
		if slices.ContainsFunc(was.Samples, func(s sample) bool { return s.Figure == f.id() }) {
			d.figures = append(d.figures, f)
		}
	}
	return d.report(was.Machine, stdout)
}

// report writes the tables to stdout and to the files that flags name. It
// returns errFailed when a trial failed.
func (d *driver) report(about machine, stdout io.Writer) error {
	if len(d.results) == 0 {
		return nil
	}
	var b strings.Builder
	d.markdown(&b, about)
	_, err := io.WriteString(stdout, b.String())
	if d.out != "" {
		err = errors.Join(err, os.WriteFile(d.out, []byte(b.String()), 0o644)) //nolint:gosec // G306: a document
	}
	if d.json != "" {
		raw, jsonErr := json.MarshalIndent(record{about, d.length.Seconds(), d.rate, d.results}, "", "\t")
		err = errors.Join(err, jsonErr, os.WriteFile(d.json, raw, 0o644)) //nolint:gosec // G306: a document
	}
	if _, failed := d.results.remarks(); len(failed) > 0 {
		err = errors.Join(err, errFailed)
	}
	return err
}

// markdown is the whole report.
func (d *driver) markdown(w *strings.Builder, about machine) {
	var headings []heading
	var ids []string
	for _, f := range d.figures {
		headings = append(headings, heading{f.id(), f.title + "; " + string(f.shape), f.metrics})
		ids = append(ids, f.id())
	}
	var names []string
	for _, p := range d.peers {
		names = append(names, p.name)
	}
	rounds := d.results[len(d.results)-1].Round
	fmt.Fprintf(w, "# Performance\n\nMedians of %d interleaved rounds, each window %v. `bench/README.md` says what every figure means and what it does not; `make bench` makes this page.\n\n", rounds, d.length)
	w.WriteString(about.markdown())
	if d.rate > 0 {
		fmt.Fprintf(w, "- open loop: %.0f messages/s\n", d.rate)
	}
	for _, a := range d.accounts {
		if median, worst, figure := noise(d.results, a.name, ids); figure != "" {
			fmt.Fprintf(w, "- noise: *direct*, which is the same in every round, spreads by ±%.0f %% in the middle of its figures (proxies as %s) and by ±%.0f %% in the worst, %s\n", 100*median, a.name, 100*worst, figure)
		}
	}
	w.WriteString("\nA cell: median, ± half the distance between the least and the greatest round, ratio to *direct* (d), ratio to HAProxy with two threads (h); ratios are medians of those in each round.\n")
	for _, a := range d.accounts {
		fmt.Fprintf(w, "\n## Proxies as %s\n\n", a.name)
		t := matrix(d.results, a.name, headings, names)
		_ = t.print(w) // a Builder takes everything
	}
	for _, a := range d.accounts {
		t, unmet := verdicts(d.results, a.name)
		fmt.Fprintf(w, "\n## Targets, as %s\n\nUnderstudy against what each line names, by medians of the ratios in each round; a line is met when it is against every one. Of what was measured, %d lines are not.\n\n", a.name, unmet)
		_ = t.print(w)
	}
	skipped, failed := d.results.remarks()
	for _, l := range []struct {
		title string
		lines []string
	}{{"Skipped", skipped}, {"Failed", failed}} {
		if len(l.lines) > 0 {
			fmt.Fprintf(w, "\n## %s\n\n- %s\n", l.title, strings.Join(l.lines, "\n- "))
		}
	}
}
