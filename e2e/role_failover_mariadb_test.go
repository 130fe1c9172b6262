//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// MariaDB and a replica: the primary is made read-only and writable again, it is killed,
// the next one stops, and a person promotes a replica.
func TestMariaDBPrimaryIsLost(t *testing.T) {
	t.Parallel()
	m := newMariaDB(t)
	a, b := m.pair(nil)
	role, err := os.ReadFile(filepath.Join(scriptsDir, "mariadb-role.sql"))
	if err != nil {
		t.Fatal(err)
	}
	output(t, m.root(a, strings.Replace(string(role), "PASSWORD", scriptsPassword, 1)))
	m.application(a)
	follower := watch(t, "mysql", []*database{a, b}, nil)
	follower.awaitPrimary(a, 1)
	served := func(u *watched, d *database) {
		t.Helper()
		u.Until(d.name+" serves clients", func() bool {
			out, err := m.client(u.addr, "-e", "select @@port, @@global.read_only").Output()
			return err == nil && strings.TrimSpace(string(out)) == portOf(d.addr())+"\t0"
		})
	}

	for range 2 {
		output(t, m.root(a, "set global read_only=1"))
		follower.Until("there is no primary", func() bool { return follower.now().Primary == "" })
		follower.awaitWhy(a, "read_only")
		output(t, m.root(a, "set global read_only=0"))
		served(follower, a)
	}
	if n := countLog(follower.Understudy, "event=failover"); n != 0 {
		t.Errorf("%d failovers to a replica", n)
	}

	defaults := filepath.Join(t.TempDir(), "mysql.cnf")
	private(t, defaults, "[client]\nuser=understudy\npassword="+scriptsPassword+"\n", false)
	w := watch(t, "mysql", []*database{a, b}, []string{"MYSQL_DEFAULTS=" + defaults},
		"--promote", "--on-failover", absolute(t, scriptsDir+"/mysql-promote.sh"), "--trigger-policy", "abort")
	w.awaitPrimary(a, 1)
	w.awaitUp(b)
	w.goesOn(b, 10)
	for _, d := range []*database{a, b} {
		if n := strings.TrimSpace(output(t, m.root(d, "select count(*) from information_schema.processlist where user = 'monitor'"))); n != "2" {
			t.Errorf("%s has %s sessions of two programs, want 2", d.name, n)
		}
		if n := m.number(d, "Aborted_connects"); n != 0 {
			t.Errorf("Aborted_connects of %s is %d, want 0", d.name, n)
		}
	}

	output(t, m.root(a, "insert into app.numbers values (1)"))
	w.Until("the replica lacks nothing", func() bool {
		loss := w.now().Loss
		return loss != nil && loss.Host == b.addr() && loss.Seconds != nil && *loss.Seconds == 0
	})
	a.kill()
	served(w, b)
	w.wantPrimary(b, 2)
	if e := w.last(); e.Loss == nil || e.Loss.Seconds == nil || *e.Loss.Seconds != 0 {
		t.Errorf("the loss that was predicted is %v, want none", e.Loss)
	}
	served(follower, b)
	a.start() // read-only
	w.awaitWhy(a, "follows no primary")
	w.goesOn(a, 5)
	w.wantPrimary(b, 2)

	m.again(a, b)
	w.awaitUp(a)
	b.pause()
	served(w, a)
	w.wantPrimary(a, 3)
	served(follower, a)
	b.resume()
	w.wantTwoWriters(a, 3, b)
	follower.wantTwoWriters(a, follower.now().Epoch, b)

	output(t, m.root(b, "set global read_only=1"))
	m.again(b, a)
	w.awaitUp(b)
	end(t, w.Understudy)
	follower.Until("b is a replica", func() bool { return follower.host(b).Role.Role == "replica" })
	a.pause()
	follower.Until("there is no primary", func() bool { return follower.now().Primary == "" })
	follower.wantPromotedByHand(a, b, func() {
		output(t, m.root(b, "stop all replicas; reset replica all; set global read_only=0"))
	}, func() { served(follower, b) })
	end(t, follower.Understudy)
}
