package admin

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"understudy/control"
)

//go:embed page.html act.html page.css page.js icon.svg
var files embed.FS

// PageConfig configures a [Page]. All functions may be called at the same time, and
// must not block.
type PageConfig struct {
	// Status returns what the page shows; Elections the last elections of all relays, at
	// most most, and as many orders, the newest first.
	Status    func() control.Status
	Elections func(most int) []control.Event

	// Process returns a Status without relays, Glances looks at all relays, see
	// [control.Server.Glances], and Describe returns the whole status of one of them.
	Process  func() control.Status
	Glances  func(before []control.Glance) []control.Glance
	Describe func(g *control.Glance, process *control.Status) control.RelayStatus

	// Changed returns a channel that is closed at the next change of a relay's
	// primary or hosts. The page looks once a second anyway.
	Changed func() <-chan struct{}

	// Text returns a status as `understudy status` prints it.
	Text func(control.Status) string

	// Order carries out an order of an operator; what is one of those of the control
	// socket. Nil leaves the page without buttons. The page checks no token itself:
	// the caller has to serve it to operators only.
	Order func(ctx context.Context, what string, o control.Order) (any, error)
}

// Page is the web page that shows the relays, live, and lets an operator act. It is a
// handler for "/" and everything below.
type Page struct {
	http.ServeMux
	cfg     PageConfig
	html    *feed    // pieces of the page
	json    *feed    // the same for programs
	drawing drawing  // of the pieces; only html uses it
	encoded struct { // elections; only json uses it
		elections []control.Event
		pieces    []piece
	}
	watchers chan struct{} // holds an element for each
	over     chan struct{} // closed when Run has ended

	sendTimeout time.Duration // shorter in tests
}

// templates are those of the page and of the one that asks for confirmation. They
// are parsed when the first one is drawn: most processes never draw one.
var templates = sync.OnceValue(func() *template.Template { return template.Must(template.ParseFS(files, "*.html")) })

// NewPage returns a Page. It starts nothing.
func NewPage(cfg PageConfig) *Page {
	p := &Page{cfg: cfg, watchers: make(chan struct{}, watchersMost), over: make(chan struct{}), sendTimeout: sendTimeout}
	start := time.Now()
	p.html, p.json = newFeed(start, p.buildHTML), newFeed(start, p.buildJSON)
	get := func(path string, h http.HandlerFunc) { p.HandleFunc("GET "+path, protect(h)) }
	get("/{$}", p.page)
	get("/stream", func(w http.ResponseWriter, r *http.Request) { p.watch(p.html, w, r) })
	get("/v1/stream", func(w http.ResponseWriter, r *http.Request) { p.watch(p.json, w, r) })
	get("/status.txt", p.text)
	get("/page.css", file("page.css", "text/css; charset=utf-8"))
	get("/page.js", file("page.js", "text/javascript; charset=utf-8"))
	get("/icon.svg", icon)
	get("/favicon.ico", icon) // what a browser asks for beside a text
	if p.cfg.Order != nil {
		get("/act", p.confirm)
		p.HandleFunc("POST /act", protect(p.act))
	}
	return p
}

// Run waits until ctx ends and then ends all watchers, which would keep the listener
// open. It returns nil, and can be called once.
func (p *Page) Run(ctx context.Context) error {
	<-ctx.Done()
	close(p.over)
	return nil
}

// protect sets the headers that keep everything from elsewhere out of the page, and the
// page out of everything else. The policy for referrers lets a browser name the page as
// the origin of its orders.
func protect(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		set := w.Header().Set
		set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "+
			"form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		set("X-Content-Type-Options", "nosniff")
		set("Referrer-Policy", "same-origin")
		set("Cross-Origin-Resource-Policy", "same-origin")
		set("Cross-Origin-Opener-Policy", "same-origin")
		set("Cache-Control", "no-store")
		h(w, r)
	}
}

func file(name, kind string) http.HandlerFunc {
	content, err := files.ReadFile(name)
	if err != nil {
		panic(err) // it is embedded
	}
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		_, _ = w.Write(content) // fails when the client has gone
	}
}

// icon answers with the sign of a level.
func icon(w http.ResponseWriter, r *http.Request) {
	colour := map[string]string{"ok": "#1a7f37", "warn": "#b26a00", "bad": "#c81e1e"}[r.URL.Query().Get("level")]
	if colour == "" {
		colour = "#777777"
	}
	content, _ := files.ReadFile("icon.svg")
	w.Header().Set("Content-Type", "image/svg+xml")
	_, _ = w.Write(bytes.ReplaceAll(content, []byte("currentColor"), []byte(colour)))
}

// view returns what the page shows now.
func (p *Page) view() view {
	return newView(p.cfg.Status(), p.cfg.Elections(electionsShown), p.cfg.Order != nil)
}

func (p *Page) page(w http.ResponseWriter, _ *http.Request) {
	mark := p.html.now() // before the view: a change between the two is sent again
	v := p.view()
	v.Mark = mark
	p.render(w, http.StatusOK, "page", v)
}

// render answers with a template.
func (p *Page) render(w http.ResponseWriter, status int, name string, data any) {
	var out bytes.Buffer
	if err := templates().ExecuteTemplate(&out, name, data); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(out.Bytes())
}

// text answers with what `understudy status` prints.
func (p *Page) text(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte(p.cfg.Text(p.cfg.Status())))
}

// buildHTML returns the parts of the page that change: each is an element with an id. Only what
// may have changed since the last batch is looked at and drawn.
func (p *Page) buildHTML() (pieces []piece, end piece) {
	s, acts, d := p.cfg.Process(), p.cfg.Order != nil, &p.drawing
	d.begin(p.cfg.Glances(d.glances))
	d.look(&s, p.cfg.Describe)
	s.Relays = d.relays
	for n := range d.looks {
		if d.looks[n].fresh {
			d.views[n] = newRelayView(d.relays[n], n, s, len(d.relays) > relaysOpen, acts)
		}
	}
	if d.shape == "" {
		d.shape = shapeOf(s, acts)
	}
	recorded := uint64(0)
	for _, g := range d.glances {
		recorded += g.Recorded
	}
	old := d.electionsHTML != nil && recorded == d.recorded
	if d.recorded = recorded; !old {
		elections := p.cfg.Elections(electionsShown)
		old = d.electionsHTML != nil && reflect.DeepEqual(elections, d.elections)
		d.elections = elections
	}
	var elections []control.Event
	if !old {
		elections = d.elections // otherwise they are not drawn
	}
	v := viewOf(s, d.views, elections, acts)
	pieces = make([]piece, 0, len(d.views)+4)
	add := func(name string, data []byte) {
		pieces = append(pieces, piece{name: name, event: "html", data: data})
	}
	add("top", d.draw("top", "top", v, v.still(), false))
	for n := range d.views {
		r := &d.views[n]
		if d.looks[n].fresh {
			add(r.ID, d.draw(r.ID, "relay", *r, r.still(), d.hasTurn(n) || n == d.rest))
		} else {
			add(r.ID, d.parts[r.ID].html)
		}
	}
	if !old {
		d.electionsHTML = htmlOf("elections", v)
	}
	add("elections", d.electionsHTML)
	verdicts, probes := verdictsView{v.Verdicts}, probesView{v.Probes}
	add("verdicts", d.draw("verdicts", "verdicts", verdicts, verdicts.still(), d.hasTurn(0)))
	add("probes", d.draw("probes", "probes", probes, probes.still(), d.hasTurn(0)))
	return pieces, piece{event: "tick", data: encode(tickEvent{
		Level: v.Level, Title: v.Title(), Say: v.Say, Shape: d.shape, Now: v.At, Clock: v.Now, Up: v.Up, Relays: d.numbers(),
	})}
}

// tickEvent is the data of the event that ends each batch of the stream.
type tickEvent struct {
	Level  level      `json:"level"`
	Title  string     `json:"title"`
	Say    string     `json:"say"`
	Shape  string     `json:"shape"`
	Now    int64      `json:"now"`    // the clock
	Clock  string     `json:"clock"`  // the same, for people
	Up     string     `json:"up"`     // time since the start
	Relays [][]string `json:"relays"` // how many clients are live and wait, and how long the last checks took
}

// Title is the title of the window.
func (v view) Title() string { return v.Word + " – understudy" }

// buildJSON returns the last elections and orders, the oldest first, and the status.
func (p *Page) buildJSON() (pieces []piece, end piece) {
	elections := p.cfg.Elections(electionsShown)
	if e := &p.encoded; e.pieces == nil || !reflect.DeepEqual(elections, e.elections) {
		e.elections, e.pieces = elections, []piece{}
		for _, one := range slices.Backward(elections) {
			name := one.Relay + " " + strconv.FormatUint(one.ID, 10)
			event := "election"
			if one.Order != nil {
				event = "order"
			}
			e.pieces = append(e.pieces, piece{name: name, event: event, data: encode(one)})
		}
	}
	return slices.Clone(p.encoded.pieces), piece{event: "status", data: encode(p.cfg.Status())}
}

func encode(v any) []byte {
	out, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Errorf("encode %T: %w", v, err)) // plain structures can be encoded
	}
	return out
}
