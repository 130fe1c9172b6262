package verdict

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"understudy/internal/criteria"
	"understudy/internal/token"
)

const (
	// maxReplayTimeout is the longest time that the services may take, so
	// that the answer still gets out within the listener's answerTimeout.
	maxReplayTimeout = 9 * time.Second
	// maxReplays limits the replays in progress at one time; each sends a
	// request to every port.
	maxReplays = 16
)

// PingConfig configures a Ping. No setting in it has a default.
type PingConfig struct {
	// Path is the path that [Ping.Evaluate] requests from the ports. Required.
	Path string

	// Ports holds the ports of the services on 127.0.0.1 to which a request
	// is replayed, in the order in which their replies count. A port that is
	// listed twice gets the request twice.
	Ports []int

	// Expect holds the criteria of a port's response. The zero Expect means status
	// 200 and the body "pong". Where only the status is set any body passes,
	// where only a body is set the status must be 200.
	Expect criteria.Expect

	// Members holds the members that count beside the ports, in order. At least
	// one port or member must count.
	Members []Member

	// Quorum is the number that must pass of the ports and those members that
	// are neither Must nor Ignore. Zero means all of them.
	Quorum int

	// Timeout is the longest time that all services together may take, including the wait
	// for a free replay slot. A service that has not answered by then counts as
	// status 500, body "error". Required, at most 9s.
	Timeout time.Duration

	// FailStatus is the status of a failing verdict: "auto" is the status of the
	// failing reply, or 502 where that is below 400 and could be read as
	// success; "keep" is the status of the failing reply in every case; a number
	// from 400 to 599 is used for every failing verdict. Required.
	FailStatus string

	// Draining reports whether this program is ending: then every verdict is
	// bad, with 503 and, where no member fails, the body "ending". It must
	// return at once. Nil means never.
	Draining func() bool

	// Token lets clients that send it ("Authorization: Bearer TOKEN") read the
	// reasons in an answer as JSON. Empty means that no client can.
	Token string

	// Log gets a record of every verdict. Nil means none.
	Log *Log
}

// Ping answers whether this machine is healthy: every member is up, and every
// port answers the replayed request as expected, by default with 200 and the body
// "pong", ignoring white space around it. With a quorum, that many of them must
// pass, and every member with Must.
//
// A good verdict answers with status and body of the first port that passes, or
// 200 "pong" without ports. If the members alone make the verdict bad, no port
// gets a request, and the answer is 503 "no primary", "no standby" or, for any
// other reason, "down". Otherwise it is the first failing reply in the order of
// ports, status (see [PingConfig.FailStatus]) and body. No header of a reply is
// passed on. Every method is replayed, HEAD as GET. The reason why a port failed is
// logged and never part of a text answer.
//
// A client that accepts "application/json" gets the same verdict and status as
// JSON: members, and whether each port passed; with the token also the reasons,
// ports and times. That Accept and that token are not replayed.
//
// Identical GETs and HEADs without credentials or a body share one replay, and its
// replies for a second more. A replay that has started continues to its end even
// if the client closes: a half-close after the request looks the same.
type Ping struct {
	own      portRequest // sent by Evaluate
	ports    []int
	members  []Member
	policy   policy
	draining func() bool // may be nil
	token    token.Token
	log      *Log
	logged   recorded

	reason    atomic.Pointer[string] // of the last answer
	replayer  *replayer
	coalescer coalescer
	slots     chan struct{} // holds an element for each replay in progress
	bodies    bodyBudget
}

// NewPing returns a Ping, or an error naming every invalid field of cfg.
func NewPing(cfg PingConfig) (*Ping, error) {
	var errs []error
	target, err := url.ParseRequestURI(cfg.Path)
	if err := cmp.Or(err, checkRoute(cfg.Path)); err != nil {
		errs = append(errs, err)
	}
	for _, port := range cfg.Ports {
		if port < 1 || port > 65535 {
			errs = append(errs, fmt.Errorf("ports: %d is not from 1 to 65535", port))
		}
	}
	votes, counting := len(cfg.Ports), len(cfg.Ports)
	for i, m := range cfg.Members {
		switch {
		case m.State == nil:
			errs = append(errs, fmt.Errorf("members[%d]: %q has no state", i, m.Name))
		case m.Must && m.Ignore:
			errs = append(errs, fmt.Errorf("members[%d]: %q cannot be both required and ignored", i, m.Name))
		}
		if m.votes() {
			votes++
		}
		if !m.Ignore {
			counting++
		}
	}
	tolerated := 0
	switch {
	case counting == 0:
		errs = append(errs, errors.New("ports: at least one is required where no relay or probe counts"))
	case cfg.Quorum < 0 || cfg.Quorum > votes:
		errs = append(errs, fmt.Errorf("quorum: %d is not from 0 to %d, the number of ports and members that vote", cfg.Quorum, votes))
	case cfg.Quorum > 0:
		tolerated = votes - cfg.Quorum
	}
	if cfg.Timeout <= 0 || cfg.Timeout > maxReplayTimeout {
		errs = append(errs, fmt.Errorf("timeout: %s is not positive and at most %s", cfg.Timeout, maxReplayTimeout))
	}
	expected, err := cfg.Expect.OrPong().Compile()
	if err != nil {
		errs = append(errs, fmt.Errorf("expect: %w", err))
	}
	status, err := parseFailStatus(cfg.FailStatus)
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, fmt.Errorf("ping: %w", err)
	}
	return &Ping{
		own: newPortRequest(&http.Request{
			Method: http.MethodGet, RequestURI: cfg.Path, URL: target, Header: http.Header{"User-Agent": {"understudy"}},
		}),
		ports:    cfg.Ports,
		members:  cfg.Members,
		policy:   policy{tolerated: tolerated, status: status},
		draining: cfg.Draining,
		token:    token.New(cfg.Token),
		log:      cfg.Log,
		replayer: newReplayer(cfg.Timeout, expected),
		slots:    make(chan struct{}, maxReplays),
		bodies:   bodyBudget{each: maxBody, all: maxBodies},
	}, nil
}

// verdict is the result of members and replies, with the reason.
type verdict struct {
	ok     bool
	status int
	body   []byte
	reason string // why it is bad, in a few words that may be public

	members []memberState // all of them
	replies []reply       // of every port that got the request
	shared  bool          // replies are from a replay that another request started
}

// ServeHTTP answers one request.
func (p *Ping) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	req, trusted, asJSON := newPortRequest(r), p.token.Shown(r), wantsJSON(r.Header)
	if trusted {
		delete(req.header, "Authorization") // it was for us, not for the services
	}
	if asJSON {
		delete(req.header, "Accept")
	}
	v := p.evaluate(r.Context(), req, shareable(r, trusted), r)
	why := v.why()
	p.reason.Store(&why)

	body, contentType := v.body, "text/plain"
	if asJSON {
		body, contentType = v.report(trusted), "application/json"
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	if v.status != http.StatusNoContent && v.status != http.StatusNotModified {
		h.Set("Content-Length", strconv.Itoa(len(body))) // of HEAD too
	}
	w.WriteHeader(v.status)
	_, _ = w.Write(body) // fails if the client has disconnected; for HEAD net/http drops it
	p.log.record(&p.logged, r, v)
}

// Why returns for operators the reasons of the last answer, in one line; empty before the
// first and when it was good.
func (p *Ping) Why() string {
	if reason := p.reason.Load(); reason != nil {
		return *reason
	}
	return ""
}

// Evaluate returns nil when the verdict is good, or why not, in a few words that
// may be public. It has no client's request: it sends a GET of the path to the
// ports. It shares replays as requests do, and writes no record. It returns within
// the timeout of the ports; the end of ctx does not stop a replay, since other
// requests may wait for its replies.
func (p *Ping) Evaluate(ctx context.Context) error {
	if v := p.evaluate(ctx, p.own, true, nil); !v.ok {
		return errors.New(v.reason)
	}
	return nil
}

// evaluate returns the verdict. It replays req to the ports, unless a shared
// replay already has their replies. Without share, req gets the body of r.
func (p *Ping) evaluate(ctx context.Context, req portRequest, share bool, r *http.Request) verdict {
	members := make([]memberState, len(p.members))
	for i, m := range p.members {
		members[i] = memberState{m, m.State()}
	}
	v := p.policy.evaluate(members, nil)
	if v.ok && p.draining != nil && p.draining() {
		return p.policy.fail(v, failure{http.StatusServiceUnavailable, []byte("ending"), "ending"})
	}
	if !v.ok || len(p.ports) == 0 {
		return v
	}
	var replies []reply
	var shared bool
	if share {
		replies, shared = p.coalescer.do(req.key(), func() []reply { return p.replay(ctx, req) })
	} else {
		body, status, text := p.bodies.read(r)
		if status != 0 {
			return verdict{status: status, body: []byte(text), reason: text, members: members}
		}
		defer p.bodies.release(body)
		req.body = body
		replies = p.replay(ctx, req)
	}
	if len(replies) == 0 {
		return p.policy.fail(v, failure{http.StatusServiceUnavailable, []byte("busy"), "busy"})
	}
	v = p.policy.evaluate(members, replies)
	v.shared = shared
	return v
}

// replay sends req to every port, or returns nil when too many replays were in
// progress for the whole timeout. It does not end with parent: other requests may
// wait for the replies.
func (p *Ping) replay(parent context.Context, req portRequest) []reply {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(parent), p.replayer.timeout)
	defer cancel()
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
		return p.replayer.sendAll(ctx, req, p.ports)
	case <-ctx.Done():
		return nil
	}
}
