package main

import (
	"maps"
	"slices"
)

// direct is the name of the peer without a proxy.
const direct = "direct"

// sample is the result of one trial.
type sample struct {
	Round  int                `json:"round"`
	User   string             `json:"user"` // the proxy ran as
	Figure string             `json:"figure"`
	Peer   string             `json:"peer"`
	Values map[string]float64 `json:"values,omitempty"`
	// Skipped and Failed are the reason why there are no values.
	Skipped string `json:"skipped,omitempty"`
	Failed  string `json:"failed,omitempty"`
}

// results is every sample of a run.
type results []sample

// summary is the values of a peer in one metric over all rounds.
func (r results) summary(user, figure, peer, metric string) summary {
	var values []float64
	for _, s := range r {
		if s.User == user && s.Figure == figure && s.Peer == peer {
			if v, ok := s.Values[metric]; ok {
				values = append(values, v)
			}
		}
	}
	return summarize(values)
}

// of is one metric of one peer in one figure, as one user.
type of struct{ user, figure, peer, metric string }

// rounds holds its measured values, by round.
func (r results) rounds(o of) map[int]float64 {
	values := map[int]float64{}
	for _, s := range r {
		if v, ok := s.Values[o.metric]; ok && s.User == o.user && s.Figure == o.figure && s.Peer == o.peer {
			values[s.Round] = v
		}
	}
	return values
}

// ratio is the median over the rounds of x over base in the same round. A
// disturbance in a round (another guest, another clock frequency) affects both,
// and is not in the ratio. It is ok only if most rounds measured both, and both
// above zero: the difference of two measurements of a system's memory can be
// negative, and a ratio to that is meaningless.
func (r results) ratio(x, base of) (median float64, ok bool) {
	ratios := quotients(r.rounds(x), r.rounds(base))
	s := summarize(slices.Collect(maps.Values(ratios)))
	return s.Median, 2*s.N > max(len(r.rounds(x)), len(r.rounds(base)))
}

// quotients divides what was measured in the same round.
func quotients(x, base map[int]float64) map[int]float64 {
	all := map[int]float64{}
	for round, v := range x {
		if b := base[round]; b > 0 && v >= 0 {
			all[round] = v / b
		}
	}
	return all
}

// state is "" when every sample that there is has values, and otherwise the
// word for a table's cell.
func (r results) state(user, figure, peer string) string {
	state := "–"
	for _, s := range r {
		if s.User != user || s.Figure != figure || s.Peer != peer {
			continue
		}
		switch {
		case s.Failed != "":
			return "**FAILED**"
		case s.Skipped != "":
			state = "skipped"
		case state == "–":
			state = ""
		}
	}
	return state
}

// remarks lists, once each, why something was skipped or failed.
func (r results) remarks() (skipped, failed []string) {
	seen := map[string]bool{}
	for _, s := range r {
		reason, list := s.Skipped, &skipped
		if s.Failed != "" {
			reason, list = s.Failed, &failed
		}
		line := s.Figure + ", " + s.Peer + ", as " + s.User + ": " + reason
		if reason != "" && !seen[line] {
			seen[line] = true
			*list = append(*list, line)
		}
	}
	return skipped, failed
}
