package health

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
)

// policy says what many answers come to: every member that must pass does, and
// of all others that count no more fail than are tolerated. Under the policy
// "all" none is.
type policy struct {
	tolerated int // votes against
	status    failStatus
}

// memberState is what a member had to say.
type memberState struct {
	Member
	err error // why it is not well; nil when it is
}

// votes reports whether m is one of those of whom some may fail.
func (m Member) votes() bool { return !m.Must && !m.Ignore }

// failure is the answer for one that failed.
type failure struct {
	status int // before the operator's fail status
	body   []byte
	reason string // in a few words that strangers may read
}

// judge comes to a verdict over members and replies. If it is good the answer
// is the first reply that passes, or "pong". If it is bad the answer is that
// of the first that fails, in order: a member that must pass, else a member
// with a vote, else a reply.
//
// A verdict that is bad over the members alone stays so whatever the ports
// reply.
func (p policy) judge(members []memberState, replies []reply) verdict {
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
	if v.status > 299 { // what the operator expects, but nobody else takes it for success
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

// failure returns the answer for a member that is not well. Its own reason is
// not for strangers.
func (m memberState) failure() failure {
	text := "down"
	if errors.Is(m.err, ErrNoPrimary) {
		text = ErrNoPrimary.Error()
	}
	return failure{http.StatusServiceUnavailable, []byte(text), text}
}

// fail turns v into a bad verdict with f as its answer.
func (p policy) fail(v verdict, f failure) verdict {
	v.ok, v.status, v.body, v.reason = false, p.status.of(f.status), f.body, f.reason
	return v
}

// failStatus says which status a failing verdict gets.
type failStatus int

const (
	autoStatus failStatus = 0  // the reply's own, as long as it reads as a failure
	keepStatus failStatus = -1 // the reply's own, whatever it is
)

// parseFailStatus reads "auto" (also ""), "keep" or a number of class 4xx or
// 5xx, the only ones that everybody takes for a failure.
func parseFailStatus(s string) (failStatus, error) {
	switch s {
	case "", "auto":
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
// Cloudflare can be told to accept any code, HAProxy and others take 3xx for
// healthy unless told otherwise. So what is below 400 becomes 502.
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
