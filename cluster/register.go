package cluster

import (
	"context"
	"encoding/json"
	"sync/atomic"
)

// Register carries out the requests of a [Machine] at a [Store].
type Register struct {
	store  Store
	keys   keys
	member string
	doubt  atomic.Int64 // the revision of the key for doubts that is known last
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

// Record returns the record; false where there is none yet. It changes nothing.
func (r *Register) Record(ctx context.Context) (Record, bool, error) {
	found, err := r.store.Read(ctx, r.keys.record)
	if err != nil {
		return Record{}, false, err
	}
	for _, kv := range found {
		if kv.Key == r.keys.record {
			record, err := decodeRecord(kv.Value)
			return record, err == nil, err
		}
	}
	return Record{}, false, nil
}

// Watch calls changed when the record may have changed, until ctx ends. It
// returns an error when it must be called again. Heartbeats are not watched: all
// would be told of those of all.
func (r *Register) Watch(ctx context.Context, changed func(Changed)) error {
	return r.store.Watch(ctx, r.keys.record, func(KeyValue) { changed(Changed{}) })
}

// Doubt is what a member tells the others when it begins to suspect a host, so
// that they check it at once. It is only a hint, and counts for nothing.
type Doubt struct {
	Member string `json:"member"`
	Host   string `json:"host"` // empty for a claim

	// Boot is set for a claim: this life says that it has the name of Member, which another
	// process has, too. Where is where it runs, for people.
	Boot  uint64 `json:"boot,omitempty"`
	Where string `json:"where,omitempty"`
}

// Doubt tells the other members that this one has begun to suspect a host.
func (r *Register) Doubt(ctx context.Context, host string) error {
	return r.tell(ctx, Doubt{Member: r.member, Host: host})
}

// Claim tells the other process with the name of this member that there is this one, too.
func (r *Register) Claim(ctx context.Context, boot uint64, where string) error {
	return r.tell(ctx, Doubt{Member: r.member, Boot: boot, Where: where})
}

func (r *Register) tell(ctx context.Context, d Doubt) error {
	value, err := json.Marshal(d)
	if err != nil {
		return err
	}
	for range 2 { // the revision may not be known, and others may doubt at the same time
		res, err := r.store.Transact(ctx, Transaction{Key: r.keys.doubt, Value: value, Expect: r.doubt.Load()})
		if err != nil {
			return err
		}
		r.doubt.Store(res.Key.Revision)
		if res.OK {
			break
		}
	}
	return nil
}

// WatchDoubts calls doubted with what other members tell, and with claims of this name, like
// Watch.
func (r *Register) WatchDoubts(ctx context.Context, doubted func(Doubt)) error {
	return r.store.Watch(ctx, r.keys.doubt, func(kv KeyValue) {
		r.doubt.Store(kv.Revision)
		var d Doubt
		if json.Unmarshal(kv.Value, &d) == nil && (d.Member != r.member) != (d.Boot != 0) {
			doubted(d)
		}
	})
}
