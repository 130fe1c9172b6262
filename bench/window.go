//go:build linux

package main

import (
	"fmt"
	"time"
)

// window is the part of a load that is measured. It opens when the load is
// warm and closes after its length; what is counted outside does not count.
type window struct {
	warm, length time.Duration
	// busy is the processor time of the proxy so far. Nil without a proxy.
	busy func() (time.Duration, error)
	// count, if set, is read when the window opens and when it closes.
	count func() int64

	begin        time.Time
	opened, shut moment
	open         bool
}

// moment is the readings at one edge of a window.
type moment struct {
	at    time.Duration // since the load began
	busy  time.Duration
	count int64
}

// coldTimeout limits the wait for a load that is not ready after its warm-up.
const coldTimeout = 15 * time.Second

// step is the result of one reading of the clock.
type step int

const (
	during step = iota // nothing changes
	opens              // measuring begins: forget what was counted
	closes             // measuring is over
)

// start begins the warm-up.
func (w *window) start() { w.begin = time.Now() }

// now is the time since start.
func (w *window) now() time.Duration { return time.Since(w.begin) }

// step is called again and again. The window opens after the warm-up as soon
// as the load is ready; one that never gets ready is an error.
func (w *window) step(now time.Duration, ready bool) (step, error) {
	var err error
	switch {
	case !w.open && now >= w.warm && ready:
		w.open = true
		w.opened, err = w.read()
		return opens, err
	case !w.open && now >= w.warm+coldTimeout:
		return during, fmt.Errorf("not every connection has answered within %v", w.warm+coldTimeout)
	case w.open && now >= w.opened.at+w.length:
		w.shut, err = w.read()
		return closes, err
	}
	return during, nil
}

// read takes the reading of an edge.
func (w *window) read() (moment, error) {
	m := moment{at: w.now()}
	if w.count != nil {
		m.count = w.count()
	}
	if w.busy == nil {
		return m, nil
	}
	var err error
	m.busy, err = w.busy()
	return m, err
}

// seconds is the actual length of the window.
func (w *window) seconds() float64 { return (w.shut.at - w.opened.at).Seconds() }

// used is the proxy's processor time in the window, in seconds.
func (w *window) used() float64 { return (w.shut.busy - w.opened.busy).Seconds() }

// counted is the growth of count in the window.
func (w *window) counted() int64 { return w.shut.count - w.opened.count }
