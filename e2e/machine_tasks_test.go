//go:build linux

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"understudy/control"
	"understudy/internal/proctest"
)

// taskGroup is a control group that limits how many tasks (processes and
// threads) there are in it.
type taskGroup struct {
	t   *testing.T
	dir string
}

// newTaskGroup makes a group, of cgroup v1 or v2, and skips the test where
// that cannot be. What is in it is killed at the end.
func newTaskGroup(t *testing.T) taskGroup {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root, for a control group")
	}
	parent := "/sys/fs/cgroup/pids"
	if text, err := os.ReadFile("/sys/fs/cgroup/cgroup.subtree_control"); err == nil && strings.Contains(string(text), "pids") {
		parent = "/sys/fs/cgroup"
	}
	dir, err := os.MkdirTemp(parent, "understudy-test-")
	if err != nil {
		t.Skip("SKIP: needs the pids controller of cgroup v1 or v2: ", err)
	}
	g := taskGroup{t, dir}
	if _, err := os.Stat(filepath.Join(dir, "pids.max")); err != nil {
		os.Remove(dir)
		t.Skip("SKIP: needs the pids controller of cgroup v1 or v2: ", err)
	}
	t.Cleanup(func() {
		proctest.Until(t, "the control group is empty", func() bool { return os.Remove(dir) == nil })
	})
	return g
}

func (g taskGroup) write(name, text string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, name), []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// count is the number of tasks that are in the group.
func (g taskGroup) count() int {
	g.t.Helper()
	text, err := os.ReadFile(filepath.Join(g.dir, "pids.current"))
	if err != nil {
		g.t.Fatal(err)
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return n
}

// Other processes use all the tasks of the control group: no thread and no
// process can be started any more. The program goes on with the threads it has,
// under clients, verdicts and commands that are kept on disk. With scripts, it
// logs that they cannot be started, and switches nothing because of it.
func TestOutOfTasks(t *testing.T) {
	for _, scripts := range []bool{false, true} {
		for i := range runs(t, 3) {
			t.Run(fmt.Sprintf("scripts=%v/%d", scripts, i), func(t *testing.T) { outOfTasks(t, scripts) })
		}
	}
}

func outOfTasks(t *testing.T, scripts bool) {
	t.Helper()
	group := newTaskGroup(t)
	pong := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(10 * time.Millisecond) // what a service takes to answer
		fmt.Fprint(w, "pong")
	}))
	defer pong.Close()
	flags := t.TempDir()
	if err := os.WriteFile(filepath.Join(flags, "web.80"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o := newOperated(t)
	verdict := freeAddr(t)
	// The shell enters the group before it becomes the program.
	args := []string{"-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, group.dir, program(t),
		"--bind", o.addr, "--hosts", o.a.Addr() + "," + o.b.Addr(), "--control", o.socket, "--state-dir", t.TempDir(),
		"--http", verdict, "--lport", portOf(pong.Listener.Addr().String()), "--status-dir", flags}
	args = append(args, unhurried...)
	if scripts {
		args = append(args, "--check-host", script(t, "exit 0\n"), "--check-interval", "100ms", "--on-failover", script(t, recording(o.record)))
	}
	cmd := proctest.BinaryCommand("/bin/sh", nil, args...)
	o.Understudy = proctest.StartCommand(t, cmd)
	o.awaitGreeting("a")
	o.first = o.look()
	t.Logf("%d tasks in the group", group.count())

	group.write("pids.max", "1") // as if others had taken the rest, and took whatever ends
	clients := o.load()
	stop := make(chan struct{})
	var busy sync.WaitGroup
	defer busy.Wait()
	var once sync.Once
	var served, kept atomic.Int64
	var stopped atomic.Bool
	end := func() {
		once.Do(func() { close(stop) })
		stopped.Store(true)
	}
	defer end()
	again := func(do func(n int) error) {
		busy.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := do(n); err != nil {
					select {
					case <-stop:
					default:
						t.Error(err)
						end()
					}
					return
				}
			}
		})
	}
	for i := range 100 {
		again(func(n int) error {
			path := fmt.Sprintf("/ping?client=%d.%d", i, n)
			if i%2 == 0 {
				path = "/status?SERVICE=web&PORT=80"
			}
			served.Add(1)
			return wantOK("http://" + verdict + path)
		})
	}
	for range 4 {
		again(func(int) error {
			_, err := o.client.Status(t.Context())
			return err
		})
	}
	again(func(n int) error { // is written to the disk
		kept.Add(1)
		return o.client.Order(t.Context(), []string{"freeze", "unfreeze"}[n%2], control.Order{Reason: "test"}, new(any))
	})
	warnings := func() int { return countLog(o.Understudy, "[WARN]", "task limit reached") }
	o.Until("much was asked", func() bool {
		return served.Load() > 3000 && kept.Load() > 30 && (!scripts || warnings() > 0) || stopped.Load()
	})
	end()
	busy.Wait()
	if err := o.client.Order(t.Context(), "unfreeze", control.Order{}, new(any)); err != nil {
		t.Error(err)
	}
	report := finish(o.Understudy, clients)
	wantNoLoss(t, report, time.Time{}, "a")
	o.wantNoSuspicion()
	if scripts {
		if n := warnings(); n != 1 {
			t.Errorf("the limit is logged %d times, want once", n)
		}
		awaitUnknown(t, o.socket, o.a.Addr(), "limit of tasks")
	}

	group.write("pids.max", "max")
	o.Until("the hosts are up", func() bool {
		now, err := o.client.Status(t.Context())
		return err == nil && now.Relays[0].Hosts[0].State == "up" && now.Relays[0].Hosts[1].State == "up"
	})
	o.a.Kill()
	o.awaitGreeting("b")
	if scripts {
		o.wantTriggers(o.started(), o.failedOver())
	}
	o.end()
}

func wantOK(url string) error {
	c := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s %.100q", url, resp.Status, body)
	}
	return nil
}
