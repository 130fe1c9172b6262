package cluster

import (
	"context"
	"strings"
)

// Register carries out the requests of a [Machine] at a [Store].
type Register struct {
	store  Store
	keys   keys
	member string
}

// NewRegister returns a Register of a member of a cluster for one relay.
func NewRegister(store Store, cluster, relay, member string) *Register {
	return &Register{store: store, keys: keysOf(cluster, relay), member: member}
}

// Write carries out w. After an error it may have been carried out, or may still
// be.
func (r *Register) Write(ctx context.Context, w Write) (Wrote, error) {
	t, err := r.keys.write(r.member, w)
	if err != nil {
		return Wrote{}, err
	}
	res, err := r.store.Transact(ctx, t)
	if err != nil {
		return Wrote{}, err
	}
	return r.keys.wrote(r.member, w, res)
}

// Swap carries out s, like Write.
func (r *Register) Swap(ctx context.Context, s Swap) (Swapped, error) {
	t, err := r.keys.swap(s)
	if err != nil {
		return Swapped{}, err
	}
	res, err := r.store.Transact(ctx, t)
	if err != nil {
		return Swapped{}, err
	}
	return r.keys.swapped(s, res)
}

// Watch calls changed when the record or the key of a member may have changed,
// until ctx ends. It returns an error when it must be called again.
func (r *Register) Watch(ctx context.Context, changed func(Changed)) error {
	return r.store.Watch(ctx, r.keys.all, func(kv KeyValue) {
		if kv.Key == r.keys.record {
			changed(Changed{})
		} else if name, ok := strings.CutPrefix(kv.Key, r.keys.members); ok {
			e, _ := r.keys.decodeMember(kv) // who reads the key reports the error
			changed(Changed{Member: name, Doubted: e.Member.Doubted})
		}
	})
}
