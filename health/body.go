package health

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"sync/atomic"
)

// bodyRoom reads bodies of requests and bounds what they take, each and all
// together. Safe for use from many goroutines.
type bodyRoom struct {
	each int64 // bytes of one body, at most
	all  int64 // bytes of all bodies at one time, at most
	held atomic.Int64
}

// read returns the body of r, to be given back, or the status and text that
// tell the client why not; status is 0 when there is a body.
func (room *bodyRoom) read(r *http.Request) (body []byte, status int, text string) {
	if r.ContentLength > room.each {
		return nil, http.StatusRequestEntityTooLarge, "body too large"
	}
	var buf bytes.Buffer
	for {
		n, err := io.CopyN(&buf, r.Body, 32<<10)
		held := room.held.Add(n)
		switch {
		case int64(buf.Len()) > room.each:
			status, text = http.StatusRequestEntityTooLarge, "body too large"
		case held > room.all:
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
		room.give(buf.Bytes())
		return nil, status, text
	}
}

// give gives a body back.
func (room *bodyRoom) give(body []byte) { room.held.Add(-int64(len(body))) }
