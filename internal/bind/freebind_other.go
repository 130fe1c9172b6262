//go:build !linux

package bind

import (
	"errors"
	"fmt"
)

// setFreebind returns an error: only Linux supports it. See freebind_linux.go.
func setFreebind(_, _ int) error { return fmt.Errorf("freebind: %w", errors.ErrUnsupported) }
