//go:build linux

package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// fenced are the code blocks of docs/cluster.md of one language, in their order.
func fenced(t *testing.T, language string) (all []string) {
	t.Helper()
	text, err := os.ReadFile("../docs/cluster.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?s)\n```"+language+"\n(.*?)```\n").FindAllStringSubmatch(string(text), -1) {
		all = append(all, m[1])
	}
	if len(all) == 0 {
		t.Fatalf("docs/cluster.md has no block of %s", language)
	}
	return all
}

// replaced is text with pairs of old and new, each of which must be in it.
func replaced(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("docs/cluster.md has no %q any more in:\n%s", pairs[i], text)
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}

// here replaces the paths of settings by files of the test.
func here(t *testing.T, settings, dir string) string {
	t.Helper()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("the secret of the recipes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "state")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	return replaced(t, settings, "/etc/understudy/cluster.secret", secret, "/var/lib/understudy", state)
}

// All settings of docs/cluster.md are valid.
func TestClusterRecipesAreValid(t *testing.T) {
	t.Parallel()
	all := fenced(t, "yaml")
	for _, settings := range all {
		dir := t.TempDir()
		if !strings.Contains(settings, "relays:") { // certificates beside the secret
			newAuthority(t).issue(dir, "p1", time.Now().Add(time.Hour))
			at := filepath.Join(dir, "p1")
			settings = all[0] + replaced(t, settings,
				"/etc/understudy/peer-ca.pem", at+".ca", "/etc/understudy/peer.pem", at+".cert", "/etc/understudy/peer.key", at+".key")
		}
		path := filepath.Join(dir, "understudy.yaml")
		if err := os.WriteFile(path, []byte(here(t, settings, dir)), 0o600); err != nil {
			t.Fatal(err)
		}
		u := start(t, "predict", "--config", path) // connects to nobody
		if code := u.Exit(); code != 0 || !strings.Contains(u.Stdout(), "wait for an instance that has died too") {
			t.Errorf("exit status %d of predict for:\n%s\n%s%s", code, settings, u.Stdout(), u.Log())
		}
	}
}

// The recipes of docs/cluster.md, as they stand there: three etcd of Debian, and two
// instances behind an address that keepalived moves, each on a machine of its own. The
// address leaves an instance that has died, and then a machine that has.
func TestClusterBehindKeepalived(t *testing.T) {
	t.Parallel()
	if os.Getenv(insideVariable) != t.Name() {
		oneSite.Lock()
		defer oneSite.Unlock()
	}
	if !isolate(t, "etcd", "keepalived") {
		return
	}
	machines := map[string]string{
		"n1": "10.0.0.1", "n2": "10.0.0.2", "n3": "10.0.0.3", "p1": "10.0.0.11", "p2": "10.0.0.12", "h1": "10.0.0.21", "h2": "10.0.0.22",
	}
	cable(t, "10.0.0.254/24", machines)
	dir := t.TempDir()

	// Debian's packages are there already, and there is no systemd here: what its unit for
	// etcd does with the file that the recipe writes is done by a stand-in.
	stand := filepath.Join(dir, "bin")
	if err := os.MkdirAll(stand, 0o755); err != nil {
		t.Fatal(err)
	}
	writeScript(t, filepath.Join(stand, "apt-get"), "true\n")
	writeScript(t, filepath.Join(stand, "systemctl"), "[ $1 = start ] || exit 0\nset -a; ETCD_DATA_DIR=/var/lib/etcd/default; . /etc/default/etcd\n"+
		"exec etcd --log-level error\n")
	etcd := fenced(t, "sh hand")[0]
	for _, name := range []string{"n1", "n2", "n3"} {
		recipe := filepath.Join(dir, name+".sh")
		mine := replaced(t, etcd, "NAME=n1 IP=10.0.0.1 ", "NAME="+name+" IP="+machines[name]+" ")
		for _, path := range []string{"/etc/default", "/var/lib/etcd"} { // of this machine alone
			own := filepath.Join(dir, name, path)
			if err := os.MkdirAll(own, 0o755); err != nil {
				t.Fatal(err)
			}
			mine = fmt.Sprintf("mount --bind %s %s\n", own, path) + mine
		}
		writeScript(t, recipe, "set -e\nPATH="+stand+":$PATH\n"+strings.ReplaceAll(mine, "systemctl start", "exec systemctl start"))
		begin(t, "ip", "netns", "exec", name, recipe)
	}
	for _, name := range []string{"h1", "h2"} {
		greetAt(t, name, machines[name]+":5432")
	}

	// The second instance differs by what the text says.
	settings := fenced(t, "yaml")[0]
	programs := map[string]*proctest.Understudy{}
	launch := func(name string) {
		own := filepath.Join(dir, name)
		text := here(t, settings, own)
		if name == "p2" {
			text = replaced(t, text, "member: p1", "member: p2", "cluster_listen: 10.0.0.11:9010", "cluster_listen: 10.0.0.12:9010")
		}
		path := filepath.Join(own, "understudy.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		programs[name] = proctest.StartCommand(t, proctest.BinaryCommand("ip", []string{"CONTROL=off"}, "netns", "exec", name, program(t), "--config", path))
	}
	balancers := map[string]*exec.Cmd{}
	for _, name := range []string{"p1", "p2"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		launch(name)
		path := filepath.Join(dir, name, "keepalived.conf")
		text := replaced(t, fenced(t, "keepalived")[0], "/usr/bin/understudy", program(t))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		at := func(file string) string { return filepath.Join(dir, name, file) }
		balancers[name] = begin(t, "ip", "netns", "exec", name, "keepalived", "--dont-fork", "--vrrp", "--use-file", path,
			"--pid", at("pid"), "--vrrp_pid", at("vrrp.pid"))
	}

	const address = "10.0.0.10"
	served := func(what string) {
		t.Helper()
		proctest.Until(t, what+": clients of the address are served", func() bool {
			who, err := proctest.Greeting(address+":5432", time.Second)
			return err == nil && (who == "h1" || who == "h2")
		})
	}
	has := func(name string) bool {
		out, _ := exec.Command("ip", "netns", "exec", name, "ip", "-4", "-o", "addr", "show", "dev", "eth0").Output()
		return strings.Contains(string(out), address+"/")
	}
	served("at the start")
	first, second := "p1", "p2"
	if has("p2") {
		first, second = "p2", "p1"
	}

	programs[first].Signal(syscall.SIGKILL)
	programs[first].Exit()
	began := time.Now()
	proctest.Until(t, "the address leaves the instance that has died", func() bool { return has(second) && !has(first) })
	served("the instance has died")
	t.Logf("an instance died: clients of the address were served after %v", time.Since(began).Round(time.Millisecond))

	launch(first)
	proctest.Until(t, "the first one is well again", func() bool {
		return exec.Command("ip", "netns", "exec", first, program(t), "health", "http://127.0.0.1:9001/ping").Run() == nil
	})
	time.Sleep(4 * time.Second) // keepalived sees it rise
	if has(first) {
		t.Error("the address has moved back: nopreempt")
	}

	// The whole machine: nothing that it says arrives any more.
	run(t, "ip link set to-"+second+" down")
	programs[second].Signal(syscall.SIGKILL)
	_ = balancers[second].Process.Kill()
	began = time.Now()
	proctest.Until(t, "the address leaves the machine that has died", func() bool { return has(first) })
	served("the machine has died")
	t.Logf("a machine died: clients of the address were served after %v", time.Since(began).Round(time.Millisecond))
}

// begin starts a process that ends with the test.
func begin(t *testing.T, argv ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("output of %q:\n%s", argv, out.String())
		}
	})
	return cmd
}

// greetAt answers connections in the network of a node with its name.
func greetAt(t *testing.T, node, addr string) {
	t.Helper()
	var ln net.Listener
	if err := within(node, func() (err error) { ln, err = net.Listen("tcp", addr); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, node+"\n")
			conn.Close()
		}
	}()
}
