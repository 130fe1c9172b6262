//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// shortConn is one of the connections that are under way at a time: connect,
// send 64 bytes, read 64 bytes and the end of the stream, close. The backend
// closes first, as many services do; the client's ports are then free at once
// and the figure does not measure the TIME_WAIT table.
type shortConn struct {
	fd    int
	begun time.Duration
	sent  int
	got   int
	want  []byte
}

// shorts makes short connections to addr, n at a time.
type shorts struct {
	to     unix.Sockaddr
	conns  []shortConn
	poller *poller
	made   int64 // since the beginning
	ended  int64
	buf    [2 * shortLen]byte
	answer [shortLen]byte // of the backend: the message that was sent
}

func newShorts(sh shape, addr address, n int) (*shorts, error) {
	poller, err := newPoller(sh)
	if err != nil {
		return nil, err
	}
	s := &shorts{to: addr.sockaddr(), conns: make([]shortConn, n), poller: poller}
	for i := range s.conns {
		s.conns[i].fd = -1
	}
	return s, nil
}

// close resets what is still under way.
func (s *shorts) close() {
	for _, c := range s.conns {
		if c.fd >= 0 {
			abort([]int{c.fd})
		}
	}
	s.poller.close()
}

// run makes connections until w closes. The time from connect to the first
// byte of the answer is recorded in first, while w is open.
func (s *shorts) run(ctx context.Context, w *window, first *histogram) error {
	w.count = func() int64 { return s.ended }
	w.start()
	for i := range s.conns {
		if err := s.begin(i, w); err != nil {
			return err
		}
	}
	var last int64 // how many had ended when that last grew, and when
	var grew time.Duration
	for ctx.Err() == nil {
		events, err := s.poller.wait(tick)
		if err != nil {
			return err
		}
		for i := range events {
			if err := s.advance(int(events[i].Fd), events[i].Events, w, first); err != nil {
				return fmt.Errorf("connection %d: %w", s.made, err)
			}
		}
		now := w.now()
		switch {
		case s.ended > last:
			last, grew = s.ended, now
		case now > grew+coldTimeout:
			return fmt.Errorf("no connection has ended for %v", coldTimeout)
		}
		switch step, err := w.step(now, s.ended >= int64(len(s.conns))); {
		case err != nil:
			return err
		case step == opens:
			first.reset()
		case step == closes:
			return nil
		}
	}
	return ctx.Err()
}

// begin starts the next connection in place i.
func (s *shorts) begin(i int, w *window) error {
	c := &s.conns[i]
	s.made++
	*c = shortConn{fd: -1, begun: w.now(), want: patternAt(s.made*104729, shortLen-1)}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	c.fd = fd
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return os.NewSyscallError("setsockopt TCP_NODELAY", err)
	}
	if err := unix.Connect(fd, s.to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return os.NewSyscallError("connect", err)
	}
	if err := s.poller.add(fd, edgeBoth, roleShort, i); err != nil {
		return err
	}
	return s.send(c) // on loopback the handshake is often over by now
}

// send writes what is left of the message.
func (s *shorts) send(c *shortConn) error {
	if c.sent == shortLen {
		return nil
	}
	message := append(append(s.buf[:0], roleShort), c.want...)
	n, err := s.poller.write(c.fd, message[c.sent:])
	c.sent += n
	return err
}

// advance goes as far with connection i as its event allows.
func (s *shorts) advance(i int, event uint32, w *window, first *histogram) error {
	c := &s.conns[i]
	if err := s.send(c); err != nil {
		return err
	}
	for event&readable != 0 {
		n, err := s.poller.read(c.fd, s.buf[:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil:
			return fmt.Errorf("after %d bytes of the answer: %w", c.got, err)
		case n == 0 && c.got != shortLen:
			return fmt.Errorf("after %d bytes of the answer: %w", c.got, errEnded)
		case n == 0:
			s.ended++
			if err := unix.Close(c.fd); err != nil {
				return os.NewSyscallError("close", err)
			}
			return s.begin(i, w)
		}
		if c.got == 0 {
			first.record(w.now() - c.begun)
		}
		if want := append(append(s.answer[:0], roleShort), c.want...)[c.got:]; !bytes.Equal(s.buf[:n], want[:min(n, len(want))]) {
			return errors.New(diff(s.buf[:n], want))
		}
		c.got += n
		if n < len(s.buf) && event&hungUp == 0 {
			return nil // drained: the end is a new event
		}
	}
	return nil
}
