//go:build !moving && !portable

package relay

const movesAlways = false
