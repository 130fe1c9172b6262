package health

import (
	"context"
	"errors"
	"time"

	"understudy/internal/fault"
)

// lateness is the longest time after its deadline at which a check may end and still
// count.
const lateness = 500 * time.Millisecond

// NewResult returns the Result of a check of ctx that began at began and ended
// now, in phase, with err; nil is a pass. It is for checks of every kind.
//
// A failure is Unknown when [fault.Local] says so of err, and also when the check
// ended more than 500ms after the deadline of ctx: then this program was stopped or
// had no processor time, and may have missed the answer. It is also Unknown when ctx
// was canceled.
func NewResult(ctx context.Context, began time.Time, phase Phase, err error) Result {
	until, ok := ctx.Deadline()
	if !ok {
		until = time.Now()
	}
	return newResult(began, until, errors.Is(ctx.Err(), context.Canceled), phase, err)
}

// newResult is NewResult of a check that had to end by until.
func newResult(began, until time.Time, canceled bool, phase Phase, err error) Result {
	now := time.Now()
	if err == nil {
		return Result{OK: true, Latency: now.Sub(began)}
	}
	return Result{
		Unknown: fault.Local(err) || now.Sub(until) > lateness || canceled,
		Phase:   phase,
		Err:     fault.Explain(err),
		Latency: now.Sub(began),
	}
}
