package health

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"time"
)

// lateness is how far past its deadline a check may end and still be believed.
const lateness = 500 * time.Millisecond

// Local reports whether err has its reason in this program or this machine
// and so says nothing about a host: no descriptors, ports, memory or processes
// were left, or whoever asked has changed its mind ([context.Canceled]).
//
// Everything that lasts and would keep clients from the host just as well is
// not local: a network that is down or has no route, a firewall or a security
// policy here that forbids the connect (EPERM, EACCES). Taking it for local
// would hold clients for a host that they can never reach. Nor is EAGAIN from
// a unix socket local, which says that the host's own queue is full
// (connect(2)).
func Local(err error) bool {
	var op *net.OpError
	switch {
	case err == nil:
		return false
	case errors.Is(err, syscall.EAGAIN):
		return !errors.As(err, &op) || !strings.HasPrefix(op.Net, "unix")
	}
	for _, own := range []error{
		syscall.EMFILE, syscall.ENFILE, // descriptors
		syscall.EADDRNOTAVAIL, // ports; see connectAddr for its other meaning
		syscall.ENOBUFS, syscall.ENOMEM,
		context.Canceled,
	} {
		if errors.Is(err, own) {
			return true
		}
	}
	return false
}

// Outcome returns the Result of a check of ctx that began at began and ended
// now, in phase, with err; nil is a pass. It is for checks of every kind.
//
// A failure is Local when [Local] says so of err, and also when the check
// ended more than 500ms after the deadline of ctx: then this program was
// stopped or starved, and slept through the answer; or when ctx was canceled,
// since nobody asks any more.
func Outcome(ctx context.Context, began time.Time, phase Phase, err error) Result {
	now := time.Now()
	if err == nil {
		return Result{OK: true, Latency: now.Sub(began)}
	}
	end, ok := ctx.Deadline()
	return Result{
		Local:   Local(err) || ok && now.Sub(end) > lateness || errors.Is(ctx.Err(), context.Canceled),
		Phase:   phase,
		Err:     err,
		Latency: now.Sub(began),
	}
}
