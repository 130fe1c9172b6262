package admin

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"

	"understudy/control"
	"understudy/failover"
	"understudy/internal/browsertest"
	"understudy/internal/proctest"
	"understudy/selector"
)

// clean checks that the pages have written nothing on the console and sent no request elsewhere.
func clean(t *testing.T, b *browsertest.Browser) {
	t.Helper()
	for _, p := range b.Problems() {
		t.Error(p)
	}
}

// The page follows what happens without being loaded again, and leaves alone what its
// reader does.
func TestLive(t *testing.T) {
	s := newStage(5, false)
	base := s.serve(t)
	b := browsertest.Open(t, base)
	b.Go(base)
	if got := b.Text("#top h1"); got != "All 5 relays have a primary." {
		t.Errorf("the headline is %q", got)
	}
	b.Click("#relay-2 > summary")
	b.Is("document.querySelector('#relay-2 > summary').focus(), window.marked = true")
	proctest.Until(t, "the page gets events", func() bool { return b.Is("mark !== document.body.dataset.mark") })
	before := b.Requests()

	changed := time.Now()
	s.change(func(st *control.Status) { failOver(&st.Relays[2], st.Now) })
	proctest.Until(t, "the page names the new primary", func() bool { return b.Text("#relay-2 .primary") == "db2.search:5432" })
	t.Logf("the page showed the change %v after it", time.Since(changed))
	if got := b.Text("#relay-2 .why"); !strings.Contains(got, "db1.search:5432 is down") {
		t.Errorf("the open relay says %q", got)
	}
	s.change(func(st *control.Status) { lose(&st.Relays[4], st.Now) })
	proctest.Until(t, "the verdict changes", func() bool {
		return b.Text("#top .word span") == "No primary" && strings.HasPrefix(b.String("document.title"), "no primary")
	})
	if !b.Is("document.getElementById('relay-4').open && !document.getElementById('relay-3').open") {
		t.Error("the relay without a primary is not open, or one that serves is")
	}
	if got := b.String("document.getElementById('say').textContent"); got != "no primary: Of 5 relays: 1 without a primary." {
		t.Errorf("a screen reader hears %q", got)
	}
	if !b.Is("window.marked && document.getElementById('relay-2').open && document.activeElement.parentElement.id === 'relay-2'") {
		t.Error("the page was loaded again, or has lost what is open or the focus")
	}
	if after := b.Requests(); after > before+1 { // the icon
		t.Errorf("%d requests for two changes", after-before)
	}

	// Ages grow without an event.
	if got := b.String("(ahead += 40*3600*1000, ages(document), document.querySelector('#relay-0 .for').innerText)"); got != "for 4 d 21 h" {
		t.Errorf("40 h later the age is %q", got)
	}
	for _, d := range []time.Duration{0, time.Second, 59 * time.Second, time.Minute, time.Hour - time.Second, time.Hour, 48*time.Hour - time.Second, 48 * time.Hour, 1000 * time.Hour} {
		if got := b.String(fmt.Sprintf("age(%f)", d.Seconds())); got != age(d) {
			t.Errorf("the script writes %v as %q, the server as %q", d, got, age(d))
		}
	}

	s.change(func(st *control.Status) {
		st.Verdicts = []control.Verdict{{Route: "/ping", Status: 200, At: st.Now, Since: begins, Requests: 4711}}
	})
	proctest.Until(t, "the verdict is shown", func() bool {
		return b.Text("#verdicts tbody th") == "/ping" && b.Text("#verdicts .state") == "good" && b.Text("#verdicts td.n") == "4,711"
	})

	// An election that is new comes first and moves the others.
	b.Click("#elections li:first-child summary")
	id := b.String("document.querySelector('#elections li').id")
	s.change(func(st *control.Status) {
		s.elections = append([]control.Event{failedOver(st.Relays[2], 2, st.Now, 0.2, 0.3, 1.3)}, s.elections...)
	})
	proctest.Until(t, "there is one more", func() bool { return b.Is("document.querySelector('#elections li').id === 'election-search-2'") })
	if !b.Is("document.getElementById('"+id+"').querySelector('details').open") || b.Is("document.querySelector('#elections details').open") {
		t.Error("another election is open than before")
	}
	clean(t, b)

	// Other relays need another page.
	s.change(func(st *control.Status) { st.Relays = st.Relays[:4] })
	proctest.Until(t, "the page is loaded again", func() bool {
		return b.Is("!window.marked && document.querySelectorAll('#relays > details').length === 4")
	})
	clean(t, b)
}

// A page that gets no more events says so, and goes on when they come again.
func TestLostContact(t *testing.T) {
	s := newStage(1, false)
	server := httptest.NewUnstartedServer(nil)
	var down atomic.Bool
	server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		s.ServeHTTP(w, r)
	})
	server.Start()
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(s.over) })
	b := browsertest.Open(t, server.URL)
	b.Go(server.URL)
	proctest.Until(t, "the page gets events", func() bool { return b.Is("mark !== document.body.dataset.mark") })
	clean(t, b)
	down.Store(true)
	server.CloseClientConnections()
	proctest.Until(t, "the page says that it is old", func() bool { return strings.HasPrefix(b.Text("#lost"), "No contact for ") })
	// What a screen reader hears of it does not change each second.
	if got := b.String(`[...document.getElementById('lost').childNodes].filter((n) => n.ariaHidden !== 'true').map((n) => n.textContent).join('')`); got != "No contact: what you see is old." {
		t.Errorf("a screen reader hears %q", got)
	}
	if !b.Is("document.body.classList.contains('stale')") {
		t.Error("what is old does not look old")
	}
	down.Store(false)
	proctest.Until(t, "the page is current again", func() bool {
		return b.Is("document.getElementById('lost').hidden && !document.body.classList.contains('stale')")
	})
	b.Problems() // the failures that were made on purpose
}

// Everything can be read, and orders given, without scripts.
func TestWithoutScripts(t *testing.T) {
	s := newStage(60, true)
	base := s.serve(t)
	b := browsertest.Open(t, base)
	b.Scripts(false)
	b.Go(base)
	b.Scripts(true) // the test needs them to look
	if got := b.Text("#relay-41 .primary"); got != "db1.mail-b-b:5432" {
		t.Errorf("the primary is %q", got)
	}
	if b.Is("typeof connect !== 'undefined'") {
		t.Error("the scripts of the page have run")
	}
	_, _, page := get(t, base+"/")
	if !strings.Contains(page, `<noscript><meta http-equiv="refresh" content="5"></noscript>`) {
		t.Error("without scripts the page is not loaded again")
	}
	b.Scripts(false)
	b.Go(base + "/act?verb=switch&relay=mail&host=db2.mail:5432")
	b.Type("#typed", "db2.mail:5432")
	b.Type("#by", "anna")
	b.Click("button")
	proctest.Until(t, "the order arrives", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.orders) == 1
	})
	clean(t, b)
}

// The keyboard reaches everything, and shows where it is.
func TestKeyboard(t *testing.T) {
	s := newStage(1, true)
	base := s.serve(t)
	b := browsertest.Open(t, base)
	b.Go(base)
	var reached []string
	for range 14 {
		b.Press(kb.Tab)
		reached = append(reached, b.String("(document.activeElement.getAttribute('aria-label') || document.activeElement.innerText).split('\\n')[0]"))
	}
	want := []string{"Skip to the relays", "serving", "Drain db1.orders:5432", "Switch db2.orders:5432", "Drain db2.orders:5432", "Switch db3.orders:5432", "Drain db3.orders:5432",
		"Drill orders", "Freeze orders", "", "Copy as text", "JSON", "Metrics"}
	for i, w := range want {
		if w != "" && reached[i] != w {
			t.Fatalf("Tab reaches %q, want %q", reached, want)
		}
	}
	b.Go(base)
	b.Press(kb.Tab)
	b.Press(kb.Tab)
	if b.String("getComputedStyle(document.activeElement).outlineStyle") != "solid" {
		t.Error("the focus cannot be seen")
	}
	b.Press(kb.Enter)
	if b.Is("document.getElementById('relay-0').open") {
		t.Error("Enter does not fold the relay")
	}
	clean(t, b)
}

// "Copy as text" copies what the command prints, and opens it where there is no
// clipboard.
func TestCopy(t *testing.T) {
	s := newStage(1, false)
	base := s.serve(t)
	b := browsertest.Open(t, base)
	b.Go(base)
	b.Is("navigator.clipboard.writeText = async (text) => { window.copied = text }, true")
	b.Click("#copy")
	proctest.Until(t, "the text is copied", func() bool { return b.String("window.copied ?? ''") == "1 relays\n" })
	b.Is("Object.defineProperty(navigator, 'clipboard', {value: undefined}), true")
	b.Click("#copy")
	proctest.Until(t, "the text is shown", func() bool { return strings.TrimSpace(b.Text("body")) == "1 relays" })
	clean(t, b)
}

// scenes are what the pictures show.
var scenes = []struct {
	name   string
	relays int
	acts   bool
	change func(*stage)
}{
	{"good", 1, false, func(*stage) {}},
	{"failover", 1, false, func(s *stage) {
		at := s.status.Now.Add(-214 * time.Second)
		r := statusOf(1).Relays[0]
		s.elections = append([]control.Event{failedOver(r, 3, at, 0.204, 0.311, 1.32), failedOver(r, 2, at.Add(-50*time.Hour), 1.31, 0.287, 1.32)}, s.elections...)
		failOver(&s.status.Relays[0], s.status.Now)
	}},
	{"outage", 1, true, func(s *stage) { lose(&s.status.Relays[0], s.status.Now) }},
	{"orders", 1, true, func(s *stage) {
		at := s.status.Now.Add(-time.Minute)
		lock := failover.Lock{Since: at, By: "anna (page, from 192.0.2.7)", Reason: "new disk"}
		s.status.Relays[0].Hosts[2].Drained, s.status.Relays[0].Frozen = &lock, &lock
		for _, event := range []selector.Kind{failover.OrderDrain, failover.OrderFreeze} {
			s.elections = append([]control.Event{{Incident: failover.Incident{
				ID: 9, Relay: "orders", Event: event, Reason: string(event) + " by " + lock.By + ": " + lock.Reason, By: lock.By,
				Outcome: failover.CarriedOut, Order: &failover.Ordered{At: at, Host: map[selector.Kind]string{failover.OrderDrain: "db3.orders:5432"}[event]},
			}}}, s.elections...)
		}
	}},
	{"many", 60, true, func(s *stage) {
		for i := range brokenOpen { // so many that all stay folded, and waiting clients are in their lines
			lose(&s.status.Relays[50+i], s.status.Now)
		}
		failOver(&s.status.Relays[7], s.status.Now)
		lose(&s.status.Relays[21], s.status.Now)
		s.status.Relays[33].NoStandby = s.status.Now.Add(-20 * time.Minute)
		s.status.Relays[33].Why += "; for 20m0s no other host could take over"
		s.status.Verdicts = []control.Verdict{
			{Route: "/ping", Status: 503, At: s.status.Now, Since: s.status.Now.Add(-8 * time.Second), Why: "relay " + s.status.Relays[21].Name + " has no primary", Requests: 55_123, Bad: 12},
			{Route: "/ping-stock", Status: 200, At: s.status.Now.Add(-20 * time.Second), Since: begins, Requests: 27_001},
		}
		s.status.Probes = []control.Probe{{Name: "elastic", State: "up", Since: begins, Last: &control.Result{At: s.status.Now, OK: true, Seconds: 0.0123}}}
	}},
	{"hostile", 2, true, func(s *stage) {
		hostile(&s.status, "<b>"+strings.Repeat("long-", 60)+"</b>")
		s.elections = []control.Event{failedOver(s.status.Relays[0], 1, begins, 1, 1, 3)}
	}},
}

// cut is a script that returns what of the page cannot be read, because its place is too
// narrow: the lines of relays, and tables that have to be scrolled.
const cut = `[...document.querySelectorAll('.relay > summary > *, .scroll')]
	.filter((e) => e.scrollWidth > e.clientWidth && e.innerText).map((e) => e.className + ': ' + e.innerText.slice(0, 40)).join('; ')`

// The page fits a wall, a desk, a tablet and a phone, light and dark, and nothing is cut off.
// With UNDERSTUDY_PICTURES=DIR the pictures of it are written there.
func TestPictures(t *testing.T) {
	dir, shades := os.Getenv("UNDERSTUDY_PICTURES"), []string{"light"}
	if dir != "" {
		shades = append(shades, "dark")
	}
	var now atomic.Pointer[stage]
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { now.Load().ServeHTTP(w, r) }))
	t.Cleanup(server.Close)
	b := browsertest.Open(t, server.URL)
	for _, scene := range scenes {
		s := newStage(scene.relays, scene.acts)
		t.Cleanup(func() { close(s.over) })
		scene.change(s)
		now.Store(s)
		for _, size := range []struct{ w, h int64 }{{1920, 1080}, {1280, 720}, {1000, 700}, {768, 1024}, {360, 740}} {
			b.Size(size.w, size.h)
			for _, shade := range shades {
				b.Dark(shade == "dark")
				b.Go(server.URL)
				if width := b.Number("document.documentElement.scrollWidth"); width > float64(size.w) {
					t.Errorf("%s, %s: the page is %v wide on a screen of %d", scene.name, shade, width, size.w)
				}
				if text := b.String(cut); text != "" && scene.name != "hostile" {
					t.Errorf("%s, %s: cut off on a screen of %d: %s", scene.name, shade, size.w, text)
				}
				if dir != "" {
					write(t, filepath.Join(dir, fmt.Sprintf("%s-%d-%s.png", scene.name, size.w, shade)), b.Picture(size.w < 600))
				}
			}
		}
		clean(t, b)
	}
}

// write writes a picture with 256 colours, which is enough for a page and small.
func write(t *testing.T, path string, content []byte) {
	t.Helper()
	full, err := png.Decode(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	uses := map[color.RGBA]int{}
	all := image.NewRGBA(full.Bounds())
	draw.Draw(all, all.Bounds(), full, full.Bounds().Min, draw.Src)
	for i := 0; i < len(all.Pix); i += 4 {
		uses[color.RGBA{all.Pix[i], all.Pix[i+1], all.Pix[i+2], all.Pix[i+3]}]++
	}
	order := slices.SortedFunc(maps.Keys(uses), func(a, b color.RGBA) int { return uses[b] - uses[a] })
	var colours color.Palette
	for _, c := range order {
		if len(colours) == 256 {
			break
		}
		if len(colours) > 0 { // one that is much like another takes the place of one that is not
			near := colours[colours.Index(c)].(color.RGBA)
			r, g, b := int(c.R)-int(near.R), int(c.G)-int(near.G), int(c.B)-int(near.B)
			if r*r+g*g+b*b < 150 {
				continue
			}
		}
		colours = append(colours, c)
	}
	small := image.NewPaletted(full.Bounds(), colours)
	draw.Draw(small, small.Bounds(), all, all.Bounds().Min, draw.Src)
	var out bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, small); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
