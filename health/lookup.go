package health

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

const (
	// nameHold is the time for which [Resolver.Resolve] keeps the last addresses of a
	// name after its name servers report that it does not exist. Probes resolve this
	// way; hosts have a setting for it (see [Lookup.Usable]).
	nameHold = 30 * time.Second

	// nameLife is the time for which an address of a name is valid without an answer that
	// contains it. Until then an outage of the name servers is the likely
	// reason; later the address may belong to another machine.
	nameLife = 10 * time.Minute

	// leftConfirm is the time for which an address must have been missing from the
	// answers, the last of them included.
	leftConfirm = time.Second
)

// Lookup is the knowledge about a name at one moment. The zero Lookup is that of a
// name without any answer.
type Lookup struct {
	// Addrs is the last good answer, in the order to try them: the order of the
	// families is the system's (RFC 6724), and each family is sorted, so that
	// every process tries the same address first. Nil before the first good
	// answer.
	Addrs []netip.Addr

	// At is the time of that answer.
	At time.Time

	// Source is its source: "name server 192.0.2.53:53" or "hosts file".
	Source string

	// Denied is the time since when the name servers have reported that the name
	// does not exist or has no address. Zero when their last answer was good.
	Denied time.Time

	// Err is the reason why the last query had no good answer; nil when it had.
	Err error

	seen    map[netip.Addr]sighting // within the last 10 minutes of good answers
	rotated time.Time               // when an address was last in an answer after it had been missing
}

// sighting records when answers contained an address of a name.
type sighting struct {
	last time.Time // in an answer
	left time.Time // since when it has been missing from answers; zero while it is in them
}

// update updates the Lookup with the result of a query.
func (l *Lookup) update(now time.Time, addrs []netip.Addr, source string, err error) {
	l.Err = err
	if isNotFound(err) && l.Denied.IsZero() {
		l.Denied = now
	}
	if err != nil {
		return // the servers failed: the last good answer is kept
	}
	l.Addrs, l.At, l.Source, l.Denied = inTurn(addrs), now, source, time.Time{}
	if l.seen == nil {
		l.seen = map[netip.Addr]sighting{}
	}
	for a, s := range l.seen {
		switch {
		case slices.Contains(addrs, a):
		case now.Sub(s.last) >= nameLife:
			delete(l.seen, a)
		case s.left.IsZero():
			s.left = now
			l.seen[a] = s
		}
	}
	for _, a := range addrs {
		if !l.seen[a].left.IsZero() {
			l.rotated = now
		}
		l.seen[a] = sighting{last: now}
	}
}

// inTurn puts the families in the order of their first addresses, and sorts
// within each.
func inTurn(addrs []netip.Addr) []netip.Addr {
	first4 := addrs[0].Is4()
	addrs = slices.Clone(addrs)
	slices.SortFunc(addrs, func(a, b netip.Addr) int {
		if a.Is4() != b.Is4() {
			if a.Is4() == first4 {
				return -1
			}
			return 1
		}
		return a.Compare(b)
	})
	return slices.Compact(addrs)
}

func (l Lookup) clone() Lookup {
	l.Addrs, l.seen = slices.Clone(l.Addrs), maps.Clone(l.seen)
	return l
}

// Usable returns the addresses that may be tried, or why there is none: there was no
// good answer yet, or the name servers have reported for hold or longer that the name
// does not exist.
func (l Lookup) Usable(hold time.Duration) ([]netip.Addr, error) {
	switch {
	case l.Addrs == nil && l.Err != nil:
		return nil, l.Err
	case l.Addrs == nil:
		return nil, errors.New("no answer from the name servers yet")
	case l.denied(hold):
		return nil, fmt.Errorf("%w (for %v)", l.Err, time.Since(l.Denied).Round(time.Second))
	}
	return l.Addrs, nil
}

// denied reports whether the name servers have reported for hold or longer that the
// name does not exist.
func (l Lookup) denied(hold time.Duration) bool {
	return !l.Denied.IsZero() && time.Since(l.Denied) >= hold
}

// Confirmed returns when an answer last contained addr; zero for never, or when that
// was more than 10 minutes before the last answer.
func (l Lookup) Confirmed(addr netip.Addr) time.Time { return l.seen[addr].last }

// Stale reports whether addr may belong to another machine by now: no answer has
// contained it for 10 minutes, or the name servers have reported for hold or longer
// that the name does not exist. It may be used until one of its checks fails.
func (l Lookup) Stale(addr netip.Addr, hold time.Duration) bool {
	return time.Since(l.Confirmed(addr)) >= nameLife || l.denied(hold)
}

// Left reports whether the name no longer resolves to addr: two answers in a row, a
// second apart, did not contain it. Some name servers return only a part of a name's
// addresses in each answer. So when an address came back within the last 10 minutes,
// addr must have been missing for hold as well.
func (l Lookup) Left(addr netip.Addr, hold time.Duration) bool {
	if l.Addrs == nil || slices.Contains(l.Addrs, addr) {
		return false
	}
	s, ok := l.seen[addr]
	if !ok {
		return true // missing for 10 minutes, or always
	}
	missing := l.At.Sub(s.left)
	if !l.rotated.IsZero() && l.At.Sub(l.rotated) < nameLife {
		return missing >= max(hold, leftConfirm)
	}
	return missing >= leftConfirm
}
