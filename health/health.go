// Package health checks hosts and services: checks and their criteria, probes, and the
// names of hosts. Package verdict reports the results to others.
//
// A check is one request to one host. The caller decides about thresholds and about
// the primary.
package health

import (
	"context"
	"time"

	"understudy/internal/role"
)

// Phase is the part of a check in which it ended.
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
	Login    Phase = "login"
	SQL      Phase = "query"
	Role     Phase = "role"
)

// Result is the outcome of one check.
type Result struct {
	// OK is true when the check passed.
	OK bool

	// Unknown is true when the check has no result because of this program or
	// this machine (no descriptors, no ports, no memory, no more processes, no
	// processor time). It must not count against the host.
	Unknown bool

	// Phase is the phase in which the check failed.
	Phase Phase

	// Err is the reason why the check failed; nil when OK.
	Err error

	// Latency is the time that the check took.
	Latency time.Duration

	// Fact is what a role check found out; nil for other checks. The check passes (OK)
	// when the host is a primary or a replica: who asks decides which of them is usable.
	// A host that is starting fails, and is told apart by its Fact. Where the role is
	// unknown although the host answers, because the login was refused, the result is
	// Unknown.
	Fact *role.Fact
}

// Check checks host, a connection string as the operator wrote it, and returns by the
// end of ctx. It is safe for concurrent use.
type Check func(ctx context.Context, host string) Result
