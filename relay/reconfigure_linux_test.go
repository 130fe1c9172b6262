package relay

import (
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The user timeout of who comes later is the new one, on both sides; who is open
// keeps the old.
func TestReconfigureUserTimeout(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{Loops: 2, UserTimeout: 7 * time.Second})
	want := func(what string, end net.Conn, limit int) {
		t.Helper()
		fd := relayEnd(t, end.LocalAddr())
		waitFor(t, fmt.Sprintf("the timeout towards %s to be %d", what, limit), func() bool {
			got, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
			return err == nil && got == limit
		})
	}
	oldClient, oldHost := r.pair(hosts)
	want("a client", oldClient, 7000)
	want("a host", oldHost, 7000)
	for k, limit := range []time.Duration{3 * time.Second, -1, 2 * time.Second} {
		hosts := listen(t, "127.0.0.1:0") // by which its connection is known
		defer hosts.Close()
		r.open(uint64(k+2), hosts.Addr().String())
		r.reconfigure(Config{Listen: []string{"127.0.0.1:0"}, UserTimeout: limit})
		client, host := r.pair(hosts)
		ms := int(max(limit, 0) / time.Millisecond)
		want("a new client", client, ms)
		want("a new host", host, ms)
	}
	want("an old client", oldClient, 7000)
	want("an old host", oldHost, 7000)
}
