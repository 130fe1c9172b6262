package failover

import (
	"time"

	"understudy/relay"
	"understudy/selector"
)

// OnHang is what follows when the primary accepts clients, passes its checks and
// answers no client.
type OnHang int

const (
	// HangFailsReplayable counts it as a failed check if the first bytes of clients
	// that wait may be sent again to another host: they lose nothing by a failover.
	// Otherwise it is a warning.
	HangFailsReplayable OnHang = iota

	// HangFails counts it as a failed check in any case.
	HangFails

	// HangWarns only warns.
	HangWarns
)

// hang returns what is known of the clients of a host that hangs, if it is the
// primary.
func (c *Conductor) hang(now selector.Snapshot, host string) relay.Hang {
	if c.cfg().Hang == nil || now.Primary != host {
		return relay.Hang{}
	}
	h := c.cfg().Hang()
	if h.Epoch != now.Epoch {
		return relay.Hang{}
	}
	return h
}

// hung is a primary that failed a check because it hangs.
type hung struct {
	host string
	at   time.Time
	hang relay.Hang
}

// hungFor is the time for which such a host fails its checks after the relay was
// shut, when no client waits for it any more: the election that follows must not take
// the word of its kernel.
const hungFor = 5 * time.Second

// failsByHang reports whether a check of a host that has passed counts as failed
// because the host hangs. With no other host that could take over, that would only
// keep its clients out. A host that the flap guard holds back does not count as one: if
// all hosts hang, for what they all depend on, the guard slows the switches down.
func (c *Conductor) failsByHang(host string) (relay.Hang, bool) {
	now := c.Snapshot()
	if was := c.hung.Load(); was != nil && was.host == host && was.hang.Epoch == now.Epoch && time.Since(was.at) < hungFor {
		return was.hang, true
	}
	h := c.hang(now, host)
	if !h.Hangs() || c.cfg().OnHang == HangWarns || c.cfg().OnHang == HangFailsReplayable && !h.Replayable {
		return h, false
	}
	for _, other := range now.Hosts {
		if other.Name != host && other.State == selector.Up && !other.Guarded && c.status.Load().Lock(Drain, other.Name) == nil {
			c.hung.Store(&hung{host, time.Now(), h})
			return h, true
		}
	}
	return h, false
}

// hangQuiet is the time for which the warning of a host that hangs is not repeated.
const hangQuiet = time.Minute

// warnOfHang warns that the primary answers no client although it passes its checks.
func (c *Conductor) warnOfHang(now selector.Snapshot) {
	if !c.hangWarned.IsZero() && time.Since(c.hangWarned) < hangQuiet {
		return
	}
	h := c.hang(now, now.Primary)
	if !h.Hangs() {
		return
	}
	c.hangWarned = time.Now()
	c.log.Warn("a host accepts clients and answers none of them", "host", now.Primary, "epoch", now.Epoch,
		"clients", h.Clients, "for", h.For.Round(100*time.Millisecond))
}
