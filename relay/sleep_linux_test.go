//go:build linux && !portable

package relay

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newTestSleeper returns a sleeper whose epoll watches an eventfd.
func newTestSleeper(t *testing.T) (s *sleeper, epoll, event int, events []unix.EpollEvent) {
	t.Helper()
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	events = make([]unix.EpollEvent, 4)
	if s, err = newSleeper(epoll, events); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	if event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeFd(int32(event)) })
	if e := epollAdd(epoll, int32(event), unix.EPOLLIN, tag{slot: 7}); e != 0 {
		t.Fatal(e)
	}
	return s, epoll, event, events
}

// A loop sleeps in the runtime if it slept seldom for a second, and in the kernel as soon as
// it does not.
func TestSleeperParksWhileItIsSeldomWoken(t *testing.T) {
	s := &sleeper{}
	sleep := func(times int, every time.Duration) {
		for range times {
			s.count(s.since + int64(every)*int64(s.times+1))
		}
	}
	if s.parks {
		t.Error("a new loop sleeps in the runtime")
	}
	if sleep(2*seldom, time.Second/2/seldom); s.parks {
		t.Error("a loop that is woken 1000 times a second sleeps in the runtime")
	}
	if sleep(11, 100*time.Millisecond); !s.parks {
		t.Error("a loop that is woken 10 times a second sleeps in the kernel")
	}
	if sleep(seldom-10, 0); !s.parks {
		t.Errorf("after %d sleeps in a moment it sleeps in the kernel", seldom-10)
	}
	if sleep(20, 0); s.parks {
		t.Errorf("after %d sleeps in a moment it sleeps in the runtime", seldom+10)
	}
}

// Wherever it sleeps, an event wakes it, and the end of the time.
func TestSleeperWakes(t *testing.T) {
	for _, parks := range []bool{false, true} {
		s, epoll, event, events := newTestSleeper(t)
		s.parks = parks
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for range 3 { // a deadline that has passed is none of the next sleep
			begin := time.Now()
			if n, e := s.sleep(epoll, events, 5); n != 0 || e != 0 || time.Since(begin) < 4*time.Millisecond {
				t.Fatalf("in the runtime %t: %d events, %v after %v, want none for 5ms", parks, n, e, time.Since(begin))
			}
			for _, ms := range []int{-1, 60_000} {
				wake := time.AfterFunc(5*time.Millisecond, func() { write(int32(event), []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
				if n, e := s.sleep(epoll, events, ms); n != 1 || e != 0 || events[0].Fd != 7 {
					t.Fatalf("in the runtime %t, for %d ms: %d events, %v, tag %d, want that of the eventfd", parks, ms, n, e, events[0].Fd)
				}
				wake.Stop()
				// What is there already wakes it at once.
				if n, e := s.sleep(epoll, events, ms); n != 1 || e != 0 {
					t.Fatalf("in the runtime %t, for %d ms: %d events, %v, of one that is there", parks, ms, n, e)
				}
				empty(int32(event))
			}
		}
		if s.another != parks {
			t.Errorf("in the runtime %t: it may be on another thread: %t", parks, s.another)
		}
	}
}
