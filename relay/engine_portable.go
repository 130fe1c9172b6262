//go:build portable || !linux

package relay

import "time"

// Engine has nothing to share on this system: each connection has goroutines of
// its own.
type Engine struct{}

// Busy returns nothing.
func (*Engine) Busy() []time.Duration { return nil }

// NewEngine returns an engine for the relays of a process; see [Config.Engine].
func NewEngine(EngineConfig) *Engine { return &Engine{} }
