package health

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
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
		judge := func(ctx context.Context) error {
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
		follow(ctx, judge, func(verdict error) { got = append(got, heard{time.Since(began), verdict}) })
		want := []heard{
			{0, nil}, {time.Second, bad}, {4500 * time.Millisecond, nil}, {4500*time.Millisecond + overdue, errOverdue},
			{time.Minute, context.DeadlineExceeded},
		}
		if !slices.Equal(got, want) {
			t.Errorf("heard %v, want %v", got, want)
		}
	})
}

// A verdict that nobody will hear delays nobody.
func TestFollowLeavesHungJudge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, release := time.Now(), make(chan struct{})
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		var last error
		follow(ctx, func(context.Context) error { <-release; return nil }, func(verdict error) { last = verdict })
		if took := time.Since(began); took != time.Minute+lateness || !errors.Is(last, context.DeadlineExceeded) {
			t.Errorf("follow ended after %s with %v, want %s after its context", took, last, lateness)
		}
		close(release) // it ends alone
	})
}

// failingListener has no descriptors left for a while.
type failingListener struct {
	net.Listener
	left int
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.left--; l.left > 0 {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	if l.left == 0 {
		_, far := net.Pipe()
		return far, nil
	}
	return nil, net.ErrClosed
}

func TestAcceptAllSurvives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, served := time.Now(), 0
		acceptAll(t.Context(), &failingListener{left: 20}, func(net.Conn) { served++ }, hclog.NewNullLogger())
		if took := time.Since(began); served != 1 || took < 5*time.Second || took > time.Minute {
			t.Errorf("%d served after %s, want one after some seconds", served, took)
		}
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		acceptAll(ctx, &failingListener{left: 1 << 30}, nil, hclog.NewNullLogger()) // ends with ctx
		var out bytes.Buffer
		acceptAll(ctx, &failingListener{left: 1 << 30}, nil, hclog.New(&hclog.LoggerOptions{Output: &out})) // has ended
		if out.Len() > 0 {
			t.Errorf("told of a failure after the end: %s", out.String())
		}
	})
}
