package selector

import "time"

// Event is what a Machine is told: a [Tick], a [Result], an [Ended], a
// [Suspicion], a [Switched], a [Move], [Locks] or [Rules].
type Event interface{ event() }

// Tick says that time has passed and nothing else happened.
type Tick struct{}

// Result is the outcome of a check that [StartCheck] asked for. Each check has
// exactly one; it may come late, and in any order.
type Result struct {
	ID uint64

	OK bool

	// Local says that the check failed for a reason that lies on this side: it
	// counts neither for nor against the host.
	Local bool

	// Running says that the check is not over although its outcome is known: a
	// script that ran out of time is still being ended. [Ended] follows.
	Running bool

	// Phase is how far the check came, for display.
	Phase string

	// Err says why the check failed; nil when OK.
	Err error

	// Latency is how long the check took, for display.
	Latency time.Duration
}

// Ended says that a check whose [Result] said Running is over now. A script is
// not started again before.
type Ended struct{ ID uint64 }

// Suspicion says that a client's connect to the primary of an epoch failed or
// is slow. It is no evidence, but a reason to check at once.
type Suspicion struct {
	Epoch uint64
	Err   error
}

// Switched says that what a [Switch] asked for is done. With an Err the host
// must not become primary: it is put aside and the next one is tried.
type Switched struct {
	Epoch uint64
	Err   error
}

// Move asks to make Host primary on purpose, or, with an empty Host, the first
// other one that is not down. The host is asked now; if it does not pass, or cannot
// be asked, the answer is [Declined] and nothing changes. Otherwise it is a
// [Switch] of the kind [Switchover], and if that fails the old primary comes
// first in the election that follows.
type Move struct {
	Host   string
	Reason string // one line

	// Drain is how long earlier connections may take to finish, which clients
	// wait for beyond Hold.
	Drain time.Duration
}

// Locks are the operator's, in place of those before.
type Locks struct {
	// Drained names hosts that are not elected. A primary that is drained
	// stays until it is lost.
	Drained []string

	// Frozen forbids every change that nobody asked for: a primary that is
	// down stays, and where there is none only the last one is elected.
	Frozen bool
}

// Rules are a [Config] in place of the one before, which is as valid; its
// Epoch, Prefer and Locks are not looked at. What is known of a host that is in
// both stays, as far as it is asked the same questions, and so does the primary;
// one that is no host any more is lost. It must not come between a [Switch] and
// its [Switched].
type Rules Config

func (Tick) event()      {}
func (Rules) event()     {}
func (Move) event()      {}
func (Locks) event()     {}
func (Result) event()    {}
func (Ended) event()     {}
func (Suspicion) event() {}
func (Switched) event()  {}

// Action is what a Machine wants done, or a fact worth a log record.
type Action interface{ action() }

// StartCheck asks for one check of one host, which may be asked while others
// of its kind are in flight. Its [Result] carries the same ID.
type StartCheck struct {
	ID    uint64
	Host  string
	Check int // index in Config.Checks
}

// Hold asks to keep clients waiting.
type Hold struct{}

// Refuse asks to send away those who wait and those who come.
type Refuse struct{}

// Switch asks to end the connections of earlier epochs and run the triggers.
// Clients are kept out already. It is answered with [Switched], and there is
// no other Switch before that.
type Switch struct {
	Epoch  uint64
	Host   string // the host elected
	Old    string // the host elected before; empty at the start
	Kind   Kind
	Reason string // one line
}

// Open asks to let clients through to Host.
type Open struct {
	Epoch uint64
	Host  string
}

// HostChanged is the fact that a host's state changed.
type HostChanged struct {
	Host     string
	From, To State
	Check    string // the check that decided it
	Err      error  // why that check failed; nil when it passed
}

// Suspected is the fact that a host that was up gave a reason for doubt, and
// is checked at the fast interval until it is cleared or down. A check that
// is suspected again and again is told once in ten seconds.
type Suspected struct {
	Host  string
	Check string
	Err   error
}

// Cleared is the fact that a check passed after [Suspected].
type Cleared struct {
	Host  string
	Check string
}

// Lost is the fact that the primary is down.
type Lost struct {
	Host   string
	Epoch  uint64
	Reason string        // one line
	After  time.Duration // since the first doubt; zero if one result decided
}

// Stayed is the fact that the primary is down and stays primary, because the
// relay is frozen.
type Stayed struct {
	Host   string
	Reason string // one line
}

// RoundFailed is the fact that no host is usable. It is told once for each
// step of the back-off.
type RoundFailed struct {
	Wait  time.Duration // until the next round, unless a host comes back before
	Hosts []Refusal     // in the operator's order
}

// Refusal says why one host was not chosen.
type Refusal struct{ Host, Reason string }

// Declined is the fact that a planned change did not happen, because the host
// did not pass its checks or may not be elected. The primary stays.
type Declined struct {
	Host   string // empty when a Move named none
	Kind   Kind
	Reason string
}

// Stalled is the fact that Step came much later than Wake asked for, and that
// every host is asked again because of it.
type Stalled struct{ For time.Duration }

func (StartCheck) action()  {}
func (Hold) action()        {}
func (Refuse) action()      {}
func (Switch) action()      {}
func (Open) action()        {}
func (HostChanged) action() {}
func (Suspected) action()   {}
func (Cleared) action()     {}
func (Lost) action()        {}
func (Stayed) action()      {}
func (RoundFailed) action() {}
func (Declined) action()    {}
func (Stalled) action()     {}

// Kind says what an election is.
type Kind string

// The kinds of election.
const (
	Start      Kind = "start"      // the first one
	Failover   Kind = "failover"   // nobody asked for it
	Switchover Kind = "switchover" // an operator asked for it
	Failback   Kind = "failback"   // the return to a preferred host
	Reselect   Kind = "reselect"   // the same host again
)
