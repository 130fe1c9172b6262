//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// activator holds listening sockets as systemd does for a socket unit, and
// passes them to the programs that it starts; see sd_listen_fds(3).
type activator struct {
	files []*os.File
	names []string
	addrs []string
}

// listen adds a socket of that name.
func (a *activator) listen(t *testing.T, name string) {
	t.Helper()
	l := listen(t)
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	a.files, a.names, a.addrs = append(a.files, file), append(a.names, name), append(a.addrs, l.Addr().String())
	l.Close() // the file is another descriptor of the same socket
}

// start starts the program with the sockets.
func (a *activator) start(t *testing.T, args ...string) *proctest.Understudy {
	t.Helper()
	cmd := proctest.BinaryCommand(program(t), []string{
		fmt.Sprintf("LISTEN_FDS=%d", len(a.files)), "LISTEN_FDNAMES=" + strings.Join(a.names, ":"),
	}, args...)
	// LISTEN_PID is known after the fork only.
	cmd.Args = append([]string{"sh", "-c", `export LISTEN_PID=$$; exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	cmd.ExtraFiles = a.files
	return proctest.StartCommand(t, cmd)
}

// While the program is restarted the clients wait in the queue of the socket:
// none is refused, whether it ends by TERM or is killed.
func TestPassedSocketOutlivesRestarts(t *testing.T) {
	t.Parallel()
	var sockets activator
	sockets.listen(t, "understudy.socket")
	host := (&proctest.Host{Name: "a"}).Start(t)
	args := []string{"--hosts", host.Addr(), "--drain-timeout", "60s"}

	load := proctest.StartLoad(t, sockets.addrs[0], perSecond, patience) // the first come before the program does
	more := func(u *proctest.Understudy) {
		t.Helper()
		served := load.Served()
		u.Until("clients are served", func() bool { return load.Served() > served+perSecond })
	}
	u := sockets.start(t, args...)
	more(u)
	u.Signal(syscall.SIGTERM)
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
	pause(t, load)
	u = sockets.start(t, args...)
	more(u)
	if r := load.Stop(); len(r.Lost()) > 0 {
		t.Errorf("clients were lost over a restart: %v", r)
	} else {
		t.Log(r)
	}

	// When the program is killed, only the clients that it had accepted are lost.
	load = proctest.StartLoad(t, sockets.addrs[0], perSecond, patience)
	more(u)
	u.Signal(syscall.SIGKILL)
	u.Exit()
	dead := time.Now()
	pause(t, load)
	u = sockets.start(t, args...)
	more(u)
	r := load.Stop()
	t.Log(r)
	for _, c := range r.Lost() {
		if errors.Is(c.Err, syscall.ECONNREFUSED) || c.Start.After(dead) {
			t.Errorf("lost a client %v after the end: %v", c.Start.Sub(dead), c.Err)
		}
	}
}

// pause is a time without a program, in which clients come.
func pause(t *testing.T, load *proctest.Load) {
	t.Helper()
	// Connections that are open when the program ends are served or lost soon.
	begin, served := time.Now(), load.Served()
	proctest.Until(t, "no client is served", func() bool {
		if now := load.Served(); now != served {
			begin, served = time.Now(), now
		}
		return time.Since(begin) > 300*time.Millisecond
	})
}

// With several relays each has the sockets of its name.
func TestPassedSocketsByName(t *testing.T) {
	t.Parallel()
	var sockets activator
	for _, name := range []string{"mail", "orders", "mail"} {
		sockets.listen(t, name)
	}
	orders, mail := (&proctest.Host{Name: "o"}).Start(t), (&proctest.Host{Name: "m"}).Start(t)
	file := filepath.Join(t.TempDir(), "understudy.yaml")
	configure := func(format string, args ...any) {
		t.Helper()
		if err := os.WriteFile(file, fmt.Appendf(nil, format, args...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	both := fmt.Sprintf("relays:\n- {name: orders, hosts: [%q]}\n- {name: mail, hosts: [%q]}\n", orders.Addr(), mail.Addr())
	configure("%s", both)
	env := filepath.Join(t.TempDir(), "env")
	trigger := script(t, "env | grep ^LISTEN_ >>"+env+"\n")
	u := sockets.start(t, "--config", file, "--on-failover", trigger)
	for i, want := range []string{"m", "o", "m"} {
		if got, err := proctest.Greeting(sockets.addrs[i], patience); got != want {
			t.Errorf("socket %d of %s: %q, %v, want %s", i, sockets.names[i], got, err, want)
		}
	}
	if got := lines(env); len(got) > 0 {
		t.Errorf("triggers see %q", got)
	}

	// A relay with a socket cannot be taken away from it, nor renamed: clients
	// would wait for ever.
	configure("relays:\n- {name: orders, hosts: [%q]}\n", orders.Addr())
	u.Signal(syscall.SIGHUP)
	u.WaitLog(`passed socket \"mail\": there is no relay of that name`)
	configure("%s", strings.Replace(both, "name: orders,", "name: orders, interval: 500ms,", 1))
	u.Signal(syscall.SIGHUP)
	u.WaitLog("relay orders: interval")
	for i, want := range []string{"m", "o", "m"} {
		if got, err := proctest.Greeting(sockets.addrs[i], patience); got != want {
			t.Errorf("after a reload: socket %d of %s: %q, %v, want %s", i, sockets.names[i], got, err, want)
		}
	}
}

// A socket is assigned once: to give it to a relay of another name takes a
// restart.
func TestPassedSocketStaysWithItsRelay(t *testing.T) {
	t.Parallel()
	var sockets activator
	sockets.listen(t, "understudy.socket")
	host := (&proctest.Host{Name: "a"}).Start(t)
	file := filepath.Join(t.TempDir(), "understudy.yaml")
	name := func(name string) {
		t.Helper()
		if err := os.WriteFile(file, fmt.Appendf(nil, "relays: [{name: %s, hosts: [%q]}]\n", name, host.Addr()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	name("orders")
	u := sockets.start(t, "--config", file)
	u.WaitLog("relay open")
	name("sales")
	u.Signal(syscall.SIGHUP)
	u.WaitLog("relay sales: the socket that was passed for it is used by the relay that it replaces: this needs a restart")
	if got, err := proctest.Greeting(sockets.addrs[0], patience); got != "a" {
		t.Errorf("after the reload: %q, %v", got, err)
	}
}

// A socket that no relay takes is an error at the start, before anything runs.
func TestPassedSocketsMustBeTaken(t *testing.T) {
	t.Parallel()
	var sockets activator
	sockets.listen(t, "mail")
	u := sockets.start(t, "--hosts", "127.0.0.1:1")
	if code := u.Exit(); code != 2 || !strings.Contains(u.Log(), `passed socket "mail": there is no relay of that name`) {
		t.Errorf("exit status %d, %s", code, u.Log())
	}
}
