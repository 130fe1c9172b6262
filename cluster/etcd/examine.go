package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Errors of [Store.Examine].
var (
	// ErrFull tells that the etcd refuses writes.
	ErrFull = errors.New("it is full (alarm NOSPACE) and refuses writes: compact and defragment it, then etcdctl alarm disarm")

	// ErrKeepsAll tells that it will be full one day.
	ErrKeepsAll = errors.New("it is not compacted and will be full: start it with --auto-compaction-retention=1h")
)

// mostVersions is the number of old versions after which an etcd that keeps them all is
// reported. A version of a key of a member takes some 400 bytes, and an etcd refuses
// writes at 2 GB unless it is told otherwise.
const mostVersions = 1_000_000

// Examine looks for what makes the etcd refuse writes. Where it refuses them it returns
// [ErrFull]; [ErrKeepsAll] where each heartbeat stays in it as an old version and it will
// do so one day; or an error that tells that there was no answer.
func (s *Store) Examine(ctx context.Context) error { return s.examine(ctx, mostVersions) }

func (s *Store) examine(ctx context.Context, most int64) error {
	found := error(nil)
	err := s.try(ctx, func(c *clientv3.Client) error {
		found = nil
		status, err := c.Status(ctx, c.Endpoints()[0])
		if err != nil {
			return err
		}
		if strings.Contains(strings.Join(status.Errors, " "), "NOSPACE") {
			found = ErrFull
			return nil
		}
		old := status.Header.Revision - most
		if old <= 0 {
			return nil
		}
		_, err = c.Get(ctx, "/understudy/", clientv3.WithPrefix(), clientv3.WithRev(old), clientv3.WithLimit(1), clientv3.WithKeysOnly())
		if errors.Is(err, rpctypes.ErrCompacted) {
			return nil
		}
		if err == nil {
			found = fmt.Errorf("it has more than %d old versions of its keys: %w", most, ErrKeepsAll)
		}
		return err
	})
	if err != nil {
		return err
	}
	return found
}
