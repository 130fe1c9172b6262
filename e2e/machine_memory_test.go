//go:build linux

package e2e

import (
	"os"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// idleMemory is what the program may hold while it only checks the two hosts of a
// relay. It holds 12.7 MB, about half of that pages of its file; it held 11.1 MB
// before it had the clients of databases, of etcd and of Prometheus. The rest is for
// other kernels. Without the return of what only the start needs it holds 24 MB.
const idleMemory = 14 << 20

func TestIdleProgramIsSmall(t *testing.T) {
	t.Parallel()
	if os.Getpagesize() != 4096 {
		t.Skip("SKIPPED: the bound is for pages of 4 KiB, and this machine has larger ones")
	}
	a, b := (&proctest.Host{Name: "a"}).Start(t), (&proctest.Host{Name: "b"}).Start(t)
	addr := freeAddr(t)
	u := start(t, "--bind", addr, "--hosts", a.Addr()+","+b.Addr())
	u.WaitLog("relay open")
	now := look{}
	defer func() { t.Logf("%d KiB of memory, %d threads", now.memory>>10, now.threads) }()
	u.Until("the idle program is small", func() bool {
		now = lookAt(t, u.PID())
		return now.memory <= idleMemory
	})
	time.Sleep(3 * time.Second) // of checks
	if now = lookAt(t, u.PID()); now.memory > idleMemory {
		t.Errorf("after some checks the idle program holds %d KiB, want %d at most", now.memory>>10, idleMemory>>10)
	}
	awaitGreeting(t, u, addr, "a")
	a.Kill()
	awaitGreeting(t, u, addr, "b")
}
