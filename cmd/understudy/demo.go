package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/config"
	"understudy/control"
	"understudy/hooks"
	"understudy/internal/accept"
	"understudy/internal/daemon"
)

const (
	demoBind = "127.0.0.1:8080"
	demoHTTP = "127.0.0.1:9001"

	// demoEvery is the time between the demo's own connects.
	demoEvery = 100 * time.Millisecond
)

// demo runs two small hosts, a relay in front of them, /ping, and a client that
// prints which host answers. It needs no preparation and leaves nothing behind.
func demo(ctx context.Context, line line, stdout, stderr io.Writer) int {
	d := &demonstration{out: &lockedWriter{w: stdout}}
	defer func() {
		for _, h := range d.hosts {
			h.kill()
		}
	}()
	for _, name := range []string{"1", "2"} {
		h := &embeddedHost{name: name}
		d.hosts = append(d.hosts, h)
		if err := h.start(); err != nil {
			fmt.Fprintf(stderr, "understudy: %v\n", err)
			return exitFailed
		}
	}
	given, err := d.given(line)
	if err != nil {
		return usage(stderr, err)
	}
	settings, _, err := config.Load(given)
	if err != nil {
		return usage(stderr, err)
	}

	signals := daemon.HandleSignals(ctx)             // until the process has ended, as in serve
	ctx, end := context.WithCancel(signals.Finish()) //nolint:contextcheck // it comes from ctx
	var side sync.WaitGroup
	err = daemon.Run(daemon.Config{
		Signals:  signals,
		Settings: settings,
		Version:  versionText(),
		Stdout:   stdout,
		Stderr:   stderr,
		Bound: func(b daemon.Bound) error {
			d.invite(b)
			side.Go(func() { d.watch(ctx, b.Relays[0].String()) })
			// A read of standard input cannot be cancelled, so this goroutine
			// is not waited for; it ends with the process.
			go d.keys(os.Stdin)
			return nil
		},
	})
	end()
	side.Wait()
	if err == nil {
		return exitDone
	}
	fmt.Fprintf(stderr, "understudy: %v\n", err)
	if errors.Is(err, syscall.EADDRINUSE) {
		fmt.Fprintln(stderr, "Choose another port: make run PORT=8090, or understudy demo --port 8090 (--http 127.0.0.1:9002 for the verdicts).")
	}
	return exitFailed
}

// demonstration is the part of the demo around the relay.
type demonstration struct {
	out   io.Writer
	hosts []*embeddedHost
}

// given returns the demo's settings: the operator's, except for the hosts, with
// the demo's own defaults. --port is on loopback here, like everything in the
// demo.
func (d *demonstration) given(line line) (config.Given, error) {
	g := config.Given{Flags: maps.Clone(line.flags)}
	for _, flag := range []string{"hosts", "config"} {
		if _, ok := g.Flags[flag]; ok {
			return g, fmt.Errorf("--%s: the demo brings its own hosts", flag)
		}
	}
	_, values, _ := line.settings(nil)
	set := map[string]string{}
	for _, v := range values {
		if v.Origin.Kind != config.Default {
			set[v.Flag] = v.Text
		}
	}
	if port := set["port"]; port != "" && set["bind"] == "" {
		delete(g.Flags, "port")
		g.Flags["bind"] = []string{"127.0.0.1:" + port}
	} else if set["bind"] == "" {
		g.Flags["bind"] = []string{demoBind}
	}
	if set["http"] == "" {
		g.Flags["http"] = []string{demoHTTP}
	}
	if set["drain-timeout"] == "" {
		g.Flags["drain-timeout"] = []string{"1s"} // an open nc must not delay Ctrl-C
	}
	var hosts []string
	for _, h := range d.hosts {
		hosts = append(hosts, h.addr)
	}
	g.Flags["hosts"] = hosts
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		if !slices.Contains([]string{"PORT", "HOSTS", "CONFIG"}, name) {
			g.Environ = append(g.Environ, pair)
		}
	}
	return g, nil
}

// invite prints the addresses and what to try.
func (d *demonstration) invite(b daemon.Bound) {
	relay := b.Relays[0].(*net.TCPAddr)
	operate := ""
	if b.Control != "" {
		operate = "\n    " + operateCommand(b.Control) + "   who is primary, and why? switch, drill and events work too"
	}
	fmt.Fprintf(d.out, `
  The relay listens on %[1]s, the verdict on http://%[2]s/ping.
  Behind the relay are host 1 (%[3]s) and host 2 (%[4]s); host 1 is preferred.

  Try, in another terminal:
    curl http://%[1]s/          who answers?
    curl -i http://%[2]s/ping   is there a primary?
    nc %[5]s %[6]d                   stay connected, and see it end%[9]s

  Then take a host away, and bring it back, with 1 or 2 and Enter here,
  or with kill -9 %[7]d (host 1) or kill -9 %[8]d (host 2) there.
  Ctrl-C ends it all.

`, relay, b.HTTP, d.hosts[0].addr, d.hosts[1].addr, relay.IP, relay.Port, d.hosts[0].pid(), d.hosts[1].pid(), operate)
}

// operateCommand returns the command to enter in another terminal to operate
// this process, whose control socket is at path.
func operateCommand(path string) string {
	command := os.Args[0]
	if filepath.Dir(path) != control.DefaultDir() {
		command += " --control " + path
	}
	return command + " status"
}

// keys kills or starts the host whose number is entered. Without a terminal
// there is nothing to read, and the demo continues.
func (d *demonstration) keys(in io.Reader) {
	for lines := bufio.NewScanner(in); lines.Scan(); {
		switch key := strings.TrimSpace(lines.Text()); key {
		case "1", "2":
			h := d.hosts[key[0]-'1']
			if pid := h.pid(); pid != 0 {
				fmt.Fprintf(d.out, "  demo: kill -9 %d (%s)\n", pid, h)
				h.kill()
			} else if err := h.start(); err != nil {
				fmt.Fprintf(d.out, "  demo: %v\n", err)
			} else {
				fmt.Fprintf(d.out, "  demo: %s is back with pid %d\n", h, h.pid())
			}
		case "":
		default:
			fmt.Fprintln(d.out, "  demo: 1 or 2 and Enter kills or starts that host; Ctrl-C ends")
		}
	}
}

// watch connects to addr repeatedly, and prints when another host answers and
// how long none did.
func (d *demonstration) watch(ctx context.Context, addr string) {
	var last time.Time
	before, failing := "", false
	for {
		who, err := d.greeting(ctx, addr)
		now := time.Now()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failing && before != "":
			fmt.Fprintf(d.out, "  client: no host answers: %v\n", err)
			failing = true
		case err != nil:
		case before == "":
			fmt.Fprintf(d.out, "  client: %s answers\n", who)
		case who != before || failing:
			fmt.Fprintf(d.out, "  client: %s answers now; the last answer was %d ms ago, from %s\n",
				who, now.Sub(last).Milliseconds(), before)
		}
		if err == nil {
			before, last, failing = who, now, false
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(demoEvery):
		}
	}
}

// greeting connects once and returns the name of the host that answers.
func (d *demonstration) greeting(ctx context.Context, addr string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if who, ok := strings.CutSuffix(lines.Text(), " says hello"); ok {
			return who, nil
		}
	}
	return "", errors.New("the connection ended without a greeting")
}

// embeddedHost is one of the demo's hosts: this program again, as a child that
// runs the verb demo-host.
type embeddedHost struct {
	name string

	mu     sync.Mutex // guards everything below
	addr   string     // does not change after the first start
	child  *exec.Cmd  // nil when it does not run
	stdin  io.Closer
	reaped chan struct{} // closed when child was reaped
}

// String returns "host 1".
func (h *embeddedHost) String() string { return "host " + h.name }

// pid returns the child's id, or zero when the host does not run.
func (h *embeddedHost) pid() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.child == nil {
		return 0
	}
	return h.child.Process.Pid
}

// start starts the child and waits until it listens.
func (h *embeddedHost) start() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.child != nil {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// There is no context: kill ends the child, and so does the end of this
	// process, since the child reads from a pipe that only this process holds.
	cmd := exec.Command(self, "demo-host", h.name, h.addr) //nolint:gosec,noctx // this very program
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}  // Ctrl-C must reach the demo, not its hosts
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	wait, err := hooks.Start(cmd)
	if err != nil {
		return fmt.Errorf("start %s: %w", h, err)
	}
	addr, err := bufio.NewReader(stdout).ReadString('\n')
	reaped := make(chan struct{})
	h.child, h.stdin, h.reaped = cmd, stdin, reaped
	go h.await(wait, reaped)
	if err != nil {
		return fmt.Errorf("start %s: it does not listen: %w", h, err)
	}
	h.addr = strings.TrimSpace(addr)
	return nil
}

// await reaps the child when it ends, including by a kill from outside.
func (h *embeddedHost) await(wait func() error, reaped chan struct{}) {
	defer close(reaped)
	_ = wait() // "signal: killed" is the purpose of the demo
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stdin.Close()
	h.child = nil
}

// kill ends the child with SIGKILL, if it runs, and waits for its end.
func (h *embeddedHost) kill() {
	h.mu.Lock()
	child, reaped := h.child, h.reaped
	h.mu.Unlock()
	if child == nil {
		return
	}
	_ = child.Process.Kill() // fails when it has ended already
	<-reaped
}

// demoHost runs one host of the demo: it greets each connection at once, in a
// form that a browser, curl and nc accept, and keeps it open. It prints its
// address on standard output.
func demoHost(ctx context.Context, line line, stdout, stderr io.Writer) int {
	if len(line.args) != 2 {
		return usage(stderr, errors.New("demo-host: needs a name and an address"))
	}
	listening, err := listenForDemo(ctx, line.args[1])
	if err != nil {
		fmt.Fprintf(stderr, "understudy: %v\n", err)
		return exitFailed
	}
	l := accept.Retry(listening, hclog.New(&hclog.LoggerOptions{Output: stderr}))
	body := "host " + line.args[0] + " says hello\n"
	greeting := fmt.Sprintf("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			go serveGreeting(conn, greeting)
		}
	}()
	fmt.Fprintln(stdout, l.Addr())
	// The demo holds the other end of standard input: this host ends with the
	// demo.
	_, _ = io.Copy(io.Discard, os.Stdin)
	l.Close()
	return exitDone
}

// listenForDemo listens at addr or, if that is empty, at the first free port
// from 8081. That is below the ephemeral range: a connect to a port of that
// range on which no program listens can be connected to itself, and a dead host
// would seem alive.
func listenForDemo(ctx context.Context, addr string) (net.Listener, error) {
	var config net.ListenConfig
	if addr != "" {
		return config.Listen(ctx, "tcp", addr)
	}
	for port := 8081; port < 9000; port++ {
		if l, err := config.Listen(ctx, "tcp", "127.0.0.1:"+strconv.Itoa(port)); err == nil {
			return l, nil
		}
	}
	return nil, errors.New("no port from 8081 to 8999 is free for a host of the demo")
}

// serveGreeting greets one client and keeps the connection until the client
// closes it.
func serveGreeting(conn net.Conn, greeting string) {
	defer conn.Close()
	if _, err := io.WriteString(conn, greeting); err == nil {
		_, _ = io.Copy(io.Discard, conn)
	}
}

// lockedWriter keeps lines of several goroutines separate.
type lockedWriter struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
