//go:build !linux

package daemon

import "math"

// userTasks returns [math.MaxInt64]: a limit of tasks is not known here.
func userTasks() int64 { return math.MaxInt64 }
