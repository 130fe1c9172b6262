package failover

import "sync"

// inbox holds events for Run. Each check in progress adds a few at most.
type inbox[T any] struct {
	ready chan struct{} // holds an element when events may not be empty

	mu     sync.Mutex // guards events
	events []T
}

func newInbox[T any]() inbox[T] { return inbox[T]{ready: make(chan struct{}, 1)} }

// put adds an event. It never blocks.
func (b *inbox[T]) put(ev T) {
	b.mu.Lock()
	b.events = append(b.events, ev)
	b.mu.Unlock()
	select {
	case b.ready <- struct{}{}:
	default: // Run is to look already
	}
}

// take removes the events and returns them, in their order.
func (b *inbox[T]) take() []T {
	select {
	case <-b.ready: // what it announces is taken now
	default:
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	events := b.events
	b.events = nil
	return events
}
