//go:build !linux && !darwin && !freebsd

package relay

import (
	"time"
)

// What the portable engine asks of the system.

// setOptions has nothing to set here.
func setOptions(int, time.Duration, bool) {}

// unsentBytes is not to be had here.
func unsentBytes(int) (n int, known bool) { return 0, false }

// queueLength is not to be had here.
func queueLength(int) int { return 0 }
