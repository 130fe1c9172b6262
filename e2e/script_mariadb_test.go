//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// mariadb holds the paths and settings of MariaDB for the tests.
type mariadb struct {
	t   *testing.T
	dir string
}

// serve makes a server, with arguments of its own, and starts it.
func (m *mariadb) serve(name string, args ...string) *database {
	m.t.Helper()
	data, port := filepath.Join(m.dir, name), proctest.FreePort(m.t, "127.0.0.1")
	// A server that starts removes every temporary table from its directory of
	// them, also those of other servers, which crash then.
	temporary := filepath.Join(m.dir, name+"-tmp")
	err := os.Mkdir(temporary, 0o700)
	if err == nil {
		err = os.Chown(temporary, uidOfDatabases(), -1)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	install := asNobody(exec.Command("mariadb-install-db", "--no-defaults", "--datadir="+data, "--auth-root-authentication-method=normal", "--skip-test-db"))
	install.Dir = m.dir
	install.Env = append(os.Environ(), "TMPDIR="+temporary)
	output(m.t, install)
	d := &database{
		t: m.t, name: name, port: port, log: filepath.Join(m.dir, name+".log"), end: syscall.SIGTERM,
		argv: append([]string{
			"/usr/sbin/mariadbd", "--no-defaults", "--datadir=" + data, "--tmpdir=" + temporary, "--bind-address=127.0.0.1", "--port=" + strconv.Itoa(port),
			"--socket=" + m.socket(name), "--pid-file=" + filepath.Join(data, "pid"), "--log-bin=bin", "--server-id=" + strconv.Itoa(port), "--read-only=1",
			"--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=16M",
		}, args...),
	}
	d.asks = func() *exec.Cmd { return m.root(d, "select 1") }
	return d.begin()
}

func (m *mariadb) socket(name string) string { return filepath.Join(m.dir, name+".sock") }

func (m *mariadb) root(d *database, statements string) *exec.Cmd {
	return exec.Command("mysql", "--no-defaults", "-u", "root", "--socket="+m.socket(d.name), "-NB", "-e", statements)
}

// mariadbSession is a session of the command line client.
type mariadbSession struct{ *terminal }

func (s mariadbSession) write(n int) error {
	return s.want(n, fmt.Sprintf("insert into app.numbers values (%d); select %d;", n, n))
}

// MariaDB with a semi-synchronous replica and the scripts and settings of
// docs/scripts.md: the primary is killed, comes back read-only, becomes a
// replica, and then primary again by a command of an operator.
func TestMariaDB(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"mariadb-install-db", "mysql"} {
		needs(t, name)
	}
	if _, err := os.Stat("/usr/sbin/mariadbd"); err != nil {
		t.Skip("SKIPPED: mariadbd is not installed (apt-get install mariadb-server)")
	}
	m := &mariadb{t, databaseDir(t)}
	a := m.serve("a")
	b := m.serve("b", "--rpl-semi-sync-slave-enabled=1")
	role, err := os.ReadFile(filepath.Join(scriptsDir, "mariadb-role.sql"))
	if err != nil {
		t.Fatal(err)
	}
	follow := func(d, primary *database) {
		output(t, m.root(d, fmt.Sprintf("change master to master_host='127.0.0.1', master_port=%d, master_user='replica', master_password='%s', master_use_gtid=slave_pos, master_connect_retry=1; start replica", primary.port, standbyPassword)))
		proctest.Until(t, d.name+" follows", func() bool {
			out := output(t, m.root(d, "show status where variable_name in ('Slave_running', 'Slaves_running')"))
			return strings.Contains(out, "Slave_running\tON")
		})
	}
	output(t, m.root(a, "set global read_only=0; create user replica@'%' identified by '"+standbyPassword+"'; grant replication slave on *.* to replica@'%';"+
		"create database app; create table app.numbers (n int primary key); create user app@'%' identified by '"+clientsPassword+"'; grant all on app.* to app@'%';"+
		strings.Replace(string(role), "PASSWORD", scriptsPassword, 1)))
	follow(b, a)
	output(t, m.root(a, "set global rpl_semi_sync_master_timeout=60000, rpl_semi_sync_master_wait_point=AFTER_SYNC, rpl_semi_sync_master_enabled=1"))
	output(t, m.root(b, "stop replica; start replica"))
	proctest.Until(t, "the replica acknowledges", func() bool {
		return strings.Contains(output(t, m.root(a, "show status like 'Rpl_semi_sync_master_clients'")), "\t1")
	})

	defaults := filepath.Join(t.TempDir(), "mysql.cnf")
	private(t, defaults, "[client]\nuser=understudy\npassword="+scriptsPassword+"\n", false)
	clientDefaults := filepath.Join(t.TempDir(), "client.cnf")
	private(t, clientDefaults, "[client]\nuser=app\npassword="+clientsPassword+"\n", false)
	r := newPair(t, "mysql", 3306, a, b, []string{"MYSQL_DEFAULTS=" + defaults}, "--check-interval", "500ms")
	u := r.Understudy
	client := func(args ...string) *exec.Cmd {
		return exec.CommandContext(t.Context(), "mysql", append([]string{"--defaults-file=" + clientDefaults, "--protocol=tcp", "-h", "127.0.0.1", "-P", portOf(r.addr), "-NB", "--unbuffered"}, args...)...)
	}
	clients := startRecorder(t, func() (session, error) {
		s, err := newTerminal(client())
		return mariadbSession{s}, err
	})
	clients.goesOn(u)
	r.drill()

	a.kill()
	killed := time.Now()
	u.Until("the replica is promoted and the relay open", func() bool { return countLog(u, "relay open", "epoch=2") > 0 })
	opened := time.Since(killed)
	clients.goesOn(u)

	a.start()
	u.Until("the old primary is recognized", func() bool { return countLog(u, "neither primary nor replica", "host="+a.addr()) > 0 })
	// Transactions that it wrote and the replica does not have would have to be
	// removed first; with AFTER_SYNC no client has seen them acknowledged.
	output(t, m.root(a, "set global gtid_slave_pos = '"+strings.TrimSpace(output(t, m.root(b, "select @@gtid_slave_pos")))+"'"))
	follow(a, b)
	clients.goesOn(u)

	_, back := r.switchTo(a)
	clients.goesOn(u)
	records, ends := clients.finish()
	t.Logf("killed: open after %v, no acknowledged write for %v; switchover: %v; %d numbers acknowledged, %d sessions ended",
		opened.Round(time.Millisecond), longestGap(records, killed, killed.Add(opened)).Round(time.Millisecond), back.Round(time.Millisecond), len(records), len(ends))
	wantAll(t, records, numbers(t, output(t, client("-e", "select n from app.numbers"))))
	r.end(3)
}
