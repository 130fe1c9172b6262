package failover

import (
	"testing"
	"time"

	"understudy/relay"
	"understudy/selector"
)

func TestFailsByHang(t *testing.T) {
	t.Parallel()
	up := []selector.Host{{Name: "a", State: selector.Up}, {Name: "b", State: selector.Up}}
	down := []selector.Host{{Name: "a", State: selector.Up}, {Name: "b", State: selector.Down}}
	guarded := []selector.Host{{Name: "a", State: selector.Up}, {Name: "b", State: selector.Up, Guarded: true}}
	hangs := relay.Hang{Epoch: 3, Clients: 5, For: 2 * time.Second}
	replayable := hangs
	replayable.Replayable = true
	old := replayable
	old.Epoch = 2
	for _, tt := range []struct {
		name  string
		on    OnHang
		hang  relay.Hang
		hosts []selector.Host
		locks []Lock
		host  string
		want  bool
	}{
		{"it answers", HangFails, relay.Hang{}, up, nil, "a", false},
		{"fail", HangFails, hangs, up, nil, "a", true},
		{"alarm", HangWarns, replayable, up, nil, "a", false},
		{"auto, clients would be reset", HangFailsReplayable, hangs, up, nil, "a", false},
		{"auto, clients lose nothing", HangFailsReplayable, replayable, up, nil, "a", true},
		{"no other host is up", HangFails, replayable, down, nil, "a", false},
		{"the other host is drained", HangFails, replayable, up, []Lock{{Kind: Drain, Host: "b"}}, "a", false},
		{"the other host has failed again and again", HangFails, replayable, guarded, nil, "a", false},
		{"a standby", HangFails, replayable, up, nil, "b", false},
		{"of an earlier epoch", HangFails, old, up, nil, "a", false},
	} {
		c := new(Conductor)
		c.settings.Store(&settings{Config: Config{OnHang: tt.on, Hang: func() relay.Hang { return tt.hang }}})
		c.status.Store(&Status{Snapshot: selector.Snapshot{Primary: "a", Epoch: 3, Hosts: tt.hosts}, Locks: tt.locks})
		if _, got := c.failsByHang(tt.host); got != tt.want {
			t.Errorf("%s: a check of %s that passed counts as failed: %v, want %v", tt.name, tt.host, got, tt.want)
		}
		if !tt.want {
			continue
		}
		// The relay is shut now, and no client waits for the host. The election must
		// not take it because its kernel accepts connections.
		c.status.Store(&Status{Snapshot: selector.Snapshot{Epoch: 3, Hosts: tt.hosts}})
		c.settings.Store(&settings{Config: Config{OnHang: tt.on, Hang: func() relay.Hang { return relay.Hang{} }}})
		if _, got := c.failsByHang("a"); !got {
			t.Errorf("%s: it passes during the election", tt.name)
		}
		c.status.Store(&Status{Snapshot: selector.Snapshot{Primary: "b", Epoch: 4, Hosts: tt.hosts}})
		if _, got := c.failsByHang("a"); got {
			t.Errorf("%s: it goes on failing after the election", tt.name)
		}
	}
}
