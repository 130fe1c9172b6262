package relay

import (
	"net"
	"testing"
	"time"
)

// During a drain the clients of connections over which no byte has passed wait;
// that time does not count against Hold, however short it is.
func TestMovedClientsOutlastTheDrain(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{Hold: 3 * time.Second})
	r.pair(hosts) // keeps the drain going to its end
	silent, err := net.Dial("tcp", r.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	first, err := hosts.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()

	r.Hold()
	if f := r.Fence(t.Context(), 2, "", FencePolicy{Drain: 4 * time.Second}); f.Moved != 1 || f.Reset != 1 {
		t.Errorf("fenced %+v, want one moved and one reset", f)
	}
	if s := r.Stats(); s.Expired != 0 {
		t.Fatalf("%d clients expired during the drain", s.Expired)
	}
	r.open(2, hosts.Addr().String())
	second, err := hosts.Accept()
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}
