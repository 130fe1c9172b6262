package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"understudy/config"
	"understudy/control"
	"understudy/failover"
	"understudy/internal/daemon"
	"understudy/internal/safetext"
)

// predict uses the settings that are given, or requests those of the running
// process.
func predict(ctx context.Context, l line, stdout, stderr io.Writer) int {
	o := l.options.(*showOptions)
	show := func(p failover.Prediction) error {
		if o.JSON {
			return writeJSON(stdout, control.PredictAnswer{Schema: control.Schema, Prediction: p})
		}
		return newTerminal(stdout).prediction(p)
	}
	settings, values, err := config.Load(config.Given{Flags: l.flags, Environ: os.Environ(), Anywhere: true})
	if !isGiven(values, "hosts") && !isGiven(values, "config") {
		for flag := range l.flags {
			if flag != "control" {
				return l.usage(stderr, fmt.Errorf("--%s: needs --hosts or --config too; without settings those of the running understudy are used", flag))
			}
		}
		return l.requestOne(ctx, stderr, o.relayOptions, func(ctx context.Context, t target) error {
			p, err := soon(ctx, func(ctx context.Context) (control.PredictAnswer, error) { return t.Prediction(ctx, t.relay.Name) })
			if err != nil {
				return err
			}
			return show(p.Prediction)
		})
	}
	if err != nil {
		return l.usage(stderr, err)
	}
	var names []string
	for _, r := range settings.Relays {
		names = append(names, r.Name)
	}
	i := slices.Index(names, string(o.Relay))
	if o.Relay == "" && len(names) == 1 {
		i = 0
	}
	switch {
	case i >= 0:
	case o.Relay == "":
		return l.usage(stderr, fmt.Errorf("--relay: needed, because there are several: %s", strings.Join(names, ", ")))
	default:
		return l.usage(stderr, fmt.Errorf("--relay: these settings have no relay %q: there is %s", string(o.Relay), strings.Join(names, ", ")))
	}
	cfg, err := daemon.FailoverConfig(settings.Relays[i], nil, nil, nil)
	cfg.Cluster = daemon.ClusterConfig(settings.Relays[i], settings.Cluster)
	if err == nil {
		err = show(failover.Predict(cfg))
	}
	if err != nil {
		fmt.Fprintf(stderr, "understudy: predict: %v\n", err)
		return exitFailed
	}
	return exitDone
}

// isGiven reports whether a flag has a value that is not its default.
func isGiven(values []config.Value, flag string) bool {
	return slices.ContainsFunc(values, func(v config.Value) bool { return v.Flag == flag && v.Origin.Kind != config.Default })
}

// waitsText says how soon the clients that waited are connected.
func waitsText(waits []failover.Wait) string {
	var parts []string
	for _, w := range waits {
		parts = append(parts, fmt.Sprintf("of %d after %s (%.0f/s at first)", w.Clients, millis(w.Seconds), w.Rate))
	}
	return "clients that waited are connected in the order in which they came; if the host keeps up, the last " + strings.Join(parts, ", ")
}

func (t *terminal) prediction(p failover.Prediction) error {
	rows := [][]string{{"PRIMARY IS", "TRAFFIC", "DETECT", "ELECT", "FENCE", "TRIGGERS", "WORST CASE"}}
	for _, k := range p.Cases {
		row := []string{string(k.Failure), "no", "never", "-", "-", "-", "never"}
		if k.Traffic {
			row[1] = "yes"
		}
		if !k.Never {
			row = row[:2]
			for _, s := range []float64{k.DetectSeconds, k.ElectSeconds, k.FenceSeconds, k.TriggersSeconds, k.TotalSeconds} {
				row = append(row, seconds(s).String())
			}
		}
		rows = append(rows, row)
	}
	if err := t.table(rows, true); err != nil {
		return err
	}
	if p.Loss != nil {
		fmt.Fprintln(t.w)
		t.put("data: ", "  ", "if the primary failed now, "+p.Loss.String())
	}
	fmt.Fprintln(t.w)
	said := map[string]bool{}
	for _, k := range p.Cases {
		name := safetext.Terminal(string(k.Failure))
		same := func(o failover.Case) bool { return o.Failure == k.Failure && o.Formula != k.Formula }
		switch differs := slices.ContainsFunc(p.Cases, same); {
		case differs && k.Traffic:
			name += ", with traffic"
		case differs:
			name += ", without traffic"
		}
		if !said[name] {
			t.put(name+": ", "  ", k.Formula)
		}
		said[name] = true
	}
	if len(p.Warnings)+len(p.Notes)+len(p.Waits) > 0 {
		fmt.Fprintln(t.w)
	}
	if len(p.Waits) > 0 {
		t.put("then: ", "  ", waitsText(p.Waits))
	}
	for _, n := range p.Notes {
		t.put("note: ", "  ", n)
	}
	for _, w := range p.Warnings {
		t.put(t.paintAs("warning", "warning: "), "  ", w)
	}
	return nil
}
