//go:build !linux && !darwin && !freebsd

package relay

import (
	"time"
)

// The system-specific socket options and queries of the portable plane.

// setOptions has nothing to set here.
func setOptions(int, time.Duration, bool) {}

// unsentBytes is not available here.
func unsentBytes(int) (n int, known bool) { return 0, false }
