package relay

import "time"

// plane is the data plane of a relay: it accepts the clients of the listeners,
// connects each to the host of the gate and moves their bytes. Every system has
// one, which newPlane makes. It reads the relay's gate, settings and listeners
// itself, takes a place for each connection ([Relay.enter]) and reports faults;
// none of that goes through this interface, which is for rare operations only.
//
// The relay holds gating while it calls open, apply, leave and expire.
type plane interface {
	// start begins to serve. It accepts nothing until open.
	start() error

	// stop ends what start began, when there are no connections any more.
	stop()

	// tune sets the options that accepted sockets inherit from a listener.
	tune(ln *listener)

	// open begins to accept and connects the clients that wait: the relay has
	// opened its gate, or opened it to another host. Through a gate that is paced
	// it connects none: they wait for their turn, as new clients do.
	open()

	// line describes the clients that wait for their turn, and how the connects fare
	// that began since the given time.
	line(since time.Time) lineup

	// giveTurns gives a turn to the clients that wait for one and came at the given time,
	// by the plane's clock, or before, and to most of them at most: some may have joined
	// the line since it was described. It returns how many there were.
	giveTurns(came int64, most int) int

	// apply puts settings into effect that the plane does not read by itself, and
	// begins to accept from listeners that are new, if the gate is open.
	apply()

	// leave stops accepting. If the gate is open, the clients in the queues of the
	// given listeners are admitted first, as many as there is room for. When it
	// returns, no client is let through any more to the host of a gate that has
	// been shut.
	leave(last []*listener)

	// expire resets the clients that wait for a host.
	expire()

	// cut resets every connection and returns how many there were.
	cut() int

	// fence ends, or with reset false only counts, the connections of epochs before
	// the given one. Those to the host with the number stays are carried into it. Of
	// the others, those over which no byte has passed lose their host, and their
	// clients wait for another one; Hold begins for them after the time wait.
	fence(before uint64, stays int32, reset bool, wait time.Duration) fencedCounts

	// held returns the number of clients that wait for a host.
	held() int

	// hang describes the host of the gate if it hangs.
	hang() Hang

	// measure fills in Open, NoHeader and the holds of m, and returns the counts of
	// connections, without bytes, Live and Silent, of the same moment; and what is
	// counted of each host, by its number.
	measure(m *Measured) (Stats, []MeasuredHost)

	// stats counts connections and bytes, except Live and Silent.
	stats() Stats
	hostStats() []HostStats // by the number of the host
}
