package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"understudy/control"
	"understudy/failover"
)

type drillOptions struct {
	showOptions
	Without  string `long:"without" value-name:"HOST" description:"take this host for failed: who would take over, or would nothing change"`
	Triggers bool   `long:"triggers" description:"run the triggers too, with UNDERSTUDY_DRY_RUN=1"`
}

func drill(ctx context.Context, l line, stdout, stderr io.Writer) int {
	o := l.options.(*drillOptions)
	order := control.Order{Triggers: o.Triggers, By: onBehalf()}
	if o.Without != "" && len(l.args) > 0 {
		return l.usage(stderr, errors.New("drill: HOST and --without exclude each other: give one of them"))
	}
	return l.requestOne(ctx, stderr, o.relayOptions, func(ctx context.Context, t target) error {
		var r control.DrillAnswer
		if o.Without != "" {
			var err error
			if order.Without, err = findHost(t.relay, o.Without); err != nil {
				return err
			}
		}
		if err := t.order(ctx, "drill", strings.Join(l.args, ""), order, &r); err != nil {
			return err
		}
		var err error
		if o.JSON {
			err = writeJSON(stdout, r)
		} else {
			out := newTerminal(stdout)
			if err = out.drill(r.DrillReport); err == nil {
				out.say("  ", t.String())
			}
		}
		if err == nil && !r.OK {
			return errBad
		}
		return err
	})
}

func (t *terminal) drill(r failover.DrillReport) error {
	verdict := "bad"
	if r.OK {
		verdict = "good"
	}
	t.put(t.paintAs(verdict, verdict+": "), "  ", r.Text)
	if len(r.Steps) > 0 {
		fmt.Fprintln(t.w)
		rows := [][]string{{"  HOST", "STEP", "RESULT", "TOOK", "DETAIL"}}
		for _, s := range r.Steps {
			result, detail := "ok", lastLine(s.Detail)
			if !s.OK {
				result, detail = "failed", s.Detail
			}
			rows = append(rows, []string{"  " + s.Host, s.Name, result, millis(s.Seconds), detail})
		}
		if err := t.table(rows, true); err != nil {
			return err
		}
	}
	if len(r.Candidates) > 0 {
		fmt.Fprintln(t.w)
	}
	for _, h := range r.Candidates {
		t.say("  ", "not "+h.Host+": "+h.Reason)
	}
	if r.Candidate != "" {
		fmt.Fprintln(t.w)
		text := "the checks and triggers took " + millis(r.Seconds)
		if r.BoundSeconds > 0 {
			text += fmt.Sprintf("; such a failover takes %s at worst", millis(r.BoundSeconds))
		}
		t.say("  ", text)
	}
	return nil
}
