package health

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"
)

const (
	verdictBacklog = 256         // records that wait for a slow reader
	maxLoggedText  = 1 << 10     // bytes of one request line or reason
	lastWords      = time.Second // for what is queued when Run ends
)

// VerdictLog writes one record for each verdict: good ones to one stream, bad
// ones, wholly, to another. A record is one Write. Nobody waits for a stream
// that takes nothing: its backlog holds 256 records, then records are lost and
// counted.
type VerdictLog struct {
	good, bad *recordStream
	json      bool
	log       hclog.Logger
}

// NewVerdictLog returns a log that writes text, or JSON with one object for
// each line. The logger, which may be nil, is told how many records were lost.
// Nothing is written until Run.
func NewVerdictLog(good, bad io.Writer, asJSON bool, logger hclog.Logger) *VerdictLog {
	if logger == nil {
		logger = hclog.NewNullLogger()
	}
	return &VerdictLog{good: newRecordStream(good), bad: newRecordStream(bad), json: asJSON, log: logger}
}

// Run writes records until ctx ends, then those that are queued, and returns
// nil. A write that hangs at that moment is left behind after a second: nothing
// can end it but its reader, or the end of the process.
func (l *VerdictLog) Run(ctx context.Context) error {
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
	case <-time.After(lastWords):
	}
	return nil
}

// Lost returns how many records were lost so far.
func (l *VerdictLog) Lost() uint64 {
	return l.good.lost.Load() + l.bad.lost.Load()
}

// record queues the record of v, the answer to r. A nil log takes none.
func (l *VerdictLog) record(r *http.Request, v verdict) {
	if l == nil {
		return
	}
	client, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		client = r.RemoteAddr
	}
	request := clipText(r.Method + " " + r.RequestURI + " " + r.Proto)
	var text []byte
	if l.json {
		text = verdictJSON(time.Now(), client, request, v)
	} else {
		text = verdictText(time.Now(), client, request, v)
	}
	if v.ok {
		l.good.put(text)
	} else {
		l.bad.put(text)
	}
}

// verdictText is the record for people: the request line, and below it every
// member that is not well and what each port said. A shared verdict has no lines for
// ports; they stand in the record of the request that began the replay.
func verdictText(now time.Time, client, request string, v verdict) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%s - - [%s] \"%s\" %d", client, now.Format("02/Jan/2006 15:04:05"), escapeText(request, '"'), v.status)
	if v.shared {
		b.WriteString(" shared")
	}
	b.WriteByte('\n')
	for _, m := range v.members {
		if m.err == nil {
			continue
		}
		kind := cmp.Or(m.Kind, "member")
		fmt.Fprintf(&b, "- %s%s %s → %s", strings.ToUpper(kind[:1]), escapeText(kind[1:], 0), escapeText(m.Name, 0), escapeText(clipText(m.err.Error()), 0))
		if m.Ignore {
			b.WriteString(" (ignored)")
		}
		b.WriteByte('\n')
	}
	if v.shared {
		return []byte(b.String())
	}
	for _, r := range v.replies {
		fmt.Fprintf(&b, "- Port %d → Status: %d, Body: %s.., Time: %.3fs", r.port, r.status, escapeText(firstTen(r.body), 0), r.took.Seconds())
		if r.err != nil {
			fmt.Fprintf(&b, ", Reason: %s", escapeText(clipText(r.err.Error()), 0))
		}
		b.WriteByte('\n')
	}
	return []byte(b.String())
}

// verdictJSON is the same record for machines.
func verdictJSON(now time.Time, client, request string, v verdict) []byte {
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
		Without []string  `json:"no_primary,omitempty"` // names
		Failing []member  `json:"failing,omitempty"`    // all other members that are not well
		Ports   []port    `json:"ports,omitempty"`
	}{Time: now, Client: client, Request: request, Status: v.status, OK: v.ok, Shared: v.shared}
	for _, m := range v.members {
		switch {
		case m.err == nil:
		case errors.Is(m.err, ErrNoPrimary) && !m.Ignore:
			record.Without = append(record.Without, m.Name)
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

// clipText shortens what a stranger may have made very long.
func clipText(s string) string {
	if len(s) <= maxLoggedText {
		return s
	}
	return s[:maxLoggedText] + "…"
}

// escapeText returns s in a form that stays on its line and shows what it is: what
// is not printable, not UTF-8, a backslash or quote is written as in a Go
// string. A quote of 0 is none.
func escapeText(s string, quote rune) string {
	var b strings.Builder
	for at, r := range s {
		switch {
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\\', r == quote && quote != 0:
			b.WriteRune('\\')
			b.WriteRune(r)
		case r == utf8.RuneError && !strings.HasPrefix(s[at:], "\uFFFD"), r < utf8.RuneSelf && !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\x%02x`, s[at])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	return b.String()
}

// recordStream is one output and the records that wait for it.
type recordStream struct {
	w       io.Writer
	records chan []byte
	lost    atomic.Uint64
}

func newRecordStream(w io.Writer) *recordStream {
	return &recordStream{w: w, records: make(chan []byte, verdictBacklog)}
}

// put queues a record, or loses it when the queue is full.
func (s *recordStream) put(record []byte) {
	select {
	case s.records <- record:
	default:
		s.lost.Add(1)
	}
}

// run writes until ctx ends, then what is queued. It is also the one to tell
// that records were lost, at most once a second: it may hang, and those that
// answer requests may not.
func (s *recordStream) run(ctx context.Context, log hclog.Logger) {
	var told uint64
	var when time.Time
	tell := func() {
		if lost := s.lost.Load(); lost != told {
			log.Warn("verdict records lost", "lost", lost-told)
			told, when = lost, time.Now()
		}
	}
	defer tell()
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
			tell()
		}
	}
}
