//go:build linux

package e2e

import (
	"errors"
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

// The facts of a primary and a replica of Redis, for a user who may use ROLE and PING
// only.
func TestRedisRole(t *testing.T) {
	t.Parallel()
	s := newRedis(t)
	a := s.serve("a", nil)
	b := s.serve("b", a)
	do := s.do
	for _, d := range []*database{a, b} {
		do(d, "acl", "setuser", "monitor", "on", ">"+rolePassword, "-@all", "+role", "+ping")
	}
	q := newQuestioner(t, roles.Config{Protocol: roles.Redis, User: "monitor"})
	q.until(b, "follows", func(f role.Fact) bool { return f.Role == role.Replica && f.Detail == "" })
	do(a, "set", "a", strings.Repeat("x", 10_000))
	first := q.must(a)
	if first.Role != role.Primary || !first.Bytes || first.Position < 10_000 {
		t.Errorf("primary: %+v", first)
	}
	q.until(b, "has all", func(f role.Fact) bool { return f.Position >= first.Position })

	connections := func() string {
		_, rest, _ := strings.Cut(do(a, "info", "stats"), "total_connections_received:")
		n, _, _ := strings.Cut(rest, "\r")
		return n
	}
	before, _ := strconv.Atoi(connections())
	for range 1000 {
		q.must(a)
	}
	if after, _ := strconv.Atoi(connections()); after > before+1 { // that of this test itself
		t.Errorf("1000 questions made %d connections", after-before)
	}
	if list := do(a, "client", "list"); strings.Count(list, "name=understudy") != 1 || strings.Count(list, "user=monitor") != 1 {
		t.Errorf("after 1000 questions there is not one session:\n%s", list)
	}
	if denied := do(a, "acl", "log"); denied != "" {
		t.Errorf("the server denied something:\n%s", denied)
	}

	do(b, "replicaof", "no", "one")
	if f := q.must(b); f.Role != role.Primary {
		t.Errorf("after its promotion the replica is %+v", f)
	}

	for _, tt := range []struct{ user, password, reason string }{
		{"monitor", "wrong", "WRONGPASS"},
		{"nobody", rolePassword, "WRONGPASS"},
		{"", "", "NOAUTH"},
	} {
		q := newQuestioner(t, roles.Config{Protocol: roles.Redis, User: tt.user})
		private(t, q.file, tt.password, false)
		q.refused(a.addr(), tt.reason)
	}
	do(a, "acl", "setuser", "poor", "on", ">"+rolePassword, "-@all", "+ping")
	newQuestioner(t, roles.Config{Protocol: roles.Redis, User: "poor"}).refused(a.addr(), "NOPERM")
	old := newQuestioner(t, roles.Config{Protocol: roles.Redis}) // the default user, as before version 6
	private(t, old.file, redisPassword, false)
	if f := old.must(a); f.Role != role.Primary {
		t.Errorf("for the default user: %+v", f)
	}

	// TLS, on a port of its own.
	cert, key := certificate(t, s.dir, "db1.example")
	port := proctest.FreePort(t, "127.0.0.1")
	do(a, "config", "set", "tls-cert-file", cert, "tls-key-file", key, "tls-ca-cert-file", cert, "tls-auth-clients", "no", "tls-port", strconv.Itoa(port))
	for _, tt := range []struct {
		tls    roles.TLSConfig
		reason string // empty: it answers
	}{
		{roles.TLSConfig{Mode: roles.TLSRequire}, ""},
		{roles.TLSConfig{Mode: roles.TLSVerify, CA: cert, ServerName: "db1.example"}, ""},
		{roles.TLSConfig{Mode: roles.TLSVerify, CA: cert, ServerName: "db2.example"}, "db2.example"},
		{roles.TLSConfig{Mode: roles.TLSVerify, ServerName: "db1.example"}, "unknown authority"},
	} {
		q := newQuestioner(t, roles.Config{Protocol: roles.Redis, User: "monitor", TLS: tt.tls, Port: uint16(port)})
		if tt.reason != "" {
			q.refused(a.addr(), tt.reason)
		} else if f := q.must(a); f.Role != role.Primary {
			t.Errorf("over TLS: %+v", f)
		}
		q.pool.Close()
	}

	// The password changes: the session goes on.
	do(a, "acl", "setuser", "monitor", "resetpass", ">another one")
	if f := q.must(a); f.Role != role.Primary {
		t.Errorf("in the session from before the password was changed: %+v", f)
	}
	do(a, "client", "kill", "user", "monitor")
	q.refused(a.addr(), "WRONGPASS")
	private(t, q.file, "another one", false)
	q.must(a)

	// A replica whose primary is gone can still be promoted.
	do(b, "replicaof", "127.0.0.1", strconv.Itoa(a.port))
	q2 := newQuestioner(t, roles.Config{Protocol: roles.Redis, User: "monitor"})
	q2.until(b, "follows", func(f role.Fact) bool { return f.Role == role.Replica && f.Detail == "" })
	had := q2.must(b).Position
	a.kill()
	f := q2.until(b, "has lost its primary", func(f role.Fact) bool { return f.Detail != "" })
	if f.Role != role.Replica || f.Position < had || had == 0 || !strings.Contains(f.Detail, "the link to the primary is down") {
		t.Errorf("replica alone: %+v", f)
	}
	// A server that loads its data says that it is starting, though ROLE answers.
	do(b, "replicaof", "no", "one")
	do(b, "eval", "for i = 1, 20000 do redis.call('set', i, i) end", "0")
	do(b, "save")
	b.stop()
	slow := filepath.Join(s.dir, "b", "redis.conf")
	text, err := os.ReadFile(slow)
	if err != nil {
		t.Fatal(err)
	}
	// 20,000 keys, 1 ms each; a request is answered after each 1 KiB.
	private(t, slow, string(text)+"\nkey-load-delay 1000\nloading-process-events-interval-bytes 1024\nuser monitor on \">"+rolePassword+"\" -@all +role +ping\n", true)
	b.asks = func() *exec.Cmd { return exec.Command("true") }
	b.start()
	if f := q2.until(b, "loads", func(f role.Fact) bool { return f.Role == role.Starting }); !strings.HasPrefix(f.Detail, "LOADING") {
		t.Errorf("a server that loads its data: %+v", f)
	}
	if f, err := q2.ask(a.addr()); err == nil || errors.Is(err, roles.ErrRefused) {
		t.Errorf("a server that is down: %+v, %v, want a failure", f, err)
	}
}
