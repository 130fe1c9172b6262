package relay

import (
	"net/netip"
	"time"
)

// Ending describes a connection that has ended; see [Config.Ended].
type Ending struct {
	// Client is the address of the client, from its PROXY header if it sent one. It is
	// invalid for a client of a unix socket, and where the system does not know it any
	// more: for a client that reset its connection before it was accepted, or that was
	// accepted while [Config.Ended] was not set.
	Client netip.AddrPort

	// Host is the last host of the connection, as given to [Relay.Open]; empty if
	// there never was one.
	Host  string
	Epoch uint64 // that of the host

	Started  time.Time // when the client was accepted
	Duration time.Duration

	Sent     uint64 // bytes from the client that this host took
	Received uint64 // bytes from hosts that the client took

	Outcome  string // finished, reset, fenced, expired or aborted; see [Stats]
	Why      string // which event ended it, one of a fixed set
	FencedBy uint64 // the epoch that ended it, if Outcome is fenced; 0 at shutdown

	Moved    int // how often it was taken away from a host and connected again
	Replayed int // how often its opening was sent again; at most Moved
}

// reason is why a connection ended.
type reason uint8

const (
	clientClosed reason = iota // it ended its stream first, then the host did
	hostClosed
	clientReset
	hostReset
	bothReset
	clientTimeout // it acknowledged nothing for UserTimeout, or did not answer to keep-alive
	hostTimeout
	idleTimeout
	noByte // the primary has ended it twice before a byte had passed
	fencedOff
	leaseOver // see [Config.Lease]
	drainTimeout
	holdExpired
	turnedAway // the relay began to refuse clients while it waited
	clientLeft
)

// reasons holds the outcome and the words of each.
var reasons = [...]struct {
	outcome
	text string
}{
	clientClosed:  {outcomeFinished, "client closed"},
	hostClosed:    {outcomeFinished, "host closed"},
	clientReset:   {outcomeReset, "client reset"},
	hostReset:     {outcomeReset, "host reset"},
	bothReset:     {outcomeReset, "client and host reset"},
	clientTimeout: {outcomeReset, "client timeout"},
	hostTimeout:   {outcomeReset, "host timeout"},
	idleTimeout:   {outcomeReset, "idle timeout"},
	noByte:        {outcomeReset, "host ended without a byte"},
	fencedOff:     {outcomeFenced, "fenced"},
	leaseOver:     {outcomeFenced, "lease over"},
	drainTimeout:  {outcomeFenced, "drain timeout"},
	holdExpired:   {outcomeExpired, "hold expired"},
	turnedAway:    {outcomeExpired, "relay refuses clients"},
	clientLeft:    {outcomeAborted, "client left"},
}

func (r reason) outcome() outcome { return reasons[r].outcome }
func (r reason) String() string   { return reasons[r].text }

// brokenBy is the reason of a reset, by which sides have failed and which of them
// the system has given up.
func brokenBy(broken, timedOut [2]bool) reason {
	switch {
	case timedOut[client]:
		return clientTimeout
	case timedOut[host]:
		return hostTimeout
	case broken == [2]bool{true, true}:
		return bothReset
	case broken[host]:
		return hostReset
	}
	return clientReset
}
