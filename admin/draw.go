package admin

import (
	"bytes"
	"reflect"
	"regexp"
	"slices"
	"sync"

	"understudy/control"
)

// turns is the number of relays that are drawn in a batch although only their numbers have
// changed: durations of checks, bytes, connections. With more relays each has its turn every
// few seconds, and the page costs no more than with a few.
const turns = 4

// drawing keeps what was drawn of the parts of the page. A part is drawn again at once when
// its state changes, and when only numbers have changed, when it has its turn. Ages and the
// number of clients in the line of a relay change in the browser meanwhile.
type drawing struct {
	shape  string
	parts  map[string]*drawn
	relays int
	turn   int // the first relay of this batch

	elections     []control.Event
	electionsHTML []byte
}

// drawn is the last drawing of one part of the page.
type drawn struct {
	view, still any // what it shows; the same without numbers and times
	html        []byte
}

// begin begins a batch of a page with this shape.
func (d *drawing) begin(shape string, relays int) {
	if d.shape != shape {
		*d = drawing{shape: shape, parts: map[string]*drawn{}}
	}
	if d.relays = relays; relays > turns {
		d.turn = (d.turn + turns) % relays
	}
}

// draw returns a part of the page that the template makes of view. Still is the view without
// what may wait for its turn, and n the number of the relay.
func (d *drawing) draw(name, template string, view, still any, n int) []byte {
	old := d.parts[name]
	hasTurn := d.relays <= turns || (n-d.turn+d.relays)%d.relays < turns
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

// numbers returns what the lines of the relays count.
func (v view) numbers() [][2]string {
	all := make([][2]string, len(v.Relays))
	for k, r := range v.Relays {
		all[k] = [2]string{r.Live, r.Waiting}
	}
	return all
}
