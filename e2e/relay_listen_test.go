//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

// An address that this machine does not have yet is bound as soon as it has it,
// while others serve; if it is the only one it is an error, unless --freebind
// binds it before.
func TestAddressThatIsNotThereYet(t *testing.T) {
	t.Parallel()
	if !isolate(t, "ip") {
		return
	}
	const virtual = "192.0.2.10"
	host := (&proctest.Host{Name: "a"}).Start(t)
	one, http, agent := fmt.Sprint(proctest.FreePort(t, "127.0.0.1")), virtual+":9001", virtual+":9101"
	relay := func(name, listen string) string {
		return fmt.Sprintf("  - {name: %s, listen: [%s], hosts: [%q]}\n", name, listen, host.Addr())
	}
	both := relay("here", `"127.0.0.1:`+one+`"`) + relay("there", fmt.Sprintf("%q, \"127.0.0.1:%d\"", virtual+":5432", proctest.FreePort(t, "127.0.0.1")))
	file := writeFile(t, "understudy.yaml", fmt.Sprintf("http: %q\nroutes: {/ping: {agent: %q}}\nrelays:\n%s", http, agent, both))

	u := start(t, "--bind", virtual+":5433", "--hosts", host.Addr())
	if code := u.Exit(); code != 1 || !strings.Contains(u.Log(), virtual+":5433: bind: cannot assign requested address") {
		t.Errorf("the only relay: exit status %d, want 1 and the address", code)
	}
	free := start(t, "--bind", virtual+":5434", "--hosts", host.Addr(), "--freebind")
	free.WaitLog("relay open")

	u = start(t, "--config", file)
	awaitGreeting(t, u, "127.0.0.1:"+one, "a")
	u.WaitLog("address is not on this machine, retrying: relay=there")
	u.WaitLog(`listener not open, retrying: listener="http`)
	// A reload accepts it, and can add another one.
	text := fmt.Sprintf("http: %q\nroutes: {/ping: {agent: %q}}\nrelays:\n%s%s", http, agent, both, relay("more", `"`+virtual+`:5435"`))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	u.Signal(syscall.SIGHUP)
	u.WaitLog("configuration reloaded")
	u.WaitLog("address is not on this machine, retrying: relay=more")

	run(t, "ip address add "+virtual+"/32 dev lo")
	awaitGreeting(t, free, virtual+":5434", "a")
	awaitGreeting(t, u, virtual+":5432", "a")
	awaitGreeting(t, u, virtual+":5435", "a")
	u.Until("/ping is good", func() bool { return httpStatus("http://"+http+"/ping") == 200 })
	u.Until("the agent says up", func() bool { return spoken(agent) == "up\n" })
	if n := strings.Count(u.Log(), "address is not on this machine"); n != 2 {
		t.Errorf("%d warnings about missing addresses, want one for each of 2", n)
	}
	u.Terminate()
	free.Terminate()
}

// connectAs connects to a unix socket as another user with one group. Only this
// thread becomes that user, and it becomes root again: a thread that ended as
// another user would take along the processes that it has started for other
// tests; see PR_SET_PDEATHSIG in prctl(2).
func connectAs(path string, uid, gid int) error {
	groups, err := unix.Getgroups()
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	runtime.LockOSThread()
	if err := errors.Join(setGroups(nil), setEffective(unix.SYS_SETRESGID, gid), setEffective(unix.SYS_SETRESUID, uid)); err != nil {
		return err // the thread stays locked
	}
	result := unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	if err := errors.Join(setEffective(unix.SYS_SETRESUID, 0), setEffective(unix.SYS_SETRESGID, 0), setGroups(groups)); err != nil {
		return err // as above
	}
	runtime.UnlockOSThread()
	return result
}

// setEffective sets the effective user or group of this thread alone; the
// functions of package syscall set that of all threads.
func setEffective(call uintptr, id int) error {
	const same = ^uintptr(0)
	if _, _, e := unix.RawSyscall(call, same, uintptr(id), same); e != 0 {
		return e
	}
	return nil
}

// setGroups sets the supplementary groups of this thread alone.
func setGroups(groups []int) error {
	list := make([]uint32, len(groups))
	for i, g := range groups {
		list[i] = uint32(g)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(list)), uintptr(unsafe.Pointer(unsafe.SliceData(list))), 0); e != 0 {
		return e
	}
	return nil
}

// Members of the group of a unix socket connect whatever the umask is, others do
// not; a reload changes the mode of a socket that is there. The control socket
// stays the owner's.
func TestWhoMayConnectToAUnixSocket(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, to be several users")
	}
	const uid, member, stranger = 54321, 54001, 54002
	for _, umask := range []string{"027", "077"} {
		t.Run("umask "+umask, func(t *testing.T) {
			t.Parallel()
			host := (&proctest.Host{Name: "a"}).Start(t)
			dir := t.TempDir()
			if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
				t.Fatal(err)
			}
			path, control, file := filepath.Join(dir, "s"), filepath.Join(dir, "control"), filepath.Join(dir, "understudy.yaml")
			configure := func(more string) {
				t.Helper()
				text := fmt.Sprintf("hold: 100ms\nrelays: [{name: r, listen: [\"unix:%s\"], hosts: [%q], socket_group: %d%s}]\n", path, host.Addr(), member, more)
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			configure("")
			u := proctest.StartCommand(t, proctest.BinaryCommand("/bin/sh", nil, "-c", `umask "$0"; exec "$@"`,
				umask, program(t), "--config", file, "--control", control))
			u.WaitLog("relay open")
			wants := func(when string, gid int, want error) {
				t.Helper()
				if err := connectAs(path, uid, gid); !errors.Is(err, want) {
					t.Errorf("%s: a user of group %d: %v, want %v", when, gid, err, want)
				}
			}
			wants("by default", member, nil)
			wants("by default", stranger, unix.EACCES)
			if err := connectAs(control, uid, member); !errors.Is(err, unix.EACCES) {
				t.Errorf("the control socket: %v, want EACCES", err)
			}
			if info, err := os.Stat(control); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("the control socket: %v, %v, want 0600", info.Mode(), err)
			}

			host.Kill() // the file is made anew when the relay opens again
			u.Until("the relay refuses", func() bool { return errors.Is(connectAs(path, uid, member), unix.ECONNREFUSED) })
			host.Restart()
			u.Until("the relay is open again", func() bool { return connectAs(path, uid, member) == nil })
			wants("open again", stranger, unix.EACCES)

			before := inode(t, path)
			reload := func(n int, more string) {
				t.Helper()
				configure(more)
				u.Signal(syscall.SIGHUP)
				u.Until("reloaded", func() bool { return strings.Count(u.Log(), "configuration reloaded: ") == n })
			}
			reload(1, ", socket_mode: 600")
			wants("with mode 600", member, unix.EACCES)
			reload(2, `, socket_mode: "0666", socket_owner: `+fmt.Sprint(uid))
			wants("with mode 666", stranger, nil)
			var now unix.Stat_t
			if err := unix.Stat(path, &now); err != nil || now.Uid != uid || now.Gid != member {
				t.Errorf("owner %d, group %d, %v, want %d and %d", now.Uid, now.Gid, err, uid, member)
			}
			if after := inode(t, path); after != before {
				t.Error("the reload made the socket anew, want only its mode changed")
			}
			configure(", socket_group: nobody-knows-this")
			u.Signal(syscall.SIGHUP)
			u.WaitLog("configuration not reloaded")
			wants("after a reload that failed", stranger, nil)
			u.Terminate()
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the file afterwards: %v, want none", err)
			}
		})
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		t.Fatal(err)
	}
	return s.Ino
}
