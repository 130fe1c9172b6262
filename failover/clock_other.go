//go:build !linux

package failover

import "time"

// sinceBoot returns no identifier: the time between two processes is measured
// by the wall clock here.
func sinceBoot() (boot string, uptime time.Duration) { return "", 0 }
