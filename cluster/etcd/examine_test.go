//go:build linux

package etcd

import (
	"context"
	"errors"
	"testing"
	"time"

	"understudy/cluster"
	"understudy/internal/proctest"
)

// An etcd that keeps all versions of its keys, as it does unless it is told otherwise, is
// full one day: it is reported before that, and then.
func TestExamine(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	store := newStore(t, proctest.FreeAddr(t), srv.addr)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	put := func(size int) error {
		res, err := store.Transact(ctx, cluster.Transaction{Key: "/understudy/x", Value: make([]byte, size)})
		if err == nil && !res.OK {
			_, err = store.Transact(ctx, cluster.Transaction{Key: "/understudy/x", Value: make([]byte, size), Expect: res.Key.Revision})
		}
		return err
	}
	for range 20 {
		if err := put(1); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Examine(ctx); err != nil {
		t.Errorf("a new etcd: %v", err)
	}
	if err := store.examine(ctx, 10); !errors.Is(err, ErrKeepsAll) {
		t.Errorf("with more versions than it should have: %v", err)
	}
	if _, err := store.clients[1].Compact(ctx, 19); err != nil {
		t.Fatal(err)
	}
	if err := store.examine(ctx, 10); err != nil {
		t.Errorf("compacted: %v", err)
	}

	srv.kill()
	srv.args = append(srv.args, "--quota-backend-bytes", "2000000")
	srv.start()
	proctest.Until(t, "it is full", func() bool {
		attempt, stop := context.WithTimeout(ctx, time.Second)
		defer stop()
		return put(500_000) != nil && errors.Is(store.Examine(attempt), ErrFull)
	})
	srv.kill()
	if err := store.Examine(ctx); err == nil || errors.Is(err, ErrFull) || errors.Is(err, ErrKeepsAll) {
		t.Errorf("an etcd that is away: %v", err)
	}
}
