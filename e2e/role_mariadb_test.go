//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"understudy/internal/proctest"
	"understudy/internal/role"
	"understudy/roles"
)

// The facts of a primary and a replica of MariaDB: with a user that may log in and
// nothing else, and with one that may also see the replication.
func TestMariaDBRole(t *testing.T) {
	t.Parallel()
	m := newMariaDB(t)
	cert, key := certificate(t, m.dir, "db1.example")
	a := m.serve("a", "--max-connect-errors=5", "--ssl-cert="+cert, "--ssl-key="+key, "--max-connections=10")
	b := m.serve("b", "--max-connect-errors=5")
	output(t, m.root(a, "set global read_only=0; create user replica@'%' identified by '"+standbyPassword+"'; grant replication slave on *.* to replica@'%';"+
		"create user monitor@'%' identified by '"+rolePassword+"'; create user viewer@'%' identified by '"+rolePassword+"'; grant replica monitor on *.* to viewer@'%';"+
		"create database app; create table app.numbers (n int primary key)"))
	m.follow(b, a)

	q := newQuestioner(t, roles.Config{Protocol: roles.MySQL, User: "monitor"})
	viewer := newQuestioner(t, roles.Config{Protocol: roles.MySQL, User: "viewer"})
	first := q.must(a)
	if first.Role != role.Primary || first.Position == 0 || first.Bytes || first.Term != 0 {
		t.Errorf("primary: %+v", first)
	}
	q.until(b, "has all", func(f role.Fact) bool { return f.Role == role.Replica && f.Position == first.Position })
	if f := q.must(b); f.Lag.TimeKnown || !strings.Contains(f.Detail, "replication is not shown") {
		t.Errorf("replica, for a user without rights: %+v", f)
	}
	if f := viewer.must(b); f.Role != role.Replica || !f.Lag.TimeKnown || f.Position != first.Position || f.Detail != "read_only" {
		t.Errorf("replica, for a user who may see the replication: %+v", f)
	}

	// What a replica has received counts, applied or not.
	output(t, m.root(b, "stop replica sql_thread"))
	output(t, m.root(a, "insert into app.numbers values (1); insert into app.numbers values (2)"))
	viewer.until(b, "has received all", func(f role.Fact) bool {
		return f.Position == first.Position+2 && !f.Lag.TimeKnown && strings.Contains(f.Detail, "replay is stopped")
	})
	output(t, m.root(b, "start replica sql_thread"))

	connects, aborted, failed := m.number(a, "Connections"), m.number(a, "Aborted_connects"), m.number(a, "Aborted_clients")
	for range 1000 {
		q.must(a)
	}
	if n := m.number(a, "Aborted_connects"); n != aborted {
		t.Errorf("Aborted_connects grew by %d", n-aborted)
	}
	if n := m.number(a, "Aborted_clients"); n != failed {
		t.Errorf("Aborted_clients grew by %d", n-failed)
	}
	if n := m.number(a, "Connections"); n > connects+10 { // those of this test itself
		t.Errorf("1000 questions made %d connections", n-connects)
	}
	if n := strings.TrimSpace(output(t, m.root(a, "select count(*) from information_schema.processlist where user = 'monitor'"))); n != "1" {
		t.Errorf("%s sessions after 1000 questions, want 1", n)
	}

	// A promotion is seen in the sessions that are there.
	output(t, m.root(b, "stop all replicas; reset replica all; set global read_only=0"))
	if f := q.must(b); f.Role != role.Primary {
		t.Errorf("after its promotion the replica is %+v", f)
	}
	output(t, m.root(a, "set global read_only=1"))
	if f := viewer.must(a); f.Role != role.Replica || !f.Detached || f.Detail != "read_only, and follows no primary" {
		t.Errorf("a read-only server that follows nobody is %+v", f)
	}

	// Many sessions come and go, some with the wrong password, and none is blocked.
	for range 10 {
		fresh := newQuestioner(t, roles.Config{Protocol: roles.MySQL, User: "monitor"})
		fresh.must(a)
		fresh.pool.Close()
		private(t, fresh.file, "wrong", false)
		wrong := newQuestioner(t, roles.Config{Protocol: roles.MySQL, User: "monitor"})
		private(t, wrong.file, "wrong", false)
		wrong.refused(a.addr(), "Access denied")
	}
	newQuestioner(t, roles.Config{Protocol: roles.MySQL, User: "monitor"}).must(a)
	if n := m.number(a, "Aborted_clients"); n != failed {
		t.Errorf("Aborted_clients grew by %d", n-failed)
	}

	for _, tt := range []struct {
		tls    roles.TLSConfig
		server *database
		reason string // empty: it answers
	}{
		{roles.TLSConfig{Mode: roles.TLSPrefer}, a, ""},
		{roles.TLSConfig{Mode: roles.TLSPrefer}, b, ""},
		{roles.TLSConfig{Mode: roles.TLSRequire}, a, ""},
		{roles.TLSConfig{Mode: roles.TLSRequire}, b, "does not support TLS"},
		{roles.TLSConfig{Mode: roles.TLSVerify, CA: cert, ServerName: "db1.example"}, a, ""},
		{roles.TLSConfig{Mode: roles.TLSVerify, CA: cert, ServerName: "db2.example"}, a, "db2.example"},
	} {
		q := newQuestioner(t, roles.Config{Protocol: roles.MySQL, User: "monitor", TLS: tt.tls})
		if tt.reason == "" {
			q.must(tt.server)
		} else {
			q.refused(tt.server.addr(), tt.reason)
		}
		q.pool.Close()
	}

	// The password changes: the session goes on, and the next one needs the new one.
	output(t, m.root(a, "set password for monitor@'%' = password('another one')"))
	q.must(a)
	output(t, m.root(a, "kill user monitor"))
	proctest.Until(t, "the login is refused", func() bool {
		_, err := q.ask(a.addr())
		return errors.Is(err, roles.ErrRefused)
	})
	private(t, q.file, "another one", false)
	q.must(a)

	// No place for one more session.
	var clients []*exec.Cmd
	full := newQuestioner(t, roles.Config{Protocol: roles.MySQL, User: "viewer"})
	proctest.Until(t, "clients have all connections", func() bool {
		if _, err := full.ask(a.addr()); err != nil {
			return strings.Contains(err.Error(), "1040")
		}
		full.pool.Close()
		full = newQuestioner(t, roles.Config{Protocol: roles.MySQL, User: "viewer"})
		cmd := exec.Command("mysql", "--no-defaults", "-u", "replica", "-p"+standbyPassword, "-h", "127.0.0.1", "-P", strconv.Itoa(a.port), "-e", "select sleep(600)")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, cmd)
		return false
	})
	full.refused(a.addr(), "1040")
	for _, cmd := range clients {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	b.stop()
	if f, err := q.ask(b.addr()); err == nil || errors.Is(err, roles.ErrRefused) {
		t.Errorf("a server that is down: %+v, %v, want a failure", f, err)
	}
}

// A node of Galera takes writes, and says which cluster it is of.
func TestGaleraRole(t *testing.T) {
	t.Parallel()
	m := newMariaDB(t)
	library := "/usr/lib/galera/libgalera_smm.so"
	if _, err := os.Stat(library); err != nil {
		t.Skip("SKIPPED: galera is not installed (apt-get install galera-4)")
	}
	port := proctest.FreePort(t, "127.0.0.1")
	a := m.serve("a", "--wsrep-on=1", "--wsrep-provider="+library, "--wsrep-cluster-address=gcomm://", "--binlog-format=row", "--innodb-autoinc-lock-mode=2",
		"--wsrep-node-address=127.0.0.1", fmt.Sprintf("--wsrep-provider-options=gmcast.listen_addr=tcp://127.0.0.1:%d;gcache.dir=%s;gcache.size=1M;base_dir=%s", port, m.dir, m.dir),
		"--wsrep-data-home-dir="+filepath.Join(m.dir, "a"))
	output(t, m.root(a, "set global read_only=0; create user monitor@'%' identified by '"+rolePassword+"'"))
	q := newQuestioner(t, roles.Config{Protocol: roles.MySQL, User: "monitor"})
	f := q.until(a, "is a primary", func(f role.Fact) bool { return f.Role == role.Primary })
	uuid := strings.Fields(output(t, m.root(a, "show status like 'wsrep_cluster_state_uuid'")))
	if len(uuid) != 2 || f.Identity != uuid[1] || f.Position == 0 || !f.Shared {
		t.Errorf("node of the cluster %v: %+v", uuid, f)
	}
	output(t, m.root(a, "set global wsrep_provider_options='pc.weight=0'; set global read_only=1"))
	if f := q.must(a); f.Role != role.Replica {
		t.Errorf("read-only node: %+v", f)
	}
}
