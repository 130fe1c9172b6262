package failover

import (
	"context"
	"encoding/json"
	"os"
	"sync"
	"time"

	"understudy/hooks"
	"understudy/internal/safetext"
)

// The events that can run an operator's script or call a webhook.
const (
	EventNoStandby    hooks.Event = "no-standby"     // no other host could become primary
	EventStandbyBack  hooks.Event = "standby-back"   // another host could become primary again
	EventPrimaryLost  hooks.Event = "primary-lost"   // the primary is down
	EventNobodyUsable hooks.Event = "nobody-usable"  // no host passes its checks
	EventTwoWriters   hooks.Event = "two-writers"    // relays whose hosts are the same machines have different primaries, or two hosts of a relay say that they are primary
	EventFlapping     hooks.Event = "flapping"       // a host failed repeatedly, and the flap guard holds it back
	EventScriptFailed hooks.Event = "script-failed"  // a trigger failed, or a check script could not determine the state of a host
	EventUnverified   hooks.Event = "unverified"     // the host that was elected did not say that it is primary after its triggers
	EventCluster      hooks.Event = "cluster"        // this instance does not take part in its cluster, or a clock in it runs wrong
	EventOverBound    hooks.Event = "over-predicted" // a failover took longer than predicted
)

// noticesKept limits the notices of a relay that are queued for a script, or for
// a webhook, in addition to the one that is being delivered.
const noticesKept = 16

// Notice is an event that is reported to the operator.
type Notice struct {
	Event  hooks.Event
	Host   string // the host concerned; empty for all
	Epoch  uint64
	Reason string // one line

	At time.Time
}

// Notices holds the destinations of the events of a relay. Nothing waits for
// their delivery.
type Notices struct {
	// Path is a script, or a directory whose scripts run in byte order of their
	// names, one after the other, each for [Triggers].Timeout at most. Their
	// arguments are the host, which may be empty, and the relay. Empty, the
	// default, is none.
	Path string

	// Webhook is a URL that receives a JSON object with POST. Empty, the
	// default, is none.
	Webhook string
}

// noticeQueue holds the notices that are queued for one way of delivery.
type noticeQueue struct {
	mu      sync.Mutex
	waiting []Notice
	working bool // a goroutine is delivering them
}

// put queues a notice. Start reports that no goroutine is delivering at
// present.
func (q *noticeQueue) put(n Notice) (start, taken bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) >= noticesKept {
		return false, false
	}
	q.waiting = append(q.waiting, n)
	start = !q.working
	q.working = true
	return start, true
}

// next returns the notice to be delivered now; false when there is none.
func (q *noticeQueue) next() (Notice, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		q.working = false
		return Notice{}, false
	}
	n := q.waiting[0]
	q.waiting = q.waiting[1:]
	return n, true
}

// Notify reports an event that the conductor cannot see to the operator's
// scripts and webhook. It never blocks.
func (c *Conductor) Notify(n Notice) {
	select {
	case c.notices <- &n:
	default:
		c.log.Error("notice dropped: too many", "event", string(n.Event), "host", n.Host, "reason", n.Reason)
	}
}

// notice queues a notice, on Run's goroutine.
func (c *Conductor) notice(ctx context.Context, event hooks.Event, host, reason string) {
	c.deliver(ctx, Notice{Event: event, Host: host, Reason: reason})
}

func (c *Conductor) deliver(ctx context.Context, n Notice) {
	if n.Epoch == 0 {
		n.Epoch = c.machine.Snapshot().Epoch
	}
	n.At = time.Now()
	n.Reason = safetext.Line(n.Reason)
	for _, way := range []struct {
		to      string
		queue   *noticeQueue
		name    string
		deliver func(context.Context, Notice)
	}{
		{c.cfg().Notices.Path, &c.scriptQueue, "script", c.runNoticeScripts},
		{c.cfg().Notices.Webhook, &c.webhookQueue, "webhook", c.callWebhook},
	} {
		if way.to == "" {
			continue
		}
		start, taken := way.queue.put(n)
		if !taken {
			c.log.Error("notice dropped: those before it are not delivered yet", "to", way.name, "event", string(n.Event), "host", n.Host, "reason", n.Reason)
			continue
		}
		if !start {
			continue
		}
		c.tasks.Go(func() {
			for {
				n, ok := way.queue.next()
				if !ok || ctx.Err() != nil {
					return
				}
				way.deliver(ctx, n)
			}
		})
	}
}

// env returns the environment of a script for n.
func (n Notice) env(relay string) []string {
	return hooks.ScriptEnv{Event: n.Event, Relay: relay, Epoch: n.Epoch, New: n.Host, Reason: n.Reason}.Env()
}

// runNoticeScripts runs the operator's scripts for a notice. A failure of one
// of them is logged, and is no event.
func (c *Conductor) runNoticeScripts(ctx context.Context, n Notice) {
	cfg := c.cfg()
	fields := func(more ...any) []any { return append([]any{"event", string(n.Event), "host", n.Host}, more...) }
	scripts, warnings, err := hooks.List(cfg.Notices.Path)
	for _, w := range warnings {
		c.log.Warn("event script skipped", fields("error", w)...)
	}
	if err != nil {
		c.log.Warn("event scripts not found", fields("error", err)...)
	}
	for _, script := range scripts {
		res := cfg.NoticeScripts.Run(ctx, hooks.Script{
			Kind: hooks.Trigger, Path: script, Args: []string{n.Host, cfg.Name}, Env: n.env(cfg.Name), Timeout: cfg.Triggers.Timeout,
			Fields: []any{"relay", cfg.Name, "host", n.Host},
		})
		switch {
		case ctx.Err() != nil:
			return
		case res.OK():
			c.log.Info("event script ended", fields("script", script, "took", res.Took.Round(100*time.Microsecond))...)
		default:
			c.log.Warn("event script failed", fields("script", script, "took", res.Took.Round(100*time.Microsecond), "error", res.Reason())...)
		}
	}
}

// message is the JSON that is sent to a webhook.
type message struct {
	Event   hooks.Event `json:"event"`
	Relay   string      `json:"relay"`
	Host    string      `json:"host,omitempty"`
	Epoch   uint64      `json:"epoch"`
	Reason  string      `json:"reason"`
	Time    time.Time   `json:"time"`
	Machine string      `json:"machine,omitempty"` // where this program runs
	Text    string      `json:"text"`              // one line, for chat servers
}

// callWebhook sends a notice to the operator's server.
func (c *Conductor) callWebhook(ctx context.Context, n Notice) {
	cfg := c.cfg()
	if cfg.Notices.Webhook == "" {
		return // removed since it was queued
	}
	m := message{Event: n.Event, Relay: cfg.Name, Host: n.Host, Epoch: n.Epoch, Reason: safetext.Escape(n.Reason), Time: n.At}
	m.Machine, _ = os.Hostname()
	m.Text = "understudy " + cfg.Name + ": " + string(n.Event)
	for _, part := range []string{n.Host, m.Reason} {
		if part != "" {
			m.Text += ": " + part
		}
	}
	body, err := json.Marshal(m)
	if err == nil {
		err = cfg.Deliver(ctx, cfg.Notices.Webhook, body)
	}
	switch {
	case ctx.Err() != nil:
	case err != nil:
		c.log.Error("webhook failed, the notice is lost", "event", string(n.Event), "host", n.Host, "error", err)
	default:
		c.log.Debug("webhook called", "event", string(n.Event), "host", n.Host)
	}
}
