package relay

// EngineConfig configures an [Engine]. The zero value is one loop that does not
// poll.
type EngineConfig struct {
	// Loops is the most event loops that the engine may have, each a thread. It
	// begins with one, and others start when that one has no room and a processor
	// is idle. Zero is one. The portable plane has no loops.
	Loops int

	// BusyPoll lets a loop poll for up to 200 µs before it sleeps, if that found
	// events before: it lowers the latency of small messages when a processor is
	// free. Ignored by the portable plane.
	BusyPoll bool

	// Rest gives the Go scheduler one processor (GOMAXPROCS of 1) while the relays had no
	// clients for some seconds: it lowers the processor time of an idle program. It is for
	// programs that have one engine and nothing else to do that needs several processors.
	// Ignored by the portable plane.
	Rest bool
}
