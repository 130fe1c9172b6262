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

	"golang.org/x/sys/unix"

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
func (p *postgres) configure(name, text string) { p.add(name, "postgresql.conf", text) }

// allow adds to the file of those who may log in to a server.
func (p *postgres) allow(name, text string) { p.add(name, "pg_hba.conf", text) }

func (p *postgres) add(name, to, text string) {
	p.t.Helper()
	file, err := os.OpenFile(filepath.Join(p.data(name), to), os.O_APPEND|os.O_WRONLY, 0)
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

// initialize makes the directory of a server of a new cluster, with settings of its own.
func (p *postgres) initialize(name, settings string) {
	p.t.Helper()
	output(p.t, p.command("initdb", "-D", p.data(name), "-U", "admin", "-A", "trust", "--auth-host=scram-sha-256", "-E", "UTF8", "--locale=C", "-k", "-N"))
	p.configure(name, "fsync = off\n"+settings+
		"dynamic_shared_memory_type = mmap\n") // which leaves nothing behind when the server is killed
}

// primary makes a server, with settings of its own and the roles of all, and
// starts it.
func (p *postgres) primary(settings string) *database {
	p.t.Helper()
	p.initialize("a", settings)
	d := p.serve("a")
	p.roles(d)
	return d
}

// standby makes a server that follows the primary, and waits until it does.
func (p *postgres) standby(primary *database, name string) *database {
	p.t.Helper()
	p.copy(primary, name)
	d := p.serve(name)
	p.awaitFollows(d, primary)
	return d
}

// trio makes a primary and two servers that follow it, all with the user who asks for the
// role.
func (p *postgres) trio(settings string) (a, b, c *database) {
	p.t.Helper()
	a = p.primary("wal_keep_size = 256MB\nwal_retrieve_retry_interval = 200ms\n" + settings)
	p.admin(a, roleUser)
	return a, p.standby(a, "b"), p.standby(a, "c")
}

// copy makes the directory of a server that follows the primary.
func (p *postgres) copy(primary *database, name string) {
	p.t.Helper()
	output(p.t, p.command("pg_basebackup", "-h", "127.0.0.1", "-p", strconv.Itoa(primary.port), "-U", "standby", "-D", p.data(name), "-R", "-c", "fast", "-N"))
}

// awaitFollows waits until d receives what the primary writes.
func (p *postgres) awaitFollows(d, primary *database) {
	p.t.Helper()
	p.await(d, fmt.Sprintf("select count(*) = 1 from pg_stat_wal_receiver where status = 'streaming' and sender_port = %d", primary.port))
}

// follow makes a server, a standby that runs, follow another primary.
func (p *postgres) follow(d, primary *database) {
	p.t.Helper()
	p.admin(d, fmt.Sprintf("alter system set primary_conninfo = 'host=127.0.0.1 port=%d user=standby passfile=%s'", primary.port, filepath.Join(p.dir, "pgpass")), "select pg_reload_conf()")
	p.awaitFollows(d, primary)
}

// leave makes a standby follow nobody, so that it lags.
func (p *postgres) leave(d *database) {
	p.t.Helper()
	p.admin(d, "alter system set primary_conninfo = ''", "select pg_reload_conf()")
	p.await(d, "select count(*) = 0 from pg_stat_wal_receiver")
}

// again makes a server, which may have data that no other one has, a standby of the
// primary.
func (p *postgres) again(d, primary *database) {
	p.t.Helper()
	d.stop()
	if err := os.RemoveAll(p.data(d.name)); err != nil {
		p.t.Fatal(err)
	}
	p.copy(primary, d.name)
	d.start()
	p.awaitFollows(d, primary)
}

// awaitAll waits until a standby has received all that the primary has written.
func (p *postgres) awaitAll(d, primary *database) {
	p.t.Helper()
	end := strings.TrimSpace(p.admin(primary, "select pg_current_wal_flush_lsn()"))
	p.await(d, "select pg_last_wal_replay_lsn() >= '"+end+"'")
}

// awaitServed waits until a client of the relay is connected to d, as a primary.
func (p *postgres) awaitServed(addr string, d *database) {
	p.t.Helper()
	proctest.Until(p.t, d.name+" serves clients", func() bool {
		out, err := p.client(addr, "psql", "-XAtqc", "select inet_server_port(), pg_is_in_recovery()").Output()
		return err == nil && strings.TrimSpace(string(out)) == strconv.Itoa(d.port)+"|f"
	})
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

// crash kills the process of a session, so that the server ends all sessions and recovers.
// One of them is stopped and ends late: until then, 5 s at most, the server refuses logins
// because it is in recovery. End ends it at once.
func (p *postgres) crash(d *database) (end func()) {
	p.t.Helper()
	var clients []*exec.Cmd
	for range 2 {
		cmd := p.client(d.addr(), "psql", "-XAtqc", "select pg_sleep(600)")
		if err := cmd.Start(); err != nil {
			p.t.Fatal(err)
		}
		clients = append(clients, cmd)
	}
	var sessions []string
	proctest.Until(p.t, "two clients are connected", func() bool {
		sessions = strings.Fields(p.admin(d, "select pid from pg_stat_activity where query = 'select pg_sleep(600)'"))
		return len(sessions) == 2
	})
	stopped, killed := atoi(p.t, sessions[0]), atoi(p.t, sessions[1])
	if err := errors.Join(syscall.Kill(stopped, syscall.SIGSTOP), syscall.Kill(killed, syscall.SIGKILL)); err != nil {
		p.t.Fatal(err)
	}
	return func() {
		_ = syscall.Kill(stopped, syscall.SIGCONT) // it may have ended
		for _, cmd := range clients {
			_ = cmd.Wait() // the server has ended the connection
		}
	}
}
