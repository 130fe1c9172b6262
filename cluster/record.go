package cluster

import (
	"slices"
	"time"
)

// Record is what the members agree on, in one key of the store. The zero Record
// is that of a cluster in which nothing was agreed yet.
type Record struct {
	// Version grows by one with every swap, and Boot is the life that made it:
	// together they identify a record. The store's own revision would not do,
	// because a restored backup turns it back.
	Version uint64 `json:"version"`
	Boot    uint64 `json:"boot"`

	// Epoch grows by one with every fence.
	Epoch uint64 `json:"epoch"`

	// Open is false while earlier epochs are fenced, and true when clients may be
	// connected to Host.
	Open bool `json:"open"`

	// Host is the primary of the epoch, Old the one before; empty for none.
	Host string `json:"host"`
	Old  string `json:"old,omitempty"`

	// Event is the kind of the election and Reason why it happened, in one line.
	Event  string `json:"event,omitempty"`
	Reason string `json:"reason,omitempty"`

	// Fact is what role checks have found out about the last host that was open.
	Fact Fact `json:"fact,omitzero"`

	// Driver is the member that made the fence, and DriverBoot its life then.
	Driver     string `json:"driver"`
	DriverBoot uint64 `json:"driver_boot"`

	// Drain is the time for which connections of earlier epochs may go on after
	// the fence, in nanoseconds. Zero ends them at once.
	Drain time.Duration `json:"drain,omitempty"`

	// Roster are the names of all members.
	Roster []string `json:"roster"`

	// Change is a change of the roster that is not effective yet.
	Change Change `json:"change,omitzero"`

	// Locks are the operators' locks, in a form that this package does not know.
	Locks string `json:"locks,omitempty"`

	// Settings are those of Config.Settings that count.
	Settings string `json:"settings"`
}

// Fact is what a role check has found out about a primary. By it members recognize a host
// of another cluster of databases, or of an earlier term.
type Fact struct {
	Host     string `json:"host"`
	Term     uint64 `json:"term,omitempty"`     // zero where there are none
	Identity string `json:"identity,omitempty"` // empty where there is none
}

// newer reports whether f, about the host of the record, replaces what the record has: it
// is about another host, of a higher term, or of another cluster, which has terms of its
// own.
func (r *Record) newer(f Fact) bool {
	return f.Host != "" && f.Host == r.Host &&
		(f.Host != r.Fact.Host || f.Term > r.Fact.Term || f.Identity != "" && f.Identity != r.Fact.Identity)
}

// Change adds a member to the roster or, with Forget, removes it.
type Change struct {
	Name   string `json:"name"`
	Forget bool   `json:"forget,omitempty"`

	// By is who ordered it, and Reason why; both are only shown.
	By     string `json:"by,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// recordID identifies a record.
type recordID struct{ version, boot uint64 }

func (r *Record) id() recordID { return recordID{r.Version, r.Boot} }

// has reports whether name is in the roster and stays there.
func (r *Record) has(name string) bool {
	return slices.Contains(r.Roster, name) && (r.Change.Name != name || !r.Change.Forget)
}

// Member is what a member writes into its own key.
type Member struct {
	// Boot is the life that wrote it.
	Boot uint64 `json:"boot"`

	// Fenced is the highest epoch below which no connection of the member lives.
	Fenced uint64 `json:"fenced"`

	// Leaving marks a member that has ended: nothing of it lives.
	Leaving bool `json:"leaving,omitempty"`

	// Down are the hosts that the member sees down.
	Down []string `json:"down,omitempty"`

	// Clock is the time by the clock of the member when it sent this, in
	// nanoseconds; see [Clocks].
	Clock time.Duration `json:"clock,omitempty"`

	// Settings, Address and Version are those of its [Config].
	Settings string `json:"settings"`
	Address  string `json:"address,omitempty"`
	Version  string `json:"version,omitempty"`
}

// equal reports whether a says the same as b, at another time.
func (a *Member) equal(b *Member) bool {
	return a.Boot == b.Boot && a.Fenced == b.Fenced && a.Leaving == b.Leaving && slices.Equal(a.Down, b.Down) &&
		a.Settings == b.Settings && a.Address == b.Address && a.Version == b.Version
}

// Entry is the key of a member in the store.
type Entry struct {
	Name     string
	Member   Member
	Revision int64 // the store's, which changes with every write
}
