//go:build linux

package e2e

import (
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// Redis with a replica and the scripts and settings of docs/scripts.md: the
// primary is killed, comes back by itself, becomes a replica, and then primary
// again by a command of an operator. What a replica has confirmed is not lost.
func TestRedis(t *testing.T) {
	t.Parallel()
	s := newRedis(t)
	a := s.serve("a", nil)
	b := s.serve("b", a)
	s.awaitReplica(a)

	password := filepath.Join(t.TempDir(), "password")
	private(t, password, redisPassword+"\n", false)
	r := newPair(t, "redis", 6379, a, b, []string{"REDIS_PASSWORD_FILE=" + password}, "--check-interval", "500ms")
	u := r.Understudy

	var wrote atomic.Int64
	port, _ := strconv.Atoi(portOf(r.addr))
	clients := startRecorder(t, func() (session, error) {
		cli, err := newTerminal(redisCLI(t, port)) // it reports the lost connection and goes on
		return redisSession{cli, &wrote}, err
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
	s.awaitReplica(b)
	clients.goesOn(u)

	_, back := r.switchTo(a)
	s.awaitReplica(a) // the trigger has made the old one a replica
	clients.goesOn(u)
	records, ends := clients.finish()
	t.Logf("killed: first write after %v; switchover: %v; %d numbers acknowledged, %d sessions ended", gap.Round(time.Millisecond), back.Round(time.Millisecond), len(records), len(ends))
	wantWithin(t, "the failover", gap, 15*time.Second)
	wantAll(t, records, numbers(t, output(t, redisCLI(t, port, "smembers", "numbers"))))
	r.end(3)
}
