package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"understudy/config"
	"understudy/control"
	"understudy/failover"
)

// hangup is what HUP asks for: log files are opened anew, and the configuration
// is read again.
func (s *service) hangup(ctx context.Context) {
	if s.load == nil {
		defer s.tellReloading()()
		if err := s.journal.Reopen(); err != nil {
			s.log.Error("log is not opened anew", "error", err)
		}
		s.log.Info("nothing to reload: there is no configuration file")
		return
	}
	_, _ = s.reload(ctx, "") // what came of it is in the log
}

// reload reads the configuration again and changes what has changed in it, and
// nothing else: listeners, connections, the primary and what is known of hosts
// and probes stay where their settings do. If anything is wrong with the new
// settings nothing changes at all. It waits for an election that is under way.
func (s *service) reload(ctx context.Context, by string) (control.Changes, error) {
	if s.load == nil {
		return control.Changes{}, failover.RefusedError{Reason: "there is no configuration file: flags and variables are read at the start only"}
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	if s.ending {
		return control.Changes{}, failover.ErrOver
	}
	// The end of the program waits for nothing, and half a reload must not
	// depend on whether somebody waits for it.
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(s.finish, stop)() //nolint:contextcheck // see above

	defer s.tellReloading()()
	if err := s.journal.Reopen(); err != nil {
		s.log.Error("log is not opened anew", "error", err)
	}
	next, err := s.load()
	var did control.Changes
	if err == nil {
		did, err = s.change(ctx, next)
	}
	report := &control.Reload{At: time.Now(), By: by, OK: err == nil, Changes: did}
	if err != nil {
		report.Error = err.Error()
		s.reloaded.Store(report)
		for problem := range strings.SplitSeq(err.Error(), "\n") {
			s.log.Error("configuration not reloaded, what held before goes on", "file", s.settings.File, "error", problem)
		}
		return did, failover.RefusedError{Reason: "nothing has changed:\n" + err.Error()}
	}
	s.reloaded.Store(report)
	for _, w := range next.Warnings {
		s.log.Warn("configuration", "reason", w)
	}
	s.log.Info("configuration reloaded", "file", next.File, "by", by, "changed", did.Changed)
	if len(did.Restart) > 0 {
		s.log.Warn("some settings take a restart", "settings", did.Restart)
	}
	return did, nil
}

// change has other settings hold. Everything that can fail comes first; then
// what has changed is put in its place.
func (s *service) change(ctx context.Context, next config.Settings) (did control.Changes, err error) {
	before := s.current()
	var undo []func()
	defer func() {
		if err != nil {
			for _, u := range slices.Backward(undo) {
				u()
			}
		}
	}()

	// What answers over HTTP.
	old := s.answers.Load()
	a, err := s.answer(next, old)
	if err != nil {
		return did, err
	}
	undo = append(undo, func() { a.close(old) })
	if err := a.bind(old); err != nil { //nolint:contextcheck // it waits for nothing
		return did, err
	}

	// The relays: new ones are bound, the engines of changed ones take their
	// settings, which can still fail, and be taken back.
	var after, fresh []*conducted
	var later []func() error
	for _, r := range next.Relays {
		i := slices.IndexFunc(before, func(c *conducted) bool { return c.name == r.Name })
		if i < 0 {
			c, err := s.conduct(r, next, nil)
			if err != nil {
				return did, err
			}
			undo = append(undo, c.close)
			if err := c.relay.Bind(); err != nil { //nolint:contextcheck // it waits for the name of the address at most
				return did, err
			}
			did.Changed = append(did.Changed, "relay "+r.Name+": new")
			after, fresh = append(after, c), append(fresh, c)
			continue
		}
		c := before[i]
		after = append(after, c)
		reserved := verdictDescriptors(next.HTTP) != verdictDescriptors(s.settings.HTTP)
		if reflect.DeepEqual(c.settings, r) && !reserved {
			continue
		}
		engine, was := s.relayConfig(r, next.HTTP), s.relayConfig(c.settings, s.settings.HTTP)
		for _, name := range c.relay.NeedsRestart(engine) {
			did.Restart = append(did.Restart, "relay "+r.Name+": "+name)
		}
		rules, err := rulesOf(r, s.resolver.Resolve)
		if err != nil {
			return did, err
		}
		if err := c.relay.Reconfigure(engine); err != nil { //nolint:contextcheck // it waits for the name of the address at most
			return did, err
		}
		undo = append(undo, func() { //nolint:contextcheck // as above
			if err := c.relay.Reconfigure(was); err != nil {
				s.log.Error("relay does not go back to what it was", "relay", r.Name, "error", err)
			}
		})
		later = append(later, func() error {
			err := c.conductor.Reconfigure(ctx, rules)
			c.settings = r
			return err
		})
		if what := differences(c.settings, r); what != "" {
			did.Changed = append(did.Changed, "relay "+r.Name+": "+what)
		}
	}

	// From here on nothing can fail but that the program ends.
	undo = nil
	for _, c := range fresh {
		s.startRelay(c)
	}
	s.relays.Store(&after)
	s.answers.Store(a)
	a.start(s, old)
	for _, c := range before {
		if !slices.Contains(after, c) {
			did.Changed = append(did.Changed, "relay "+c.name+": gone, its connections may finish")
			s.leave(c)
		}
	}
	var errs []error
	for _, f := range later {
		errs = append(errs, f())
	}
	did.Changed = append(did.Changed, s.otherChanges(old, a, next)...)
	did.Restart = append(did.Restart, s.needRestart(next)...)
	if next.Log.Level != s.settings.Log.Level {
		s.journal.SetLevel(next.Log.Level)
	}
	next.Log.JSON, next.Log.Output = s.settings.Log.JSON, s.settings.Log.Output
	next.Control, next.StateDir = s.settings.Control, s.settings.StateDir
	s.settings = next
	return did, errors.Join(errs...)
}

// leave has a relay that is no longer configured end once its connections have
// finished. Changing is held.
func (s *service) leave(c *conducted) {
	s.leaving = append(s.leaving, c)
	c.part.end()
	s.serving.wg.Go(func() {
		<-c.part.over
		c.logCounts(s.log)
		c.close()
		s.changing.Lock()
		s.leaving = slices.DeleteFunc(s.leaving, func(l *conducted) bool { return l == c })
		s.changing.Unlock()
	})
}

// otherChanges names what has changed beside the relays.
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
			list = append(list, "probe "+p.settings.Name+": gone")
		}
	}
	if what := differences(old.settings, a.settings); what != "" {
		list = append(list, "http: "+what)
	}
	if next.Log.Level != s.settings.Log.Level {
		list = append(list, "log: level "+next.Log.Level)
	}
	return list
}

// needRestart names the settings that hold from the next start only.
func (s *service) needRestart(next config.Settings) (list []string) {
	for _, k := range []struct {
		name     string
		old, new any
	}{
		{"log-format", s.settings.Log.JSON, next.Log.JSON},
		{"log-output", s.settings.Log.Output, next.Log.Output},
		{"control", s.settings.Control, next.Control},
		{"state-dir", s.settings.StateDir, next.StateDir},
	} {
		if k.old != k.new {
			list = append(list, k.name)
		}
	}
	if now := next.SecretVariables(); !slices.Equal(now, s.settings.SecretVariables()) {
		list = append(list, "token_env (until then scripts see the variable)")
	}
	return list
}

// differences names the fields in which two settings of a kind differ.
func differences(a, b any) string {
	var names []string
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range x.NumField() {
		if !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface()) {
			names = append(names, strings.ToLower(x.Type().Field(i).Name))
		}
	}
	return strings.Join(names, ", ")
}

// describeChanges says for people what a reload did.
func describeChanges(did control.Changes) string {
	if len(did.Changed)+len(did.Restart) == 0 {
		return "nothing had changed\n"
	}
	var b strings.Builder
	for _, c := range did.Changed {
		fmt.Fprintf(&b, "%s\n", c)
	}
	for _, r := range did.Restart {
		fmt.Fprintf(&b, "%s: takes a restart, and is as before\n", r)
	}
	return b.String()
}
