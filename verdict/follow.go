package verdict

import (
	"context"
	"errors"
	"net"
	"time"
)

const (
	// evaluateInterval is the time between two evaluations by follow.
	evaluateInterval = time.Second
	// maxAge is the time for which the last verdict is valid when no other follows: three
	// intervals and the longest time that a [Ping] may take.
	maxAge = 3*evaluateInterval + maxReplayTimeout
	// stopGrace is the time for which follow waits for an evaluation in progress when
	// it ends.
	stopGrace = 500 * time.Millisecond
)

var errOverdue = errors.New("no verdict")

// follow calls evaluate at once, every second, and when again is closed. It passes
// each verdict to report, and errOverdue when there is none for maxAge. When ctx
// ends it reports the cause, and returns when evaluate has returned, or after
// stopGrace.
func follow(ctx context.Context, evaluate func(context.Context) error, again <-chan struct{}, report func(error)) {
	verdicts := make(chan error)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(evaluateInterval)
		defer tick.Stop()
		for {
			verdict := evaluate(ctx)
			select {
			case verdicts <- verdict:
			case <-ctx.Done():
				return
			}
			select {
			case <-tick.C:
			case <-again:
				again = nil // once
			case <-ctx.Done():
				return
			}
		}
	}()
	late := time.NewTimer(maxAge)
	defer late.Stop()
	for {
		select {
		case verdict := <-verdicts:
			late.Reset(maxAge)
			report(verdict)
		case <-late.C:
			report(errOverdue)
		case <-ctx.Done():
			report(context.Cause(ctx))
			late.Reset(stopGrace)
			select {
			case <-stopped:
			case <-late.C:
			}
			return
		}
	}
}

// acceptAll passes every connection of ln to serve and returns the error with
// which the listener ended.
func acceptAll(ln net.Listener, serve func(net.Conn)) error {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		serve(conn)
	}
}
