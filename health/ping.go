package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
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
	// Path is what [Ping.Judge] asks the ports for. Defaults to "/ping".
	Path string

	// Ports holds the ports of the services on 127.0.0.1 to which a request
	// is replayed, in the order in which their replies count. A port that
	// stands here twice is asked twice.
	Ports []int

	// Expect is what a port's response must be. The zero Expect means status
	// 200 and the body "pong". Where only the status is set any body passes,
	// where only a body is set the status must be 200.
	Expect Expect

	// Members holds what counts beside the ports, in order. At least one of
	// Ports and Members must count, or there is nothing to answer for.
	Members []Member

	// Quorum is how many must pass of the ports and those members that are
	// neither Must nor Ignore. Zero means all of them.
	Quorum int

	// Timeout is how long the services may take, all of them together and
	// waiting for a turn included. A service that has not answered by then
	// counts as status 500, body "error". Defaults to 2s, at most 9s.
	Timeout time.Duration

	// FailStatus is the status of a failing verdict: "auto" is the failing
	// reply's own, or 502 where that is below 400 and could be taken for
	// success; "keep" is its own whatever it is; a number from 400 to 599 is
	// used for every failing verdict. Defaults to "auto".
	FailStatus string

	// Token lets those who show it ("Authorization: Bearer TOKEN") read the
	// reasons in an answer as JSON. Nobody can when it is empty.
	Token string

	// Log takes a record of every verdict. Defaults to none.
	Log *VerdictLog
}

// Ping answers whether everything on this machine is well: every member is,
// and every port answers the replayed request as expected, with 200 and a body
// that is "pong" but for white space around it. With a quorum, enough of them
// are, and every member that must be.
//
// If so the answer is that of the first port that passes, status and body;
// without one it is 200 "pong". If the members alone make the verdict a bad one
// no port is asked, and the answer is 503 "no primary" or, where the reason is
// another, 503 "down". Otherwise it is the first failing reply in the order of
// ports, status (see [PingConfig.FailStatus]) and body. Of a reply's headers
// none is passed on. Every method is replayed, HEAD as GET; why a port failed
// is in the log and never in the answer.
//
// Whoever accepts "application/json" gets the same verdict and status as JSON:
// members, and whether each port passed; the reasons, ports and times as well
// for who shows the token. That Accept and that token are not replayed.
//
// Identical GETs and HEADs without credentials or a body share one replay, and
// its replies for a second more. Once begun a replay goes on to its end, even
// if the client leaves: some half-close after their request and look gone.
type Ping struct {
	own     question // of Judge
	ports   []int
	members []Member
	policy  policy
	token   token
	log     *VerdictLog

	replayer  *replayer
	coalescer coalescer
	turns     chan struct{} // holds an element for each replay under way
	bodies    bodyRoom
}

// NewPing returns a Ping, or an error naming every invalid field of cfg.
func NewPing(cfg PingConfig) (*Ping, error) {
	cfg.Path = cmp.Or(cfg.Path, "/ping")
	cfg.Timeout = cmp.Or(cfg.Timeout, 2*time.Second)
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
	if cfg.Timeout < 0 || cfg.Timeout > maxAsked {
		errs = append(errs, fmt.Errorf("timeout: %s is not from 0s to %s", cfg.Timeout, maxAsked))
	}
	expected, err := cfg.Expect.orPong().compile()
	if err != nil {
		errs = append(errs, fmt.Errorf("expect: %w", err))
	}
	status, err := parseFailStatus(cfg.FailStatus)
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, fmt.Errorf("ping: %w", err)
	}
	return &Ping{
		own: newQuestion(&http.Request{
			Method: http.MethodGet, RequestURI: cfg.Path, URL: target, Header: http.Header{"User-Agent": {"understudy"}},
		}),
		ports:    cfg.Ports,
		members:  cfg.Members,
		policy:   policy{tolerated: tolerated, status: status},
		token:    newToken(cfg.Token),
		log:      cfg.Log,
		replayer: newReplayer(cfg.Timeout, expected),
		turns:    make(chan struct{}, maxReplays),
		bodies:   bodyRoom{each: maxPingBody, all: maxPingBodies},
	}, nil
}

// orPong fills in what a port's response must be unless somebody said so.
func (e Expect) orPong() Expect {
	if len(e.Status) == 0 {
		e.Status = []string{"200"}
		if e.Body == "" && e.BodyContains == "" && e.BodyRegex == "" {
			e.Body = "pong"
		}
	}
	return e
}

// verdict is one answer over members and many replies, with the reason.
type verdict struct {
	ok     bool
	status int
	body   []byte
	reason string // why it is bad, in a few words that strangers may read

	members []memberState // all of them
	replies []reply       // of every port that was asked
	shared  bool          // replies are of a replay that another request began
}

// ServeHTTP answers one request.
func (p *Ping) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q, trusted, asJSON := newQuestion(r), p.token.shown(r), wantsJSON(r.Header)
	if trusted {
		delete(q.header, "Authorization") // it was meant for us
	}
	if asJSON {
		delete(q.header, "Accept")
	}
	v := p.judge(r.Context(), q, shareable(r, trusted), r)

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
	_, _ = w.Write(body) // fails if the client is gone; for HEAD net/http drops it
	p.log.record(r, v)
}

// Judge comes to a verdict without anybody's request: the ports are asked to
// GET the path. It returns nil when the verdict is good, or why not in a few
// words that strangers may read. It shares replays as requests do, and writes
// no record. It returns within the timeout of the ports; the end of ctx does
// not stop a replay, whose replies others may be waiting for.
func (p *Ping) Judge(ctx context.Context) error {
	if v := p.judge(ctx, p.own, true, nil); !v.ok {
		return errors.New(v.reason)
	}
	return nil
}

// judge comes to a verdict. The ports are asked q, unless a shared replay has
// their replies already; one that is not shared has the body of r as well.
func (p *Ping) judge(ctx context.Context, q question, share bool, r *http.Request) verdict {
	members := make([]memberState, len(p.members))
	for i, m := range p.members {
		members[i] = memberState{m, m.State()}
	}
	v := p.policy.judge(members, nil)
	if !v.ok || len(p.ports) == 0 {
		return v
	}
	var replies []reply
	var shared bool
	if share {
		replies, shared = p.coalescer.do(q.key(), func() []reply { return p.replay(ctx, q) })
	} else {
		body, status, text := p.bodies.read(r)
		if status != 0 {
			return verdict{status: status, body: []byte(text), reason: text, members: members}
		}
		defer p.bodies.give(body)
		q.body = body
		replies = p.replay(ctx, q)
	}
	if len(replies) == 0 {
		return p.policy.fail(v, failure{http.StatusServiceUnavailable, []byte("busy"), "busy"})
	}
	v = p.policy.judge(members, replies)
	v.shared = shared
	return v
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
