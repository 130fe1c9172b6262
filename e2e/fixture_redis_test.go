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

	"understudy/internal/proctest"
)

const redisPassword = "secret-of-redis"

// redis holds the directory of servers of Redis for a test.
type redis struct {
	t   *testing.T
	dir string
}

// newRedis skips the test where Redis is missing.
func newRedis(t *testing.T) *redis {
	t.Helper()
	needs(t, "redis-server")
	needs(t, "redis-cli")
	return &redis{t, databaseDir(t)}
}

// serve starts a server, a replica of another one if there is one, with settings of its
// own.
func (r *redis) serve(name string, primary *database, settings ...string) *database {
	t := r.t
	t.Helper()
	home, port := filepath.Join(r.dir, name), proctest.FreePort(t, "127.0.0.1")
	run(t, "install", "-d", "-o", strconv.Itoa(uidOfDatabases()), home)
	text := fmt.Sprintf("bind 127.0.0.1\nport %d\ndir %s\nrequirepass %s\nmasterauth %s\nsave \"\"\nrepl-diskless-sync-delay 0\n", port, home, redisPassword, redisPassword)
	if primary != nil {
		text += fmt.Sprintf("replicaof 127.0.0.1 %d\n", primary.port)
	}
	text += strings.Join(settings, "")
	config := filepath.Join(home, "redis.conf")
	private(t, config, text, true)
	d := &database{
		t: t, name: name, port: port, log: filepath.Join(r.dir, name+".log"), end: syscall.SIGTERM,
		argv: []string{"redis-server", config},
		asks: func() *exec.Cmd { return redisCLI(t, port, "-e", "ping") },
	}
	return d.begin()
}

// do runs a command of redis-cli, which has to succeed, and returns the answer.
func (r *redis) do(d *database, args ...string) string {
	r.t.Helper()
	return strings.TrimSpace(output(r.t, redisCLI(r.t, d.port, append([]string{"-e"}, args...)...)))
}

// awaitReplica waits until a replica follows d.
func (r *redis) awaitReplica(d *database) {
	r.t.Helper()
	proctest.Until(r.t, d.name+" has a replica", func() bool { return strings.Contains(r.do(d, "info", "replication"), "state=online") })
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
