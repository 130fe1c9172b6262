//go:build !linux || portable

package relay

import "context"

// tries makes no attempts: see canary_linux.go.
type tries struct{}

func (*tries) served()  {}
func (*tries) dropped() {}
func (*tries) end()     {}

// TryCanary returns false: attempts of a canary are made by [Relay.DialCanary].
func (*Relay) TryCanary(context.Context, func(error)) bool { return false }
