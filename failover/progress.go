package failover

import "time"

// Progress is the progress of a change of primary.
type Progress struct {
	Host        string    `json:"host"`                  // the next primary
	Step        Stage     `json:"step"`                  // checking, draining, trigger, opening or verifying
	Since       time.Time `json:"since"`                 // when the step began
	Until       time.Time `json:"until,omitzero"`        // of draining: when connections that are still open are reset; of verifying: when the host must say that it is primary
	Connections uint64    `json:"connections,omitempty"` // of draining: how many are still open
	Script      string    `json:"script,omitempty"`      // of trigger: its path
}

// Stage is a step of a change of primary.
type Stage string

// The steps, in order. Only a planned change has a check of its own.
const (
	StageChecking Stage = "checking"
	StageDraining Stage = "draining"
	StageTrigger  Stage = "trigger"
	StageOpening  Stage = "opening"

	// StageVerifying comes between trigger and opening, with a role check: the host must
	// say that it is primary.
	StageVerifying Stage = "verifying"
)

// Progress returns the progress of the change of primary, nil when there is
// none. Connections is not set: only the relay knows it.
func (c *Conductor) Progress() *Progress { return c.progress.Load() }

// HostAt returns the host for which the gate was opened to a connection string;
// empty when there was none.
func (c *Conductor) HostAt(connect string) string {
	host, _ := c.opened.Load(connect)
	name, _ := host.(string)
	return name
}

// reach records that a change has reached a step.
func (c *Conductor) reach(p Progress) {
	p.Since = time.Now()
	c.progress.Store(&p)
}
