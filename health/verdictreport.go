package health

import (
	"encoding/json"
	"net/http"
	"strings"
)

// wantsJSON reports whether the first of the media types in h's Accept that
// is one of ours is JSON. Quality values are passed over: whoever accepts
// everything, or says nothing, gets text as ever.
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
	Ports   []portReport   `json:"ports,omitempty"` // in order; none when the members decided alone
}

type memberReport struct {
	Name    string `json:"name"`
	Kind    string `json:"kind,omitempty"`
	OK      bool   `json:"ok"`
	Must    bool   `json:"must,omitempty"`
	Ignored bool   `json:"ignored,omitempty"`
	Reason  string `json:"reason,omitempty"` // for the trusted only
}

type portReport struct {
	OK bool `json:"ok"`

	// For the trusted only.
	Port   int    `json:"port,omitempty"`
	Status int    `json:"status,omitempty"`
	Millis *int64 `json:"millis,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// report returns v as JSON. Only the trusted are told reasons, and which ports
// they are that were asked.
func (v verdict) report(trusted bool) []byte {
	report := verdictReport{Verdict: "down", Status: v.status, Shared: v.shared}
	if v.ok {
		report.Verdict = "up"
	}
	for _, m := range v.members {
		told := memberReport{Name: m.Name, Kind: m.Kind, OK: m.err == nil, Must: m.Must, Ignored: m.Ignore}
		if m.err != nil && trusted {
			told.Reason = clipText(m.err.Error())
		}
		report.Members = append(report.Members, told)
	}
	for _, r := range v.replies {
		told := portReport{OK: r.passed()}
		if trusted {
			millis := r.took.Milliseconds()
			told.Port, told.Status, told.Millis = r.port, r.status, &millis
			if !told.OK {
				told.Reason = clipText(r.why().Error())
			}
		}
		report.Ports = append(report.Ports, told)
	}
	text, _ := json.Marshal(report) // strings, numbers and truths only: cannot fail
	return append(text, '\n')
}
