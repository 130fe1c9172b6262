package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"understudy/failover"
	"understudy/selector"
)

// notifyEvery is how often the service manager is told how the process is, if
// that has changed.
const notifyEvery = time.Second

// managersVariables are for this process and nobody else.
var managersVariables = []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}

// notify tells the service manager, if there is one that wants to know, see
// sd_notify(3): that the start is over once every relay has either a primary
// or nobody to choose, who is primary, and, for its watchdog, that every
// conductor still does what it is asked to. It returns when ctx ends.
func (s *service) notify(ctx context.Context) error {
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		s.log.Warn("no watchdog", "error", err)
	}
	every := notifyEvery
	if watchdog > 0 {
		every = min(every, watchdog/4)
	}
	tick := time.NewTicker(min(every, 50*time.Millisecond)) // until the start is over
	defer tick.Stop()
	told := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var lines []string
		if !s.ready.Load() && s.decided(s.current()) {
			s.ready.Store(true)
			lines = append(lines, daemon.SdNotifyReady)
			tick.Reset(every)
		}
		if text := s.oneLine(); text != told {
			told = text
			lines = append(lines, "STATUS="+text)
		}
		if watchdog > 0 && s.alive(ctx, watchdog/4) {
			lines = append(lines, daemon.SdNotifyWatchdog)
		}
		if len(lines) > 0 {
			s.tellManager(strings.Join(lines, "\n"))
		}
	}
}

// tellManager sends a message to the service manager, if there is one.
func (s *service) tellManager(text string) {
	if _, err := daemon.SdNotify(false, text); err != nil {
		s.log.Debug("service manager not told", "error", err)
	}
}

// tellReloading tells the service manager that the configuration is read
// again; see Type=notify-reload in systemd.service(5). What it returns tells
// that it was.
func (s *service) tellReloading() (done func()) {
	if !s.ready.Load() || s.draining.Load() {
		return func() {} // it would take the end of the reload for that of the start
	}
	s.tellManager(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
	return func() { s.tellManager(daemon.SdNotifyReady) }
}

// decided says whether every one of the relays has listened or been found to have
// nobody to listen for.
func (s *service) decided(relays []*conducted) bool {
	for _, c := range relays {
		if now := c.conductor.Snapshot(); now.Phase != selector.Serving && now.RetryAt.IsZero() {
			return false
		}
	}
	return true
}

// oneLine says who is primary.
func (s *service) oneLine() string {
	var parts []string
	for _, c := range s.current() {
		now := c.conductor.Snapshot()
		switch {
		case now.Primary != "":
			parts = append(parts, fmt.Sprintf("%s: %s is primary (epoch %d)", c.name, now.Primary, now.Epoch))
		default:
			parts = append(parts, fmt.Sprintf("%s: no primary, %s", c.name, now.Phase))
		}
	}
	if parts == nil {
		return "answering over HTTP"
	}
	return strings.Join(parts, "; ")
}

// alive says whether every conductor does something it is asked to within a
// time. They have nothing to do any more while connections finish at the end.
func (s *service) alive(ctx context.Context, within time.Duration) bool {
	if s.draining.Load() {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for _, c := range s.current() {
		// One that has ended does not hang: its relay has just left.
		if err := c.conductor.Alive(ctx); err != nil && !errors.Is(err, failover.ErrOver) {
			s.log.Error("a conductor does not answer, the watchdog is not fed", "relay", c.name, "error", err)
			return false
		}
	}
	return true
}
