package main

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"understudy/control"
	"understudy/internal/proctest"
)

// checking starts a check of hosts with an address that is free; more comes
// behind.
func checking(t *testing.T, hosts string, more ...string) *proctest.Understudy {
	t.Helper()
	return proctest.Start(t, nil, append([]string{"check", "-b", freeAddr(t), "-H", hosts}, more...)...)
}

// wantChecked waits for the end of a check and looks for its exit status and
// for rows of its table.
func wantChecked(t *testing.T, u *proctest.Understudy, status int, rows ...string) {
	t.Helper()
	if code := u.Exit(); code != status || u.Log() != "" {
		t.Errorf("exit status %d, want %d; standard error: %q\n%s", code, status, u.Log(), u.Stdout())
	}
	for _, row := range rows {
		if !regexp.MustCompile("(?m)" + row).MatchString(u.Stdout()) {
			t.Errorf("no row matches %q:\n%s", row, u.Stdout())
		}
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
}

func TestCheckOfScripts(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	dir := t.TempDir()
	good, plain, lost := filepath.Join(dir, "good"), filepath.Join(dir, "plain"), filepath.Join(dir, "lost")
	write(t, good, "#!/bin/sh\n", 0o755)
	write(t, plain, "#!/bin/sh\n", 0o644)
	write(t, lost, "#!/no/such/interpreter\n", 0o755)

	wantChecked(t, checking(t, a.Addr(), "-c", good, "-f", good), 0, `good +ok`, `check-host +ok`, `^nothing failed`)
	wantChecked(t, checking(t, a.Addr(), "-c", plain), 1,
		`^check script .*plain +failed .*is not executable for this user, allow it with chmod \+x`, `check-host +failed`)
	wantChecked(t, checking(t, a.Addr(), "-c", lost), 1, `lost +failed .*needs the interpreter /no/such/interpreter, which is missing`)
	wantChecked(t, checking(t, a.Addr(), "-f", plain), 1, `^trigger .*plain +failed .*is not executable`)
	wantChecked(t, checking(t, a.Addr(), "-f", filepath.Join(dir, "nowhere")), 1, `^trigger .*nowhere +failed .*is missing`)
	// What else lies in a directory is passed over with a warning, as it is at
	// an election.
	wantChecked(t, checking(t, a.Addr(), "-f", dir), 0,
		`^trigger .*good +ok`, `^trigger +warning .*plain.*is not executable`, `^trigger +warning .*lost.*interpreter`)
	empty := t.TempDir()
	wantChecked(t, checking(t, a.Addr(), "-f", empty), 0, `^trigger .* +warning .*there is no script in it`)
}

// TestCheckRunsNoTrigger and runs the check script once for each host.
func TestCheckRunsNoTrigger(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	b := (&proctest.Host{Name: "b"}).Start(t)
	ran := filepath.Join(t.TempDir(), "ran")
	wantChecked(t, checking(t, a.Addr()+","+b.Addr(), "-c", script(t, "echo check >>"+ran+"\n"), "-f", script(t, "echo trigger >>"+ran+"\n")), 0)
	if got := strings.Join(lines(ran), " "); got != "check check" {
		t.Errorf("scripts ran: %q, want the check script once for each host", got)
	}
}

func TestCheckOfSlowScript(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	wantChecked(t, checking(t, a.Addr(), "-c", script(t, "sleep 0.2\n"), "--check-interval", "300ms"), 0,
		`check-host +warning .*takes long for a script that runs every 300ms`)
}

func TestCheckOfTakenPorts(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	busy, verdict := a.Addr(), freeAddr(t)
	u := proctest.Start(t, nil, "check", "-b", busy, "-H", freeAddr(t)+","+freeAddr(t), "--http", verdict)
	wantChecked(t, u, 1, `^listen `+busy+` +failed .*address already in use: another program has it`, `^http `+verdict+` +ok +free`)
	u = proctest.Start(t, nil, "check", "-b", verdict, "-H", a.Addr(), "--http", busy)
	wantChecked(t, u, 1, `^http `+busy+` +failed .*another program has it`)

	dir := t.TempDir()
	path := filepath.Join(dir, "r.sock")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	wantChecked(t, proctest.Start(t, nil, "check", "-b", "unix:"+path, "-H", a.Addr()), 1, `^listen unix:.* +failed .*address already in use`)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	wantChecked(t, proctest.Start(t, nil, "check", "-b", "unix:"+path, "-H", a.Addr()), 0, `^listen unix:.* +ok +free`)
	if _, err := os.Lstat(path); err != nil {
		t.Error("the check removed a socket that is not its own: ", err)
	}
	write(t, path+".txt", "", 0o600)
	wantChecked(t, proctest.Start(t, nil, "check", "-b", "unix:"+path+".txt", "-H", a.Addr()), 1, `is not a socket`)
	wantChecked(t, proctest.Start(t, nil, "check", "-b", "unix:"+dir+"/no/r.sock", "-H", a.Addr()), 1, `^listen unix.* failed .*no such file or directory`)
}

func TestCheckOfHosts(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a", PingPort: proctest.FreePort(t, "127.0.0.1")}).Start(t)
	dead := freeAddr(t)
	pong := []string{"--pong-port", strconv.Itoa(a.PingPort)}
	wantChecked(t, checking(t, a.Addr(), pong...), 0, `^`+a.Addr()+` tcp +ok +[0-9.]+.?s$`, `http:`+pong[1]+` +ok`)
	wantChecked(t, checking(t, a.Addr()+","+dead), 1,
		`^`+a.Addr()+` tcp +ok`, `^`+dead+` tcp +failed +[0-9.]+.?s +connect: .*connection refused`, `^1 of \d+ failed`)
	wantChecked(t, checking(t, "nosuch.invalid:1,localhost:"+strconv.Itoa(a.Port)), 1,
		`^nosuch.invalid:1 resolve +failed .*nosuch.invalid`, `^localhost:\d+ resolve +ok .*127.0.0.1`, `^localhost:\d+ tcp +ok`, `^1 of \d+ failed`)

	// Every check is run, not only the first that fails.
	u := checking(t, a.Addr(), append(pong, "--pong-path", "/", "-c", script(t, "exit 7\n"), "--pong-port", strconv.Itoa(a.Port))...)
	wantChecked(t, u, 1, `http:`+pong[1]+` +ok`, `http:`+strconv.Itoa(a.Port)+` +failed`, `check-host +failed .*exit status 7`)
}

// TestCheckOfSilentHosts is about hosts and scripts that never answer.
func TestCheckOfSilentHosts(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a", PingPort: proctest.FreePort(t, "127.0.0.1")}).Start(t)
	a.Stop()
	wantChecked(t, checking(t, a.Addr(), "--pong-port", strconv.Itoa(a.PingPort), "-c", script(t, "sleep 600\n"), "--check-timeout", "1s"), 1,
		`^`+a.Addr()+` tcp +ok`, `http:\d+ +failed .*(timeout|deadline|no answer)`, `check-host +failed .*timed out after 1s`)
}

// TestCheckAsksAllHostsAtOnce has scripts that wait for each other.
func TestCheckAsksAllHostsAtOnce(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	b := (&proctest.Host{Name: "b"}).Start(t)
	met := t.TempDir()
	meet := script(t, "touch "+met+"/$1\nwhile [ $(ls "+met+" | wc -l) -lt 2 ]; do sleep 0.02; done\n")
	wantChecked(t, checking(t, a.Addr()+","+b.Addr(), "-c", meet, "--check-timeout", "30s"), 0, `^`+b.Addr()+` check-host +(ok|warning)`)
}

func TestCheckEndsWithCtrlC(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	pid := filepath.Join(t.TempDir(), "pid")
	u := checking(t, a.Addr(), "-c", script(t, "echo $$ >"+pid+".new && mv "+pid+".new "+pid+" && exec sleep 600\n"), "--check-timeout", "10m")
	u.Until("the script runs", func() bool { return lines(pid)[0] != "" })
	u.Signal(syscall.SIGINT)
	if code := u.Exit(); code != 1 || u.Log() != "understudy: check: interrupted\n" || u.Stdout() != "" {
		t.Errorf("exit status %d, want 1; %q, %q", code, u.Log(), u.Stdout())
	}
	n, err := strconv.Atoi(lines(pid)[0])
	if err != nil {
		t.Fatal(err)
	}
	awaitGone(t, n)
}

func TestCheckOfDescriptorLimit(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	for _, c := range []struct {
		limit, connections string
		status             int
		row                string
	}{
		{"300", "", 0, `^descriptor limit +warning +300 descriptors: 118 connections: raise LimitNOFILE or ulimit -n`},
		{"300", "200", 1, `^descriptor limit +failed +300 descriptors: 118 connections, and 200 are asked for`},
		{"300", "100", 0, `^descriptor limit +warning`},
		{"3000", "1000", 0, `^descriptor limit +ok +3000 descriptors: 1468 connections`},
	} {
		args := []string{"check", "-b", freeAddr(t), "-H", a.Addr()}
		if c.connections != "" {
			args = append(args, "--max-connections", c.connections)
		}
		cmd := startedBy(proctest.Command(t, nil, args...), "/bin/sh", "-c", "ulimit -n "+c.limit+` && exec "$0" "$@"`)
		wantChecked(t, proctest.StartCommand(t, cmd), c.status, c.row)
	}
}

func TestCheckOfStateDirectory(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	write(t, file, "", 0o600)
	wantChecked(t, checking(t, a.Addr(), "--state-dir", dir), 0, `^state directory .* +ok +writable`)
	wantChecked(t, checking(t, a.Addr(), "--state-dir", dir+"/a/b"), 0, `^state directory .* +ok +writable`)
	wantChecked(t, checking(t, a.Addr(), "--state-dir", file), 1, `^state directory .* +failed .*is not a directory`)
	wantChecked(t, checking(t, a.Addr(), "--state-dir", file+"/below"), 1, `^state directory .* +failed .*not a directory`)
	if runtime.GOOS == "linux" {
		wantChecked(t, checking(t, a.Addr(), "--state-dir", "/proc/understudy"), 1, `^state directory .* +failed `)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind in the state directory: %v, %v", entries, err)
	}
	locked := t.TempDir()
	if err := os.Chmod(locked, 0o500); err != nil {
		t.Fatal(err)
	}
	cmd := proctest.Command(t, nil, "check", "-b", freeAddr(t), "-H", a.Addr(), "--state-dir", locked)
	wantChecked(t, proctest.StartCommand(t, unprivileged(t, cmd)), 1, `^state directory .* +failed .*permission denied`)
}

func TestCheckOfControlSocket(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	write(t, file, "", 0o600)
	wantChecked(t, checking(t, a.Addr(), "--control", dir+"/sub/c.sock"), 0, `^control socket .*/sub/c.sock +ok +free`)
	wantChecked(t, checking(t, a.Addr(), "--control", file), 1, `^control socket .* +failed .*not a socket`)
	wantChecked(t, checking(t, a.Addr(), "--control", file+"/c.sock"), 1, `^control socket .* +failed .*not a directory`)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}

	// A socket that nobody serves any more is no obstacle. One that somebody
	// serves who says nothing is, within a second, worth a warning.
	path := filepath.Join(dir, "c.sock")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	wantChecked(t, checking(t, a.Addr(), "--control", path), 0, `^control socket .* +warning `)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	wantChecked(t, checking(t, a.Addr(), "--control", path), 0, `^control socket .* +ok +free`)
}

// TestCheckBesideARunningOne uses the settings of a process that runs with
// them: nothing of its own is held against them, and it notices nothing.
func TestCheckBesideARunningOne(t *testing.T) {
	t.Parallel()
	verdict, state, ran := freeAddr(t), t.TempDir(), filepath.Join(t.TempDir(), "ran")
	settings := []string{"--http", verdict, "--state-dir", state, "-f", script(t, "echo x >>"+ran+"\n")}
	o := startOperated(t, settings...)
	o.awaitState(t, o.b.Addr(), "up")
	accepted := func() uint64 {
		t.Helper()
		code, out, _ := o.verb(t, "status", "--json")
		var s control.Status
		if err := json.Unmarshal([]byte(out), &s); err != nil || code != 0 {
			t.Fatalf("status: exit status %d: %v", code, err)
		}
		return s.Relays[0].Clients.Accepted
	}
	was := accepted()
	u := proctest.Start(t, o.env, append([]string{"check", "-b", o.addr, "-H", o.a.Addr() + "," + o.b.Addr()}, settings...)...)
	wantChecked(t, u, 0,
		`^control socket .* +ok +understudy .* is running, pid `+strconv.Itoa(o.PID()),
		`^listen `+o.addr+` +ok +served by the understudy that is running`,
		`^http `+verdict+` +ok +in use, most likely by the understudy that is running`,
		`^state directory .* +ok +writable`)
	if now := accepted(); now != was {
		t.Errorf("the check connected to the relay: %d clients, were %d", now, was)
	}
	if got := lines(ran); len(got) != 1 {
		t.Errorf("triggers ran %d times, want once, at the start", len(got))
	}
	entries, err := os.ReadDir(state)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), "check") {
			t.Errorf("left behind in the state directory: %s", e.Name())
		}
	}

	// Another port of another program is taken all the same.
	u = proctest.Start(t, o.env, "check", "-b", o.a.Addr(), "-H", o.b.Addr())
	wantChecked(t, u, 1, `^listen `+o.a.Addr()+` +failed .*another program has it`)
}

func TestSamePlace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		served, setting string
		want            bool
	}{
		{"127.0.0.1:80", "127.0.0.1:80", true},
		{"[::]:80", ":80", true},
		{"[::]:80", "0.0.0.0:80", true},
		{"127.0.0.1:80", "localhost:80", true},
		{"127.0.0.1:80", "127.0.0.2:80", false},
		{"127.0.0.1:80", "127.0.0.1:81", false},
		{"/run/a.sock", "unix:/run/a.sock", true},
		{"/run/a.sock", "unix:/run/b.sock", false},
		{"/run/a.sock", "127.0.0.1:80", false},
	} {
		if got := samePlace(c.served, c.setting); got != c.want {
			t.Errorf("%s and %s: %v, want %v", c.served, c.setting, got, c.want)
		}
	}
}
