package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
)

// Store is a linearizable key-value store with transactions. All members of a
// cluster use the same. A member uses nothing else of it: no leases, no locks.
//
// Its methods return an error when there was no answer, or none of a majority
// before ctx ended. A transaction may have been carried out then, or may still
// be.
type Store interface {
	// Read returns all keys that begin with prefix, in their order.
	Read(ctx context.Context, prefix string) ([]KeyValue, error)

	// Transact carries out t in one step.
	Transact(ctx context.Context, t Transaction) (Result, error)

	// Watch calls changed with each key that begins with prefix when it may have
	// changed, until ctx ends. It is only a hint: changes may be left out, and values
	// may be old or empty. It returns nil when ctx has ended, and an error when it must
	// be called again.
	Watch(ctx context.Context, prefix string, changed func(KeyValue)) error
}

// Transaction writes one key and reads others.
type Transaction struct {
	Key    string
	Value  []byte
	Expect int64 // the revision that Key must have to be written; zero is none

	// Prefix is the beginning of all keys that are read as well, whether Key is
	// written or not. Empty reads none.
	Prefix string
}

// Result is the result of a [Transaction].
type Result struct {
	OK bool // Key was written

	// Key is the key of the transaction afterwards; its Revision is zero if there
	// is none.
	Key KeyValue

	Found []KeyValue // those that begin with Prefix, in their order
}

// KeyValue is a key in a [Store].
type KeyValue struct {
	Key      string
	Value    []byte
	Revision int64 // changes with every write; never zero
}

// keys are the names of the keys of one relay.
type keys struct{ all, record, doubt, members string }

// keysOf returns the keys of a relay of a cluster.
func keysOf(cluster, relay string) keys {
	base := Prefix(cluster, relay)
	return keys{all: base, record: base + "record", doubt: base + "doubt", members: base + "member/"}
}

// Prefix returns the beginning of all keys of a relay of a cluster.
func Prefix(cluster, relay string) string { return "/understudy/" + cluster + "/" + relay + "/" }

// decodeRecord parses the value of the key of the record.
func decodeRecord(value []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(value, &r); err != nil {
		return Record{}, fmt.Errorf("record of the cluster: %w", err)
	}
	if r.Version == 0 || r.Epoch == 0 || r.Boot == 0 || len(r.Roster) == 0 || r.Drain < 0 {
		return Record{}, fmt.Errorf("record of the cluster: version %d, epoch %d, boot %d, %d members, drain %v: not one of understudy",
			r.Version, r.Epoch, r.Boot, len(r.Roster), r.Drain)
	}
	return r, nil
}

// decodeMember parses the key of a member.
func (k keys) decodeMember(kv KeyValue) (Entry, error) {
	name, ours := strings.CutPrefix(kv.Key, k.members)
	e := Entry{Name: name, Revision: kv.Revision}
	if !ours || name == "" {
		return Entry{}, fmt.Errorf("%q is not the key of a member", kv.Key)
	}
	if err := json.Unmarshal(kv.Value, &e.Member); err != nil {
		return Entry{}, fmt.Errorf("key of the member %q: %w", name, err)
	}
	if e.Member.Boot == 0 {
		return Entry{}, fmt.Errorf("key of the member %q: no boot: not one of understudy", name)
	}
	return e, nil
}

// write returns the transaction of w, of the member of that name.
func (k keys) write(name string, w Write) (Transaction, error) {
	value, err := json.Marshal(w.Own)
	t := Transaction{Key: k.members + name, Value: value, Expect: w.Expect, Prefix: k.record}
	if w.Members {
		t.Prefix = k.all
	}
	return t, err
}

// wrote returns the event of the result of w.
func (k keys) wrote(name string, w Write, res Result) (Wrote, error) {
	a := Wrote{Sent: w.Sent, OK: res.OK, Own: Entry{Name: name}}
	var err error
	if res.Key.Revision != 0 {
		if a.Own, err = k.decodeMember(res.Key); err != nil {
			return Wrote{}, err
		}
	}
	for _, kv := range res.Found {
		if kv.Key == k.record {
			a.Revision = kv.Revision
			if a.Record, err = decodeRecord(kv.Value); err != nil {
				return Wrote{}, err
			}
			continue
		}
		if kv.Key == k.doubt {
			continue
		}
		e, err := k.decodeMember(kv)
		if err != nil {
			return Wrote{}, err
		}
		a.Members = append(a.Members, e)
	}
	return a, nil
}

// swap returns the transaction of s.
func (k keys) swap(s Swap) (Transaction, error) {
	value, err := json.Marshal(s.Record)
	return Transaction{Key: k.record, Value: value, Expect: s.Expect}, err
}

// swapped returns the event of the result of s.
func (k keys) swapped(s Swap, res Result) (Swapped, error) {
	a := Swapped{Sent: s.Sent, Revision: res.Key.Revision}
	var err error
	if res.Key.Revision != 0 {
		a.Record, err = decodeRecord(res.Key.Value)
	}
	return a, err
}
