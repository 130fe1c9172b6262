package relay

import (
	"io"
	"net"
	"testing"

	"understudy/internal/proctest"
)

// Each connection counts for the host that it leads to, with its bytes, also when
// another host is primary meanwhile.
func TestHostStats(t *testing.T) {
	t.Parallel()
	r, one := startPairs(t, Config{})
	two := listen(t, "127.0.0.1:0")
	defer two.Close()
	exchange := func(c, s net.Conn, up, down string) {
		t.Helper()
		for _, way := range []struct {
			from, to net.Conn
			text     string
		}{{c, s, up}, {s, c, down}} {
			if _, err := io.WriteString(way.from, way.text); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(way.to, make([]byte, len(way.text))); err != nil {
				t.Fatal(err)
			}
		}
	}
	first, firstHost := r.pair(one)
	exchange(first, firstHost, "12345", "123")
	r.Hold()
	r.Fence(t.Context(), 2, one.Addr().String(), FencePolicy{})
	r.open(2, two.Addr().String())
	second, secondHost := r.pair(two)
	exchange(second, secondHost, "1", "12")
	exchange(first, firstHost, "1", "1")
	var got map[string]HostStats
	want := func(what string, a, b HostStats) {
		t.Helper()
		proctest.Until(t, what, func() bool {
			got = r.HostStats()
			return got[one.Addr().String()] == a && got[two.Addr().String()] == b
		})
	}
	want("both are open", HostStats{1, 1, 7, 5}, HostStats{1, 1, 2, 3})
	first.Close()
	firstHost.Close()
	want("the first has ended", HostStats{1, 0, 7, 5}, HostStats{1, 1, 2, 3})
	if s := r.Stats(); s.Sent != 9 || s.Received != 8 {
		t.Errorf("together %d bytes were sent and %d received, want 9 and 8", s.Sent, s.Received)
	}
}
