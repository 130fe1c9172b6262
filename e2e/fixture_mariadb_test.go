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

	"understudy/internal/proctest"
)

// mariadb holds the paths and settings of MariaDB for the tests.
type mariadb struct {
	t   *testing.T
	dir string
}

// newMariaDB skips the test where MariaDB is missing.
func newMariaDB(t *testing.T) *mariadb {
	t.Helper()
	for _, name := range []string{"mariadb-install-db", "mysql"} {
		needs(t, name)
	}
	if _, err := os.Stat("/usr/sbin/mariadbd"); err != nil {
		t.Skip("SKIPPED: mariadbd is not installed (make test-deps)")
	}
	return &mariadb{t, databaseDir(t)}
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

// application makes what clients use at a primary: their user, and a table of numbers.
func (m *mariadb) application(d *database) {
	m.t.Helper()
	output(m.t, m.root(d, "create database app; create table app.numbers (n int primary key);"+
		"create user app@'%' identified by '"+clientsPassword+"'; grant all on app.* to app@'%'"))
}

// client is a client of the relay at addr, as the application is.
func (m *mariadb) client(addr string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(m.t.Context(), "mysql", append([]string{"--no-defaults", "--protocol=tcp", "-h", "127.0.0.1", "-P", portOf(addr), "-u", "app", "-NB", "--unbuffered"}, args...)...)
	cmd.Env = append(os.Environ(), "MYSQL_PWD="+clientsPassword)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// wantServed checks that a client of the relay is served.
func (m *mariadb) wantServed(addr string) {
	m.t.Helper()
	if out := strings.TrimSpace(output(m.t, m.client(addr, "-e", "select 'served'"))); out != "served" {
		m.t.Errorf("a client got %q", out)
	}
}

// mariadbSession is a session of the command line client.
type mariadbSession struct{ *terminal }

func (s mariadbSession) write(n int) error {
	return s.want(n, fmt.Sprintf("insert into app.numbers values (%d); select %d;", n, n))
}

// pair makes a primary, with arguments of its own, and a replica of it, with the user who
// asks for the role.
func (m *mariadb) pair(argsOfA []string, argsOfB ...string) (a, b *database) {
	m.t.Helper()
	a, b = m.serve("a", argsOfA...), m.serve("b", argsOfB...)
	output(m.t, m.root(a, "set global read_only=0; create user replica@'%' identified by '"+standbyPassword+"'; grant replication slave on *.* to replica@'%';"+
		"create user monitor@'%' identified by '"+rolePassword+"'; grant replica monitor on *.* to monitor@'%'"))
	m.follow(b, a)
	return a, b
}

// again makes d, an old primary with nothing that the new one lacks, a replica of that.
func (m *mariadb) again(d, primary *database) {
	m.t.Helper()
	output(m.t, m.root(d, "set global gtid_slave_pos = '"+strings.TrimSpace(output(m.t, m.root(primary, "select @@gtid_slave_pos")))+"'"))
	m.follow(d, primary)
}

// follow makes d a replica of primary.
func (m *mariadb) follow(d, primary *database) {
	m.t.Helper()
	output(m.t, m.root(d, fmt.Sprintf("change master to master_host='127.0.0.1', master_port=%d, master_user='replica', master_password='%s', master_use_gtid=slave_pos, master_connect_retry=1; start replica", primary.port, standbyPassword)))
	m.awaitFollows(d)
}

// awaitFollows waits until d receives what its primary writes.
func (m *mariadb) awaitFollows(d *database) {
	m.t.Helper()
	proctest.Until(m.t, d.name+" follows", func() bool {
		return strings.Contains(output(m.t, m.root(d, "show status like 'Slave_running'")), "Slave_running\tON")
	})
}

// number returns the value of a status variable.
func (m *mariadb) number(d *database, name string) int {
	m.t.Helper()
	fields := strings.Fields(output(m.t, m.root(d, "show global status like '"+name+"'")))
	if len(fields) != 2 {
		m.t.Fatalf("%s: %q", name, fields)
	}
	n, err := strconv.Atoi(fields[1])
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}
