package verdict

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"understudy/internal/safetext"
)

// wantsJSON reports whether JSON is the first media type in h's Accept that this
// program can send. Quality values are ignored. A client that accepts everything,
// or sends no Accept, gets text.
func wantsJSON(h http.Header) bool {
	for _, list := range h["Accept"] {
		for media := range strings.SplitSeq(list, ",") {
			media, _, _ = strings.Cut(media, ";")
			switch strings.ToLower(strings.TrimSpace(media)) {
			case "application/json":
				return true
			case "text/plain", "text/*", "*/*":
				return false
			}
		}
	}
	return false
}

// verdictReport is a verdict as JSON.
type verdictReport struct {
	Verdict string         `json:"verdict"` // "up" or "down"
	Status  int            `json:"status"`
	Shared  bool           `json:"shared,omitempty"`
	Members []memberReport `json:"members,omitempty"`
	Ports   []portReport   `json:"ports,omitempty"` // in order; none when the members alone decided the verdict
}

type memberReport struct {
	Name    string `json:"name"`
	Kind    string `json:"kind,omitempty"`
	OK      bool   `json:"ok"`
	Must    bool   `json:"must,omitempty"`
	Ignored bool   `json:"ignored,omitempty"`
	Reason  string `json:"reason,omitempty"` // only with the token
}

type portReport struct {
	OK bool `json:"ok"`

	// Only with the token.
	Port   int    `json:"port,omitempty"`
	Status int    `json:"status,omitempty"`
	Millis *int64 `json:"millis,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// why returns the reasons of a bad verdict, with those that are not public; empty for a good
// one.
func (v verdict) why() string {
	if v.ok {
		return ""
	}
	var all []string
	for _, m := range v.members {
		if m.err != nil && !m.Ignore {
			all = append(all, strings.TrimSpace(m.Kind+" "+m.Name)+": "+clipText(m.err.Error()))
		}
	}
	for _, r := range v.replies {
		if !r.passed() {
			all = append(all, fmt.Sprintf("port %d: %s", r.port, clipText(r.why().Error())))
		}
	}
	if len(all) == 0 {
		return v.reason // the program ends
	}
	return safetext.Line(strings.Join(all, "; "))
}

// report returns v as JSON. Reasons and the numbers, statuses and times of ports
// are included only for a trusted client, one that has sent the token.
func (v verdict) report(trusted bool) []byte {
	report := verdictReport{Verdict: "down", Status: v.status, Shared: v.shared}
	if v.ok {
		report.Verdict = "up"
	}
	for _, m := range v.members {
		reported := memberReport{Name: m.Name, Kind: m.Kind, OK: m.err == nil, Must: m.Must, Ignored: m.Ignore}
		if m.err != nil && trusted {
			reported.Reason = clipText(m.err.Error())
		}
		report.Members = append(report.Members, reported)
	}
	for _, r := range v.replies {
		reported := portReport{OK: r.passed()}
		if trusted {
			millis := r.took.Milliseconds()
			reported.Port, reported.Status, reported.Millis = r.port, r.status, &millis
			if !reported.OK {
				reported.Reason = clipText(r.why().Error())
			}
		}
		report.Ports = append(report.Ports, reported)
	}
	text, _ := json.Marshal(report) // strings, numbers and booleans only: cannot fail
	return append(text, '\n')
}
