package relay

import (
	"testing"

	"golang.org/x/sys/unix"
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
		asked, reserve int
		want           int64
	}{
		{0, 0, most},
		{7, 0, 7},
		{1 << 30, 0, most},
		{0, 10, most - 5},
		{0, 1 << 30, (all - 64 - all/4) / 2}, // never all of them
	} {
		if got := connectionLimit(tt.asked, tt.reserve); got != tt.want {
			t.Errorf("connectionLimit(%d, %d) = %d of %d descriptors, want %d", tt.asked, tt.reserve, got, all, tt.want)
		}
	}
}
