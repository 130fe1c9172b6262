package threads

import (
	"os"
	"testing"
)

// The reserved threads exist, and are created once.
func TestReserve(t *testing.T) {
	count := func() int {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(tasks)
	}
	before := count()
	Reserve(before + 20)
	made := count()
	if made < before+20 {
		t.Errorf("%d threads, want %d or more", made, before+20)
	}
	Reserve(before + 20)
	Reserve(3)
	if now := count(); now > made+3 { // the runtime may create a few
		t.Errorf("%d threads, then %d", made, now)
	}
}
