//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/control"
	"understudy/internal/proctest"
)

// postgres is PostgreSQL's programs, and how the tests use them.
type postgres struct {
	t        *testing.T
	bin      string // directory
	dir      string
	passfile string // of root
}

const (
	scriptsPassword = "secret of the scripts"
	clientsPassword = "secret of the clients"
	standbyPassword = "secret of the standby"
)

// newPostgres skips the test where PostgreSQL is missing. Debian has its
// programs in a directory for each version.
func newPostgres(t *testing.T) *postgres {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if path, err := exec.LookPath("postgres"); err == nil {
		found = append(found, path)
	}
	found = slices.DeleteFunc(found, func(path string) bool {
		_, err := os.Stat(filepath.Join(filepath.Dir(path), "pgbench"))
		return err != nil
	})
	if len(found) == 0 {
		t.Skip("SKIPPED: postgres and pgbench are not installed (make test-deps)")
	}
	p := &postgres{t: t, bin: filepath.Dir(found[len(found)-1]), dir: databaseDir(t), passfile: filepath.Join(t.TempDir(), "pgpass")}
	private(t, p.passfile, "*:*:*:understudy:"+scriptsPassword+"\n*:*:*:app:"+clientsPassword+"\n", false)
	private(t, filepath.Join(p.dir, "pgpass"), "*:*:*:standby:"+standbyPassword+"\n", true)
	return p
}

// command is one of PostgreSQL's programs, run as nobody.
func (p *postgres) command(name string, args ...string) *exec.Cmd {
	cmd := asNobody(exec.Command(filepath.Join(p.bin, name), args...))
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PGPASSFILE="+filepath.Join(p.dir, "pgpass"))
	return cmd
}

func (p *postgres) data(name string) string { return filepath.Join(p.dir, name) }

// configure adds to a server's configuration file.
func (p *postgres) configure(name, text string) {
	p.t.Helper()
	file, err := os.OpenFile(filepath.Join(p.data(name), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString(text); err != nil {
		p.t.Fatal(err)
	}
}

// serve starts a server in a directory that was made before.
func (p *postgres) serve(name string) *database {
	p.t.Helper()
	data, port := p.data(name), proctest.FreePort(p.t, "127.0.0.1")
	p.t.Cleanup(func() { removeSharedMemory(p.t, data) })
	d := &database{
		t: p.t, name: name, port: port, log: filepath.Join(p.dir, name+".log"), end: syscall.SIGQUIT,
		argv: []string{
			filepath.Join(p.bin, "postgres"), "-D", data,
			"-c", "listen_addresses=127.0.0.1", "-c", "port=" + strconv.Itoa(port), "-c", "unix_socket_directories=" + p.dir,
		},
		asks: func() *exec.Cmd { return p.command("pg_isready", "-q", "-h", p.dir, "-p", strconv.Itoa(port)) },
	}
	return d.begin()
}

// primary makes a server, with settings of its own and the roles of all, and
// starts it.
func (p *postgres) primary(settings string) *database {
	p.t.Helper()
	output(p.t, p.command("initdb", "-D", p.data("a"), "-U", "admin", "-A", "trust", "--auth-host=scram-sha-256", "-E", "UTF8", "--locale=C", "-k", "-N"))
	p.configure("a", "fsync = off\n"+settings+
		"dynamic_shared_memory_type = mmap\n") // which leaves nothing behind when the server is killed
	d := p.serve("a")
	p.roles(d)
	return d
}

// standby makes a server that follows the primary, and waits until it does.
func (p *postgres) standby(primary *database) *database {
	p.t.Helper()
	output(p.t, p.command("pg_basebackup", "-h", "127.0.0.1", "-p", strconv.Itoa(primary.port), "-U", "standby", "-D", p.data("b"), "-R", "-c", "fast", "-N"))
	d := p.serve("b")
	p.awaitStandby(primary)
	return d
}

// removeSharedMemory removes what a server that was killed leaves in the
// kernel, a segment whose number is in its lock file.
func removeSharedMemory(t *testing.T, data string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return // it ended in order
	}
	if all := strings.Split(string(text), "\n"); err == nil && len(all) > 6 { // the seventh line: key and number
		if fields := strings.Fields(all[6]); len(fields) == 2 {
			id, _ := strconv.Atoi(fields[1])
			_, err = unix.SysvShmCtl(id, unix.IPC_RMID, nil)
		}
	}
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: it is removed already
		t.Errorf("shared memory of a killed server: %v", err)
	}
}

// admin runs statements as the superuser, each in a transaction of its own.
func (p *postgres) admin(d *database, statements ...string) string {
	p.t.Helper()
	args := []string{"-XAtq", "-v", "ON_ERROR_STOP=1", "-h", p.dir, "-p", strconv.Itoa(d.port), "-U", "admin", "-d", "postgres"}
	for _, s := range statements {
		args = append(args, "-c", s)
	}
	return output(p.t, p.command("psql", args...))
}

// roles makes the roles of the scripts, the clients and the standby.
func (p *postgres) roles(d *database) {
	p.t.Helper()
	role, err := os.ReadFile(filepath.Join(scriptsDir, "postgres-role.sql"))
	if err != nil {
		p.t.Fatal(err)
	}
	for statement := range strings.SplitSeq(strings.TrimSpace(string(role)), ";\n") {
		p.admin(d, statement)
	}
	p.admin(d, "alter role understudy password '"+scriptsPassword+"'", "create role app login password '"+clientsPassword+"'",
		"create role standby login replication password '"+standbyPassword+"'", "create database app owner app")
}

// client is a program that connects to the relay as the application does.
func (p *postgres) client(addr, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(p.t.Context(), filepath.Join(p.bin, name), args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PGPASSFILE="+p.passfile, "PGHOST=127.0.0.1", "PGPORT="+portOf(addr), "PGUSER=app", "PGDATABASE=app")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// psql is a session of psql.
type psql struct{ *terminal }

func (p *postgres) session(addr string) (session, error) {
	t, err := newTerminal(p.client(addr, "psql", "-XAtq", "-v", "ON_ERROR_STOP=1"))
	return psql{t}, err
}

func (s psql) write(n int) error {
	return s.want(n, fmt.Sprintf("insert into numbers values (%d) returning n;", n))
}

// bench is pgbench with a connection for each transaction, started again
// whenever it ends with an error.
type bench struct {
	stop chan struct{}
	done sync.WaitGroup
	mu   sync.Mutex // guards what follows
	runs int
	gave []string // up, and what it said
}

// startBench starts clients that each begin some transactions a second.
func (p *postgres) startBench(addr, logs string, clients, perSecond int) *bench {
	b := &bench{stop: make(chan struct{})}
	for i := range clients {
		b.done.Go(func() {
			for {
				cmd := p.client(addr, "pgbench", "-n", "-C", "-c", "1", "-R", strconv.Itoa(perSecond), "-t", strconv.Itoa(perSecond),
					"-l", "--log-prefix", filepath.Join(logs, fmt.Sprint("client", i)))
				out, err := cmd.CombinedOutput()
				b.mu.Lock()
				b.runs++
				if err != nil {
					b.gave = append(b.gave, err.Error()+": "+strings.TrimSpace(string(out)))
				}
				b.mu.Unlock()
				select {
				case <-b.stop:
					return
				default:
				}
			}
		})
	}
	p.t.Cleanup(b.finish)
	return b
}

// finish waits until the last runs have ended.
func (b *bench) finish() {
	select {
	case <-b.stop:
	default:
		close(b.stop)
	}
	b.done.Wait()
}

// committed counts the transactions that pgbench saw committed.
func committed(t *testing.T, logs string) (n int) {
	t.Helper()
	paths, _ := filepath.Glob(filepath.Join(logs, "*"))
	for _, path := range paths {
		n += len(lines(path))
	}
	return n
}

// Two servers of PostgreSQL, the second one a standby of the first, with the
// scripts and settings of docs/scripts.md. A planned change fails; the primary
// is killed, comes back by itself, becomes a standby, and then primary again by
// a command of an operator. Clients go on each time, and what was acknowledged
// is there.
func TestPostgres(t *testing.T) {
	t.Parallel()
	p := newPostgres(t)
	a := p.primary("wal_keep_size = 512MB\nwal_retrieve_retry_interval = 200ms\n")
	output(t, p.command("pgbench", "-i", "-q", "-h", p.dir, "-p", strconv.Itoa(a.port), "-U", "app", "app"))
	output(t, p.command("psql", "-Xq", "-h", p.dir, "-p", strconv.Itoa(a.port), "-U", "app", "-c", "create table numbers (n bigint primary key)", "app"))
	b := p.standby(a)
	// A write is acknowledged when the standby has it.
	p.admin(a, "alter system set synchronous_standby_names = '*'", "select pg_reload_conf()")
	p.await(a, "select sync_state = 'sync' from pg_stat_replication")

	r := newPair(t, "postgres", 5432, a, b, []string{"PATH=" + p.bin + ":" + os.Getenv("PATH"), "PGPASSFILE=" + p.passfile}, "--check-interval", "500ms")
	u := r.Understudy

	clients := startRecorder(t, func() (session, error) { return p.session(r.addr) })
	logs := t.TempDir()
	load := p.startBench(r.addr, logs, 2, 40)
	clients.goesOn(u)
	u.Until("pgbench has ended a run", func() bool { return committed(t, logs) >= 80 })
	r.drill()

	// A planned change that fails when the old primary is read-only already: it
	// goes on.
	const promoting = "execute on function pg_promote(boolean, integer)"
	p.admin(a, "revoke "+promoting+" from understudy")
	if out, err := exec.Command(program(t), "switch", "--control", r.socket, b.addr()).CombinedOutput(); err == nil {
		t.Errorf("a switch without the right to promote: %s", out)
	}
	clients.goesOn(u)
	wantLog(t, u, 1, "trigger failed", "host="+b.addr())
	p.admin(a, "grant "+promoting+" to understudy")
	p.awaitStandby(a)

	a.kill()
	killed := time.Now()
	u.Until("the standby is promoted and the relay open", func() bool { return countLog(u, "relay open", "host="+b.addr()) > 0 })
	opened := time.Since(killed)
	clients.goesOn(u)

	// It comes back as a primary, although b is the primary now.
	a.start()
	u.Until("the old primary is recognized", func() bool {
		return countLog(u, "timeline 1 has ended", "host="+a.addr()) > 0
	})
	clients.goesOn(u)
	a.stop()
	p.admin(b, "checkpoint")
	output(t, p.command("pg_rewind", "-N", "-D", p.data("a"), "-R", "--source-server", fmt.Sprintf("host=%s port=%d user=admin dbname=postgres", p.dir, b.port)))
	// -R writes down how pg_rewind itself connected; the standby has a role of its own.
	p.configure("a", fmt.Sprintf("primary_conninfo = 'host=127.0.0.1 port=%d user=standby passfile=%s'\n", b.port, filepath.Join(p.dir, "pgpass")))
	if err := os.Remove(filepath.Join(p.data("a"), "postgresql.auto.conf")); err != nil {
		t.Fatal(err)
	}
	a.start()
	p.awaitStandby(b)

	// Back again, as an operator does it.
	switched, back := r.switchTo(a)
	clients.goesOn(u)
	load.finish()
	records, ends := clients.finish()

	t.Logf("killed: open after %v, no acknowledged write for %v; switchover: %v, no acknowledged write for %v",
		opened.Round(time.Millisecond), longestGap(records, killed, killed.Add(opened)).Round(time.Millisecond), back.Round(time.Millisecond), longestGap(records, switched, switched.Add(back)).Round(time.Millisecond))
	done := committed(t, logs)
	t.Logf("%d numbers acknowledged, %d sessions lost; pgbench: %d transactions committed in %d runs, gave up %d times", len(records), len(ends), done, load.runs, len(load.gave))
	if len(ends) < 3 {
		t.Errorf("%d sessions ended, although the primary changed three times: %v", len(ends), ends)
	}
	wantWithin(t, "the failover", opened, 15*time.Second)

	wantAll(t, records, numbers(t, output(t, p.client(r.addr, "psql", "-XAtqc", "select n from numbers"))))
	history := numbers(t, output(t, p.client(r.addr, "psql", "-XAtqc", "select count(*) from pgbench_history")))[0]
	if history < done {
		t.Errorf("pgbench saw %d transactions committed, the database has %d", done, history)
	}
	sums := output(t, p.client(r.addr, "psql", "-XAtqc", `select (select sum(delta) from pgbench_history) = (select sum(abalance) from pgbench_accounts),
		(select sum(delta) from pgbench_history) = (select sum(bbalance) from pgbench_branches)`))
	if strings.TrimSpace(sums) != "t|t" {
		t.Errorf("sums of pgbench's tables are equal: %s", sums)
	}
	r.end(5)
}

// The primary cannot be queried any more, for one reason after the other: all
// its connections are taken, it refuses the login, psql is missing, the
// script's own timeout passes. None of them promotes the standby; the command
// why shows each.
func TestPostgresThatCannotBeAsked(t *testing.T) {
	t.Parallel()
	p := newPostgres(t)
	a := p.primary("max_connections = 20\nsuperuser_reserved_connections = 3\n")
	b := p.standby(a)

	bin := binWith(t, "cat", "grep", "mv", "seq", "sh", "sleep")
	psql := filepath.Join(bin, "psql")
	link := func() {
		if err := os.Symlink(filepath.Join(p.bin, "psql"), psql); err != nil {
			t.Fatal(err)
		}
	}
	link()
	r := newPair(t, "postgres", 5432, a, b, []string{"PATH=" + bin, "PGPASSFILE=" + p.passfile}, "--check-interval", "300ms", "--fall", "2")
	u := r.Understudy
	unknown := func(what, reason string) {
		t.Helper()
		// The first reason is logged at once, a new one 10 s after the last.
		u.Until(what, func() bool {
			return countLog(u, "[WARN]", "check is unknown", "host="+a.addr(), reason) > 0
		})
		awaitUnknown(t, r.socket, a.addr(), reason)
	}
	known := func() {
		t.Helper()
		// Each new reason is logged, so there may be several for one end of them.
		u.Until("the primary is known again", func() bool {
			return lastLog(u, "check is known again", "host="+a.addr()) > lastLog(u, "check is unknown", "host="+a.addr())
		})
	}

	var sessions []*exec.Cmd
	u.Until("clients have all 17 connections", func() bool { // one by one, against the check script
		// Even those of the superuser can be taken while sessions end and begin.
		count, err := p.command("psql", "-XAtq", "-h", p.dir, "-p", strconv.Itoa(a.port), "-U", "admin", "-d", "postgres",
			"-c", "select count(*) from pg_stat_activity where usename = 'app'").Output()
		if err != nil {
			return false
		}
		n, _ := strconv.Atoi(strings.TrimSpace(string(count)))
		for range 17 - n {
			s := p.client(a.addr(), "psql", "-XAtqc", "select pg_sleep(600)")
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			sessions = append(sessions, s)
		}
		return n >= 17
	})
	unknown("all connections are taken", "connection slots are reserved")
	for _, s := range sessions {
		_ = s.Process.Kill()
		_ = s.Wait()
	}
	p.admin(a, "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'")
	known()

	p.admin(a, "alter role understudy password 'another one'")
	unknown("the login is refused", "password authentication failed")
	p.admin(a, "alter role understudy password '"+scriptsPassword+"'")

	if err := os.Remove(psql); err != nil {
		t.Fatal(err)
	}
	unknown("psql is missing", "psql: not found")
	link()

	// The kernel goes on accepting connections for a server that is stopped.
	if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	unknown("it does not answer in the script's time", "timeout expired")
	if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	u.Until("the primary is up again", func() bool {
		now, err := control.NewClient(r.socket).Status(t.Context())
		return err == nil && now.Relays[0].Hosts[0].State == "up"
	})
	if standby := strings.TrimSpace(p.admin(b, "select pg_is_in_recovery()")); standby != "t" {
		t.Error("the standby was promoted")
	}
	r.end(1)
}

// awaitStandby waits until a standby streams from d.
func (p *postgres) awaitStandby(d *database) {
	p.t.Helper()
	p.await(d, "select count(*) = 1 from pg_stat_replication where state = 'streaming'")
}

// await waits until the answer to a query is true.
func (p *postgres) await(d *database, query string) {
	p.t.Helper()
	proctest.Until(p.t, query, func() bool { return strings.TrimSpace(p.admin(d, query)) == "t" })
}
