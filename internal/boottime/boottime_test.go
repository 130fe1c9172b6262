package boottime

import (
	"testing"
	"time"
)

// Waiting takes time by this clock, too.
func TestNow(t *testing.T) {
	begin, began := Now(), time.Now()
	time.Sleep(10 * time.Millisecond)
	if passed := Now() - begin; passed < 10*time.Millisecond || passed > time.Since(began)+time.Minute {
		t.Errorf("%v have passed in 10ms", passed)
	}
}
