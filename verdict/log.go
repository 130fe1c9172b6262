package verdict

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/safetext"
)

const (
	verdictBacklog = 256         // records queued for a slow reader
	maxLoggedText  = 1 << 10     // bytes of one request line or reason
	flushTimeout   = time.Second // for what is queued when Run ends
)

// Which selects the verdicts that are recorded.
type Which int32

// All selects every verdict, Bad the bad ones, and None none. Changes selects those
// that differ from the one before on their route, and one a minute with the number
// of those in between.
const (
	All Which = iota
	Bad
	Changes
	None
)

// recordEvery is the time between two records of a verdict that does not change.
const recordEvery = time.Minute

// Log writes records of verdicts: good ones to one stream, bad ones to another. A
// record is one Write. Requests never wait for a blocked stream: its queue holds
// 256 records, and further records are dropped and counted.
type Log struct {
	good, bad *recordStream
	json      bool
	log       hclog.Logger
	which     atomic.Int32 // a Which
}

// recorded is the last record of one route. The zero recorded is none.
type recorded struct {
	mu     sync.Mutex // guards everything below
	what   string     // see verdict.signature; empty for nothing
	at     time.Time
	passed int // number of equal verdicts since, which were not recorded
}

// takes reports whether to record v, an answer to r, and the number of equal verdicts
// since the last record that were not recorded.
func (l *Log) takes(before *recorded, r *http.Request, v verdict, now time.Time) (alike int, take bool) {
	which := Which(l.which.Load())
	switch {
	case which == None, which == Bad && v.ok:
		return 0, false
	case which != Changes:
		return 0, true
	}
	before.mu.Lock()
	defer before.mu.Unlock()
	what := v.signature()
	same := what == before.what
	if same && (now.Sub(before.at) < recordEvery || isOwn(r)) {
		before.passed++
		return 0, false
	}
	alike = before.passed
	before.what, before.at, before.passed = what, now, 0
	return alike, true
}

// signature returns a text that is the same for equal verdicts.
func (v verdict) signature() string {
	var b strings.Builder
	fmt.Fprint(&b, v.status, v.ok)
	for _, m := range v.members {
		if m.err != nil {
			fmt.Fprintf(&b, " %s %s", m.Kind, m.Name)
		}
	}
	for _, r := range v.replies {
		if !r.passed() {
			fmt.Fprintf(&b, " %d %d", r.port, r.status)
		}
	}
	return b.String()
}

// ownAgent is the User-Agent of [Check].
const ownAgent = "understudy"

// isOwn reports whether r was sent by [Check] on this machine, which is the health
// check of a container.
func isOwn(r *http.Request) bool {
	addr, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && addr.Addr().Unmap().IsLoopback() && r.UserAgent() == ownAgent
}

// NewLog returns a log that writes text, or JSON with one object for
// each line, of all verdicts until [Log.Record] selects others. The logger gets the
// number of lost records; it may be nil. Nothing is written until Run.
func NewLog(good, bad io.Writer, asJSON bool, logger hclog.Logger) *Log {
	if logger == nil {
		logger = hclog.NewNullLogger()
	}
	return &Log{good: newRecordStream(good), bad: newRecordStream(bad), json: asJSON, log: logger}
}

// Record selects the verdicts that are recorded from now on.
func (l *Log) Record(which Which) { l.which.Store(int32(which)) }

// Dropped returns how many records were lost because a stream was blocked.
func (l *Log) Dropped() uint64 { return l.good.lost.Load() + l.bad.lost.Load() }

// Run writes records until ctx ends, then those that are queued, and returns nil.
// It waits a second for a write that hangs at that moment and then returns without
// it: only its reader or the end of the process can end such a write.
func (l *Log) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		var streams sync.WaitGroup
		streams.Go(func() { l.good.run(ctx, l.log.With("stream", "good")) })
		streams.Go(func() { l.bad.run(ctx, l.log.With("stream", "bad")) })
		streams.Wait()
	}()
	<-ctx.Done()
	select {
	case <-done:
	case <-time.After(flushTimeout):
	}
	return nil
}

// record queues the record of v, the answer to r, if it is selected. before holds
// what was recorded on the route. A nil Log does nothing.
func (l *Log) record(before *recorded, r *http.Request, v verdict) {
	if l == nil {
		return
	}
	now := time.Now()
	alike, take := l.takes(before, r, v, now)
	if !take {
		return
	}
	client, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		client = r.RemoteAddr
	}
	request := clipText(r.Method + " " + r.RequestURI + " " + r.Proto)
	var text []byte
	if l.json {
		text = verdictJSON(now, client, request, alike, v)
	} else {
		text = verdictText(now, client, request, alike, v)
	}
	if v.ok {
		l.good.put(text)
	} else {
		l.bad.put(text)
	}
}

// verdictText returns a record for people: its time as in the log, the request line,
// then every failing member and the reply of each port. A shared verdict has no lines
// for ports; they are in the record of the request that started the replay.
func verdictText(now time.Time, client, request string, alike int, v verdict) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%s - - [%s] \"%s\" %d", client, now.Format(hclog.TimeFormat), safetext.Quoted(request), v.status)
	if v.shared {
		b.WriteString(" shared")
	}
	if alike > 0 {
		fmt.Fprintf(&b, " (%d since the last record were alike)", alike)
	}
	b.WriteByte('\n')
	for _, m := range v.members {
		if m.err == nil {
			continue
		}
		kind := cmp.Or(m.Kind, "member")
		fmt.Fprintf(&b, "- %s%s %s → %s", strings.ToUpper(kind[:1]), safetext.Escape(kind[1:]), safetext.Escape(m.Name), safetext.Escape(clipText(m.err.Error())))
		if m.Ignore {
			b.WriteString(" (ignored)")
		}
		b.WriteByte('\n')
	}
	if v.shared {
		return []byte(b.String())
	}
	for _, r := range v.replies {
		fmt.Fprintf(&b, "- Port %d → Status: %d, Body: %s.., Time: %.3fs", r.port, r.status, safetext.Escape(firstTen(r.body)), r.took.Seconds())
		if r.err != nil {
			fmt.Fprintf(&b, ", Reason: %s", safetext.Escape(clipText(r.err.Error())))
		}
		b.WriteByte('\n')
	}
	return []byte(b.String())
}

// verdictJSON returns the same record for machines.
func verdictJSON(now time.Time, client, request string, alike int, v verdict) []byte {
	type member struct {
		Name    string `json:"name"`
		Kind    string `json:"kind,omitempty"`
		Ignored bool   `json:"ignored,omitempty"`
		Reason  string `json:"reason"`
	}
	type port struct {
		Port    int     `json:"port"`
		Status  int     `json:"status"`
		Body    string  `json:"body"` // first 10 characters
		Seconds float64 `json:"seconds"`
		Reason  string  `json:"reason,omitempty"`
	}
	record := struct {
		Time    time.Time `json:"time"`
		Client  string    `json:"client"`
		Request string    `json:"request"`
		Status  int       `json:"status"`
		OK      bool      `json:"ok"`
		Shared  bool      `json:"shared,omitempty"`
		Alike   int       `json:"alike,omitempty"`      // number of equal verdicts since the last record
		Without []string  `json:"no_primary,omitempty"` // names
		Failing []member  `json:"failing,omitempty"`    // all other failing members, and those with more detail than no_primary
		Ports   []port    `json:"ports,omitempty"`
	}{Time: now, Client: client, Request: request, Status: v.status, OK: v.ok, Shared: v.shared, Alike: alike}
	for _, m := range v.members {
		switch {
		case m.err == nil:
		case errors.Is(m.err, ErrNoPrimary) && !m.Ignore:
			record.Without = append(record.Without, m.Name)
			if m.err != ErrNoPrimary { //nolint:errorlint // an error that wraps it has more detail
				record.Failing = append(record.Failing, member{m.Name, m.Kind, m.Ignore, clipText(m.err.Error())})
			}
		default:
			record.Failing = append(record.Failing, member{m.Name, m.Kind, m.Ignore, clipText(m.err.Error())})
		}
	}
	if !v.shared {
		for _, r := range v.replies {
			p := port{Port: r.port, Status: r.status, Body: firstTen(r.body), Seconds: r.took.Round(time.Millisecond).Seconds()}
			if r.err != nil {
				p.Reason = clipText(r.err.Error())
			}
			record.Ports = append(record.Ports, p)
		}
	}
	text, _ := json.Marshal(record) // strings and numbers only: cannot fail
	return append(text, '\n')
}

// firstTen returns the first 10 characters of body.
func firstTen(body []byte) string {
	n := 0
	for range 10 {
		_, size := utf8.DecodeRune(body[n:])
		n += size
	}
	return string(body[:n])
}

// clipText shortens text that a client or a service may have made very long.
func clipText(s string) string {
	if len(s) <= maxLoggedText {
		return s
	}
	return s[:maxLoggedText] + "…"
}

// recordStream is one output and its queue of records.
type recordStream struct {
	w       io.Writer
	records chan []byte
	lost    atomic.Uint64
}

func newRecordStream(w io.Writer) *recordStream {
	return &recordStream{w: w, records: make(chan []byte, verdictBacklog)}
}

// put queues a record, or drops and counts it when the queue is full.
func (s *recordStream) put(record []byte) {
	select {
	case s.records <- record:
	default:
		s.lost.Add(1)
	}
}

// run writes records until ctx ends, then those that are queued. It also logs the
// number of lost records, at most once a second, because logging may block and the
// goroutines that answer requests must not.
func (s *recordStream) run(ctx context.Context, log hclog.Logger) {
	var reported uint64
	var when time.Time
	report := func() {
		if lost := s.lost.Load(); lost != reported {
			log.Warn("verdict records lost", "lost", lost-reported)
			reported, when = lost, time.Now()
		}
	}
	defer report()
	for {
		var record []byte
		select {
		case record = <-s.records:
		case <-ctx.Done():
			select {
			case record = <-s.records:
			default:
				return
			}
		}
		if _, err := s.w.Write(record); err != nil {
			s.lost.Add(1)
		}
		if time.Since(when) >= time.Second {
			report()
		}
	}
}
