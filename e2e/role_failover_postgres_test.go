//go:build linux

package e2e

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/internal/role"
	"understudy/roles"
)

// promoting are the settings, and the environment, of the program that promotes with the
// script of the page.
func (p *postgres) promoting(t *testing.T, args ...string) ([]string, []string) {
	t.Helper()
	return []string{"PATH=" + p.bin + ":" + os.Getenv("PATH"), "PGPASSFILE=" + p.passfile},
		append([]string{"--promote", "--on-failover", absolute(t, scriptsDir+"/postgres-promote.sh"), "--trigger-policy", "abort"}, args...)
}

// A primary with two standbys, in turn: it is killed while one standby lags, it stops
// while both do, it comes back as a second primary, and it is killed while both lag too
// much. A standby that is made anew belongs to another cluster.
func TestPostgresPrimaryIsLost(t *testing.T) {
	t.Parallel()
	p := newPostgres(t)
	a, b, c := p.trio("")
	env, args := p.promoting(t, "--elect", "freshest", "--max-lag", "1MiB")
	w := watch(t, "postgres", []*database{a, b, c}, env, args...)
	w.awaitPrimary(a, 1)
	w.awaitUp(b, c)
	write := func(d *database, rows int) {
		t.Helper()
		p.admin(d, "drop table if exists rows", "create table rows as select generate_series(1, "+strconv.Itoa(rows)+")")
	}

	// b comes first, and c has the newest data.
	p.leave(b)
	write(a, 3000)
	p.awaitAll(c, a)
	w.Until("c is the candidate that lacks nothing", func() bool {
		loss := w.now().Loss
		return loss != nil && loss.Host == c.addr() && loss.Bytes != nil && *loss.Bytes == 0
	})
	a.kill()
	p.awaitServed(w.addr, c)
	w.wantPrimary(c, 2)
	w.wantLoss(c, 0, 0)

	// Both lag, by less than the limit.
	p.again(a, c)
	p.follow(b, c)
	w.awaitUp(a, b)
	p.leave(a)
	p.leave(b)
	write(c, 3000)
	var lost uint64
	w.Until("the loss is predicted", func() bool {
		loss := w.now().Loss
		if loss == nil || loss.Bytes == nil {
			return false
		}
		lost = *loss.Bytes
		return lost > 100_000
	})
	c.pause()
	p.awaitServed(w.addr, a)
	w.wantPrimary(a, 3)
	w.wantLoss(a, lost, lost+100_000) // what a server writes by itself meanwhile
	c.resume()
	w.wantTwoWriters(a, 3, c)

	// Both lag by more than the limit.
	p.again(c, a)
	p.follow(b, a)
	w.awaitUp(b, c)
	p.leave(b)
	p.leave(c)
	write(a, 40_000)
	w.awaitWhy(b, "and 1048576 are allowed")
	w.awaitWhy(c, "and 1048576 are allowed")
	a.kill()
	w.WaitLog("no host is usable")
	w.goesOn(b, 10)
	w.goesOn(c, 10)
	if now := w.now(); now.Primary != "" || now.Epoch != 3 {
		t.Errorf("%q is primary in epoch %d, want none, since 3", now.Primary, now.Epoch)
	}
	for _, d := range []*database{b, c} {
		if said := strings.TrimSpace(p.admin(d, "select pg_is_in_recovery()")); said != "t" {
			t.Errorf("%s was promoted", d.name)
		}
	}
	a.start()
	p.awaitServed(w.addr, a)
	w.wantPrimary(a, 4)

	// A host that was made anew.
	p.follow(b, a)
	c.stop()
	if err := os.RemoveAll(p.data("c")); err != nil {
		t.Fatal(err)
	}
	p.initialize("c", "")
	c.start()
	p.admin(c, roleUser)
	w.awaitWhy(c, "is not that of the cluster")
	w.advises(c, "set role-identity to "+w.host(c).Role.Identity)
	p.awaitAll(b, a)
	w.awaitUp(b)
	identity := w.host(a).Role.Identity
	a.kill()
	p.awaitServed(w.addr, b)
	w.wantPrimary(b, 5)

	// From the start only with the identity in the settings.
	pinned := watch(t, "postgres", []*database{c, b}, nil, "--role-identity", identity)
	pinned.awaitPrimary(b, 1)
	pinned.awaitWhy(c, "is not that of the cluster, "+identity)
	end(t, pinned.Understudy)
	wantElections(t, w.Understudy, 5)
	end(t, w.Understudy)
}

// A primary whose role cannot be asked stays, whatever the reason, and a standby that a
// person promotes is followed. A trigger that succeeds and promotes nothing is found out.
func TestPostgresIsPromotedByHand(t *testing.T) {
	t.Parallel()
	p := newPostgres(t)
	cert, key := certificate(t, p.dir, "db1.example")
	a := p.primary("wal_keep_size = 256MB\nmax_connections = 12\nsuperuser_reserved_connections = 3\nssl = on\nssl_cert_file = '" + cert + "'\nssl_key_file = '" + key + "'\n")
	p.admin(a, roleUser)
	b := p.standby(a, "b")
	w := watch(t, "postgres", []*database{a, b}, nil)
	lying := watch(t, "postgres", []*database{a, b}, nil, "--promote", "--on-failover", "/bin/true", "--trigger-timeout", "2s",
		"--role-tls", "verify", "--role-ca-file", cert, "--role-server-name", "db1.example")
	both := []*watched{w, lying}
	for _, u := range both {
		u.awaitPrimary(a, 1)
		u.Until("the role of b is known", func() bool { r := u.host(b).Role; return r != nil && r.Role == "replica" })
	}
	w.goesOn(b, 10)
	w.advises(b, "")
	for _, d := range []*database{a, b} {
		if n := strings.TrimSpace(p.admin(d, "select count(*) from pg_stat_activity where usename = 'monitor'")); n != "2" {
			t.Errorf("%s has %s sessions of two programs, want 2", d.name, n)
		}
	}
	endSessions := func() {
		p.admin(a, "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'monitor'")
	}

	// The certificate is for another name: nobody is elected, and it says why.
	wrong := watch(t, "postgres", []*database{a, b}, nil, "--role-tls", "verify", "--role-ca-file", cert, "--role-server-name", "db2.example")
	wrong.awaitWhy(a, "db2.example")
	wrong.goesOn(a, 3)
	if now := wrong.now(); now.Primary != "" || now.Epoch != 0 {
		t.Errorf("with a wrong name %q is primary in epoch %d, want none", now.Primary, now.Epoch)
	}
	end(t, wrong.Understudy)

	// The password changes.
	p.admin(a, "alter role monitor password 'another one'")
	endSessions()
	for _, u := range both {
		u.awaitWhy(a, "password authentication failed")
		u.advises(a, "let check postgres log in to "+a.addr())
	}
	w.goesOn(a, 5)
	for _, u := range both {
		u.wantPrimary(a, 1)
		private(t, u.password, "another one\n", false)
		u.WaitLog("check is known again: relay=" + portOf(u.addr) + " host=" + a.addr())
	}

	// All connections are taken.
	var clients []*exec.Cmd
	w.Until("clients have all connections", func() bool {
		for range 2 {
			s := p.client(a.addr(), "psql", "-XAtqc", "select pg_sleep(600)")
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			clients = append(clients, s)
		}
		endSessions()
		return strings.Contains(w.host(a).Why, "(53300)") && strings.Contains(lying.host(a).Why, "(53300)")
	})
	w.goesOn(a, 5)
	for _, u := range both {
		u.wantPrimary(a, 1)
		u.awaitWhy(a, "(53300)")
	}
	for _, s := range clients {
		_ = s.Process.Kill()
		_ = s.Wait()
	}
	p.admin(a, "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'")
	for _, u := range both {
		u.Until("the role of a is known again", func() bool { r := u.host(a).Role; return r != nil && r.Role == "primary" })
	}

	// The primary stops. One program waits for somebody who promotes b, the trigger of
	// the other one says that it has.
	p.awaitAll(b, a)
	a.pause()
	w.WaitLog("no host is usable")
	lying.WaitLog("election aborted, the host is not primary after its triggers")
	if e := lying.last(); e.New != b.addr() || !strings.Contains(e.Failure, "it still says replica 2s after its triggers") {
		t.Errorf("the election with a trigger that promotes nothing: %+v", e)
	}
	before := w.checks(b, "passed")
	output(t, p.command("pg_ctl", "promote", "-D", p.data("b")))
	promoted := time.Now()
	w.Until("b is primary", func() bool { return w.now().Primary == b.addr() })
	w.wantFollowed(b, before, promoted)
	p.awaitServed(w.addr, b)
	w.wantPrimary(b, 2)
	p.awaitServed(lying.addr, b)
	epoch := lying.now().Epoch

	// The old primary goes on as such.
	a.resume()
	w.wantTwoWriters(b, 2, a)
	lying.wantTwoWriters(b, epoch, a)
	w.awaitWhy(a, "it says primary in term 1, and "+b.addr()+" was primary in term 2")
	w.advises(a, "make "+a.addr()+" a replica of "+b.addr())
	b.kill()
	w.wantNoPrimary(a)
	for _, u := range both {
		end(t, u.Understudy)
	}
}

// The network of the program is interrupted for 5 s, and nothing changes. Then packets
// of the primary are dropped, for everybody.
func TestPostgresIsSilenced(t *testing.T) {
	t.Parallel()
	if !isolate(t, "nft") {
		return
	}
	p := newPostgres(t)
	a := p.primary("wal_keep_size = 256MB\n")
	p.allow("a", "host all all 127.0.0.9/32 scram-sha-256\n")
	p.admin(a, roleUser, "select pg_reload_conf()")
	output(t, p.command("psql", "-Xq", "-h", p.dir, "-p", strconv.Itoa(a.port), "-U", "app", "-c", "create table numbers (n bigint primary key)", "app"))
	b := p.standby(a, "b")
	env, args := p.promoting(t, "--source", "127.0.0.9")
	w := watch(t, "postgres", []*database{a, b}, env, args...)
	w.awaitPrimary(a, 1)
	w.awaitUp(b)
	s, err := p.session(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.write(1); err != nil {
		t.Fatal(err)
	}

	run(t, "nft add table inet test")
	for _, hook := range []string{"input", "output"} {
		run(t, "nft add chain inet test", hook, "{ type filter hook", hook, "priority 0 ; }")
	}
	for _, side := range []string{"saddr", "daddr"} {
		run(t, "nft add rule inet test output ip", side, "127.0.0.9 drop")
	}
	time.Sleep(5 * time.Second) // the fault itself
	run(t, "nft flush chain inet test output")
	if err := s.write(2); err != nil {
		t.Errorf("in the session from before the interruption: %v", err)
	}
	w.Until("a is primary", func() bool { return w.now().Primary == a.addr() })
	w.awaitUp(a, b)
	p.awaitServed(w.addr, a)
	if said := strings.TrimSpace(p.admin(b, "select pg_is_in_recovery()")); said != "t" {
		t.Error("the standby was promoted")
	}
	if n := countLog(w.Understudy, "event=failover"); n != 0 {
		t.Errorf("%d failovers in an interruption of the program's own network", n)
	}

	p.awaitAll(b, a)
	epoch := w.now().Epoch
	for _, side := range []string{"sport", "dport"} {
		run(t, "nft add rule inet test output tcp", side, strconv.Itoa(a.port), "drop")
	}
	p.awaitServed(w.addr, b)
	w.wantPrimary(b, epoch+1)
	w.wantLoss(b, 0, 100_000)
	run(t, "nft flush chain inet test output")
	w.wantTwoWriters(b, epoch+1, a)
	end(t, w.Understudy)
}

// One process of the primary crashes, and the server recovers: it is starting, which is
// no failure. Its clients wait, and it is primary again at once, however often that
// happens. When its machine fails it has failed.
func TestPostgresCrashes(t *testing.T) {
	t.Parallel()
	p := newPostgres(t)
	a := p.primary("")
	p.admin(a, roleUser)
	q := newQuestioner(t, roles.Config{Protocol: roles.Postgres, User: "monitor"})
	q.must(a)
	w := watch(t, "postgres", []*database{a}, nil)
	w.awaitPrimary(a, 1)

	const crashes = 3
	for n := range crashes {
		end := p.crash(a)
		starting := q.until(a, "is starting", func(f role.Fact) bool { return f.Role == role.Starting })
		if !strings.Contains(starting.Detail, "in recovery mode (57P03)") {
			t.Errorf("after a crash the server is %+v", starting)
		}
		w.Until("it is down because it starts", func() bool {
			return strings.Count(w.Log(), `to=down check=postgres error="the database system is in recovery mode (57P03)"`) == n+1
		})
		end()
		for back := false; !back; { // in between there is no failure
			back = q.must(a).Role == role.Primary
		}
		p.awaitServed(w.addr, a)
		w.wantPrimary(a, uint64(n+2))
	}
	if h := w.host(a); h.Failures != 0 || h.PenaltySeconds != 0 {
		t.Errorf("%d crashes are %d failures with a penalty of %vs, want none", crashes, h.Failures, h.PenaltySeconds)
	}
	a.kill()
	w.Until("it has failed", func() bool { return w.host(a).Failures == 1 })
	a.start()
	p.awaitServed(w.addr, a)
	w.wantPrimary(a, crashes+2)
	end(t, w.Understudy)
}
