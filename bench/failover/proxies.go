//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"understudy/bench/program"
)

// maxConnections is room for all clients that can be waiting at once, twice:
// perSecond times answerTimeout, and the sessions.
const maxConnections = 4000

// subject is the proxy that the comparison is about.
const subject = "understudy"

// defaults is HAProxy with its defaults.
const defaults = "haproxy defaults"

// site holds the addresses and paths of a trial.
type site struct {
	dir      string
	listen   netip.AddrPort
	old, new netip.AddrPort // the hosts
	pings    uint16         // the port on which each of them answers pings; 0 if it is not to be used
}

// proxy is one of the programs that are compared.
type proxy struct {
	name string
	// program is the name of the program, install the package that has it.
	program, install string
	// leash is the signal that it gets when this process is killed: one on which
	// it ends its workers, too.
	leash syscall.Signal
	// about describes its setup in one sentence.
	about string
	// argv makes the command line, and the files in the site's directory.
	argv func(s site) ([]string, error)
	// settings is its setup as the report shows it.
	settings func(s site) string
	// replace makes the new host primary in the documented way.
	replace func(ctx context.Context, s site, p *program.Process) error
	// replaces describes how.
	replaces string
}

// proxies lists all, in the order of the report.
func proxies(understudy string) []proxy {
	return []proxy{
		{
			name: subject, program: understudy, install: "go build ./cmd/understudy", leash: syscall.SIGKILL,
			about: "The defaults, and a pong port: without one nothing but a client would notice that a host stands still.",
			argv: func(s site) ([]string, error) {
				return append([]string{understudy}, understudyFlags(s)...), nil
			},
			settings: func(s site) string { return subject + " " + strings.Join(understudyFlags(s), " ") + "\n" },
			replace: func(ctx context.Context, s site, _ *program.Process) error {
				return command(ctx, understudy, "switch", "--control", controlOf(s), s.new.String())
			},
			replaces: "`understudy switch HOST`",
		},
		haproxy(defaults, haproxyPlain,
			"The example of its documentation (section 2.6) in TCP mode, with `check` and `backup`: a check every 2 s, three failures, no redispatch.",
			[]string{"set server hosts/" + oldHost + " state maint"},
			"`set server hosts/db1 state maint` on its socket"),
		haproxy("haproxy tuned", haproxyTuned,
			"Everything that its documentation offers for an active and a standby server, each at its quickest: a check every second, every 100 ms under suspicion; "+
				"a client's failed connect takes the server out at once and the client goes to the standby; the check asks the ping port, so that a stopped server is seen.",
			[]string{
				"set server hosts/" + oldHost + " state drain", "",
				"set server hosts/" + oldHost + " state maint",
				"shutdown sessions server hosts/" + oldHost,
			},
			"`set server hosts/db1 state drain`; 250 ms later, which is what understudy gives, `state maint` and `shutdown sessions server hosts/db1`"),
		{
			name: "nginx", program: "nginx", install: "apt-get install nginx libnginx-mod-stream", leash: syscall.SIGTERM,
			about: "The stream module. It has no checks of its own (those are part of nginx's commercial edition): a client's connect that fails takes the server out for `fail_timeout`.",
			argv: func(s site) ([]string, error) {
				file := filepath.Join(s.dir, "nginx.conf")
				return []string{"nginx", "-p", s.dir, "-e", "stderr", "-c", file}, writeConfig(file, nginxConfig(s, false))
			},
			settings: func(s site) string { return nginxConfig(s, false) },
			replace: func(_ context.Context, s site, p *program.Process) error {
				if err := writeConfig(filepath.Join(s.dir, "nginx.conf"), nginxConfig(s, true)); err != nil {
					return err
				}
				return p.Signal(syscall.SIGHUP) // what nginx -s reload sends
			},
			replaces: "the configuration without db1, and `nginx -s reload`",
		},
	}
}

func understudyFlags(s site) []string {
	flags := []string{"--bind", s.listen.String(), "--hosts", s.old.String() + "," + s.new.String(), "--control", controlOf(s)}
	if s.pings != 0 {
		flags = append(flags, "--pong-port", fmt.Sprint(s.pings))
	}
	return flags
}

func controlOf(s site) string { return filepath.Join(s.dir, "control.sock") }

// haproxy is HAProxy with a configuration, and the commands that take the old
// host out of it. An empty one waits for as long as understudy's switch does.
func haproxy(name string, config func(site) string, about string, replace []string, replaces string) proxy {
	return proxy{
		name: name, program: "haproxy", install: "apt-get install haproxy", leash: syscall.SIGKILL,
		about: about,
		argv: func(s site) ([]string, error) {
			file := filepath.Join(s.dir, "haproxy.cfg")
			return []string{"haproxy", "-db", "-f", file}, writeConfig(file, config(s))
		},
		settings: config,
		replace: func(ctx context.Context, s site, _ *program.Process) error {
			for _, line := range replace {
				if line == "" {
					program.Pause(ctx, 250*time.Millisecond)
				} else if err := runtimeCommand(ctx, filepath.Join(s.dir, "haproxy.sock"), line); err != nil {
					return err
				}
			}
			return nil
		},
		replaces: replaces,
	}
}

// runtimeCommand sends HAProxy a command over its socket. HAProxy answers
// nothing on success.
func runtimeCommand(ctx context.Context, path, line string) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(answerTimeout))
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return err
	}
	said, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if len(strings.TrimSpace(string(said))) > 0 {
		return fmt.Errorf("haproxy: %s: %s", line, program.LastBytes(said, 200))
	}
	return nil
}

func haproxyPlain(s site) string {
	return fmt.Sprintf(`global
    maxconn %[5]d
    stats socket %[1]s/haproxy.sock mode 600 level admin
defaults
    mode tcp
    timeout connect 5000ms
    timeout client 50000ms
    timeout server 50000ms
listen hosts
    bind %[2]s
    server db1 %[3]s check
    server db2 %[4]s check backup
`, s.dir, s.listen, s.old, s.new, maxConnections)
}

func haproxyTuned(s site) string {
	return fmt.Sprintf(`global
    maxconn %[6]d
    stats socket %[1]s/haproxy.sock mode 600 level admin
defaults
    mode tcp
    timeout connect 1s
    timeout check 1s
    timeout client 1m
    timeout server 1m
    retries 3
    option redispatch 1
listen hosts
    bind %[2]s
    option httpchk GET /ping
    http-check expect string pong
    default-server port %[5]d inter 1s fastinter 100ms downinter 1s fall 3 rise 2
    default-server observe layer4 error-limit 1 on-error mark-down on-marked-down shutdown-sessions
    server db1 %[3]s check
    server db2 %[4]s check backup
`, s.dir, s.listen, s.old, s.new, s.pings, maxConnections)
}

// nginxConfig is the stream module with the old host as primary, or without
// it.
func nginxConfig(s site, replaced bool) string {
	head := ""
	if module := program.NginxModule(); module != "" {
		head = "load_module " + module + ";\n"
	}
	if os.Getuid() == 0 {
		head += "user root;\n"
	}
	servers := fmt.Sprintf("server %s max_fails=1 fail_timeout=10s;\n        server %s backup;", s.old, s.new)
	if replaced {
		servers = fmt.Sprintf("server %s;", s.new)
	}
	return head + fmt.Sprintf(`daemon off;
worker_processes 2;
pid %s/nginx.pid;
error_log stderr error;
events { worker_connections %d; }
stream {
    upstream hosts {
        zone hosts 64k;
        %s
    }
    server {
        listen %s backlog=4096;
        proxy_pass hosts;
        proxy_next_upstream on;
        proxy_connect_timeout 1s;
        proxy_timeout 1m;
    }
}
`, s.dir, 2*maxConnections, servers, s.listen)
}

func writeConfig(file, content string) error { return os.WriteFile(file, []byte(content), 0o600) }

// command runs a command that must succeed.
func command(ctx context.Context, argv ...string) error {
	if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil { //nolint:gosec // G204: the programs that are compared
		return fmt.Errorf("%s: %w: %s", strings.Join(argv[1:], " "), err, program.LastBytes(out, 300))
	}
	return nil
}

// installed returns an error that names the missing packages.
func (p proxy) installed() error {
	if _, err := exec.LookPath(p.program); err != nil {
		return fmt.Errorf("%s is not there (%s)", filepath.Base(p.program), p.install)
	}
	return nil
}

// version is the version that the program prints.
func (p proxy) version(ctx context.Context) string {
	argument := map[string]string{"haproxy": "-v", "nginx": "-v"}[p.program]
	if argument == "" {
		argument = "--version"
	}
	out, err := exec.CommandContext(ctx, p.program, argument).CombinedOutput() //nolint:gosec // G204: the programs that are compared
	if err != nil {
		return fmt.Sprintf("version unknown (%v)", err)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}
