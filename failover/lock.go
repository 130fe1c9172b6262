package failover

import (
	"slices"
	"time"

	"understudy/selector"
)

// LockKind is the kind of action that an operator's lock forbids.
type LockKind string

// The kinds of lock.
const (
	Drain  LockKind = "drain"  // a host is not elected
	Freeze LockKind = "freeze" // no automatic change
)

// Lock is an order of an operator that holds until it is removed or expires.
type Lock struct {
	Kind   LockKind  `json:"kind"`             // drain or freeze
	Host   string    `json:"host,omitempty"`   // of a drain
	By     string    `json:"by,omitempty"`     // who set it
	Reason string    `json:"reason,omitempty"` // why it was set
	Since  time.Time `json:"since"`            // when it was set
	Until  time.Time `json:"until,omitzero"`   // zero is without end
}

// locks are those of one relay.
type locks []Lock

// with returns l with one more lock, which replaces the one of its kind and
// host.
func (l locks) with(k Lock) locks { return append(l.without(k.Kind, k.Host), k) }

// without returns l without the lock of a kind and host.
func (l locks) without(kind LockKind, host string) locks {
	return slices.DeleteFunc(slices.Clone(l), func(k Lock) bool { return k.Kind == kind && k.Host == host })
}

// merge returns l with the changes that lead from before to after: what was set or
// removed by them, while l is what somebody else has made of before.
func (l locks) merge(before, after locks) locks {
	for _, k := range before {
		if after.find(k.Kind, k.Host) == nil {
			l = l.without(k.Kind, k.Host)
		}
	}
	for _, k := range after {
		if was := before.find(k.Kind, k.Host); was == nil || *was != k {
			l = l.with(k)
		}
	}
	return l
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

// orders returns the orders that lead from l to after. The end of a lock that has expired
// was not ordered.
func (l locks) orders(after locks, now time.Time) (all []Incident) {
	left, _ := l.at(now)
	for _, k := range left {
		if after.find(k.Kind, k.Host) == nil {
			all = append(all, Lock{Kind: k.Kind, Host: k.Host}.removal(now))
		}
	}
	for _, k := range after {
		// Until is not compared: it follows the clock; see onWall.
		if was := l.find(k.Kind, k.Host); was == nil || !was.Since.Equal(k.Since) || was.By != k.By || was.Reason != k.Reason {
			all = append(all, k.order())
		}
	}
	return all
}

// order returns the record of the order that set the lock.
func (k Lock) order() Incident {
	event := selector.Kind(k.Kind)
	return Incident{Event: event, Reason: orderText(string(event), k.By, k.Reason), By: k.By, Order: &Ordered{At: k.Since, Host: k.Host, Until: k.Until}}
}

// removal returns the record of the order at a time that removed a lock of this kind and
// host; By and Reason are those of the removal.
func (k Lock) removal(at time.Time) Incident {
	event := OrderReady
	if k.Kind == Freeze {
		event = OrderUnfreeze
	}
	return Incident{Event: event, Reason: orderText(string(event), k.By, k.Reason), By: k.By, Order: &Ordered{At: at, Host: k.Host}}
}

// at returns the locks that have not expired at a time, and when the next one
// expires; zero when none will.
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

// readAt returns the current form of locks that were read from a file, which
// was saved at an earlier moment. They expire by the monotonic clock, even if
// the wall clock is set meanwhile.
func (l locks) readAt(saved, now clock) locks {
	l = slices.Clone(l)
	for i := range l {
		if !l[i].Until.IsZero() {
			l[i].Until = now.Wall.Add(l[i].left(saved, now))
		}
	}
	return l
}

// left returns how much longer a lock lasts that was saved at one moment and
// read at another. Within a boot of the machine that is exact. Otherwise only
// the wall clock is available, and it may have been set: the lock lasts no
// longer than it would have when it was saved.
func (k Lock) left(saved, now clock) time.Duration {
	most := k.Until.Sub(k.Since) // for a file without a clock: its full length
	if !saved.Wall.IsZero() {
		most = k.Until.Sub(saved.Wall)
	}
	if away, ok := now.since(saved); ok {
		return most - away
	}
	return min(most, k.Until.Sub(now.Wall))
}

// onWall returns the locks with the current wall-clock times at which they
// expire. These differ from the times that were set if the wall clock was set
// meanwhile.
func (l locks) onWall(now time.Time) locks {
	l = slices.Clone(l)
	for i := range l {
		if l[i].Until.IsZero() {
			continue
		}
		until := now.Add(l[i].Until.Sub(now)) // the difference of monotonic readings
		if off := until.Round(0).Sub(l[i].Until.Round(0)); off.Abs() >= time.Second {
			l[i].Until = until // a clock that is only adjusted does not change the text
		}
	}
	return l
}

// selection converts the locks for the machine.
func (l locks) selection() selector.Locks {
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
