package cluster

import "time"

// Event is an input of a [Machine]: a [Tick], [Wrote], [Swapped], [Changed],
// [Granted], [Fenced], [Ran], [Want], [Down], [SetLocks], [SetFact], [SetRoster],
// [SetSettings], [Force] or [Leave].
type Event interface{ event() }

// Tick reports that time has passed and nothing else happened.
type Tick struct{}

// Wrote is the answer to a [Write]. Answers may come late, twice, in any order,
// or never.
type Wrote struct {
	Sent time.Duration // that of the Write
	OK   bool          // the own key had the expected revision, and was written

	// Own is the own key after the transaction; its Revision is zero if there is
	// none.
	Own Entry

	// Record is the record in the same transaction, with the store's revision of
	// it; zero if there is none.
	Record   Record
	Revision int64

	// Members are the keys of all members in the same transaction; none if they
	// were not read.
	Members []Entry
}

// Swapped is the answer to a [Swap], like [Wrote].
type Swapped struct {
	Sent     time.Duration
	Record   Record // after the transaction
	Revision int64
}

// Changed reports that the record may have changed. It only saves time; nothing
// depends on it.
type Changed struct{}

// Granted reports that From knows the record of the [Ask] that was made at Sent
// and no newer one.
type Granted struct {
	From string
	Sent time.Duration
}

// Fenced reports that the [EndOlder] of the same Order is complete: no
// connection lives, and none is being made.
type Fenced struct{ Order uint64 }

// Ran reports that the triggers of [Run] have ended. With Failed the host must
// not become primary.
type Ran struct {
	Epoch  uint64
	Failed bool
}

// Want requests that Host becomes primary. It is forgotten when another member
// changes the primary or the locks, and when Host turns out to be unfit for a
// failover; see [Machine.Wanted] and [Machine.Unfit]. With an empty Host an earlier
// one is withdrawn.
type Want struct {
	Host          string
	Event, Reason string
	Drain         time.Duration // how long earlier connections may go on

	// Agreed is false where other members must see the present primary down too,
	// as for a failover, and true for what an operator ordered.
	Agreed bool
}

// Down replaces the list of hosts that this member sees down.
type Down struct{ Hosts []string }

// SetLocks replaces the operators' locks in the record, unless another member is first:
// then the record has its locks, and those of both have to be set.
type SetLocks struct{ Locks string }

// SetFact reports what this member has found out about the host that is open.
type SetFact struct{ Fact Fact }

// SetRoster requests a change of the roster.
type SetRoster struct{ Change Change }

// SetSettings replaces Config.Settings.
type SetSettings struct{ Settings string }

// Force declares that every member that has not acknowledged Epoch is dead. It
// is for an operator who knows that, where OnStoreLoss is Keep.
type Force struct{ Epoch uint64 }

// Leave ends the member: connections may finish for Drain, then [Left] follows.
type Leave struct{ Drain time.Duration }

func (Tick) event()        {}
func (Wrote) event()       {}
func (Swapped) event()     {}
func (Changed) event()     {}
func (Granted) event()     {}
func (Fenced) event()      {}
func (Ran) event()         {}
func (Want) event()        {}
func (Down) event()        {}
func (SetLocks) event()    {}
func (SetFact) event()     {}
func (SetRoster) event()   {}
func (SetSettings) event() {}
func (Force) event()       {}
func (Leave) event()       {}

// Action is an action for the owner of a [Machine] to carry out. Before any of
// them, the owner publishes [Machine.Lease] to the data path.
type Action interface{ action() }

// Write requests a heartbeat: in one transaction the own key is written if it
// has the revision Expect (zero for none), and the record is read and, with
// Members, the keys of all members. [Wrote] is the answer.
type Write struct {
	Sent    time.Duration
	Expect  int64
	Own     Member
	Members bool
}

// Swap requests that the record becomes Record if it has the revision Expect
// (zero for none). [Swapped] is the answer.
type Swap struct {
	Sent   time.Duration
	Expect int64
	Record Record
}

// Ask requests the question to each member of To whether it grants the lease of
// this one; see [Machine.Grants]. [Granted] is the answer of one that does.
type Ask struct {
	Sent          time.Duration
	Life          uint64 // the boot number of the member
	Version, Boot uint64 // of the record
	To            []string
}

// Open requests that clients are connected to Host, while the lease lasts.
type Open struct {
	Epoch uint64
	Host  string
}

// EndOlder requests that no client is connected any more and that all
// connections end, after Drain at the latest. [Fenced] with the same Order is
// the answer. It replaces an earlier one that is not complete.
type EndOlder struct {
	Order uint64
	Drain time.Duration

	// LeaseOver marks that it happens because the lease is over.
	LeaseOver bool
}

// Run requests that the triggers of a change are run, and answered with [Ran].
type Run struct {
	Epoch         uint64
	Host, Old     string
	Event, Reason string
}

// Stop requests that the triggers that run are killed; they need no [Ran].
type Stop struct{ Epoch uint64 }

// Left reports that the member has left: the process may end.
type Left struct{}

func (Write) action()    {}
func (Swap) action()     {}
func (Ask) action()      {}
func (Open) action()     {}
func (EndOlder) action() {}
func (Run) action()      {}
func (Stop) action()     {}
func (Left) action()     {}
