//go:build !linux

package tcp

import "time"

// SetUserTimeout does nothing; see tcp_linux.go.
func SetUserTimeout(int, time.Duration) {}
