package relay

import (
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

// Later connections have the new user timeout, on both sides; open ones keep
// the old.
func TestReconfigureUserTimeout(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{Engine: engine(2), UserTimeout: 7 * time.Second})
	want := func(what string, end net.Conn, limit int) {
		t.Helper()
		fd := relayEnd(t, end.LocalAddr())
		proctest.Until(t, fmt.Sprintf("the timeout towards %s to be %d", what, limit), func() bool {
			got, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
			return err == nil && got == limit
		})
	}
	oldClient, oldHost := r.pair(hosts)
	want("a client", oldClient, 7000)
	want("a host", oldHost, 7000)
	for k, limit := range []time.Duration{3 * time.Second, zero, 2 * time.Second} {
		hosts := listen(t, "127.0.0.1:0") // identifies its connection
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
