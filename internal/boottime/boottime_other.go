//go:build !linux

package boottime

import "time"

// Counts tells whether the clock of this system counts while the machine sleeps.
const Counts = false

var start = time.Now()

// Now returns the time since the start of the process. Only differences count.
func Now() time.Duration { return time.Since(start) }
