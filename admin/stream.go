package admin

import (
	"bytes"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// watchersMost limits the connections that wait for events.
	watchersMost = 32

	// tick is the time between two batches of events when nothing changes.
	tick = time.Second

	// gather is the time for which changes are collected before they are sent.
	gather = 100 * time.Millisecond

	// sendTimeout is the time after which a watcher that does not read is dropped when the
	// system's buffers are full. The listener notices most of them before that.
	sendTimeout = 5 * time.Second
)

// piece is the data of one event. The name identifies it among those of its feed.
type piece struct {
	name, event string
	data        []byte
	seq         uint64 // of the batch in which it last changed
}

// feed produces server-sent events for any number of watchers. It keeps of each piece
// only the last version, with the number of the batch in which that changed: so a
// watcher that was away gets what has changed since, once, and a slow one costs
// nothing. A version is built when a watcher asks, at most once for all watchers.
type feed struct {
	// build returns all pieces, and the one that ends each batch.
	build func() (pieces []piece, end piece)

	start string // tells the marks of this process from those of others

	mu     sync.Mutex
	made   time.Time
	seq    uint64
	pieces []piece
	end    piece
	latest []byte // the batch for a watcher that has the one before
}

// newFeed returns a feed. Marks of another start mean nothing to it.
func newFeed(start time.Time, build func() ([]piece, piece)) *feed {
	return &feed{build: build, start: strconv.FormatInt(start.UnixNano(), 36)}
}

// mark returns the mark of a batch: what a watcher sends to get all later ones.
func (f *feed) mark(seq uint64) string { return f.start + "-" + strconv.FormatUint(seq, 10) }

// after returns the number of the batch with this mark, or 0: then the watcher gets
// everything. A mark comes from the network.
func (f *feed) after(mark string) uint64 {
	start, number, found := strings.Cut(mark, "-")
	seq, err := strconv.ParseUint(number, 10, 64)
	if !found || start != f.start || err != nil {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if seq > f.seq {
		return 0
	}
	return seq
}

// now returns the mark of the last batch.
func (f *feed) now() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mark(f.seq)
}

// next returns the time until the next batch is due. It is the same moment for all watchers:
// the program wakes once for all of them.
func (f *feed) next() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Until(f.made.Add(tick))
}

// since returns the events after batch seq, and the number of the last one. It makes a
// new batch if the last one is older than most. The caller must not change the events.
func (f *feed) since(seq uint64, most time.Duration) ([]byte, uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seq == 0 || time.Since(f.made) >= most {
		f.update()
	}
	switch seq {
	case f.seq:
		return nil, seq
	case f.seq - 1:
		return f.latest, f.seq
	}
	return f.batch(seq), f.seq
}

// update makes a new batch.
func (f *feed) update() {
	pieces, end := f.build()
	f.seq++
	for i := range pieces {
		p := &pieces[i]
		p.seq = f.seq
		old := slices.IndexFunc(f.pieces, func(q piece) bool { return q.name == p.name })
		if old >= 0 && bytes.Equal(f.pieces[old].data, p.data) {
			p.seq = f.pieces[old].seq
		}
	}
	f.pieces, f.end, f.made = pieces, end, time.Now()
	f.latest = f.batch(f.seq - 1)
}

// batch returns the events after batch seq. Only the last one has an id, so that a
// watcher that loses its connection in between gets all of them again.
func (f *feed) batch(seq uint64) []byte {
	var out bytes.Buffer
	for _, p := range f.pieces {
		if p.seq > seq {
			p.write(&out, "")
		}
	}
	f.end.write(&out, f.mark(f.seq))
	return out.Bytes()
}

// write writes a piece as an event.
func (p piece) write(out *bytes.Buffer, id string) {
	out.WriteString("event: " + p.event + "\n")
	if id != "" {
		out.WriteString("id: " + id + "\n")
	}
	// Every kind of line end would end the field.
	data := bytes.ReplaceAll(p.data, []byte("\r"), nil)
	for line := range bytes.SplitSeq(bytes.TrimRight(data, "\n"), []byte("\n")) {
		out.WriteString("data: ")
		out.Write(line)
		out.WriteByte('\n')
	}
	out.WriteByte('\n')
}

// watch answers with the events of a feed until the client leaves or the page ends. The
// client's last mark is in the header Last-Event-ID, or in the query, which a browser sends
// with the first request.
func (p *Page) watch(f *feed, w http.ResponseWriter, r *http.Request) {
	select {
	case p.watchers <- struct{}{}:
		defer func() { <-p.watchers }()
	default:
		w.Header().Set("Retry-After", "10")
		http.Error(w, "too many watchers", http.StatusServiceUnavailable)
		return
	}
	mark := r.Header.Get("Last-Event-ID")
	if mark == "" {
		mark = r.URL.Query().Get("since")
	}
	seq := f.after(mark)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx must not collect them
	out := http.NewResponseController(w)
	_ = out.SetReadDeadline(time.Time{}) // the listener's limit is for requests that end
	events, most := []byte("retry: 1000\n\n"), gather/2
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed := p.cfg.Changed()
		more, last := f.since(seq, most)
		seq = last
		if events = append(events, more...); len(events) > 0 {
			_ = out.SetWriteDeadline(time.Now().Add(p.sendTimeout))
			if _, err := w.Write(events); err != nil || out.Flush() != nil { //nolint:gosec // G705: the template has escaped it
				return // gone, or too slow
			}
		}
		events = nil
		timer.Reset(f.next())
		select {
		case <-timer.C:
			most = tick - gather
		case <-changed:
			timer.Reset(gather) // others follow
			select {
			case <-timer.C:
			case <-r.Context().Done():
				return
			case <-p.over:
				return
			}
			most = gather / 2
		case <-r.Context().Done():
			return
		case <-p.over:
			return
		}
	}
}
