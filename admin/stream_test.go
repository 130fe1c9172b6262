package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/control"
	"understudy/internal/proctest"
)

// event is one server-sent event.
type event struct{ name, id, data string }

// watching is a watcher.
type watching struct {
	t    *testing.T
	in   *bufio.Reader
	stop func()
}

// watch begins to watch; mark is the header Last-Event-ID.
func watch(t *testing.T, address, mark string) (*watching, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Last-Event-ID", mark)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return &watching{t, bufio.NewReader(res.Body), func() { cancel(); res.Body.Close() }}, res.StatusCode
}

// next returns the next event.
func (w *watching) next() (e event) {
	w.t.Helper()
	for {
		line, err := w.in.ReadString('\n')
		if err != nil {
			w.t.Fatal("the events end: ", err)
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch name {
		case "":
			if e.name != "" {
				return e
			}
			e = event{} // "retry" alone
		case "event":
			e.name = value
		case "id":
			e.id = value
		case "data":
			e.data += value + "\n"
		}
	}
}

// batch returns the events up to the next one with an id.
func (w *watching) batch() (all []event) {
	w.t.Helper()
	for {
		e := w.next()
		all = append(all, e)
		if e.id != "" {
			return all
		}
	}
}

// changedIn returns the ids of the elements in a batch.
func changedIn(batch []event) (ids []string) {
	for _, e := range batch {
		if _, after, ok := strings.Cut(e.data, ` id="`); ok && e.name == "html" {
			id, _, _ := strings.Cut(after, `"`)
			ids = append(ids, id)
		}
	}
	return ids
}

// A watcher gets everything at first, then what changes, and after an interruption what
// has changed meanwhile.
func TestStream(t *testing.T) {
	t.Parallel()
	s := newStage(2, false)
	address := s.serve(t) + "/stream"
	w, _ := watch(t, address, "")
	first := w.batch()
	if got := strings.Join(changedIn(first), " "); got != "top relay-0 relay-1 elections verdicts probes" {
		t.Errorf("the first events change %q", got)
	}
	for _, e := range first[:len(first)-1] {
		if e.id != "" {
			t.Error("an event before the last one of a batch has an id: who loses the connection then misses the rest")
		}
	}

	s.change(func(st *control.Status) { st.Relays[1].Clients.Live = 4711 })
	var got []string
	last := ""
	for len(got) == 0 {
		batch := w.batch()
		got, last = changedIn(batch), batch[len(batch)-1].id
	}
	if strings.Join(got, " ") != "relay-1" {
		t.Errorf("a change of relay-1 changes %v", got)
	}

	w.stop()
	s.change(func(st *control.Status) { st.Relays[0].Clients.Live = 4712 })
	w, _ = watch(t, address, last)
	if got := strings.Join(changedIn(w.batch()), " "); got != "relay-0" {
		t.Errorf("who comes back gets %q, want what changed meanwhile", got)
	}
	w, _ = watch(t, address+"?since="+last, "")
	if got := strings.Join(changedIn(w.batch()), " "); got != "relay-0" {
		t.Errorf("?since= brings %q", got)
	}
	for _, mark := range []string{"x", "x-1", strings.TrimRight(last, "0123456789") + "999999", last + "x", "-"} {
		w, _ = watch(t, address, mark)
		if got := len(changedIn(w.batch())); got != 6 {
			t.Errorf("an unknown mark %q brings %d elements, want all 6", mark, got)
		}
	}
}

// Of many relays those are drawn whose state has changed, and a few others whose numbers
// have: each has its turn.
func TestManyRelaysAreDrawnInTurn(t *testing.T) {
	t.Parallel()
	const relays = 40
	s := newStage(relays, false)
	second := func(also func(*control.Status)) {
		s.change(func(st *control.Status) {
			st.Now = st.Now.Add(time.Second)
			for i := range st.Relays {
				r := &st.Relays[i]
				r.Clients.Live++
				r.Why = r.Primary + " has been primary for " + st.Now.Sub(r.Elected).String() + "; if it failed now, " + r.Hosts[1].Name + " lacks " + strconv.Itoa(st.Now.Second()) + " bytes"
				r.Hosts = slices.Clone(r.Hosts)
				for k := range r.Hosts {
					h := &r.Hosts[k]
					h.Checks = slices.Clone(h.Checks)
					h.Checks[0].Last = &control.Result{At: st.Now, OK: true, Seconds: .0004 + float64(st.Now.Second())/1e6}
				}
			}
			also(st)
		})
	}
	numbers := func(batch []event) (all struct{ Relays [][2]string }) {
		if err := json.Unmarshal([]byte(batch[len(batch)-1].data), &all); err != nil || len(all.Relays) != relays {
			t.Fatalf("%v in %s", err, batch[len(batch)-1].data)
		}
		return all
	}
	second(func(*control.Status) {})
	w, _ := watch(t, s.serve(t)+"/stream", "")
	if got := len(changedIn(w.batch())); got != relays+4 {
		t.Fatalf("the first batch has %d parts, want all", got)
	}
	seen, before := map[string]bool{}, ""
	for n := 0; len(seen) < relays; n++ {
		if n > 3*relays/turns {
			t.Fatalf("after %d batches only %d relays had a turn", n, len(seen))
		}
		second(func(*control.Status) {})
		batch := w.batch()
		drawn := 0
		for _, id := range changedIn(batch) {
			if strings.HasPrefix(id, "relay-") {
				seen[id], drawn = true, drawn+1
			}
		}
		if drawn > turns+1 {
			t.Errorf("%d relays are drawn although nothing happens, want %d at most", drawn, turns+1)
		}
		if now := numbers(batch).Relays[relays-1][0]; now == before {
			t.Errorf("the number of clients stays %s", now)
		} else {
			before = now
		}
	}
	for _, n := range []int{3, 30} {
		second(func(st *control.Status) { failOver(&st.Relays[n], st.Now) })
		id := "relay-" + strconv.Itoa(n)
		if got := changedIn(w.batch()); !slices.Contains(got, id) && !slices.Contains(changedIn(w.batch()), id) { // the batch may have been made before
			t.Errorf("a failover of %s changes %v", id, got)
		}
	}
}

// What programs get is the status and the elections as everywhere else.
func TestStreamOfJSON(t *testing.T) {
	t.Parallel()
	s := newStage(1, false)
	address := s.serve(t) + "/v1/stream"
	w, _ := watch(t, address, "")
	batch := w.batch()
	if len(batch) != 2 || batch[0].name != "election" || batch[1].name != "status" {
		t.Fatalf("the first events are %+v", batch)
	}
	var e control.Event
	var st control.Status
	if err := json.Unmarshal([]byte(batch[0].data), &e); err != nil || e.Schema != control.Schema || e.New != "db1.orders:5432" {
		t.Errorf("election: %+v, %v", e, err)
	}
	if err := json.Unmarshal([]byte(batch[1].data), &st); err != nil || st.Schema != control.Schema || st.Relays[0].Primary != "db1.orders:5432" {
		t.Errorf("status: %+v, %v", st, err)
	}
	if batch := w.batch(); len(batch) != 1 || batch[0].name != "status" {
		t.Errorf("then come %+v, want a status alone", batch)
	}
}

// There is one more watcher than allowed, until one leaves.
func TestTooManyWatchers(t *testing.T) {
	t.Parallel()
	s := newStage(1, false)
	address := s.serve(t) + "/stream"
	var all []*watching
	for range watchersMost {
		w, status := watch(t, address, "")
		if status != http.StatusOK {
			t.Fatalf("watcher %d gets status %d", len(all)+1, status)
		}
		w.batch()
		all = append(all, w)
	}
	if _, status := watch(t, address, ""); status != http.StatusServiceUnavailable {
		t.Errorf("one watcher too many gets status %d, want 503", status)
	}
	all[0].stop()
	proctest.Until(t, "there is room again", func() bool {
		w, status := watch(t, address, "")
		defer w.stop()
		return status == http.StatusOK
	})
	// The page is made once for all of them.
	all[1].batch()
	s.mu.Lock()
	before := s.builds
	s.mu.Unlock()
	for range 3 {
		all[1].batch()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if made := s.builds - before; made > 3*4 {
		t.Errorf("the status was asked for %d times while one of %d watchers got 3 batches", made, watchersMost)
	}
}

// A watcher that does not read is dropped, and delays no other.
func TestSlowWatcher(t *testing.T) {
	t.Parallel()
	s := newStage(60, false)
	s.sendTimeout = 200 * time.Millisecond
	base := s.serve(t)
	slow, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	_ = slow.(*net.TCPConn).SetReadBuffer(4096)
	if _, err := slow.Write([]byte("GET /stream HTTP/1.1\r\nHost: test\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	w, _ := watch(t, base+"/stream", "")
	n := uint64(0)
	proctest.Until(t, "the slow watcher is dropped", func() bool {
		n++
		s.change(func(st *control.Status) {
			for i := range st.Relays {
				st.Relays[i].Warnings = []string{"warning " + strings.Repeat("x", int(n))}
			}
		})
		w.batch() // the other one goes on
		return len(s.watchers) == 1
	})
	w.batch()
}

// Without a watcher no piece of the page is built.
func TestNobodyWatches(t *testing.T) {
	t.Parallel()
	s := newStage(1, false)
	w, _ := watch(t, s.serve(t)+"/stream", "")
	w.batch()
	w.stop()
	proctest.Until(t, "the watcher has left", func() bool { return len(s.watchers) == 0 })
	s.mu.Lock()
	before := s.builds
	s.mu.Unlock()
	time.Sleep(2 * tick)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.builds != before {
		t.Errorf("the status was asked for %d times", s.builds-before)
	}
}

// The end of the page ends its watchers.
func TestEndOfWatchers(t *testing.T) {
	t.Parallel()
	s := newStage(1, false)
	server := &http.Server{Handler: s.Page}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l)
	defer server.Close()
	w, _ := watch(t, "http://"+l.Addr().String()+"/stream", "")
	w.batch()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := server.Shutdown(t.Context()); err != nil { // waits for requests
		t.Error(err)
	}
}

func FuzzMark(f *testing.F) {
	feed := newFeed(begins, func() ([]piece, piece) { return nil, piece{event: "tick"} })
	_, seq := feed.since(0, 0)
	for _, mark := range []string{"", "-", feed.mark(seq), feed.mark(seq + 1), "x-1", "-1", feed.mark(0) + "0"} {
		f.Add(mark)
	}
	f.Fuzz(func(t *testing.T, mark string) {
		after := feed.after(mark)
		if after > seq || after != 0 && !strings.HasPrefix(mark, feed.start+"-") {
			t.Errorf("after(%q) = %d; the last batch is %d of %s", mark, after, seq, feed.start)
		}
	})
}

// While nothing happens only the durations of checks and the numbers of clients are sent, and
// one relay after the other for what else has changed in it. What happens is sent at once.
func TestIdleRelaysAreLeftAlone(t *testing.T) {
	t.Parallel()
	const relays = 40
	s := newStage(relays, false)
	w, _ := watch(t, s.serve(t)+"/stream", "")
	w.batch()
	s.mu.Lock()
	s.calm, s.described = true, 0
	s.mu.Unlock()
	took := func(ms float64) func(*control.Status) {
		return func(st *control.Status) {
			for i := range st.Relays {
				r := &st.Relays[i]
				r.Hosts = slices.Clone(r.Hosts)
				h := &r.Hosts[1]
				h.Checks = slices.Clone(h.Checks)
				h.Checks[1].Last = &control.Result{At: st.Now, OK: true, Seconds: ms / 1000}
			}
		}
	}
	seen := map[string]bool{}
	for n := 1; len(seen) < relays; n++ {
		if n > 2*relays {
			t.Fatalf("after %d batches only %d relays were drawn", n, len(seen))
		}
		s.change(took(float64(n)))
		var batch []event
		for !strings.Contains(strings.Join(changedIn(batch), " "), "relay-") { // a batch may have been made before
			batch = w.batch()
		}
		var now tickEvent
		if err := json.Unmarshal([]byte(batch[len(batch)-1].data), &now); err != nil {
			t.Fatal(err)
		}
		for i, r := range now.Relays {
			if want := strconv.FormatFloat(float64(n), 'f', 2, 64) + " ms"; n < 10 && (len(r) != 8 || r[5] != want) {
				t.Fatalf("relay %d has the numbers %q, want %s in the place of the second check of the second host", i, r, want)
			}
		}
		for _, id := range changedIn(batch) {
			if !strings.HasPrefix(id, "relay-") {
				t.Errorf("%s is sent although nothing happens", id)
			}
			seen[id] = true
		}
		s.mu.Lock()
		if s.described > n {
			t.Fatalf("%d relays were looked at for %d batches", s.described, n)
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	s.calm = false
	s.mu.Unlock()
	s.change(func(st *control.Status) { lose(&st.Relays[30], st.Now) })
	for got := []string{}; !slices.Contains(got, "relay-30"); {
		got = changedIn(w.batch())
		if len(got) > 2*turns {
			t.Errorf("a failure changes %q", got)
		}
	}
	s.mu.Lock()
	s.calm = true
	s.mu.Unlock()
	s.change(func(st *control.Status) {
		st.Relays[30].Why = "there has been no primary for 1m8.2s: no host is usable"
	})
	said := false
	for range 3 { // the first may have been made before
		said = said || slices.ContainsFunc(w.batch(), func(e event) bool { return strings.Contains(e.data, `id="top"`) && strings.Contains(e.data, "1m8.2s") })
	}
	if !said {
		t.Error("the top of the page does not say for how long there has been no primary")
	}
}
