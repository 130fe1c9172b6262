//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// endless is a length that no run reaches.
const endless = 1 << 60

// sink reads bulk streams. Every byte is counted; of each read the first and
// the last bytes are compared, of one in sixteen all of them.
type sink struct {
	conns    []sinkConn
	poller   *poller
	reads    int
	received atomic.Int64
	started  atomic.Int64 // streams of which anything has come
	buf      [chunk]byte
}

type sinkConn struct {
	fd       int
	position int64 // in the stream
	moved    bool  // anything has come
}

// ends is the number of bytes at each end of a read that are always compared.
const ends = 32

// newSink takes connections that were greeted as source ones, for a loop that
// waits with p, and requests an endless stream from each, every one from another
// position. The caller still owns the descriptors.
func newSink(p *poller, fds []int) (*sink, error) {
	s := &sink{conns: make([]sinkConn, len(fds)), poller: p}
	for i, fd := range fds {
		start := int64(i) * 7919
		s.conns[i] = sinkConn{fd: fd, position: start}
		_, err := write(fd, request{start: start, length: endless}.encode())
		if err := errors.Join(err, os.NewSyscallError("fcntl", unix.SetNonblock(fd, true)), p.add(fd, levelRead, roleSource, i)); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// run reads until w closes, or until ctx ends when w is nil.
func (s *sink) run(ctx context.Context, w *window) error {
	for ctx.Err() == nil {
		events, err := s.poller.wait(tick)
		if err != nil {
			return err
		}
		for i := range events {
			if err := s.receive(int(events[i].Fd)); err != nil {
				return err
			}
		}
		if w == nil {
			continue
		}
		switch step, err := w.step(w.now(), s.flows()); {
		case err != nil:
			return err
		case step == closes && w.counted() == 0:
			return fmt.Errorf("no byte for %v", w.length)
		case step == closes:
			return nil
		}
	}
	return ctx.Err()
}

// flows reports whether bytes of every stream have arrived.
func (s *sink) flows() bool { return s.started.Load() == int64(len(s.conns)) }

// flowing waits until bytes of every stream have arrived at a sink that runs in
// another goroutine, which closes ended when it is over.
func (s *sink) flowing(ctx context.Context, ended <-chan struct{}) error {
	for deadline := time.Now().Add(coldTimeout); time.Now().Before(deadline); {
		if s.flows() {
			return nil
		}
		select {
		case <-ended:
			return nil // its error is returned
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return fmt.Errorf("only %d of %d streams flow after %v", s.started.Load(), len(s.conns), coldTimeout)
}

// receive reads once from stream i, so that streams take turns.
func (s *sink) receive(i int) error {
	c := &s.conns[i]
	n, err := s.poller.read(c.fd, s.buf[:])
	switch {
	case errors.Is(err, unix.EAGAIN):
		return nil
	case err == nil && n == 0:
		err = errEnded
	case err == nil:
		s.reads++
		err = check(s.buf[:n], c.position, s.reads%16 == 0)
	}
	if err != nil {
		return fmt.Errorf("stream %d: %w", i, err)
	}
	c.position += int64(n)
	s.received.Add(int64(n))
	if !c.moved {
		c.moved = true
		s.started.Add(1)
	}
	return nil
}

// check compares got with the stream at position: its ends, or all of it.
func check(got []byte, position int64, all bool) error {
	want := patternAt(position, len(got))
	end := min(len(got), ends)
	if bytes.Equal(got[:end], want[:end]) && bytes.Equal(got[len(got)-end:], want[len(got)-end:]) && (!all || bytes.Equal(got, want)) {
		return nil
	}
	return fmt.Errorf("at position %d of the stream: %s", position, diff(got, want))
}

// fetch reads length bytes of the stream, from position start on, over a
// blocking connection that was greeted as a source one, and compares them all.
func fetch(fd int, start, length int64, buf []byte) error {
	if _, err := write(fd, request{start: start, length: length}.encode()); err != nil {
		return err
	}
	for got := int64(0); got < length; {
		n, err := read(fd, buf[:min(int64(len(buf)), length-got)])
		switch {
		case errors.Is(err, unix.EAGAIN):
			return fmt.Errorf("no byte for %v after %d of %d", setupTimeout, got, length)
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("after %d of %d bytes: %w", got, length, errEnded)
		}
		if err := check(buf[:n], start+got, true); err != nil {
			return err
		}
		got += int64(n)
	}
	return nil
}
