package main

import (
	"os"
	"strconv"
	"syscall"
)

// firstPassed is the first descriptor that systemd passes, SD_LISTEN_FDS_START.
const firstPassed = 3

// passedSockets returns the listening sockets that systemd passed to this
// process, none otherwise; see sd_listen_fds(3). They are not passed on to
// scripts.
func passedSockets() []int {
	pid, err := strconv.Atoi(os.Getenv("LISTEN_PID"))
	if err != nil || pid != os.Getpid() {
		return nil
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 1 || n > 1000 {
		return nil
	}
	fds := make([]int, n)
	for i := range fds {
		fds[i] = firstPassed + i
		syscall.CloseOnExec(fds[i])
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name) // fails for malformed names only
	}
	return fds
}
