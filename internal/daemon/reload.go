package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"understudy/config"
	"understudy/control"
	"understudy/failover"
	"understudy/relay"
)

// settleTime is the longest time that a reload waits for its new relays to find a
// primary before they count in verdicts.
const settleTime = 5 * time.Second

// reopen reopens log files.
func (s *service) reopen() {
	if err := s.journal.Reopen(); err != nil {
		s.log.Error("log file not reopened", "error", err)
	}
}

// hangup does what HUP requests in addition to reopening log files.
func (s *service) hangup(ctx context.Context) {
	if s.load == nil {
		s.notifyReloading()()
		s.log.Info("nothing to reload: there is no configuration file")
		return
	}
	_, _ = s.reload(ctx, "") // the result is in the log
}

// reload reads the configuration anew and applies what has changed in it, and
// nothing else: listeners, connections, the primary and the state of hosts and
// probes are kept where their settings are. If anything is wrong with the new
// settings nothing changes at all. It waits for an election in progress.
func (s *service) reload(ctx context.Context, by string) (control.Changes, error) {
	if s.load == nil {
		return control.Changes{}, failover.RefusedError{Reason: "there is no configuration file: flags and variables are read at the start only"}
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	if s.ending {
		return control.Changes{}, failover.ErrOver
	}
	// The end of the program does not wait for a reload, and a reload must not
	// stop halfway because its caller no longer waits.
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(s.running, stop)() //nolint:contextcheck // see above

	defer s.notifyReloading()()
	report := &control.Reload{At: time.Now(), By: by}
	next, err := s.loadUntil(ctx)
	if s.running.Err() != nil {
		return report.Changes, failover.ErrOver
	}
	var u *upcoming
	if err == nil {
		u, err = s.prepare(ctx, next)
	}
	if err != nil {
		report.Error = err.Error()
		s.reloaded.Store(report)
		for problem := range strings.SplitSeq(err.Error(), "\n") {
			s.log.Error("configuration not reloaded, the previous one stays in effect", "file", s.settings.File, "error", problem)
		}
		return report.Changes, failover.RefusedError{Reason: "nothing has changed:\n" + err.Error()}
	}
	err = s.take(ctx, u)
	report.Changes, report.OK = u.did, err == nil
	if err != nil {
		if s.running.Err() != nil {
			return report.Changes, failover.ErrOver
		}
		report.Error = err.Error()
		s.reloaded.Store(report)
		s.log.Error("configuration reloaded in part", "file", next.File, "error", err)
		return report.Changes, err
	}
	s.reloaded.Store(report)
	for _, w := range next.Warnings {
		s.log.Warn("configuration", "reason", w)
	}
	s.log.Info("configuration reloaded", "file", next.File, "by", by, "changed", u.did.Changed)
	if len(u.did.Restart) > 0 {
		s.log.Warn("some settings need a restart", "settings", u.did.Restart)
	}
	return report.Changes, nil
}

// loadUntil reads the settings anew. A file system that hangs must not keep the
// program from ending: when ctx ends loadUntil returns.
func (s *service) loadUntil(ctx context.Context) (config.Settings, error) {
	type result struct {
		settings config.Settings
		err      error
	}
	loaded := make(chan result, 1)
	go func() {
		settings, err := s.load()
		loaded <- result{settings, err}
	}()
	select {
	case r := <-loaded:
		return r.settings, r.err
	case <-ctx.Done():
		return config.Settings{}, ctx.Err()
	}
}

// upcoming holds the replacement of the current parts. Its addresses are bound.
type upcoming struct {
	settings config.Settings
	relays   []*conducted // in the order of the settings
	fresh    []*conducted // the new ones among relays
	changes  []relayChange
	answers  *answers
	did      control.Changes
}

// relayChange is a relay whose settings change.
type relayChange struct {
	of              *conducted
	next            config.Relay
	engine          *relay.Change
	conductorConfig failover.Config
	same            bool // only the number of reserved descriptors changes
}

// undo releases what is prepared.
func (u *upcoming) undo(old *answers) {
	for _, c := range u.fresh {
		c.close()
	}
	for _, c := range u.changes {
		c.engine.Undo()
	}
	if u.answers != nil {
		u.answers.close(old)
	}
}

// prepare does everything that can fail in a change of settings, and changes
// nothing.
func (s *service) prepare(ctx context.Context, next config.Settings) (_ *upcoming, err error) {
	if err := s.moves(next); err != nil {
		return nil, err
	}
	if now, then := s.settings.Relays, next.Relays; len(now) == 1 && len(then) == 1 && now[0].Unnamed && then[0].Unnamed {
		next.RenameRelay(then[0].Name, now[0].Name) // another port does not make it another relay
	}
	u := &upcoming{did: control.Changes{Restart: s.needRestart(next)}}
	next.Log.JSON, next.Log.Output = s.settings.Log.JSON, s.settings.Log.Output
	next.Control, next.StateDir, next.Cluster = s.settings.Control, s.settings.StateDir, s.settings.Cluster
	u.settings = next
	old := s.answers.Load()
	defer func() {
		if err != nil {
			u.undo(old)
		}
	}()
	reserved := Descriptors(next) != Descriptors(s.settings)
	before := s.current()
	for _, r := range next.Relays {
		i := slices.IndexFunc(before, func(c *conducted) bool { return c.name == r.Name })
		if i < 0 {
			s.awaitDecided(ctx, r.Name)
			c, err := s.conduct(r, next, nil)
			if err != nil {
				return nil, fmt.Errorf("relay %s: %w", r.Name, err)
			}
			u.relays, u.fresh = append(u.relays, c), append(u.fresh, c)
			if err := c.bind(); err != nil {
				return nil, err
			}
			u.did.Changed = append(u.did.Changed, "relay "+r.Name+": new")
			continue
		}
		c := before[i]
		u.relays = append(u.relays, c)
		same := reflect.DeepEqual(c.settings, r)
		if same && !reserved {
			continue
		}
		conductorConfig, err := FailoverConfig(r, s.resolver.Resolve, &c.doubts, s.roles)
		conductorConfig.Phases, conductorConfig.Cluster = s.phases.of(r.Hosts), s.clusterOf(c, r)
		if err == nil {
			err = c.conductor.Accepts(conductorConfig)
		}
		if err != nil {
			return nil, fmt.Errorf("relay %s: %w", r.Name, err)
		}
		change, err := c.relay.Prepare(s.relayConfig(c, r, next))
		if err != nil {
			return nil, fmt.Errorf("relay %s: %w", r.Name, err)
		}
		u.changes = append(u.changes, relayChange{c, r, change, conductorConfig, same})
		if what := differences(c.settings, r); what != "" {
			u.did.Changed = append(u.did.Changed, "relay "+r.Name+": "+what)
		}
	}
	if u.answers, err = s.answer(next, u.relays, old); err != nil {
		return nil, err
	}
	return u, u.answers.bind(old, true) //nolint:contextcheck // it never waits
}

// take applies what is prepared. Only the system or the end of the program can
// make it fail.
func (s *service) take(ctx context.Context, u *upcoming) error {
	before, old := s.current(), s.answers.Load()
	for _, c := range u.fresh {
		s.startRelay(c)
	}
	s.relays.Store(&u.relays)
	s.changed()
	results := make(chan error, len(u.changes))
	for _, c := range u.changes {
		if err := c.engine.Commit(); err != nil {
			results <- fmt.Errorf("relay %s: %w", c.of.name, err)
			continue
		}
		if c.same {
			results <- nil
			continue
		}
		c.of.settings = c.next
		go func() { results <- c.of.conductor.Reconfigure(ctx, c.conductorConfig) }()
	}

	// A verdict must not change only because a relay is new or was removed.
	s.settle(ctx, u.fresh)
	s.answers.Store(u.answers)
	u.answers.start(s, old)
	for _, c := range before {
		if !slices.Contains(u.relays, c) {
			u.did.Changed = append(u.did.Changed, "relay "+c.name+": removed, its connections may finish")
			s.leave(c)
		}
	}

	u.did.Changed = append(u.did.Changed, s.otherChanges(old, u.answers, u.settings)...)
	s.journal.SetLevel(u.settings.Log.Level)
	s.verdicts.Record(recordedVerdicts(u.settings.Log))
	s.settings = u.settings
	var errs []error
	for range u.changes {
		errs = append(errs, <-results)
	}
	return errors.Join(errs...)
}

// settle waits until new relays have a primary or know that none is available,
// for settleTime at most.
func (s *service) settle(ctx context.Context, fresh []*conducted) {
	ctx, stop := context.WithTimeout(ctx, settleTime)
	defer stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !s.decided(fresh) {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// leave ends a relay that is no longer configured once its connections have
// finished. Its addresses are released when leave returns. The caller holds
// changing.
func (s *service) leave(c *conducted) {
	s.leaving = append(s.leaving, c)
	c.part.end()
	c.relay.Leave()
	s.serving.wg.Go(func() {
		<-c.part.over
		c.logCounts(s.log)
		c.close()
		s.changing.Lock()
		s.leaving = slices.DeleteFunc(s.leaving, func(l *conducted) bool { return l == c })
		s.changing.Unlock()
	})
}

// awaitDecided waits until the conductor of an earlier relay of that name has
// ended, so that the next one can continue with its state. Its connections may
// continue as well.
func (s *service) awaitDecided(ctx context.Context, name string) {
	ctx, stop := context.WithTimeout(ctx, settleTime)
	defer stop()
	for _, c := range s.leaving {
		if c.name != name {
			continue
		}
		select {
		case <-c.decided:
		case <-ctx.Done():
			return
		}
	}
}

// place is an address and the part that listens on it.
type place struct{ owner, addr string }

// places lists the addresses on which the parts of a process listen.
func places(all config.Settings) (list []place) {
	for _, r := range all.Relays {
		for _, addr := range r.Listen {
			list = append(list, place{"relay " + r.Name, addr})
		}
	}
	if all.HTTP.Listen != "" {
		list = append(list, place{"http", all.HTTP.Listen})
	}
	if all.Admin.Listen != "" {
		list = append(list, place{"admin", all.Admin.Listen})
	}
	for _, r := range all.HTTP.Routes {
		if v := r.Verdict; v != nil && v.Agent != "" {
			list = append(list, place{"agent", v.Agent})
		}
		if v := r.Verdict; v != nil && v.TCP != "" {
			list = append(list, place{"tcp verdict", v.TCP})
		}
	}
	return list
}

// moves returns an error that names the addresses that move from one part of
// the process to another. They cannot be bound while the first part has them,
// and if it released them first the change could not be undone.
func (s *service) moves(next config.Settings) error {
	now := places(s.settings)
	var errs []error
	for _, p := range places(next) {
		if slices.Contains(now, p) {
			continue
		}
		for _, n := range now {
			if n.owner == p.owner && strings.HasPrefix(n.owner, "relay ") {
				continue // the error about the relay explains what to do
			}
			if overlap(n.addr, p.addr) {
				errs = append(errs, fmt.Errorf("%s: %s is still the address of %s (%s): reload once without it there, and then with it here", p.owner, p.addr, n.owner, n.addr))
			}
		}
	}
	return errors.Join(errs...)
}

// overlap reports whether two addresses cannot be listened on at the same time.
func overlap(a, b string) bool {
	if a == b {
		return !strings.HasSuffix(a, ":0")
	}
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	covers := func(all, one string) bool {
		ip, err := netip.ParseAddr(one)
		return all == "" || all == "::" || all == "0.0.0.0" && (one == "" || one == "::" || err == nil && ip.Unmap().Is4())
	}
	return covers(hostA, hostB) || covers(hostB, hostA)
}

// otherChanges names the changes outside of the relays.
func (s *service) otherChanges(old, a *answers, next config.Settings) (list []string) {
	for _, p := range a.probes {
		switch was := old.probe(p.settings.Name); {
		case was == nil:
			list = append(list, "probe "+p.settings.Name+": new")
		case was != p:
			list = append(list, "probe "+p.settings.Name+": "+differences(was.settings, p.settings))
		}
	}
	for _, p := range old.probes {
		if a.probe(p.settings.Name) == nil {
			list = append(list, "probe "+p.settings.Name+": removed")
		}
	}
	if what := differences(old.settings, a.settings); what != "" {
		list = append(list, "http: "+what)
	}
	if what := differences(s.settings.Admin, next.Admin); what != "" {
		list = append(list, "admin: "+what)
	}
	if next.Log.Level != s.settings.Log.Level {
		list = append(list, "log: level "+next.Log.Level)
	}
	if next.Log.Verdicts != s.settings.Log.Verdicts {
		list = append(list, "log: verdicts "+next.Log.Verdicts)
	}
	return list
}

// needRestart names the settings that take effect only at the next start.
func (s *service) needRestart(next config.Settings) (list []string) {
	for _, k := range []struct {
		name     string
		old, new any
	}{
		{"log-format", s.settings.Log.JSON, next.Log.JSON},
		{"log-output", s.settings.Log.Output, next.Log.Output},
		{"control", s.settings.Control, next.Control},
		{"state-dir", s.settings.StateDir, next.StateDir},
		{"loops", mostLoops(s.settings.Loops), mostLoops(next.Loops)},
		{"spin", s.settings.Spin, next.Spin},
	} {
		if k.old != k.new {
			list = append(list, k.name)
		}
	}
	if !reflect.DeepEqual(next.Cluster, s.settings.Cluster) {
		list = append(list, "cluster and what belongs to it")
	}
	if now := next.SecretVariables(); !slices.Equal(now, s.settings.SecretVariables()) {
		list = append(list, "token_env (until then scripts see the variable)")
	}
	return list
}

// differences names the fields in which two settings of a kind differ, in the
// spelling of the file.
func differences(a, b any) string {
	var names []string
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range x.NumField() {
		if !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface()) {
			name := wordStart.ReplaceAllString(x.Type().Field(i).Name, "${1}_$2")
			names = append(names, strings.ToLower(name))
		}
	}
	return strings.Join(names, ", ")
}

var wordStart = regexp.MustCompile(`([a-z])([A-Z])`)
