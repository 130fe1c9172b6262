package daemon

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// userTasks returns how many more tasks (processes and threads) the user of
// this process may have (RLIMIT_NPROC), or [math.MaxInt64] when there is no
// limit, as for root; see getrlimit(2). It counts the tasks in /proc.
func userTasks() int64 {
	var limit unix.Rlimit
	if os.Getuid() == 0 || unix.Getrlimit(unix.RLIMIT_NPROC, &limit) != nil || limit.Cur >= math.MaxInt64 {
		return math.MaxInt64
	}
	left := int64(limit.Cur)
	mine := strconv.Itoa(os.Getuid())
	paths, _ := filepath.Glob("/proc/[0-9]*/status") // the pattern is valid
	for _, path := range paths {
		text, err := os.ReadFile(path) //nolint:gosec // a file of the kernel
		if err != nil {
			continue // it has ended
		}
		owner, tasks := "", int64(0)
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			fields := strings.Fields(value)
			if len(fields) == 0 {
				continue
			}
			switch name {
			case "Uid":
				owner = fields[0]
			case "Threads":
				tasks, _ = strconv.ParseInt(fields[0], 10, 64)
			}
		}
		if owner == mine {
			left -= tasks
		}
	}
	return max(left, 0)
}
