//go:build linux

package e2e

import (
	"path/filepath"
	"strings"
	"testing"
)

// Redis and a replica: the primary is killed, the next one stops, and a person promotes
// a replica with REPLICAOF NO ONE.
func TestRedisPrimaryIsLost(t *testing.T) {
	t.Parallel()
	r := newRedis(t)
	monitor := "user monitor on \">" + rolePassword + "\" -@all +role +ping\n"
	a := r.serve("a", nil, monitor)
	b := r.serve("b", a, monitor)
	r.awaitReplica(a)
	password := filepath.Join(t.TempDir(), "password")
	private(t, password, redisPassword+"\n", false)
	w := watch(t, "redis", []*database{a, b}, []string{"REDIS_PASSWORD_FILE=" + password},
		"--promote", "--on-failover", absolute(t, scriptsDir+"/redis-promote.sh"), "--trigger-policy", "abort")
	follower := watch(t, "redis", []*database{a, b}, nil)
	w.awaitPrimary(a, 1)
	w.awaitUp(b)
	follower.awaitPrimary(a, 1)
	w.goesOn(b, 10)
	for _, d := range []*database{a, b} {
		if n := strings.Count(r.do(d, "client", "list"), "user=monitor"); n != 2 {
			t.Errorf("%s has %d sessions of two programs, want 2", d.name, n)
		}
	}
	served := func(u *watched, d *database) {
		t.Helper()
		u.Until(d.name+" serves clients", func() bool {
			out, err := redisCLI(t, atoi(t, portOf(u.addr)), "-e", "config", "get", "port").Output()
			return err == nil && strings.Fields(string(out))[1] == portOf(d.addr())
		})
	}

	r.do(a, "set", "a", "1")
	w.Until("the loss is predicted", func() bool { loss := w.now().Loss; return loss != nil && loss.Host == b.addr() })
	a.kill()
	served(w, b)
	w.wantPrimary(b, 2)
	w.wantLoss(b, 0, 1000)
	served(follower, b)
	a.start() // as a primary, without data
	w.wantTwoWriters(b, 2, a)
	follower.wantTwoWriters(b, 2, a)

	r.do(a, "replicaof", "127.0.0.1", portOf(b.addr()))
	r.awaitReplica(b)
	w.awaitUp(a)
	b.pause()
	served(w, a)
	w.wantPrimary(a, 3)
	served(follower, a)
	b.resume()
	w.wantTwoWriters(a, 3, b)

	r.do(b, "replicaof", "127.0.0.1", portOf(a.addr()))
	r.awaitReplica(a)
	w.Until("b is a replica", func() bool { return w.host(b).State == "up" })
	end(t, w.Understudy)
	follower.Until("b is a replica", func() bool { return follower.host(b).Role.Role == "replica" })
	a.pause()
	follower.WaitLog("no host is usable")
	follower.Until("the role of b is asked again and again", func() bool { return follower.now().Primary == "" })
	follower.wantPromotedByHand(a, b, func() { r.do(b, "replicaof", "no", "one") }, func() { served(follower, b) })
	end(t, follower.Understudy)
}
