package daemon

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"
)

// bindEvery is the time between two attempts to bind an address.
const bindEvery = time.Second

// listening is a listener for verdicts or orders.
type listening interface {
	// Bind binds the address.
	Bind() error
	// Run serves until ctx ends. After any other end Bind and Run can be called
	// again.
	Run(ctx context.Context) error
}

// keepServing runs l until ctx ends. An l that is not bound yet, or that ends
// by itself, is bound and run again: an error of such a listener must not end
// any connection of a relay. It always returns nil.
func keepServing(l listening, name string, isBound bool, log hclog.Logger) func(context.Context) error {
	return func(ctx context.Context) error {
		for {
			if isBound {
				err := l.Run(ctx)
				if ctx.Err() != nil {
					return nil
				}
				log.Error("listener ended, reopening it", "listener", name, "error", err)
				isBound = false
			}
			failed := ""
			for !isBound {
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(bindEvery):
				}
				err := l.Bind()
				isBound = err == nil
				if err != nil && err.Error() != failed {
					failed = err.Error()
					log.Warn("listener not open, retrying", "listener", name, "error", err)
				}
			}
			log.Info("listener open", "listener", name)
		}
	}
}
