package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"understudy/config"
	"understudy/control"
	"understudy/failover"
	"understudy/internal/safetext"
)

type switchOptions struct {
	relayOptions
	At     string `long:"at" value-name:"TIME" description:"switch later: at the next 03:30, or at \"2026-11-27 03:30\""`
	TZ     string `long:"tz" value-name:"ZONE" description:"time zone of --at, like Europe/Berlin; default is that of this machine"`
	Cancel bool   `long:"cancel" description:"take a scheduled switch back"`
	Drain  string `long:"drain" value-name:"D" description:"time that existing connections may take to finish; default: as --fence says"`
	JSON   bool   `long:"json" description:"print the progress and the receipt as JSON, one value a line"`
	Reason string `long:"reason" value-name:"TEXT" description:"reason, kept in the record and passed to the triggers"`
}

func switchTo(ctx context.Context, l line, stdout, stderr io.Writer) int {
	o := l.options.(*switchOptions)
	order := control.Order{Reason: o.Reason, By: onBehalf()}
	host := ""
	switch {
	case o.Cancel && (len(l.args) > 0 || o.At != "" || o.TZ != "" || o.Drain != ""):
		return l.usage(stderr, errors.New("--cancel: takes no host and no other flag than --relay and --reason"))
	case o.Cancel:
	case len(l.args) == 0:
		return l.usage(stderr, errors.New("switch: needs HOST; understudy status lists them"))
	case o.TZ != "" && o.At == "":
		return l.usage(stderr, errors.New("--tz: is for --at"))
	default:
		host = l.args[0]
	}
	if o.At != "" {
		zone := time.Local
		if o.TZ != "" {
			var err error
			if zone, err = time.LoadLocation(o.TZ); err != nil {
				return l.usage(stderr, fmt.Errorf("--tz: %q is not a time zone like Europe/Berlin", o.TZ))
			}
		}
		var err error
		if order.At, err = parseAt(o.At, zone, time.Now()); err != nil {
			return l.usage(stderr, fmt.Errorf("--at: %w", err))
		}
	}
	order.Cancel = o.Cancel
	if o.Drain != "" {
		d, err := config.ParseDuration(o.Drain)
		if err != nil || d < 0 {
			return l.usage(stderr, fmt.Errorf("--drain: %q is not a duration like 2s", o.Drain))
		}
		s := d.Seconds()
		order.DrainSeconds = &s
	}
	return l.requestOne(ctx, stderr, o.relayOptions, func(ctx context.Context, t target) error {
		if o.Cancel || o.At != "" {
			var s control.ScheduleAnswer
			if err := t.order(ctx, "switch", host, order, &s); err != nil {
				return err
			}
			if o.JSON {
				return json.NewEncoder(stdout).Encode(s)
			}
			did := "scheduled"
			if o.Cancel {
				did = "cancelled"
			}
			fmt.Fprintf(stdout, "%s: switch to %s at %s; %s\n", did, s.Host, s.At.Format(scheduleFormat), t)
			return nil
		}
		var done control.SwitchAnswer
		switch err := t.orderSwitch(ctx, stdout, o.JSON, "switch", host, order, &done); {
		case err != nil:
			return err
		case o.JSON:
			return json.NewEncoder(stdout).Encode(done)
		}
		fmt.Fprintf(stdout, "%s is primary (epoch %d), after %v; %s\n", done.Host, done.Epoch, seconds(done.Seconds).Round(time.Millisecond), t)
		fmt.Fprintln(stdout, "  "+receipt(done.Switched))
		return nil
	})
}

// orderSwitch sends an order that may make another host primary, and writes the
// progress.
func (t target) orderSwitch(ctx context.Context, w io.Writer, asJSON bool, verb, host string, o control.Order, out any) error {
	watched, stop := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		t.watchSwitch(watched, w, asJSON)
	}()
	err := t.order(ctx, verb, host, o, out)
	stop()
	<-over
	return err
}

// progressEvery is the time between two requests for the progress of a switch.
const progressEvery = 250 * time.Millisecond

// watchSwitch writes each step of the switch until ctx ends. It writes nothing
// for a switch that takes no time.
func (t target) watchSwitch(ctx context.Context, w io.Writer, asJSON bool) {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s, err := t.Client.Status(ctx)
		i := slices.IndexFunc(s.Relays, func(r control.RelayStatus) bool { return r.Name == t.relay.Name })
		if err != nil || i < 0 || s.Relays[i].Progress == nil || ctx.Err() != nil {
			continue
		}
		p := s.Relays[i].Progress
		text := progressText(*p, s.Now)
		if text == last {
			continue
		}
		last = text
		if asJSON {
			_ = json.NewEncoder(w).Encode(struct {
				Progress *failover.Progress `json:"progress"`
			}{p})
		} else {
			fmt.Fprintln(w, "  "+safetext.Terminal(text))
		}
	}
}

// progressText describes the progress of a change of primary. The seconds are
// whole, so the text changes once a second.
func progressText(p failover.Progress, now time.Time) string {
	took := now.Sub(p.Since).Truncate(time.Second)
	switch p.Step {
	case failover.StageChecking:
		return "checking " + cmp.Or(p.Host, "the other hosts")
	case failover.StageDraining:
		left := max(p.Until.Sub(now), 0)
		return fmt.Sprintf("draining %s, %v left", number(int(min(p.Connections, 1<<30)), "connection"), left.Truncate(time.Second)+time.Second)
	case failover.StageTrigger:
		return fmt.Sprintf("trigger %s, %v", p.Script, took)
	case failover.StageVerifying:
		return fmt.Sprintf("%s is asked whether it is the primary, %v", p.Host, took)
	case failover.StageOpening:
	}
	return "opening to " + p.Host
}

// receipt describes the result of a switch.
func receipt(d failover.Switched) string {
	text := number(d.Waited, "client") + " waited"
	if f := d.Fence; f != nil {
		text += fmt.Sprintf("; earlier connections: %d finished, %d reset", f.Finished, f.Reset)
		if f.Moved > 0 {
			text += fmt.Sprintf(", %d moved to the new primary", f.Moved)
		}
		if f.Kept > 0 {
			text += fmt.Sprintf(", %d kept", f.Kept)
		}
		text += "; the drain took " + millis(f.Seconds)
	}
	parts := []string{text}
	for _, g := range d.Triggers {
		part := fmt.Sprintf("trigger %s took %s", filepath.Base(g.Script), millis(g.Seconds))
		if g.Failed {
			part += " and failed (" + g.Status + ")"
		}
		parts = append(parts, part)
	}
	return safetext.Terminal(strings.Join(parts, "; "))
}

// number returns a count with its noun.
func number(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// onBehalf returns the user of a root shell, if sudo reports one.
func onBehalf() string { return os.Getenv("SUDO_USER") }

// scheduleFormat shows the time of a scheduled switch with its offset.
const scheduleFormat = "2006-01-02 15:04 -0700"

// parseAt returns the next moment at which clocks in a zone show a time like
// 03:30, or the moment at which they show "2026-11-27 03:30". If clocks show a
// time twice, because they are set back, it is the first moment that is in the
// future. A time that is skipped, because they are set forward, is counted on
// from the time before: 02:30 is 03:30.
func parseAt(text string, zone *time.Location, now time.Time) (time.Time, error) {
	if day, err := time.Parse("2006-01-02 15:04", text); err == nil {
		if at, ok := momentOf(day, zone, now); ok {
			return at, nil
		}
		return time.Time{}, fmt.Errorf("%q is over", text)
	}
	clock, err := time.Parse("15:04", text)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is not a time like 03:30 or \"2026-11-27 03:30\"", text)
	}
	year, month, day := now.In(zone).Date()
	for n := range 3 {
		shown := time.Date(year, month, day+n, clock.Hour(), clock.Minute(), 0, 0, time.UTC)
		if at, ok := momentOf(shown, zone, now); ok {
			return at, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q does not come", text)
}

// momentOf returns the first moment after now at which clocks in a zone show
// what a UTC clock shows at shown; false when that is in the past.
func momentOf(shown time.Time, zone *time.Location, now time.Time) (at time.Time, ok bool) {
	_, before := shown.Add(-24 * time.Hour).In(zone).Zone()
	_, after := shown.Add(24 * time.Hour).In(zone).Zone()
	inBefore := shown.Add(-time.Duration(before) * time.Second).In(zone)
	inAfter := shown.Add(-time.Duration(after) * time.Second).In(zone)
	const clock = "2006-01-02 15:04"
	exists := false
	for _, at := range []time.Time{inBefore, inAfter} { // the first one first
		if at.Format(clock) != shown.Format(clock) {
			continue
		}
		exists = true
		if at.After(now) {
			return at, true
		}
	}
	return inBefore, !exists && inBefore.After(now)
}
