package fault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

// dial returns the error of net for a connect that fails with no.
func dial(network string, no syscall.Errno) error {
	return &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", no)}
}

func TestLocal(t *testing.T) {
	for _, tt := range []struct {
		why  string
		err  error
		want bool
	}{
		{"no failure", nil, false},
		{"this process has no descriptor left", dial("tcp", syscall.EMFILE), true},
		{"the system has no descriptor left", dial("tcp", syscall.ENFILE), true},
		{"the kernel has no memory for a socket", dial("tcp", syscall.ENOMEM), true},
		{"the kernel has no memory for a socket's buffers", dial("tcp", syscall.ENOBUFS), true},
		{"no epoll watch is left, as net reports it", &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ENOSPC}, true},
		{"no epoll watch is left, as the relay reports it", os.NewSyscallError("epoll_ctl", syscall.ENOSPC), true},
		{"no local port is left", dial("tcp", syscall.EADDRNOTAVAIL), true},
		{"the source address is not on this machine", &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("bind", syscall.EADDRNOTAVAIL)}, true},
		{"no local port is left of the source address", &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}, true},
		{"no process is left", os.NewSyscallError("fork/exec", syscall.EAGAIN), true},
		{"no room in the routing cache", dial("tcp", syscall.EAGAIN), true},
		{"one of two addresses failed here", fmt.Errorf("%w; %w", dial("tcp", syscall.ECONNREFUSED), dial("tcp", syscall.EMFILE)), true},
		{"the answer is not wanted any more", fmt.Errorf("check: %w", context.Canceled), true},

		{"the queue of the host's unix socket is full", dial("unix", syscall.EAGAIN), false},
		{"the host refused", dial("tcp", syscall.ECONNREFUSED), false},
		{"the host reset", &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, false},
		{"the host is silent", dial("tcp", syscall.ETIMEDOUT), false},
		{"the host is too slow", context.DeadlineExceeded, false},
		{"the host's network has no such host", dial("tcp", syscall.EHOSTUNREACH), false},
		{"there is no route, which lasts", dial("tcp", syscall.ENETUNREACH), false},
		{"the network is down, which lasts", dial("tcp", syscall.ENETDOWN), false},
		{"a firewall here forbids it, which lasts", dial("tcp", syscall.EPERM), false},
		{"a policy here forbids it, which lasts", dial("tcp", syscall.EACCES), false},
	} {
		if got := Local(tt.err); got != tt.want {
			t.Errorf("%s: Local(%v) = %v, want %v", tt.why, tt.err, got, tt.want)
		}
	}
}

func TestFirewall(t *testing.T) {
	for _, tt := range []struct {
		why  string
		err  error
		want bool
	}{
		{"no failure", nil, false},
		{"a program at the connect forbids it", dial("tcp", syscall.EPERM), true},
		{"a route prohibits it", dial("tcp", syscall.EACCES), true},
		{"the same from the relay", os.NewSyscallError("connect", syscall.EPERM), true},
		{"a query to a name server was dropped by the output chain", &net.OpError{Op: "write", Net: "udp", Err: os.NewSyscallError("write", syscall.EPERM)}, true},

		{"the permissions of a unix socket's path", dial("unix", syscall.EACCES), false},
		{"a file that cannot be read", &fs.PathError{Op: "open", Path: "/etc/x", Err: syscall.EACCES}, false},
		{"a script that is not executable", os.NewSyscallError("fork/exec", syscall.EACCES), false},
		{"the host refused", dial("tcp", syscall.ECONNREFUSED), false},
		{"a firewall on the way", dial("tcp", syscall.EHOSTUNREACH), false},
		{"no descriptor is left", dial("tcp", syscall.EMFILE), false},
	} {
		if got := Firewall(tt.err); got != tt.want {
			t.Errorf("%s: Firewall(%v) = %v, want %v", tt.why, tt.err, got, tt.want)
		}
		if explained := Explain(tt.err); !errors.Is(explained, tt.err) ||
			explained != nil && strings.Contains(explained.Error(), "this machine's firewall") != tt.want {
			t.Errorf("%s: Explain(%v) = %v", tt.why, tt.err, explained)
		}
	}
}
