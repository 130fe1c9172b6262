package verdict

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
)

// policy turns members and replies into a verdict. It is good when every member
// with Must passes, and at most tolerated of all others that count fail. The
// quorum "all" tolerates none.
type policy struct {
	tolerated int // number of failures
	status    failStatus
}

// memberState is a member with its state.
type memberState struct {
	Member
	err error // why it is not up; nil when it is
}

// votes reports whether m counts for the quorum.
func (m Member) votes() bool { return !m.Must && !m.Ignore }

// failure is the answer for a member or port that failed.
type failure struct {
	status int // before the operator's fail status
	body   []byte
	reason string // in a few words that may be public
}

// evaluate returns the verdict for members and replies. The answer of a good
// verdict is the first reply that passes, or "pong". The answer of a bad one is
// the first failure in this order: a member with Must, a member that votes, a
// reply.
//
// A verdict that is bad because of the members alone stays bad with any replies.
func (p policy) evaluate(members []memberState, replies []reply) verdict {
	v := verdict{ok: true, status: http.StatusOK, body: []byte("pong"), members: members, replies: replies}
	var against []failure
	for _, m := range members {
		switch {
		case m.err == nil || m.Ignore:
		case m.Must:
			return p.fail(v, m.failure())
		default:
			against = append(against, m.failure())
		}
	}
	for _, r := range slices.Backward(replies) {
		if r.passed() {
			v.status, v.body = r.status, r.body
		}
	}
	if v.status > 299 { // the operator expects it from the port, but no client reads it as success
		v.status = http.StatusOK
	}
	for _, r := range replies {
		if !r.passed() {
			against = append(against, failure{r.status, r.body, fmt.Sprintf("status %d", p.status.of(r.status))})
		}
	}
	if len(against) > p.tolerated {
		return p.fail(v, against[0])
	}
	return v
}

// failure returns the answer for a member that is not up. It contains only
// reasons that may be public.
func (m memberState) failure() failure {
	text := "down"
	for _, known := range []error{ErrNoPrimary, ErrNoStandby} {
		if errors.Is(m.err, known) {
			text = known.Error()
		}
	}
	return failure{http.StatusServiceUnavailable, []byte(text), text}
}

// fail turns v into a bad verdict with f as its answer.
func (p policy) fail(v verdict, f failure) verdict {
	v.ok, v.status, v.body, v.reason = false, p.status.of(f.status), f.body, f.reason
	return v
}

// failStatus selects the status of a failing verdict.
type failStatus int

const (
	autoStatus failStatus = 0  // the reply's status, or 502 when that is below 400
	keepStatus failStatus = -1 // the reply's status in every case
)

// parseFailStatus parses "auto", "keep" or a number of class 4xx or 5xx, the only
// classes that every client reads as a failure.
func parseFailStatus(s string) (failStatus, error) {
	switch s {
	case "auto":
		return autoStatus, nil
	case "keep":
		return keepStatus, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, fmt.Errorf("fail status: %q is not auto, keep or a number", s)
	}
	if n < 400 || n > 599 {
		return 0, errors.New("fail status: " + s + " is not from 400 to 599")
	}
	return failStatus(n), nil
}

// of returns the status of a failing verdict whose reply had status.
//
// Cloudflare can be configured to accept any code, and HAProxy and others take 3xx
// for healthy by default, so a status below 400 becomes 502.
func (f failStatus) of(status int) int {
	switch {
	case f == keepStatus:
		return status
	case f != autoStatus:
		return int(f)
	case status < 400:
		return http.StatusBadGateway
	}
	return status
}
