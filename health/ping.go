package health

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

const (
	// maxAsked is how long the services may take at most, so that the answer
	// still gets out within the listener's AnswerTimeout.
	maxAsked = 9 * time.Second
	// maxReplays limits the replays that are under way at one time; each asks
	// every port.
	maxReplays = 16
	// maxPingBody is how long a request's body may be, and maxPingBodies how
	// many bytes of all of them may be held at one time.
	maxPingBody   = 1 << 20
	maxPingBodies = 32 << 20
)

// PingConfig says what /ping answers for. Zero fields mean their defaults.
type PingConfig struct {
	// Ports holds the ports of the services on 127.0.0.1 to which a request
	// is replayed, in the order in which their replies count. A port that
	// stands here twice is asked twice.
	Ports []int

	// Timeout is how long the services may take, all of them together and
	// waiting for a turn included. A service that has not answered by then
	// counts as status 500, body "error". Defaults to 2s, at most 9s.
	Timeout time.Duration

	// FailStatus is the status of a failing verdict: "auto" is the failing
	// reply's own, or 502 where that is below 400 and could be taken for
	// success; "keep" is its own whatever it is; a number from 400 to 599 is
	// used for every failing verdict. Defaults to "auto".
	FailStatus string

	// Relays returns the names of the relays that have no primary at this
	// moment. It is called for every request and must return at once. Nil
	// when there are no relays. At least one of Ports and Relays is required.
	Relays func() (without []string)

	// Log takes a record of every verdict. Defaults to none.
	Log *VerdictLog
}

// Ping answers whether everything on this machine is well, policy "all":
// every relay has a primary, and every port answers the replayed request with
// 200 and a body that is "pong" but for white space around it.
//
// If so the answer is the first port's, status and body; with relays alone it
// is 200 "pong". If a relay has no primary the answer is 503 "no primary", and
// no port is asked. Otherwise it is the first failing reply in the order of
// ports, status (see [PingConfig.FailStatus]) and body. Of a reply's headers
// none is passed on. Every method is replayed, HEAD as GET; why a port failed
// is in the log and never in the answer.
//
// Identical GETs and HEADs without credentials or a body share one replay, and
// its replies for a second more. Once begun a replay goes on to its end, even
// if the client leaves: some half-close after their request and look gone.
type Ping struct {
	ports  []int
	status failStatus
	relays func() []string
	log    *VerdictLog

	replayer  *replayer
	coalescer coalescer
	turns     chan struct{} // holds an element for each replay under way
	bodies    atomic.Int64  // bytes of request bodies held
}

// NewPing returns a Ping, or an error naming every invalid field of cfg.
func NewPing(cfg PingConfig) (*Ping, error) {
	cfg.Timeout = cmp.Or(cfg.Timeout, 2*time.Second)
	var errs []error
	if len(cfg.Ports) == 0 && cfg.Relays == nil {
		errs = append(errs, errors.New("ports: at least one is required where there is no relay"))
	}
	for _, port := range cfg.Ports {
		if port < 1 || port > 65535 {
			errs = append(errs, fmt.Errorf("ports: %d is not from 1 to 65535", port))
		}
	}
	if cfg.Timeout < 0 || cfg.Timeout > maxAsked {
		errs = append(errs, fmt.Errorf("timeout: %s is not from 0s to %s", cfg.Timeout, maxAsked))
	}
	status, err := parseFailStatus(cfg.FailStatus)
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, fmt.Errorf("ping: %w", err)
	}
	return &Ping{
		ports:    cfg.Ports,
		status:   status,
		relays:   cfg.Relays,
		log:      cfg.Log,
		replayer: newReplayer(cfg.Timeout),
		turns:    make(chan struct{}, maxReplays),
	}, nil
}

// verdict is one answer over many replies, with the reason.
type verdict struct {
	ok     bool
	status int
	body   []byte

	without []string // relays without a primary
	replies []reply  // of every port that was asked
	shared  bool     // replies are of a replay that another request began
}

// ServeHTTP answers one request.
func (p *Ping) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v := p.judge(r)
	h := w.Header()
	h.Set("Content-Type", "text/plain")
	if v.status != http.StatusNoContent && v.status != http.StatusNotModified {
		h.Set("Content-Length", strconv.Itoa(len(v.body))) // of HEAD too
	}
	w.WriteHeader(v.status)
	_, _ = w.Write(v.body) // fails if the client is gone; for HEAD net/http drops it
	p.log.record(r, v)
}

// judge comes to a verdict for r.
func (p *Ping) judge(r *http.Request) verdict {
	if p.relays != nil {
		if without := p.relays(); len(without) > 0 {
			v := p.fail(http.StatusServiceUnavailable, "no primary")
			v.without = without
			return v
		}
	}
	if len(p.ports) == 0 {
		return verdict{ok: true, status: http.StatusOK, body: []byte("pong")}
	}

	q := newQuestion(r)
	var replies []reply
	var shared bool
	if shareable(r) {
		replies, shared = p.coalescer.do(q.key(), func() []reply { return p.replay(r.Context(), q) }) //nolint:contextcheck // the replay outlives the request that began it
	} else {
		var bad *verdict
		if q.body, bad = p.readBody(r); bad != nil {
			return *bad
		}
		replies = p.replay(r.Context(), q)
		p.bodies.Add(-int64(len(q.body)))
	}
	if len(replies) == 0 {
		return p.fail(http.StatusServiceUnavailable, "busy")
	}
	i, ok := judgeAll(replies)
	v := verdict{ok: ok, status: replies[i].status, body: replies[i].body, replies: replies, shared: shared}
	if !ok {
		v.status = p.status.of(v.status)
	}
	return v
}

// fail returns the verdict of a request that no port was asked about.
func (p *Ping) fail(status int, body string) verdict {
	return verdict{status: p.status.of(status), body: []byte(body)}
}

// replay asks every port, or returns nil when there was no turn for it in
// time. It does not end with parent: others may be waiting for the replies.
func (p *Ping) replay(parent context.Context, q question) []reply {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(parent), p.replayer.timeout)
	defer cancel()
	select {
	case p.turns <- struct{}{}:
		defer func() { <-p.turns }()
		return p.replayer.askAll(ctx, q, p.ports)
	case <-ctx.Done():
		return nil
	}
}

// readBody reads the body of r and counts it in p.bodies, or returns the
// verdict that tells why not.
func (p *Ping) readBody(r *http.Request) ([]byte, *verdict) {
	refuse := func(status int, body string) ([]byte, *verdict) {
		return nil, &verdict{status: status, body: []byte(body)}
	}
	if r.ContentLength > maxPingBody {
		return refuse(http.StatusRequestEntityTooLarge, "body too large")
	}
	var body bytes.Buffer
	for {
		n, err := io.CopyN(&body, r.Body, 32<<10)
		held := p.bodies.Add(n)
		status, text := 0, ""
		switch {
		case body.Len() > maxPingBody:
			status, text = http.StatusRequestEntityTooLarge, "body too large"
		case held > maxPingBodies:
			status, text = http.StatusServiceUnavailable, "busy"
		case errors.Is(err, io.EOF):
			return body.Bytes(), nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			status, text = http.StatusRequestTimeout, "body too slow"
		case err != nil:
			status, text = http.StatusBadRequest, "body broken"
		default:
			continue
		}
		p.bodies.Add(-int64(body.Len()))
		return refuse(status, text)
	}
}
