//go:build linux

package e2e

import (
	"bufio"
	"encoding/csv"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// The recipes of the older tool's description: HAProxy requests /status, an
// init script switches the service on and off.
func TestHAProxyDrainsByFlag(t *testing.T) {
	t.Parallel()
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		t.Skip("SKIPPED: haproxy is not installed (make test-deps)")
	}
	dir := t.TempDir()
	flags := filepath.Join(dir, "flags")
	if err := os.Mkdir(flags, 0o755); err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", proctest.FreePort(t, "127.0.0.1"))
	u := start(t, "--http", addr, "--status-dir", flags)
	u.WaitLog("starting")

	stats := filepath.Join(dir, "haproxy.sock")
	config := filepath.Join(dir, "haproxy.cfg")
	text := fmt.Sprintf(`global
    stats socket %s level admin
defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
frontend fe
    bind 127.0.0.1:%d
    default_backend be
backend be
    option httpchk GET /status?SERVICE=web HTTP/1.1\r\nHost:\ hc.example
    http-check disable-on-404
    server web %s check inter 100ms rise 1 fall 2
`, stats, proctest.FreePort(t, "127.0.0.1"), addr)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	proxy := exec.Command(haproxy, "-db", "-f", config)
	proxy.Stdout, proxy.Stderr = io.Discard, io.Discard
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Process.Kill(); _ = proxy.Wait() })

	program := proctest.Build(t)
	shell := func(command string, code int) string {
		t.Helper()
		cmd := exec.Command("sh", "-c", ". ../packaging/understudy.functions; "+command)
		cmd.Env = append(os.Environ(), "STATUS_DIR="+flags, "UNDERSTUDY="+program)
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != code {
			t.Errorf("%s exits with %d, want %d: %s", command, got, code, out)
		}
		return string(out)
	}
	becomes := func(want string) {
		t.Helper()
		proctest.Until(t, "HAProxy calls the server "+want, func() bool { return serverState(stats) == want })
	}

	becomes("NOLB") // switched off: no new sessions, and no alarm
	if out := shell("activate web", 0); out != "web activated\n" {
		t.Errorf("activate says %q", out)
	}
	becomes("UP")
	shell("activate web; deactivate web", 0)
	becomes("NOLB")
	shell("inactivate web", 0) // a second time is no failure
	shell("activate ../web", 2)
	shell("activate web", 0)
	becomes("UP")

	// As keepalived requests it, with a list of addresses.
	if got := get10(t, addr, "/status?SERVICE=web&VIP=127.0.0.1,127.0.0.1"); !strings.HasPrefix(got, "HTTP/1.1 200") && !strings.HasPrefix(got, "HTTP/1.0 200") {
		t.Errorf("a request by HTTP/1.0 is answered %q", got)
	}

	// A fault of the directory is a fault, and not "switched off".
	if err := os.Rename(flags, flags+".away"); err != nil {
		t.Fatal(err)
	}
	becomes("DOWN")
	shell("activate web", 1)
	if err := os.Rename(flags+".away", flags); err != nil {
		t.Fatal(err)
	}
	becomes("UP")
}

// serverState is the line of HAProxy about its server, without the counters.
func serverState(socket string) string {
	c, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	fmt.Fprintln(c, "show stat")
	rows, err := csv.NewReader(c).ReadAll()
	if err != nil {
		return ""
	}
	for _, row := range rows {
		if len(row) > 17 && row[0] == "be" && row[1] == "web" {
			state, _, _ := strings.Cut(row[17], " ")
			return state
		}
	}
	return ""
}

// get10 sends a request by HTTP/1.0 and returns the first line of the answer.
func get10(t *testing.T, addr, target string) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(c, "GET %s HTTP/1.0\r\n\r\n", target)
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Error(err)
	}
	return line
}
