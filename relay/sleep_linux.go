//go:build !portable

package relay

import (
	"errors"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How a loop sleeps.
//
// A loop that has much to do sleeps in epoll_wait(2), because nothing wakes a thread
// sooner. That has a price: the Go runtime's monitor looks at every thread in a system
// call, every 20 µs for 10 ms after each time that one began to sleep. Where each sleep is
// longer than that, the monitor takes more time than the loop. So a loop that is seldom
// woken lets the runtime wait for its epoll, like for any other descriptor, and keeps no
// thread meanwhile.

// seldom is how often a loop sleeps in a second if it sleeps in the runtime: at most.
const seldom = 500

// sleeper is how a loop sleeps. The thread of a loop is its own but while it sleeps in the
// runtime.
type sleeper struct {
	epoll *os.File // owns the descriptor
	raw   syscall.RawConn
	look  func(epoll uintptr) bool // made once: it would be garbage of each sleep
	n     int                      // what look has found
	errno unix.Errno

	times   int   // of sleeping since then
	since   int64 // by the loop's clock
	parks   bool  // it sleeps in the runtime
	another bool  // it may be on another thread since the load was weighed
}

// newSleeper takes over a descriptor of an epoll. It must be closed when the loop is over.
func newSleeper(epoll int, events []unix.EpollEvent) (*sleeper, error) {
	if err := unix.SetNonblock(epoll, true); err != nil { // or the runtime would not wait for it
		return nil, wrap("fcntl", err)
	}
	s := &sleeper{epoll: os.NewFile(uintptr(epoll), "epoll")}
	var err error
	if s.raw, err = s.epoll.SyscallConn(); err != nil {
		return nil, err
	}
	s.look = func(epoll uintptr) bool {
		s.n, s.errno = epollWait(int(epoll), events, 0)
		return s.n != 0 || s.errno != 0
	}
	return s, nil
}

// close closes the epoll.
func (s *sleeper) close() { _ = s.epoll.Close() } // nothing is waiting for it

// count counts one more sleep, and decides where the loop sleeps. It reports whether it has
// decided anew.
func (s *sleeper) count(now int64) bool {
	s.times++
	switch {
	case s.times > seldom:
		s.parks = false
	case now-s.since < int64(time.Second):
		return false
	default:
		s.parks = true
	}
	s.times, s.since = 0, now
	return true
}

// sleep returns the number of events of the epoll when there is one, or after so many
// milliseconds; -1 is for ever.
func (s *sleeper) sleep(epoll int, events []unix.EpollEvent, ms int) (int, unix.Errno) {
	if !s.parks {
		return epollWait(epoll, events, ms)
	}
	var until time.Time
	if ms >= 0 {
		until = time.Now().Add(time.Duration(ms) * time.Millisecond)
	}
	err := s.epoll.SetReadDeadline(until)
	if err == nil {
		// The goroutine that another thread wakes would hand its processor to this one.
		runtime.UnlockOSThread()
		err = s.raw.Read(s.look)
		runtime.LockOSThread()
		s.another = true
	}
	switch {
	case err == nil:
		return s.n, s.errno
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, 0
	}
	return epollWait(epoll, events, ms) // the runtime cannot wait for it
}
