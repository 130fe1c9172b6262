package relay

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

func TestConnectionLimit(t *testing.T) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	all := int64(min(lim.Cur, 1<<30))
	if all == 1<<30 {
		t.Skip("SKIPPED: there is no descriptor limit to be kept to")
	}
	most := (all - 64) / 2
	for _, tt := range []struct {
		requested, reserve int
		want               int64
	}{
		{0, 0, most},
		{7, 0, 7},
		{1 << 30, 0, most},
		{0, 10, most - 5},
		{0, 1 << 30, (all - 64 - all/4) / 2}, // never all of them
	} {
		if got := newSettings(Config{MaxConnections: tt.requested, Reserve: tt.reserve}).limit; got != tt.want {
			t.Errorf("of %d descriptors, %d asked for and %d reserved: %d connections, want %d", all, tt.requested, tt.reserve, got, tt.want)
		}
	}
}

// Relays that share the descriptors of the process share the limit on them.
func TestConnectionLimitTogether(t *testing.T) {
	most := connectionLimit(0)
	var together atomic.Int64
	r := start(t, Config{Engine: engine(2), Together: &together})
	r.open(1, newHost(t, echo).addr)
	others := most - 2 // what other relays have open
	together.Add(others)
	var all []*net.TCPConn
	for range 3 {
		c := r.dial()
		io.WriteString(c, "x")
		all = append(all, c)
	}
	readSome(t, all[0], 1)
	readSome(t, all[1], 1)
	proctest.Until(t, "the third to wait", func() bool { return r.Waiting().Queued == 1 })
	time.Sleep(50 * time.Millisecond) // time for a wrong behaviour to show
	if s := r.Stats(); s.Live != 2 {
		t.Errorf("%d are live, want 2", s.Live)
	}
	together.Add(-1) // a connection of another relay has ended
	readSome(t, all[2], 1)
	for _, c := range all {
		c.Close()
	}
	proctest.Until(t, "all places to be given back", func() bool { return together.Load() == others-1 })
}
