package hooks

import "strconv"

// Event is why a script runs.
type Event string

// The events of a relay.
const (
	EventStart      Event = "start"      // the first election of the program
	EventFailover   Event = "failover"   // a change nobody asked for
	EventSwitchover Event = "switchover" // a change an operator asked for
	EventFailback   Event = "failback"   // the return to a preferred host
	EventReselect   Event = "reselect"   // the same host again
)

// Occasion is what a script is told in its environment.
type Occasion struct {
	// Event is why the script runs.
	Event Event

	// Relay is the relay's name.
	Relay string

	// Epoch is the epoch that begins.
	Epoch uint64

	// Old and New are connection strings as the operator wrote them. Old is
	// empty at start.
	Old, New string

	// Reason says why in one line. What is not printable is escaped.
	Reason string

	// DryRun is true in a drill.
	DryRun bool
}

// occasionNames are the variables of Occasion. One that was inherited must not
// be mistaken for one that was set.
var occasionNames = []string{
	"UNDERSTUDY_EVENT", "UNDERSTUDY_RELAY", "UNDERSTUDY_EPOCH", "UNDERSTUDY_OLD",
	"UNDERSTUDY_NEW", "UNDERSTUDY_REASON", "UNDERSTUDY_DRY_RUN",
}

// Env returns the variables for [Script.Env]. UNDERSTUDY_DRY_RUN is among them
// only in a drill.
func (o Occasion) Env() []string {
	env := []string{
		"UNDERSTUDY_EVENT=" + string(o.Event),
		"UNDERSTUDY_RELAY=" + o.Relay,
		"UNDERSTUDY_EPOCH=" + strconv.FormatUint(o.Epoch, 10),
		"UNDERSTUDY_OLD=" + o.Old,
		"UNDERSTUDY_NEW=" + o.New,
		"UNDERSTUDY_REASON=" + escape([]byte(o.Reason)),
	}
	if o.DryRun {
		env = append(env, "UNDERSTUDY_DRY_RUN=1")
	}
	return env
}
