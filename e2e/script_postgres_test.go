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

	"understudy/control"
)

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
	b := p.standby(a, "b")
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
	b := p.standby(a, "b")

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
