//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"understudy/bench/program"
)

// peer is one way to get from the client to the backend.
type peer struct {
	name string
	// program is the program that must be installed, install the command that
	// installs it; both are empty for peers that are part of the benchmark.
	program, install string
	// argv makes the command line for a proxy with relays, with its files in
	// dir. Nil means no proxy at all.
	argv func(dir string, relays []relay) ([]string, error)
	// one means that it takes no part where there are several hosts or relays.
	one bool
	// admin is the address of its admin listener, which has an audience; may be empty.
	admin string
	// descriptors is the number that the proxy needs for each connection.
	descriptors int
}

// tools holds the paths of the programs that the peers need.
type tools struct {
	self       string // this benchmark, where everybody may run it
	understudy string // may be missing
	limit      uint64 // of descriptors
}

// peers lists every peer, in the order in which they take turns. variants are
// further runs of understudy: "name=flags".
func peers(t tools, variants []string) ([]peer, error) {
	list := []peer{{name: direct}}
	for _, h := range []struct {
		name    string
		threads int
		splice  bool
	}{
		{"haproxy-2", 2, false},
		{"haproxy-1", 1, false},
		{"haproxy-2-splice", 2, true},
		{"haproxy-1-splice", 1, true},
	} {
		list = append(list, peer{
			name: h.name, program: "haproxy", install: "apt-get install haproxy", descriptors: 2,
			one: h.splice, // without it is the same there
			argv: func(dir string, relays []relay) ([]string, error) {
				file := filepath.Join(dir, "haproxy.cfg")
				return []string{"haproxy", "-db", "-f", file}, writeConfig(file, haproxyConfig(connectionsOf(relays, t.limit), h.threads, h.splice, relays))
			},
		})
	}
	list = append(list,
		peer{
			name: "nginx-2", program: "nginx", install: "apt-get install nginx libnginx-mod-stream", descriptors: 2,
			argv: func(dir string, relays []relay) ([]string, error) {
				file := filepath.Join(dir, "nginx.conf")
				return []string{"nginx", "-p", dir, "-e", "stderr", "-c", file}, writeConfig(file, nginxConfig(dir, connectionsOf(relays, t.limit), relays))
			},
		},
		peer{
			name: "iocopy", descriptors: 6, // two sockets, and a pipe for each direction
			one: true,
			argv: func(_ string, relays []relay) ([]string, error) {
				return []string{t.self, roleNameCopy, relays[0].listen.String(), relays[0].hosts[0].String()}, nil
			},
		},
		understudyPeer(t, subject, nil),
	)
	for _, variant := range variants {
		name, flags, found := strings.Cut(variant, "=")
		if !found || name == "" {
			return nil, fmt.Errorf("-variant %q: want name=flags", variant)
		}
		list = append(list, understudyPeer(t, name, strings.Fields(flags)))
	}
	return list, nil
}

func understudyPeer(t tools, name string, flags []string) peer {
	return peer{
		name: name, program: t.understudy, install: "go build ./cmd/understudy", descriptors: 2, admin: adminOf(flags),
		argv: func(dir string, relays []relay) ([]string, error) {
			argv := append([]string{t.understudy, "--log-level", "warn"}, flags...)
			if r := relays[0]; len(r.hosts) == 1 {
				return append(argv, "-b", r.listen.String(), "-H", r.hosts[0].String()), nil
			}
			file := filepath.Join(dir, "understudy.yaml")
			return append(argv, "--config", file), writeConfig(file, understudyConfig(relays))
		},
	}
}

// HAProxy reserves descriptors for all the connections and pipes that it may
// have, and does not start when the limit is lower. With 900 pipes no figure
// runs out of them, and 9,000 connections still fit under a limit of 20,000.
const (
	maxConnections = 9050
	maxPipes       = 900
	otherFiles     = 100
)

// connectionsBelow returns the number of connections that a proxy can be
// configured for under a limit of descriptors.
func connectionsBelow(limit uint64) int {
	return int(min(maxConnections, (max(limit, 2*maxPipes+otherFiles+2)-2*maxPipes-otherFiles)/2))
}

// connectionsOf returns the number of connections for which a proxy is configured.
// With several hosts most descriptors are for listeners and checks, and few
// connections come.
func connectionsOf(relays []relay, limit uint64) int {
	if len(relays[0].hosts) > 1 {
		return min(1000, connectionsBelow(limit))
	}
	return connectionsBelow(limit)
}

// haproxyConfig is TCP mode without anything that costs time: no log, no limits
// in the way, no timeout that could end a connection during a run.
func haproxyConfig(connections, threads int, splice bool, relays []relay) string {
	options := ""
	if splice {
		options = "    option splice-request\n    option splice-response\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, `global
    nbthread %d
    maxconn %d
    maxpipes %d
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
%s`, threads, connections, maxPipes, options)
	at := func(a address) string { return strings.Replace(a.String(), unixPrefix, "unix@", 1) }
	for i, r := range relays {
		fmt.Fprintf(&b, "listen r%d\n    bind %s\n", i+1, at(r.listen))
		for j, h := range r.hosts {
			fmt.Fprintf(&b, "    server h%d %s", j+1, at(h))
			if len(r.hosts) > 1 {
				b.WriteString(" check inter 1s")
			}
			if j > 0 {
				b.WriteString(" backup")
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

// nginxConfig is the stream module with two workers. Each has room for all
// connections, since connections are not spread evenly. Of several hosts it
// checks none.
func nginxConfig(dir string, connections int, relays []relay) string {
	var b strings.Builder
	if module := program.NginxModule(); module != "" {
		b.WriteString("load_module " + module + ";\n")
	}
	if os.Getuid() == 0 {
		b.WriteString("user root;\n") // otherwise the workers of root's run would not run as root
	}
	fmt.Fprintf(&b, `daemon off;
worker_processes 2;
pid %s/nginx.pid;
error_log stderr error;
events { worker_connections %d; }
stream {
    proxy_connect_timeout 5s;
    proxy_timeout 1h;
`, dir, 2*connections+otherFiles+len(relays))
	for i, r := range relays {
		to := r.hosts[0].String()
		if len(r.hosts) > 1 {
			to = fmt.Sprintf("r%d", i+1)
			fmt.Fprintf(&b, "    upstream %s { server %s;", to, r.hosts[0])
			for _, h := range r.hosts[1:] {
				fmt.Fprintf(&b, " server %s backup;", h)
			}
			b.WriteString(" }\n")
		}
		fmt.Fprintf(&b, "    server { listen %s backlog=4096; proxy_pass %s; }\n", r.listen, to)
	}
	b.WriteString("}\n")
	return b.String()
}

// writeConfig writes a file that every user may read.
func writeConfig(file, content string) error {
	return os.WriteFile(file, []byte(content), 0o644) //nolint:gosec // G306: the proxy runs as another user
}

// version is the version that the program of p prints, or "".
func (p peer) version(ctx context.Context) string {
	argument := map[string]string{"haproxy": "-v", "nginx": "-v"}[p.program]
	switch {
	case p.program == "":
		return ""
	case argument == "":
		argument = "--version"
	}
	out, err := exec.CommandContext(ctx, p.program, argument).CombinedOutput() //nolint:gosec // G204: the peers are programs that we choose
	if err != nil {
		return fmt.Sprintf("version unknown (%v)", err)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

// installed returns an error that names the missing packages.
func (p peer) installed() error {
	if p.argv == nil || p.program == "" && p.install == "" {
		return nil
	}
	if _, err := exec.LookPath(p.program); err != nil {
		return fmt.Errorf("%s is not there (%s)", cmp.Or(p.program, p.name), p.install)
	}
	return nil
}

// way is a peer that runs: where clients connect, and the process between.
type way struct {
	addr   address // of the relay that is measured, the last
	relays []relay
	proxy  *process // nil for direct
	dir    string
}

// run starts p with relays, as the user of cred, in a new directory below dir,
// and returns when a host has confirmed a greeting through the last of them.
// The caller must call stop.
func (p peer) run(ctx context.Context, dir string, cred *syscall.Credential, relays []relay) (*way, error) {
	last := relays[len(relays)-1]
	if p.argv == nil {
		return &way{addr: last.hosts[0]}, nil
	}
	dir, err := os.MkdirTemp(dir, p.name+"-")
	if err != nil {
		return nil, err
	}
	w := &way{addr: last.listen, relays: relays, dir: dir}
	if cred != nil {
		if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
			w.stop()
			return nil, err
		}
	}
	argv, err := p.argv(dir, relays)
	if err == nil {
		w.proxy, err = startProcess(ctx, p.name, dir, cred, argv...)
	}
	if err == nil {
		err = w.ready(ctx)
	}
	if err != nil {
		w.stop()
		return nil, err
	}
	return w, nil
}

// ready waits until a connection through the way is greeted by the backend.
func (w *way) ready(ctx context.Context) error {
	return waitReady(ctx, w.addr, w.proxy)
}

// waitReady waits until the backend answers at addr, or process ends.
func waitReady(ctx context.Context, addr address, process *process) error {
	var err error
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline) && ctx.Err() == nil; {
		var fds []int
		if fds, err = open(addr, 1, roleEcho); err == nil {
			abort(fds)
			return nil
		}
		if process.Exited() {
			return process.Failure()
		}
		program.Pause(ctx, 20*time.Millisecond)
	}
	return errors.Join(ctx.Err(), fmt.Errorf("%s at %s is not ready: %w", process, addr, err))
}

// alive returns an error when the proxy has ended on its own.
func (w *way) alive() error {
	if w.proxy != nil && w.proxy.Exited() {
		return w.proxy.Failure()
	}
	return nil
}

// stop ends the proxy and removes its files.
func (w *way) stop() {
	if w.proxy != nil {
		w.proxy.stop()
	}
	for _, r := range w.relays {
		removeSocket(r.listen)
	}
	if w.dir != "" {
		_ = os.RemoveAll(w.dir)
	}
}
