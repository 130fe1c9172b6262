package verdict

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"sync/atomic"
)

const (
	// maxBody is the greatest length of the body of a request; more is answered
	// 413.
	maxBody = 1 << 20
	// maxBodies limits the bytes of all bodies that one route holds at one time.
	maxBodies = 32 << 20
)

// bodyBudget reads bodies of requests and limits the memory of each and of all
// together. It is safe for concurrent use.
type bodyBudget struct {
	each int64 // bytes of one body, at most
	all  int64 // bytes of all bodies at one time, at most
	held atomic.Int64
}

// read returns the body of r, which the caller passes to release, or the status
// and text of the answer that refuses it; status is 0 when there is a body.
func (budget *bodyBudget) read(r *http.Request) (body []byte, status int, text string) {
	if r.ContentLength > budget.each {
		return nil, http.StatusRequestEntityTooLarge, "body too large"
	}
	var buf bytes.Buffer
	for {
		n, err := io.CopyN(&buf, r.Body, 32<<10)
		held := budget.held.Add(n)
		switch {
		case int64(buf.Len()) > budget.each:
			status, text = http.StatusRequestEntityTooLarge, "body too large"
		case held > budget.all:
			status, text = http.StatusServiceUnavailable, "busy"
		case errors.Is(err, io.EOF):
			return buf.Bytes(), 0, ""
		case errors.Is(err, os.ErrDeadlineExceeded):
			status, text = http.StatusRequestTimeout, "body too slow"
		case err != nil:
			status, text = http.StatusBadRequest, "body broken"
		default:
			continue
		}
		budget.release(buf.Bytes())
		return nil, status, text
	}
}

// release frees the budget of a body.
func (budget *bodyBudget) release(body []byte) { budget.held.Add(-int64(len(body))) }
