// Package role has the type of what a role check finds out about a host: not whether
// it answers, but whether it is the one that can be written to, of which cluster, and
// how far behind.
//
// A [Fact] is what one host said of itself. It decides nothing: whether a replica may
// be elected, how large a lag may be and which identity is the right one belong to the
// rules of a relay.
package role

import (
	"fmt"
	"time"
)

// Role is the role that a host has now.
type Role int

// The roles.
const (
	// Unknown: the host did not say, because the login was refused or has no rights,
	// there was no place for one more session, or its answer has no meaning here. It
	// counts neither for nor against the host.
	Unknown Role = iota

	// Primary: the host takes writes now. A host that is configured as a primary and
	// refuses writes is none.
	Primary

	// Replica: the host answers and takes no writes, as a host that follows a primary
	// does. It may become primary if it is promoted.
	Replica

	// Starting: the host says that it will answer later: it recovers, or loads its
	// data. It is not usable, and has not failed either.
	Starting
)

func (r Role) String() string {
	switch r {
	case Unknown:
		return "unknown"
	case Primary:
		return "primary"
	case Replica:
		return "replica"
	case Starting:
		return "starting"
	}
	return fmt.Sprintf("role(%d)", int(r))
}

// MarshalText returns the word for r.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Fact is the answer of one host at one time. Relays share it: it must not be changed.
// Everything but Role may be missing; the zero value of a field then says so.
type Fact struct {
	Role Role

	// Term grows with each promotion in a cluster, so that of two primaries the one
	// with the higher term is the later one. Zero where the protocol has none, or the
	// host did not tell it.
	Term uint64

	// Identity is the same for all hosts of a cluster, and for no other: a system
	// identifier, the name of a replica set. Empty where it is not known.
	Identity string

	// Position is how far the data of the host goes, including what a replica has
	// received and not applied yet. It grows, and of two hosts with the same Identity
	// and Term the one with the higher Position has more. Zero where it is not known.
	Position uint64

	// Bytes is set where Position counts bytes, so that the difference between two
	// is an amount of data. Otherwise it counts changes, such as transactions.
	Bytes bool

	// Shared is set where several hosts of the cluster take writes at the same time by
	// design, as with Galera: two of them that say Primary are no two writers.
	Shared bool

	// Detached is set of a Replica that is known to follow no primary, such as an old
	// primary that was started read-only: its data need not be that of the cluster.
	Detached bool

	// Lag is what a replica says itself about its distance to its primary. Relays
	// compare positions first, where those are known.
	Lag Lag

	// Detail describes in a few words what the fields do not say: "in recovery", "the
	// link to the primary is down". One line, no secrets.
	Detail string
}

// Lag is how much a replica is behind its primary. The zero Lag is not known.
type Lag struct {
	Bytes      uint64
	BytesKnown bool

	Time      time.Duration // since the replica was last as far as the primary
	TimeKnown bool
}

// String returns f in a few words: "replica, term 3, in recovery".
func (f Fact) String() string {
	text := f.Role.String()
	if f.Term > 0 {
		text += fmt.Sprintf(", term %d", f.Term)
	}
	if f.Detail != "" {
		text += ", " + f.Detail
	}
	return text
}
