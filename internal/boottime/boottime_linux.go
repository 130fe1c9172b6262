package boottime

import (
	"time"

	"golang.org/x/sys/unix"
)

// Counts tells whether the clock of this system counts while the machine sleeps.
const Counts = true

// Now returns the time since the machine was started. Only differences count.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("boottime: clock_gettime: " + err.Error()) // Linux has it since 2.6.39
	}
	return time.Duration(ts.Nano())
}
