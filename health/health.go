// Package health asks hosts and services whether they are well, and answers
// for them over HTTP.
//
// A check is one question asked of one host. It decides nothing about
// thresholds or who is primary; whoever asks does.
package health

import (
	"context"
	"time"
)

// Phase is the part of a check that was under way when it ended.
type Phase string

// The phases of a check, in the order they come.
const (
	Resolve  Phase = "resolve"
	Connect  Phase = "connect"
	TLS      Phase = "tls"
	Write    Phase = "write"
	Read     Phase = "read"
	Criteria Phase = "criteria"
	Script   Phase = "script"
)

// Result is the outcome of one check.
type Result struct {
	// OK is true when the check passed.
	OK bool

	// Local is true when the check failed for a reason that lies in this
	// program or this machine (no descriptors, no ports, no memory, no more
	// processes, the check was not given processor time): it says nothing
	// about the host and must not count against it.
	Local bool

	// Phase is where the check ended when it failed.
	Phase Phase

	// Err says why the check failed; nil when OK.
	Err error

	// Latency is how long the check took.
	Latency time.Duration

	// Status is the HTTP status that came, zero when none did and for checks
	// that are not HTTP.
	Status int

	// Body is the beginning of the HTTP body that came, 1 KiB at most, for
	// logs and for people. It is as the host sent it: escape it.
	Body []byte
}

// Check asks one question of host, a connection string as the operator wrote
// it, and returns by the end of ctx. Checks may run at the same time.
type Check func(ctx context.Context, host string) Result
