package daemon

import (
	"context"
	"errors"
	"sync"
)

// part is a function that runs in a group.
type part struct {
	end  context.CancelFunc
	over chan struct{} // closed when it has ended
}

// group is a number of parts that run until they end.
type group struct {
	wg   sync.WaitGroup
	mu   sync.Mutex // guards errs
	errs []error
}

// start runs a part until ctx ends. A part that fails, or ends before its
// context, calls stop.
func (g *group) start(ctx context.Context, stop func(), run func(context.Context) error) *part {
	ctx, cancel := context.WithCancel(ctx)
	p := &part{end: cancel, over: make(chan struct{})}
	g.wg.Go(func() {
		defer close(p.over)
		defer cancel()
		err := run(ctx)
		if err != nil {
			g.mu.Lock()
			g.errs = append(g.errs, err)
			g.mu.Unlock()
		}
		if err != nil || ctx.Err() == nil {
			stop()
		}
	})
	return p
}

// wait waits for all of them and returns their errors, joined.
func (g *group) wait() error {
	g.wg.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	return errors.Join(g.errs...)
}
