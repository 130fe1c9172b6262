package failover

import (
	"slices"
	"time"

	"understudy/selector"
)

// LockKind is what an operator's lock forbids.
type LockKind string

// The kinds of lock.
const (
	Drain  LockKind = "drain"  // a host is not elected
	Freeze LockKind = "freeze" // no change that nobody asked for
)

// Lock is an order of an operator that stands until it is taken back or ends.
type Lock struct {
	Kind   LockKind  `json:"kind"`             // drain or freeze
	Host   string    `json:"host,omitempty"`   // of a drain
	By     string    `json:"by,omitempty"`     // who set it
	Reason string    `json:"reason,omitempty"` // and why
	Since  time.Time `json:"since"`            // when
	Until  time.Time `json:"until,omitzero"`   // zero is for ever
}

// locks are those of one relay.
type locks []Lock

// with returns l with one more lock, in place of the one of its kind and host.
func (l locks) with(k Lock) locks { return append(l.without(k.Kind, k.Host), k) }

// without returns l without the lock of a kind and host.
func (l locks) without(kind LockKind, host string) locks {
	return slices.DeleteFunc(slices.Clone(l), func(k Lock) bool { return k.Kind == kind && k.Host == host })
}

// find returns the lock of a kind and host; nil when there is none.
func (l locks) find(kind LockKind, host string) *Lock {
	for i := range l {
		if l[i].Kind == kind && l[i].Host == host {
			return &l[i]
		}
	}
	return nil
}

// at returns those that have not ended at a time, and when the next one does;
// zero when none will.
func (l locks) at(now time.Time) (left locks, next time.Time) {
	for _, k := range l {
		if k.Until.IsZero() {
			left = append(left, k)
			continue
		}
		if !now.Before(k.Until) {
			continue
		}
		left = append(left, k)
		if next.IsZero() || k.Until.Before(next) {
			next = k.Until
		}
	}
	return left, next
}

// anchored returns locks that were read from a file so that they end as much
// later as they say, whatever happens to the clock of the wall meanwhile.
func (l locks) anchored() locks {
	l = slices.Clone(l)
	for i := range l {
		if !l[i].Until.IsZero() {
			l[i].Until = time.Now().Add(time.Until(l[i].Until))
		}
	}
	return l
}

// rules is what they mean to the machine.
func (l locks) rules() selector.Locks {
	var r selector.Locks
	for _, k := range l {
		switch k.Kind {
		case Drain:
			r.Drained = append(r.Drained, k.Host)
		case Freeze:
			r.Frozen = true
		}
	}
	return r
}
