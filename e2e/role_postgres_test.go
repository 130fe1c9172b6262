//go:build linux

package e2e

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/health"
	"understudy/internal/proctest"
	"understudy/internal/role"
	"understudy/roles"
)

// roleUser is the user who asks for the role of PostgreSQL: it may log in, and nothing
// else.
const roleUser = "create role monitor login password '" + rolePassword + "'"

// questioner asks servers for their role, as a check does.
type questioner struct {
	t    *testing.T
	pool *roles.Pool
	cfg  roles.Config
	file string // with the password
	*roles.Asker
}

// newQuestioner returns a questioner with a session to each server that it asks.
func newQuestioner(t *testing.T, cfg roles.Config) *questioner {
	t.Helper()
	q := &questioner{t: t, pool: roles.NewPool(hclog.NewNullLogger()), file: filepath.Join(t.TempDir(), "password")}
	t.Cleanup(q.pool.Close)
	private(t, q.file, rolePassword+"\n", false)
	dialer, err := health.NewDialer(nil, netip.Addr{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	cfg.PasswordFile, cfg.Interval, cfg.Dial = q.file, time.Minute, dialer.Dial
	if cfg.TLS.Mode == "" {
		cfg.TLS.Mode = roles.TLSAuto
	}
	q.cfg = cfg
	if q.Asker, err = q.pool.NewAsker("settings", cfg); err != nil {
		t.Fatal(err)
	}
	return q
}

// ask asks a server once.
func (q *questioner) ask(addr string) (role.Fact, error) {
	q.t.Helper()
	ctx, cancel := context.WithTimeout(q.t.Context(), patience)
	defer cancel()
	return q.Ask(ctx, addr, netip.Addr{})
}

// must asks a server, which has to answer.
func (q *questioner) must(d *database) role.Fact {
	q.t.Helper()
	fact, err := q.ask(d.addr())
	if err != nil {
		q.t.Fatalf("%s: %v", d.name, err)
	}
	return fact
}

// until asks a server until its answer is as wanted.
func (q *questioner) until(d *database, what string, wanted func(role.Fact) bool) (fact role.Fact) {
	q.t.Helper()
	proctest.Until(q.t, d.name+" "+what, func() bool {
		var err error
		fact, err = q.ask(d.addr())
		return err == nil && wanted(fact)
	})
	return fact
}

// refused asks a server, which has to refuse the session for a reason.
func (q *questioner) refused(addr, reason string) {
	q.t.Helper()
	fact, err := q.ask(addr)
	if !errors.Is(err, roles.ErrRefused) || fact.Role != role.Unknown || !strings.Contains(err.Error(), reason) {
		q.t.Errorf("ask %s: %+v, %v, want refused because of %q", addr, fact, err, reason)
	}
}

// The facts of a primary and a standby: with a user that may log in and nothing else,
// through a promotion, in sessions that stay.
func TestPostgresRole(t *testing.T) {
	t.Parallel()
	p := newPostgres(t)
	a := p.primary("log_connections = on\nlog_disconnections = on\nlog_line_prefix = '%m %u: '\n")
	p.admin(a, roleUser)
	b := p.standby(a, "b")
	q := newQuestioner(t, roles.Config{Protocol: roles.Postgres, User: "monitor"})

	first := q.must(a)
	if first.Role != role.Primary || first.Term != 1 || first.Identity == "" || first.Position == 0 || !first.Bytes || first.Detail != "" {
		t.Errorf("primary: %+v", first)
	}
	// A standby knows the time of what it has replayed after its first transaction.
	p.admin(a, "create table beginning as select 1")
	q.until(b, "knows its lag", func(f role.Fact) bool { return f.Lag.TimeKnown })
	follows := q.must(b)
	if follows.Role != role.Replica || follows.Term != 1 || follows.Identity != first.Identity || !follows.Lag.TimeKnown || follows.Detail != "in recovery" {
		t.Errorf("standby of %+v: %+v", first, follows)
	}
	p.admin(a, "create table wal as select generate_series(1, 10000)")
	written := q.must(a)
	if written.Position < first.Position+100_000 {
		t.Errorf("10000 rows moved the primary from %d to %d", first.Position, written.Position)
	}
	q.until(b, "has all", func(f role.Fact) bool { return f.Position >= written.Position })

	for range 1000 {
		q.must(a)
		q.must(b)
	}
	for _, d := range []*database{a, b} {
		if n := strings.TrimSpace(p.admin(d, "select count(*) from pg_stat_activity where usename = 'monitor' and application_name = 'understudy'")); n != "1" {
			t.Errorf("%s has %s sessions of the user after 1000 questions, want 1", d.name, n)
		}
		port := strings.TrimSpace(p.admin(d, "select client_port from pg_stat_activity where usename = 'monitor'"))
		if lines := linesOf(t, d.log, " monitor: ", "port="+port); lines != 3 {
			t.Errorf("%s has %d lines of the user in its log after 1000 questions, want 3 (received, authenticated, authorized)", d.name, lines)
		}
	}

	// The server that is read-only takes no writes, and is no primary.
	p.admin(a, "alter system set default_transaction_read_only = on", "select pg_reload_conf()")
	q.until(a, "is read-only", func(f role.Fact) bool {
		return f.Role == role.Replica && strings.Contains(f.Detail, "default_transaction_read_only")
	})
	p.admin(a, "alter system reset default_transaction_read_only", "select pg_reload_conf()")
	q.until(a, "is writable", func(f role.Fact) bool { return f.Role == role.Primary })
	p.admin(a, "alter role monitor set default_transaction_read_only = on", "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'monitor'")
	if f := q.must(a); f.Role != role.Primary {
		t.Errorf("with a user that is read-only the primary is %+v", f)
	}

	p.admin(b, "select pg_promote(true, 60)")
	second := q.must(b)
	if second.Role != role.Primary || second.Term != 2 || second.Identity != first.Identity || second.Position < written.Position {
		t.Errorf("after the promotion the standby is %+v, want a primary in term 2", second)
	}
	if f := q.must(a); f.Role != role.Primary || f.Term != 1 {
		t.Errorf("after the promotion of the other the old primary is %+v, want a primary in term 1", f)
	}
	q.pool.Close()
	proctest.Until(t, "the sessions have ended", func() bool {
		return strings.TrimSpace(p.admin(a, "select count(*) from pg_stat_activity where usename = 'monitor'")) == "0"
	})
	for _, trouble := range []string{"unexpected EOF", "could not receive", "incomplete startup packet"} {
		if n := linesOf(t, a.log, trouble); n != 0 {
			t.Errorf("the log of the primary has %q %d times", trouble, n)
		}
	}
}

// linesOf counts the lines of a file with one of some texts in them.
func linesOf(t *testing.T, file string, texts ...string) (n int) {
	t.Helper()
	log, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		for _, text := range texts {
			if strings.Contains(line, text) {
				n++
				break
			}
		}
	}
	return n
}

// What keeps a primary from saying its role is no failure: a password that was changed,
// no place for one more session, a certificate of another name, an unknown user, a
// standby that is not consistent yet. A server that is down is one.
func TestPostgresRoleIsNotSaid(t *testing.T) {
	t.Parallel()
	p := newPostgres(t)
	cert, key := certificate(t, p.dir, "db1.example")
	a := p.primary("max_connections = 5\nsuperuser_reserved_connections = 1\nssl = on\nssl_cert_file = '" + cert + "'\nssl_key_file = '" + key + "'\n")
	p.admin(a, roleUser)
	b := p.standby(a, "b")

	q := newQuestioner(t, roles.Config{Protocol: roles.Postgres, User: "monitor"})
	q.must(a)
	p.admin(a, "alter role monitor password 'another one'")
	if f := q.must(a); f.Role != role.Primary {
		t.Errorf("in the session from before the password was changed: %+v, want a primary", f)
	}
	p.admin(a, "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'monitor'")
	q.refused(a.addr(), "password authentication failed")
	private(t, q.file, "another one", false)
	if f := q.must(a); f.Role != role.Primary {
		t.Errorf("with the new password: %+v, want a primary", f)
	}
	p.admin(a, "alter role monitor password '"+rolePassword+"'")

	nobody := newQuestioner(t, roles.Config{Protocol: roles.Postgres, User: "nobody"})
	nobody.refused(a.addr(), "password authentication failed")
	missing := newQuestioner(t, roles.Config{Protocol: roles.Postgres, User: "monitor"})
	if err := os.Remove(missing.file); err != nil {
		t.Fatal(err)
	}
	missing.refused(a.addr(), "no such file")

	for _, tt := range []struct {
		tls    roles.TLSConfig
		reason string // empty: it answers
	}{
		{roles.TLSConfig{Mode: roles.TLSOff}, ""},
		{roles.TLSConfig{Mode: roles.TLSPrefer}, ""},
		{roles.TLSConfig{Mode: roles.TLSRequire}, ""},
		{roles.TLSConfig{Mode: roles.TLSVerify, CA: cert, ServerName: "db1.example"}, ""},
		{roles.TLSConfig{Mode: roles.TLSVerify, CA: cert, ServerName: "db2.example"}, "db2.example"},
		{roles.TLSConfig{Mode: roles.TLSVerify, CA: cert}, "127.0.0.1"},
		{roles.TLSConfig{Mode: roles.TLSVerify, ServerName: "db1.example"}, "unknown authority"},
	} {
		q := newQuestioner(t, roles.Config{Protocol: roles.Postgres, User: "monitor", TLS: tt.tls})
		if tt.reason != "" {
			q.refused(a.addr(), tt.reason)
			continue
		}
		q.must(a)
		encrypted := strings.TrimSpace(p.admin(a, "select bool_or(ssl) from pg_stat_ssl join pg_stat_activity using (pid) where usename = 'monitor' and application_name = 'understudy'"))
		if want := map[bool]string{true: "f", false: "t"}[tt.tls.Mode == roles.TLSOff]; tt.tls.Mode != roles.TLSOff && encrypted != want {
			t.Errorf("with %+v the session is encrypted: %s, want %s", tt.tls, encrypted, want)
		}
		q.pool.Close()
	}

	q.pool.Close()
	full := newQuestioner(t, roles.Config{Protocol: roles.Postgres, User: "monitor"})
	var held []*exec.Cmd
	proctest.Until(t, "clients have all connections", func() bool {
		if _, err := full.ask(a.addr()); err != nil && strings.Contains(err.Error(), "53300") {
			return true
		}
		full.pool.Close()
		full = newQuestioner(t, roles.Config{Protocol: roles.Postgres, User: "monitor"})
		cmd := p.client(a.addr(), "psql", "-XAtqc", "select pg_sleep(600)")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		held = append(held, cmd)
		return false
	})
	full.refused(a.addr(), "53300")
	for _, cmd := range held {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}

	// A standby that takes no sessions says that it is starting.
	b.stop()
	p.configure("b", "hot_standby = off\n")
	b.asks = func() *exec.Cmd { return exec.Command("true") }
	b.start()
	sleeper := newQuestioner(t, roles.Config{Protocol: roles.Postgres, User: "monitor"})
	f := sleeper.until(b, "starts", func(f role.Fact) bool { return f.Role == role.Starting })
	if !strings.Contains(f.Detail, "57P03") {
		t.Errorf("a standby that takes no sessions is %+v", f)
	}
	b.stop()
	if f, err := sleeper.ask(b.addr()); err == nil || errors.Is(err, roles.ErrRefused) {
		t.Errorf("a server that is down: %+v, %v, want a failure", f, err)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if f, err := sleeper.Ask(ctx, silent.Addr().String(), netip.Addr{}); err == nil || errors.Is(err, roles.ErrRefused) {
		t.Errorf("a server that never answers: %+v, %v, want a failure", f, err)
	}
}
