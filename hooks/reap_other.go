//go:build unix && !linux

package hooks

import (
	"context"
	"errors"
	"fmt"
)

// Reap returns an error that is errors.ErrUnsupported: a container with this
// program as its process 1 runs on Linux.
func Reap(context.Context) error {
	return fmt.Errorf("reap orphans: %w", errors.ErrUnsupported)
}
