package health

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// askEvery is the time between two verdicts that nobody sent a request for.
	askEvery = time.Second
	// overdue is how long the last verdict stands when no other comes: three
	// intervals and the longest that a [Ping] may take.
	overdue = 3*askEvery + maxAsked
)

var errOverdue = errors.New("no verdict")

// follow asks judge at once and then every second, and hands each verdict to
// tell; an error when there is none for too long. When ctx ends it hands over
// the end as well, and returns when judge has, or 500ms later at the latest: a
// verdict that nobody will hear is left behind.
func follow(ctx context.Context, judge func(context.Context) error, tell func(error)) {
	verdicts := make(chan error)
	asking := make(chan struct{})
	go func() {
		defer close(asking)
		tick := time.NewTicker(askEvery)
		defer tick.Stop()
		for {
			verdict := judge(ctx)
			select {
			case verdicts <- verdict:
			case <-ctx.Done():
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	late := time.NewTimer(overdue)
	defer late.Stop()
	for {
		select {
		case verdict := <-verdicts:
			late.Reset(overdue)
			tell(verdict)
		case <-late.C:
			tell(errOverdue)
		case <-ctx.Done():
			tell(context.Cause(ctx))
			late.Reset(lateness)
			select {
			case <-asking:
			case <-late.C:
			}
			return
		}
	}
}

// acceptAll hands every connection of ln to serve, until ln is closed or ctx
// ends, which ends no Accept by itself. To be out of descriptors is a bad minute and not the end.
func acceptAll(ctx context.Context, ln net.Listener, serve func(net.Conn), log hclog.Logger) {
	for delay := time.Duration(0); ; {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			delay = 0
			serve(conn)
			continue
		case errors.Is(err, net.ErrClosed), ctx.Err() != nil:
			return
		}
		if delay == 0 {
			log.Warn("accept failed, retrying", "error", err)
		}
		// At once it would spin without freeing anything.
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return
		}
	}
}
