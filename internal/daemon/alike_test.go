package daemon

import (
	"testing"
	"time"

	"understudy/config"
)

// Instances of which only some have triggers differ: one without would make a host
// primary that nobody promotes. Where a trigger is may differ.
func TestAlikeNamesTriggers(t *testing.T) {
	of := func(trigger string) string {
		r := config.Relay{Hosts: []string{"192.0.2.1:1"}, OnFailover: trigger}
		return alike(r, config.Cluster{Lease: time.Second, Agree: "any", OnStoreLoss: "keep"})
	}
	const without = "hosts=192.0.2.1:1 lease=1s agree=any on-store-loss=keep"
	if got := of(""); got != without {
		t.Errorf("without triggers %q", got)
	}
	if a, b := of("/a"), of("/b"); a != without+" triggers=yes" || a != b {
		t.Errorf("with triggers %q and %q", a, b)
	}
}
