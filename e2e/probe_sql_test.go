//go:build linux

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/health"
	"understudy/health/sqlprobe"
	"understudy/internal/proctest"
)

// sqlProbing holds what is checked with each database.
type sqlProbing struct {
	t        *testing.T
	driver   string
	d        *database
	password string // path

	sessions func() string // the number of the probe's sessions
	asleep   func() string // the number of statements that sleep
}

// probe makes a probe of the user "probe", whose session ends with the test.
func (s sqlProbing) probe(query string, timeout time.Duration, values ...sqlprobe.Value) *sqlprobe.Probe {
	s.t.Helper()
	p, err := sqlprobe.New(sqlprobe.Config{
		Driver: s.driver, Host: s.d.addr(), User: "probe", Database: "shop", PasswordFile: s.password,
		Query: query, Exists: values, Timeout: timeout,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { p.Close() })
	return p
}

// want runs a check and compares its result; text is part of the error, empty for none.
func (s sqlProbing) want(p *sqlprobe.Probe, timeout time.Duration, phase health.Phase, text string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), timeout)
	defer cancel()
	got := p.Check(ctx)
	if got.OK != (text == "") || got.Phase != phase || got.Err != nil && !strings.Contains(got.Err.Error(), text) {
		s.t.Errorf("Check = %+v, want phase %q, %q", got, phase, text)
	}
	if got.Err != nil && strings.Contains(got.Err.Error(), clientsPassword) {
		s.t.Errorf("Check = %v, which has the password in it", got.Err)
	}
}

// once is want for a probe that is not used again.
func (s sqlProbing) once(p *sqlprobe.Probe, timeout time.Duration, phase health.Phase, text string) {
	s.t.Helper()
	s.want(p, timeout, phase, text)
	if err := p.Close(); err != nil {
		s.t.Error(err)
	}
}

// run checks everything, with a table stock (item, n, fresh, note) of one row: pear, 7,
// true and NULL. Sleep is a statement that takes a minute.
func (s sqlProbing) run(sleep string) {
	s.t.Helper()
	const long = time.Minute
	value := func(column, text string) sqlprobe.Value { return sqlprobe.Value{Column: column, Text: text} }
	private(s.t, s.password, "wrong\n", false)
	good := s.probe("select * from stock", long, value("item", "pear"), value("N", "7"), value("fresh", "1"), sqlprobe.Value{Column: "note", Null: true})
	s.want(good, long, health.Login, `login as "probe" at `+s.d.addr()+" was refused")
	private(s.t, s.password, clientsPassword+"\n", false)
	for range 20 {
		s.want(good, long, "", "")
	}
	if n := s.sessions(); n != "1" {
		s.t.Errorf("%s sessions after 20 checks, want 1", n)
	}

	s.once(s.probe("select * from stock", long, value("item", "pear"), value("n", "8")), long, health.Criteria, "no row of 1 has item=pear and n=8")
	s.once(s.probe("select * from stock where n = 8", long, value("n", "8")), long, health.Criteria, "no row has n=8: the query returned none")
	s.once(s.probe("select item from stock", long, value("n", "7")), long, health.Criteria, `the result has no column "n"`)
	s.once(s.probe("select * from stocks", long), long, health.SQL, "query failed: ")
	s.once(s.probe("select * from stock where n = 8", long), long, "", "")
	s.once(s.probe(sleep, time.Second), time.Second, health.SQL, "query: no answer in time")
	proctest.Until(s.t, "the server has ended the statement", func() bool { return s.asleep() == "0" })

	// A restart of the server is no failed check.
	s.d.stop()
	s.once(s.probe("select 1", long), long, health.Connect, "connection refused")
	s.d.start()
	s.want(good, long, "", "")
	if err := good.Close(); err != nil {
		s.t.Error(err)
	}
	proctest.Until(s.t, "every session of the probes has ended", func() bool { return s.sessions() == "0" })
}

func TestSQLProbeOfPostgres(t *testing.T) {
	t.Parallel()
	p := newPostgres(t)
	p.initialize("a", "")
	d := p.serve("a")
	d.end = 2 // a fast shutdown
	p.admin(d, "create role probe login password '"+clientsPassword+"'", "create database shop owner probe")
	shop := func(statement string) {
		output(t, p.command("psql", "-XAtq", "-h", p.dir, "-p", fmt.Sprint(d.port), "-U", "probe", "-d", "shop", "-c", statement))
	}
	shop("create table stock (item char(10), n numeric(8,2), fresh boolean, note text)")
	shop("insert into stock values ('pear', 7, true, null)")
	s := sqlProbing{
		t: t, driver: "postgres", d: d, password: filepath.Join(t.TempDir(), "password"),
		sessions: func() string {
			return strings.TrimSpace(p.admin(d, "select count(*) from pg_stat_activity where usename = 'probe' and application_name = 'understudy'"))
		},
		asleep: func() string {
			return strings.TrimSpace(p.admin(d, "select count(*) from pg_stat_activity where usename = 'probe' and query like '%sleep%' and state = 'active'"))
		},
	}
	s.run("select pg_sleep(60)")

	// The whole program: the probe counts in a verdict, and its session ends with it.
	config := filepath.Join(t.TempDir(), "u.yaml")
	addr := freeAddr(t)
	text := fmt.Sprintf(`http: {listen: "%s"}
probes:
  stock:
    interval: 100ms
    timeout: 10s
    sql: {url: "postgres://probe@%s/shop", password_file: %s, query: "select item, n from stock", exists: {item: pear, n: 7}}
routes:
  /ping: {probes: [stock]}
`, addr, d.addr(), s.password)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	u := start(t, "--config", config)
	u.WaitLog("probe changed state: probe=stock from=unknown to=up")
	if n := s.sessions(); n != "1" {
		t.Errorf("%s sessions of the program, want 1", n)
	}
	shop("update stock set n = 6")
	u.WaitLog("probe changed state: probe=stock from=up to=down")
	u.WaitLog(`no row of 1 has item=pear and n=7`)
	u.Terminate()
	proctest.Until(t, "the session of the program has ended", func() bool { return s.sessions() == "0" })
	if strings.Contains(u.Log(), clientsPassword) {
		t.Error("the log has the password in it")
	}
}

func TestSQLProbeOfMariaDB(t *testing.T) {
	t.Parallel()
	m := newMariaDB(t)
	d := m.serve("a", "--read-only=0")
	output(t, m.root(d, "create database shop; create user probe@'%' identified by '"+clientsPassword+"'; grant all on shop.* to probe@'%';"+
		"create table shop.stock (item char(10), n decimal(8,2), fresh bit(1), note text); insert into shop.stock values ('pear', 7, 1, null)"))
	s := sqlProbing{
		t: t, driver: "mysql", d: d, password: filepath.Join(t.TempDir(), "password"),
		sessions: func() string {
			return strings.TrimSpace(output(t, m.root(d, "select count(*) from information_schema.processlist where user = 'probe'")))
		},
		asleep: func() string {
			return strings.TrimSpace(output(t, m.root(d, "select count(*) from information_schema.processlist where user = 'probe' and info like '%sleep%'")))
		},
	}
	s.run("select sleep(60)")
}
