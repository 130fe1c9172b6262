package health

import "errors"

// ErrNoPrimary is what the State of a relay without a primary returns: it is
// the one reason that strangers may be told.
var ErrNoPrimary = errors.New("no primary")

// Member is something with a state of its own that counts in a verdict: a
// relay, or a probe.
type Member struct {
	// Name is what answers and records call it.
	Name string

	// Kind says what it is, "relay" or "probe", in answers and records. May
	// be empty.
	Kind string

	// State returns nil when it is well, or why not. It must return at once;
	// it is called for every request. Required.
	State func() error

	// Must has it pass whatever the quorum says; Ignore has it only reported.
	// Both is an error.
	Must, Ignore bool
}
