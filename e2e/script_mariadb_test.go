//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// MariaDB with a semi-synchronous replica and the scripts and settings of
// docs/scripts.md: the primary is killed, comes back read-only, becomes a
// replica, and then primary again by a command of an operator.
func TestMariaDB(t *testing.T) {
	t.Parallel()
	m := newMariaDB(t)
	a, b := m.pair(nil, "--rpl-semi-sync-slave-enabled=1")
	role, err := os.ReadFile(filepath.Join(scriptsDir, "mariadb-role.sql"))
	if err != nil {
		t.Fatal(err)
	}
	output(t, m.root(a, strings.Replace(string(role), "PASSWORD", scriptsPassword, 1)))
	m.application(a)
	output(t, m.root(a, "set global rpl_semi_sync_master_timeout=60000, rpl_semi_sync_master_wait_point=AFTER_SYNC, rpl_semi_sync_master_enabled=1"))
	output(t, m.root(b, "stop replica; start replica"))
	proctest.Until(t, "the replica acknowledges", func() bool {
		return strings.Contains(output(t, m.root(a, "show status like 'Rpl_semi_sync_master_clients'")), "\t1")
	})

	defaults := filepath.Join(t.TempDir(), "mysql.cnf")
	private(t, defaults, "[client]\nuser=understudy\npassword="+scriptsPassword+"\n", false)
	r := newPair(t, "mysql", 3306, a, b, []string{"MYSQL_DEFAULTS=" + defaults}, "--check-interval", "500ms")
	u := r.Understudy
	clients := startRecorder(t, func() (session, error) {
		s, err := newTerminal(m.client(r.addr))
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
	m.again(a, b)
	clients.goesOn(u)

	_, back := r.switchTo(a)
	clients.goesOn(u)
	records, ends := clients.finish()
	t.Logf("killed: open after %v, no acknowledged write for %v; switchover: %v; %d numbers acknowledged, %d sessions ended",
		opened.Round(time.Millisecond), longestGap(records, killed, killed.Add(opened)).Round(time.Millisecond), back.Round(time.Millisecond), len(records), len(ends))
	wantAll(t, records, numbers(t, output(t, m.client(r.addr, "-e", "select n from app.numbers"))))
	r.end(3)
}
