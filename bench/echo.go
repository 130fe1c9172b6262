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

// echoConn is one connection over which messages go to and fro. Every message
// is a different piece of the stream, so an answer that belongs to another
// connection, or to an earlier message, is noticed.
type echoConn struct {
	fd       int
	sentSeq  int64 // messages that are wholly sent
	sentPart int   // bytes sent of the next one
	gotSeq   int64 // answers that came wholly
	gotPart  int   // bytes that came of the next one
	due      int64 // messages to send so far
	begun    time.Duration
}

// echoes is a set of connections with one message size.
type echoes struct {
	conns  []echoConn
	size   int
	near   int64 // within how many bytes of the pattern messages begin
	poller *poller
	buf    [64 << 10]byte
}

// tick is the longest time that a loop waits before it looks at the clock again.
const tick = 50 * time.Millisecond

// newEchoes takes connections that were greeted as echo ones, for a loop in
// shape s that waits with p. The caller still owns the descriptors.
func newEchoes(p *poller, s shape, fds []int, size int) (*echoes, error) {
	e := &echoes{conns: make([]echoConn, len(fds)), size: size, near: s.near(), poller: p}
	for i, fd := range fds {
		e.conns[i].fd = fd
		if err := errors.Join(os.NewSyscallError("fcntl", unix.SetNonblock(fd, true)), p.add(fd, edgeRead, roleEcho, i)); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// message is the seq-th message of connection i.
func (e *echoes) message(i int, seq int64) []byte {
	return patternAt((int64(i)*7919+seq*104729)%e.near, e.size)
}

// closedLoop keeps one message under way on each connection: the next is sent
// when the answer to the last has come. Round trips that end while w is open
// are recorded in h. The same thread reads the streams of beside, unless that
// is nil, which must wait with the same poller.
func (e *echoes) closedLoop(ctx context.Context, w *window, h *histogram, beside *sink) error {
	w.start()
	for i := range e.conns {
		e.conns[i].due = 1
		e.conns[i].begun = w.now()
		if err := e.send(i); err != nil {
			return err
		}
	}
	answered := 0
	done := func(i int, seq int64) error {
		now := w.now()
		c := &e.conns[i]
		h.record(now - c.begun)
		if seq == 0 {
			answered++
		}
		c.begun = now
		c.due++
		return e.send(i)
	}
	for ctx.Err() == nil {
		events, err := e.poller.wait(tick)
		if err != nil {
			return err
		}
		for i := range events {
			if events[i].Pad == roleSource {
				err = beside.receive(int(events[i].Fd))
			} else {
				err = e.handle(&events[i], done)
			}
			if err != nil {
				return err
			}
		}
		switch step, err := w.step(w.now(), answered == len(e.conns) && (beside == nil || beside.flows())); {
		case err != nil:
			return err
		case step == opens:
			h.reset()
		case step == closes && h.n == 0:
			return fmt.Errorf("no answer for %v", w.length)
		case step == closes:
			return nil
		}
	}
	return ctx.Err()
}

// openLoop sends messages at a fixed rate, whether answers come or not, the
// connections taking turns. A round trip begins when the message should have
// been sent: a stall of the proxy counts for every message that was due
// meanwhile. What was due while w is open is recorded in h. It is an error when
// answers are still missing two seconds after the end.
func (e *echoes) openLoop(ctx context.Context, rate float64, w *window, h *histogram) error {
	timer, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("timerfd_create", err)
	}
	defer unix.Close(timer)
	if err := e.poller.add(timer, unix.EPOLLIN|edge, kindTimer, 0); err != nil {
		return err
	}
	var (
		n          = int64(len(e.conns))
		dueAt      = func(k int64) time.Duration { return time.Duration(float64(k) / rate * 1e9) }
		next, done int64 // messages that were due, answers
		closed     bool
	)
	w.start()
	answer := func(i int, seq int64) error {
		done++
		if due := dueAt(seq*n + int64(i)); w.open && due >= w.opened.at && (!closed || due < w.shut.at) {
			h.record(w.now() - due)
		}
		return nil
	}
	for ctx.Err() == nil {
		now := w.now()
		// What was due in the window is sent even after waking up too late for it.
		for ; dueAt(next) <= now && (!closed || dueAt(next) < w.shut.at); next++ {
			i := int(next % n)
			e.conns[i].due++
			if err := e.send(i); err != nil {
				return err
			}
		}
		if closed && done == next && dueAt(next) >= w.shut.at {
			return nil
		}
		if closed && now > w.shut.at+2*time.Second {
			return fmt.Errorf("%d of %d messages have no answer", next-done, next)
		}
		if err := arm(timer, dueAt(next)-w.now()); err != nil {
			return err
		}
		events, err := e.poller.wait(tick)
		if err != nil {
			return err
		}
		for i := range events {
			if events[i].Pad == kindTimer {
				continue // edge-triggered, and armed anew each time: no need to read it
			}
			if err := e.handle(&events[i], answer); err != nil {
				return err
			}
		}
		if !closed {
			step, err := w.step(w.now(), done > 0)
			if err != nil {
				return err
			}
			closed = step == closes
		}
	}
	return ctx.Err()
}

// arm lets timer fire once after d, at once if d is in the past.
func arm(timer int, d time.Duration) error {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(d, 1)))}
	return os.NewSyscallError("timerfd_settime", unix.TimerfdSettime(timer, 0, &spec, nil))
}

// handle does what an event allows: send what is due, read what came. It
// calls done for each answer that is complete.
func (e *echoes) handle(event *unix.EpollEvent, done func(i int, seq int64) error) error {
	i := int(event.Fd)
	if event.Events&writable != 0 {
		if err := e.send(i); err != nil {
			return err
		}
	}
	if event.Events&readable == 0 {
		return nil
	}
	c := &e.conns[i]
	for {
		n, err := e.poller.read(c.fd, e.buf[:])
		switch {
		case err == unix.EAGAIN: //nolint:errorlint // a bare errno, compared for every message
			return nil
		case err != nil:
			return fmt.Errorf("connection %d: %w", i, err)
		case n == 0:
			return fmt.Errorf("connection %d: %w", i, errEnded)
		}
		if err := e.compare(i, e.buf[:n], done); err != nil {
			return err
		}
		if n < len(e.buf) && event.Events&hungUp == 0 {
			return nil // drained: further bytes cause a new event
		}
	}
}

// compare checks that got is the next piece of the answers on connection i.
func (e *echoes) compare(i int, got []byte, done func(i int, seq int64) error) error {
	c := &e.conns[i]
	for len(got) > 0 {
		if c.gotSeq > c.sentSeq || c.gotSeq == c.sentSeq && c.gotPart >= c.sentPart {
			return fmt.Errorf("connection %d: %d bytes came that were never sent", i, len(got))
		}
		want := e.message(i, c.gotSeq)[c.gotPart:]
		n := min(len(got), len(want))
		if !bytes.Equal(got[:n], want[:n]) {
			return fmt.Errorf("connection %d, message %d, from byte %d: %s", i, c.gotSeq, c.gotPart, diff(got[:n], want[:n]))
		}
		got = got[n:]
		if c.gotPart += n; c.gotPart == e.size {
			seq := c.gotSeq
			c.gotSeq++
			c.gotPart = 0
			if err := done(i, seq); err != nil {
				return err
			}
		}
	}
	return nil
}

// send writes what is due on connection i, as far as the socket takes it.
func (e *echoes) send(i int) error {
	c := &e.conns[i]
	for c.sentSeq < c.due {
		n, err := e.poller.write(c.fd, e.message(i, c.sentSeq)[c.sentPart:])
		if err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		if n == 0 {
			return e.poller.modify(c.fd, edgeBoth, roleEcho, i) // the next writable event goes on
		}
		if c.sentPart += n; c.sentPart == e.size {
			c.sentSeq++
			c.sentPart = 0
		}
	}
	return nil
}
