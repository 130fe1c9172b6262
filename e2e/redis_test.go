//go:build linux

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
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

// redisSession is a session of redis-cli that adds numbers to a set, and asks
// each time whether a replica has it too.
type redisSession struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	wrote *atomic.Int64
}

func (s *redisSession) write(n int) error {
	added, err := s.ask(fmt.Sprintf("sadd numbers %d", n))
	if err != nil {
		return err
	}
	if added != "1" {
		return fmt.Errorf("sadd: %q", added)
	}
	s.wrote.Add(1)
	if have, err := s.ask("wait 1 500"); err != nil || have != "1" {
		return fmt.Errorf("no replica has it: %q, %w", have, err)
	}
	return nil
}

func (s *redisSession) ask(command string) (string, error) {
	if _, err := fmt.Fprintln(s.in, command); err != nil {
		return "", err
	}
	line, err := s.out.ReadString('\n')
	return strings.TrimSpace(line), err
}

func (s *redisSession) close() {
	s.in.Close()
	_ = s.cmd.Wait()
}

// Redis with a replica and the scripts and settings of docs/scripts.md: the
// primary is killed, comes back unasked, becomes a replica, and then primary
// again because an operator says so. What a replica has confirmed is there.
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

	addr, socket, password := freeAddr(t), socketPath(t), filepath.Join(t.TempDir(), "password")
	private(t, password, redisPassword+"\n", false)
	config := scriptsConfig(t, "redis.yaml", ":6379\"", addr+"\"", "db1:6379, db2:6379", a.addr()+", "+b.addr())
	u := proctest.StartCommand(t, proctest.BinaryCommand(program(t), []string{
		"REDIS_PASSWORD_FILE=" + password, "STATE_DIR=" + t.TempDir(), "CONTROL=" + socket,
	}, "--config", config, "--interval", "250ms", "--check-interval", "500ms"))
	u.WaitLog("relay open")
	u.Until("the replica is up", func() bool { return countLog(u, "host changed state", "host="+b.addr(), "to=up") > 0 })

	var wrote atomic.Int64
	port, _ := strconv.Atoi(portOf(addr))
	clients := startRecorder(t, func() (session, error) {
		s := &redisSession{cmd: redisCLI(t, port), wrote: &wrote}
		in, err1 := s.cmd.StdinPipe()
		out, err2 := s.cmd.StdoutPipe()
		s.cmd.Stderr = s.cmd.Stdout // it says there that it has lost the connection, and goes on
		s.in, s.out = in, bufio.NewReader(out)
		return s, errors.Join(err1, err2, s.cmd.Start())
	})
	clients.goesOn(u)
	drill(t, socket)

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

	var switched time.Time
	u.Until("the operator can switch back", func() bool {
		switched = time.Now()
		return exec.Command(program(t), "switch", "--control", socket, a.addr()).Run() == nil
	})
	back := time.Since(switched)
	awaitReplica(a) // the old one became it by the trigger
	clients.goesOn(u)
	records, ends := clients.finish()
	t.Logf("killed: first write after %v; switchover: %v; %d numbers acknowledged, %d sessions ended", gap.Round(time.Millisecond), back.Round(time.Millisecond), len(records), len(ends))
	wantWithin(t, "the failover", gap, 15*time.Second)
	wantAll(t, records, numbers(t, output(t, redisCLI(t, port, "smembers", "numbers"))))
	if n := elections(u); n != 3 {
		t.Errorf("%d elections, want 3", n)
	}
	end(t, u)
}
