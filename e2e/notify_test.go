//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"understudy/internal/proctest"
)

// manager is a service manager that is told how the program is; see
// sd_notify(3).
type manager struct {
	path string

	mu   sync.Mutex // guards told
	told []string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &manager{path: filepath.Join(dir, "notify")}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			m.mu.Lock()
			m.told = append(m.told, string(b[:n]))
			m.mu.Unlock()
		}
	}()
	return m
}

// all is everything that was told, in order.
func (m *manager) all() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.told, "\n")
}

// start starts the program below the manager.
func (m *manager) start(t *testing.T, env []string, args ...string) *proctest.Understudy {
	t.Helper()
	return proctest.StartCommand(t, proctest.BinaryCommand(program(t), append(env, "NOTIFY_SOCKET="+m.path), args...))
}

func TestServiceManagerIsTold(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	a, b := (&proctest.Host{Name: "a"}).Start(t), (&proctest.Host{Name: "b"}).Start(t)
	addr := freeAddr(t)
	seen := filepath.Join(t.TempDir(), "seen")
	trigger := script(t, fmt.Sprintf("env | grep -E '^(NOTIFY|WATCHDOG)' >>%s\nsleep 0.3\n", seen))
	u := m.start(t, []string{"WATCHDOG_USEC=400000"},
		"--bind", addr, "--hosts", a.Addr()+","+b.Addr(), "--on-failover", trigger, "--drain-timeout", "60s")
	u.Until("it is ready", func() bool { return strings.Contains(m.all(), "READY=1") })
	if !strings.Contains(u.Log(), "relay open") {
		t.Errorf("ready before the relay was open:\n%s", m.all())
	}
	u.Until("the primary is told", func() bool {
		return strings.Contains(m.all(), "STATUS=main: "+a.Addr()+" is primary (epoch 1)")
	})
	u.Until("the watchdog is fed", func() bool { return strings.Count(m.all(), "WATCHDOG=1") > 3 })
	a.Kill()
	u.Until("the next primary is told", func() bool {
		return strings.Contains(m.all(), "STATUS=main: "+b.Addr()+" is primary (epoch 2)")
	})
	u.Signal(syscall.SIGHUP)
	u.Until("the reload is told, and its end", func() bool {
		_, behind, ok := strings.Cut(m.all(), "RELOADING=1\nMONOTONIC_USEC=")
		return ok && strings.Contains(behind, "READY=1")
	})
	if text := strings.Join(lines(seen), " "); text != "" {
		t.Errorf("the trigger sees %s", text)
	}
	// The watchdog is fed while the last connection drains, too.
	conn := dial(t, addr)
	conn.SetNoDelay(true)
	u.Until("the connection is there", func() bool { _, err := conn.Read(make([]byte, 1)); return err == nil })
	u.Signal(syscall.SIGTERM)
	u.Until("the end is told", func() bool { return strings.Contains(m.all(), "STOPPING=1") })
	fed := strings.Count(m.all(), "WATCHDOG=1")
	u.Until("the watchdog is fed to the end", func() bool { return strings.Count(m.all(), "WATCHDOG=1") > fed+3 })
	u.Signal(syscall.SIGTERM)
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// When nobody is usable the start is over once that is known.
func TestServiceManagerDoesNotWaitForHosts(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	u := m.start(t, nil, "--bind", freeAddr(t), "--hosts", freeAddr(t))
	u.Until("it is ready", func() bool { return strings.Contains(m.all(), "READY=1") })
	u.Until("its state is told", func() bool { return strings.Contains(m.all(), "STATUS=main: no primary, selecting") })
}
