package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"understudy/control"
)

func showWhy(ctx context.Context, l line, stdout, stderr io.Writer) int {
	o := l.options.(*showOptions)
	return l.request(ctx, stderr, func(_ context.Context, all []process) error {
		list, err := o.targets(all)
		if err != nil {
			return err
		}
		if len(l.args) > 0 {
			if list, err = keepHost(list, l.args[0]); err != nil {
				return err
			}
		}
		for n, t := range list {
			if o.JSON {
				err = writeJSON(stdout, t.relay)
			} else {
				if len(list) > 1 {
					if n > 0 {
						fmt.Fprintln(stdout)
					}
					fmt.Fprintln(stdout, t)
				}
				err = newTerminal(stdout).why(t.relay, t.Now, len(l.args) > 0)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// keepHost keeps only the host that the operator named, and the relays that
// have it.
func keepHost(list []target, text string) (with []target, err error) {
	var problem error
	for _, t := range list {
		name, err := findHost(t.relay, text)
		if err != nil {
			problem = errors.Join(problem, err)
			continue
		}
		t.relay.Hosts = slices.DeleteFunc(slices.Clone(t.relay.Hosts), func(h control.Host) bool { return h.Name != name })
		with = append(with, t)
	}
	if len(with) == 0 {
		return nil, problem
	}
	return with, nil
}

// why explains a relay, or the one host that is left in it.
func (t *terminal) why(r control.RelayStatus, now time.Time, one bool) error {
	if one {
		t.say("", r.Hosts[0].Why)
	} else {
		t.say("", r.Why)
	}
	for _, w := range r.Warnings {
		t.put(t.paint("warning")+": ", "         ", w)
	}
	for _, h := range r.Hosts {
		fmt.Fprintln(t.w)
		since := ""
		if !h.Since.IsZero() {
			since = " for " + span(now.Sub(h.Since))
		}
		t.headline(h.Name+"  ", h.State, since)
		if !one && !h.Primary { // the primary's sentence is the first one
			t.say("  ", h.Why)
		}
		if h.Address != nil {
			t.say("  ", addressText(h.Name, *h.Address, now))
		}
		if h.PenaltySeconds > 0 {
			t.say("  ", fmt.Sprintf("penalty: failed %d times in ten minutes, so it has to be up for %s", h.Failures, span(seconds(h.PenaltySeconds))))
		}
		if text := trafficText(h); text != "" {
			t.say("  ", text)
		}
		rows := [][]string{{"  CHECK", "STATE", "COUNT", "TOOK", "AGO", "LAST"}}
		for _, k := range h.Checks {
			rows = append(rows, checkRow(k, r.Rise, r.Fall, now))
		}
		if err := t.table(rows, true); err != nil {
			return err
		}
	}
	for n, text := range adviceFor(r) {
		if n == 0 {
			fmt.Fprintln(t.w)
		}
		t.put("do this: ", "         ", text)
	}
	return nil
}

// trafficText describes the traffic between clients and a host since the start
// of the process; empty if there was none.
func trafficText(h control.Host) string {
	if h.Sessions == 0 {
		return ""
	}
	return fmt.Sprintf("clients: %d live of %d since the start; %s sent to it, %s received", h.Live, h.Sessions, size(h.Sent), size(h.Received))
}

// size formats a number of bytes for people.
func size(n uint64) string {
	const units = "KMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1000, 0
	for ; v >= 999.5 && unit < len(units)-1; unit++ {
		v /= 1000
	}
	return fmt.Sprintf("%.3g %cB", v, units[unit])
}

// addressText describes what the name of a host resolves to, how old that is,
// and its source.
func addressText(host string, a control.Address, now time.Time) string {
	text := "address: none of " + host + " has passed yet"
	if a.Address != "" {
		text = "address: " + host + " → " + a.Address
		if a.Confirmed.IsZero() {
			text += ", which is no address of the name any more"
		} else {
			text += ", confirmed " + span(now.Sub(a.Confirmed)) + " ago"
		}
	}
	if a.Source != "" {
		text += "; source: " + a.Source
	}
	if len(a.Others) > 0 {
		text += "; other addresses: " + strings.Join(a.Others, " ")
	}
	if a.Error != "" {
		text += "; now: " + a.Error
	}
	return text
}

func checkRow(k control.Check, rise, fall int, now time.Time) []string {
	took, ago, last := "-", "-", "no answer yet"
	if r := k.Last; r != nil {
		took, ago, last = millis(r.Seconds), span(now.Sub(r.At)), resultText(*r)
	}
	state := k.State
	switch {
	case k.Last != nil && k.Last.Unknown:
		state = "unknown"
	case k.Suspected:
		state = "suspected"
	}
	return []string{"  " + k.Name, state, countText(k, rise, fall), took, ago, last}
}

// countText returns how many results of the required number a check has for the
// other state.
func countText(k control.Check, rise, fall int) string {
	switch n := k.Streak; {
	case n == 0:
		return "-"
	case n > 0 && k.State == "up":
		return fmt.Sprintf("%d passed", n)
	case n > 0:
		return fmt.Sprintf("%d of %d passed", n, rise)
	case k.State == "down":
		return fmt.Sprintf("%d failed", -n)
	default:
		return fmt.Sprintf("%d of %d failed", -n, fall)
	}
}
