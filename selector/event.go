package selector

import (
	"net/netip"
	"time"

	"understudy/internal/role"
)

// Event is an input of a Machine: a [Tick], a [Result], an [Ended], a
// [Suspicion], a [CheckNow], a [Switched], a [Move], [Relocated], [Locks],
// [Agreed] or [Reconfigure].
type Event interface{ event() }

// Tick reports that time has passed and nothing else happened.
type Tick struct{}

// Result is the outcome of a check that [StartCheck] requested. Each check has
// exactly one. Results may come late and in any order.
type Result struct {
	ID uint64

	OK bool

	// Unknown marks a check that could not determine the state of the host: it
	// counts neither for nor against the host.
	Unknown bool

	// Addr is the address that the first check of a host name was about: where
	// it passed, if it did. Zero for hosts that are not names.
	Addr netip.Addr

	// NoAddress marks a host name that has no address or could not be resolved.
	// The state of the host is then unknown, unless its address is pinned.
	NoAddress bool

	// Final marks a failure at an address that will not be used again: the
	// check is down without Fall failures.
	Final bool

	// Running marks a check that has not ended although its outcome is known: a
	// script that exceeded its timeout is still being ended. [Ended] follows.
	Running bool

	// Phase is the last phase that the check reached, for display.
	Phase string

	// Err is the reason of a failure; nil when OK.
	Err error

	// Latency is the time that the check took, for display.
	Latency time.Duration

	// Fact is what a role check found out; nil for other checks, and when it found out
	// nothing. With a Fact, OK says only that the host has answered.
	Fact *role.Fact

	excused bool // a failure that is none for the flap guard
}

// Ended reports that a check whose [Result] had Running set has ended. A script
// is not started again before that.
type Ended struct{ ID uint64 }

// Suspicion reports that a client's connect to the primary of an epoch failed
// or is slow. It proves nothing, but is a reason to check at once.
type Suspicion struct {
	Epoch uint64
	Err   error
}

// CheckNow requests a check of the primary of an epoch now instead of when the
// next one is due: an event happened that a failure of the host would explain,
// but other causes would as well. It is no suspicion.
type CheckNow struct{ Epoch uint64 }

// Switched reports that a [Switch] is complete. With an Err the host must not
// become primary: it is rejected and the next one is tried.
type Switched struct {
	Epoch uint64
	Err   error
}

// Move requests that Host becomes primary or, with an empty Host, the first
// other one that is not down. The host is checked at once. If it does not pass,
// or cannot be checked, [Declined] is returned and nothing changes. Otherwise a
// [Switch] of the kind [Switchover] follows, and if that fails the old primary
// comes first in the election that follows.
type Move struct {
	Host   string
	Reason string // one line

	// Drain is the longest time that earlier connections may take to finish. Clients wait
	// for that time in addition to Hold.
	Drain time.Duration
}

// Locks replace the operator's earlier locks.
type Locks struct {
	// Drained names hosts that are not elected. A primary that is drained
	// stays until it is lost.
	Drained []string

	// Frozen forbids every automatic change: a primary that is down stays, and
	// where there is none only the last one is elected.
	Frozen bool
}

// Unfit replaces the list of hosts that other machines, see [Config.Shared], see down: one
// of them is elected only where no other host is usable.
type Unfit struct{ Hosts []string }

// Reconfigure replaces the [Config]. The new one must be valid as for [New]; Epoch,
// Prefer and Locks are ignored. The state of a host that is in both is kept for
// every check that stays the same, and so is the primary; a primary that is no
// longer a host is lost. Reconfigure must not come between a [Switch] and its
// [Switched].
type Reconfigure Config

func (Tick) event()        {}
func (Reconfigure) event() {}
func (Move) event()        {}
func (Locks) event()       {}
func (Unfit) event()       {}
func (Result) event()      {}
func (Ended) event()       {}
func (Suspicion) event()   {}
func (CheckNow) event()    {}
func (Switched) event()    {}

// Action is an action for the owner of a Machine to carry out, or a fact to log.
type Action interface{ action() }

// StartCheck requests one check of one host. Checks of the same kind may still
// be in flight. Its [Result] carries the same ID.
type StartCheck struct {
	ID    uint64
	Host  string
	Check int // index in Config.Checks

	// Addr is the host's address; zero for none, and for a host that is not a
	// name. The first check may try other addresses of the name after this one,
	// unless it is Pinned. With Next it tries the address after Addr first.
	Addr   netip.Addr
	Pinned bool
	Next   bool

	// Since is when the check was due, or now if that is some time ago or the
	// reason is something that has just happened. The result of the same check of
	// the same host for another machine serves as well if it began at Since or
	// later.
	Since time.Time
}

// Hold requests that clients wait.
type Hold struct{}

// Refuse requests that waiting and new clients are refused.
type Refuse struct{}

// Switch requests that connections of earlier epochs are ended and the triggers
// are run. Clients are already on hold or refused. The owner replies with
// [Switched]; no other Switch comes before that.
type Switch struct {
	Epoch  uint64
	Host   string // the host elected
	Old    string // the host elected before; empty at the start
	Kind   Kind
	Reason string // one line

	Addr, OldAddr netip.Addr // their addresses; zero where they are not names

	Fact *role.Fact // the last one of Host; nil without a role check
	Loss Loss       // what Host lacks of the data of Old; zero where it is not known
}

// Open requests that clients are connected to Host.
type Open struct {
	Epoch uint64
	Host  string
	Addr  netip.Addr // zero where the host is not a name
}

// HostChanged reports that a host's state changed.
type HostChanged struct {
	Host     string
	From, To State
	Check    string // the check that decided it
	Err      error  // why that check failed; nil when it passed
}

// Suspected reports that a check of a host that was up gave reason for doubt.
// The host is checked at the fast interval until the check passes or is down. A
// check that is suspected repeatedly is reported once in ten seconds.
type Suspected struct {
	Host  string
	Check string
	Err   error
}

// Cleared reports that a check passed after [Suspected].
type Cleared struct {
	Host  string
	Check string
}

// CheckUnknown reports that a script or a role check could not determine the state of
// a host. It does not count. It is reported when that begins and when the reason
// changes, at most once in ten seconds.
type CheckUnknown struct {
	Host  string
	Check string
	Err   error
}

// CheckKnown reports that such a check had a result again after [CheckUnknown].
type CheckKnown struct {
	Host  string
	Check string
}

// Lost reports that the primary is down.
type Lost struct {
	Host   string
	Epoch  uint64
	Reason string        // one line
	After  time.Duration // since the first doubt; zero if one result decided
}

// Stayed reports that the primary is down and stays primary, because the relay
// is frozen.
type Stayed struct {
	Host   string
	Reason string // one line
}

// RoundFailed reports that no host is usable. It is reported once for each step
// of the back-off; the hosts are checked meanwhile.
type RoundFailed struct {
	Wait  time.Duration // until the next report, unless a host comes back before
	Hosts []Refusal     // in the operator's order
}

// Awaited reports that a host passes after a time in which none was usable, and
// that the election waits for the last primary.
type Awaited struct {
	Host   string        // the last primary
	Usable string        // the host that passes
	For    time.Duration // at most
}

// Refusal is why one host was not chosen.
type Refusal struct{ Host, Reason string }

// Declined reports that a planned change did not happen, because the host did
// not pass its checks or may not be elected. The primary stays.
type Declined struct {
	Host   string // empty when a Move named none
	Kind   Kind
	Reason string
}

// Stalled reports that Step came much later than Wake required, and that every
// host is checked again because of it.
type Stalled struct{ For time.Duration }

func (StartCheck) action()   {}
func (Hold) action()         {}
func (Refuse) action()       {}
func (Switch) action()       {}
func (Open) action()         {}
func (HostChanged) action()  {}
func (Suspected) action()    {}
func (Cleared) action()      {}
func (CheckUnknown) action() {}
func (CheckKnown) action()   {}
func (Lost) action()         {}
func (Stayed) action()       {}
func (RoundFailed) action()  {}
func (Declined) action()     {}
func (Awaited) action()      {}
func (Stalled) action()      {}

// Kind is the kind of an election.
type Kind string

// The kinds of election.
const (
	Start      Kind = "start"      // the first one
	Failover   Kind = "failover"   // automatic, because the primary was lost
	Switchover Kind = "switchover" // requested by an operator
	Failback   Kind = "failback"   // the return to a preferred host
	Reselect   Kind = "reselect"   // the same host again
	Moved      Kind = "moved"      // the same host at another address
)
