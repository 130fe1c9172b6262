package relay

import (
	"fmt"
	"math/bits"
	"time"
)

// Hang describes a host that accepts clients and answers none of them.
type Hang struct {
	Epoch   uint64
	Clients int           // how many wait for an answer, longer than is usual for the host
	For     time.Duration // how long the first of them has waited

	// Replayable is true if what some of them have sent may be sent again to
	// another host, so that they lose nothing by a failover; see [Config.Replay].
	Replayable bool
}

// Hangs reports whether there is such a host.
func (h Hang) Hangs() bool { return h.Clients > 0 }

// String says what is wrong with the host.
func (h Hang) String() string {
	return fmt.Sprintf("accepts connections, and has answered none of %d clients for %.1fs", h.Clients, h.For.Seconds())
}

const (
	// HangAfter is the time for which a client waits at least before its host
	// counts as hanging, and hangTimes how many times the usual longest answer of the host.
	HangAfter = time.Second
	// hangUnknown is the time for which it waits while it is not known what is usual.
	hangUnknown = 5 * time.Second
	hangTimes   = 20

	// hangClients is the number of connections that must wait if they come from two
	// addresses or more, and hangAlone if all come from one. That may be a single
	// client that sends what no host would answer, or an application with many.
	hangClients = 3
	hangAlone   = 10

	// HangTick is the interval at which clients that wait for an answer are looked at.
	HangTick = 250 * time.Millisecond

	// hangTurns is the number of times that client and host must have answered each
	// other before an answer is expected to what the client sends; the first one is
	// always expected.
	hangTurns = 3
)

// latencies counts how long a host took to answer, or to accept, in powers of two of microseconds,
// four steps each. Only the loop touches it.
type latencies struct {
	steps [4 * 32]uint32
	total uint32
}

// step returns the step of a time.
func step(d time.Duration) int {
	us := uint64(max(d/time.Microsecond, 1))
	n := bits.Len64(us) - 1
	quarter := 0
	if n >= 2 {
		quarter = int(us>>(n-2)) & 3 //nolint:gosec // 0 to 3
	}
	return min(4*n+quarter, 4*32-1)
}

// add counts one answer. Half of what was counted is forgotten in time, so that the
// counts follow the host.
func (a *latencies) add(d time.Duration) {
	a.steps[step(d)]++
	if a.total++; a.total < 1<<20 {
		return
	}
	a.total = 0
	for k := range a.steps {
		a.steps[k] /= 2
		a.total += a.steps[k]
	}
}

// usual returns the time within which 99 of 100 answers came, or 0 if there were
// too few to say.
func (a *latencies) usual() time.Duration {
	if a.total < 100 {
		return 0
	}
	return a.within(a.total / 100)
}

// median returns the time within which half of the answers came, or 0 if there were
// too few to say.
func (a *latencies) median() time.Duration {
	if a.total < 20 {
		return 0
	}
	return a.within(a.total / 2)
}

// within returns the time within which all but so many answers came.
func (a *latencies) within(left uint32) time.Duration {
	for k := len(a.steps) - 1; k > 0; k-- {
		if a.steps[k] > left {
			n, quarter := k/4, k%4
			return time.Duration(4+quarter+1) << n / 4 * time.Microsecond
		}
		left -= a.steps[k]
	}
	return time.Microsecond
}

// hangLimit is the time for which a client of a host whose usual longest answer is
// known, or 0, waits before the host counts as hanging.
func hangLimit(usual time.Duration) time.Duration {
	if usual == 0 {
		return hangUnknown
	}
	return max(HangAfter, hangTimes*usual)
}
