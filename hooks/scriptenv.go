package hooks

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"understudy/internal/role"
	"understudy/internal/safetext"
)

// Event is the reason why a script runs.
type Event string

// The events of a relay.
const (
	EventStart      Event = "start"      // the first election of the program
	EventFailover   Event = "failover"   // a change after a failure
	EventSwitchover Event = "switchover" // a change that an operator ordered
	EventFailback   Event = "failback"   // the return to a preferred host
	EventReselect   Event = "reselect"   // the same host again
	EventMoved      Event = "moved"      // the same host at another address
)

// ScriptEnv holds the values that a script gets in its environment.
type ScriptEnv struct {
	// Event is the reason why the script runs.
	Event Event

	// Relay is the relay's name.
	Relay string

	// Epoch is the number of the epoch that starts.
	Epoch uint64

	// Old and New are connection strings as the operator wrote them. Old is
	// empty at start.
	Old, New string

	// Address and OldAddress are the addresses of New and Old where these are
	// names; zero where they are not.
	Address, OldAddress netip.Addr

	// Reason describes the event in one line. Characters that are not printable
	// are escaped.
	Reason string

	// Fact is what New said of itself last, and Lag how far it was behind Old. Nil and
	// zero without a role check.
	Fact *role.Fact
	Lag  role.Lag

	// DryRun is true in a drill.
	DryRun bool
}

// scriptEnvNames are the variables of ScriptEnv. Inherited ones are removed, so that
// a script cannot read an old value.
var scriptEnvNames = []string{
	"UNDERSTUDY_EVENT", "UNDERSTUDY_RELAY", "UNDERSTUDY_EPOCH", "UNDERSTUDY_OLD",
	"UNDERSTUDY_NEW", "UNDERSTUDY_REASON", "UNDERSTUDY_DRY_RUN",
	"UNDERSTUDY_ADDRESS", "UNDERSTUDY_OLD_ADDRESS",
	"UNDERSTUDY_ROLE", "UNDERSTUDY_TERM", "UNDERSTUDY_IDENTITY", "UNDERSTUDY_POSITION",
	"UNDERSTUDY_LAG_BYTES", "UNDERSTUDY_LAG_SECONDS", markVariable,
}

// markVariable is the variable that identifies the run of a script to which a
// process belongs. Its value is markPrefix and a number, unique on this machine.
const markVariable = "UNDERSTUDY_SCRIPT"

var (
	markPrefix = fmt.Sprintf("%d.%x.", os.Getpid(), time.Now().UnixNano())
	markNumber atomic.Uint64
)

// newMark returns the mark of one run. No mark is a prefix of another one.
func newMark() string { return fmt.Sprintf("%s%d.", markPrefix, markNumber.Add(1)) }

// Env returns the variables for [Script.Env]. UNDERSTUDY_DRY_RUN is among them
// only in a drill, UNDERSTUDY_ADDRESS and UNDERSTUDY_OLD_ADDRESS only for hosts
// that are names, and those of a role check only as far as they are known.
func (o ScriptEnv) Env() []string {
	env := []string{
		"UNDERSTUDY_EVENT=" + string(o.Event),
		"UNDERSTUDY_RELAY=" + o.Relay,
		"UNDERSTUDY_EPOCH=" + strconv.FormatUint(o.Epoch, 10),
		"UNDERSTUDY_OLD=" + o.Old,
		"UNDERSTUDY_NEW=" + o.New,
		"UNDERSTUDY_REASON=" + safetext.Escape(o.Reason),
	}
	if o.Address.IsValid() {
		env = append(env, "UNDERSTUDY_ADDRESS="+o.Address.String())
	}
	if o.Old != "" && o.OldAddress.IsValid() {
		env = append(env, "UNDERSTUDY_OLD_ADDRESS="+o.OldAddress.String())
	}
	env = append(env, o.facts()...)
	if o.DryRun {
		env = append(env, "UNDERSTUDY_DRY_RUN=1")
	}
	return env
}

// facts returns the variables of a role check that are known.
func (o ScriptEnv) facts() (env []string) {
	if f := o.Fact; f != nil {
		env = append(env, "UNDERSTUDY_ROLE="+f.Role.String())
		if f.Term > 0 {
			env = append(env, "UNDERSTUDY_TERM="+strconv.FormatUint(f.Term, 10))
		}
		if f.Identity != "" {
			env = append(env, "UNDERSTUDY_IDENTITY="+safetext.Escape(f.Identity))
		}
		if f.Position > 0 {
			env = append(env, "UNDERSTUDY_POSITION="+strconv.FormatUint(f.Position, 10))
		}
	}
	if o.Lag.BytesKnown {
		env = append(env, "UNDERSTUDY_LAG_BYTES="+strconv.FormatUint(o.Lag.Bytes, 10))
	}
	if o.Lag.TimeKnown {
		env = append(env, "UNDERSTUDY_LAG_SECONDS="+strconv.FormatFloat(o.Lag.Time.Seconds(), 'f', 1, 64))
	}
	return env
}
