package failover

import (
	"sync"

	"understudy/selector"
)

// inbox holds the results of checks for Run. Each check in progress adds a few at most.
type inbox struct {
	ready chan struct{} // holds an element when events may not be empty

	mu     sync.Mutex // guards events
	events []selector.Event
}

func newInbox() inbox { return inbox{ready: make(chan struct{}, 1)} }

// put adds an event. It never blocks.
func (b *inbox) put(ev selector.Event) {
	b.mu.Lock()
	b.events = append(b.events, ev)
	b.mu.Unlock()
	select {
	case b.ready <- struct{}{}:
	default: // Run is to look already
	}
}

// take removes the events and returns them, in their order.
func (b *inbox) take() []selector.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	events := b.events
	b.events = nil
	return events
}
