package main

// direct is the name of the peer that is no proxy.
const direct = "direct"

// sample is what one trial found.
type sample struct {
	Round  int                `json:"round"`
	User   string             `json:"user"` // the proxy ran as
	Figure string             `json:"figure"`
	Peer   string             `json:"peer"`
	Values map[string]float64 `json:"values,omitempty"`
	// Skipped and Failed say why there are no values.
	Skipped string `json:"skipped,omitempty"`
	Failed  string `json:"failed,omitempty"`
}

// results is every sample of a run.
type results []sample

// summary is over all rounds what peer showed in one metric.
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
