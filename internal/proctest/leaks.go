package proctest

import (
	"sync"
	"testing"

	"go.uber.org/goleak"
)

// watched holds the tests that NoLeaks was called for.
var watched sync.Map

// NoLeaks fails the test if it leaves a goroutine behind that was not there at
// the first call.
func NoLeaks(tb testing.TB) {
	tb.Helper()
	if _, again := watched.LoadOrStore(tb, nil); again {
		return
	}
	before := goleak.IgnoreCurrent()
	tb.Cleanup(func() { goleak.VerifyNone(tb, before) })
}
