package relay

import (
	"fmt"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// With a lease the kernel does not go on delivering to a host what was written before it
// was over: for no longer than a lease, and not at all once the process is killed. That is
// so from the first byte. Towards clients nothing is different.
func TestLeaseSocketOptions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ setting, client, host time.Duration }{
		{zero, 0, 5 * time.Second},
		{20 * time.Second, 20 * time.Second, 5 * time.Second},
		{time.Second, time.Second, time.Second},
	} {
		t.Run(fmt.Sprint(tt.setting), func(t *testing.T) {
			t.Parallel()
			r, hosts := startPairs(t, Config{Lease: new(switchedLease), LeaseTime: 5 * time.Second, UserTimeout: tt.setting})
			client, host := r.pair(hosts)
			for _, end := range []struct {
				name  string
				fd    int
				limit time.Duration
				reset bool
			}{
				{"client", relayEnd(t, client.LocalAddr()), tt.client, false},
				{"host", relayEnd(t, host.LocalAddr()), tt.host, true},
			} {
				if got, err := unix.GetsockoptInt(end.fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); err != nil || got != int(end.limit/time.Millisecond) {
					t.Errorf("%s: TCP_USER_TIMEOUT %d, %v, want %v", end.name, got, err, end.limit)
				}
				var linger unix.Linger
				size := uint32(unsafe.Sizeof(linger))
				if _, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(end.fd), unix.SOL_SOCKET, unix.SO_LINGER,
					uintptr(unsafe.Pointer(&linger)), uintptr(unsafe.Pointer(&size)), 0); e != 0 || (linger.Onoff != 0) != end.reset || linger.Linger != 0 {
					t.Errorf("%s: SO_LINGER %+v, %v, want a reset: %v", end.name, linger, e, end.reset)
				}
			}
		})
	}
}
