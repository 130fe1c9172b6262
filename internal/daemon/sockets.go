package daemon

import (
	"fmt"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"

	"understudy/config"
)

// Socket is a listening socket that systemd passed to this process.
type Socket struct {
	Descriptor int
	Name       string // FileDescriptorName=, or that of the socket unit; may be empty
}

// PassedSockets returns the sockets that systemd passed to this process, if
// any; see sd_listen_fds_with_names(3). Scripts do not inherit them. The caller
// owns the descriptors. Called again, it returns nothing.
func PassedSockets() ([]Socket, error) {
	var all []Socket
	for _, file := range activation.Files(true) {
		// The file would close its descriptor when it is collected, and a
		// relay keeps the number: it gets a duplicate.
		fd, err := syscall.Dup(int(file.Fd()))
		_ = file.Close() // the duplicate keeps the socket open
		if err != nil {
			return all, fmt.Errorf("socket %s passed by systemd: %w", file.Name(), err)
		}
		syscall.CloseOnExec(fd)
		s := Socket{Descriptor: fd, Name: file.Name()}
		if strings.HasPrefix(s.Name, "LISTEN_FD_") {
			s.Name = "" // the library's name for a socket without a name
		}
		all = append(all, s)
	}
	return all, nil
}

// SocketNames returns the names of sockets, in their order.
func SocketNames(sockets []Socket) []string {
	var names []string
	for _, s := range sockets {
		names = append(names, s.Name)
	}
	return names
}

// descriptorsOf returns the descriptors of the sockets for a relay.
func descriptorsOf(sockets []Socket, of config.Relay) []int {
	var list []int
	for _, i := range of.Sockets {
		list = append(list, sockets[i].Descriptor)
	}
	return list
}
