package health

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
)

// judgeAll is the policy "all": every reply must pass. It returns the place of the
// reply that is the answer: the first if all pass, else the first in order
// that does not. There is at least one reply.
func judgeAll(replies []reply) (answer int, ok bool) {
	for i, r := range replies {
		if !r.passed() {
			return i, false
		}
	}
	return 0, true
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
