//go:build linux

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"understudy/internal/greeting"
	"understudy/internal/proctest"
)

// readGreetings starts understudy in front of a host, whose TCP check reads a greeting every
// 20ms, and returns when about n checks are done.
func readGreetings(t *testing.T, protocol, host string, n int64, args ...string) (u *proctest.Understudy, addr string) {
	t.Helper()
	port, pongs := countPongs(t)
	addr = freeAddr(t)
	u = start(t, append([]string{"--bind", addr, "--hosts", host, "--check-tcp", protocol, "--interval", "20ms", "--timeout", "10s", "--pong-port", port}, args...)...)
	u.WaitLog("relay open")
	u.Until("the checks are done", func() bool { return pongs.Load() >= n })
	return u, addr
}

// F13: MariaDB does not refuse the address of a check that reads its greeting, though
// every end before a login counts; where the account of the check exists, nothing counts.
func TestMariaDBIsNotBlockedByGreetings(t *testing.T) {
	t.Parallel()
	m := newMariaDB(t)
	d := m.serve("a", "--max-connect-errors=5")
	m.application(d)
	status := func(name string) int {
		t.Helper()
		return m.number(d, name)
	}
	u, addr := readGreetings(t, "mysql", d.addr(), 1, "--source", "127.0.0.9")
	u.Until("more logins are refused than max_connect_errors", func() bool { return status("Access_denied_errors") > 10 })
	m.wantServed(addr)

	output(t, m.root(d, "create user "+greeting.CheckUser+"@'127.0.0.9'"))
	aborted, connections := status("Aborted_connects")+1, status("Connections")                     // one may be on its way
	u.Until("20 more connections", func() bool { return status("Connections") > 2*20+connections }) // each look is one too
	if now := status("Aborted_connects"); now > aborted {
		t.Errorf("Aborted_connects grew from %d to %d", aborted-1, now)
	}
	if now := status("Aborted_clients"); now != 0 {
		t.Errorf("Aborted_clients is %d, want 0: COM_QUIT ends a session", now)
	}
	m.wantServed(addr)
	end(t, u)
}

// sshd logs one line at the level INFO for a greeting, and no error.
func TestSSHGreeting(t *testing.T) {
	t.Parallel()
	needs(t, "ssh-keygen")
	sshd := "/usr/sbin/sshd" // it wants an absolute path
	if _, err := os.Stat(sshd); err != nil {
		t.Skip("SKIPPED: sshd is not installed (make test-deps)")
	}
	dir, port := databaseDir(t), proctest.FreePort(t, "127.0.0.1")
	output(t, asNobody(exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "key"))))
	d := &database{
		t: t, name: "sshd", port: port, log: filepath.Join(dir, "log"), end: 15,
		argv: []string{sshd, "-D", "-e", "-f", "/dev/null", "-p", strconv.Itoa(port), "-o", "ListenAddress=127.0.0.1",
			"-o", "HostKey=" + filepath.Join(dir, "key"), "-o", "PidFile=none", "-o", "UsePAM=no", "-o", "MaxStartups=1000"},
		asks: func() *exec.Cmd { return exec.Command("grep", "-q", "Server listening", filepath.Join(dir, "log")) },
		own:  true,
	}
	if os.Getuid() == 0 {
		if _, err := os.Stat("/run/sshd"); err != nil {
			if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // its privilege separation directory
				t.Skip("SKIPPED: no /run/sshd: ", err)
			}
		}
	}
	d.begin()
	u, _ := readGreetings(t, "ssh", d.addr(), 1)
	text := ""
	u.Until("sshd has logged the ends of 10 connections", func() bool {
		log, err := os.ReadFile(d.log)
		text = string(log)
		return err == nil && strings.Count(text, "Connection closed by") >= 10
	})
	end(t, u)
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		if !strings.HasPrefix(line, "Connection closed by 127.0.0.1 port ") && !strings.HasPrefix(line, "Server listening") {
			t.Errorf("sshd logged %q", line)
		}
	}
}

// PostgreSQL with TLS logs nothing about greetings.
func TestPostgresGreeting(t *testing.T) {
	t.Parallel()
	p := newPostgres(t)
	cert, key := certificate(t, p.dir, "127.0.0.1")
	p.initialize("a", "ssl = on\nssl_cert_file = '"+cert+"'\nssl_key_file = '"+key+"'\n")
	d := p.serve("a")
	before := p.said(d)
	u, _ := readGreetings(t, "postgres", d.addr(), 20)
	if now := p.said(d); now != before {
		t.Errorf("PostgreSQL logged %q", strings.TrimPrefix(now, before))
	}
	end(t, u) // a check that this interrupts may be logged

	// Through a unix socket as well.
	before = p.said(d)
	u, _ = readGreetings(t, "postgres", fmt.Sprintf("unix:%s/.s.PGSQL.%d", p.dir, d.port), 20)
	if now := p.said(d); now != before {
		t.Errorf("PostgreSQL logged %q", strings.TrimPrefix(now, before))
	}
	end(t, u)
}

// said returns the log of a server so far, without what it says of itself.
func (p *postgres) said(d *database) string {
	p.t.Helper()
	text, err := os.ReadFile(d.log)
	if err != nil {
		p.t.Fatal(err)
	}
	var kept []string
	for line := range strings.SplitSeq(string(text), "\n") {
		if !strings.Contains(line, "checkpoint") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "\n")
}

// nginx logs nothing about TLS handshakes.
func TestTLSGreeting(t *testing.T) {
	t.Parallel()
	d := nginx(t, "a", true)
	before, err := os.ReadFile(d.log)
	if err != nil {
		t.Fatal(err)
	}
	u, _ := readGreetings(t, "tls", d.addr(), 20)
	now, err := os.ReadFile(d.log)
	if err != nil || string(now) != string(before) {
		t.Errorf("nginx logged %q, %v", strings.TrimPrefix(string(now), string(before)), err)
	}
	end(t, u)
}

// A host that refuses connections, one that sends no greeting and one that sends another
// one are told apart, and the host with the greeting of the protocol is elected. Its mail
// server gets a QUIT each time. The PROXY header comes first, as for clients.
func TestGreetingDecides(t *testing.T) {
	t.Parallel()
	refused := freeAddr(t)
	silent := listen(t)
	go serve(silent, func(conn net.Conn) {
		defer conn.Close()
		io.Copy(io.Discard, conn)
	})
	wrong := listen(t)
	go serve(wrong, func(conn net.Conn) {
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
		io.Copy(io.Discard, conn)
	})
	good := listen(t)
	var checks, rude atomic.Int64
	go serve(good, func(conn net.Conn) {
		defer conn.Close()
		in := bufio.NewReader(conn)
		if header, err := in.ReadString('\n'); err != nil || !strings.HasPrefix(header, "PROXY ") {
			return
		}
		fmt.Fprint(conn, "220-mail.example ESMTP\r\n220 ready\r\n")
		if command, err := in.ReadString('\n'); err != nil || command != "QUIT\r\n" {
			rude.Add(1)
			return
		}
		fmt.Fprint(conn, "221 bye\r\n")
		checks.Add(1)
	})
	addr, socket := freeAddr(t), socketPath(t)
	hosts := []string{refused, silent.Addr().String(), wrong.Addr().String(), good.Addr().String()}
	u := start(t, "--bind", addr, "--hosts", strings.Join(hosts, ","), "--check-tcp", "smtp", "--interval", "50ms", "--timeout", "1s",
		"--send-proxy", "v1", "--control", socket)
	u.WaitLog("relay open: relay=" + portOf(addr) + " host=" + hosts[3])
	u.Until("it is checked again and again", func() bool { return checks.Load() >= 10 })
	if n := rude.Load(); n > 0 {
		t.Errorf("%d checks of %d ended without QUIT", n, checks.Load())
	}
	why := func() string {
		out, err := exec.CommandContext(t.Context(), program(t), "why", "--control", socket).CombinedOutput()
		if err != nil {
			t.Fatalf("why: %v, %s", err, out)
		}
		return strings.Join(strings.Fields(string(out)), " ")
	}
	for _, want := range []string{"connection refused", "no greeting: read tcp", `wrong greeting: "HTTP/1.1 400 Bad Request", want a reply of three digits`} {
		var text string
		if u.Until("why says "+want, func() bool { text = why(); return strings.Contains(text, want) }); !strings.Contains(text, "smtp down") {
			t.Errorf("why = %s", text)
		}
	}
	end(t, u)
}

// With --check-tcp off the pong port is the first check, and nothing else connects; with
// on the service accepts each check.
func TestTCPCheckOffAndOn(t *testing.T) {
	t.Parallel()
	for what, seen := range map[string]bool{"off": false, "on": true} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ln := listen(t)
			var accepted atomic.Int64
			go serve(ln, func(conn net.Conn) {
				accepted.Add(1)
				fmt.Fprintln(conn, "a")
				conn.Close()
			})
			port, pongs := countPongs(t)
			addr := freeAddr(t)
			u := start(t, "--bind", addr, "--hosts", ln.Addr().String(), "--check-tcp", what, "--interval", "20ms", "--pong-port", port)
			u.WaitLog("relay open")
			u.Until("50 checks are done", func() bool { return pongs.Load() >= 50 })
			if n := accepted.Load(); n > 0 != seen {
				t.Errorf("the host accepted %d connections of checks", n)
			}
			awaitGreeting(t, u, addr, "a")
			end(t, u)
		})
	}
}
