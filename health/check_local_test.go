package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestLocal(t *testing.T) {
	// dial returns the error that net gives when a connect ends with no.
	dial := func(network string, no syscall.Errno) error {
		return &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", no)}
	}
	for _, tt := range []struct {
		name string
		err  error
		want bool
	}{
		{"nothing failed", nil, false},
		{"no descriptors", dial("tcp", syscall.EMFILE), true},
		{"no descriptors in the system", dial("tcp", syscall.ENFILE), true},
		{"no ports", dial("tcp", syscall.EADDRNOTAVAIL), true},
		{"no buffers", dial("tcp", syscall.ENOBUFS), true},
		{"no memory", dial("tcp", syscall.ENOMEM), true},
		{"no more processes", os.NewSyscallError("fork/exec", syscall.EAGAIN), true},
		{"no room in the routing cache", dial("tcp", syscall.EAGAIN), true},
		{"the host's unix queue is full", dial("unix", syscall.EAGAIN), false},
		{"one of two addresses failed here", fmt.Errorf("%w; %w", dial("tcp", syscall.ECONNREFUSED), dial("tcp", syscall.EMFILE)), true},
		{"nobody asks any more", fmt.Errorf("check: %w", context.Canceled), true},
		{"refused", dial("tcp", syscall.ECONNREFUSED), false},
		{"timeout", dial("tcp", syscall.ETIMEDOUT), false},
		{"deadline", context.DeadlineExceeded, false},
		{"unreachable", dial("tcp", syscall.EHOSTUNREACH), false},
		{"no route", dial("tcp", syscall.ENETUNREACH), false},
		{"forbidden by a firewall here", dial("tcp", syscall.EPERM), false},
		{"forbidden by a policy here", dial("tcp", syscall.EACCES), false},
	} {
		if got := Local(tt.err); got != tt.want {
			t.Errorf("%s: Local(%v) = %v, want %v", tt.name, tt.err, got, tt.want)
		}
	}
}

func TestOutcomeOfLateCheck(t *testing.T) {
	refused := syscall.ECONNREFUSED
	for _, tt := range []struct {
		name  string
		ended time.Duration // after the check began; it has a second
		err   error
		want  Result
	}{
		{"in time", time.Second, refused, Result{Err: refused, Phase: Connect}},
		{"a little late", 1500 * time.Millisecond, refused, Result{Err: refused, Phase: Connect}},
		{"the program was stopped", 1501 * time.Millisecond, refused, Result{Err: refused, Phase: Connect, Local: true}},
		{"late, but the answer was there", 30 * time.Second, nil, Result{OK: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				began := time.Now()
				time.Sleep(tt.ended) // virtual
				got := Outcome(ctx, began, Connect, tt.err)
				if got.OK != tt.want.OK || got.Local != tt.want.Local || got.Phase != tt.want.Phase || !errors.Is(got.Err, tt.want.Err) || got.Latency != tt.ended {
					t.Errorf("Outcome after %v = %+v, want %+v", tt.ended, got, tt.want)
				}
			})
		})
	}
}

func TestOutcomeOfCanceledCheck(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := Outcome(ctx, time.Now(), Read, os.ErrDeadlineExceeded); !got.Local || got.OK {
		t.Errorf("Outcome of a canceled check = %+v, want it Local and failed", got)
	}
}

func TestCheckWithoutDeadline(t *testing.T) {
	began := time.Now().Add(-time.Hour)
	if got := Outcome(context.Background(), began, Connect, syscall.ECONNREFUSED); got.Local {
		t.Errorf("Outcome without a deadline = %+v, want it not Local", got)
	}
}
