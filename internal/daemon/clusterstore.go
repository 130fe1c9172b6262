package daemon

import (
	"context"
	"errors"
	"time"

	"understudy/cluster/etcd"
)

// How often the store is examined: it takes days to become full. An attempt that got no
// answer is repeated sooner.
const (
	examineEvery = 6 * time.Hour
	examineAgain = time.Minute
)

// watchStore warns while the store refuses writes, or will one day, until ctx ends.
func (m *membership) watchStore(ctx context.Context) error {
	for {
		wait := examineAgain
		attempt, stop := context.WithTimeout(ctx, m.cfg.Lease)
		switch err := m.etcd.Examine(attempt); {
		case err == nil:
			wait = examineEvery
		case errors.Is(err, etcd.ErrFull), errors.Is(err, etcd.ErrKeepsAll):
			wait = examineEvery
			m.log.Warn("the store needs space", "cluster", m.cfg.Name, "error", err)
		}
		stop()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}
