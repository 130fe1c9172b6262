package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/config"
	"understudy/control"
	"understudy/failover"
)

type eventsOptions struct {
	showOptions
	Follow bool   `long:"follow" description:"continue with new ones, until Ctrl-C"`
	Since  string `long:"since" value-name:"D" description:"only those of this long ago and later"`
	Last   int    `long:"last" value-name:"N" description:"only the last N"`
}

func showEvents(ctx context.Context, l line, stdout, stderr io.Writer) int {
	o := l.options.(*eventsOptions)
	var since time.Time
	if o.Since != "" {
		d, err := config.ParseDuration(o.Since)
		if err != nil || d <= 0 {
			return l.usage(stderr, fmt.Errorf("--since: %q is not a duration like 2h", o.Since))
		}
		since = time.Now().Add(-d)
	}
	if o.Last < 0 {
		return l.usage(stderr, fmt.Errorf("--last: %d is not a number of events", o.Last))
	}
	if o.Follow && o.Last > 0 {
		return l.usage(stderr, errors.New("--last: has no meaning with --follow"))
	}
	t := newTerminal(stdout)
	return l.request(ctx, stderr, func(ctx context.Context, all []process) error {
		targets, err := o.targets(all)
		if err != nil {
			return err
		}
		if o.Follow {
			return t.follow(ctx, targets, since, o.JSON)
		}
		list := []control.Event{}
		for _, r := range targets {
			of, err := soon(ctx, func(ctx context.Context) ([]control.Event, error) { return r.Events(ctx, r.relay.Name) })
			if err != nil {
				return err
			}
			list = append(list, of...)
		}
		list = slices.DeleteFunc(list, func(e control.Event) bool { return e.At().Before(since) })
		slices.SortStableFunc(list, func(a, b control.Event) int { return a.At().Compare(b.At()) })
		if o.Last > 0 && len(list) > o.Last {
			list = list[len(list)-o.Last:]
		}
		switch {
		case o.JSON:
			return writeJSON(stdout, list)
		case len(list) == 0 && since.IsZero():
			fmt.Fprintln(stdout, "no election yet")
		case len(list) == 0:
			fmt.Fprintln(stdout, "no election since "+since.Local().Format(hclog.TimeFormat))
		}
		for n, e := range list {
			if n > 0 {
				fmt.Fprintln(stdout)
			}
			if err := t.incident(e.Incident); err != nil {
				return err
			}
		}
		return nil
	})
}

// follow writes new records of several relays until ctx ends or one of the
// processes does.
func (t *terminal) follow(ctx context.Context, targets []target, since time.Time, asJSON bool) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var mu sync.Mutex // of t and again
	again := false
	write := func(e control.Event) error {
		mu.Lock()
		defer mu.Unlock()
		if e.At().Before(since) {
			return nil
		}
		if asJSON {
			return json.NewEncoder(t.w).Encode(e)
		}
		if again {
			fmt.Fprintln(t.w)
		}
		again = true
		return t.incident(e.Incident)
	}
	var wg sync.WaitGroup
	for _, r := range targets {
		wg.Go(func() { stop(r.Follow(ctx, r.relay.Name, write)) })
	}
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil // an interrupt is the usual end
}

// incident writes one record as a timeline.
func (t *terminal) incident(i failover.Incident) error {
	if i.Order != nil {
		return t.order(i)
	}
	at := i.At()
	head := fmt.Sprintf("#%d  %s  %s: %s, epoch %d, ", i.ID, at.Local().Format(hclog.TimeFormat), i.Relay, i.Event, i.Epoch)
	hosts := i.Old + i.New
	if i.Old != "" && i.New != "" {
		hosts = i.Old + " → " + i.New
	}
	t.headline(head, string(i.Outcome), "")
	t.field("host", hosts)
	t.field("why", i.Reason)
	if i.By != "" && !strings.Contains(i.Reason, "by "+i.By) {
		t.field("by", i.By)
	}
	if i.Failure != "" {
		t.field("failed", i.Failure)
	}
	if !i.Opened.IsZero() {
		t.field("took", tookText(i))
	}
	if k := i.Canary; k != nil {
		t.field("canary", canarySaw(*k))
	}
	return t.table(timeline(i), true)
}

// order writes the record of an order.
func (t *terminal) order(i failover.Incident) error {
	o := i.Order
	t.headline(fmt.Sprintf("#%d  %s  %s: %s, ", i.ID, o.At.Local().Format(hclog.TimeFormat), i.Relay, i.Event), string(i.Outcome), "")
	if o.Host != "" {
		t.field("host", o.Host)
	}
	if o.Member != "" {
		t.field("member", o.Member)
	}
	t.field("why", i.Reason)
	if o.Remote {
		t.field("where", "at another instance of the cluster")
	}
	if !o.Until.IsZero() {
		name := "until"
		if i.Event == failover.OrderSchedule || i.Event == failover.OrderCancel {
			name = "at"
		}
		t.field(name, o.Until.Format(scheduleFormat))
	}
	if o.Result != "" {
		t.field("result", o.Result)
	}
	return nil
}

// tookText describes how long a change took, compared with the prediction.
func tookText(i failover.Incident) string {
	text := millis(i.TotalSeconds)
	if !i.Lost.IsZero() {
		text += fmt.Sprintf(": %s to notice, %s to elect, %s to switch", millis(i.DetectSeconds), millis(i.ElectSeconds), millis(i.SwitchSeconds))
	}
	switch {
	case i.OverBound:
		text += fmt.Sprintf("; that is MORE than the %s predicted", millis(i.BoundSeconds))
	case i.BoundSeconds > 0:
		text += fmt.Sprintf("; predicted %s at most", millis(i.BoundSeconds))
	}
	return text
}

// canarySaw describes what the canary saw of a change.
func canarySaw(k failover.CanaryRun) string {
	if k.Attempts == 0 {
		return "was served all the time"
	}
	text := fmt.Sprintf("was not served, or slowly, for %s: %s", millis(k.Seconds), plural(k.Attempts, "attempt"))
	if k.Error != "" {
		text += ", " + k.Error
	}
	return text
}

// timeline returns the events, one row for each step.
func timeline(i failover.Incident) [][]string {
	rows := [][]string{{"    TIME", "AFTER", "STEP"}}
	start := time.Time{}
	add := func(when time.Time, what string) {
		if when.IsZero() {
			return
		}
		if start.IsZero() {
			start = when
		}
		rows = append(rows, []string{"    " + when.Local().Format("15:04:05.000Z0700"), fmt.Sprintf("%.3fs", when.Sub(start).Seconds()), what})
	}
	if b := i.FirstBad; b != nil {
		add(b.At, "first bad check: "+b.Check+": "+b.Error)
	}
	add(i.Suspected, "suspected")
	add(i.Lost, "declared down")
	if i.Outcome == failover.SwitchRefused {
		add(i.Elected, "refused")
		return rows
	}
	add(i.Elected, "elected "+i.New)
	if f := i.Fence; f != nil {
		text := "no earlier connection to fence"
		if f.Finished+f.Reset+f.Moved+f.Kept > 0 {
			text = fmt.Sprintf("earlier connections fenced: %d finished, %d reset, %d moved, %d kept", f.Finished, f.Reset, f.Moved, f.Kept)
		}
		add(i.Elected.Add(seconds(f.Seconds)), text)
	}
	for _, g := range i.Triggers {
		text := fmt.Sprintf("trigger %s (%s): %s", g.Script, millis(g.Seconds), g.Status)
		if out := lastLine(g.Output); out != "" {
			text = fmt.Sprintf("trigger %s (%s): %s (%s)", g.Script, millis(g.Seconds), out, g.Status)
		}
		rows = append(rows, []string{"", "", text})
	}
	add(i.Opened, fmt.Sprintf("open; %s waited, %d timed out", plural(i.ClientsHeld, "client"), i.ClientsLost))
	add(i.FirstByte, "first byte")
	if p := i.Pacing; p != nil {
		add(i.Opened.Add(seconds(p.Seconds)), pacingText(*p))
	}
	return rows
}

// pacingText says how the clients that waited were connected.
func pacingText(p failover.Pacing) string {
	text := fmt.Sprintf("waiting clients connected: %d in %s, %.0f/s at first, %.0f/s at most", p.Turns, millis(p.Seconds), p.FirstRate, p.PeakRate)
	if p.Slowed > 0 {
		text += fmt.Sprintf(", slowed down %d times because the host was slow", p.Slowed)
	}
	return text
}

// lastLine returns the last line of a script's output, in which the line ends
// are escaped. --json has more of it.
func lastLine(output string) string {
	const end = `\n`
	output = strings.TrimSuffix(strings.TrimSpace(output), end)
	if i := strings.LastIndex(output, end); i >= 0 {
		output = output[i+len(end):]
	}
	return output
}

// plural returns a count with its noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
