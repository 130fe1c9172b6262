//go:build linux

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"understudy/control"
	"understudy/internal/proctest"
)

// visitor is a program that connects, asks something and ends.
type visitor struct {
	name    string
	command func(port string) *exec.Cmd // connects to 127.0.0.1
	a, b    string                      // what it prints when a or b serves it
}

// replaying is the program in front of two servers of software whose clients
// speak first. Nothing but the TCP connect is checked.
type replaying struct {
	*proctest.Understudy
	t      *testing.T
	a, b   *database
	addr   string
	socket string
}

// newReplaying starts the program, and waits until a is primary and b is up.
func newReplaying(t *testing.T, a, b *database, args ...string) *replaying {
	t.Helper()
	r := &replaying{t: t, a: a, b: b, addr: freeAddr(t), socket: socketPath(t)}
	r.Understudy = start(t, append(args, "--bind", r.addr, "--hosts", a.addr()+","+b.addr(), "--control", r.socket)...)
	r.WaitLog("relay open")
	r.Until("the second server is up", func() bool { return countLog(r.Understudy, "host changed state", "host="+b.addr(), "to=up") > 0 })
	return r
}

func (r *replaying) clients() control.Clients {
	r.t.Helper()
	s, err := control.NewClient(r.socket).Status(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return s.Relays[0].Clients
}

// freeze stops all processes of a server with SIGSTOP, as a machine that hangs:
// its kernel goes on accepting connections.
func freeze(d *database) {
	d.t.Helper()
	var all []int
	var stop func(pid int)
	stop = func(pid int) {
		_ = syscall.Kill(pid, syscall.SIGSTOP) // fails when it has just ended
		all = append(all, pid)
		proctest.Until(d.t, "a process stands still", func() bool {
			f := stat(fmt.Sprintf("/proc/%d/stat", pid))
			return f == nil || f[0] == "T" || f[0] == "Z"
		})
		for _, child := range childrenOf(pid) { // there are no new ones now
			n, _ := strconv.Atoi(child)
			stop(n)
		}
	}
	d.t.Cleanup(func() {
		for _, pid := range all {
			_ = syscall.Kill(pid, syscall.SIGCONT) // fails when it was killed
		}
	})
	stop(d.cmd.Process.Pid)
}

// visit is one run of a client.
type visit struct {
	visitor
	start    time.Time
	finished bool // and then:
	took     time.Duration
	out      string
	err      error
}

func (v *visit) served(by string) bool { return v.finished && v.err == nil && v.out == by }

// visits are runs of clients, which take turns.
type visits struct {
	stop chan struct{}
	once sync.Once
	all  sync.WaitGroup

	mu   sync.Mutex // guards what follows
	runs []*visit
}

// startVisits starts some clients a second. They end with the test.
func startVisits(t *testing.T, port string, perSecond int, clients ...visitor) *visits {
	t.Helper()
	v := &visits{stop: make(chan struct{})}
	t.Cleanup(func() { v.finish() })
	v.all.Go(func() {
		pace := time.NewTicker(time.Second / time.Duration(perSecond))
		defer pace.Stop()
		for n := 0; ; n++ {
			select {
			case <-v.stop:
				return
			case <-pace.C:
				// One after the other: a busy machine starts fewer of them.
				v.begin(clients[n%len(clients)], port)
			}
		}
	})
	return v
}

func (v *visits) begin(c visitor, port string) {
	one := &visit{visitor: c, start: time.Now()}
	v.mu.Lock()
	v.runs = append(v.runs, one)
	v.mu.Unlock()
	cmd := c.command(port)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Start()
	began := time.Now()
	v.all.Go(func() {
		if err == nil {
			deadline := time.AfterFunc(2*patience, func() { _ = cmd.Process.Kill() })
			err = cmd.Wait()
			deadline.Stop()
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		one.finished, one.took, one.out, one.err = true, time.Since(began), strings.TrimSpace(out.String()), err
	})
}

// count counts the visits that began after a moment and fulfil a condition.
func (v *visits) count(after time.Time, condition func(*visit) bool) (n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, one := range v.runs {
		if one.start.After(after) && condition(one) {
			n++
		}
	}
	return n
}

// finish starts no more clients, waits for those that run and returns all.
func (v *visits) finish() []*visit {
	v.once.Do(func() { close(v.stop) })
	v.all.Wait()
	return v.runs
}

// wantAllMoved stops the first server under a load of new clients. Each client
// that comes from then on has to be served by the second one. Nobody but they
// can notice the stop.
func wantAllMoved(t *testing.T, a, b *database, perSecond int, clients ...visitor) {
	t.Helper()
	r := newReplaying(t, a, b)
	load := startVisits(t, portOf(r.addr), perSecond, clients...)
	r.Until("clients are served by the first server", func() bool {
		return load.count(time.Time{}, func(one *visit) bool { return one.served(one.a) }) >= 2*len(clients)
	})
	freeze(a)
	stopped := time.Now()
	r.Until("the second server is primary", func() bool { return elections(r.Understudy) == 2 })
	failedOver := time.Now()
	r.Until("clients are served by the second server", func() bool {
		return load.count(failedOver, func(one *visit) bool { return one.served(one.b) }) >= 2*len(clients)
	})
	runs, counted := load.finish(), r.clients()
	came, cut, slowest := 0, 0, time.Duration(0)
	for _, one := range runs {
		switch {
		case one.start.After(stopped):
			came, slowest = came+1, max(slowest, one.took)
			if !one.served(one.b) {
				t.Errorf("%s, %v after the stop: %q, %v, want %q", one.name, one.start.Sub(stopped), one.out, one.err, one.b)
			}
		case !one.served(one.a) && !one.served(one.b):
			cut++ // the server that stopped had answered it
		}
	}
	t.Logf("%d clients came after the stop, the slowest took %v; %d openings were sent again; %d clients were in a conversation at the stop and were cut off",
		came, slowest.Round(time.Millisecond), counted.Replayed, cut)
	if counted.Replayed == 0 || counted.Unanswered != 0 {
		t.Errorf("replayed %d, unanswered %d, want some and none", counted.Replayed, counted.Unanswered)
	}
	r.Terminate()
}

// A primary and a standby of PostgreSQL. Clients begin with a request for TLS,
// which these servers do not have, or with their login.
func TestReplayPostgres(t *testing.T) {
	t.Parallel()
	p := newPostgres(t)
	a := p.primary("")
	b := p.standby(a, "b")
	session := func(mode string) visitor {
		return visitor{"psql, sslmode=" + mode, func(port string) *exec.Cmd {
			cmd := p.client(":"+port, "psql", "-XAtqc", "select inet_server_port()")
			cmd.Env = append(cmd.Env, "PGSSLMODE="+mode)
			return cmd
		}, strconv.Itoa(a.port), strconv.Itoa(b.port)}
	}
	wantAllMoved(t, a, b, 10, session("prefer"), session("disable"))
}

// Redis and its replica. Clients begin with AUTH or PING.
func TestReplayRedis(t *testing.T) {
	t.Parallel()
	s := newRedis(t)
	a := s.serve("a", nil)
	b := s.serve("b", a)
	command := func(args ...string) func(string) *exec.Cmd {
		return func(port string) *exec.Cmd {
			n, _ := strconv.Atoi(port)
			return redisCLI(t, n, args...)
		}
	}
	wantAllMoved(t, a, b, 20,
		visitor{"redis-cli with AUTH", command("config", "get", "port"), fmt.Sprintf("port\n%d", a.port), fmt.Sprintf("port\n%d", b.port)},
		visitor{"redis-cli with AUTH and SELECT", command("-n", "1", "config", "get", "port"), fmt.Sprintf("port\n%d", a.port), fmt.Sprintf("port\n%d", b.port)},
		visitor{"redis-cli with PING", func(port string) *exec.Cmd {
			cmd := command("ping")(port)
			cmd.Env = os.Environ() // without the password
			return cmd
		}, "NOAUTH Authentication required.", "NOAUTH Authentication required."},
	)
}

// nginx starts a server that answers each request with its name.
func nginx(t *testing.T, name string, withTLS bool) *database {
	t.Helper()
	needs(t, "nginx")
	needs(t, "curl")
	dir, port, scheme, listen := databaseDir(t), proctest.FreePort(t, "127.0.0.1"), "http", ""
	if withTLS {
		cert, key := selfSigned(t)
		for from, to := range map[string]string{cert: "cert.pem", key: "key.pem"} {
			text, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			private(t, filepath.Join(dir, to), string(text), true)
		}
		scheme, listen = "https", fmt.Sprintf(" ssl;\n ssl_certificate %s/cert.pem;\n ssl_certificate_key %[1]s/key.pem", dir)
	}
	paths := ""
	for _, what := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		paths += fmt.Sprintf(" %s_temp_path %s/%[1]s;\n", what, dir)
	}
	config := filepath.Join(dir, "nginx.conf")
	private(t, config, fmt.Sprintf(`daemon off;
pid %s/pid;
error_log stderr error;
events {}
http {
 access_log off;
%s server {
 listen 127.0.0.1:%d%s;
 location / { return 200 "%s\n"; }
 }
}
`, dir, paths, port, listen, name), true)
	d := &database{
		t: t, name: name, port: port, log: filepath.Join(dir, "log"), end: syscall.SIGTERM,
		argv: []string{needs(t, "nginx"), "-p", dir, "-e", "stderr", "-c", config},
		asks: func() *exec.Cmd { return curl(fmt.Sprintf("%s://127.0.0.1:%d/", scheme, port)) },
	}
	return d.begin()
}

func curl(args ...string) *exec.Cmd {
	return exec.Command("curl", append([]string{"-q", "-s", "-S", "-f", "-k", "--noproxy", "*"}, args...)...)
}

// nginx, with and without TLS.
func TestReplayNginx(t *testing.T) {
	t.Parallel()
	get := func(name, scheme string, args ...string) visitor {
		return visitor{name, func(port string) *exec.Cmd { return curl(append(args, scheme+"://127.0.0.1:"+port+"/")...) }, "a", "b"}
	}
	for _, tt := range []struct {
		name    string
		tls     bool
		clients []visitor
	}{
		{"http", false, []visitor{get("curl", "http"), get("curl to upgrade to HTTP/2", "http", "--http2")}},
		// The opening is the ClientHello, so that requests of any method come after it.
		{"https", true, []visitor{get("curl", "https"), get("curl POST", "https", "-d", "content")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			wantAllMoved(t, nginx(t, "a", tt.tls), nginx(t, "b", tt.tls), 20, tt.clients...)
		})
	}
}

// A POST may have had its effect before the server stopped: it is not repeated,
// its client is reset, and counted.
func TestPOSTIsNotReplayed(t *testing.T) {
	t.Parallel()
	r := newReplaying(t, nginx(t, "a", false), nginx(t, "b", false), "--on-silence", "fail")
	freeze(r.a)
	load := startVisits(t, portOf(r.addr), 20, visitor{"curl POST", func(port string) *exec.Cmd {
		return curl("-d", "some content", "http://127.0.0.1:"+port+"/")
	}, "a", "b"})
	r.Until("the second server answers", func() bool {
		return load.count(time.Time{}, func(one *visit) bool { return one.served("b") }) > 0
	})
	lost := 0
	for _, one := range load.finish() {
		if one.served("b") {
			continue
		}
		lost++
		if exit, ok := errors.AsType[*exec.ExitError](one.err); !ok || exit.ExitCode() != 56 { // CURLE_RECV_ERROR
			t.Errorf("a client ended with %v, %q, want a reset", one.err, one.out)
		}
	}
	if n := r.clients(); lost == 0 || n.Unanswered != uint64(lost) || n.Replayed != 0 {
		t.Errorf("%d clients were reset; unanswered %d, replayed %d", lost, n.Unanswered, n.Replayed)
	}
	r.Terminate()
}

// sshd starts a server for logins with a key, which prints its name and ends
// them.
func sshd(t *testing.T, dir, name string) *database {
	t.Helper()
	program, err := exec.LookPath("sshd")
	if err != nil {
		program = "/usr/sbin/sshd"
		if _, err := os.Stat(program); err != nil {
			t.Skip("SKIPPED: sshd is not installed (make test-deps)")
		}
	}
	port, config := proctest.FreePort(t, "127.0.0.1"), filepath.Join(dir, name+".conf")
	// sshd drops logins of many clients at a time, unless MaxStartups allows them.
	// Started by sshd, bash reads the user's own files, unless SHLVL says that
	// another shell has done so.
	private(t, config, fmt.Sprintf("ListenAddress 127.0.0.1:%d\nHostKey %s/hostkey\nAuthorizedKeysFile %[2]s/key.pub\nPidFile none\nUsePAM no\nStrictModes no\nMaxStartups 500\nLogLevel ERROR\nForceCommand echo %s\nSetEnv SHLVL=2\n",
		port, dir, name), false)
	argv := []string{program, "-D", "-e", "-f", config}
	if os.Getuid() == 0 { // it requires a directory of the system then: it has a /run of its own
		argv = append([]string{"unshare", "-m", "sh", "-c", `mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec "$@"`, "sh"}, argv...)
	}
	d := &database{
		t: t, name: name, port: port, log: filepath.Join(dir, name+".log"), end: syscall.SIGTERM, own: true,
		argv: argv,
		asks: func() *exec.Cmd { return ssh(t, dir, strconv.Itoa(port)) },
	}
	return d.begin()
}

// ssh logs in as the user of the tests.
func ssh(t *testing.T, dir, port string) *exec.Cmd {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-F", "none", "-i", filepath.Join(dir, "key"), "-p", port}
	for _, option := range []string{"IdentitiesOnly=yes", "BatchMode=yes", "UserKnownHostsFile=/dev/null", "GlobalKnownHostsFile=/dev/null", "StrictHostKeyChecking=no", "LogLevel=ERROR"} {
		args = append(args, "-o", option)
	}
	return exec.Command("ssh", append(args, me.Username+"@127.0.0.1")...)
}

// sshd, with logins.
func TestReplaySSH(t *testing.T) {
	t.Parallel()
	needs(t, "ssh")
	needs(t, "ssh-keygen")
	dir := t.TempDir()
	for _, name := range []string{"hostkey", "key"} {
		output(t, exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name)))
	}
	a := sshd(t, dir, "a")
	b := sshd(t, dir, "b")
	wantAllMoved(t, a, b, 8, visitor{"ssh", func(port string) *exec.Cmd { return ssh(t, dir, port) }, "a", "b"})
}
