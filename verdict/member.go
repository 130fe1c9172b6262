package verdict

import "errors"

// ErrNoPrimary is returned by the State of a relay without a primary, or wrapped
// with more detail. Its text may be public; the detail may not.
var ErrNoPrimary = errors.New("no primary")

// ErrNoStandby is returned by the State of a relay without a host that could
// replace the primary, where that is to count. Its text may be public as well.
var ErrNoStandby = errors.New("no standby")

// Member is a relay or a probe that counts in a verdict.
type Member struct {
	// Name is its name in answers and records.
	Name string

	// Kind is "relay" or "probe", in answers and records. May be empty.
	Kind string

	// State returns nil when the member is up, or why it is not. It must return
	// at once; it is called for every request. Required.
	State func() error

	// Must requires the member to pass whatever the quorum is. Ignore only
	// reports the member. Both together are an error.
	Must, Ignore bool
}
