package accept

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// failing is a listener that fails with the same error for a while, then
// accepts one connection, and then is closed.
type failing struct {
	err   error
	times int
	ended chan struct{}
}

func (l *failing) Accept() (net.Conn, error) {
	if l.times--; l.times >= 0 {
		return nil, &net.OpError{Op: "accept", Err: l.err}
	}
	if l.times == -1 {
		near, _ := net.Pipe()
		return near, nil
	}
	<-l.ended
	return nil, net.ErrClosed
}

func (l *failing) Addr() net.Addr { return &net.TCPAddr{Port: 80} }
func (l *failing) Close() error   { close(l.ended); return nil }

func TestRetryWaitsOutWhatPasses(t *testing.T) {
	for _, err := range []syscall.Errno{
		syscall.ENOMEM, syscall.ENOBUFS, syscall.ENOSPC, syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED,
		syscall.EPERM, syscall.EACCES, syscall.EPROTO, syscall.EINTR, syscall.ENETDOWN, syscall.EAGAIN,
	} {
		t.Run(err.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				ln := Retry(&failing{err: err, times: 12, ended: make(chan struct{})}, hclog.New(&hclog.LoggerOptions{Output: &out}))
				began := time.Now()
				conn, got := ln.Accept()
				if got != nil || conn == nil {
					t.Fatalf("Accept returned %v, %v, want a connection", conn, got)
				}
				// 5 ms, 10 ms ... 640 ms, and then 1 s each.
				if took := time.Since(began); took != 5275*time.Millisecond {
					t.Errorf("accepted after %v, want 5.275s", took)
				}
				if n := strings.Count(out.String(), "accept failed"); n != 1 {
					t.Errorf("logged %d times, want once:\n%s", n, out.String())
				}
			})
		})
	}
}

func TestRetryEndsWithItsSocket(t *testing.T) {
	for _, err := range []error{net.ErrClosed, syscall.EINVAL, syscall.EBADF} {
		ln := Retry(&failing{err: err, times: 1}, hclog.NewNullLogger())
		if _, got := ln.Accept(); !errors.Is(got, err) {
			t.Errorf("Accept returned %v, want %v", got, err)
		}
	}
}

func TestRetryClosedWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := Retry(&failing{err: syscall.EMFILE, times: 1 << 30, ended: make(chan struct{})}, hclog.NewNullLogger())
		got := make(chan error)
		go func() {
			_, err := ln.Accept()
			got <- err
		}()
		time.Sleep(time.Minute) // virtual
		began := time.Now()
		ln.Close()
		if err := <-got; !errors.Is(err, net.ErrClosed) || time.Since(began) != 0 {
			t.Errorf("Accept returned %v after %v, want net.ErrClosed at once", err, time.Since(began))
		}
	})
}

// slow is a listener whose Close takes a while.
type slow struct {
	net.Listener
	entered chan struct{}
	closed  atomic.Int64
}

func (s *slow) Close() error {
	close(s.entered)
	time.Sleep(50 * time.Millisecond) // time for a mistake
	s.closed.Add(1)
	return nil
}

// Who closes a listener that another goroutine is closing may use its address
// next.
func TestRetryCloseReturnsWhenItIsClosed(t *testing.T) {
	inner := &slow{entered: make(chan struct{})}
	ln := Retry(inner, hclog.NewNullLogger())
	first := make(chan error, 1)
	go func() { first <- ln.Close() }()
	<-inner.entered
	if err := ln.Close(); err != nil || inner.closed.Load() != 1 {
		t.Errorf("the second Close returned %v after %d closes, want nil after one", err, inner.closed.Load())
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
}
