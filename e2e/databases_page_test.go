//go:build linux

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// commands returns the commands that the page has for a database on a machine.
func commands(t *testing.T, database, machine string) string {
	t.Helper()
	page, err := os.ReadFile(databasesPage)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(page), "<!-- run: "+database+" "+machine+" -->\n```sh\n")
	text, _, closed := strings.Cut(rest, "```\n")
	if !found || !closed {
		t.Fatalf("%s has no commands for %s of %s", databasesPage, machine, database)
	}
	return text
}

// followPage runs the commands of the page for the machine of understudy, with the program of
// the tests and files of its own, and returns the program in front of a and b.
func followPage(t *testing.T, database, port string, a, b *database, env ...string) *pair {
	t.Helper()
	dir := t.TempDir()
	scripts, err := filepath.Abs(scriptsDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"postgres", "mysql", "redis"} {
		if err := os.Symlink(filepath.Join(scripts, name+"-promote.sh"), filepath.Join(dir, name+"-promote.sh")); err != nil {
			t.Fatal(err)
		}
	}
	text := strings.NewReplacer("/etc/understudy/", dir+"/", "/var/lib/understudy", dir,
		"db1:"+port, a.addr(), "db2:"+port, b.addr(), "\\\n", "").Replace(commands(t, database, "understudy"))
	prepare, rest, _ := strings.Cut(text, "understudy -p "+port+" ")
	line, drill, _ := strings.Cut(rest, " &\n")
	if drill != "understudy drill --triggers\n" {
		t.Fatalf("the page ends with %q, not with a drill", drill)
	}
	output(t, exec.Command("sh", "-euc", prepare))
	p := &pair{t: t, a: a, b: b, addr: freeAddr(t), socket: socketPath(t)}
	args := append(strings.Fields(line), "--bind", p.addr, "--control", p.socket, "--interval", "250ms")
	for i, v := range env {
		env[i] = strings.ReplaceAll(v, "/etc/understudy/", dir+"/")
	}
	p.Understudy = proctest.StartCommand(t, proctest.BinaryCommand(program(t), env, args...))
	p.WaitLog("relay open")
	p.Until("the second server is up", func() bool { return countLog(p.Understudy, "host changed state", "host="+b.addr(), "to=up") > 0 })
	p.drill()
	return p
}

// The page leads from nothing to a tested failover, in 15 lines for each database.
func TestDatabasesPageIsShort(t *testing.T) {
	for database, machines := range map[string][]string{"postgres": {"db1", "db2", "understudy"}, "mysql": {"db1", "db2", "understudy"}, "redis": {"db2", "understudy"}} {
		n := 0
		for _, machine := range machines {
			n += strings.Count(commands(t, database, machine), "\n")
		}
		if n > 15 {
			t.Errorf("%s has %d lines of commands for %s, want at most 15", databasesPage, n, database)
		}
	}
}

func TestDatabasesPagePostgres(t *testing.T) {
	t.Parallel()
	p := newPostgres(t)
	p.initialize("a", "")
	a := p.serve("a")
	scripts, err := filepath.Abs(scriptsDir)
	if err != nil {
		t.Fatal(err)
	}
	run := func(machine string, replace ...string) {
		t.Helper()
		cmd := p.command("psql")
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-euc", strings.NewReplacer(replace...).Replace(commands(t, "postgres", machine))}
		cmd.Env = append(cmd.Env, "PATH="+p.bin+":"+os.Getenv("PATH"), "PGHOST="+p.dir, "PGPORT="+portOf(a.addr()), "PGUSER=admin", "PGDATABASE=postgres")
		output(t, cmd)
	}
	sql := filepath.Join(p.dir, "postgres-role.sql") // readable by the user of the servers
	text, err := os.ReadFile(filepath.Join(scripts, "postgres-role.sql"))
	if err != nil {
		t.Fatal(err)
	}
	private(t, sql, string(text), true)
	run("db1", "postgres-role.sql", sql)
	p.admin(a, "create role app login password '"+clientsPassword+"'", "create database app owner app")
	run("db2", "/var/lib/postgresql/15/main", p.data("b"), "host=db1 ", "host=127.0.0.1 port="+portOf(a.addr())+" ")
	b := p.serve("b")
	p.awaitStandby(a)

	r := followPage(t, "postgres", "5432", a, b, "PGPASSFILE=/etc/understudy/pgpass")
	output(t, p.client(r.addr, "psql", "-XAtqc", "create table numbers (n int)"))
	p.await(b, "select count(*) = 1 from pg_class where relname = 'pg_class'")
	a.kill()
	began := time.Now()
	r.Until("the standby is promoted and the relay open", func() bool { return countLog(r.Understudy, "relay open", "epoch=2") > 0 })
	t.Logf("open after %v", time.Since(began).Round(time.Millisecond))
	output(t, p.client(r.addr, "psql", "-XAtqc", "insert into numbers values (1)"))

	// The old primary comes back, in a term that has ended, and is not used.
	a.start()
	r.Until("the old primary is not usable", func() bool {
		return countLog(r.Understudy, "host="+a.addr(), "says primary in term 1") > 0
	})
	output(t, p.client(r.addr, "psql", "-XAtqc", "insert into numbers values (2)"))
	r.end(2)
}

func TestDatabasesPageMySQL(t *testing.T) {
	t.Parallel()
	m := newMariaDB(t)
	a := m.serve("a")
	b := m.serve("b")
	sql, err := filepath.Abs(filepath.Join(scriptsDir, "mariadb-role.sql"))
	if err != nil {
		t.Fatal(err)
	}
	run := func(d *database, machine string) {
		t.Helper()
		text := strings.NewReplacer("master_host='db1'", "master_host='127.0.0.1', master_port="+portOf(a.addr()), "mariadb-role.sql", sql,
			"mysql -e", "mysql --no-defaults -u root --socket="+m.socket(d.name)+" -e", "| mysql", "| mysql --no-defaults -u root --socket="+m.socket(d.name)).Replace(commands(t, "mysql", machine))
		output(t, exec.Command("sh", "-euc", text))
	}
	run(a, "db1")
	run(b, "db2")
	m.awaitFollows(b)
	m.application(a)
	r := followPage(t, "mysql", "3306", a, b, "MYSQL_DEFAULTS=/etc/understudy/mysql.cnf")
	write := func(n string) {
		t.Helper()
		output(t, m.client(r.addr, "-e", "insert into app.numbers values ("+n+")"))
	}
	write("1")
	proctest.Until(t, "b has it", func() bool { return strings.TrimSpace(output(t, m.root(b, "select count(*) from app.numbers"))) == "1" })
	a.kill()
	r.Until("the replica is promoted and the relay open", func() bool { return countLog(r.Understudy, "relay open", "epoch=2") > 0 })
	write("2")
	a.start()
	r.Until("the old primary is up again, and not usable", func() bool {
		return countLog(r.Understudy, "host="+a.addr(), "follows no primary") > 0
	})
	write("3")
	r.end(2)
}

func TestDatabasesPageRedis(t *testing.T) {
	t.Parallel()
	s := newRedis(t)
	a, b := s.serve("a", nil), s.serve("b", nil)
	for _, d := range []*database{a, b} {
		output(t, redisCLI(t, d.port, "-e", "config", "set", "requirepass", "SECRET", "masterauth", "SECRET"))
	}
	do := func(port string, args ...string) string {
		t.Helper()
		cmd := redisCLI(t, atoi(t, port), append([]string{"-e"}, args...)...)
		cmd.Env = append(cmd.Env, "REDISCLI_AUTH=SECRET")
		return strings.TrimSpace(output(t, cmd))
	}
	cmd := exec.Command("sh", "-euc", strings.NewReplacer("redis-cli", "redis-cli -e -p "+portOf(b.addr()), "db1 6379", "127.0.0.1 "+portOf(a.addr())).Replace(commands(t, "redis", "db2")))
	cmd.Env = append(os.Environ(), "REDISCLI_AUTH=SECRET")
	output(t, cmd)
	proctest.Until(t, "b follows", func() bool { return strings.Contains(do(portOf(a.addr()), "info", "replication"), "state=online") })
	r := followPage(t, "redis", "6379", a, b, "REDIS_PASSWORD_FILE=/etc/understudy/redis.password")
	if said := do(portOf(r.addr), "set", "a", "1"); said != "OK" {
		t.Errorf("a write is answered with %q", said)
	}
	a.kill()
	r.Until("the replica is promoted and the relay open", func() bool { return countLog(r.Understudy, "relay open", "epoch=2") > 0 })
	if said := do(portOf(r.addr), "set", "a", "2"); said != "OK" {
		t.Errorf("after the failover a write is answered with %q", said)
	}
	r.end(2)
}
