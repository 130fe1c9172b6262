//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"understudy/control"
	"understudy/internal/proctest"
)

const stranger = 65533

// users runs the program as several users, in a home that belongs to the first.
type users struct {
	t        *testing.T
	binary   string
	variable string // with the path of the home
	home     string
}

// asUsers copies the program to where every user may run it, as name.
func asUsers(t *testing.T, variable, name string) users {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root, to be other users")
	}
	// Neither the program as it was built nor a test's directory can be reached
	// by other users.
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	u := users{t, filepath.Join(dir, name), variable, filepath.Join(dir, "home")}
	text, err := os.ReadFile(program(t))
	if err == nil {
		err = errors.Join(os.WriteFile(u.binary, text, 0o755), os.Chmod(dir, 0o755), os.Mkdir(u.home, 0o755), os.Chmod(u.home, 0o755),
			os.Chown(u.home, nobody, nobody))
	}
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// as starts the program. All users but the stranger know the home.
func (u users) as(uid uint32, control string, args ...string) *proctest.Understudy {
	u.t.Helper()
	cmd := proctest.BinaryCommand(u.binary, []string{"CONTROL=" + control, "HOME=/"}, args...)
	if uid != stranger || u.variable == "TMPDIR" {
		cmd.Env = append(cmd.Env, u.variable+"="+u.home)
	}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return proctest.StartCommand(u.t, cmd)
}

// want runs a verb and checks its exit status and what it prints.
func (u users) want(uid uint32, status int, verb string, expressions ...string) string {
	u.t.Helper()
	v := u.as(uid, "", strings.Fields(verb)...)
	got := v.Exit()
	text := v.Stdout() + v.Log()
	if got != status {
		u.t.Errorf("%s as %d: exit status %d, want %d:\n%s", verb, uid, got, status, text)
	}
	for _, e := range expressions {
		if !regexp.MustCompile("(?m)" + e).MatchString(text) {
			u.t.Errorf("%s as %d: nothing matches %s in:\n%s", verb, uid, e, text)
		}
	}
	return text
}

// Without a setting program and command find the same socket, and no other user
// can connect.
func TestControlSocketOfAnOrdinaryUser(t *testing.T) {
	t.Parallel()
	host := (&proctest.Host{Name: "a"}).Start(t)
	for _, tt := range []struct {
		name     string
		variable string
		binary   string
		want     string // directory below that of the variable
	}{
		{"user's run directory", "XDG_RUNTIME_DIR", "understudy", "understudy"},
		{"temporary files", "TMPDIR", "us", "understudy-65534"}, // only the socket shows that it runs
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := os.Stat("/run/user/65534"); err == nil && tt.variable == "TMPDIR" {
				t.Skip("SKIP: needs a user without a run directory, and 65534 has one")
			}
			u := asUsers(t, tt.variable, tt.binary)
			addr := freeAddr(t)
			p := u.as(nobody, "", "--bind", addr, "--hosts", host.Addr())
			awaitGreeting(t, p, addr, "a")
			socket := filepath.Join(u.home, tt.want, fmt.Sprintf("%d.sock", p.PID()))
			if info, err := os.Lstat(socket); err != nil || info.Mode() != fs.ModeSocket|0o600 {
				t.Errorf("%s: %v, %v, want a socket with mode 0600", socket, info, err)
			}
			u.want(nobody, 0, "status", host.Addr())
			u.want(0, 0, "status --pid "+fmt.Sprint(p.PID()), host.Addr())
			u.want(stranger, 1, "status", fmt.Sprintf(`no understudy that this user may access is running here; .*one runs as nobody, pid %d: ask as nobody`, p.PID()))
			u.want(stranger, 1, "status --control "+socket, "not allowed to open "+socket)
			end(t, p)
			if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the socket is there after the end: %v", err)
			}
		})
	}
}

// Root runs the program, and a user who forgot sudo asks.
func TestControlSocketOfRoot(t *testing.T) {
	t.Parallel()
	u := asUsers(t, "XDG_RUNTIME_DIR", "understudy")
	a, addr := (&proctest.Host{Name: "a"}).Start(t), freeAddr(t)
	p := u.as(0, filepath.Join(filepath.Dir(u.binary), "c.sock"), "--bind", addr, "--hosts", a.Addr())
	awaitGreeting(t, p, addr, "a")
	for _, verb := range []string{"status", "why", "events"} {
		u.want(nobody, 1, verb, `^understudy: `+verb+`: no understudy that this user may access is running here; `,
			fmt.Sprintf(`; one runs as root, pid %d: ask as root(;|$)`, p.PID()))
	}
	end(t, p)
}

// Several processes of one user: queries show all of them, and a command that
// is ambiguous goes to none.
func TestSeveralProcesses(t *testing.T) {
	t.Parallel()
	u := asUsers(t, "XDG_RUNTIME_DIR", "understudy")
	a, b := (&proctest.Host{Name: "a"}).Start(t), (&proctest.Host{Name: "b"}).Start(t)
	var addrs [2]string
	var procs [2]*proctest.Understudy
	for i := range procs {
		addrs[i] = freeAddr(t)
		procs[i] = u.as(nobody, "", "--bind", addrs[i], "--hosts", a.Addr()+","+b.Addr())
		awaitGreeting(t, procs[i], addrs[i], "a")
	}
	named := func(i int) string {
		return fmt.Sprintf(`relay %s \(%s, pid %d, nobody\)`, portOf(addrs[i]), addrs[i], procs[i].PID())
	}
	frozen := func() (list string) {
		in := json.NewDecoder(strings.NewReader(u.want(nobody, 0, "status --json")))
		var s control.Status
		for in.Decode(&s) == nil {
			if s.Relays[0].Frozen != nil {
				list += s.Relays[0].Name + " "
			}
			s = control.Status{}
		}
		return list
	}
	u.want(nobody, 0, "status", `● `+portOf(addrs[0])+`: serving`, `● `+portOf(addrs[1])+`: serving`, fmt.Sprintf("^pid %d, nobody$", procs[1].PID()))
	u.want(nobody, 0, "why", `^`+named(0)+`$`, `^`+named(1)+`$`)
	u.want(nobody, 0, "events", portOf(addrs[0])+`: start`, portOf(addrs[1])+`: start`)
	for _, order := range []string{"freeze", "unfreeze", "switch 2", "drain 1", "ready 1", "drill", "predict"} {
		u.want(nobody, 2, order, `needed, because there are several`, `  `+named(0)+`$`, `  `+named(1)+`$`)
	}
	u.want(nobody, 2, "reload", `--pid: needed, because there are several processes`)
	if list := frozen(); list != "" {
		t.Errorf("an order that could mean several froze %s", list)
	}
	u.want(nobody, 0, "freeze --relay "+portOf(addrs[1]), `^frozen: .*; `+named(1)+`$`)
	if list := frozen(); list != portOf(addrs[1])+" " {
		t.Errorf("frozen: %q, want the second", list)
	}
	u.want(nobody, 0, fmt.Sprintf("unfreeze --pid %d", procs[1].PID()), `^not frozen; `+named(1)+`$`)
	u.want(nobody, 0, fmt.Sprintf("freeze --control %s/understudy/%d.sock", u.home, procs[0].PID()), `^frozen: .*; relay `+portOf(addrs[0])+` `)
	u.want(nobody, 0, "unfreeze --relay "+addrs[0], named(0))
	procs[0].Until("b can be switched to", func() bool {
		return strings.Contains(u.want(nobody, 0, "status --relay "+portOf(addrs[0])+" --json"), `"streak": 2`)
	})
	u.want(nobody, 0, "drill --relay "+addrs[0], `^  `+named(0)+`$`)
	for _, order := range []string{"drill --json", "switch 2 --at 03:30 --json", "switch --cancel --json"} {
		var at control.Answered
		unmarshal(t, u.want(nobody, 0, order+" --relay "+addrs[0]), &at)
		if at.Relay != portOf(addrs[0]) || !slices.Equal(at.Listen, addrs[:1]) || at.PID != procs[0].PID() {
			t.Errorf("%s: %+v", order, at)
		}
	}
	u.want(nobody, 0, "switch 2 --relay "+addrs[0], `^`+b.Addr()+` is primary \(epoch 2\).*; `+named(0)+`$`)

	// The socket of another process is not that of these settings.
	socket := fmt.Sprintf("%s/understudy/%d.sock", u.home, procs[1].PID())
	third := freeAddr(t)
	u.want(nobody, 1, "check --bind "+third+" --hosts "+a.Addr()+" --control "+socket, `^control socket .* +failed .*another understudy serves it: pid `)
	u.want(nobody, 0, "check --bind "+third+" --hosts "+a.Addr()+" --control auto", `^control socket in .* +ok +free$`)
	u.want(nobody, 0, "check --bind "+addrs[1]+" --hosts "+a.Addr()+" --control auto", fmt.Sprintf(`^control socket .* +ok +understudy .* is running, pid %d$`, procs[1].PID()))

	// A killed process does not count any more, and the next one removes its
	// socket.
	procs[0].Signal(syscall.SIGKILL)
	procs[0].Exit()
	left := fmt.Sprintf("%s/understudy/%d.sock", u.home, procs[0].PID())
	if _, err := os.Lstat(left); err != nil {
		t.Fatalf("nothing stale to be tested with: %v", err)
	}
	u.want(nobody, 0, "freeze", `^frozen: .*; `+named(1)+`$`)
	next := u.as(nobody, "", "--bind", third, "--hosts", a.Addr())
	awaitGreeting(t, next, third, "a")
	for _, path := range []string{left, left + ".lock"} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	// One that gives no answer may be the intended one.
	next.Signal(syscall.SIGSTOP)
	u.want(nobody, 1, "unfreeze", fmt.Sprintf(`pid %d: .*gave no answer within 5s`, next.PID()))
	u.want(nobody, 0, "unfreeze --relay "+addrs[1], named(1))
	next.Signal(syscall.SIGCONT)
	end(t, next)
	end(t, procs[1])
}
