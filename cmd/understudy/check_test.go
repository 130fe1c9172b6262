package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/control"
	"understudy/internal/proctest"
)

// checking starts a check of hosts with an address that is free; more is
// appended.
func checking(t *testing.T, hosts string, more ...string) *proctest.Understudy {
	t.Helper()
	return proctest.Start(t, nil, append([]string{"check", "-b", proctest.FreeAddr(t), "-H", hosts}, more...)...)
}

// wantChecked waits for the end of a check and compares its exit status and
// rows of its table.
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
	// Other files in a directory are skipped with a warning, as in an election.
	wantChecked(t, checking(t, a.Addr(), "-f", dir), 0,
		`^trigger .*good +ok`, `^trigger +warning .*plain.*is not executable`, `^trigger +warning .*lost.*interpreter`)
	env := filepath.Join(t.TempDir(), "env")
	write(t, env, "#!/usr/bin/env no-such-program\n", 0o755)
	wantChecked(t, checking(t, a.Addr(), "-f", env), 0, `^trigger .*env +ok`, `^trigger +warning .*needs "no-such-program", which is not in PATH`)
	unread := filepath.Join(t.TempDir(), "unread")
	write(t, unread, "#!/bin/sh\n", 0o111)
	cmd := proctest.Command(t, nil, "check", "-b", proctest.FreeAddr(t), "-H", a.Addr(), "-f", unread)
	wantChecked(t, proctest.StartCommand(t, unprivileged(t, cmd)), 0, `^trigger +warning .*unread: is not readable for this user`)
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
		`check-host +warning .*is slow for a script that runs every 300ms`)
}

func TestCheckOfTakenPorts(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	busy, verdict := a.Addr(), proctest.FreeAddr(t)
	u := proctest.Start(t, nil, "check", "-b", busy, "-H", proctest.FreeAddr(t)+","+proctest.FreeAddr(t), "--http", verdict)
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
	dead := proctest.FreeAddr(t)
	pong := []string{"--pong-port", strconv.Itoa(a.PingPort)}
	wantChecked(t, checking(t, a.Addr(), pong...), 0, `^`+a.Addr()+` tcp +ok +[0-9.]+.?s$`, `http:`+pong[1]+` +ok`)
	wantChecked(t, checking(t, dead), 1, `^`+dead+` tcp +failed +[0-9.]+.?s +connect: .*connection refused`, `^1 of \d+ failed`)
	wantChecked(t, checking(t, "nosuch.invalid:1"), 1, `^nosuch.invalid:1 resolve +failed .*nosuch.invalid`, `^1 of \d+ failed`)

	// One usable host is enough.
	wantChecked(t, checking(t, a.Addr()+","+dead), 0,
		`^`+a.Addr()+` tcp +ok`, `^`+dead+` tcp +warning +[0-9.]+.?s +connect: .*connection refused`, `^nothing failed; warnings: [1-9]`)
	wantChecked(t, checking(t, "nosuch.invalid:1,localhost:"+strconv.Itoa(a.Port)), 0,
		`^nosuch.invalid:1 resolve +warning .*nosuch.invalid`, `^localhost:\d+ resolve +ok .*127.0.0.1`, `^localhost:\d+ tcp +ok`, `^nothing failed`)

	// Every check is run, not only the first that fails.
	u := checking(t, a.Addr(), append(pong, "--pong-path", "/", "-c", script(t, "exit 7\n"), "--pong-port", strconv.Itoa(a.Port))...)
	wantChecked(t, u, 1, `http:`+pong[1]+` +ok`, `http:`+strconv.Itoa(a.Port)+` +failed`, `check-host +failed .*exit status 7`)
}

// TestCheckOfStandbys is about pairs of which only one host may be primary: the
// other answers every check, and one of the answers is negative.
func TestCheckOfStandbys(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a", PingPort: proctest.FreePort(t, "127.0.0.1")}).Start(t)
	b := (&proctest.Host{Name: "b"}).Start(t)
	pair := a.Addr() + "," + b.Addr()
	only := func(host, does string) string { // a script that passes for one host
		return script(t, `[ "$1" = `+host+` ] || { `+does+`; }`+"\n")
	}
	for _, c := range []struct {
		name   string
		args   []string
		status int
		row    string
	}{
		{"the check script says no", []string{"-c", only(a.Addr(), "echo a standby; exit 1")}, 0, `^` + b.Addr() + ` check-host +standby .*a standby \(script .*exit status 1\)`},
		{"to both", []string{"-c", script(t, "echo a standby; exit 1\n")}, 1, `^` + b.Addr() + ` check-host +failed `},
		{"it could not find out", []string{"-c", only(a.Addr(), "exit 75")}, 0, `^` + b.Addr() + ` check-host +warning `},
		{"it crashes", []string{"-c", only(a.Addr(), "kill -KILL $$")}, 0, `^` + b.Addr() + ` check-host +warning `},
		{"it times out", []string{"-c", only(a.Addr(), "exec sleep 600"), "--check-timeout", "2s"}, 0, `^` + b.Addr() + ` check-host +warning `},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			u := checking(t, pair, c.args...)
			wantChecked(t, u, c.status, c.row)
			if passes := regexp.MustCompile(`(?m)^` + a.Addr() + ` check-host +(ok|warning)`).MatchString(u.Stdout()); passes == (c.status != 0) {
				t.Errorf("the first host passes: %v\n%s", passes, u.Stdout())
			}
		})
	}
	t.Run("an HTTP check says no", func(t *testing.T) {
		t.Parallel()
		if runtime.GOOS != "linux" {
			t.Skip("needs 127.0.0.2")
		}
		b := (&proctest.Host{Name: "b", IP: "127.0.0.2"}).Start(t)
		port := proctest.FreePort(t, "127.0.0.1")
		for ip, status := range map[string]int{"127.0.0.1": http.StatusOK, "127.0.0.2": http.StatusServiceUnavailable} {
			l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", net.JoinHostPort(ip, strconv.Itoa(port)))
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }), ReadHeaderTimeout: time.Minute}
			go func() { _ = server.Serve(l) }()
			t.Cleanup(func() { server.Close() })
		}
		file := filepath.Join(t.TempDir(), "u.yaml")
		write(t, file, fmt.Sprintf("relays: [{name: x, listen: [%q], hosts: [%q, %q], checks: [{http: {port: %d, path: /primary}}]}]\n",
			proctest.FreeAddr(t), a.Addr(), b.Addr(), port), 0o600)
		wantChecked(t, proctest.Start(t, nil, "check", "--config", file), 0,
			`^`+a.Addr()+` http\S* +ok`, `^`+b.Addr()+` tcp +ok`, `^`+b.Addr()+` http\S* +standby .*503`)
	})
}

// TestCheckOfSilentHosts is about hosts and scripts that never answer.
func TestCheckOfSilentHosts(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a", PingPort: proctest.FreePort(t, "127.0.0.1")}).Start(t)
	a.Stop()
	wantChecked(t, checking(t, a.Addr(), "--pong-port", strconv.Itoa(a.PingPort), "-c", script(t, "sleep 600\n"), "--check-timeout", "1s"), 1,
		`^`+a.Addr()+` tcp +ok`, `http:\d+ +failed .*(timeout|deadline|no answer)`, `check-host +failed .*timed out after 1s`)
}

// TestCheckAsksAllHostsAtOnce uses scripts that wait for each other.
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
	awaitEnd(t, n)
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
		{"300", "200", 1, `^descriptor limit +failed +300 descriptors: 118 connections, and 200 are configured`},
		{"300", "100", 0, `^descriptor limit +warning`},
		{"3000", "1000", 0, `^descriptor limit +ok +3000 descriptors: 1468 connections`},
	} {
		args := []string{"check", "-b", proctest.FreeAddr(t), "-H", a.Addr()}
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
	wantChecked(t, checking(t, a.Addr(), "--state-dir", dir+"/a"), 0, `^state directory .* +ok +will be created in `+dir)
	wantChecked(t, checking(t, a.Addr(), "--state-dir", dir+"/a/b"), 1, `^state directory .* +failed +`+dir+`/a does not exist`)
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
	cmd := proctest.Command(t, nil, "check", "-b", proctest.FreeAddr(t), "-H", a.Addr(), "--state-dir", locked)
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

	// A socket that no process serves any more is no error. A socket whose
	// process does not answer causes a warning within a second.
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

// TestCheckBesideARunningOne uses the settings of a running process: its own
// addresses are no errors, and the check has no effect on it.
func TestCheckBesideARunningOne(t *testing.T) {
	t.Parallel()
	verdict, state, ran := proctest.FreeAddr(t), t.TempDir(), filepath.Join(t.TempDir(), "ran")
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

	// A port of another program is still reported as busy.
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

// A host that is listed twice by different names is a warning: once where the
// spelling shows it, and once where the addresses do.
func TestCheckOfOneHostByTwoNames(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	_, port, err := net.SplitHostPort(a.Addr())
	if err != nil {
		t.Fatal(err)
	}
	wantChecked(t, checking(t, "localhost:"+port+","+a.Addr()), 0, `^configuration +warning .*are one address`)
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := net.DefaultResolver.LookupNetIP(t.Context(), "ip4", name)
	if err != nil {
		t.Skipf("SKIPPED: the machine's own name has no address: %v", err)
	}
	u := checking(t, name+":"+port+","+addrs[0].Unmap().String()+":"+port)
	u.Exit() // 0 or 1: the host may have another address
	if !regexp.MustCompile(`warning +is the same address as ` + name).MatchString(u.Stdout()) {
		t.Errorf("no warning:\n%s", u.Stdout())
	}
}
