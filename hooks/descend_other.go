//go:build unix && !linux

package hooks

import (
	"errors"
	"fmt"
	"time"
)

// Adopt returns an error that is errors.ErrUnsupported: on these systems a process
// that leaves the process group of its script is not found.
func Adopt() error { return fmt.Errorf("adopt orphans: %w", errors.ErrUnsupported) }

func endDescendants(string, time.Duration) {}

// KillAll does nothing: on these systems the children cannot be listed, and scripts
// end by their timeout.
func KillAll(time.Duration) {}
