// Package fault distinguishes a failure of this machine or this program from a
// failure of a host.
//
// It is the only list of such failures: checks, scripts and the relay all use
// it, so that they agree on which failures count against a host. A failure of
// this machine must not count, since it would take down every host alike and
// move a service that works.
package fault

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
)

// own holds the failures of this machine or this program, but for EAGAIN, whose
// meaning depends on the call; see Local.
var own = []error{
	syscall.EMFILE,        // this process has no descriptor left
	syscall.ENFILE,        // the system has no descriptor left
	syscall.ENOMEM,        // the kernel has no memory for a socket or a process
	syscall.ENOBUFS,       // the kernel has no memory for a socket's buffers
	syscall.ENOSPC,        // no epoll watch is left (fs.epoll.max_user_watches)
	syscall.EADDRNOTAVAIL, // no local port is left, or the source address is not here
	syscall.EADDRINUSE,    // every local port of the source address is taken
	context.Canceled,      // this program no longer needs the result
}

// Local reports whether the cause of err is in this machine or this program, so
// that err says nothing about a host: it is one of
//
//   - EMFILE, ENFILE: no descriptor is left;
//   - ENOMEM, ENOBUFS: no memory is left in the kernel;
//   - ENOSPC: no epoll watch is left;
//   - EADDRNOTAVAIL, EADDRINUSE: no local port is left, or the source address
//     to connect from is not on this machine;
//   - EAGAIN: no process or thread is left, or no entry of a routing cache. Not
//     from a unix socket: there it means that the host's own queue is full
//     (connect(2));
//   - [context.Canceled]: this program no longer needs the result.
//
// Each of them ends with the shortage. A lasting fault that keeps clients from
// the host as well is not local, wherever its cause is: a network that is down
// or has no route (ENETDOWN, ENETUNREACH, EHOSTUNREACH), or this machine's
// firewall (EPERM, EACCES; see [Firewall]). If it counted as local, clients
// would wait for a host that they can never reach while another one can be
// reached. A timeout (ETIMEDOUT) and a negative answer of the host itself
// (ECONNREFUSED, ECONNRESET) are faults of the host.
func Local(err error) bool {
	if errors.Is(err, syscall.EAGAIN) && !onUnix(err) {
		return true
	}
	return slices.ContainsFunc(own, func(e error) bool { return errors.Is(err, e) })
}

// Firewall reports whether err is a connection or a packet that this machine
// itself refused to send, by its firewall, a routing rule that prohibits it or
// a security policy: EPERM or EACCES from connect(2) or a write to a network.
// It is not [Local]: on one host it counts against that host, whose reason then
// names this machine's firewall. The permissions of a unix socket's path are
// not a firewall.
func Firewall(err error) bool {
	if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EACCES) || onUnix(err) {
		return false
	}
	call, ok := errors.AsType[*os.SyscallError](err)
	return ok && slices.Contains([]string{"connect", "write", "sendto", "sendmsg"}, call.Syscall)
}

// onUnix reports whether err is about a unix socket.
func onUnix(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && strings.HasPrefix(op.Net, "unix")
}

// Explain returns err with the remark that this machine's firewall refused it,
// if [Firewall] reports so, and otherwise err itself.
func Explain(err error) error {
	if !Firewall(err) {
		return err
	}
	return &firewallError{err}
}

// firewallError adds the source of the refusal to the error.
type firewallError struct{ err error }

func (e *firewallError) Error() string {
	return e.err.Error() + " (refused by this machine's firewall or security policy)"
}

func (e *firewallError) Unwrap() error { return e.err }
