package daemon

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/relay"
)

const (
	// connectionQueue is the number of ended connections that may wait for their line
	// in the log: those of more than a second, at 10,000 a second.
	connectionQueue = 16384

	// crowdedPoll is the time between two looks at a log that is crowded.
	crowdedPoll = 5 * time.Millisecond
)

// connectionLog logs connections that have ended. The data path only queues them:
// run formats and logs each, and one that does not fit into the queue is dropped
// and counted. While the log's own queue is half full run waits, so that lines
// about connections never take the place of others.
type connectionLog struct {
	log     hclog.Logger
	crowded func() bool // the log's own queue is half full
	rfc3339 bool        // times are for programs
	start   sync.Once
	started chan struct{} // closed when queue is there: when the first relay has connections logged
	queue   chan ended
	dropped atomic.Uint64
}

// ended is a connection that has ended, and its relay.
type ended struct {
	relay.Ending
	by *recorded
}

// recorded is a relay whose connections are logged.
type recorded struct {
	log  hclog.Logger
	host func(address string) string // the name in the settings
}

func newConnectionLog(log hclog.Logger, crowded func() bool, rfc3339 bool) *connectionLog {
	return &connectionLog{log: log, crowded: crowded, rfc3339: rfc3339, started: make(chan struct{})}
}

// of returns what queues the connections of a relay. Host returns the name that
// an address has in the settings.
func (c *connectionLog) of(relayName string, host func(address string) string) func(relay.Ending) {
	c.start.Do(func() {
		c.queue = make(chan ended, connectionQueue)
		close(c.started)
	})
	by := &recorded{log: c.log.Named("relay").With("relay", relayName), host: host}
	return func(e relay.Ending) {
		select {
		case c.queue <- ended{e, by}:
		default:
			c.dropped.Add(1)
		}
	}
}

// run logs connections until ctx ends, and then those that are queued, unless the
// log stays crowded for logTimeout. Once a minute it reports how many were dropped.
func (c *connectionLog) run(ctx context.Context) error {
	select {
	case <-c.started:
	case <-ctx.Done():
	}
	minute := time.NewTicker(time.Minute)
	defer minute.Stop()
	var reported uint64
	report := func() {
		if n := c.dropped.Load(); n > reported {
			c.log.Warn("connections not logged: there were more than the log takes", "dropped", n-reported)
			reported = n
		}
	}
	defer report()
	for ctx.Err() == nil {
		select {
		case e := <-c.queue:
			c.awaitRoom(ctx)
			c.write(e)
		case <-minute.C:
			report()
		case <-ctx.Done():
		}
	}
	last, stop := context.WithTimeout(context.WithoutCancel(ctx), logTimeout)
	defer stop()
	for {
		select {
		case e := <-c.queue:
			if c.awaitRoom(last) {
				c.write(e)
			} else {
				c.dropped.Add(1)
			}
		default:
			return nil
		}
	}
}

// awaitRoom waits until the log is not crowded. It returns false when ctx ended
// first.
func (c *connectionLog) awaitRoom(ctx context.Context) bool {
	for c.crowded() {
		select {
		case <-time.After(crowdedPoll):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func (c *connectionLog) write(e ended) {
	client, format := "-", hclog.TimeFormat
	if e.Client.IsValid() {
		client = e.Client.String()
	}
	if c.rfc3339 {
		format = "2006-01-02T15:04:05.000Z07:00"
	}
	why := e.Why
	if e.FencedBy != 0 {
		why = "fenced by epoch " + strconv.FormatUint(e.FencedBy, 10)
	}
	host := e.by.host(e.Host)
	fields := append(make([]any, 0, 24), "client", client, "host", host)
	if host != e.Host {
		fields = append(fields, "address", e.Host)
	}
	e.by.log.Info("connection", append(fields, "epoch", e.Epoch, "started", e.Started.Format(format), "duration", e.Duration.Round(time.Microsecond),
		"sent", e.Sent, "received", e.Received, "outcome", e.Outcome, "why", why, "moved", e.Moved, "replayed", e.Replayed)...)
}
