//go:build !linux && !freebsd

package bind

// countsQueue reports whether the system says how many clients wait to be accepted.
const countsQueue = false

// queueLength returns 0: the number is not available here.
func queueLength(int) int { return 0 }
