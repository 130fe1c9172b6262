package daemon

import (
	"context"
	"slices"
	"sync"
	"time"

	"understudy/correlate"
	"understudy/failover"
	"understudy/internal/netstate"
)

// bell tells everybody who waits for it about a change.
type bell struct {
	mu   sync.Mutex
	next chan struct{} // closed at the next change; nil when nobody waits
}

// wait returns a channel that is closed at the next change.
func (b *bell) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = make(chan struct{})
	}
	return b.next
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != nil {
		close(b.next)
		b.next = nil
	}
}

// changed requests a comparison of the relays, and tells who watches them. It never
// blocks.
func (s *service) changed() {
	s.bell.ring()
	select {
	case s.differs <- struct{}{}:
	default: // one is requested already
	}
}

// compareAfter is the time for which changes are gathered before the relays are compared:
// at the start, and when the network goes, each of them changes at the same time.
const compareAfter = 50 * time.Millisecond

// compare compares the states of the relays soon after each change, until ctx ends.
// It logs the findings, and keeps them for status and verdicts.
func (s *service) compare(ctx context.Context) error {
	log := s.log.Named("correlate")
	detector := correlate.Detector{Network: func() (problems, facts []string) {
		state := netstate.Read()
		return state.Problems, state.Facts
	}}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var relays []failover.Status
	for {
		select {
		case <-s.differs:
			select {
			case <-time.After(compareAfter):
			case <-ctx.Done():
				return nil
			}
			select {
			case <-s.differs: // meanwhile
			default:
			}
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
		if s.draining.Load() {
			continue // relays that are ending are not compared
		}
		relays = relays[:0]
		for _, c := range s.current() {
			relays = append(relays, c.conductor.Status())
		}
		changes, next := detector.Step(time.Now(), relays)
		findings := detector.Findings()
		before := s.findings.Swap(&findings)
		s.noteWriters(before.Disagreements, findings.Disagreements)
		for _, c := range changes {
			if c.Begun {
				log.Warn(c.Text, c.Fields...)
			} else {
				log.Info(c.Text, c.Fields...)
			}
		}
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// noteWriters reports relays to the operator that have come to have different
// primaries although their hosts are the same machines.
func (s *service) noteWriters(before, now []correlate.Disagreement) {
	for _, d := range now {
		if slices.ContainsFunc(before, func(b correlate.Disagreement) bool { return b.Since.Equal(d.Since) && b.Text == d.Text }) {
			continue
		}
		for _, p := range d.Primaries {
			for _, c := range s.current() {
				if c.name == p.Relay {
					c.conductor.Notify(failover.Notice{Event: failover.EventTwoWriters, Host: p.Host, Reason: d.Text})
				}
			}
		}
	}
}
