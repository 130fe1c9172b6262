//go:build !linux || portable

package relay

import (
	"testing"

	"go.uber.org/goleak"
)

// portablePlane is true where the tests of Linux-only behaviour are skipped:
// the exceptions of the portable plane are listed at goroutines.
const portablePlane = true

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
