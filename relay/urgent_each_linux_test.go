//go:build !portable

package relay

import (
	"io"
	"testing"
)

// The portable plane is woken for ordinary bytes only, so it may come too late
// for an urgent one. The Linux plane is woken for each.

// Many urgent bytes, one after the other, each read before the next.
func TestManyUrgentBytes(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{})
	client, host := r.pair(hosts)
	inline(t, host)
	for k := range 300 {
		io.WriteString(client, "ab")
		sendUrgent(t, client, '!')
		io.WriteString(client, "c")
		if got := string(readInline(t, host, 4)); got != "ab!c" {
			t.Fatalf("round %d: got %q", k, got)
		}
	}
}
