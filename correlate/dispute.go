package correlate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"understudy/failover"
	"understudy/selector"
)

// settled is the time for which a relay must have had its primary before it is
// compared with others, which may notice the same failure later.
const settled = 3 * time.Second

// findDisputes compares the primaries of relays whose hosts are the same
// machines. While relays are between two primaries, the earlier findings are kept.
// It also returns the time when the next relay has settled; zero if there is none.
func (d *Detector) findDisputes(now time.Time, relays []failover.Status) (changes []Change, next time.Time) {
	groups := map[string][]failover.Status{}
	for _, r := range relays {
		if key := machinesOf(r); key != "" {
			groups[key] = append(groups[key], r)
		}
	}
	if d.disputes == nil {
		d.disputes = map[string]Disagreement{}
	}
	end := func(key, text string) {
		names := []string{}
		for _, p := range d.disputes[key].Primaries {
			names = append(names, p.Relay)
		}
		delete(d.disputes, key)
		changes = append(changes, Change{Text: text, Fields: []any{"relays", strings.Join(names, ", ")}})
	}
	for _, key := range sorted(d.disputes) {
		if len(groups[key]) < 2 {
			end(key, "the relays that disagreed about the primary have other hosts now")
		}
	}
	for _, key := range sorted(groups) {
		group := groups[key]
		all := len(group) > 1
		machines := map[string]bool{}
		var primaries []PrimaryOfRelay
		for _, r := range group {
			if r.Phase != selector.Serving || r.Primary == "" {
				all = false
				continue
			}
			if at := r.Since.Add(settled); now.Before(at) {
				all = false
				if len(group) > 1 && (next.IsZero() || at.Before(next)) {
					next = at
				}
				continue
			}
			machines[machineOf(r.Primary)] = true
			primaries = append(primaries, PrimaryOfRelay{r.Relay, r.Primary})
		}
		before, known := d.disputes[key]
		switch {
		case len(machines) > 1 && (!known || !within(primaries, before.Primaries)):
			text := disputeText(primaries)
			d.disputes[key] = Disagreement{Since: now, Primaries: primaries, Text: text}
			changes = append(changes, Change{Begun: true, Text: text})
		case len(machines) == 1 && all && known:
			end(key, "relays agree about the primary again")
		}
	}
	return changes, next
}

// within reports whether each of these is contained in before. Some relays of before
// may be between two primaries.
func within(these, before []PrimaryOfRelay) bool {
	return !slices.ContainsFunc(these, func(p PrimaryOfRelay) bool { return !slices.Contains(before, p) })
}

// machinesOf returns the machines of a relay's hosts as one key that does not depend
// on order and ports; empty when there is only one, or a host has no name.
func machinesOf(r failover.Status) string {
	machines := map[string]bool{}
	for _, h := range r.Hosts {
		m := machineOf(h.Name)
		if m == "" {
			return ""
		}
		machines[m] = true
	}
	if len(machines) < 2 {
		return ""
	}
	return strings.Join(slices.Sorted(maps.Keys(machines)), " ")
}

// disputeText describes a disagreement.
func disputeText(primaries []PrimaryOfRelay) string {
	var names, have []string
	for _, p := range primaries {
		names = append(names, p.Relay)
		have = append(have, p.Relay+" has "+p.Host)
	}
	last := len(names) - 1
	return fmt.Sprintf("relays %s and %s have the same machines as hosts and disagree about the primary: %s",
		strings.Join(names[:last], ", "), names[last], strings.Join(have, ", "))
}
