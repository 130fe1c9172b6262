package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/control"
	"understudy/failover"
	"understudy/health"
)

// watchEvery is the time between two updates of status --watch.
const watchEvery = time.Second

type statusOptions struct {
	relayOptions
	Watch    bool `long:"watch" description:"print it again every second"`
	ExitCode bool `long:"exit-code" description:"exit with 0 while every relay serves, 1 when one has no standby, 3 when one has no primary"`
	JSON     bool `long:"json" description:"print JSON"`
}

func showStatus(ctx context.Context, l line, stdout, stderr io.Writer) int {
	o := l.options.(*statusOptions)
	worst := exitDone
	code := l.connect(ctx, stderr, func(ctx context.Context, path string, found []control.Socket) error {
		if o.Watch {
			return watchStatus(ctx, *o, path, stdout)
		}
		all, err := o.look(ctx, path, found)
		if err != nil {
			return err
		}
		worst = exitCode(all)
		return errors.Join(writeStatus(newTerminal(stdout), all, o.JSON), silent(all))
	})
	if code == exitDone && o.ExitCode {
		return worst
	}
	if code == exitFailed && o.ExitCode {
		return exitNoPrimary // it is not known whether any relay serves
	}
	return code
}

// exitNoPrimary is the exit status of status --exit-code for a relay without a
// primary, or a process that does not answer.
const exitNoPrimary = 3

// exitCode returns the exit status for status --exit-code.
func exitCode(all []process) int {
	code := exitDone
	for _, p := range all {
		if p.err != nil {
			return exitNoPrimary
		}
		for _, r := range p.Relays {
			if r.Primary == "" {
				return exitNoPrimary
			}
			if !r.NoStandby.IsZero() {
				code = exitFailed
			}
		}
	}
	return code
}

// silent returns the errors of the processes that did not answer.
func silent(all []process) (err error) {
	for _, p := range all {
		if p.err != nil {
			err = errors.Join(err, errors.New(p.String()))
		}
	}
	return err
}

// look requests the status of the processes that the options select.
func (o relayOptions) look(ctx context.Context, path string, found []control.Socket) ([]process, error) {
	all, err := processes(ctx, path, found)
	if err != nil || o.Relay == "" && o.PID == 0 {
		return all, err
	}
	if o.Relay == "" {
		p, err := o.process(all)
		return []process{p}, err
	}
	list, err := o.targets(all)
	var only []process
	for _, t := range list {
		t.Relays = []control.RelayStatus{t.relay}
		only = append(only, t.process)
	}
	return only, err
}

func writeStatus(t *terminal, all []process, asJSON bool) error {
	for n, p := range all {
		var err error
		switch {
		case p.err != nil: // the caller reports it
			continue
		case asJSON:
			err = writeJSON(t.w, p.Status)
		default:
			if n > 0 {
				fmt.Fprintln(t.w)
			}
			if len(all) > 1 {
				head := fmt.Sprintf("pid %d", p.PID)
				if p.user != "" {
					head += ", " + p.user
				}
				fmt.Fprintln(t.w, head)
			}
			err = t.status(p.Status)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// watchStatus writes the status repeatedly, until an interrupt. On a terminal
// it continues when the processes that it watches end, since they may be
// restarted.
func watchStatus(ctx context.Context, o statusOptions, path string, stdout io.Writer) error {
	for again := false; ; again = true {
		var found []control.Socket
		if path == "" {
			found = control.Find()
		}
		all, err := o.look(ctx, path, found)
		if err == nil {
			err = silent(all)
		}
		t := newTerminal(stdout) // its size may have changed
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && (!again || t.width == 0):
			return err
		}
		page := bytes.Buffer{}
		t.w = &page
		if err := writeStatus(t, all, o.JSON); err != nil {
			return err
		}
		if err != nil {
			t.say("", err.Error())
		}
		if again && t.width == 0 && !o.JSON {
			fmt.Fprintln(stdout) // sets the tables apart
		}
		if _, err := stdout.Write(t.page(page.Bytes())); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchEvery):
		}
	}
}

// statusText returns a status as text, as for a pipe.
func statusText(s control.Status) string {
	var out strings.Builder
	if err := newTerminal(&out).status(s); err != nil {
		return err.Error()
	}
	return out.String()
}

func (t *terminal) status(s control.Status) error {
	for n, r := range s.Relays {
		if n > 0 {
			fmt.Fprintln(t.w)
		}
		colour, state := r.State, r.State
		if !r.NoStandby.IsZero() {
			colour, state = "warning", r.State+", without a standby for "+span(s.Now.Sub(r.NoStandby))
		}
		t.put(t.paintAs(colour, "●")+" ", "  ", r.Name+": "+state)
		t.field("listen", strings.Join(r.Listen, " "))
		t.field("primary", primaryText(r, s.Now))
		if r.Event != "" {
			t.field("epoch", fmt.Sprintf("%d (%s: %s)", r.Epoch, r.Event, r.Reason))
		}
		c := r.Clients
		pacing := ""
		if p := r.Pacing; p != nil {
			pacing = fmt.Sprintf(" (connected at %.0f/s)", p.Rate)
		}
		t.field("clients", fmt.Sprintf("%d live, %d waiting%s; %d accepted: %d finished, %d reset, %d fenced, %d expired, %d aborted",
			c.Live, c.Queued+c.Held, pacing, c.Accepted, c.Finished, c.Reset, c.Fenced, c.Expired, c.Aborted))
		if k := r.Canary; k != nil {
			t.field("canary", canaryText(*k, s.Now))
		}
		for _, w := range r.Warnings {
			t.field("warning", w)
		}
		if c := r.Cluster; c != nil {
			t.field("cluster", c.Name+", this is "+c.Member+": "+c.Text)
		}
		if r.Loss != nil {
			t.field("loss", "if the primary failed now: "+r.Loss.String())
		}
		if s := r.Scheduled; s != nil {
			text := "to " + s.Host + " at " + s.At.Format(scheduleFormat)
			if s.By != "" {
				text += " by " + s.By
			}
			if s.Reason != "" {
				text += ": " + s.Reason
			}
			t.field("switch", text)
		}
		if r.Frozen != nil {
			t.field("frozen", lockText(r.Frozen))
		}
		if r.SaveError != "" {
			t.field("state", fmt.Sprintf("not saved for %s, a restart will lose it: %s", span(s.Now.Sub(r.SaveFails)), r.SaveError))
		}
		if !r.GoodDrill.IsZero() {
			t.field("drill", fmt.Sprintf("the last good one was %s ago", span(s.Now.Sub(r.GoodDrill))))
		}
		fmt.Fprintln(t.w)
		if err := t.hosts(r, s.Now); err != nil {
			return err
		}
	}
	if len(s.Relays) == 0 {
		t.say("", "no relay: this process only answers over HTTP")
	}
	if err := errors.Join(t.verdicts(s), t.probes(s)); err != nil {
		return err
	}
	if r := s.Reload; r != nil && !r.OK {
		fmt.Fprintln(t.w)
		t.say("", "the configuration was read again "+span(s.Now.Sub(r.At))+" ago and is invalid; the previous one stays in effect:")
		for problem := range strings.SplitSeq(r.Error, "\n") {
			t.say("  ", problem)
		}
	}
	return nil
}

// canaryText describes what the canary of a relay sees.
func canaryText(k control.Canary, now time.Time) string {
	text := "no attempt yet"
	switch {
	case !k.OutageAt.IsZero():
		text = "not served for " + span(now.Sub(k.OutageAt))
		if k.OutageWhy != "" {
			text += ": " + k.OutageWhy
		}
	case k.Result != "":
		text = k.Result + " in " + millis(k.Seconds)
		if k.Error != "" {
			text += ": " + k.Error
		}
	}
	if k.Last > 0 {
		text += fmt.Sprintf("; its last outage took %s, and was over %s ago", millis(k.Last), span(now.Sub(k.Over)))
	}
	return text
}

// verdicts writes a table of what the HTTP listener answers, if it answers verdicts.
func (t *terminal) verdicts(s control.Status) error {
	if len(s.Verdicts) == 0 {
		return nil
	}
	rows := [][]string{{"VERDICT", "STATE", "FOR", "ASKED", "REQUESTS", "NOTE"}}
	for _, v := range s.Verdicts {
		row := []string{v.Route, "not asked yet", "-", "-", "-", ""}
		if v.Status != 0 {
			state := "bad"
			if v.Good() {
				state = "good"
			}
			row = []string{
				v.Route, fmt.Sprintf("%s (%d)", state, v.Status), span(s.Now.Sub(v.Since)), span(s.Now.Sub(v.At)) + " ago",
				fmt.Sprintf("%d, %d bad", v.Requests, v.Bad), v.Why,
			}
		}
		rows = append(rows, row)
	}
	fmt.Fprintln(t.w)
	return t.table(rows, false)
}

// probes writes a table of the probes, if there are any.
func (t *terminal) probes(s control.Status) error {
	if len(s.Probes) == 0 {
		return nil
	}
	rows := [][]string{{"PROBE", "STATE", "FOR", "NOTE"}}
	for _, p := range s.Probes {
		state, since := p.State, ""
		if p.Stale {
			state = "stale"
		}
		if !p.Since.IsZero() {
			since = span(s.Now.Sub(p.Since))
		}
		rows = append(rows, []string{p.Name, state, since, p.Why})
	}
	fmt.Fprintln(t.w)
	return t.table(rows, false)
}

// primaryText names the primary or, if there is none, says what is done about
// it.
func primaryText(r control.RelayStatus, now time.Time) string {
	if r.Primary != "" {
		at := ""
		if i := slices.IndexFunc(r.Hosts, func(h control.Host) bool { return h.Primary && h.Address != nil }); i >= 0 {
			at = " at " + r.Hosts[i].Address.Address
		}
		return r.Primary + at + " for " + span(now.Sub(r.Elected))
	}
	text := "none for " + span(now.Sub(r.Since))
	switch {
	case r.State == "switching" && r.Cluster != nil && r.Cluster.Open:
		text += "; clients wait until this instance may connect them to " + r.Elect
	case r.State == "switching":
		text += "; clients wait until the switch to " + r.Elect + " is done"
	}
	return text
}

func (t *terminal) hosts(r control.RelayStatus, now time.Time) error {
	rows := [][]string{{"  # HOST", "STATE", "FOR", "CLIENTS", "LAST CHECK", "NOTE"}}
	for n, h := range r.Hosts {
		mark := "  "
		if h.Primary {
			mark = "* "
		}
		mark += strconv.Itoa(n+1) + " "
		since := "-"
		if !h.Since.IsZero() {
			since = span(now.Sub(h.Since))
		}
		rows = append(rows, []string{mark + h.Name, h.State, since, clientsOf(h), lastCheck(h), note(h)})
	}
	return t.table(rows, false) // why has the rest
}

// clientsOf returns how many clients a host has now, and how many it had in
// total.
func clientsOf(h control.Host) string {
	if h.Sessions == 0 {
		return "-"
	}
	return fmt.Sprintf("%d of %d", h.Live, h.Sessions)
}

// lastCheck returns the most informative check of a host: the first that
// failed, or the last one.
func lastCheck(h control.Host) string {
	text := "-"
	for _, k := range h.Checks {
		if k.Last == nil {
			continue
		}
		text = fmt.Sprintf("%s %s", k.Name, millis(k.Last.Seconds))
		switch {
		case k.Last.Unknown:
			return text + " unknown"
		case !k.Last.OK:
			return text + " failed"
		}
	}
	return text
}

// roleText returns what a host says of itself.
func roleText(r control.Role) string {
	text := "says " + r.Role
	if r.Bytes != nil && *r.Bytes > 0 {
		text += fmt.Sprintf(", %d bytes behind", *r.Bytes)
	}
	if r.Seconds != nil && *r.Seconds > 0 {
		text += ", for " + seconds(*r.Seconds).String()
	}
	return text
}

// note returns what is special about a host.
func note(h control.Host) string {
	var all []string
	if h.Primary {
		all = append(all, "primary")
	}
	if h.Role != nil && (h.Role.Role != "primary" || !h.Primary) {
		all = append(all, roleText(*h.Role))
	}
	if h.Drained != nil {
		all = append(all, "drained "+lockText(h.Drained))
	}
	for _, k := range h.Checks {
		if k.Last == nil || k.Last.OK {
			continue
		}
		text := cause(*k.Last)
		if k.Last.Unknown {
			text = k.Name + " is unknown: " + text
		}
		all = append(all, text)
		break
	}
	if slices.ContainsFunc(h.Checks, func(k control.Check) bool { return k.Suspected }) {
		all = append(all, "suspected")
	}
	if h.Rejected {
		all = append(all, "rejected")
	}
	if h.Guarded {
		all = append(all, fmt.Sprintf("failed %d times lately", h.Failures))
	}
	return strings.Join(all, ", ")
}

// cause returns the end of an error, without the operation and the address. The
// last output of a script comes before its exit status.
func cause(r control.Result) string {
	text := r.Error
	if r.Phase == string(health.Script) {
		if said, end, ok := cutLast(text, " (script "); ok {
			_, end, _ = cutLast(end, ": ")
			return said + " (" + end
		}
	}
	if _, end, ok := cutLast(text, ": "); ok {
		return end
	}
	return text
}

// cutLast cuts text around the last sep in it.
func cutLast(text, sep string) (before, after string, found bool) {
	i := strings.LastIndex(text, sep)
	if i < 0 {
		return text, "", false
	}
	return text[:i], text[i+len(sep):], true
}

// resultText describes how a check ended.
func resultText(r control.Result) string {
	switch {
	case r.Unknown:
		return "unknown: " + inPhase(r.Phase, r.Error)
	case !r.OK:
		return inPhase(r.Phase, r.Error)
	}
	return "ok"
}

func lockText(k *failover.Lock) string {
	text := "since " + k.Since.Local().Format(hclog.TimeFormat)
	if !k.Until.IsZero() {
		text += " until " + k.Until.Local().Format(hclog.TimeFormat)
	}
	if k.By != "" {
		text += " by " + k.By
	}
	if k.Reason != "" {
		text += ": " + k.Reason
	}
	return text
}
