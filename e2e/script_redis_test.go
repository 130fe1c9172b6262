//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

const redisPassword = "secret-of-redis"

// redis starts a server, a replica of another one if there is one.
func redis(t *testing.T, dir, name string, primary *database) *database {
	t.Helper()
	home, port := filepath.Join(dir, name), proctest.FreePort(t, "127.0.0.1")
	run(t, "install", "-d", "-o", strconv.Itoa(uidOfDatabases()), home)
	text := fmt.Sprintf("bind 127.0.0.1\nport %d\ndir %s\nrequirepass %s\nmasterauth %s\nsave \"\"\nrepl-diskless-sync-delay 0\n", port, home, redisPassword, redisPassword)
	if primary != nil {
		text += fmt.Sprintf("replicaof 127.0.0.1 %d\n", primary.port)
	}
	config := filepath.Join(home, "redis.conf")
	private(t, config, text, true)
	d := &database{
		t: t, name: name, port: port, log: filepath.Join(dir, name+".log"), end: syscall.SIGTERM,
		argv: []string{"redis-server", config},
		asks: func() *exec.Cmd { return redisCLI(t, port, "-e", "ping") },
	}
	return d.begin()
}

// redisCLI is a client, which ends with the test.
func redisCLI(t *testing.T, port int, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "redis-cli", append([]string{"-h", "127.0.0.1", "-p", strconv.Itoa(port)}, args...)...)
	cmd.Env = append(os.Environ(), "REDISCLI_AUTH="+redisPassword)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// redisSession is a session of redis-cli that adds numbers to a set, and checks
// each time that a replica has it too.
type redisSession struct {
	*terminal
	wrote *atomic.Int64
}

func (s redisSession) write(n int) error {
	added, err := s.query(fmt.Sprintf("sadd numbers %d", n))
	if err != nil {
		return err
	}
	if added != "1" {
		return fmt.Errorf("sadd: %q", added)
	}
	s.wrote.Add(1)
	if have, err := s.query("wait 1 500"); err != nil || have != "1" {
		return fmt.Errorf("no replica has it: %q, %w", have, err)
	}
	return nil
}

// Redis with a replica and the scripts and settings of docs/scripts.md: the
// primary is killed, comes back by itself, becomes a replica, and then primary
// again by a command of an operator. What a replica has confirmed is not lost.
func TestRedis(t *testing.T) {
	t.Parallel()
	needs(t, "redis-server")
	needs(t, "redis-cli")
	dir := databaseDir(t)
	a := redis(t, dir, "a", nil)
	b := redis(t, dir, "b", a)
	info := func(d *database) string { return output(t, redisCLI(t, d.port, "info", "replication")) }
	awaitReplica := func(d *database) {
		proctest.Until(t, "there is a replica", func() bool { return strings.Contains(info(d), "state=online") })
	}
	awaitReplica(a)

	password := filepath.Join(t.TempDir(), "password")
	private(t, password, redisPassword+"\n", false)
	r := newPair(t, "redis", 6379, a, b, []string{"REDIS_PASSWORD_FILE=" + password}, "--check-interval", "500ms")
	u := r.Understudy

	var wrote atomic.Int64
	port, _ := strconv.Atoi(portOf(r.addr))
	clients := startRecorder(t, func() (session, error) {
		s, err := newTerminal(redisCLI(t, port)) // it reports the lost connection and goes on
		return redisSession{s, &wrote}, err
	})
	clients.goesOn(u)
	r.drill()

	a.kill()
	killed, before := time.Now(), wrote.Load()
	u.Until("writes go on", func() bool { return wrote.Load() > before+1 }) // one may have been under way
	gap := time.Since(killed)

	// It comes back as a primary, and empty.
	a.start()
	u.Until("the old primary is recognized", func() bool { return countLog(u, "a second primary", "host="+a.addr()) > 0 })
	output(t, redisCLI(t, a.port, "replicaof", "127.0.0.1", strconv.Itoa(b.port)))
	awaitReplica(b)
	clients.goesOn(u)

	_, back := r.switchTo(a)
	awaitReplica(a) // the trigger has made the old one a replica
	clients.goesOn(u)
	records, ends := clients.finish()
	t.Logf("killed: first write after %v; switchover: %v; %d numbers acknowledged, %d sessions ended", gap.Round(time.Millisecond), back.Round(time.Millisecond), len(records), len(ends))
	wantWithin(t, "the failover", gap, 15*time.Second)
	wantAll(t, records, numbers(t, output(t, redisCLI(t, port, "smembers", "numbers"))))
	r.end(3)
}
