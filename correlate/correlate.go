// Package correlate compares what the relays of a process see of their hosts.
// When all hosts stop answering at the same time, the likely cause is this machine
// and not a host. And relays whose hosts are the same machines should have the same
// primary.
//
// A [Detector] gets the statuses and the time, and returns what has changed. It only
// reports: no relay acts on it.
package correlate

import (
	"time"

	"understudy/failover"
)

// Outage is an event in which all hosts of all relays stopped answering at the same
// time. It lasts until one answers.
type Outage struct {
	Since         time.Time `json:"since"`             // when the first check failed
	Hosts         int       `json:"hosts"`             // that stopped answering
	Relays        int       `json:"relays"`            // whose hosts they are
	WithinSeconds float64   `json:"within_seconds"`    // from the first to the last
	Failure       string    `json:"failure"`           // in which way: timeout, unreachable, firewall, refused, reset, resolve or the name of a check
	Text          string    `json:"text"`              // one sentence, with the likely cause
	Network       []string  `json:"network,omitempty"` // the state of this machine's network at that time
}

// Disagreement is a state in which relays whose hosts are the same machines have had
// different primaries for some seconds.
type Disagreement struct {
	Since     time.Time        `json:"since"`     // when it was noticed
	Primaries []PrimaryOfRelay `json:"primaries"` // of each of the relays
	Text      string           `json:"text"`      // one sentence
}

// PrimaryOfRelay is the primary of one relay.
type PrimaryOfRelay struct {
	Relay string `json:"relay"` // its name
	Host  string `json:"host"`  // as in its settings
}

// Findings are the present outage and disagreements. Read only.
type Findings struct {
	Outage        *Outage // nil when there is none
	Disagreements []Disagreement
}

// Change is something that began or ended, for the log.
type Change struct {
	Begun  bool   // otherwise it ended
	Text   string // one sentence
	Fields []any  // pairs of a key and a value
}

// Detector finds outages and disagreements. The zero Detector is ready to use.
// It is not safe for concurrent use.
type Detector struct {
	// Network returns the state of this machine's network when an outage begins:
	// problems that may be its cause, and facts against them. May be nil.
	Network func() (problems, facts []string)

	answered map[place]bool // hosts that were up at some time
	outage   *outage        // nil when there is none
	disputes map[string]Disagreement
}

// place is a host of a relay.
type place struct{ relay, host string }

// Step processes the statuses of all relays and returns what has changed. The caller
// calls it after a change in one of them, and at next at the latest; a zero next
// means that no time is due.
func (d *Detector) Step(now time.Time, relays []failover.Status) (changes []Change, next time.Time) {
	changes = d.findOutage(now, relays)
	more, next := d.findDisputes(now, relays)
	return append(changes, more...), next
}

// Findings returns the findings of the last Step.
func (d *Detector) Findings() Findings {
	var f Findings
	if d.outage != nil {
		f.Outage = &d.outage.Outage
	}
	for _, key := range sorted(d.disputes) {
		f.Disagreements = append(f.Disagreements, d.disputes[key])
	}
	return f
}
