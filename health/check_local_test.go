package health

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

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
		{"the program was stopped", 1501 * time.Millisecond, refused, Result{Err: refused, Phase: Connect, Unknown: true}},
		{"late, but the answer was there", 30 * time.Second, nil, Result{OK: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				began := time.Now()
				time.Sleep(tt.ended) // virtual
				got := NewResult(ctx, began, Connect, tt.err)
				if got.OK != tt.want.OK || got.Unknown != tt.want.Unknown || got.Phase != tt.want.Phase || !errors.Is(got.Err, tt.want.Err) || got.Latency != tt.ended {
					t.Errorf("Outcome after %v = %+v, want %+v", tt.ended, got, tt.want)
				}
			})
		})
	}
}

func TestOutcomeOfCanceledCheck(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := NewResult(ctx, time.Now(), Read, os.ErrDeadlineExceeded); !got.Unknown || got.OK {
		t.Errorf("Outcome of a canceled check = %+v, want it Unknown and failed", got)
	}
}

func TestCheckWithoutDeadline(t *testing.T) {
	began := time.Now().Add(-time.Hour)
	if got := NewResult(context.Background(), began, Connect, syscall.ECONNREFUSED); got.Unknown {
		t.Errorf("Outcome without a deadline = %+v, want it not Unknown", got)
	}
}
