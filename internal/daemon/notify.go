package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"understudy/failover"
	"understudy/internal/resident"
	"understudy/selector"
)

const (
	// notifyEvery is the time between two notifications of the service manager about
	// a changed state of the process.
	notifyEvery = time.Second

	// startedEvery is the time between two looks at whether the start is complete.
	startedEvery = 50 * time.Millisecond
)

// managersVariables are for this process only.
var managersVariables = []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}

// awaitStart waits until the start is complete: every relay has either a primary
// or no host to choose. Then it returns the memory that only the start needed.
func (s *service) awaitStart(ctx context.Context) error {
	tick := time.NewTicker(startedEvery)
	defer tick.Stop()
	for !s.decided(s.current()) {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	close(s.started)
	if err := resident.Trim(); err != nil {
		s.log.Debug("pages of the program's file stay in memory", "error", err)
	}
	return nil
}

// notify notifies the service manager, if there is one that expects it, see
// sd_notify(3): that the start is complete, which hosts are primary, and, for its
// watchdog, that every conductor still processes requests. It returns when ctx
// ends.
func (s *service) notify(ctx context.Context) error {
	watchdog, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		s.log.Warn("no watchdog", "error", err)
	}
	every := notifyEvery
	if watchdog > 0 {
		every = min(every, watchdog/4)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	sent, started := "", s.started
	for {
		var lines []string
		select {
		case <-ctx.Done():
			return nil
		case <-started:
			started = nil
			s.ready.Store(true)
			lines = append(lines, sd.SdNotifyReady)
		case <-tick.C:
		}
		if text := s.oneLine(); text != sent {
			sent = text
			lines = append(lines, "STATUS="+text)
		}
		if watchdog > 0 && s.alive(ctx, watchdog/4) {
			lines = append(lines, sd.SdNotifyWatchdog)
		}
		if len(lines) > 0 {
			s.notifyManager(strings.Join(lines, "\n"))
		}
	}
}

// notifyManager sends a message to the service manager, if there is one.
func (s *service) notifyManager(text string) {
	if _, err := sd.SdNotify(false, text); err != nil {
		s.log.Debug("service manager not notified", "error", err)
	}
}

// notifyReloading notifies the service manager that a reload has begun; see
// Type=notify-reload in systemd.service(5). The returned function notifies it
// of the end.
func (s *service) notifyReloading() (done func()) {
	if !s.ready.Load() || s.draining.Load() {
		return func() {} // it would take the end of the reload for the end of the start
	}
	s.notifyManager(sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec())
	return func() { s.notifyManager(sd.SdNotifyReady) }
}

// decided reports whether every one of the relays has listened, or was found to
// have no host to listen for.
func (s *service) decided(relays []*conducted) bool {
	for _, c := range relays {
		if now := c.conductor.Snapshot(); now.Phase != selector.Serving && now.RetryAt.IsZero() {
			return false
		}
	}
	return true
}

// oneLine lists the primaries in one line.
func (s *service) oneLine() string {
	var parts []string
	for _, c := range s.current() {
		now := c.conductor.Status()
		switch {
		case now.Primary != "":
			text := fmt.Sprintf("%s: %s is primary (epoch %d)", c.name, now.Primary, now.Epoch)
			if !now.NoStandby.IsZero() {
				text += ", without a standby"
			}
			parts = append(parts, text)
		default:
			parts = append(parts, fmt.Sprintf("%s: no primary, %s", c.name, now.Phase))
		}
	}
	if parts == nil {
		return "answering over HTTP"
	}
	return strings.Join(parts, "; ")
}

// alive reports whether every conductor processes a request within a time. At
// the end of the program, while connections finish, they have nothing to do any
// more.
func (s *service) alive(ctx context.Context, within time.Duration) bool {
	if s.draining.Load() {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for _, c := range s.current() {
		// A conductor that has ended does not hang: its relay was just
		// removed.
		if err := c.conductor.Alive(ctx); err != nil && !errors.Is(err, failover.ErrOver) {
			s.log.Error("a relay does not respond, the watchdog is not notified", "relay", c.name, "error", err)
			return false
		}
	}
	return true
}
