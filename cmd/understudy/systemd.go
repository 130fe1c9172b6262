package main

import (
	"os"
	"strconv"
	"strings"
	"syscall"

	"understudy/config"
)

// firstPassed is the first descriptor that systemd passes, SD_LISTEN_FDS_START.
const firstPassed = 3

// passedSocket is a listening socket that systemd passed to this process.
type passedSocket struct {
	descriptor int
	name       string // FileDescriptorName=, or that of the socket unit; may be empty
}

// passedSockets returns what systemd passed to this process, nothing otherwise;
// see sd_listen_fds_with_names(3). They are not passed on to scripts.
func passedSockets() []passedSocket {
	pid, err := strconv.Atoi(os.Getenv("LISTEN_PID"))
	if err != nil || pid != os.Getpid() {
		return nil
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 1 || n > 1000 {
		return nil
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	all := make([]passedSocket, n)
	for i := range all {
		all[i].descriptor = firstPassed + i
		if len(names) == n { // otherwise nobody knows which is which
			all[i].name = names[i]
		}
		syscall.CloseOnExec(all[i].descriptor)
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name) // fails for malformed names only
	}
	return all
}

// namesOf are the names of sockets, in their order.
func namesOf(sockets []passedSocket) []string {
	var names []string
	for _, s := range sockets {
		names = append(names, s.name)
	}
	return names
}

// descriptorsOf are those of sockets that are a relay's.
func descriptorsOf(sockets []passedSocket, of config.Relay) []int {
	var list []int
	for _, i := range of.Sockets {
		list = append(list, sockets[i].descriptor)
	}
	return list
}
