//go:build portable || !linux

package relay

// engine is for the relays of a test.
// keepsOrder is false where the clients of one turn are connected at the same time.
const keepsOrder = false

func engine(int) *Engine { return NewEngine(EngineConfig{}) }
