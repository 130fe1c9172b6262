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

// manager is a service manager that the program notifies of its state; see
// sd_notify(3).
type manager struct {
	path string

	mu       sync.Mutex // guards messages
	messages []string
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
			m.messages = append(m.messages, string(b[:n]))
			m.mu.Unlock()
		}
	}()
	return m
}

// all is every notification, in order.
func (m *manager) all() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.messages, "\n")
}

// start starts the program below the manager.
func (m *manager) start(t *testing.T, env []string, args ...string) *proctest.Understudy {
	t.Helper()
	return proctest.StartCommand(t, proctest.BinaryCommand(program(t), append(env, "NOTIFY_SOCKET="+m.path), args...))
}

func TestServiceManagerIsNotified(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	a, b := (&proctest.Host{Name: "a"}).Start(t), (&proctest.Host{Name: "b"}).Start(t)
	addr := freeAddr(t)
	seen, opens := filepath.Join(t.TempDir(), "seen"), filepath.Join(t.TempDir(), "opens")
	trigger := script(t, fmt.Sprintf("env | grep -E '^(NOTIFY|WATCHDOG)' >>%s\nsleep 0.3\necho >>%s\n", seen, opens))
	u := m.start(t, []string{"WATCHDOG_USEC=400000"},
		"--bind", addr, "--hosts", a.Addr()+","+b.Addr(), "--on-failover", trigger, "--drain-timeout", "60s")
	u.Until("it is ready", func() bool { return strings.Contains(m.all(), "READY=1") })
	if len(lines(opens)) == 0 { // the trigger is the last thing before the relay opens
		t.Errorf("ready before the relay was open:\n%s", m.all())
	}
	if who, err := proctest.Greeting(addr, patience); who != "a" || err != nil {
		t.Errorf("it is ready, and a client is answered by %q, %v, want a", who, err)
	}
	u.Until("the primary is reported", func() bool {
		return strings.Contains(m.all(), "STATUS="+portOf(addr)+": "+a.Addr()+" is primary (epoch 1)")
	})
	u.Until("the watchdog is fed", func() bool { return strings.Count(m.all(), "WATCHDOG=1") > 3 })
	a.Kill()
	u.Until("the next primary is reported", func() bool {
		return strings.Contains(m.all(), "STATUS="+portOf(addr)+": "+b.Addr()+" is primary (epoch 2)")
	})
	u.Signal(syscall.SIGHUP)
	u.Until("the reload and its end are reported", func() bool {
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
	u.Until("the end is reported", func() bool { return strings.Contains(m.all(), "STOPPING=1") })
	fed := strings.Count(m.all(), "WATCHDOG=1")
	u.Until("the watchdog is fed to the end", func() bool { return strings.Count(m.all(), "WATCHDOG=1") > fed+3 })
	if code := u.EndAtOnce(syscall.SIGTERM); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// When no host is usable the start is over once that is known.
func TestServiceManagerDoesNotWaitForHosts(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	addr := freeAddr(t)
	u := m.start(t, nil, "--bind", addr, "--hosts", freeAddr(t))
	u.Until("it is ready", func() bool { return strings.Contains(m.all(), "READY=1") })
	u.Until("its state is reported", func() bool { return strings.Contains(m.all(), "STATUS="+portOf(addr)+": no primary, selecting") })
}
