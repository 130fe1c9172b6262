//go:build linux

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// settings is what the flags say.
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
	congestion  string   // control of every row that names none; "" is the machine's
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
	backend  *process
	addr     netip.AddrPort // the backend's
	port     uint16         // the last one that was given out
	limit    uint64         // of descriptors
	progress io.Writer
	results  results
}

// errFailed is returned when a trial failed: the report says which and why.
var errFailed = errors.New("not every trial could be measured; see \"failed\" in the report")

// errInterrupted is returned after Ctrl-C.
var errInterrupted = errors.New("interrupted; a report, if there is one, holds what was measured until then")

// drive does a whole run and writes the report to stdout. Whatever it started
// is gone when it returns.
func drive(ctx context.Context, s settings, stdout, progress io.Writer) error {
	dir, err := os.MkdirTemp("", "understudy-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // G302: proxies run from here as another user
		return err
	}
	d := &driver{settings: s, dir: dir, port: 11000, progress: progress}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	defer d.backend.stop()
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

// prepare finds the programs, raises limits and starts the backend.
func (d *driver) prepare(ctx context.Context) error {
	var err error
	if d.limit, err = raiseDescriptors(); err != nil {
		return err
	}
	if err := d.findPrograms(ctx); err != nil {
		return err
	}
	for _, f := range figures() {
		if d.only.MatchString(f.id) {
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
	return d.startBackend(ctx)
}

// chooseCongestion sets the congestion control of all rows that name none.
// Where that cannot be done they use the machine's, and the report names it.
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
// understudy if it takes part, and says aloud which peers are not there.
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
// is skipped, aloud; one that was named must be there.
func (d *driver) buildUnderstudy(ctx context.Context, to string) error {
	if d.understudy != "" {
		return copyProgram(d.understudy, to)
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", to, "understudy/cmd/understudy") //nolint:gosec // G204: our own words
	build.Env = append(os.Environ(), "CGO_ENABLED=0")                                                    // as it is shipped
	if out, err := build.CombinedOutput(); err != nil {
		d.say("understudy does not build (run this inside its module): %v: %s", err, lastBytes(out, 300))
	}
	return nil
}

func copyProgram(from, to string) error {
	content, err := os.ReadFile(from) //nolint:gosec // G304: a program that we were told to run
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755) //nolint:gosec // G306: it runs as another user
}

// accounts lists the users to run as: root and nobody, or who we are.
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

func (d *driver) startBackend(ctx context.Context) error {
	var err error
	if d.addr, err = d.nextAddr(); err != nil {
		return err
	}
	if d.backend, err = startProcess(ctx, "backend", d.dir, nil, d.self, roleNameBackend, d.addr.String()); err != nil {
		return err
	}
	if err := waitReady(ctx, d.addr, d.backend); err != nil {
		d.backend.stop()
		return err
	}
	return nil
}

// nextAddr returns an address that nobody listens on. It gives out each port
// once, so that no trial meets what an earlier one left.
func (d *driver) nextAddr() (netip.AddrPort, error) {
	for d.port < 32000 {
		d.port++
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), d.port)
		if fd, err := listen(addr); fd >= 0 {
			_ = unix.Close(fd)
			if err == nil {
				return addr, nil
			}
		}
	}
	return netip.AddrPort{}, errors.New("no free port between 11000 and 32000")
}

// rounds measures everything again and again. Within a figure the peers take
// turns, each round beginning with another one, so that what the machine does
// meanwhile hits all of them alike.
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
					s := sample{Round: round + 1, User: a.name, Figure: f.id, Peer: p.name}
					values, err := d.trial(ctx, f, a, p, d.length)
					if ctx.Err() != nil {
						return errInterrupted
					}
					if d.backend.gone() {
						return d.backend.failure()
					}
					s.note(values, err)
					d.results = append(d.results, s)
					d.say("%6s  round %d  %-6s %-16s %-17s %s", time.Since(begin).Round(time.Second), round+1, a.name, f.id, p.name, s.brief(f.metrics))
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
	w, err := p.run(ctx, d.dir, a.cred, listen, d.addr)
	if err != nil {
		return nil, err
	}
	defer w.stop()
	values, err = f.run(ctx, &trial{way: w, backend: d.backend, length: length, rate: d.rate})
	return values, errors.Join(err, w.alive())
}

// findRate chooses the rate of the open loop, unless it was given: half of
// what the slowest peer reaches in a closed one, so that all can carry it.
func (d *driver) findRate(ctx context.Context) error {
	wanted := false
	for _, f := range d.figures {
		wanted = wanted || f.id == openID
	}
	if !wanted || d.rate > 0 {
		return nil
	}
	probe := echoFigure("64B", 64, 64)
	for _, a := range d.accounts {
		for _, p := range d.peers {
			m, err := d.trial(ctx, probe, a, p, 400*time.Millisecond)
			if ctx.Err() != nil {
				return errInterrupted
			}
			if err != nil {
				d.say("no rate of %s for the open loop: %v", p.name, err)
				continue // its own trials will say so again, and count
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
	_, _ = fmt.Fprintf(d.progress, format+"\n", args...) // nobody to tell
}

// record is what -json writes.
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
		if slices.ContainsFunc(was.Samples, func(s sample) bool { return s.Figure == f.id }) {
			d.figures = append(d.figures, f)
		}
	}
	return d.report(was.Machine, stdout)
}

// report writes the tables to stdout and to the files that were asked for.
// It returns errFailed when a trial failed.
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
		headings = append(headings, heading{f.id, f.title, f.metrics})
		ids = append(ids, f.id)
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
