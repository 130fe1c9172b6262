package verdict

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		bad := errors.New("bad")
		type heard struct {
			at      time.Duration
			verdict error
		}
		var got []heard
		n := 0
		evaluate := func(ctx context.Context) error {
			n++
			switch n {
			case 2:
				return bad
			case 3:
				time.Sleep(2500 * time.Millisecond) // slow
			case 4:
				<-ctx.Done() // hangs
			}
			return nil
		}
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		follow(ctx, evaluate, nil, func(verdict error) { got = append(got, heard{time.Since(began), verdict}) })
		want := []heard{
			{0, nil}, {time.Second, bad}, {4500 * time.Millisecond, nil}, {4500*time.Millisecond + maxAge, errOverdue},
			{time.Minute, context.DeadlineExceeded},
		}
		if !slices.Equal(got, want) {
			t.Errorf("heard %v, want %v", got, want)
		}
	})
}

// A verdict without a receiver delays no other.
func TestFollowLeavesHungEvaluation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, release := time.Now(), make(chan struct{})
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		var last error
		follow(ctx, func(context.Context) error { <-release; return nil }, nil, func(verdict error) { last = verdict })
		if took := time.Since(began); took != time.Minute+stopGrace || !errors.Is(last, context.DeadlineExceeded) {
			t.Errorf("follow ended after %s with %v, want %s after its context", took, last, stopGrace)
		}
		close(release) // it ends alone
	})
}
