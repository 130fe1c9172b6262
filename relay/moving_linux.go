//go:build moving && !portable

package relay

// movesAlways has every engine run several loops, and move a connection from one
// to another after each batch of events. It is for tests.
const movesAlways = true
