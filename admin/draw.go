package admin

import (
	"bytes"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"sync"

	"understudy/control"
)

// turns is the number of relays that are drawn in a batch although only what they have counted
// has changed: bytes, connections. With more relays each has its turn every few seconds, and
// the page costs no more than with a few.
const turns = 4

// drawing keeps what was drawn of the parts of the page. A part is drawn again at once when
// its state changes, and when only numbers have changed, when it has its turn. The numbers in
// the line of a relay, the durations of its checks, and ages change in the browser meanwhile.
type drawing struct {
	glances []control.Glance
	looks   []lookAt
	relays  []control.RelayStatus // as they were when they were last looked at in full
	views   []relayView           // of these
	turn    int                   // the first relay of this batch
	rest    int                   // the relay that is drawn in this batch for what glances do not see

	shape string // of the page
	parts map[string]*drawn

	recorded      uint64 // sum of those of the glances
	elections     []control.Event
	electionsHTML []byte
}

// lookAt is when a relay is looked at in full.
type lookAt struct {
	name    string // empty until it was
	counted bool   // what it counts has changed since then
	fresh   bool   // it is, for this batch
}

// drawn is the last drawing of one part of the page.
type drawn struct {
	view, still any // what it shows; the same without numbers and times
	html        []byte
}

// begin begins a batch with the glances of now.
func (d *drawing) begin(glances []control.Glance) {
	d.glances = glances
	same := d.parts != nil && slices.EqualFunc(glances, d.looks, func(g control.Glance, l lookAt) bool { return g.Name == l.name })
	if n := len(glances); !same {
		*d = drawing{
			glances: glances, looks: make([]lookAt, n), relays: make([]control.RelayStatus, n), views: make([]relayView, n), parts: map[string]*drawn{},
		}
	}
	if n := len(d.relays); n > turns {
		d.turn, d.rest = (d.turn+turns)%n, (d.rest+1)%n
	}
}

// hasTurn reports whether the numbers of relay n are drawn in this batch.
func (d *drawing) hasTurn(n int) bool {
	return len(d.relays) <= turns || (n-d.turn+len(d.relays))%len(d.relays) < turns
}

// look looks in full at the relays of which there is something new, or that may have it: one
// that is not well changes in its sentences, and what a glance does not see is shown when the
// relay is the one for that.
func (d *drawing) look(s *control.Status, describe func(*control.Glance, *control.Status) control.RelayStatus) {
	all := s.Outage != nil || len(s.Disagreements) > 0
	for n := range d.looks {
		l, g := &d.looks[n], &d.glances[n]
		l.counted = l.counted || g.Counted
		settled := l.name != "" && d.views[n].Level == ok && len(d.views[n].Notes) == 0
		l.fresh = all || g.Changed || !settled || len(d.looks) <= turns || n == d.rest || l.counted && d.hasTurn(n)
		if l.fresh {
			l.name, l.counted, d.relays[n] = g.Name, false, describe(g, s)
		}
	}
}

// draw returns a part of the page that the template makes of view. Still is the view without
// what may wait for its turn.
func (d *drawing) draw(name, template string, view, still any, hasTurn bool) []byte {
	old := d.parts[name]
	if old != nil && reflect.DeepEqual(old.still, still) && (!hasTurn || reflect.DeepEqual(old.view, view)) {
		return old.html
	}
	html := htmlOf(template, view)
	d.parts[name] = &drawn{view: view, still: still, html: html}
	return html
}

// htmlOf returns what a template makes of data.
func htmlOf(template string, data any) []byte {
	var out bytes.Buffer
	if err := templates().ExecuteTemplate(&out, template, data); err != nil {
		panic(err) // a mistake in the template
	}
	return out.Bytes()
}

// growing matches the durations and numbers in sentences that change all the time.
var growing = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`\b(?:\d+(?:\.\d+)?(?:h|ms|m|s|µs|ns))+\b|\b\d+ (?:d|h|min|s|bytes|connections)\b`)
})

func steady(text string) string { return growing().ReplaceAllLiteralString(text, "…") }

// still returns v without what changes while nothing happens.
func (v relayView) still() relayView {
	v.For, v.Live, v.Waiting, v.Facts, v.Why = "", "", "", nil, steady(v.Why)
	v.Notes = slices.Clone(v.Notes)
	for k := range v.Notes {
		v.Notes[k].Text = steady(v.Notes[k].Text)
	}
	v.Hosts = slices.Clone(v.Hosts)
	for k := range v.Hosts {
		h := &v.Hosts[k]
		h.For, h.Live, h.Total, h.Sent, h.Received, h.Note = "", "", "", "", "", steady(h.Note)
		h.Checks = slices.Clone(h.Checks)
		for n := range h.Checks {
			h.Checks[n] = h.Checks[n].still()
		}
	}
	return v
}

func (v checkView) still() checkView {
	v.Took, v.Age, v.At, v.Since, v.Error = "", "", "", 0, steady(v.Error)
	return v
}

// verdictsView and probesView are the parts of the page with the verdicts and the probes.
type (
	verdictsView struct{ Verdicts []verdictView }
	probesView   struct{ Probes []probeView }
)

func (v verdictsView) still() verdictsView {
	v.Verdicts = slices.Clone(v.Verdicts)
	for k := range v.Verdicts {
		d := &v.Verdicts[k]
		d.For, d.At, d.Age, d.Asked, d.Requests, d.Bad, d.Note = "", "", "", 0, "", "", steady(d.Note)
	}
	return v
}

func (v probesView) still() probesView {
	v.Probes = slices.Clone(v.Probes)
	for k := range v.Probes {
		p := &v.Probes[k]
		p.For, p.Check, p.Note = "", p.Check.still(), steady(p.Note)
	}
	return v
}

// still returns what the top of the page shows, without the clock.
func (v view) still() view {
	return view{Level: v.Level, Word: v.Word, Headline: v.Headline, Problems: v.Problems, More: v.More, Version: v.Version, PID: v.PID}
}

// numbers returns what changes in the relays in each batch: how many clients are live and
// wait, and how long the last checks took.
func (d *drawing) numbers() [][]string {
	all := make([][]string, len(d.glances))
	for k := range d.glances {
		g := &d.glances[k]
		all[k] = make([]string, 0, 2+len(g.Took))
		all[k] = append(all[k], count(g.Live), strconv.Itoa(g.Waiting))
		for _, t := range g.Took {
			all[k] = append(all[k], took(t.Seconds()))
		}
	}
	return all
}
