//go:build !linux || portable

package relay

import (
	"testing"

	"go.uber.org/goleak"
)

// portableEngine is true where what only the Linux engine can do is not tested:
// what the portable one cannot have is listed at its engine type.
const portableEngine = true

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
